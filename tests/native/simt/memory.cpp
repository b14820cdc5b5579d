// Device memory on the heap. Copies to the host happen when it waits for the stream, and not before; see README.md.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda_runtime_api.h"

namespace {

struct Copy {
    void* target;
    std::vector<unsigned char> content;
};

struct Memory {
    std::vector<Copy> waiting;
    size_t most_bytes = SIZE_MAX;  // of one allocation
    int held = 0;                  // allocations
};

Memory memory;

}  // namespace

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, cudaMemPoolProps const* properties) {
    if (properties->allocType != cudaMemAllocationTypePinned || properties->location.type != cudaMemLocationTypeDevice)
        return cudaErrorInvalidValue;
    *pool = reinterpret_cast<cudaMemPool_t>(&memory);
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }

cudaError_t cudaMallocFromPoolAsync(void** target, size_t bytes, cudaMemPool_t pool, cudaStream_t) {
    if (pool == nullptr || bytes == 0) return cudaErrorInvalidValue;
    if (bytes > memory.most_bytes) return cudaErrorMemoryAllocation;
    *target = std::malloc(bytes);
    std::memset(*target, 0xff, bytes);  // not a number
    ++memory.held;
    return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* target, cudaStream_t) {
    std::free(target);
    --memory.held;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, void const* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    if (kind == cudaMemcpyDeviceToHost) {
        auto const* first = static_cast<unsigned char const*>(source);
        memory.waiting.push_back({target, {first, first + bytes}});
    } else {
        std::memcpy(target, source, bytes);
    }
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    for (Copy const& copy : memory.waiting) std::memcpy(copy.target, copy.content.data(), copy.content.size());
    memory.waiting.clear();
    return cudaSuccess;
}

extern "C" {
// Refuse allocations of more bytes than this.
__attribute__((visibility("default"))) void simt_most_memory(size_t bytes) { memory.most_bytes = bytes; }
// Allocations that were not freed.
__attribute__((visibility("default"))) int simt_held_memory() { return memory.held; }
}
