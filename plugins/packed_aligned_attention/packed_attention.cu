// PackedAlignedAttention behind the C ABI: checks, workspace, choice of path, and the last reduction.
#include "aligned_attention/paths.h"
#include "aligned_attention/scores.h"
#include "packed_aligned_attention/arguments.h"

namespace madtp::attention {
namespace {

constexpr int kThreads = 128;

// A thread for each row; class tokens have no scores.
__global__ void __launch_bounds__(kThreads) packed_finish_kernel(PackedArguments const p) {
    Tile const tile = tile_at<kThreads>(p.cu_seqlens, p.sequences, p.all.length, static_cast<int>(blockIdx.x));
    int const key = tile.first + static_cast<int>(threadIdx.x);
    if (key >= tile.sequence.length) return;
    Rows const rows = rows_of(p, tile);
    int const partials = min(partials_of(rows.length), kMostPartials);
    Scores const scores = key == 0 ? Scores{} : scores_of(p.all, rows, key, column_partial(p, rows), partials);
    p.all.column_score[rows.first + key] = scores.column;
    p.all.class_score[rows.first + key] = scores.of_class;
}

bool valid(MadtpPackedAttentionShape const& shape) {
    return shape.rows >= 1 && shape.rows <= MADTP_MAX_ROWS && shape.sequences >= 1 &&
        shape.sequences <= MADTP_MAX_BATCH && valid_heads(shape.width, shape.heads, shape.dtype) &&
        (shape.causal == 0 || shape.causal == 1);
}

int partials_room(int rows) { return min(divide_up(rows, kTile), kMostPartials); }

struct Launcher {
    PackedArguments p;
    cudaStream_t stream;

    template <typename T>
    cudaError_t tensor_core(int capability) const {
        PackedArguments known = p;
        known.all.capability = capability;
        return launch_packed_tensor_core<T>(known, stream);
    }
    template <typename T>
    cudaError_t plain() const {
        return launch_packed_plain<T>(p, stream);
    }
};

}  // namespace
}  // namespace madtp::attention

extern "C" size_t madtp_packed_aligned_attention_workspace(MadtpPackedAttentionShape const* shape) noexcept {
    using namespace madtp::attention;
    if (shape == nullptr || !valid(*shape)) return 0;
    return sizeof(float) * static_cast<size_t>(shape->rows) *
        (4 * static_cast<size_t>(shape->heads) + static_cast<size_t>(partials_room(shape->rows)));
}

extern "C" cudaError_t madtp_packed_aligned_attention(MadtpPackedAttentionShape const* shape, void const* qkv,
    float const* key_mask, int32_t const* cu_seqlens, void* context, float* column_score, float* class_score,
    void* workspace, cudaStream_t stream) noexcept {
    using namespace madtp::attention;
    if (shape == nullptr || !valid(*shape)) return cudaErrorInvalidValue;
    for (void const* const vectors : {qkv, const_cast<void const*>(context), const_cast<void const*>(workspace)})
        if (!madtp::is_aligned(vectors, madtp::kVectorBytes)) return cudaErrorInvalidValue;
    for (void const* const words : {static_cast<void const*>(key_mask), static_cast<void const*>(cu_seqlens),
             static_cast<void const*>(column_score), static_cast<void const*>(class_score)})
        if (!madtp::is_aligned(words, sizeof(float))) return cudaErrorInvalidValue;

    madtp::CallerError const caller_error;
    PackedArguments p{};
    Arguments& a = p.all;
    a.qkv = qkv;
    a.key_mask = key_mask;
    a.context = context;
    a.column_score = column_score;
    a.class_score = class_score;
    a.batch = 1;
    a.length = shape->rows;
    a.width = shape->width;
    a.heads = shape->heads;
    a.head_size = shape->width / shape->heads;
    a.causal = shape->causal != 0;
    set_scale(a);
    divide_workspace(a, workspace, a.length);
    p.cu_seqlens = cu_seqlens;
    p.sequences = shape->sequences;
    p.partials = partials_room(a.length);

    cudaError_t const error = launch_path(a.head_size, shape->dtype, Launcher{p, stream});
    if (error != cudaSuccess) return error;
    auto const blocks = static_cast<unsigned>(madtp::tile_numbers(a.length, p.sequences, kThreads));
    return madtp::launch(packed_finish_kernel, dim3(blocks), dim3(kThreads), 0, stream, p);
}
