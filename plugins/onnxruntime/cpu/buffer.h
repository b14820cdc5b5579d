// Memory for a call, on cache lines.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "onnxruntime/cpu/kernels.h"

namespace madtp::cpu {

struct Free {
    void operator()(void* memory) const noexcept { std::free(memory); }
};

template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

// Uninitialised; null where memory is short.
template <typename T>
Buffer<T> try_allocate(size_t count) noexcept {
    constexpr size_t kLine = 64;
    if (count > SIZE_MAX / 2 / sizeof(T)) { return nullptr; }
    return Buffer<T>{static_cast<T*>(std::aligned_alloc(kLine, round_up(count * sizeof(T) + 1, kLine)))};
}

template <typename T>
Buffer<T> allocate(size_t count) {
    Buffer<T> buffer = try_allocate<T>(count);
    if (buffer == nullptr) { throw std::bad_alloc{}; }
    return buffer;
}

}  // namespace madtp::cpu
