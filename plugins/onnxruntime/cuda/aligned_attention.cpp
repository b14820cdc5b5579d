// AlignedAttention on the CUDA provider.
#include "onnxruntime/cuda/device.h"
#include "onnxruntime/cuda/ops.h"

namespace madtp::onnxruntime {

void CudaAlignedAttention::run(Call const& context) const {
    constexpr char const* kOp = "AlignedAttention";
    AttentionArguments const given{context, mAttributes};
    auto const narrow = [&](int64_t size) { return cuda::narrow(size, kOp, given.qkv); };
    MadtpAttentionShape const shape{narrow(given.batch), narrow(given.length), narrow(given.width),
        narrow(mAttributes.heads), mAttributes.causal ? 1 : 0, cuda::kernel_dtype(given.qkv)};
    void* result = context.output<void>(0, {given.batch, given.length, given.width});
    float* column_score = context.output<float>(1, {given.batch, given.length - 1});
    float* class_score = context.output<float>(2, {given.batch, given.length - 1});
    if (given.batch == 0) { return; }

    size_t const bytes = madtp_aligned_attention_workspace(&shape);
    if (bytes == 0) {
        refuse("qkv of AlignedAttention is " + text(given.qkv.shape) + " with " + std::to_string(mAttributes.heads) +
            " heads; its CUDA kernels take at most " + std::to_string(MADTP_MAX_BATCH) + " samples, widths that are "
            "multiples of 8, and heads of at most " + std::to_string(MADTP_MAX_HEAD_SIZE) + " columns");
    }
    auto const stream = static_cast<cudaStream_t>(context.stream());
    cuda::Scratch const workspace{bytes, stream};
    cuda::check(madtp_aligned_attention(&shape, given.qkv.data, given.key_mask.as<float>(), result, column_score,
                    class_score, workspace.get(), stream), kOp);
}

}  // namespace madtp::onnxruntime
