// Where sequences of the packed layout lie.
#pragma once
#include <vector>

#include "onnxruntime/op.h"

namespace madtp::onnxruntime {

// First row of every sequence, and the end of the last, of `cu_seqlens` [S + 1] int32: refused, by this name, where it does
// not start at 0, falls, or passes `rows`.
std::vector<size_t> starts_of(std::string const& name, Input const& cu_seqlens, int64_t rows);

}  // namespace madtp::onnxruntime
