// The work of a block of AlignedAttention without tensor cores, as in tensor_core_tiles.h: tiles of 64 queries and 64 keys, 256
// threads, each with 4 x 4 elements of the tile's product. Arithmetic is float32 whatever the data.
#pragma once
#include "aligned_attention/arguments.h"

namespace madtp::attention::plain {

constexpr int kThreads = 256;
constexpr int kSide = 16;           // threads along each side of a tile
constexpr int kEach = kTile / kSide;  // rows and columns of a thread
constexpr int kDepth = 32;          // columns of queries and keys in shared memory at a time
constexpr int kStride = kTile + 4;  // of a transposed tile: keeps float4 loads aligned, spreads the banks

// Operands of a product, transposed: element (k, row) at k * kStride + row.
struct ScoreOperands {
    float queries[kDepth * kStride];
    float keys[kDepth * kStride];
};

// The matrix `rows` [length, stride] from row `first` and column `column` on, transposed; zeros beyond its ends.
template <typename T>
__device__ __forceinline__ void copy_transposed(
    float* tile, T const* rows, int64_t stride, int first, int length, int column, int columns) {
    for (int index = static_cast<int>(threadIdx.x); index < kTile * kDepth; index += kThreads) {
        int const k = index % kDepth, row = index / kDepth;
        bool const inside = first + row < length && column + k < columns;
        tile[k * kStride + row] = inside ? to_float(rows[(first + row) * stride + column + k]) : 0.0f;
    }
}

// acc[i][j] += sum over k of left[k][4y + i] * right[k][4x + j]
__device__ __forceinline__ void multiply(
    float (&acc)[kEach][kEach], float const* left, float const* right, int depth, int y, int x) {
    for (int k = 0; k < depth; ++k) {
        float4 const l = *reinterpret_cast<float4 const*>(left + k * kStride + y * kEach);
        float4 const r = *reinterpret_cast<float4 const*>(right + k * kStride + x * kEach);
        float const ls[kEach] = {l.x, l.y, l.z, l.w}, rs[kEach] = {r.x, r.y, r.z, r.w};
#pragma unroll
        for (int i = 0; i < kEach; ++i)
#pragma unroll
            for (int j = 0; j < kEach; ++j) acc[i][j] += ls[i] * rs[j];
    }
}

// Of the two operands of a score product.
struct Operands {
    int64_t query_stride, key_stride;
    int query_rows, key_rows;
    float const* key_mask;  // read where `masked`
};

// Masked scores, in units of log2, of this thread's queries and keys in the tile that begins at (first_query, first_key).
template <typename T, bool masked>
__device__ __forceinline__ void tile_scores(float (&scores)[kEach][kEach], ScoreOperands& operands, T const* queries,
    T const* keys, Operands const& rows, Arguments const& a, int first_query, int first_key, int y, int x) {
    float products[kEach][kEach] = {};
    for (int column = 0; column < a.head_size; column += kDepth) {
        copy_transposed(
            operands.queries, queries, rows.query_stride, first_query, rows.query_rows, column, a.head_size);
        copy_transposed(operands.keys, keys, rows.key_stride, first_key, rows.key_rows, column, a.head_size);
        __syncthreads();
        multiply(products, operands.queries, operands.keys, kDepth, y, x);
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
        int const key = first_key + x * kEach + j;
        float mask = key < rows.key_rows ? 0.0f : -kInfinity;
        if (masked && key < rows.key_rows) mask = rows.key_mask[key] * kLog2E;
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            bool const hidden = a.causal && key > first_query + y * kEach + i;
            scores[i][j] = hidden ? -kInfinity : products[i][j] * a.scale + mask;
        }
    }
}

struct ContextShared {
    float probabilities[kTile * kStride];  // transposed: keys by queries
    union {
        ScoreOperands operands;
        float values[kTile * kStride];  // keys by columns of the head
    };
};

// `parts` times 64 columns cover the head. `statistics`: as in tensor_core_tiles.h.
template <typename T, int parts, bool statistics>
__device__ __forceinline__ void compute_context(Arguments const& a, Head<T> const& h, int query_tile) {
    auto& shared = *dynamic_shared<ContextShared>();
    int const x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    Operands const rows{h.query_stride, h.key_stride, h.query_rows, h.key_rows, h.key_mask};
    int const first_query = query_tile * kTile;
    int const last_query = min(first_query + kTile, h.query_rows) - 1;
    int const end = a.causal ? last_query + 1 : h.key_rows;

    float context[parts][kEach][kEach] = {};
    float maximum[kEach], sum[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        maximum[i] = -kInfinity;
        sum[i] = 0.0f;
    }
    for (int first_key = 0; first_key < end; first_key += kTile) {
        float scores[kEach][kEach];
        tile_scores<T, statistics>(
            scores, shared.operands, h.queries, h.keys, rows, a, first_query, first_key, y, x);
        if (statistics && first_query == 0 && y == 0) {  // has the class query
            float* const class_row = a.class_row + h.statistics;
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                int const key = first_key + x * kEach + j;
                if (key < h.key_rows) class_row[key] = scores[0][j];
            }
        }
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            float largest = maximum[i];
#pragma unroll
            for (int j = 0; j < kEach; ++j) largest = fmaxf(largest, scores[i][j]);
            largest = warp_max<kSide>(largest);
            // A row that has seen only hidden keys has no maximum yet; zero keeps the exponential away from inf - inf.
            float const reference = largest == -kInfinity ? 0.0f : largest;
            float const shrink = fast_exp2(maximum[i] - reference);
            maximum[i] = largest;
            float total = 0.0f;
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                float const probability = fast_exp2(scores[i][j] - reference);
                total += probability;
                // As the reference multiplies it: in the data's own type.
                shared.probabilities[(x * kEach + j) * kStride + y * kEach + i] = rounded<T>(probability);
            }
            sum[i] = sum[i] * shrink + total;
#pragma unroll
            for (int part = 0; part < parts; ++part)
#pragma unroll
                for (int j = 0; j < kEach; ++j) context[part][i][j] *= shrink;
        }
#pragma unroll
        for (int part = 0; part < parts; ++part) {
            for (int index = static_cast<int>(threadIdx.x); index < kTile * kTile; index += kThreads) {
                int const column = part * kTile + index % kTile, key = index / kTile;
                bool const inside = first_key + key < h.key_rows && column < a.head_size;
                shared.values[key * kStride + index % kTile] =
                    inside ? to_float(h.keys[(first_key + key) * h.key_stride + a.width + column]) : 0.0f;
            }
            __syncthreads();
            multiply(context[part], shared.probabilities, shared.values, kTile, y, x);
            __syncthreads();
        }
    }

#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        int const query = first_query + y * kEach + i;
        float const total = warp_sum<kSide>(sum[i]);
        float const scale = statistics || end > 0 ? 1.0f / total : 0.0f;
        float squares = 0.0f;
#pragma unroll
        for (int part = 0; part < parts; ++part)
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                int const column = part * kTile + x * kEach + j;
                T const value = from_float<T>(context[part][i][j] * scale);
                squares += to_float(value) * to_float(value);
                if (query < h.query_rows && column < a.head_size) h.context[int64_t{query} * a.width + column] = value;
            }
        if constexpr (statistics) {
            squares = warp_sum<kSide>(squares);
            if (x == 0 && query < h.query_rows) {
                a.row_maximum[h.statistics + query] = maximum[i];
                a.row_log_scale[h.statistics + query] = -log2f(total);
                a.context_norm[h.statistics + query] = sqrtf(squares);
            }
        }
    }
}

struct StatisticsShared {
    union {
        ScoreOperands operands;
        float sums[kSide][kTile];
    };
};

// `store` as in tensor_core_tiles.h.
template <typename T, typename Store>
__device__ __forceinline__ void compute_statistics(
    Arguments const& a, Rows const& rows, int key_tile, int query_tile, Store store) {
    auto& shared = *dynamic_shared<StatisticsShared>();
    int const x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    // The class token has no column score and no say in the others'.
    int const first_key = key_tile * kTile + 1, first_query = query_tile * kTile + 1;
    int64_t const stride = 3 * int64_t{a.width};
    T const* const qkv = static_cast<T const*>(a.qkv) + rows.first * stride;
    Operands const operands{stride, stride, rows.length, rows.length, a.key_mask + rows.first};

    float best[kEach][kEach];  // over the heads, log2 of the probability
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) best[i][j] = -kInfinity;
    float poison[kEach] = {};  // becomes NaN with any head's row statistics: a maximum alone would drop a NaN
    for (int head = 0; head < a.heads; ++head) {
        T const* const queries = qkv + head * a.head_size;
        float scores[kEach][kEach];
        tile_scores<T, true>(
            scores, shared.operands, queries, queries + a.width, operands, a, first_query, first_key, y, x);
        int64_t const statistics = rows.statistics + int64_t{head} * rows.length;
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            int const query = first_query + y * kEach + i;
            float const maximum = query < rows.length ? a.row_maximum[statistics + query] : 0.0f;
            float const log_scale = query < rows.length ? a.row_log_scale[statistics + query] : 0.0f;
            poison[i] += (maximum + log_scale) * 0.0f;
#pragma unroll
            for (int j = 0; j < kEach; ++j) best[i][j] = fmaxf(best[i][j], scores[i][j] - maximum + log_scale);
        }
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kEach; ++i)
            sum += first_query + y * kEach + i < rows.length ? fast_exp2(best[i][j]) + poison[i] : 0.0f;
        shared.sums[y][x * kEach + j] = sum;
    }
    __syncthreads();
    int const key = static_cast<int>(threadIdx.x);
    if (key >= kTile || first_key + key >= rows.length) return;
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < kSide; ++part) sum += shared.sums[part][key];
    store(query_tile, first_key + key, sum);
}

}  // namespace madtp::attention::plain
