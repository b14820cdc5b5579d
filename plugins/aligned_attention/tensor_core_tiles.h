// The work of a block of AlignedAttention on tensor cores. Tiles of 64 keys and 64 * M queries, four warps a block; warp w
// owns rows w * 16 ... + 15 of each of the M groups of 64 queries.
//
//   compute_context    a query tile of a head. Walks the keys once: online softmax and context as in FlashAttention-2
//                      (arXiv 2307.08691), and leaves each row's maximum, log2 of one over its sum, and context norm.
//   compute_statistics a key tile and a query tile, the class token left out. Walks the heads: computes the tile's scores
//                      again, starting from the row statistics, so that they are log2 of probabilities but for scale and
//                      mask; keeps the maximum over heads in registers; then takes the exponentials and adds up its rows.
//
// Tiles arrive by asynchronous copies of 16 bytes, one tile ahead. In shared memory the 16-byte chunks of a row are
// permuted so that ldmatrix meets no bank conflict.
#pragma once
#include "aligned_attention/arguments.h"
#include "common/tensor_core.h"

namespace madtp::attention::tensor_core {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kKeyGroups = kTile / 8;  // accumulators of 8 keys in a tile of 64

// Turing multiplies in two halves, which with 128 queries takes more registers than there are: it has tiles of 64 only.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kMostTiles = 1;
#else
constexpr int kMostTiles = 2;
#endif

// At least so many blocks a multiprocessor: without it the compiler tries for more and spills on Turing.
constexpr int kLeastBlocks = 2;

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

// The key mask of a tile in units of log2; minus infinity beyond the last key. Not `masked`: zero for every key.
template <bool masked = true>
__device__ __forceinline__ void copy_mask(float* tile, float const* key_mask, int first, int length) {
    int const key = static_cast<int>(threadIdx.x);
    if constexpr (masked) {
        if (key < kTile) tile[key] = first + key < length ? key_mask[first + key] * kLog2E : -kInfinity;
    } else {
        if (key < kTile) tile[key] = first + key < length ? 0.0f : -kInfinity;
    }
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

// `statistics`: with a key mask, and row statistics as AlignedAttention needs them; else softmax attention alone, zero where
// there are no keys.
template <typename T, int D, int M, bool statistics>
__device__ __forceinline__ void compute_context(Arguments const& a, Head<T> const& h, int query_tile) {
    auto& shared = *dynamic_shared<ContextShared<T, D>>();
    int const lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
    int const first_query = query_tile * kTile * M;
    int const last_query = min(first_query + kTile * M, h.query_rows) - 1;
    int const tiles = ((a.causal ? last_query + 1 : h.key_rows) + kTile - 1) / kTile;

    auto const copy_stage = [&](int tile) {
        auto& stage = shared.stages[tile % 2];
        copy_tile<T, D, kTile>(stage.keys, h.keys, h.key_stride, tile * kTile, h.key_rows);
        copy_tile<T, D, kTile>(stage.values, h.keys + a.width, h.key_stride, tile * kTile, h.key_rows);
        copy_mask<statistics>(shared.masks[tile % 2], h.key_mask, tile * kTile, h.key_rows);
        async_commit();
    };

    // The queries pass through the room of the second stage into registers.
    T* const queries = shared.stages[1].keys;
    copy_tile<T, D, kTile * M>(queries, h.queries, h.query_stride, first_query, h.query_rows);
    async_commit();
    copy_stage(0);
    async_wait<1>();
    __syncthreads();
    uint32_t query[M][D / 16][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int step = 0; step < D / 16; ++step)
            load_rows<T, D>(query[m][step], queries, m * kTile + warp * 16, step * 16);
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
            if (statistics && m == 0 && first_query + warp == 0) {  // has the class query, in its first four lanes
                float* const class_row = a.class_row + h.statistics;
#pragma unroll
                for (int group = 0; group < kKeyGroups; ++group)
#pragma unroll
                    for (int part = 0; part < 2; ++part) {
                        int const key = tile * kTile + group * 8 + lane % 4 * 2 + part;
                        if (lane < 4 && key < h.key_rows) class_row[key] = scores[group][part];
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
#pragma unroll
    for (int m = 0; m < M; ++m) {
        int const first_row = first_query + m * kTile + warp * 16;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float const total = warp_sum<4>(sum[m][half]);
            // Without keys there is no sum. The first stage may be zeroed late then: as the rows are that it holds.
            float const scale = statistics || tiles > 0 ? 1.0f / total : 0.0f;
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
            if constexpr (statistics) {
                squares = warp_sum<4>(squares);
                if (lane % 4 == 0 && first_row + row < h.query_rows) {
                    int64_t const index = h.statistics + first_row + row;
                    a.row_maximum[index] = maximum[m][half];
                    a.row_log_scale[index] = -log2f(total);
                    a.context_norm[index] = sqrtf(squares);
                }
            }
        }
        __syncwarp();
        constexpr int kChunks = D / 8;
#pragma unroll
        for (int index = 0; index < 16 * kChunks / kWarpSize; ++index) {
            int const row = (index * kWarpSize + lane) / kChunks, chunk = (index * kWarpSize + lane) % kChunks;
            if (first_row + row < h.query_rows)
                *reinterpret_cast<uint4*>(h.context + int64_t{first_row + row} * a.width + chunk * 8) =
                    *reinterpret_cast<uint4 const*>(staging + tile_offset<D>(row, chunk));
        }
        __syncwarp();
    }
}

// Up to this size of a row's maximum (in units of log2) its difference to log2 of the sum is rounded as scores are. Rows
// whose keys are all masked are beyond it, and so far that the sum would vanish.
constexpr float kLarge = 1024.0f;

// Whether any head's maximum in any of sixteen rows is larger.
__device__ __forceinline__ bool any_large(Arguments const& a, Rows const& rows, int first_row) {
    int const row = first_row + lane_id() % 16;
    float largest = 0.0f;
    for (int head = lane_id() / 16; row < rows.length && head < a.heads; head += 2)
        largest = fmaxf(largest, fabsf(a.row_maximum[rows.statistics + int64_t{head} * rows.length + row]));
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

// `store(partial, key, sum)` gets the column sum of each group of 64 queries.
template <typename T, int D, int M, typename Store>
__device__ __forceinline__ void compute_statistics(
    Arguments const& a, Rows const& rows, int key_tile, int query_tile, Store store) {
    auto& shared = *dynamic_shared<StatisticsShared<T, D, M>>();
    int const lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
    // The class token has no column score and no say in the others'.
    int const first_key = key_tile * kTile + 1, first_query = query_tile * kTile * M + 1;
    int64_t const stride = 3 * int64_t{a.width};
    T const* const qkv = static_cast<T const*>(a.qkv) + rows.first * stride;

    auto const copy_stage = [&](int head) {
        auto& stage = shared.stages[head % 2];
        copy_tile<T, D, kTile * M>(stage.queries, qkv + head * D, stride, first_query, rows.length);
        copy_tile<T, D, kTile>(stage.keys, qkv + a.width + head * D, stride, first_key, rows.length);
        async_commit();
    };

    copy_mask(shared.mask, a.key_mask + rows.first, first_key, rows.length);
    copy_stage(0);
    float best[M][kKeyGroups][4];
    float poison[M][2] = {};  // becomes NaN with any head's row statistics: a maximum alone would drop a NaN
    bool large[M];
#pragma unroll
    for (int m = 0; m < M; ++m) {
        large[m] = any_large(a, rows, first_query + m * kTile + warp * 16);
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
        int64_t const statistics = rows.statistics + int64_t{head} * rows.length;
#pragma unroll
        for (int m = 0; m < M; ++m) {
            if (m > 0 && first_query + m * kTile >= rows.length) break;  // no queries are left
            int const row = first_query + m * kTile + warp * 16 + lane / 4;
            float maximum[2], log_scale[2], start[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                bool const inside = row + 8 * half < rows.length;
                maximum[half] = inside ? a.row_maximum[statistics + row + 8 * half] : 0.0f;
                log_scale[half] = inside ? a.row_log_scale[statistics + row + 8 * half] : 0.0f;
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
                float const upper = row < rows.length ? fast_exp2(best[m][group][part]) + poison[m][0] : 0.0f;
                float const lower = row + 8 < rows.length ? fast_exp2(best[m][group][part + 2]) + poison[m][1] : 0.0f;
                float sum = upper + lower;
#pragma unroll
                for (int mask = 4; mask < kWarpSize; mask *= 2) sum += __shfl_xor_sync(kFullWarp, sum, mask);
                if (lane < 4) shared.sums[m][warp][group * 8 + lane * 2 + part] = sum;
            }
        }
    }
    __syncthreads();
    int const partials = partials_of(rows.length);
    for (int index = static_cast<int>(threadIdx.x); index < M * kTile; index += kThreads) {
        int const m = index / kTile, key = index % kTile, partial = query_tile * M + m;
        if (partial >= partials || first_key + key >= rows.length) continue;
        float sum = 0.0f;
#pragma unroll
        for (int part = 0; part < kWarps; ++part) sum += shared.sums[m][part][key];
        store(partial, first_key + key, sum);
    }
}

}  // namespace madtp::attention::tensor_core
