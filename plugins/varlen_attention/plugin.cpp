#include "varlen_attention/plugin.h"

namespace madtp {

int32_t VarlenAttentionPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
    nvinfer1::IExprBuilder&) noexcept {
    if (!check_counts("getOutputShapes", input_count, output_count) || !check_ranks(inputs)) return -1;
    outputs[0] = inputs[kQuery];
    return 0;
}

int32_t VarlenAttentionPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
    if (!check_counts("configurePlugin", input_count, output_count)) return -1;
    auto const &query = inputs[kQuery].desc.dims, &keys = inputs[kKeyValue].desc.dims;
    int64_t const width = query.nbDims == 2 ? query.d[1] : 0, both = keys.nbDims == 2 ? keys.d[1] : 0;
    int32_t const heads = field(kHeads);
    if (width < 8 || width % 8 != 0 || width % heads != 0 || width / heads > MADTP_MAX_HEAD_SIZE ||
        both % 2 != 0 || both / 2 != width) {
        log_error("%s: query is %lld and key_value %lld wide with %d heads. They have to be a multiple of 8 and of the "
                  "heads, with at most %d columns a head, and twice that. Use --plugins none for this model.",
            kName, static_cast<long long>(width), static_cast<long long>(both), heads,
            static_cast<int>(MADTP_MAX_HEAD_SIZE));
        return -1;
    }
    return 0;
}

// The kernels need none.
size_t VarlenAttentionPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const*, int32_t input_count,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) const noexcept {
    check_counts("getWorkspaceSize", input_count, output_count);
    return 0;
}

int32_t VarlenAttentionPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const*,
    void const* const* input_data, void* const* output_data, void*, cudaStream_t stream) noexcept {
    if (inputs == nullptr || input_data == nullptr || output_data == nullptr) return -1;
    auto const &query = inputs[kQuery].dims, &keys = inputs[kKeyValue].dims;
    MadtpVarlenShape const sizes{size_of(query.d[0]), size_of(keys.d[0]), size_of(inputs[kCuSeqlens].dims.d[0]) - 1,
        size_of(query.d[1]), field(kHeads), kernel_dtype(inputs[kQuery].type)};
    bool const fit = inputs[kCuSeqlens].dims.d[0] == inputs[kCuKeys].dims.d[0] && keys.d[1] / 2 == query.d[1];
    cudaError_t const error = fit
        ? madtp_varlen_attention(&sizes, input_data[kQuery], input_data[kKeyValue],
              static_cast<int32_t const*>(input_data[kCuSeqlens]), static_cast<int32_t const*>(input_data[kCuKeys]),
              output_data[0], stream)
        : cudaErrorInvalidValue;
    if (error == cudaSuccess) return 0;
    log_error("%s: %s, for %d rows and %d key rows of %d sequences of width %d, %d heads, dtype %d. The kernels do not run "
              "on such sizes, or the GPU is in an error state. Keep to the profile of the engine, and look at earlier "
              "CUDA errors.",
        kName, cudaGetErrorString(error), sizes.rows, sizes.key_rows, sizes.sequences, sizes.width, sizes.heads,
        sizes.dtype);
    return -1;
}

}  // namespace madtp
