// TokenCompact in six kernels: best alignment, importance, threshold, rank and count, plan, write. Sizes that depend on
// data (K, n) are known on the device alone, so every launch is sized for the longest case and blocks without work end.
// There are no atomics: each result has one order of additions and comparisons, the same in every run.
#include "common/device.h"
#include "madtp/kernels.h"

namespace madtp::compact {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kVector = kVectorBytes;  // bytes of one memory access
constexpr int kCopiesEach = 4;        // of a thread of the write kernel
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
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    __syncthreads();  // an earlier sum may still be read
    if (thread_id() % kWarpSize == 0) scratch[thread_id() / kWarpSize] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += scratch[warp];
    return sum;
}

// m_j: the best alignment of each token. A warp for each token.
__global__ void __launch_bounds__(kThreads) best_alignment_kernel(Arguments const a) {
    int const token = static_cast<int>(blockIdx.x) * kWarps + thread_id() / kWarpSize;
    if (token >= a.body) return;
    int64_t const index = int64_t{blockIdx.y} * a.body + token;
    float const* const row = a.in.alignment + index * a.alignments;
    float best = -kInfinity;
    for (int column = thread_id() % kWarpSize; column < a.alignments; column += kWarpSize)
        best = nan_max(best, row[column]);
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2)
        best = nan_max(best, __shfl_xor_sync(kFullWarp, best, mask));
    if (thread_id() % kWarpSize == 0) a.best_alignment[index] = best;
}

// s_j. A block for each sample.
__global__ void __launch_bounds__(kThreads) importance_kernel(Arguments const a) {
    float* const scratch = dynamic_shared<float>();
    int64_t const first = int64_t{blockIdx.x} * a.body;
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

__global__ void __launch_bounds__(kThresholdThreads) threshold_kernel(Arguments const a) {
    auto& shared = *dynamic_shared<ThresholdShared>();
    int const lane = thread_id() % kWarpSize, warp = thread_id() / kWarpSize;
    int const column = static_cast<int>(blockIdx.x) * kWarpSize + lane;
    int64_t const first = int64_t{blockIdx.y} * a.body;
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
    if (lane == 0) a.thresholds[int64_t{blockIdx.y} * a.tiles + blockIdx.x] = least;
}

// The rank of 256 tokens of a sample; the sample's first block also counts how many it asks to keep.
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

__global__ void __launch_bounds__(kThreads) rank_kernel(Arguments const a) {
    auto& shared = *dynamic_shared<RankShared>();
    int const sample = static_cast<int>(blockIdx.y), token = static_cast<int>(blockIdx.x) * kThreads + thread_id();
    int64_t const first = int64_t{sample} * a.body;
    unsigned const own = token < a.body ? order_key(a.importance[first + token]) : 0;
    int const own_tile = static_cast<int>(blockIdx.x) * kThreads;
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
    if (blockIdx.x != 0) return;

    float threshold = kInfinity;
    for (int tile = 0; tile < a.tiles; ++tile)
        threshold = nan_min(threshold, a.thresholds[int64_t{sample} * a.tiles + tile]);
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

// The batch's decision, from inputs that may be anything at all.
__device__ Plan decide(Arguments const& a, int largest_wish) {
    int64_t const min_keep = *a.in.min_keep;
    int keep = *a.in.temperature > 0.0f ? largest_wish : a.body;
    bool pruned = keep >= min_keep && keep >= 0 && a.body - keep >= 2;
    int const room = min(a.max_tokens, a.length);
    if ((pruned ? keep + 2 : a.length) > room) {  // the outputs hold no more
        keep = room - 2;
        pruned = true;
    }
    return {pruned ? 1 : 0, keep, pruned ? keep + 2 : a.length};
}

// Which token fills which slot, and the weights of those that are merged. A block for each sample.
struct PlanShared {
    float scratch[kWarps];
    int wishes[kThreads];
    int best_before[kWarps], dropped_before[kWarps];
};

__global__ void __launch_bounds__(kThreads) plan_kernel(Arguments const a) {
    auto& shared = *dynamic_shared<PlanShared>();
    int const sample = static_cast<int>(blockIdx.x), lane = thread_id() % kWarpSize, warp = thread_id() / kWarpSize;
    int largest = 0;
    for (int other = thread_id(); other < a.batch; other += kThreads) largest = max(largest, a.wishes[other]);
    shared.wishes[thread_id()] = largest;
    __syncthreads();
    for (int other = 0; other < kThreads; ++other) largest = max(largest, shared.wishes[other]);
    Plan const plan = decide(a, largest);
    if (sample == 0 && thread_id() == 0) {
        *a.plan = plan;
        *a.out.count = plan.count;
    }
    if (!plan.pruned) return;

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
        if (token < a.body - plan.keep) a.weights[first + token] = a.importance[first + a.dropped[first + token]] / total;
    }
}

// One 16-byte vector of T as floats.
template <typename T>
struct Vector {
    static constexpr int kSize = kVector / static_cast<int>(sizeof(T));
    T element[kSize];
};

template <typename T>
__device__ __forceinline__ Vector<T> load_vector(T const* pointer) {
    uint4 const bits = *reinterpret_cast<uint4 const*>(pointer);
    Vector<T> vector;
    memcpy(&vector, &bits, sizeof vector);
    return vector;
}

// Blocks below `copy_blocks` copy kept rows; the others merge the dropped ones, 32 vectors of a row each.
template <typename T>
__device__ __forceinline__ void copy_rows(Arguments const& a, Plan const& plan, int sample, int copy_blocks) {
    T const* const input = static_cast<T const*>(a.in.tokens) + int64_t{sample} * a.length * a.width;
    T* const output = static_cast<T*>(a.out.compacted) + int64_t{sample} * plan.count * a.width;
    int const* const origins = a.origins + int64_t{sample} * a.length;
    int const vectors = a.width / Vector<T>::kSize;
    int const rows = plan.pruned ? plan.count - 1 : plan.count;  // the merged one comes from elsewhere
    int64_t const total = int64_t{rows} * vectors;
    for (int64_t index = int64_t{blockIdx.x} * kThreads + thread_id(); index < total;
         index += int64_t{copy_blocks} * kThreads) {
        int const row = static_cast<int>(index / vectors), vector = static_cast<int>(index % vectors);
        int const origin = plan.pruned ? origins[row] : row;
        *reinterpret_cast<uint4*>(output + int64_t{row} * a.width + vector * Vector<T>::kSize) =
            *reinterpret_cast<uint4 const*>(input + int64_t{origin} * a.width + vector * Vector<T>::kSize);
    }
    if (blockIdx.x != 0) return;
    int64_t const first_in = int64_t{sample} * a.length, first_out = int64_t{sample} * plan.count;
    for (int row = thread_id(); row < plan.count; row += kThreads) {
        int const origin = plan.pruned ? origins[row] : row;
        bool const merged = plan.pruned && row == plan.count - 1;
        a.out.compacted_mask[first_out + row] = a.in.key_mask[first_in + origin];
        a.out.compacted_ids[first_out + row] = merged ? -(a.layer + 1) : a.in.source_ids[first_in + origin];
    }
}

template <typename T>
__device__ __forceinline__ void merge_rows(
    Arguments const& a, Plan const& plan, int sample, int block, float* scratch) {
    constexpr int kSize = Vector<T>::kSize;
    if (!plan.pruned) return;
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
            Vector<T> const token = load_vector(input + int64_t{a.dropped[first + index]} * a.width);
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

template <typename T>
__global__ void __launch_bounds__(kThreads) write_kernel(Arguments const a, int copy_blocks) {
    Plan const plan = *a.plan;
    int const sample = static_cast<int>(blockIdx.y), block = static_cast<int>(blockIdx.x);
    if (block < copy_blocks)
        copy_rows<T>(a, plan, sample, copy_blocks);
    else
        merge_rows<T>(a, plan, sample, block - copy_blocks, dynamic_shared<float>());
}

template <typename T>
cudaError_t launch_write(Arguments const& a, cudaStream_t stream) {
    int const vectors = a.width / Vector<T>::kSize;
    int const most_rows = min(a.max_tokens, a.length);
    int64_t const copies = int64_t{most_rows} * vectors;
    int64_t const copy_blocks = (copies + kThreads * kCopiesEach - 1) / (kThreads * kCopiesEach);
    int const merge_blocks = divide_up(vectors, kWarpSize);
    if (copy_blocks + merge_blocks > INT32_MAX) return cudaErrorInvalidValue;
    dim3 const grid(static_cast<unsigned>(copy_blocks + merge_blocks), static_cast<unsigned>(a.batch));
    size_t const shared_bytes = sizeof(float) * kMergeGroups * Vector<T>::kSize * kWarpSize;
    return launch(write_kernel<T>, grid, dim3(kThreads), shared_bytes, stream, a, static_cast<int>(copy_blocks));
}

bool valid(MadtpCompactShape const& shape) {
    return shape.batch >= 1 && shape.batch <= MADTP_MAX_BATCH && shape.length >= 2 && shape.length <= (1 << 24) &&
        shape.width >= 8 && shape.width % 8 == 0 && shape.alignments >= 1 && shape.layer >= 0 &&
        (shape.max_tokens == 0 || shape.max_tokens >= 2) && shape.dtype >= MADTP_FLOAT32 &&
        shape.dtype <= MADTP_BFLOAT16;
}

bool aligned(MadtpCompactInputs const& in, MadtpCompactOutputs const& out) {
    for (void const* const vectors : {in.tokens, const_cast<void const*>(out.compacted)})
        if (!is_aligned(vectors, kVectorBytes)) return false;
    void const* const words[] = {in.key_mask, in.source_ids, in.column_score, in.class_score, in.alignment, in.temperature,
        out.compacted_mask, out.compacted_ids};
    for (void const* const word : words)
        if (!is_aligned(word, sizeof(float))) return false;
    return is_aligned(in.min_keep, sizeof(int64_t)) && is_aligned(out.count, sizeof(int64_t));
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

size_t divide_workspace(Arguments& a, void* workspace) {
    Divider divider(workspace);
    int64_t const tokens = int64_t{a.batch} * a.body;
    a.best_alignment = divider.take<float>(tokens);
    a.importance = divider.take<float>(tokens);
    a.thresholds = divider.take<float>(int64_t{a.batch} * a.tiles);
    a.weights = divider.take<float>(tokens);
    a.wishes = divider.take<int>(a.batch);
    a.ranks = divider.take<int>(tokens);
    a.origins = divider.take<int>(int64_t{a.batch} * a.length);
    a.dropped = divider.take<int>(tokens);
    a.plan = divider.take<Plan>(1);
    return divider.used();
}

Arguments arguments_of(MadtpCompactShape const& shape) {
    Arguments a{};
    a.batch = shape.batch;
    a.length = shape.length;
    a.body = shape.length - 1;
    a.width = shape.width;
    a.alignments = shape.alignments;
    a.tiles = divide_up(shape.alignments, kWarpSize);
    a.layer = shape.layer;
    a.max_tokens = shape.max_tokens == 0 ? shape.length : shape.max_tokens;
    return a;
}

cudaError_t launch_all(Arguments const& a, int dtype, cudaStream_t stream) {
    auto const batch = static_cast<unsigned>(a.batch), body = static_cast<unsigned>(a.body);
    dim3 const threads(kThreads);
    cudaError_t error =
        launch(best_alignment_kernel, dim3((body + kWarps - 1) / kWarps, batch), threads, 0, stream, a);
    if (error == cudaSuccess)
        error = launch(importance_kernel, dim3(batch), threads, sizeof(float) * kWarps, stream, a);
    if (error == cudaSuccess)
        error = launch(threshold_kernel, dim3(static_cast<unsigned>(a.tiles), batch), dim3(kThresholdThreads),
            sizeof(ThresholdShared), stream, a);
    if (error == cudaSuccess)
        error = launch(
            rank_kernel, dim3((body + kThreads - 1) / kThreads, batch), threads, sizeof(RankShared), stream, a);
    if (error == cudaSuccess) error = launch(plan_kernel, dim3(batch), threads, sizeof(PlanShared), stream, a);
    if (error != cudaSuccess) return error;
    if (dtype == MADTP_FLOAT32) return launch_write<float>(a, stream);
    if (dtype == MADTP_FLOAT16) return launch_write<__half>(a, stream);
    return launch_write<__nv_bfloat16>(a, stream);
}

}  // namespace
}  // namespace madtp::compact

extern "C" size_t madtp_token_compact_workspace(MadtpCompactShape const* shape) noexcept {
    using namespace madtp::compact;
    if (shape == nullptr || !valid(*shape)) return 0;
    Arguments a = arguments_of(*shape);
    return divide_workspace(a, nullptr);
}

extern "C" cudaError_t madtp_token_compact(MadtpCompactShape const* shape, MadtpCompactInputs const* inputs,
    MadtpCompactOutputs const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return madtp_token_compact_margin(shape, inputs, outputs, 0.0f, workspace, stream);
}

extern "C" cudaError_t madtp_token_compact_margin(MadtpCompactShape const* shape, MadtpCompactInputs const* inputs,
    MadtpCompactOutputs const* outputs, float keep_margin, void* workspace, cudaStream_t stream) noexcept {
    using namespace madtp::compact;
    if (shape == nullptr || inputs == nullptr || outputs == nullptr || !valid(*shape)) return cudaErrorInvalidValue;
    if (!(keep_margin >= 0.0f && keep_margin < madtp::kInfinity)) return cudaErrorInvalidValue;  // nor NaN
    if (!aligned(*inputs, *outputs) || !madtp::is_aligned(workspace, madtp::kVectorBytes)) return cudaErrorInvalidValue;
    madtp::CallerError const caller_error;
    Arguments a = arguments_of(*shape);
    a.in = *inputs;
    a.out = *outputs;
    a.keep_margin = keep_margin;
    divide_workspace(a, workspace);
    return launch_all(a, shape->dtype, stream);
}
