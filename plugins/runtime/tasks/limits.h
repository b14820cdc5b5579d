// What is not decoded, resized or read: the same limits as in Python (docs/security.md).
#pragma once
#include <cstdint>
#include <string>

namespace madtp {

constexpr std::int64_t kMostPixels = 64'000'000;                   // of one image; more is an accident or an attack
constexpr std::uint64_t kMostImageBytes = std::uint64_t{1} << 29;  // of an image file

// Refuse an image, which messages call `name`, that has no pixels or too many.
void check_size(std::int64_t width, std::int64_t height, std::string const& name);

}  // namespace madtp
