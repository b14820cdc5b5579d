#include "token_compact/plugin.h"

#include <algorithm>

#include "common/dtype.h"

namespace madtp {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;

namespace {

// Of the inputs, in their order: how many dimensions.
constexpr int32_t kRanks[] = {3, 2, 2, 2, 2, 3, 0, 0};
// And of which type they are; the first may be of any that the kernels know.
constexpr DataType kTypes[] = {DataType::kFLOAT, DataType::kFLOAT, DataType::kINT32, DataType::kFLOAT, DataType::kFLOAT,
    DataType::kFLOAT, DataType::kFLOAT, DataType::kINT64};

int32_t out_of_expressions() noexcept {
    log_error("%s: TensorRT made no expression for an output's shape. It may be out of memory. Free memory and try again.",
        TokenCompactPlugin::kName);
    return -1;
}

}  // namespace

bool TokenCompactPlugin::check_counts(char const* where, int32_t inputs, int32_t outputs) const noexcept {
    if (inputs == kInputs && outputs == kOutputs) return true;
    log_error("%s: %s with %d inputs and %d outputs. It has %d and %d. Export the model again with this version.", kName,
        where, inputs, outputs, static_cast<int>(kInputs), static_cast<int>(kOutputs));
    return false;
}

MadtpCompactShape TokenCompactPlugin::shape(
    nvinfer1::Dims const& tokens, nvinfer1::Dims const& alignment, DataType type) const noexcept {
    return {size_of(tokens.d[0]), size_of(tokens.d[1]), size_of(tokens.d[2]), size_of(alignment.d[2]), field(kLayer),
        field(kMaxTokens), kernel_dtype(type)};
}

int32_t TokenCompactPlugin::getOutputDataTypes(
    DataType* outputs, int32_t output_count, DataType const* inputs, int32_t input_count) const noexcept {
    if (!check_counts("getOutputDataTypes", input_count, output_count)) return -1;
    for (int32_t input = 0; input < kInputs; ++input) {
        if (inputs[input] == kTypes[input] || (input == kTokens && is_data_type(inputs[input]))) continue;
        log_error("%s: input %d is of type %s. It has to be %s. Export the model again.", kName, input,
            type_name(inputs[input]), input == kTokens ? "float32, float16 or bfloat16" : type_name(kTypes[input]));
        return -1;
    }
    outputs[kCompacted] = inputs[kTokens];
    outputs[kCompactedMask] = DataType::kFLOAT;
    outputs[kCompactedIds] = DataType::kINT32;
    outputs[kCount] = DataType::kINT64;
    return 0;
}

int32_t TokenCompactPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
    nvinfer1::IExprBuilder& builder) noexcept {
    if (!check_counts("getOutputShapes", input_count, output_count)) return -1;
    for (int32_t input = 0; input < kInputs; ++input) {
        if (inputs[input].nbDims == kRanks[input]) continue;
        log_error("%s: input %d has %d dimensions. It has to have %d. Export the model again.", kName, input,
            inputs[input].nbDims, kRanks[input]);
        return -1;
    }
    auto const* const batch = inputs[kTokens].d[0];
    auto const* const length = inputs[kTokens].d[1];
    // As many tokens as come in at most; the field bounds that further where a budget was set.
    auto const* most = length;
    if (field(kMaxTokens) > 0) {
        auto const* const budget = builder.constant(field(kMaxTokens));
        most = budget == nullptr ? nullptr : builder.operation(DimensionOperation::kMIN, *length, *budget);
    }
    if (most == nullptr) return out_of_expressions();
    // What TensorRT tunes the following layers for: the calibrated number, else the whole input. It must not depend on a
    // size tensor, as the length does from the second such layer on. With both numbers, which the export gives, it does not.
    auto const* usual = most;
    if (field(kOptTokens) > 0 && field(kMaxTokens) > 0) {
        usual = builder.constant(std::min(field(kOptTokens), field(kMaxTokens)));
    } else if (field(kOptTokens) > 0) {
        auto const* const calibrated = builder.constant(field(kOptTokens));
        usual = calibrated == nullptr ? nullptr : builder.operation(DimensionOperation::kMIN, *most, *calibrated);
    }
    if (usual == nullptr) return out_of_expressions();
    auto const* const count = builder.declareSizeTensor(kCount, *usual, *most);
    if (count == nullptr) return out_of_expressions();
    outputs[kCompacted].nbDims = 3;
    outputs[kCompacted].d[0] = batch;
    outputs[kCompacted].d[1] = count;
    outputs[kCompacted].d[2] = inputs[kTokens].d[2];
    for (int const output : {kCompactedMask, kCompactedIds}) {
        outputs[output].nbDims = 2;
        outputs[output].d[0] = batch;
        outputs[output].d[1] = count;
    }
    outputs[kCount].nbDims = 0;
    return 0;
}

bool TokenCompactPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
    int32_t input_count, int32_t output_count) noexcept {
    if (!check_counts("supportsFormatCombination", input_count, output_count)) return false;
    if (position < 0 || position >= kInputs + kOutputs) return false;
    auto const& tensor = tensors[position].desc;
    switch (position) {
        case kTokens: return is_data_type(tensor.type) && is_linear(tensor, tensor.type);
        case kInputs + kCompacted: return is_linear(tensor, tensors[kTokens].desc.type);
        case kSourceIds:
        case kInputs + kCompactedIds: return is_linear(tensor, DataType::kINT32);
        case kMinKeep:
        case kInputs + kCount: return is_linear(tensor, DataType::kINT64);
        default: return is_linear(tensor, DataType::kFLOAT);
    }
}

int32_t TokenCompactPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
    if (!check_counts("configurePlugin", input_count, output_count)) return -1;
    auto const& dims = inputs[kTokens].desc.dims;
    int64_t const width = dims.nbDims == 3 ? dims.d[2] : 0;
    if (width < 8 || width % 8 != 0) {
        log_error("%s: tokens are %lld wide. The kernels need a multiple of 8. Use --plugins none for this model.", kName,
            static_cast<long long>(width));
        return -1;
    }
    if (field(kMaxTokens) == 1) {
        log_error("%s: max_tokens is 1. A class token and one other are the least. Use 2 or more, or 0 for no bound.",
            kName);
        return -1;
    }
    return 0;
}

size_t TokenCompactPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) const noexcept {
    if (!check_counts("getWorkspaceSize", input_count, output_count)) return 0;
    auto const largest = shape(inputs[kTokens].max, inputs[kAlignment].max, inputs[kTokens].desc.type);
    return madtp_token_compact_workspace(&largest);
}

int32_t TokenCompactPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const*,
    void const* const* input_data, void* const* output_data, void* workspace, cudaStream_t stream) noexcept {
    if (inputs == nullptr || input_data == nullptr || output_data == nullptr) return -1;
    auto const sizes = shape(inputs[kTokens].dims, inputs[kAlignment].dims, inputs[kTokens].type);
    MadtpCompactInputs const in{input_data[kTokens], static_cast<float const*>(input_data[kKeyMask]),
        static_cast<int32_t const*>(input_data[kSourceIds]), static_cast<float const*>(input_data[kColumnScore]),
        static_cast<float const*>(input_data[kClassScore]), static_cast<float const*>(input_data[kAlignment]),
        static_cast<float const*>(input_data[kTemperature]), static_cast<int64_t const*>(input_data[kMinKeep])};
    MadtpCompactOutputs const out{output_data[kCompacted], static_cast<float*>(output_data[kCompactedMask]),
        static_cast<int32_t*>(output_data[kCompactedIds]), static_cast<int64_t*>(output_data[kCount])};
    cudaError_t const error =
        madtp_token_compact_margin(&sizes, &in, &out, float_field(kKeepMargin), workspace, stream);
    if (error == cudaSuccess) return 0;
    log_error("%s: %s, for %d x %d tokens of width %d, %d alignments, dtype %d. The kernels do not run on such sizes, or "
              "the GPU is in an error state. Keep to the profile of the engine, and look at earlier CUDA errors.",
        kName, cudaGetErrorString(error), sizes.batch, sizes.length, sizes.width, sizes.alignments, sizes.dtype);
    return -1;
}

}  // namespace madtp
