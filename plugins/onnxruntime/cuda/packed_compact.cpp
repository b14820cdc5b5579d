// PackedTokenCompact on the CUDA provider. With a capacity the kernels write the outputs, and nothing waits. Without one the
// host waits for the number of rows, as TokenCompact does (token_compact.cpp).
#include "onnxruntime/cuda/device.h"
#include "onnxruntime/cuda/ops.h"

#include <algorithm>

namespace madtp::onnxruntime {
namespace {

constexpr char const* kOp = "PackedTokenCompact";

MadtpPackedCompactShape shape_of(PackedCompactArguments const& given, PackedCompactAttributes const& attributes) {
    auto const narrow = [&](int64_t size) { return cuda::narrow(size, kOp, given.tokens); };
    return {narrow(given.rows), narrow(given.sequences), narrow(attributes.group), narrow(given.width),
        narrow(given.alignments), attributes.compact.layer,
        narrow(attributes.capacity > 0 ? attributes.capacity : given.rows), cuda::kernel_dtype(given.tokens)};
}

}  // namespace

void CudaPackedTokenCompact::run(Call const& context) const {
    PackedCompactArguments const given{context, mAttributes};
    MadtpPackedCompactShape const shape = shape_of(given, mAttributes);
    auto const stream = static_cast<cudaStream_t>(context.stream());
    auto* cu_seqlens = context.output<int32_t>(3, given.cu_seqlens.shape);
    auto* count = context.output<int64_t>(4, {});
    auto const outputs_of = [&](int64_t rows) {
        return MadtpPackedCompactOutputs{context.output<void>(0, {rows, given.width}), context.output<float>(1, {rows}),
            context.output<int32_t>(2, {rows}), cu_seqlens, count};
    };
    int64_t const room = mAttributes.capacity < 0 ? given.rows : mAttributes.capacity;
    if (given.rows == 0 || given.sequences == 0) {
        outputs_of(room);
        std::vector<int32_t> const starts(static_cast<size_t>(given.sequences) + 1, 0);
        int64_t const none = 0;
        cuda::copy(cu_seqlens, starts.data(), starts.size() * sizeof(int32_t), cudaMemcpyHostToDevice, stream);
        return cuda::copy(count, &none, sizeof none, cudaMemcpyHostToDevice, stream);
    }
    size_t const bytes = madtp_packed_token_compact_workspace(&shape);
    if (bytes == 0) {
        refuse("tokens of PackedTokenCompact are " + text(given.tokens.shape) + " in " + std::to_string(given.sequences) +
            " sequences; its CUDA kernels take at most " + std::to_string(MADTP_MAX_ROWS) + " rows, " +
            std::to_string(MADTP_MAX_BATCH) + " sequences, and widths that are multiples of 8");
    }
    cuda::Scratch const workspace{bytes, stream};
    auto const launch = [&](MadtpPackedCompactOutputs const& outputs) {
        MadtpPackedCompactInputs const inputs{given.tokens.data, given.key_mask.as<float>(),
            given.source_ids.as<int32_t>(), given.column_score.as<float>(), given.class_score.as<float>(),
            given.alignment.as<float>(), given.cu_seqlens.as<int32_t>(), given.temperature.as<float>(),
            given.min_keep.as<int64_t>()};
        cuda::check(madtp_packed_token_compact(&shape, &inputs, &outputs, mAttributes.compact.keep_margin,
                        workspace.get(), stream), kOp);
    };
    if (room != 0) { return launch(outputs_of(room)); }

    auto const most_rows = static_cast<size_t>(given.rows);
    size_t const row_bytes = static_cast<size_t>(given.width) * cuda::element_bytes(given.tokens);
    cuda::Scratch const compacted{most_rows * row_bytes, stream};
    cuda::Scratch const mask{most_rows * sizeof(float), stream}, ids{most_rows * sizeof(int32_t), stream};
    launch({compacted.get(), mask.get<float>(), ids.get<int32_t>(), cu_seqlens, count});
    int64_t needed = 0;
    cuda::copy(&needed, count, sizeof needed, cudaMemcpyDeviceToHost, stream);
    cuda::check(cudaStreamSynchronize(stream), kOp);
    int64_t const kept = std::min(needed, given.rows);  // more only where cu_seqlens does not ascend
    MadtpPackedCompactOutputs const outputs = outputs_of(kept);
    auto const keep = [&](void* target, cuda::Scratch const& written, size_t each) {
        cuda::copy(target, written.get(), static_cast<size_t>(kept) * each, cudaMemcpyDeviceToDevice, stream);
    };
    keep(outputs.compacted, compacted, row_bytes);
    keep(outputs.compacted_mask, mask, sizeof(float));
    keep(outputs.compacted_ids, ids, sizeof(int32_t));
}

}  // namespace madtp::onnxruntime
