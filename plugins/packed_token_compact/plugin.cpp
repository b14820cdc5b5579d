#include "packed_token_compact/plugin.h"

namespace madtp {

using nvinfer1::DataType;

bool PackedTokenCompactPlugin::accepts(Values const& values) noexcept {
    if (values[kCapacity] != 0) return true;
    log_error("%s: field 'capacity' is 0. Exact sizes are for CPUs: a plan has rows of a fixed number. Export the model "
              "with capacities.",
        kName);
    return false;
}

MadtpPackedCompactShape PackedTokenCompactPlugin::shape(nvinfer1::Dims const& tokens, nvinfer1::Dims const& alignment,
    nvinfer1::Dims const& cu_seqlens, DataType type) const noexcept {
    int32_t const rows = size_of(tokens.d[0]), capacity = field(kCapacity);
    return {rows, size_of(cu_seqlens.d[0]) - 1, field(kGroup), size_of(tokens.d[1]), size_of(alignment.d[1]),
        field(kLayer), capacity < 0 ? rows : capacity, kernel_dtype(type)};
}

int32_t PackedTokenCompactPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
    nvinfer1::IExprBuilder& builder) noexcept {
    if (!check_counts("getOutputShapes", input_count, output_count) || !check_ranks(inputs)) return -1;
    auto const* const capacity =
        field(kCapacity) < 0 ? inputs[kTokens].d[0] : builder.constant(field(kCapacity));
    if (capacity == nullptr) return out_of_expressions();
    outputs[kCompacted].nbDims = 2;
    outputs[kCompacted].d[0] = capacity;
    outputs[kCompacted].d[1] = inputs[kTokens].d[1];
    for (int const output : {kCompactedMask, kCompactedIds}) {
        outputs[output].nbDims = 1;
        outputs[output].d[0] = capacity;
    }
    outputs[kCompactedCuSeqlens].nbDims = 1;
    outputs[kCompactedCuSeqlens].d[0] = inputs[kCuSeqlens].d[0];
    outputs[kCount].nbDims = 0;
    return 0;
}

int32_t PackedTokenCompactPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
    if (!check_counts("configurePlugin", input_count, output_count)) return -1;
    auto const& dims = inputs[kTokens].desc.dims;
    int64_t const width = dims.nbDims == 2 ? dims.d[1] : 0;
    if (width >= 8 && width % 8 == 0) return 0;
    log_error("%s: tokens are %lld wide. The kernels need a multiple of 8. Use --plugins none for this model.", kName,
        static_cast<long long>(width));
    return -1;
}

size_t PackedTokenCompactPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) const noexcept {
    if (!check_counts("getWorkspaceSize", input_count, output_count)) return 0;
    auto const largest =
        shape(inputs[kTokens].max, inputs[kAlignment].max, inputs[kCuSeqlens].max, inputs[kTokens].desc.type);
    return madtp_packed_token_compact_workspace(&largest);
}

int32_t PackedTokenCompactPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const*,
    void const* const* input_data, void* const* output_data, void* workspace, cudaStream_t stream) noexcept {
    if (inputs == nullptr || input_data == nullptr || output_data == nullptr) return -1;
    auto const sizes =
        shape(inputs[kTokens].dims, inputs[kAlignment].dims, inputs[kCuSeqlens].dims, inputs[kTokens].type);
    MadtpPackedCompactInputs const in{input_data[kTokens], static_cast<float const*>(input_data[kKeyMask]),
        static_cast<int32_t const*>(input_data[kSourceIds]), static_cast<float const*>(input_data[kColumnScore]),
        static_cast<float const*>(input_data[kClassScore]), static_cast<float const*>(input_data[kAlignment]),
        static_cast<int32_t const*>(input_data[kCuSeqlens]), static_cast<float const*>(input_data[kTemperature]),
        static_cast<int64_t const*>(input_data[kMinKeep])};
    MadtpPackedCompactOutputs const out{output_data[kCompacted], static_cast<float*>(output_data[kCompactedMask]),
        static_cast<int32_t*>(output_data[kCompactedIds]), static_cast<int32_t*>(output_data[kCompactedCuSeqlens]),
        static_cast<int64_t*>(output_data[kCount])};
    int64_t const requests = inputs[kMinKeep].dims.d[0];
    cudaError_t const error = requests * sizes.group == sizes.sequences
        ? madtp_packed_token_compact(&sizes, &in, &out, float_field(kKeepMargin), workspace, stream)
        : cudaErrorInvalidValue;
    if (error == cudaSuccess) return 0;
    log_error("%s: %s, for %d rows of %d sequences, %lld requests with %d each, of width %d, %d alignments, dtype %d. The "
              "kernels do not run on such sizes, or the GPU is in an error state. Keep to the profile of the engine, and "
              "look at earlier CUDA errors.",
        kName, cudaGetErrorString(error), sizes.rows, sizes.sequences, static_cast<long long>(requests), sizes.group,
        sizes.width, sizes.alignments, sizes.dtype);
    return -1;
}

}  // namespace madtp
