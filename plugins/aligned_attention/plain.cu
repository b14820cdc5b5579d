// AlignedAttention without tensor cores, for float32 and for head sizes that the tensor-core path does not know. The same
// two kernels as there (tensor_core.cu): tiles of 64 queries and 64 keys, 256 threads, each with 4 x 4 elements of the
// tile's product. Arithmetic is float32 whatever the data.
#include "aligned_attention/arguments.h"

namespace madtp::attention {
namespace {

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

// Masked scores, in units of log2, of this thread's queries and keys in the tile that begins at (first_query, first_key).
template <typename T>
__device__ __forceinline__ void tile_scores(float (&scores)[kEach][kEach], ScoreOperands& operands, T const* queries,
    T const* keys, Arguments const& a, int sample, int first_query, int first_key, int y, int x) {
    int64_t const stride = 3 * int64_t{a.width};
    float products[kEach][kEach] = {};
    for (int column = 0; column < a.head_size; column += kDepth) {
        copy_transposed(operands.queries, queries, stride, first_query, a.length, column, a.head_size);
        copy_transposed(operands.keys, keys, stride, first_key, a.length, column, a.head_size);
        __syncthreads();
        multiply(products, operands.queries, operands.keys, kDepth, y, x);
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
        int const key = first_key + x * kEach + j;
        float const mask = key < a.length ? a.key_mask[int64_t{sample} * a.length + key] * kLog2E : -kInfinity;
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

// `parts` times 64 columns cover the head.
template <typename T, int parts>
__global__ void __launch_bounds__(kThreads) plain_context_kernel(Arguments const a) {
    auto& shared = *dynamic_shared<ContextShared>();
    int const x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    int const head = static_cast<int>(blockIdx.y), sample = static_cast<int>(blockIdx.z);
    int const first_query = static_cast<int>(blockIdx.x) * kTile;
    int64_t const stride = 3 * int64_t{a.width};
    T const* const queries = static_cast<T const*>(a.qkv) + int64_t{sample} * a.length * stride + head * a.head_size;
    T const* const keys = queries + a.width;
    T const* const values = keys + a.width;
    int const last_query = min(first_query + kTile, a.length) - 1;
    int const end = a.causal ? last_query + 1 : a.length;

    float context[parts][kEach][kEach] = {};
    float maximum[kEach], sum[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        maximum[i] = -kInfinity;
        sum[i] = 0.0f;
    }
    for (int first_key = 0; first_key < end; first_key += kTile) {
        float scores[kEach][kEach];
        tile_scores(scores, shared.operands, queries, keys, a, sample, first_query, first_key, y, x);
        if (first_query == 0 && y == 0) {  // has the class query
            float* const class_row = a.class_row + (int64_t{sample} * a.heads + head) * a.length;
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                int const key = first_key + x * kEach + j;
                if (key < a.length) class_row[key] = scores[0][j];
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
                bool const inside = first_key + key < a.length && column < a.head_size;
                shared.values[key * kStride + index % kTile] =
                    inside ? to_float(values[(first_key + key) * stride + column]) : 0.0f;
            }
            __syncthreads();
            multiply(context[part], shared.probabilities, shared.values, kTile, y, x);
            __syncthreads();
        }
    }

    T* const output = static_cast<T*>(a.context) + int64_t{sample} * a.length * a.width + head * a.head_size;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        int const query = first_query + y * kEach + i;
        float const total = warp_sum<kSide>(sum[i]);
        float const scale = 1.0f / total;
        float squares = 0.0f;
#pragma unroll
        for (int part = 0; part < parts; ++part)
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                int const column = part * kTile + x * kEach + j;
                T const value = from_float<T>(context[part][i][j] * scale);
                squares += to_float(value) * to_float(value);
                if (query < a.length && column < a.head_size) output[int64_t{query} * a.width + column] = value;
            }
        squares = warp_sum<kSide>(squares);
        if (x == 0 && query < a.length) {
            int64_t const index = (int64_t{sample} * a.heads + head) * a.length + query;
            a.row_maximum[index] = maximum[i];
            a.row_log_scale[index] = -log2f(total);
            a.context_norm[index] = sqrtf(squares);
        }
    }
}

struct StatisticsShared {
    union {
        ScoreOperands operands;
        float sums[kSide][kTile];
    };
};

template <typename T>
__global__ void __launch_bounds__(kThreads) plain_statistics_kernel(Arguments const a) {
    auto& shared = *dynamic_shared<StatisticsShared>();
    int const x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    // The class token has no column score and no say in the others'.
    int const first_key = static_cast<int>(blockIdx.x) * kTile + 1, sample = static_cast<int>(blockIdx.z);
    int const first_query = static_cast<int>(blockIdx.y) * kTile + 1;
    T const* const qkv = static_cast<T const*>(a.qkv) + int64_t{sample} * a.length * 3 * a.width;

    float best[kEach][kEach];  // over the heads, log2 of the probability
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) best[i][j] = -kInfinity;
    float poison[kEach] = {};  // becomes NaN with any head's row statistics: a maximum alone would drop a NaN
    for (int head = 0; head < a.heads; ++head) {
        T const* const queries = qkv + head * a.head_size;
        float scores[kEach][kEach];
        tile_scores(scores, shared.operands, queries, queries + a.width, a, sample, first_query, first_key, y, x);
        int64_t const rows = (int64_t{sample} * a.heads + head) * a.length;
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            int const query = first_query + y * kEach + i;
            float const maximum = query < a.length ? a.row_maximum[rows + query] : 0.0f;
            float const log_scale = query < a.length ? a.row_log_scale[rows + query] : 0.0f;
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
            sum += first_query + y * kEach + i < a.length ? fast_exp2(best[i][j]) + poison[i] : 0.0f;
        shared.sums[y][x * kEach + j] = sum;
    }
    __syncthreads();
    int const key = static_cast<int>(threadIdx.x);
    if (key >= kTile || first_key + key >= a.length) return;
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < kSide; ++part) sum += shared.sums[part][key];
    a.column_partial[(int64_t{sample} * gridDim.y + blockIdx.y) * a.length + first_key + key] = sum;
}

template <typename T, int parts>
cudaError_t launch_parts(Arguments const& a, cudaStream_t stream) {
    auto const tiles = static_cast<unsigned>(divide_up(a.length, kTile));
    auto const heads = static_cast<unsigned>(a.heads), batch = static_cast<unsigned>(a.batch);
    cudaError_t const error = launch(plain_context_kernel<T, parts>, dim3(tiles, heads, batch), dim3(kThreads),
        sizeof(ContextShared), stream, a);
    if (error != cudaSuccess || a.length == 1) return error;
    auto const others = static_cast<unsigned>(divide_up(a.length - 1, kTile));
    return launch(plain_statistics_kernel<T>, dim3(others, others, batch), dim3(kThreads), sizeof(StatisticsShared),
        stream, a);
}

}  // namespace

template <typename T>
cudaError_t launch_plain(Arguments const& a, cudaStream_t stream) {
    static_assert(MADTP_MAX_HEAD_SIZE == 4 * kTile);
    if (a.head_size <= kTile) return launch_parts<T, 1>(a, stream);
    if (a.head_size <= 2 * kTile) return launch_parts<T, 2>(a, stream);
    return launch_parts<T, 4>(a, stream);
}

template cudaError_t launch_plain<float>(Arguments const&, cudaStream_t);
template cudaError_t launch_plain<__half>(Arguments const&, cudaStream_t);
template cudaError_t launch_plain<__nv_bfloat16>(Arguments const&, cudaStream_t);

}  // namespace madtp::attention
