// What every kernel includes: CUDA, or its stand-in when kernels are compiled for the host (MADTP_SIMT), and the few
// helpers that all kernels share.
#pragma once
#include <stdint.h>

#ifdef MADTP_SIMT
#include "simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace madtp {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr float kEpsilon = 1e-8f;  // of every normalisation, as in madtp/ops/reference.py
constexpr float kInfinity = __builtin_huge_valf();

// Whether a pointer may be read or written `bytes` at a time. TensorRT may hand over a slice of a larger tensor.
inline bool is_aligned(void const* pointer, size_t bytes) {
    return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}
constexpr size_t kVectorBytes = 16;

// Rounded up. `value` may be anything from zero to the largest int.
inline int divide_up(int value, int divisor) { return value / divisor + (value % divisor != 0 ? 1 : 0); }

// Keeps the thread's last CUDA error as a caller left it: failures of our own calls are returned, and would be taken for
// one of its next call if they stayed behind.
class CallerError {
public:
    CallerError() = default;
    CallerError(CallerError const&) = delete;
    CallerError& operator=(CallerError const&) = delete;
    ~CallerError() {
        if (clean_) static_cast<void>(cudaGetLastError());
    }

private:
    bool const clean_ = cudaPeekAtLastError() == cudaSuccess;
};

template <typename T>
struct Identity {  // keeps a parameter from taking part in template argument deduction
    using Type = T;
};

// Start a kernel; the error is that of the launch, whatever earlier calls left behind. Dynamic shared memory above 48 KB
// has to be asked for once per kernel and device; asking again costs nothing that can be measured, and enqueue may run on
// any device.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
    typename Identity<Parameters>::Type... arguments) {
    if (shared_bytes > 48 * 1024) {
        cudaError_t const allowed = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (allowed != cudaSuccess) return allowed;
    }
#ifdef MADTP_SIMT
    (void)stream;
    return simt::launch(simt::address(kernel), grid, block, shared_bytes, [&] { kernel(arguments...); });
#else
    void* addresses[] = {&arguments...};
    return cudaLaunchKernel(kernel, grid, block, addresses, shared_bytes, stream);
#endif
}

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef MADTP_SIMT
    return static_cast<T*>(simt::shared_memory());
#else
    extern __shared__ __align__(128) unsigned char madtp_shared[];
    return reinterpret_cast<T*>(madtp_shared);
#endif
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// `value` as an engine of type T would have stored it.
template <typename T>
__device__ __forceinline__ float rounded(float value) {
    return to_float(from_float<T>(value));
}

// Like torch's amax and amin: NaN if either is. (fmaxf and fminf drop it.)
__device__ __forceinline__ float nan_max(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float nan_min(float a, float b) { return a < b || a != a ? a : b; }

__device__ __forceinline__ bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// 2^x to two units in the last place; what is too small for a normal number is zero. (exp2f spends three more instructions
// on such numbers, in the innermost loop.)
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef MADTP_SIMT
    float const power = std::exp2(x);
    return power < 1.17549435e-38f ? 0.0f : power;
#else
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#endif
}

// Sum over groups of `width` neighbouring lanes (a power of two); every lane gets it, added up in the same order.
template <int width = kWarpSize, typename N>
__device__ __forceinline__ N warp_sum(N value) {
#pragma unroll
    for (int mask = width / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kFullWarp, value, mask);
    return value;
}

template <int width = kWarpSize>
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int mask = width / 2; mask > 0; mask /= 2) value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, mask));
    return value;
}

}  // namespace madtp
