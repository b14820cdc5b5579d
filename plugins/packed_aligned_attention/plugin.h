// PackedAlignedAttention as a TensorRT plugin. See README.md.
#pragma once
#include "common/table_plugin.h"

namespace madtp {

class PackedAlignedAttentionPlugin final : public TablePlugin<PackedAlignedAttentionPlugin, 2> {
public:
    static constexpr char const* kName = "PackedAlignedAttention";
    static constexpr std::array<FieldSpec, 2> kFields{{{"causal", 0, 1, true}, {"heads", 1, MADTP_MAX_BATCH, true}}};
    static constexpr std::array<TensorSpec, 3> kInputs{
        {engine_tensor(2), {1, nvinfer1::DataType::kFLOAT}, {1, nvinfer1::DataType::kINT32}}};
    static constexpr std::array<TensorSpec, 3> kOutputs{
        {engine_tensor(2), {1, nvinfer1::DataType::kFLOAT}, {1, nvinfer1::DataType::kFLOAT}}};

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
    enum Field { kCausal, kHeads };
    enum Input { kQkv, kKeyMask, kCuSeqlens };
    enum Output { kContext, kColumnScore, kClassScore };

    MadtpPackedAttentionShape shape(
        nvinfer1::Dims const& qkv, nvinfer1::Dims const& cu_seqlens, nvinfer1::DataType type) const noexcept;
};

}  // namespace madtp
