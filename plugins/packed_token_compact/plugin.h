// PackedTokenCompact as a TensorRT plugin. See README.md.
#pragma once
#include "common/table_plugin.h"

namespace madtp {

class PackedTokenCompactPlugin final : public TablePlugin<PackedTokenCompactPlugin, 4> {
public:
    static constexpr char const* kName = "PackedTokenCompact";
    static constexpr std::array<FieldSpec, 4> kFields{
        {{"capacity", -1, MADTP_MAX_ROWS, true}, {"group", 1, MADTP_MAX_BATCH, true}, {"layer", 0, 65535, true},
            {"keep_margin", 0, 1, false, nvinfer1::PluginFieldType::kFLOAT32}}};
    static constexpr std::array<TensorSpec, 9> kInputs{
        {engine_tensor(2), {1, nvinfer1::DataType::kFLOAT}, {1, nvinfer1::DataType::kINT32},
            {1, nvinfer1::DataType::kFLOAT}, {1, nvinfer1::DataType::kFLOAT}, {2, nvinfer1::DataType::kFLOAT},
            {1, nvinfer1::DataType::kINT32}, {0, nvinfer1::DataType::kFLOAT}, {1, nvinfer1::DataType::kINT64}}};
    static constexpr std::array<TensorSpec, 5> kOutputs{
        {engine_tensor(2), {1, nvinfer1::DataType::kFLOAT}, {1, nvinfer1::DataType::kINT32},
            {1, nvinfer1::DataType::kINT32}, {0, nvinfer1::DataType::kINT64}}};

    using TablePlugin::TablePlugin;

    // A plan has no sizes that depend on data: the capacity is one, or -1, as many rows as came in.
    static bool accepts(Values const& values) noexcept;

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
    enum Field { kCapacity, kGroup, kLayer, kKeepMargin };
    enum Input {
        kTokens,
        kKeyMask,
        kSourceIds,
        kColumnScore,
        kClassScore,
        kAlignment,
        kCuSeqlens,
        kTemperature,
        kMinKeep
    };
    enum Output { kCompacted, kCompactedMask, kCompactedIds, kCompactedCuSeqlens, kCount };

    MadtpPackedCompactShape shape(nvinfer1::Dims const& tokens, nvinfer1::Dims const& alignment,
        nvinfer1::Dims const& cu_seqlens, nvinfer1::DataType type) const noexcept;
};

}  // namespace madtp
