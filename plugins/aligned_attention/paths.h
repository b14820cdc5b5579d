// Which of the two paths computes attention, and what calls of both have in common on the host.
#pragma once
#include "aligned_attention/arguments.h"

namespace madtp::attention {

inline bool valid_heads(int width, int heads, int dtype) {
    return width >= 8 && width % 8 == 0 && heads >= 1 && heads <= MADTP_MAX_BATCH && width % heads == 0 &&
        width / heads <= MADTP_MAX_HEAD_SIZE && dtype >= MADTP_FLOAT32 && dtype <= MADTP_BFLOAT16;
}

inline void set_scale(Arguments& a) {
    a.scale = kLog2E / sqrtf(static_cast<float>(a.head_size));
    a.unscale = 1.0f / a.scale;
}

// Row statistics of all heads of `rows` rows, then partial column sums.
inline void divide_workspace(Arguments& a, void* workspace, int64_t rows) {
    auto* const floats = static_cast<float*>(workspace);
    a.row_maximum = floats;
    a.row_log_scale = floats + rows * a.heads;
    a.context_norm = floats + 2 * rows * a.heads;
    a.class_row = floats + 3 * rows * a.heads;
    a.column_partial = floats + 4 * rows * a.heads;
}

// Major compute capability of the current device. Asks the driver's cache: no synchronisation.
inline cudaError_t read_capability(int& major) {
#ifdef MADTP_SIMT
    major = 8;
    return cudaSuccess;
#else
    int device = 0;
    cudaError_t const error = cudaGetDevice(&device);
    return error != cudaSuccess ? error : cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
#endif
}

template <typename T, typename Launcher>
cudaError_t launch_16_bit(int head_size, int capability, Launcher const& launcher) {
    // Heads of these sizes begin on 16-byte boundaries, as asynchronous copies need. Two stages of 128 columns take
    // 66 kB of shared memory, and Turing has 64.
    bool const known = head_size == 32 || head_size == 64 || (head_size == 128 && capability >= 8);
    return known ? launcher.template tensor_core<T>(capability) : launcher.template plain<T>();
}

// Calls `launcher.plain<T>()`, or `launcher.tensor_core<T>(major compute capability)` where heads and device allow it.
template <typename Launcher>
cudaError_t launch_path(int head_size, int dtype, Launcher const& launcher) {
    if (dtype == MADTP_FLOAT32) return launcher.template plain<float>();
    int capability = 0;
    cudaError_t const error = read_capability(capability);
    if (error != cudaSuccess) return error;
    if (dtype == MADTP_FLOAT16) return launch_16_bit<__half>(head_size, capability, launcher);
    return capability >= 8 ? launch_16_bit<__nv_bfloat16>(head_size, capability, launcher) : cudaErrorNotSupported;
}

// Tiles of 128 queries read keys and values half as often; tiles of 64 give twice as many blocks.
constexpr int kManyBlocks = 256;  // about two for each multiprocessor of a large GPU

}  // namespace madtp::attention
