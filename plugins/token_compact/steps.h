// The steps of TokenCompact for one sample, each the work of a block: best alignment, importance, threshold, rank and count,
// selection, rows. Sizes that depend on data (K, n) are known on the device alone. There are no atomics: each result has one
// order of additions and comparisons, the same in every run.
#pragma once
#include "common/device.h"
#include "madtp/kernels.h"

namespace madtp::compact {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kVector = kVectorBytes;  // bytes of one memory access
constexpr int kMergeGroups = kWarps;  // dropped tokens are added up in so many interleaved sums

// What the batch decided; one for each call.
struct Plan {
    int pruned;  // 1 or 0
    int keep;    // K
    int count;   // n, rows of each sample in the outputs
};

struct Arguments {
    MadtpCompactInputs in;
    MadtpCompactOutputs out;
    // Workspace.
    float* best_alignment;  // [B, N]
    float* importance;      // [B, N]
    float* thresholds;      // [B, tiles of alignment tokens], the least of each tile
    float* weights;         // [B, N], of the dropped tokens, in their order
    int* wishes;            // [B], k: how many tokens each sample asks to keep
    int* ranks;             // [B, N], 0 for the most important token
    int* origins;           // [B, L], token that fills each slot
    int* dropped;           // [B, N], positions of the dropped tokens, ascending
    Plan* plan;
    int batch, length, body, width, alignments, tiles, layer, max_tokens;
    float keep_margin;
};

__device__ __forceinline__ int thread_id() { return static_cast<int>(threadIdx.x); }

// A total order on floats in which equal ones are equal: NaN of positive sign above infinity, the other below minus infinity.
__device__ __forceinline__ unsigned order_key(float value) {
    unsigned const bits = __float_as_uint(value + 0.0f);  // minus zero becomes zero
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Sum over the block in a fixed order; every thread gets it. `scratch` has room for kWarps.
template <typename N>
__device__ __forceinline__ N block_sum(N value, N* scratch) {
    value = warp_sum(value);
    __syncthreads();  // an earlier sum may still be read
    if (thread_id() % kWarpSize == 0) scratch[thread_id() / kWarpSize] = value;
    __syncthreads();
    N sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += scratch[warp];
    return sum;
}

// m_j: the best alignment of kWarps tokens, a warp for each.
__device__ __forceinline__ void find_best_alignment(Arguments const& a, int sample, int tile) {
    int const token = tile * kWarps + thread_id() / kWarpSize;
    if (token >= a.body) return;
    int64_t const index = int64_t{sample} * a.body + token;
    float const* const row = a.in.alignment + index * a.alignments;
    float best = -kInfinity;
    for (int column = thread_id() % kWarpSize; column < a.alignments; column += kWarpSize)
        best = nan_max(best, row[column]);
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2)
        best = nan_max(best, __shfl_xor_sync(kFullWarp, best, mask));
    if (thread_id() % kWarpSize == 0) a.best_alignment[index] = best;
}

// s_j of a sample. `scratch` has room for kWarps.
__device__ __forceinline__ void compute_importance(Arguments const& a, int sample, float* scratch) {
    int64_t const first = int64_t{sample} * a.body;
    float columns = 0.0f, alignments = 0.0f;
    for (int token = thread_id(); token < a.body; token += kThreads) {
        columns += a.in.column_score[first + token];
        alignments += a.best_alignment[first + token];
    }
    columns = block_sum(columns, scratch) + kEpsilon;
    alignments = block_sum(alignments, scratch) + kEpsilon;
    for (int token = thread_id(); token < a.body; token += kThreads) {
        float const column = a.in.column_score[first + token] / columns;
        float const alignment = a.best_alignment[first + token] / alignments;
        a.importance[first + token] = (column + alignment + a.in.class_score[first + token]) / 3.0f;
    }
}

// theta_t = sum_j softmax_j(A[:, t] / tau) s_j for a tile of 32 alignment tokens, and the least of them. A column of 32
// threads walks the tokens of one t, each with a softmax of its own, joined at the end.
constexpr int kThresholdWarps = 32;  // one walk takes N / 32 dependent steps
constexpr int kThresholdThreads = kThresholdWarps * kWarpSize;

struct ThresholdShared {
    float maximum[kThresholdWarps][kWarpSize], sum[kThresholdWarps][kWarpSize], weighted[kThresholdWarps][kWarpSize];
};

__device__ __forceinline__ void compute_threshold(Arguments const& a, int sample, int tile, ThresholdShared& shared) {
    int const lane = thread_id() % kWarpSize, warp = thread_id() / kWarpSize;
    int const column = tile * kWarpSize + lane;
    int64_t const first = int64_t{sample} * a.body;
    float const temperature = *a.in.temperature;
    bool const inside = column < a.alignments;
    float maximum = -kInfinity, sum = 0.0f, weighted = 0.0f;
    for (int token = warp; inside && token < a.body; token += kThresholdWarps) {
        float const value = a.in.alignment[(first + token) * a.alignments + column] / temperature;
        float const larger = nan_max(maximum, value);
        // The first value is its own maximum; minus infinity less itself must not be taken.
        float const shrink = maximum == -kInfinity ? 0.0f : expf(maximum - larger);
        float const weight = value == -kInfinity ? 0.0f : expf(value - larger);
        sum = sum * shrink + weight;
        weighted = weighted * shrink + weight * a.importance[first + token];
        maximum = larger;
    }
    shared.maximum[warp][lane] = maximum;
    shared.sum[warp][lane] = sum;
    shared.weighted[warp][lane] = weighted;
    __syncthreads();
    if (warp != 0) return;
    for (int other = 0; other < kThresholdWarps; ++other) maximum = nan_max(maximum, shared.maximum[other][lane]);
    sum = weighted = 0.0f;
    for (int other = 0; other < kThresholdWarps; ++other) {
        float const theirs = shared.maximum[other][lane];
        float const shrink = theirs == -kInfinity ? 0.0f : expf(theirs - maximum);
        sum += shared.sum[other][lane] * shrink;
        weighted += shared.weighted[other][lane] * shrink;
    }
    float least = inside ? weighted / sum : kInfinity;
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2)
        least = nan_min(least, __shfl_xor_sync(kFullWarp, least, mask));
    if (lane == 0) a.thresholds[int64_t{sample} * a.tiles + tile] = least;
}

// The rank of 256 tokens of a sample; with the first of them it also counts how many it asks to keep.
struct RankShared {
    unsigned keys[kThreads];
    float scratch[kWarps];
};

// How many of a tile's keys are `better` (by key and place in the tile).
template <typename Better>
__device__ __forceinline__ int count_keys(unsigned const* keys, Better better) {
    int count = 0;
#pragma unroll 4
    for (int place = 0; place < kThreads; place += 4) {
        uint4 const four = *reinterpret_cast<uint4 const*>(keys + place);
        count += better(four.x, place) ? 1 : 0;
        count += better(four.y, place + 1) ? 1 : 0;
        count += better(four.z, place + 2) ? 1 : 0;
        count += better(four.w, place + 3) ? 1 : 0;
    }
    return count;
}

__device__ __forceinline__ void rank_tokens(Arguments const& a, int sample, int tile, RankShared& shared) {
    int const own_tile = tile * kThreads, token = own_tile + thread_id();
    int64_t const first = int64_t{sample} * a.body;
    unsigned const own = token < a.body ? order_key(a.importance[first + token]) : 0;
    int rank = 0;
    for (int start = 0; start < a.body; start += kThreads) {
        int const mine = start + thread_id();
        __syncthreads();
        // Zero, which no number maps to, is better than nobody.
        shared.keys[thread_id()] = mine < a.body ? order_key(a.importance[first + mine]) : 0;
        __syncthreads();
        // Of equal ones the lower index is the better.
        if (start < own_tile) {
            rank += count_keys(shared.keys, [own](unsigned key, int) { return key >= own; });
        } else if (start > own_tile) {
            rank += count_keys(shared.keys, [own](unsigned key, int) { return key > own; });
        } else {
            int const self = thread_id();
            rank += count_keys(
                shared.keys, [own, self](unsigned key, int other) { return key > own || (key == own && other < self); });
        }
    }
    if (token < a.body) a.ranks[first + token] = rank;
    if (tile != 0) return;

    float threshold = kInfinity;
    for (int part = 0; part < a.tiles; ++part)
        threshold = nan_min(threshold, a.thresholds[int64_t{sample} * a.tiles + part]);
    if (a.keep_margin > 0.0f) {
        float sizes = 0.0f;
        for (int other = thread_id(); other < a.body; other += kThreads) sizes += fabsf(a.importance[first + other]);
        threshold -= a.keep_margin * (block_sum(sizes, shared.scratch) / static_cast<float>(a.body));
    }
    int above = 0, strange = is_finite(threshold) ? 0 : 1;
    for (int other = thread_id(); other < a.body; other += kThreads) {
        float const importance = a.importance[first + other];
        above += importance > threshold ? 1 : 0;
        strange += is_finite(importance) ? 0 : 1;
    }
    // Counts up to 2^24 are exact in float32.
    above = static_cast<int>(block_sum(static_cast<float>(above), shared.scratch));
    strange = static_cast<int>(block_sum(static_cast<float>(strange), shared.scratch));
    // A score that is not finite must not decide what is thrown away: its sample asks for everything.
    if (thread_id() == 0) a.wishes[sample] = strange != 0 ? a.body : above;
}

// Where tokens may be anybody's (`checked`: numbers of them were read from memory that a broken call has others write to).
template <bool checked>
__device__ __forceinline__ int token_within(int token, int count) {
    return checked ? min(max(token, 0), count - 1) : token;
}

struct SelectShared {
    float scratch[kWarps];
    int best_before[kWarps], dropped_before[kWarps];
};

// Which token of a sample fills which slot, and the weights of those that are merged.
template <bool checked>
__device__ __forceinline__ void select_tokens(Arguments const& a, Plan const& plan, int sample, SelectShared& shared) {
    int const lane = thread_id() % kWarpSize, warp = thread_id() / kWarpSize;
    int64_t const first = int64_t{sample} * a.body;
    int* const origins = a.origins + int64_t{sample} * a.length;
    if (thread_id() == 0) origins[0] = 0;
    int best = 0, dropped = 0;  // found in earlier rounds
    float dropped_importance = 0.0f;
    for (int start = 0; start < a.body; start += kThreads) {
        int const token = start + thread_id();
        int const rank = token < a.body ? a.ranks[first + token] : -1;
        bool const is_best = token < a.body && rank < plan.keep - 1;
        bool const is_dropped = token < a.body && rank >= plan.keep;
        unsigned const best_votes = __ballot_sync(kFullWarp, is_best);
        unsigned const dropped_votes = __ballot_sync(kFullWarp, is_dropped);
        if (lane == 0) {
            shared.best_before[warp] = __popc(best_votes);
            shared.dropped_before[warp] = __popc(dropped_votes);
        }
        __syncthreads();
        int best_slot = best, dropped_slot = dropped;
        for (int other = 0; other < kWarps; ++other) {
            best += shared.best_before[other];
            dropped += shared.dropped_before[other];
            if (other < warp) {
                best_slot += shared.best_before[other];
                dropped_slot += shared.dropped_before[other];
            }
        }
        unsigned const earlier = (1u << lane) - 1;
        best_slot += __popc(best_votes & earlier);
        dropped_slot += __popc(dropped_votes & earlier);
        if (is_best) origins[1 + best_slot] = token + 1;
        if (token < a.body && rank == plan.keep - 1) origins[plan.keep] = token + 1;
        if (is_dropped) {
            a.dropped[first + dropped_slot] = token;
            dropped_importance += a.importance[first + token];
        }
        // The merged token takes the mask of the best token that it swallowed.
        if (token < a.body && rank == plan.keep) origins[plan.keep + 1] = token + 1;
        __syncthreads();
    }
    float const total = block_sum(dropped_importance, shared.scratch) + kEpsilon;
    for (int token = thread_id(); token < a.body; token += kThreads) {
        // Every thread divides; only those of dropped tokens are stored, at the place that the list gives them.
        if (token < a.body - plan.keep) {
            int const dropped_token = token_within<checked>(a.dropped[first + token], a.body);
            a.weights[first + token] = a.importance[first + dropped_token] / total;
        }
    }
}

// One 16-byte vector of T.
template <typename T>
struct Vector {
    static constexpr int kSize = kVector / static_cast<int>(sizeof(T));
    T element[kSize];
};

template <typename T>
constexpr int kMergeShared = kMergeGroups * Vector<T>::kSize * kWarpSize;

template <typename T>
__device__ __forceinline__ Vector<T> load_vector(T const* pointer) {
    uint4 const bits = *reinterpret_cast<uint4 const*>(pointer);
    Vector<T> vector;
    memcpy(&vector, &bits, sizeof vector);
    return vector;
}

// Copies vectors first, first + step, ... of a sample's rows below row `last`, but for the merged one, which comes from
// elsewhere.
template <typename T, bool checked>
__device__ __forceinline__ void copy_rows(
    Arguments const& a, Plan const& plan, int sample, int64_t first, int64_t step, int last) {
    T const* const input = static_cast<T const*>(a.in.tokens) + int64_t{sample} * a.length * a.width;
    T* const output = static_cast<T*>(a.out.compacted) + int64_t{sample} * plan.count * a.width;
    int const* const origins = a.origins + int64_t{sample} * a.length;
    int const vectors = a.width / Vector<T>::kSize;
    int const rows = plan.pruned ? min(plan.count - 1, last) : min(plan.count, last);
    int64_t const total = int64_t{rows} * vectors;
    for (int64_t index = first; index < total; index += step) {
        int const row = static_cast<int>(index / vectors), vector = static_cast<int>(index % vectors);
        int const origin = plan.pruned ? token_within<checked>(origins[row], a.length) : row;
        *reinterpret_cast<uint4*>(output + int64_t{row} * a.width + vector * Vector<T>::kSize) =
            *reinterpret_cast<uint4 const*>(input + int64_t{origin} * a.width + vector * Vector<T>::kSize);
    }
}

// Mask and ids of a sample's rows first ... last - 1, by one block.
template <bool checked>
__device__ __forceinline__ void copy_columns(Arguments const& a, Plan const& plan, int sample, int first, int last) {
    int const* const origins = a.origins + int64_t{sample} * a.length;
    int64_t const first_in = int64_t{sample} * a.length, first_out = int64_t{sample} * plan.count;
    for (int row = first + thread_id(); row < last; row += kThreads) {
        int const origin = plan.pruned ? token_within<checked>(origins[row], a.length) : row;
        bool const merged = plan.pruned && row == plan.count - 1;
        a.out.compacted_mask[first_out + row] = a.in.key_mask[first_in + origin];
        a.out.compacted_ids[first_out + row] = merged ? -(a.layer + 1) : a.in.source_ids[first_in + origin];
    }
}

// The merged token of a sample, 32 vectors of its row. `scratch` has room for kMergeShared<T> floats.
template <typename T, bool checked>
__device__ __forceinline__ void merge_rows(
    Arguments const& a, Plan const& plan, int sample, int block, float* scratch) {
    constexpr int kSize = Vector<T>::kSize;
    int const lane = thread_id() % kWarpSize, group = thread_id() / kWarpSize;
    int const vector = block * kWarpSize + lane;
    bool const inside = vector < a.width / kSize;
    T const* const input =
        static_cast<T const*>(a.in.tokens) + (int64_t{sample} * a.length + 1) * a.width + int64_t{vector} * kSize;
    int64_t const first = int64_t{sample} * a.body;
    float sum[kSize] = {};
    if (inside) {
#pragma unroll 4
        for (int index = group; index < a.body - plan.keep; index += kMergeGroups) {
            float const weight = a.weights[first + index];
            int const dropped = token_within<checked>(a.dropped[first + index], a.body);
            Vector<T> const token = load_vector(input + int64_t{dropped} * a.width);
#pragma unroll
            for (int element = 0; element < kSize; ++element) sum[element] += weight * to_float(token.element[element]);
        }
    }
#pragma unroll
    for (int element = 0; element < kSize; ++element) scratch[(group * kSize + element) * kWarpSize + lane] = sum[element];
    __syncthreads();
    if (group != 0 || !inside) return;
    T* const output =
        static_cast<T*>(a.out.compacted) + (int64_t{sample + 1} * plan.count - 1) * a.width + int64_t{vector} * kSize;
    Vector<T> merged;
#pragma unroll
    for (int element = 0; element < kSize; ++element) {
        float total = 0.0f;
        for (int part = 0; part < kMergeGroups; ++part) total += scratch[(part * kSize + element) * kWarpSize + lane];
        merged.element[element] = from_float<T>(total);
    }
    uint4 bits;
    memcpy(&bits, &merged, sizeof bits);
    *reinterpret_cast<uint4*>(output) = bits;
}

// Hands out pieces of the workspace, each on a 16-byte boundary; with no base it only adds up.
class Divider {
public:
    explicit Divider(void* base) : base_(static_cast<unsigned char*>(base)) {}

    template <typename T>
    T* take(int64_t count) {
        T* const piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
        used_ += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
        return piece;
    }
    size_t used() const { return used_; }

private:
    unsigned char* base_;
    size_t used_ = 0;
};

}  // namespace madtp::compact
