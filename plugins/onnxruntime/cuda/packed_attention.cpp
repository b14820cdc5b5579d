// PackedAlignedAttention and VarlenAttention on the CUDA provider. Rows behind the last sequence are not written.
#include "onnxruntime/cuda/device.h"
#include "onnxruntime/cuda/ops.h"

namespace madtp::onnxruntime {
namespace {

// What the kernels do not take of rows, which they check themselves.
[[noreturn]] void refuse_sizes(char const* op, char const* name, Input const& input, int64_t sequences, int64_t heads) {
    refuse(std::string{name} + " of " + op + " is " + text(input.shape) + " in " + std::to_string(sequences) +
        " sequences with " + std::to_string(heads) + " heads; its CUDA kernels take at most " +
        std::to_string(MADTP_MAX_ROWS) + " rows, " + std::to_string(MADTP_MAX_BATCH) + " sequences, widths that are "
        "multiples of 8, and heads of at most " + std::to_string(MADTP_MAX_HEAD_SIZE) + " columns");
}

}  // namespace

CudaPackedAlignedAttention::CudaPackedAlignedAttention(Attributes const& attributes)
    : mAttributes{attributes, "PackedAlignedAttention"} {}

void CudaPackedAlignedAttention::run(Call const& context) const {
    constexpr char const* kOp = "PackedAlignedAttention";
    PackedAttentionArguments const given{context, mAttributes};
    auto const narrow = [&](int64_t size) { return cuda::narrow(size, kOp, given.qkv); };
    MadtpPackedAttentionShape const shape{narrow(given.rows), narrow(given.sequences), narrow(given.width),
        narrow(mAttributes.heads), mAttributes.causal ? 1 : 0, cuda::kernel_dtype(given.qkv)};
    void* result = context.output<void>(0, {given.rows, given.width});
    float* column_score = context.output<float>(1, {given.rows});
    float* class_score = context.output<float>(2, {given.rows});
    if (given.rows == 0 || given.sequences == 0) { return; }

    size_t const bytes = madtp_packed_aligned_attention_workspace(&shape);
    if (bytes == 0) { refuse_sizes(kOp, "qkv", given.qkv, given.sequences, mAttributes.heads); }
    auto const stream = static_cast<cudaStream_t>(context.stream());
    cuda::Scratch const workspace{bytes, stream};
    cuda::check(madtp_packed_aligned_attention(&shape, given.qkv.data, given.key_mask.as<float>(),
                    given.cu_seqlens.as<int32_t>(), result, column_score, class_score, workspace.get(), stream), kOp);
}

void CudaVarlenAttention::run(Call const& context) const {
    constexpr char const* kOp = "VarlenAttention";
    VarlenArguments const given{context, mAttributes};
    auto const narrow = [&](int64_t size) { return cuda::narrow(size, kOp, given.query); };
    MadtpVarlenShape const shape{narrow(given.rows), narrow(given.key_rows), narrow(given.sequences), narrow(given.width),
        narrow(mAttributes.heads), cuda::kernel_dtype(given.query)};
    void* result = context.output<void>(0, given.query.shape);
    if (given.rows == 0 || given.sequences == 0) { return; }
    auto const stream = static_cast<cudaStream_t>(context.stream());
    cudaError_t const error = madtp_varlen_attention(&shape, given.query.data, given.key_value.data,
        given.cu_seqlens.as<int32_t>(), given.cu_keys.as<int32_t>(), result, stream);
    if (error == cudaErrorInvalidValue) { refuse_sizes(kOp, "query", given.query, given.sequences, mAttributes.heads); }
    cuda::check(error, kOp);
}

}  // namespace madtp::onnxruntime
