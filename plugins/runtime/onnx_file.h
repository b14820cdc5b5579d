// Where an ONNX file takes its weights from, without running or wholly reading it.
#pragma once

#include <set>
#include <string>

namespace madtp::detail {

// The files that tensors in it name. Throws std::runtime_error: it is not an ONNX model, or cannot be read.
std::set<std::string> external_locations(std::string const& path);

}  // namespace madtp::detail
