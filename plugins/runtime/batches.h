// Requests cut into the batches that a part takes, and their results put together.
#pragma once

#include <madtp/engine.hpp>
#include <vector>

namespace madtp::detail {

// Whether every input that varies has its rows first, so that a batch can be cut and filled up.
bool can_be_cut(PartInfo const& part) noexcept;

// Rows [begin, end) of every input, the last of them repeated until there are `least`. `copies` keeps what was made.
Inputs cut(Inputs const& inputs, int64_t begin, int64_t end, int64_t least, std::vector<Tensor>& copies);

// Float16 inputs that are given as float32, in float16. `copies` keeps them.
Inputs narrow(PartInfo const& part, Inputs const& inputs, std::vector<Tensor>& copies);

// Float16 tensors on the host in float32.
Outputs::Map widen(Outputs::Map outputs);

// One batch's outputs, of `rows`, without the copies behind the first `kept`. Throws Code::input: they are on a GPU.
Outputs::Map without_copies(PartInfo const& part, Outputs::Map outputs, int64_t rows, int64_t kept);

// Outputs of batches of `rows` each, one behind the other. Where other dimensions differ they are filled up with zeros
// in a packed artifact, whose lengths say so. Throws Code::input: they differ in a dynamic one, or are on a GPU.
Outputs::Map join(
    PartInfo const& part, std::vector<Outputs::Map> const& batches, std::vector<int64_t> const& rows, bool packed);

}  // namespace madtp::detail
