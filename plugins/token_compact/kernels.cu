// TokenCompact in six kernels, one a step of steps.h. Every launch is sized for the longest case, and blocks without work end.
#include "token_compact/steps.h"

namespace madtp::compact {
namespace {

constexpr int kCopiesEach = 4;  // of a thread of the write kernel

__global__ void __launch_bounds__(kThreads) best_alignment_kernel(Arguments const a) {
    find_best_alignment(a, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kThreads) importance_kernel(Arguments const a) {
    compute_importance(a, static_cast<int>(blockIdx.x), dynamic_shared<float>());
}

__global__ void __launch_bounds__(kThresholdThreads) threshold_kernel(Arguments const a) {
    compute_threshold(
        a, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), *dynamic_shared<ThresholdShared>());
}

__global__ void __launch_bounds__(kThreads) rank_kernel(Arguments const a) {
    rank_tokens(a, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), *dynamic_shared<RankShared>());
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

struct PlanShared {
    SelectShared select;
    int wishes[kThreads];
};

__global__ void __launch_bounds__(kThreads) plan_kernel(Arguments const a) {
    auto& shared = *dynamic_shared<PlanShared>();
    int const sample = static_cast<int>(blockIdx.x);
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
    if (plan.pruned) select_tokens<false>(a, plan, sample, shared.select);
}

// Blocks below `copy_blocks` copy kept rows; the others merge the dropped ones.
template <typename T>
__global__ void __launch_bounds__(kThreads) write_kernel(Arguments const a, int copy_blocks) {
    Plan const plan = *a.plan;
    int const sample = static_cast<int>(blockIdx.y), block = static_cast<int>(blockIdx.x);
    if (block < copy_blocks) {
        int64_t const first = int64_t{block} * kThreads + thread_id();
        copy_rows<T, false>(a, plan, sample, first, int64_t{copy_blocks} * kThreads, plan.count);
        if (block == 0) copy_columns<false>(a, plan, sample, 0, plan.count);
    } else if (plan.pruned) {
        merge_rows<T, false>(a, plan, sample, block - copy_blocks, dynamic_shared<float>());
    }
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
    return launch(write_kernel<T>, grid, dim3(kThreads), sizeof(float) * kMergeShared<T>, stream, a,
        static_cast<int>(copy_blocks));
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
