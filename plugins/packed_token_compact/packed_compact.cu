// PackedTokenCompact: the six kernels of TokenCompact for sequences that lie end to end. A sequence is a sample with pointers
// of its own; blocks look up what they work on, and end where there is nothing.
#include "common/sequences.h"
#include "token_compact/steps.h"

namespace madtp::compact {
namespace {

constexpr int kCopyRows = 16;  // of a block of the write kernel

struct PackedArguments {
    Arguments all;  // pointers to the first row; B is 1 and L is R
    int const* cu_seqlens;
    int* compacted_cu_seqlens;
    Plan* plans;  // [S]
    int sequences, requests, capacity;
};

// Those of a sequence, all but for tokens and outputs. Of what a sample has N, a row holds one.
__device__ __forceinline__ Arguments arguments_of(PackedArguments const& p, Sequence sequence, int owner) {
    Arguments a = p.all;
    int64_t const first = sequence.first, body = first + 1;
    a.length = sequence.length;
    a.body = sequence.length - 1;
    a.in.key_mask += first;
    a.in.source_ids += first;
    a.in.column_score += body;
    a.in.class_score += body;
    a.in.alignment += body * a.alignments;
    a.best_alignment += body;
    a.importance += body;
    a.thresholds += int64_t{owner} * a.tiles;
    a.weights += body;
    a.wishes += owner;
    a.ranks += body;
    a.origins += first;
    a.dropped += body;
    return a;
}

__device__ __forceinline__ Sequence sequence_of(PackedArguments const& p, int owner) {
    return sequence_at(p.cu_seqlens, owner, p.all.length);
}

// Of all rows as if they were the tokens of one sample: rows know their own best alignment.
__global__ void __launch_bounds__(kThreads) packed_best_alignment_kernel(PackedArguments const p) {
    Arguments a = p.all;
    a.body = min(max(p.cu_seqlens[p.sequences], 0), a.length);
    find_best_alignment(a, 0, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kThreads) packed_importance_kernel(PackedArguments const p) {
    int const owner = static_cast<int>(blockIdx.x);
    Sequence const sequence = sequence_of(p, owner);
    if (sequence.length >= 2) compute_importance(arguments_of(p, sequence, owner), 0, dynamic_shared<float>());
}

__global__ void __launch_bounds__(kThresholdThreads) packed_threshold_kernel(PackedArguments const p) {
    int const owner = static_cast<int>(blockIdx.y);
    Sequence const sequence = sequence_of(p, owner);
    if (sequence.length < 2) return;
    compute_threshold(arguments_of(p, sequence, owner), 0, static_cast<int>(blockIdx.x),
        *dynamic_shared<ThresholdShared>());
}

__global__ void __launch_bounds__(kThreads) packed_rank_kernel(PackedArguments const p) {
    Tile const tile =
        tile_at<kThreads>(p.cu_seqlens, p.sequences, p.all.length, static_cast<int>(blockIdx.x));
    if (tile.first + 1 >= tile.sequence.length) return;
    rank_tokens(arguments_of(p, tile.sequence, tile.owner), 0, tile.index, *dynamic_shared<RankShared>());
}

// What becomes of a sequence; the sequences of its request ask together.
__device__ Plan decide(PackedArguments const& p, int owner) {
    int const length = sequence_of(p, owner).length, request = owner % p.requests;
    bool const prunes = *p.all.in.temperature > 0.0f;
    int keep = 0;
    for (int other = request; other < p.sequences; other += p.requests) {
        int const body = sequence_of(p, other).length - 1;
        if (body > 0) keep = max(keep, prunes ? p.all.wishes[other] : body);
    }
    bool const pruned = keep >= p.all.in.min_keep[request] && length - 1 - keep >= 2;
    return {pruned ? 1 : 0, keep, pruned ? keep + 2 : length};
}

struct PackedPlanShared {
    SelectShared select;
    int64_t rows[kWarps];
};

// A block for each sequence. What comes before it in the outputs, every block finds by itself.
__global__ void __launch_bounds__(kThreads) packed_plan_kernel(PackedArguments const p) {
    auto& shared = *dynamic_shared<PackedPlanShared>();
    int const owner = static_cast<int>(blockIdx.x);
    int64_t before = 0;
    for (int other = thread_id(); other < owner; other += kThreads) before += decide(p, other).count;
    before = block_sum(before, shared.rows);
    Plan const plan = decide(p, owner);
    if (thread_id() == 0) {
        int64_t const end = before + plan.count, most = p.capacity;
        p.plans[owner] = plan;
        p.compacted_cu_seqlens[owner] = static_cast<int>(before < most ? before : most);
        if (owner == p.sequences - 1) {
            p.compacted_cu_seqlens[p.sequences] = static_cast<int>(end < most ? end : most);
            *p.all.out.count = end;
        }
    }
    if (plan.pruned) select_tokens<true>(arguments_of(p, sequence_of(p, owner), owner), plan, 0, shared.select);
}

// With tokens and outputs.
template <typename T>
__device__ __forceinline__ Arguments writing(PackedArguments const& p, int owner, int first_out) {
    Sequence const sequence = sequence_of(p, owner);
    Arguments a = arguments_of(p, sequence, owner);
    a.in.tokens = static_cast<T const*>(a.in.tokens) + int64_t{sequence.first} * a.width;
    a.out.compacted = static_cast<T*>(a.out.compacted) + int64_t{first_out} * a.width;
    a.out.compacted_mask += first_out;
    a.out.compacted_ids += first_out;
    return a;
}

// Blocks below `copy_tiles` copy kCopyRows rows that leave; the others merge dropped ones, `merge_blocks` a sequence. For
// more blocks a multiprocessor than this the compiler spills.
template <typename T>
__global__ void __launch_bounds__(kThreads, 5) packed_write_kernel(
    PackedArguments const p, int copy_tiles, int merge_blocks) {
    int const block = static_cast<int>(blockIdx.x);
    if (block < copy_tiles) {
        Tile const tile = tile_at<kCopyRows>(p.compacted_cu_seqlens, p.sequences, p.capacity, block);
        if (tile.sequence.length == 0) return;
        Plan const plan = p.plans[tile.owner];
        Arguments const a = writing<T>(p, tile.owner, tile.sequence.first);
        int const last = min(tile.first + kCopyRows, tile.sequence.length);
        int64_t const vectors = a.width / Vector<T>::kSize;
        copy_rows<T, true>(a, plan, 0, tile.first * vectors + thread_id(), kThreads, last);
        copy_columns<true>(a, plan, 0, tile.first, last);
        return;
    }
    int const owner = (block - copy_tiles) / merge_blocks;
    Plan const plan = p.plans[owner];
    Sequence const room = sequence_at(p.compacted_cu_seqlens, owner, p.capacity);
    if (!plan.pruned || plan.count > room.length) return;
    merge_rows<T, true>(
        writing<T>(p, owner, room.first), plan, 0, (block - copy_tiles) % merge_blocks, dynamic_shared<float>());
}

template <typename T>
cudaError_t launch_write(PackedArguments const& p, cudaStream_t stream) {
    int const merge_blocks = divide_up(p.all.width / Vector<T>::kSize, kWarpSize);
    int64_t const copy_tiles = tile_numbers(p.capacity, p.sequences, kCopyRows);
    int64_t const blocks = copy_tiles + int64_t{merge_blocks} * p.sequences;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    return launch(packed_write_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
        sizeof(float) * kMergeShared<T>, stream, p, static_cast<int>(copy_tiles), merge_blocks);
}

cudaError_t launch_all(PackedArguments const& p, int dtype, cudaStream_t stream) {
    int const rows = p.all.length;
    auto const sequences = static_cast<unsigned>(p.sequences);
    dim3 const threads(kThreads);
    cudaError_t error = launch(packed_best_alignment_kernel, dim3(static_cast<unsigned>(divide_up(rows, kWarps))),
        threads, 0, stream, p);
    if (error == cudaSuccess)
        error = launch(packed_importance_kernel, dim3(sequences), threads, sizeof(float) * kWarps, stream, p);
    if (error == cudaSuccess)
        error = launch(packed_threshold_kernel, dim3(static_cast<unsigned>(p.all.tiles), sequences),
            dim3(kThresholdThreads), sizeof(ThresholdShared), stream, p);
    if (error == cudaSuccess)
        error = launch(packed_rank_kernel, dim3(static_cast<unsigned>(tile_numbers(rows, p.sequences, kThreads))),
            threads, sizeof(RankShared), stream, p);
    if (error == cudaSuccess)
        error = launch(packed_plan_kernel, dim3(sequences), threads, sizeof(PackedPlanShared), stream, p);
    if (error != cudaSuccess) return error;
    if (dtype == MADTP_FLOAT32) return launch_write<float>(p, stream);
    if (dtype == MADTP_FLOAT16) return launch_write<__half>(p, stream);
    return launch_write<__nv_bfloat16>(p, stream);
}

bool valid(MadtpPackedCompactShape const& shape) {
    return shape.rows >= 1 && shape.rows <= MADTP_MAX_ROWS && shape.sequences >= 1 &&
        shape.sequences <= MADTP_MAX_BATCH && shape.group >= 1 && shape.sequences % shape.group == 0 &&
        shape.width >= 8 && shape.width % 8 == 0 && shape.alignments >= 1 && shape.layer >= 0 && shape.capacity >= 1 &&
        shape.capacity <= MADTP_MAX_ROWS && shape.dtype >= MADTP_FLOAT32 && shape.dtype <= MADTP_BFLOAT16;
}

bool aligned(MadtpPackedCompactInputs const& in, MadtpPackedCompactOutputs const& out) {
    for (void const* const vectors : {in.tokens, const_cast<void const*>(out.compacted)})
        if (!is_aligned(vectors, kVectorBytes)) return false;
    void const* const words[] = {in.key_mask, in.source_ids, in.column_score, in.class_score, in.alignment, in.cu_seqlens,
        in.temperature, out.compacted_mask, out.compacted_ids, out.compacted_cu_seqlens};
    for (void const* const word : words)
        if (!is_aligned(word, sizeof(float))) return false;
    return is_aligned(in.min_keep, sizeof(int64_t)) && is_aligned(out.count, sizeof(int64_t));
}

size_t divide_workspace(PackedArguments& p, void* workspace) {
    Divider divider(workspace);
    Arguments& a = p.all;
    int64_t const rows = a.length;
    a.best_alignment = divider.take<float>(rows);
    a.importance = divider.take<float>(rows);
    a.thresholds = divider.take<float>(int64_t{p.sequences} * a.tiles);
    a.weights = divider.take<float>(rows);
    a.wishes = divider.take<int>(p.sequences);
    a.ranks = divider.take<int>(rows);
    a.origins = divider.take<int>(rows);
    a.dropped = divider.take<int>(rows);
    p.plans = divider.take<Plan>(p.sequences);
    return divider.used();
}

PackedArguments arguments_of(MadtpPackedCompactShape const& shape) {
    PackedArguments p{};
    p.all.batch = 1;
    p.all.length = shape.rows;
    p.all.width = shape.width;
    p.all.alignments = shape.alignments;
    p.all.tiles = divide_up(shape.alignments, kWarpSize);
    p.all.layer = shape.layer;
    p.sequences = shape.sequences;
    p.requests = shape.sequences / shape.group;
    p.capacity = shape.capacity;
    return p;
}

}  // namespace
}  // namespace madtp::compact

extern "C" size_t madtp_packed_token_compact_workspace(MadtpPackedCompactShape const* shape) noexcept {
    using namespace madtp::compact;
    if (shape == nullptr || !valid(*shape)) return 0;
    PackedArguments p = arguments_of(*shape);
    return divide_workspace(p, nullptr);
}

extern "C" cudaError_t madtp_packed_token_compact(MadtpPackedCompactShape const* shape,
    MadtpPackedCompactInputs const* inputs, MadtpPackedCompactOutputs const* outputs, float keep_margin, void* workspace,
    cudaStream_t stream) noexcept {
    using namespace madtp::compact;
    if (shape == nullptr || inputs == nullptr || outputs == nullptr || !valid(*shape)) return cudaErrorInvalidValue;
    if (!(keep_margin >= 0.0f && keep_margin < madtp::kInfinity)) return cudaErrorInvalidValue;  // nor NaN
    if (!aligned(*inputs, *outputs) || !madtp::is_aligned(workspace, madtp::kVectorBytes)) return cudaErrorInvalidValue;
    madtp::CallerError const caller_error;
    PackedArguments p = arguments_of(*shape);
    p.all.in = {inputs->tokens, inputs->key_mask, inputs->source_ids, inputs->column_score, inputs->class_score,
        inputs->alignment, inputs->temperature, inputs->min_keep};
    p.all.out = {outputs->compacted, outputs->compacted_mask, outputs->compacted_ids, outputs->count};
    p.all.keep_margin = keep_margin;
    p.cu_seqlens = inputs->cu_seqlens;
    p.compacted_cu_seqlens = outputs->compacted_cu_seqlens;
    divide_workspace(p, workspace);
    return launch_all(p, shape->dtype, stream);
}
