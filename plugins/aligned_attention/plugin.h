// AlignedAttention as a TensorRT plugin. See README.md.
#pragma once
#include "common/plugin.h"
#include "madtp/kernels.h"

namespace madtp {

class AlignedAttentionPlugin final : public PluginBase<AlignedAttentionPlugin, 2> {
public:
    static constexpr char const* kName = "AlignedAttention";
    static constexpr std::array<FieldSpec, 2> kFields{{{"causal", 0, 1, true}, {"heads", 1, MADTP_MAX_BATCH, true}}};

    using PluginBase::PluginBase;

    int32_t getNbOutputs() const noexcept override { return kOutputs; }
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, nvinfer1::DataType const* inputs,
        int32_t input_count) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count, nvinfer1::DimsExprs const*,
        int32_t shape_input_count, nvinfer1::DimsExprs* outputs, int32_t output_count,
        nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
        int32_t input_count, int32_t output_count) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) const noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs,
        void const* const* input_data, void* const* output_data, void* workspace,
        cudaStream_t stream) noexcept override;

private:
    enum Field { kCausal, kHeads };
    enum Input { kQkv, kKeyMask, kInputs };
    enum Output { kContext, kColumnScore, kClassScore, kOutputs };

    bool check_counts(char const* where, int32_t input_count, int32_t output_count) const noexcept;
    MadtpAttentionShape shape(nvinfer1::Dims const& qkv, nvinfer1::DataType type) const noexcept;
};

}  // namespace madtp
