// Runs CUDA kernels on the host, one block after the other, every thread a fiber, for tests. See README.md.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// What a kernel sees of its own position; set by the scheduler before it switches to a fiber.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr int kWarp = 32;

// What a kernel is known by.
template <typename... Parameters>
void const* address(void (*kernel)(Parameters...)) {
    return reinterpret_cast<void const*>(kernel);
}

// Run `body` once for each thread of the grid. Shared memory of `shared_bytes` is a heap block of exactly that size, filled
// with 0xff (a NaN) for every block of the grid; above 48 KB the kernel has to have been allowed as much.
cudaError_t launch(
    void const* kernel, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> const& body);

cudaError_t allow_shared(void const* kernel, int bytes);

void* shared_memory();

// __syncthreads(); file and line name the call site, which a test may have skipped.
void block_barrier(char const* file, int line);

// A warp-wide operation: every lane hands in `in`; once all 32 lanes have, `combine(ins, outs)` runs; each gets its out.
// `name` tells operations apart: lanes of one warp in different operations are an error.
void warp_collective(char const* name, void const* in, size_t in_bytes, void* out, size_t out_bytes,
    std::function<void(void const* const* ins, void* const* outs)> const& combine);

template <typename In, typename Out, typename Combine>
Out collective(char const* name, In const& in, Combine combine) {
    Out out{};
    warp_collective(name, &in, sizeof in, &out, sizeof out, [&](void const* const* ins, void* const* outs) {
        combine(reinterpret_cast<In const* const*>(ins), reinterpret_cast<Out* const*>(outs));
    });
    return out;
}

// Asynchronous copies of a thread: each happens, at random, at once or not before the thread waits for it.
void async_copy(void* shared, void const* global, size_t bytes, bool inside);
void async_commit();
void async_wait(int pending_groups);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

}  // namespace simt

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
    return simt::allow_shared(simt::address(kernel), value);
}

#define __syncthreads() ::simt::block_barrier(__FILE__, __LINE__)

inline void __syncwarp() {
    simt::collective<int, int>("__syncwarp", 0, [](auto, auto) {});
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    struct In {
        T value;
        int mask;
    };
    return simt::collective<In, T>("__shfl_xor_sync", In{value, mask}, [](auto in, auto out) {
        for (int lane = 0; lane < simt::kWarp; ++lane) *out[lane] = in[(lane ^ in[lane]->mask) % simt::kWarp]->value;
    });
}

inline unsigned __ballot_sync(unsigned, int predicate) {
    return simt::collective<int, unsigned>("__ballot_sync", predicate, [](auto in, auto out) {
        unsigned votes = 0;
        for (int lane = 0; lane < simt::kWarp; ++lane) votes |= unsigned(*in[lane] != 0) << lane;
        for (int lane = 0; lane < simt::kWarp; ++lane) *out[lane] = votes;
    });
}

using std::max;
using std::min;
using std::memcpy;

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

struct float4 {
    float x, y, z, w;
};
struct uint4 {
    unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __half2float(__half value) { return simt::half_to_float(value.bits); }
inline __half __float2half_rn(float value) { return {simt::float_to_half(value)}; }
inline float __bfloat162float(__nv_bfloat16 value) {
    uint32_t const bits = uint32_t{value.bits} << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
