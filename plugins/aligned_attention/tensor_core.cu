// AlignedAttention on tensor cores, in two kernels. Both cut the score matrix into tiles of 64 keys and 64 * M queries,
// four warps a block; warp w owns rows w * 16 ... + 15 of each of the M groups of 64 queries.
//
//   context_kernel    a block for each (query tile, head, sample). Walks the keys once: online softmax and context as in
//                     FlashAttention-2 (arXiv 2307.08691), and leaves each row's maximum, log2 of one over its sum, and
//                     context norm.
//   statistics_kernel a block for each (key tile, query tile, sample), the class token left out. Walks the heads:
//                     computes the tile's scores again, starting from the row statistics, so that they are log2 of
//                     probabilities but for scale and mask; keeps the maximum over heads in registers; then takes the
//                     exponentials and adds up its rows.
//
// Tiles arrive by asynchronous copies of 16 bytes, one tile ahead. In shared memory the 16-byte chunks of a row are
// permuted so that ldmatrix meets no bank conflict.
#include "aligned_attention/arguments.h"
#include "common/tensor_core.h"

namespace madtp::attention {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kKeyGroups = kTile / 8;  // accumulators of 8 keys in a tile of 64

// Turing multiplies in two halves, which with 128 queries takes more registers than there are: it has tiles of 64 only.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kMostTiles = 1;
#else
constexpr int kMostTiles = 2;
#endif

// Element offset of 16-byte chunk `chunk` of row `row` in a tile of D columns.
template <int D>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
    int const turned = D >= 64 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
    return row * D + turned * 8;
}

// Start copying rows first ... of a [length, stride] matrix; rows beyond its end become zeros.
template <typename T, int D, int ROWS>
__device__ __forceinline__ void copy_tile(T* tile, T const* matrix, int64_t stride, int first, int length) {
    constexpr int kChunks = D / 8;
#pragma unroll
    for (int index = 0; index < ROWS * kChunks / kThreads; ++index) {
        int const chunk = (index * kThreads + static_cast<int>(threadIdx.x)) % kChunks;
        int const row = (index * kThreads + static_cast<int>(threadIdx.x)) / kChunks;
        bool const inside = first + row < length;
        T const* const source = matrix + (inside ? (first + row) * stride + chunk * 8 : 0);
        async_copy_16(tile + tile_offset<D>(row, chunk), source, inside);
    }
}

// The key mask of a tile in units of log2; minus infinity beyond the last key.
__device__ __forceinline__ void copy_mask(float* tile, float const* key_mask, int first, int length) {
    int const key = static_cast<int>(threadIdx.x);
    if (key < kTile) tile[key] = first + key < length ? key_mask[first + key] * kLog2E : -kInfinity;
}

// Left operand: sixteen rows, columns k ... k + 15.
template <typename T, int D>
__device__ __forceinline__ void load_rows(uint32_t (&fragment)[4], T const* tile, int row, int k) {
    int const lane = lane_id();
    load_matrices(fragment, tile + tile_offset<D>(row + lane % 16, k / 8 + lane / 16));
}

// Products of sixteen queries with a tile's 64 keys, added to `start` of their row: scores that are not yet scaled and
// masked.
template <typename T, int D>
__device__ __forceinline__ void multiply_keys(float (&scores)[kKeyGroups][4], uint32_t const (&query)[D / 16][4],
    T const* keys, float const (&start)[2]) {
    int const lane = lane_id();
#pragma unroll
    for (int group = 0; group < kKeyGroups; ++group)
#pragma unroll
        for (int part = 0; part < 4; ++part) scores[group][part] = start[part / 2];
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
#pragma unroll
        for (int group = 0; group < kKeyGroups; group += 2) {
            uint32_t key[4];
            int const row = group * 8 + lane / 16 * 8 + lane % 8;
            load_matrices(key, keys + tile_offset<D>(row, step * 2 + lane / 8 % 2));
            multiply_add<T>(scores[group], query[step], key[0], key[1]);
            multiply_add<T>(scores[group + 1], query[step], key[2], key[3]);
        }
    }
}

// Scale and mask the scores of rows `row` and `row + 8` with keys first_key + ... .
__device__ __forceinline__ void add_mask(
    float (&scores)[kKeyGroups][4], float const* mask, Arguments const& a, int row, int first_key) {
    int const column = lane_id() % 4 * 2;
#pragma unroll
    for (int group = 0; group < kKeyGroups; ++group) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            int const key = group * 8 + column + part % 2;
            float const score = scores[group][part] * a.scale + mask[key];
            bool const hidden = a.causal && first_key + key > row + part / 2 * 8;
            scores[group][part] = hidden ? -kInfinity : score;
        }
    }
}

template <typename T, int D>
struct ContextStage {
    T keys[kTile * D];
    T values[kTile * D];
};
template <typename T, int D>
struct ContextShared {
    ContextStage<T, D> stages[2];
    float masks[2][kTile];
};

template <typename T, int D, int M>
__device__ __forceinline__ void compute_context(Arguments const& a) {
    auto& shared = *dynamic_shared<ContextShared<T, D>>();
    int const lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
    int const head = static_cast<int>(blockIdx.y), sample = static_cast<int>(blockIdx.z);
    int const first_query = static_cast<int>(blockIdx.x) * kTile * M;
    int64_t const stride = 3 * int64_t{a.width};
    T const* const queries = static_cast<T const*>(a.qkv) + int64_t{sample} * a.length * stride + head * D;
    T const* const keys = queries + a.width;
    T const* const values = keys + a.width;
    float const* const key_mask = a.key_mask + int64_t{sample} * a.length;
    int const last_query = min(first_query + kTile * M, a.length) - 1;
    int const tiles = ((a.causal ? last_query + 1 : a.length) + kTile - 1) / kTile;

    auto const copy_stage = [&](int tile) {
        auto& stage = shared.stages[tile % 2];
        copy_tile<T, D, kTile>(stage.keys, keys, stride, tile * kTile, a.length);
        copy_tile<T, D, kTile>(stage.values, values, stride, tile * kTile, a.length);
        copy_mask(shared.masks[tile % 2], key_mask, tile * kTile, a.length);
        async_commit();
    };

    // The queries pass through the room of the second stage into registers.
    T* const query_tile = shared.stages[1].keys;
    copy_tile<T, D, kTile * M>(query_tile, queries, stride, first_query, a.length);
    async_commit();
    copy_stage(0);
    async_wait<1>();
    __syncthreads();
    uint32_t query[M][D / 16][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int step = 0; step < D / 16; ++step)
            load_rows<T, D>(query[m][step], query_tile, m * kTile + warp * 16, step * 16);
    __syncthreads();

    float context[M][D / 8][4] = {};
    float maximum[M][2], sum[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            maximum[m][half] = -kInfinity;
            sum[m][half] = 0.0f;
        }

    for (int tile = 0; tile < tiles; ++tile) {
        if (tile + 1 < tiles) {
            copy_stage(tile + 1);
            async_wait<1>();
        } else {
            async_wait<0>();
        }
        __syncthreads();
        auto const& stage = shared.stages[tile % 2];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            int const row = first_query + m * kTile + warp * 16 + lane / 4;
            float scores[kKeyGroups][4];
            multiply_keys<T, D>(scores, query[m], stage.keys, {0.0f, 0.0f});
            add_mask(scores, shared.masks[tile % 2], a, row, tile * kTile);
            if (m == 0 && first_query + warp == 0) {  // this warp has the class query, in its first four lanes
                float* const class_row = a.class_row + (int64_t{sample} * a.heads + head) * a.length;
#pragma unroll
                for (int group = 0; group < kKeyGroups; ++group)
#pragma unroll
                    for (int part = 0; part < 2; ++part) {
                        int const key = tile * kTile + group * 8 + lane % 4 * 2 + part;
                        if (lane < 4 && key < a.length) class_row[key] = scores[group][part];
                    }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float largest = maximum[m][half];
#pragma unroll
                for (int group = 0; group < kKeyGroups; ++group)
                    largest = fmaxf(largest, fmaxf(scores[group][2 * half], scores[group][2 * half + 1]));
                largest = warp_max<4>(largest);
                // A row that has seen only hidden keys has no maximum yet; zero keeps the exponential away from inf - inf.
                float const reference = largest == -kInfinity ? 0.0f : largest;
                float const shrink = fast_exp2(maximum[m][half] - reference);
                maximum[m][half] = largest;
                float total = 0.0f;
#pragma unroll
                for (int group = 0; group < kKeyGroups; ++group) {
#pragma unroll
                    for (int part = 2 * half; part < 2 * half + 2; ++part) {
                        scores[group][part] = fast_exp2(scores[group][part] - reference);
                        total += scores[group][part];
                    }
                }
                sum[m][half] = sum[m][half] * shrink + total;
#pragma unroll
                for (int column = 0; column < D / 8; ++column) {
                    context[m][column][2 * half] *= shrink;
                    context[m][column][2 * half + 1] *= shrink;
                }
            }
#pragma unroll
            for (int step = 0; step < kTile / 16; ++step) {
                uint32_t const probability[4] = {
                    pack<T>(scores[2 * step][0], scores[2 * step][1]),
                    pack<T>(scores[2 * step][2], scores[2 * step][3]),
                    pack<T>(scores[2 * step + 1][0], scores[2 * step + 1][1]),
                    pack<T>(scores[2 * step + 1][2], scores[2 * step + 1][3]),
                };
#pragma unroll
                for (int column = 0; column < D / 8; column += 2) {
                    uint32_t value[4];
                    load_matrices_transposed(
                        value, stage.values + tile_offset<D>(step * 16 + lane % 16, column + lane / 16));
                    multiply_add<T>(context[m][column], probability, value[0], value[1]);
                    multiply_add<T>(context[m][column + 1], probability, value[2], value[3]);
                }
            }
        }
        __syncthreads();
    }

    // Each warp turns its rows into whole 16-byte chunks through its own part of shared memory.
    T* const staging = shared.stages[0].keys + warp * 16 * D;
    T* const output = static_cast<T*>(a.context) + int64_t{sample} * a.length * a.width + head * D;
#pragma unroll
    for (int m = 0; m < M; ++m) {
        int const first_row = first_query + m * kTile + warp * 16;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float const total = warp_sum<4>(sum[m][half]);
            float const scale = 1.0f / total;
            int const row = lane / 4 + 8 * half;
            float squares = 0.0f;
#pragma unroll
            for (int column = 0; column < D / 8; ++column) {
                T const low = from_float<T>(context[m][column][2 * half] * scale);
                T const high = from_float<T>(context[m][column][2 * half + 1] * scale);
                squares += to_float(low) * to_float(low) + to_float(high) * to_float(high);
                T* const place = staging + tile_offset<D>(row, column) + lane % 4 * 2;
                place[0] = low;
                place[1] = high;
            }
            squares = warp_sum<4>(squares);
            if (lane % 4 == 0 && first_row + row < a.length) {
                int64_t const index = (int64_t{sample} * a.heads + head) * a.length + first_row + row;
                a.row_maximum[index] = maximum[m][half];
                a.row_log_scale[index] = -log2f(total);
                a.context_norm[index] = sqrtf(squares);
            }
        }
        __syncwarp();
        constexpr int kChunks = D / 8;
#pragma unroll
        for (int index = 0; index < 16 * kChunks / kWarpSize; ++index) {
            int const row = (index * kWarpSize + lane) / kChunks, chunk = (index * kWarpSize + lane) % kChunks;
            if (first_row + row < a.length)
                *reinterpret_cast<uint4*>(output + int64_t{first_row + row} * a.width + chunk * 8) =
                    *reinterpret_cast<uint4 const*>(staging + tile_offset<D>(row, chunk));
        }
        __syncwarp();
    }
}

// At least so many blocks a multiprocessor: without it the compiler tries for more and spills on Turing.
constexpr int kLeastBlocks = 2;

template <typename T, int D, int M>
__global__ void __launch_bounds__(kThreads, M == 1 ? kLeastBlocks : 0) context_kernel(Arguments const a) {
    if constexpr (M <= kMostTiles) compute_context<T, D, M>(a);
}

// Up to this size of a row's maximum (in units of log2) its difference to log2 of the sum is rounded as scores are. Rows
// whose keys are all masked are beyond it, and so far that the sum would vanish.
constexpr float kLarge = 1024.0f;

// Whether any head's maximum in any of sixteen rows is larger.
__device__ __forceinline__ bool any_large(Arguments const& a, int64_t first_row_of_sample, int first_row) {
    int const row = first_row + lane_id() % 16;
    float largest = 0.0f;
    for (int head = lane_id() / 16; row < a.length && head < a.heads; head += 2)
        largest = fmaxf(largest, fabsf(a.row_maximum[first_row_of_sample + int64_t{head} * a.length + row]));
    return __ballot_sync(kFullWarp, largest > kLarge) != 0;
}

template <typename T, int D, int M>
struct StatisticsStage {
    T queries[M * kTile * D];
    T keys[kTile * D];
};
template <typename T, int D, int M>
struct StatisticsShared {
    union {
        StatisticsStage<T, D, M> stages[2];
        float sums[M][kWarps][kTile];  // when all heads are done
    };
    float mask[kTile];
};

template <typename T, int D, int M>
__device__ __forceinline__ void compute_statistics(Arguments const& a) {
    auto& shared = *dynamic_shared<StatisticsShared<T, D, M>>();
    int const lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
    // The class token has no column score and no say in the others'.
    int const first_key = static_cast<int>(blockIdx.x) * kTile + 1, sample = static_cast<int>(blockIdx.z);
    int const first_query = static_cast<int>(blockIdx.y) * kTile * M + 1;
    int64_t const stride = 3 * int64_t{a.width};
    T const* const qkv = static_cast<T const*>(a.qkv) + int64_t{sample} * a.length * stride;
    int64_t const first_row_of_sample = int64_t{sample} * a.heads * a.length;

    auto const copy_stage = [&](int head) {
        auto& stage = shared.stages[head % 2];
        copy_tile<T, D, kTile * M>(stage.queries, qkv + head * D, stride, first_query, a.length);
        copy_tile<T, D, kTile>(stage.keys, qkv + a.width + head * D, stride, first_key, a.length);
        async_commit();
    };

    copy_mask(shared.mask, a.key_mask + int64_t{sample} * a.length, first_key, a.length);
    copy_stage(0);
    float best[M][kKeyGroups][4];
    float poison[M][2] = {};  // becomes NaN with any head's row statistics: a maximum alone would drop a NaN
    bool large[M];
#pragma unroll
    for (int m = 0; m < M; ++m) {
        large[m] = any_large(a, first_row_of_sample, first_query + m * kTile + warp * 16);
#pragma unroll
        for (int group = 0; group < kKeyGroups; ++group)
#pragma unroll
            for (float& value : best[m][group]) value = -kInfinity;
    }
    for (int head = 0; head < a.heads; ++head) {
        if (head + 1 < a.heads) {
            copy_stage(head + 1);
            async_wait<1>();
        } else {
            async_wait<0>();
        }
        __syncthreads();
        auto const& stage = shared.stages[head % 2];
        int64_t const rows = first_row_of_sample + int64_t{head} * a.length;
#pragma unroll
        for (int m = 0; m < M; ++m) {
            if (m > 0 && first_query + m * kTile >= a.length) break;  // no queries are left
            int const row = first_query + m * kTile + warp * 16 + lane / 4;
            float maximum[2], log_scale[2], start[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                bool const inside = row + 8 * half < a.length;
                maximum[half] = inside ? a.row_maximum[rows + row + 8 * half] : 0.0f;
                log_scale[half] = inside ? a.row_log_scale[rows + row + 8 * half] : 0.0f;
                poison[m][half] += (maximum[half] + log_scale[half]) * 0.0f;
                start[half] = large[m] ? 0.0f : (log_scale[half] - maximum[half]) * a.unscale;
            }
            uint32_t query[D / 16][4];
#pragma unroll
            for (int step = 0; step < D / 16; ++step)
                load_rows<T, D>(query[step], stage.queries, m * kTile + warp * 16, step * 16);
            float scores[kKeyGroups][4];
            multiply_keys<T, D>(scores, query, stage.keys, start);
            if (large[m]) {
                add_mask(scores, shared.mask, a, row, first_key);
#pragma unroll
                for (int group = 0; group < kKeyGroups; ++group)
#pragma unroll
                    for (int part = 0; part < 4; ++part)
                        scores[group][part] = scores[group][part] - maximum[part / 2] + log_scale[part / 2];
            }
#pragma unroll
            for (int group = 0; group < kKeyGroups; ++group)
#pragma unroll
                for (int part = 0; part < 4; ++part)
                    best[m][group][part] = fmaxf(best[m][group][part], scores[group][part]);
        }
        __syncthreads();
    }

#pragma unroll
    for (int m = 0; m < M; ++m) {
        int const row = first_query + m * kTile + warp * 16 + lane / 4;
        if (!large[m]) add_mask(best[m], shared.mask, a, row, first_key);
#pragma unroll
        for (int group = 0; group < kKeyGroups; ++group) {
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                float const upper = row < a.length ? fast_exp2(best[m][group][part]) + poison[m][0] : 0.0f;
                float const lower = row + 8 < a.length ? fast_exp2(best[m][group][part + 2]) + poison[m][1] : 0.0f;
                float sum = upper + lower;
#pragma unroll
                for (int mask = 4; mask < kWarpSize; mask *= 2) sum += __shfl_xor_sync(kFullWarp, sum, mask);
                if (lane < 4) shared.sums[m][warp][group * 8 + lane * 2 + part] = sum;
            }
        }
    }
    __syncthreads();
    int const partials = (a.length - 1 + kTile - 1) / kTile;
    for (int index = static_cast<int>(threadIdx.x); index < M * kTile; index += kThreads) {
        int const m = index / kTile, key = index % kTile, partial = static_cast<int>(blockIdx.y) * M + m;
        if (partial >= partials || first_key + key >= a.length) continue;
        float sum = 0.0f;
#pragma unroll
        for (int part = 0; part < kWarps; ++part) sum += shared.sums[m][part][key];
        a.column_partial[(int64_t{sample} * partials + partial) * a.length + first_key + key] = sum;
    }
}

template <typename T, int D, int M>
__global__ void __launch_bounds__(kThreads) statistics_kernel(Arguments const a) {
    if constexpr (M <= kMostTiles) compute_statistics<T, D, M>(a);
}

template <typename T, int D, int M>
cudaError_t launch_tiles(Arguments const& a, cudaStream_t stream) {
    auto const queries = static_cast<unsigned>(divide_up(a.length, kTile * M));
    auto const heads = static_cast<unsigned>(a.heads), batch = static_cast<unsigned>(a.batch);
    cudaError_t const error = launch(context_kernel<T, D, M>, dim3(queries, heads, batch), dim3(kThreads),
        sizeof(ContextShared<T, D>), stream, a);
    if (error != cudaSuccess || a.length == 1) return error;
    auto const other_queries = static_cast<unsigned>(divide_up(a.length - 1, kTile * M));
    auto const other_keys = static_cast<unsigned>(divide_up(a.length - 1, kTile));
    return launch(statistics_kernel<T, D, M>, dim3(other_keys, other_queries, batch), dim3(kThreads),
        sizeof(StatisticsShared<T, D, M>), stream, a);
}

// Tiles of 128 queries read keys and values half as often; tiles of 64 give twice as many blocks.
constexpr int kManyBlocks = 256;  // about two for each multiprocessor of a large GPU

template <typename T, int D>
cudaError_t launch_head_size(Arguments const& a, cudaStream_t stream) {
    if constexpr (D <= 64) {
        bool const many = a.batch * int64_t{a.heads} * divide_up(a.length, 2 * kTile) >= kManyBlocks;
        if (many && a.capability >= 8) return launch_tiles<T, D, 2>(a, stream);
    }
    return launch_tiles<T, D, 1>(a, stream);
}

}  // namespace

template <typename T>
cudaError_t launch_tensor_core(Arguments const& a, cudaStream_t stream) {
    switch (a.head_size) {
        case 32: return launch_head_size<T, 32>(a, stream);
        case 64: return launch_head_size<T, 64>(a, stream);
        case 128: return launch_head_size<T, 128>(a, stream);
        default: return cudaErrorNotSupported;
    }
}

template cudaError_t launch_tensor_core<__half>(Arguments const&, cudaStream_t);
template cudaError_t launch_tensor_core<__nv_bfloat16>(Arguments const&, cudaStream_t);

}  // namespace madtp::attention
