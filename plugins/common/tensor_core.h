// The warp-wide instructions of the tensor-core path, each behind one function: PTX on a GPU, an emulation of the same
// fragment layout on the host. Layouts: PTX ISA, "Matrix multiply-accumulate operation using mma instruction",
// m16n8k16. Every function here has to be called by all 32 lanes of a warp.
#pragma once
#include "common/device.h"

namespace madtp {

// Lane l of a 16 x 8 accumulator holds (row, column): (l / 4, 2 * (l % 4) + {0, 1}), then the same in row l / 4 + 8.
__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarpSize; }

template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);

// Address of `pointer` in the shared window, as PTX wants it.
#ifndef MADTP_SIMT
__device__ __forceinline__ uint32_t shared_address(void const* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
    __half2 const both = __floats2half2_rn(low, high);
    return reinterpret_cast<uint32_t const&>(both);
}
template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 const both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<uint32_t const&>(both);
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes).
__device__ __forceinline__ void load_matrices(uint32_t (&fragment)[4], void const* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&fragment)[4], void const* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// acc [16, 8] += a [16, 16] b [16, 8]
template <typename T>
__device__ __forceinline__ void multiply_add(float (&acc)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply_add<__half>(
    float (&acc)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // Turing has the half of it
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(
    float (&acc)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif  // before that there is no such instruction, and the launcher refuses bfloat16
}

// Copy 16 bytes to shared memory, or zeros where not `inside`; complete only after async_wait.
__device__ __forceinline__ void async_copy_16(void* shared, void const* global, bool inside) {
#if __CUDA_ARCH__ >= 800
    int const bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
#else
    *static_cast<uint4*>(shared) = inside ? *static_cast<uint4 const*>(global) : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
// Until at most `pending` of this thread's committed groups are under way.
template <int pending>
__device__ __forceinline__ void async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
#endif
}

#else  // MADTP_SIMT

template <>
inline uint32_t pack<__half>(float low, float high) {
    return __float2half_rn(low).bits | uint32_t{__float2half_rn(high).bits} << 16;
}
template <>
inline uint32_t pack<__nv_bfloat16>(float low, float high) {
    return __float2bfloat16_rn(low).bits | uint32_t{__float2bfloat16_rn(high).bits} << 16;
}

struct MatrixFragments {
    uint32_t values[4];
};

template <bool transposed>
inline void load_matrices_emulated(uint32_t (&fragment)[4], void const* row) {
    auto const loaded = simt::collective<void const*, MatrixFragments>(
        transposed ? "ldmatrix.trans" : "ldmatrix", row, [](auto rows, auto out) {
            for (int matrix = 0; matrix < 4; ++matrix) {
                uint16_t element[8][8];
                for (int r = 0; r < 8; ++r) std::memcpy(element[r], *rows[matrix * 8 + r], 16);
                for (int lane = 0; lane < kWarpSize; ++lane) {
                    int const r = lane / 4, c = lane % 4 * 2;
                    uint32_t const low = transposed ? element[c][r] : element[r][c];
                    uint32_t const high = transposed ? element[c + 1][r] : element[r][c + 1];
                    out[lane]->values[matrix] = low | high << 16;
                }
            }
        });
    for (int matrix = 0; matrix < 4; ++matrix) fragment[matrix] = loaded.values[matrix];
}
inline void load_matrices(uint32_t (&fragment)[4], void const* row) { load_matrices_emulated<false>(fragment, row); }
inline void load_matrices_transposed(uint32_t (&fragment)[4], void const* row) {
    load_matrices_emulated<true>(fragment, row);
}

template <typename T>
inline float element_of(uint32_t packed, int half) {
    return to_float(T{static_cast<uint16_t>(packed >> 16 * half)});
}

template <typename T>
inline void multiply_add(float (&acc)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    struct In {
        uint32_t a[4], b[2];
        float acc[4];
    };
    struct Out {
        float acc[4];
    };
    In in{{a[0], a[1], a[2], a[3]}, {b0, b1}, {acc[0], acc[1], acc[2], acc[3]}};
    auto const sum = simt::collective<In, Out>("mma", in, [](auto ins, auto outs) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < kWarpSize; ++lane) {
            int const group = lane / 4, pair = lane % 4 * 2;
            for (int part = 0; part < 4; ++part)
                for (int half = 0; half < 2; ++half)
                    left[group + part % 2 * 8][pair + half + part / 2 * 8] = element_of<T>(ins[lane]->a[part], half);
            for (int part = 0; part < 2; ++part)
                for (int half = 0; half < 2; ++half)
                    right[pair + half + part * 8][group] = element_of<T>(ins[lane]->b[part], half);
        }
        float product[16][8] = {};
        for (int row = 0; row < 16; ++row)
            for (int k = 0; k < 16; ++k)
                for (int column = 0; column < 8; ++column) product[row][column] += left[row][k] * right[k][column];
        for (int lane = 0; lane < kWarpSize; ++lane)
            for (int part = 0; part < 4; ++part)
                outs[lane]->acc[part] =
                    ins[lane]->acc[part] + product[lane / 4 + part / 2 * 8][lane % 4 * 2 + part % 2];
    });
    for (int part = 0; part < 4; ++part) acc[part] = sum.acc[part];
}

inline void async_copy_16(void* shared, void const* global, bool inside) {
    simt::async_copy(shared, global, 16, inside);
}
inline void async_commit() { simt::async_commit(); }
template <int pending>
inline void async_wait() {
    simt::async_wait(pending);
}
#endif

}  // namespace madtp
