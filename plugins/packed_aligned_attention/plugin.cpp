#include "packed_aligned_attention/plugin.h"

namespace madtp {

using nvinfer1::DataType;

MadtpPackedAttentionShape PackedAlignedAttentionPlugin::shape(
    nvinfer1::Dims const& qkv, nvinfer1::Dims const& cu_seqlens, DataType type) const noexcept {
    return {size_of(qkv.d[0]), size_of(cu_seqlens.d[0]) - 1, size_of(qkv.d[1]) / 3, field(kHeads), field(kCausal),
        kernel_dtype(type)};
}

int32_t PackedAlignedAttentionPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
    nvinfer1::IExprBuilder& builder) noexcept {
    if (!check_counts("getOutputShapes", input_count, output_count) || !check_ranks(inputs)) return -1;
    auto const* const three = builder.constant(3);
    if (three == nullptr) return out_of_expressions();
    auto const* const width = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *inputs[kQkv].d[1], *three);
    if (width == nullptr) return out_of_expressions();
    outputs[kContext].nbDims = 2;
    outputs[kContext].d[0] = inputs[kQkv].d[0];
    outputs[kContext].d[1] = width;
    for (int const score : {kColumnScore, kClassScore}) {
        outputs[score].nbDims = 1;
        outputs[score].d[0] = inputs[kQkv].d[0];
    }
    return 0;
}

int32_t PackedAlignedAttentionPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs,
    int32_t input_count, nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
    if (!check_counts("configurePlugin", input_count, output_count)) return -1;
    auto const& dims = inputs[kQkv].desc.dims;
    int64_t const triple = dims.nbDims == 2 ? dims.d[1] : 0, width = triple / 3;
    int32_t const heads = field(kHeads);
    if (triple < 24 || triple % 24 != 0 || width % heads != 0 || width / heads > MADTP_MAX_HEAD_SIZE) {
        log_error("%s: qkv is %lld wide with %d heads. It has to be three times a width that is a multiple of 8 and of "
                  "the heads, with at most %d columns a head. Use --plugins none for this model.",
            kName, static_cast<long long>(triple), heads, static_cast<int>(MADTP_MAX_HEAD_SIZE));
        return -1;
    }
    return 0;
}

size_t PackedAlignedAttentionPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs,
    int32_t input_count, nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) const noexcept {
    if (!check_counts("getWorkspaceSize", input_count, output_count)) return 0;
    auto const largest = shape(inputs[kQkv].max, inputs[kCuSeqlens].max, inputs[kQkv].desc.type);
    return madtp_packed_aligned_attention_workspace(&largest);
}

int32_t PackedAlignedAttentionPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputs,
    nvinfer1::PluginTensorDesc const*, void const* const* input_data, void* const* output_data, void* workspace,
    cudaStream_t stream) noexcept {
    if (inputs == nullptr || input_data == nullptr || output_data == nullptr) return -1;
    auto const sizes = shape(inputs[kQkv].dims, inputs[kCuSeqlens].dims, inputs[kQkv].type);
    cudaError_t const error = madtp_packed_aligned_attention(&sizes, input_data[kQkv],
        static_cast<float const*>(input_data[kKeyMask]), static_cast<int32_t const*>(input_data[kCuSeqlens]),
        output_data[kContext], static_cast<float*>(output_data[kColumnScore]),
        static_cast<float*>(output_data[kClassScore]), workspace, stream);
    if (error == cudaSuccess) return 0;
    log_error("%s: %s, for %d rows of %d sequences of width %d, %d heads, dtype %d. The kernels do not run on such "
              "sizes, or the GPU is in an error state. Keep to the profile of the engine, and look at earlier CUDA "
              "errors.",
        kName, cudaGetErrorString(error), sizes.rows, sizes.sequences, sizes.width, sizes.heads, sizes.dtype);
    return -1;
}

}  // namespace madtp
