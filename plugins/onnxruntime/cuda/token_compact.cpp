// TokenCompact on the CUDA provider. The kernels leave the number of tokens on the device, and ONNX Runtime wants the shape of
// an output before it gives out its memory: so they write to scratch of the largest size, the host waits for that number
// (for this stream alone), and what the kernels wrote is copied.
#include "onnxruntime/cuda/device.h"
#include "onnxruntime/cuda/ops.h"

namespace madtp::onnxruntime {

void CudaTokenCompact::run(Call const& context) const {
    constexpr char const* kOp = "TokenCompact";
    CompactArguments const given{context};
    auto const narrow = [&](int64_t size) { return cuda::narrow(size, kOp, given.tokens); };
    MadtpCompactShape const shape{narrow(given.batch), narrow(given.length), narrow(given.width),
        narrow(given.alignments), mAttributes.layer, 0, cuda::kernel_dtype(given.tokens)};
    auto const stream = static_cast<cudaStream_t>(context.stream());
    auto* count = context.output<int64_t>(3, {});
    if (given.batch == 0) {
        context.output<void>(0, given.tokens.shape);
        context.output<float>(1, given.key_mask.shape);
        context.output<int32_t>(2, given.key_mask.shape);
        return cuda::copy(count, &given.length, sizeof given.length, cudaMemcpyHostToDevice, stream);
    }
    size_t const bytes = madtp_token_compact_workspace(&shape);
    if (bytes == 0) {
        refuse("tokens of TokenCompact are " + text(given.tokens.shape) + "; its CUDA kernels take at most " +
            std::to_string(MADTP_MAX_BATCH) + " samples and widths that are multiples of 8");
    }

    size_t const most_rows = static_cast<size_t>(given.batch) * static_cast<size_t>(given.length);
    size_t const row_bytes = static_cast<size_t>(given.width) * cuda::element_bytes(given.tokens);
    cuda::Scratch const workspace{bytes, stream}, compacted{most_rows * row_bytes, stream};
    cuda::Scratch const mask{most_rows * sizeof(float), stream}, ids{most_rows * sizeof(int32_t), stream};
    MadtpCompactInputs const inputs{given.tokens.data, given.key_mask.as<float>(), given.source_ids.as<int32_t>(),
        given.column_score.as<float>(), given.class_score.as<float>(), given.alignment.as<float>(),
        given.temperature.as<float>(), given.min_keep.as<int64_t>()};
    MadtpCompactOutputs const outputs{compacted.get(), mask.get<float>(), ids.get<int32_t>(), count};
    cuda::check(madtp_token_compact_margin(
                    &shape, &inputs, &outputs, mAttributes.keep_margin, workspace.get(), stream), kOp);

    int64_t tokens = 0;
    cuda::copy(&tokens, count, sizeof tokens, cudaMemcpyDeviceToHost, stream);
    cuda::check(cudaStreamSynchronize(stream), kOp);
    size_t const rows = static_cast<size_t>(given.batch) * static_cast<size_t>(tokens);
    auto const keep = [&](void* target, cuda::Scratch const& written, size_t each) {
        cuda::copy(target, written.get(), rows * each, cudaMemcpyDeviceToDevice, stream);
    };
    keep(context.output<void>(0, {given.batch, tokens, given.width}), compacted, row_bytes);
    keep(context.output<float>(1, {given.batch, tokens}), mask, sizeof(float));
    keep(context.output<int32_t>(2, {given.batch, tokens}), ids, sizeof(int32_t));
}

}  // namespace madtp::onnxruntime
