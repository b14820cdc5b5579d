// Memory for packed weights, on huge pages: they are read from end to end in every call, and at 4 KiB a page that takes half
// as long again.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace madtp::cpu {

// Uninitialised, on a cache line, freed with the last pointer into its neighbourhood. Throws std::bad_alloc.
std::shared_ptr<int8_t[]> weight_memory(size_t bytes);

}  // namespace madtp::cpu
