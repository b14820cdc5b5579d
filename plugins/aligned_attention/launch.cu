// AlignedAttention behind the C ABI: checks, workspace, choice of path, and the last reduction.
#include "aligned_attention/arguments.h"

namespace madtp::attention {
namespace {

constexpr int kThreads = 128;

// Column score: partial sums in ascending order. Class score: the class query's probabilities, heads weighted by the
// norm of the key's context; where causal it sees no key but itself.
__global__ void __launch_bounds__(kThreads) finish_kernel(Arguments const a) {
    int const sample = static_cast<int>(blockIdx.y);
    int const key = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x) + 1;  // not the class token
    if (key >= a.length) return;
    int const partials = (a.length - 1 + kTile - 1) / kTile;
    float column = 0.0f;
    for (int partial = 0; partial < partials; ++partial)
        column += a.column_partial[(int64_t{sample} * partials + partial) * a.length + key];
    float total_norm = 0.0f;
    for (int head = 0; head < a.heads; ++head)
        total_norm += a.context_norm[(int64_t{sample} * a.heads + head) * a.length + key];
    float class_score = 0.0f;
    for (int head = 0; head < a.heads; ++head) {
        int64_t const row = (int64_t{sample} * a.heads + head) * a.length;
        float const score = a.causal ? -kInfinity : a.class_row[row + key];
        float const probability = fast_exp2(score - a.row_maximum[row] + a.row_log_scale[row]);
        class_score += probability * a.context_norm[row + key] / (total_norm + kEpsilon);
    }
    int64_t const output = int64_t{sample} * (a.length - 1) + key - 1;
    a.column_score[output] = column;
    a.class_score[output] = class_score;
}

bool valid(MadtpAttentionShape const& shape) {
    return shape.batch >= 1 && shape.batch <= MADTP_MAX_BATCH && shape.length >= 1 && shape.width >= 8 &&
        shape.width % 8 == 0 && shape.heads >= 1 && shape.heads <= MADTP_MAX_BATCH && shape.width % shape.heads == 0 &&
        shape.width / shape.heads <= MADTP_MAX_HEAD_SIZE && (shape.causal == 0 || shape.causal == 1) &&
        shape.dtype >= MADTP_FLOAT32 && shape.dtype <= MADTP_BFLOAT16 &&
        divide_up(shape.length, kTile) <= MADTP_MAX_BATCH;
}

// Major compute capability of the current device. Asks the driver's cache: no synchronisation.
cudaError_t read_capability(int& major) {
#ifdef MADTP_SIMT
    major = 8;
    return cudaSuccess;
#else
    int device = 0;
    cudaError_t const error = cudaGetDevice(&device);
    return error != cudaSuccess ? error : cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
#endif
}

template <typename T>
cudaError_t launch_16_bit(Arguments const& a, cudaStream_t stream) {
    // Heads of these sizes begin on 16-byte boundaries, as asynchronous copies need. Two stages of 128 columns take
    // 66 kB of shared memory, and Turing has 64.
    bool const known = a.head_size == 32 || a.head_size == 64 || (a.head_size == 128 && a.capability >= 8);
    return known ? launch_tensor_core<T>(a, stream) : launch_plain<T>(a, stream);
}

cudaError_t launch_path(Arguments a, int dtype, cudaStream_t stream) {
    if (dtype == MADTP_FLOAT32) return launch_plain<float>(a, stream);
    cudaError_t const error = read_capability(a.capability);
    if (error != cudaSuccess) return error;
    if (dtype == MADTP_FLOAT16) return launch_16_bit<__half>(a, stream);
    return a.capability >= 8 ? launch_16_bit<__nv_bfloat16>(a, stream) : cudaErrorNotSupported;
}

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
    a.scale = kLog2E / sqrtf(static_cast<float>(a.head_size));
    a.unscale = 1.0f / a.scale;
    a.causal = shape->causal != 0;
    auto* const floats = static_cast<float*>(workspace);
    size_t const rows = static_cast<size_t>(a.batch) * static_cast<size_t>(a.heads) * static_cast<size_t>(a.length);
    a.row_maximum = floats;
    a.row_log_scale = floats + rows;
    a.context_norm = floats + 2 * rows;
    a.class_row = floats + 3 * rows;
    a.column_partial = floats + 4 * rows;

    cudaError_t const error = launch_path(a, shape->dtype, stream);
    if (error != cudaSuccess || a.length == 1) return error;
    auto const blocks = static_cast<unsigned>(madtp::divide_up(a.length - 1, kThreads));
    return madtp::launch(
        finish_kernel, dim3(blocks, static_cast<unsigned>(a.batch)), dim3(kThreads), 0, stream, a);
}
