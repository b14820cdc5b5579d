// Tiny kernels, right and wrong ones, that show what the stand-in for CUDA notices.
#include "common/tensor_core.h"

namespace {

using namespace madtp;

// Everybody reads a neighbour's number, with or without the barrier that this needs.
void shift_kernel(int* out, bool barrier) {
    int* const shared = dynamic_shared<int>();
    int const own = static_cast<int>(threadIdx.x), all = static_cast<int>(blockDim.x);
    shared[own] = own;
    if (barrier) __syncthreads();
    out[own] = shared[(own + 1) % all];
}

// Reads what an asynchronous copy brings, after waiting for it or before.
void copy_kernel(float* out, float const* in, bool wait) {
    float* const shared = dynamic_shared<float>();
    int const own = static_cast<int>(threadIdx.x) * 4;
    async_copy_16(shared + own, in + own, true);
    async_commit();
    if (wait) async_wait<0>();
    for (int part = 0; part < 4; ++part) out[own + part] = shared[own + part];
}

void diverging_kernel(bool barrier) {
    if (threadIdx.x >= 16) return;
    if (barrier)
        __syncthreads();
    else
        __shfl_xor_sync(kFullWarp, 1.0f, 1);
}

// Two different warp operations in one warp.
void mixed_kernel() {
    if (threadIdx.x < 16)
        __syncwarp();
    else
        __ballot_sync(kFullWarp, 1);
}

// Of 32 threads, with room for `count`.
void overrun_kernel(int count) {
    dynamic_shared<float>()[threadIdx.x] = static_cast<float>(count);
}

// out [16, 8] += a [16, 16] b, with b [16, 8] or, transposed, [8, 16] as the score product has it.
template <typename T>
void multiply_kernel(float* out, T const* a, T const* b, bool transposed) {
    T* const shared = dynamic_shared<T>();
    int const lane = lane_id();
    for (int index = lane; index < 256; index += kWarpSize) shared[index] = a[index];
    for (int index = lane; index < 128; index += kWarpSize) shared[256 + index] = b[index];
    __syncwarp();
    uint32_t left[4], right[4];
    load_matrices(left, shared + lane % 16 * 16 + lane / 16 * 8);
    T const* const other = shared + 256;
    if (transposed)
        load_matrices(right, other + lane % 8 * 16 + lane / 8 % 2 * 8);
    else
        load_matrices_transposed(right, other + lane % 16 * 8);
    float acc[4];
    int const row = lane / 4, column = lane % 4 * 2;
    for (int part = 0; part < 4; ++part) acc[part] = out[(row + part / 2 * 8) * 8 + column + part % 2];
    multiply_add<T>(acc, left, right[0], right[1]);
    for (int part = 0; part < 4; ++part) out[(row + part / 2 * 8) * 8 + column + part % 2] = acc[part];
}

}  // namespace

extern "C" {

void probe_shift(int* out, int threads, int barrier) {
    launch(shift_kernel, dim3(1), dim3(static_cast<unsigned>(threads)), sizeof(int) * static_cast<size_t>(threads),
        nullptr, out, barrier != 0);
}
void probe_copy(float* out, float const* in, int wait) {
    launch(copy_kernel, dim3(1), dim3(32), 512, nullptr, out, in, wait != 0);
}
void probe_diverging(int barrier) { launch(diverging_kernel, dim3(1), dim3(32), 0, nullptr, barrier != 0); }
void probe_mixed() { launch(mixed_kernel, dim3(1), dim3(32), 0, nullptr); }
void probe_overrun(int count) {
    launch(overrun_kernel, dim3(1), dim3(32), sizeof(float) * static_cast<size_t>(count), nullptr, count);
}
void probe_multiply(float* out, void const* a, void const* b, int bfloat16, int transposed) {
    size_t const bytes = 2 * (256 + 128);
    if (bfloat16 != 0)
        launch(multiply_kernel<__nv_bfloat16>, dim3(1), dim3(32), bytes, nullptr, out,
            static_cast<__nv_bfloat16 const*>(a), static_cast<__nv_bfloat16 const*>(b), transposed != 0);
    else
        launch(multiply_kernel<__half>, dim3(1), dim3(32), bytes, nullptr, out, static_cast<__half const*>(a),
            static_cast<__half const*>(b), transposed != 0);
}
}
