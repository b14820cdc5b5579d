#include "aligned_attention/plugin.h"

#include "common/dtype.h"

namespace madtp {

using nvinfer1::DataType;

bool AlignedAttentionPlugin::check_counts(char const* where, int32_t inputs, int32_t outputs) const noexcept {
    if (inputs == kInputs && outputs == kOutputs) return true;
    log_error("%s: %s with %d inputs and %d outputs. It has %d and %d. Export the model again with this version.", kName,
        where, inputs, outputs, static_cast<int>(kInputs), static_cast<int>(kOutputs));
    return false;
}

MadtpAttentionShape AlignedAttentionPlugin::shape(nvinfer1::Dims const& qkv, DataType type) const noexcept {
    return {size_of(qkv.d[0]), size_of(qkv.d[1]), size_of(qkv.d[2]) / 3, field(kHeads), field(kCausal),
        kernel_dtype(type)};
}

namespace {

int32_t out_of_expressions() noexcept {
    log_error("%s: TensorRT made no expression for an output's shape. It may be out of memory. Free memory and try again.",
        AlignedAttentionPlugin::kName);
    return -1;
}

}  // namespace

int32_t AlignedAttentionPlugin::getOutputDataTypes(
    DataType* outputs, int32_t output_count, DataType const* inputs, int32_t input_count) const noexcept {
    if (!check_counts("getOutputDataTypes", input_count, output_count)) return -1;
    if (!is_data_type(inputs[kQkv]) || inputs[kKeyMask] != DataType::kFLOAT) {
        log_error("%s: qkv is of type %s and key_mask %s. They have to be float32, float16 or bfloat16, and float32. Export "
                  "the model again.",
            kName, type_name(inputs[kQkv]), type_name(inputs[kKeyMask]));
        return -1;
    }
    outputs[kContext] = inputs[kQkv];
    outputs[kColumnScore] = outputs[kClassScore] = DataType::kFLOAT;
    return 0;
}

int32_t AlignedAttentionPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
    nvinfer1::IExprBuilder& builder) noexcept {
    if (!check_counts("getOutputShapes", input_count, output_count)) return -1;
    if (inputs[kQkv].nbDims != 3 || inputs[kKeyMask].nbDims != 2) {
        log_error("%s: qkv has %d dimensions and key_mask %d. They have to be [B, L, 3C] and [B, L]. Export the model "
                  "again.",
            kName, inputs[kQkv].nbDims, inputs[kKeyMask].nbDims);
        return -1;
    }
    auto const* const one = builder.constant(1);
    auto const* const three = builder.constant(3);
    if (one == nullptr || three == nullptr) return out_of_expressions();
    auto const* const batch = inputs[kQkv].d[0];
    auto const* const length = inputs[kQkv].d[1];
    auto const* const body = builder.operation(nvinfer1::DimensionOperation::kSUB, *length, *one);
    auto const* const width = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *inputs[kQkv].d[2], *three);
    if (body == nullptr || width == nullptr) return out_of_expressions();
    outputs[kContext].nbDims = 3;
    outputs[kContext].d[0] = batch;
    outputs[kContext].d[1] = length;
    outputs[kContext].d[2] = width;
    for (int const score : {kColumnScore, kClassScore}) {
        outputs[score].nbDims = 2;
        outputs[score].d[0] = batch;
        outputs[score].d[1] = body;
    }
    return 0;
}

bool AlignedAttentionPlugin::supportsFormatCombination(int32_t position,
    nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t input_count, int32_t output_count) noexcept {
    if (!check_counts("supportsFormatCombination", input_count, output_count) || position < 0 ||
        position >= kInputs + kOutputs)
        return false;
    auto const& tensor = tensors[position].desc;
    if (position == kQkv) return is_data_type(tensor.type) && is_linear(tensor, tensor.type);
    if (position == kInputs + kContext) return is_linear(tensor, tensors[kQkv].desc.type);
    return is_linear(tensor, DataType::kFLOAT);
}

int32_t AlignedAttentionPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
    if (!check_counts("configurePlugin", input_count, output_count)) return -1;
    auto const& dims = inputs[kQkv].desc.dims;
    int64_t const triple = dims.nbDims == 3 ? dims.d[2] : 0;
    int32_t const heads = field(kHeads);
    int64_t const width = triple / 3;
    if (triple < 24 || triple % 24 != 0 || width % heads != 0 || width / heads > MADTP_MAX_HEAD_SIZE) {
        log_error("%s: qkv is %lld wide with %d heads. It has to be three times a width that is a multiple of 8 and of "
                  "the heads, with at most %d columns a head. Use --plugins none for this model.",
            kName, static_cast<long long>(triple), heads, static_cast<int>(MADTP_MAX_HEAD_SIZE));
        return -1;
    }
    return 0;
}

size_t AlignedAttentionPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) const noexcept {
    if (!check_counts("getWorkspaceSize", input_count, output_count)) return 0;
    auto const largest = shape(inputs[kQkv].max, inputs[kQkv].desc.type);
    return madtp_aligned_attention_workspace(&largest);
}

int32_t AlignedAttentionPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const*,
    void const* const* input_data, void* const* output_data, void* workspace, cudaStream_t stream) noexcept {
    if (inputs == nullptr || input_data == nullptr || output_data == nullptr) return -1;
    auto const sizes = shape(inputs[kQkv].dims, inputs[kQkv].type);
    cudaError_t const error = madtp_aligned_attention(&sizes, input_data[kQkv],
        static_cast<float const*>(input_data[kKeyMask]), output_data[kContext],
        static_cast<float*>(output_data[kColumnScore]), static_cast<float*>(output_data[kClassScore]), workspace,
        stream);
    if (error == cudaSuccess) return 0;
    log_error("%s: %s, for %d x %d tokens of width %d, %d heads, dtype %d. The kernels do not run on such sizes, or the "
              "GPU is in an error state. Keep to the profile of the engine, and look at earlier CUDA errors.",
        kName, cudaGetErrorString(error), sizes.batch, sizes.length, sizes.width, sizes.heads, sizes.dtype);
    return -1;
}

}  // namespace madtp
