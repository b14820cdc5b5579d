// AlignedAttention behind the C ABI: checks, workspace, choice of path, and the last reduction.
#include "aligned_attention/paths.h"
#include "aligned_attention/scores.h"

namespace madtp::attention {
namespace {

constexpr int kThreads = 128;

// A thread for each key but the class token.
__global__ void __launch_bounds__(kThreads) finish_kernel(Arguments const a) {
    int const key = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x) + 1;
    if (key >= a.length) return;
    int const sample = static_cast<int>(blockIdx.y), partials = partials_of(a.length);
    Rows const rows = rows_of(a, sample);
    Scores const scores = scores_of(a, rows, key, a.column_partial + rows.first * partials, partials);
    int64_t const output = int64_t{sample} * (a.length - 1) + key - 1;
    a.column_score[output] = scores.column;
    a.class_score[output] = scores.of_class;
}

bool valid(MadtpAttentionShape const& shape) {
    return shape.batch >= 1 && shape.batch <= MADTP_MAX_BATCH && shape.length >= 1 &&
        valid_heads(shape.width, shape.heads, shape.dtype) && (shape.causal == 0 || shape.causal == 1) &&
        divide_up(shape.length, kTile) <= MADTP_MAX_BATCH;
}

struct Launcher {
    Arguments a;
    cudaStream_t stream;

    template <typename T>
    cudaError_t tensor_core(int capability) const {
        Arguments known = a;
        known.capability = capability;
        return launch_tensor_core<T>(known, stream);
    }
    template <typename T>
    cudaError_t plain() const {
        return launch_plain<T>(a, stream);
    }
};

}  // namespace
}  // namespace madtp::attention

extern "C" size_t madtp_aligned_attention_workspace(MadtpAttentionShape const* shape) noexcept {
    using namespace madtp::attention;
    if (shape == nullptr || !valid(*shape)) return 0;
    auto const rows = static_cast<size_t>(shape->batch) * static_cast<size_t>(shape->length);
    auto const partials = static_cast<size_t>(madtp::divide_up(shape->length, kTile));
    return sizeof(float) * rows * (4 * static_cast<size_t>(shape->heads) + partials);
}

extern "C" cudaError_t madtp_aligned_attention(MadtpAttentionShape const* shape, void const* qkv, float const* key_mask,
    void* context, float* column_score, float* class_score, void* workspace, cudaStream_t stream) noexcept {
    using namespace madtp::attention;
    if (shape == nullptr || !valid(*shape)) return cudaErrorInvalidValue;
    for (void const* const vectors : {qkv, const_cast<void const*>(context), const_cast<void const*>(workspace)})
        if (!madtp::is_aligned(vectors, madtp::kVectorBytes)) return cudaErrorInvalidValue;
    if (!madtp::is_aligned(key_mask, sizeof(float))) return cudaErrorInvalidValue;
    for (float const* const score : {column_score, class_score})
        if (shape->length > 1 && !madtp::is_aligned(score, sizeof(float))) return cudaErrorInvalidValue;

    madtp::CallerError const caller_error;
    Arguments a{};
    a.qkv = qkv;
    a.key_mask = key_mask;
    a.context = context;
    a.column_score = column_score;
    a.class_score = class_score;
    a.batch = shape->batch;
    a.length = shape->length;
    a.width = shape->width;
    a.heads = shape->heads;
    a.head_size = shape->width / shape->heads;
    a.causal = shape->causal != 0;
    set_scale(a);
    divide_workspace(a, workspace, a.batch * int64_t{a.length});

    cudaError_t const error = launch_path(a.head_size, shape->dtype, Launcher{a, stream});
    if (error != cudaSuccess || a.length == 1) return error;
    auto const blocks = static_cast<unsigned>(madtp::divide_up(a.length - 1, kThreads));
    return madtp::launch(
        finish_kernel, dim3(blocks, static_cast<unsigned>(a.batch)), dim3(kThreads), 0, stream, a);
}
