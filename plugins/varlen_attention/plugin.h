// VarlenAttention as a TensorRT plugin. See README.md.
#pragma once
#include "common/table_plugin.h"

namespace madtp {

class VarlenAttentionPlugin final : public TablePlugin<VarlenAttentionPlugin, 1> {
public:
    static constexpr char const* kName = "VarlenAttention";
    static constexpr std::array<FieldSpec, 1> kFields{{{"heads", 1, MADTP_MAX_BATCH, true}}};
    static constexpr std::array<TensorSpec, 4> kInputs{
        {engine_tensor(2), engine_tensor(2), {1, nvinfer1::DataType::kINT32}, {1, nvinfer1::DataType::kINT32}}};
    static constexpr std::array<TensorSpec, 1> kOutputs{{engine_tensor(2)}};

    using TablePlugin::TablePlugin;

    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count, nvinfer1::DimsExprs const*,
        int32_t shape_input_count, nvinfer1::DimsExprs* outputs, int32_t output_count,
        nvinfer1::IExprBuilder& builder) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) const noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs,
        void const* const* input_data, void* const* output_data, void* workspace,
        cudaStream_t stream) noexcept override;

private:
    enum Field { kHeads };
    enum Input { kQuery, kKeyValue, kCuSeqlens, kCuKeys };
};

}  // namespace madtp
