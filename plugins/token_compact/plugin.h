// TokenCompact as a TensorRT plugin. See README.md.
#pragma once
#include "common/plugin.h"
#include "madtp/kernels.h"

namespace madtp {

class TokenCompactPlugin final : public PluginBase<TokenCompactPlugin, 4> {
public:
    static constexpr char const* kName = "TokenCompact";
    static constexpr int32_t kMostTokens = 1 << 24;
    static constexpr std::array<FieldSpec, 4> kFields{
        {{"layer", 0, 65535, true}, {"keep_margin", 0, 1, false, nvinfer1::PluginFieldType::kFLOAT32},
            {"opt_tokens", 0, kMostTokens, false}, {"max_tokens", 0, kMostTokens, false}}};
    // Those of a node with a margin; madtp/ops/spec.py says why.
    static constexpr char const* kMarginVersion = "2";
    static constexpr char const* kMarginNamespace = "madtp.margin";

    using PluginBase::PluginBase;

    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override {
        return has_margin() ? kMarginVersion : kVersion;
    }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override {
        return has_margin() ? kMarginNamespace : kNamespace;
    }

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
    enum Field { kLayer, kKeepMargin, kOptTokens, kMaxTokens };
    enum Input {
        kTokens,
        kKeyMask,
        kSourceIds,
        kColumnScore,
        kClassScore,
        kAlignment,
        kTemperature,
        kMinKeep,
        kInputs
    };
    enum Output { kCompacted, kCompactedMask, kCompactedIds, kCount, kOutputs };

    bool has_margin() const noexcept { return float_field(kKeepMargin) != 0.0f; }
    bool check_counts(char const* where, int32_t input_count, int32_t output_count) const noexcept;
    MadtpCompactShape shape(
        nvinfer1::Dims const& tokens, nvinfer1::Dims const& alignment, nvinfer1::DataType type) const noexcept;
};

}  // namespace madtp
