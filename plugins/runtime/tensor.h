// Shapes and memory of tensors.
#pragma once

#include <madtp/engine.hpp>
#include <optional>
#include <string>

namespace madtp::detail {

// Elements of a shape; nothing where a dimension is negative or their product times 8 bytes fits no size_t.
std::optional<std::size_t> elements_of(Shape const& shape) noexcept;

std::string shown(Shape const& shape);  // "[2, 3]"

// Host memory for a tensor. Throws Code::memory.
Tensor host_tensor(DataType type, Shape shape);

float half_to_float(uint16_t half) noexcept;
uint16_t float_to_half(float value) noexcept;  // rounds to the nearest, ties to even

}  // namespace madtp::detail
