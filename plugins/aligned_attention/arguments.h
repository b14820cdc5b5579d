// What the kernels of AlignedAttention share: their arguments, and how the workspace is divided.
#pragma once
#include "common/device.h"
#include "madtp/kernels.h"

namespace madtp::attention {

constexpr int kTile = 64;        // queries of a partial column sum; keys of a tile
constexpr float kLog2E = 1.4426950408889634f;  // scores are kept in units of log2

// Pointers are device pointers; H heads of D = C / H.
struct Arguments {
    void const* qkv;        // [B, L, 3C]
    float const* key_mask;  // [B, L]
    void* context;          // [B, L, C]
    float* column_score;    // [B, L - 1]
    float* class_score;     // [B, L - 1]
    // Workspace. A probability is exp2(score - row_maximum + row_log_scale).
    float* row_maximum;     // [B, H, L], in units of log2
    float* row_log_scale;   // [B, H, L], log2 of one over the sum
    float* context_norm;    // [B, H, L]
    float* class_row;       // [B, H, L], scores of the class query, in units of log2; where causal, of some keys only
    float* column_partial;  // [B, partials_of(L), L], column sums of kTile queries each, the class query left out
    int batch, length, width, heads, head_size;
    int capability;  // major compute capability of the device, known to the tensor-core path
    float scale;     // log2(e) / sqrt(D)
    float unscale;   // one over it
    bool causal;
};

// What attends to itself: a sample, or a sequence of the packed layout.
struct Rows {
    int64_t first;  // of all rows
    int length;
    int64_t statistics;  // of all heads of all rows before: H * first
};

__device__ __forceinline__ Rows rows_of(Arguments const& a, int sample) {
    return {int64_t{sample} * a.length, a.length, int64_t{sample} * a.heads * a.length};
}

// A head of such rows, as the first kernel reads it: rows that are `stride` elements apart.
template <typename T>
struct Head {
    T const *queries, *keys;  // values are C elements behind keys
    int64_t query_stride, key_stride;
    int query_rows, key_rows;
    float const* key_mask;
    T* context;          // rows are C elements apart
    int64_t statistics;  // first of the row statistics that are this head's
};

template <typename T>
__device__ __forceinline__ Head<T> head_of(Arguments const& a, Rows const& rows, int head, int head_size) {
    int64_t const stride = 3 * int64_t{a.width};
    T const* const queries = static_cast<T const*>(a.qkv) + rows.first * stride + head * head_size;
    return {queries, queries + a.width, stride, stride, rows.length, rows.length, a.key_mask + rows.first,
        static_cast<T*>(a.context) + rows.first * a.width + head * head_size,
        rows.statistics + int64_t{head} * rows.length};
}

// Groups of kTile queries, the class query left out.
__host__ __device__ inline int partials_of(int length) { return (length - 1 + kTile - 1) / kTile; }

// Where the partial sums of a sample go.
struct StorePartial {
    Arguments const& a;
    int sample;

    __device__ __forceinline__ void operator()(int partial, int key, float sum) const {
        a.column_partial[(int64_t{sample} * partials_of(a.length) + partial) * a.length + key] = sum;
    }
};

// A partial column sum of 64 queries is always added up in the same order, however the kernels share the work: first
// sixteen rows at a time in the order below, then the four sixteens in ascending order. So the scores of a sample do
// not depend on the batch that it comes in.

// The tensor-core path: 16-bit data, D of 32, 64 or 128. cudaErrorNotSupported where it does not apply.
template <typename T>
cudaError_t launch_tensor_core(Arguments const& arguments, cudaStream_t stream);

// The plain path: any data type, D up to 256.
template <typename T>
cudaError_t launch_plain(Arguments const& arguments, cudaStream_t stream);

}  // namespace madtp::attention
