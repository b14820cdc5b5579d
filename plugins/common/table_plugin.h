// A plugin whose inputs and outputs are two tables: their number, types and ranks are checked alike.
#pragma once
#include "common/dtype.h"
#include "common/plugin.h"

namespace madtp {

struct TensorSpec {
    int32_t rank;
    nvinfer1::DataType type;
    bool engine = false;  // of the type that the engine computes in, which is that of input 0
};

constexpr TensorSpec engine_tensor(int32_t rank) { return {rank, nvinfer1::DataType::kFLOAT, true}; }

// `Plugin` has kInputs and kOutputs, arrays of TensorSpec, and what PluginBase asks for otherwise.
template <typename Plugin, size_t field_count>
class TablePlugin : public PluginBase<Plugin, field_count> {
public:
    using PluginBase<Plugin, field_count>::PluginBase;

    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(Plugin::kOutputs.size()); }

    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, nvinfer1::DataType const* inputs,
        int32_t input_count) const noexcept override {
        if (!check_counts("getOutputDataTypes", input_count, output_count)) return -1;
        for (size_t input = 0; input < Plugin::kInputs.size(); ++input) {
            if (is_type(Plugin::kInputs[input], inputs[input], inputs[0])) continue;
            log_error("%s: input %d is of type %s. It has to be %s. Export the model again.", Plugin::kName,
                static_cast<int>(input), type_name(inputs[input]), wanted_type(input, inputs[0]));
            return -1;
        }
        for (size_t output = 0; output < Plugin::kOutputs.size(); ++output)
            outputs[output] = Plugin::kOutputs[output].engine ? inputs[0] : Plugin::kOutputs[output].type;
        return 0;
    }

    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
        int32_t input_count, int32_t output_count) noexcept override {
        if (!check_counts("supportsFormatCombination", input_count, output_count)) return false;
        if (position < 0 || position >= input_count + output_count) return false;
        TensorSpec const& spec = position < input_count
            ? Plugin::kInputs[static_cast<size_t>(position)]
            : Plugin::kOutputs[static_cast<size_t>(position - input_count)];
        auto const& tensor = tensors[position].desc;
        return is_type(spec, tensor.type, tensors[0].desc.type) && is_linear(tensor, tensor.type);
    }

protected:
    bool check_counts(char const* where, int32_t inputs, int32_t outputs) const noexcept {
        constexpr auto kInputs = static_cast<int32_t>(Plugin::kInputs.size());
        constexpr auto kOutputs = static_cast<int32_t>(Plugin::kOutputs.size());
        if (inputs == kInputs && outputs == kOutputs) return true;
        log_error("%s: %s with %d inputs and %d outputs. It has %d and %d. Export the model again with this version.",
            Plugin::kName, where, inputs, outputs, kInputs, kOutputs);
        return false;
    }

    bool check_ranks(nvinfer1::DimsExprs const* inputs) const noexcept {
        for (size_t input = 0; input < Plugin::kInputs.size(); ++input) {
            if (inputs[input].nbDims == Plugin::kInputs[input].rank) continue;
            log_error("%s: input %d has %d dimensions. It has to have %d. Export the model again.", Plugin::kName,
                static_cast<int>(input), inputs[input].nbDims, Plugin::kInputs[input].rank);
            return false;
        }
        return true;
    }

    static int32_t out_of_expressions() noexcept {
        log_error("%s: TensorRT made no expression for an output's shape. It may be out of memory. Free memory and try "
                  "again.",
            Plugin::kName);
        return -1;
    }

private:
    static bool is_type(TensorSpec const& spec, nvinfer1::DataType type, nvinfer1::DataType engine) noexcept {
        return spec.engine ? type == engine && is_data_type(type) : type == spec.type;
    }
    static char const* wanted_type(size_t input, nvinfer1::DataType engine) noexcept {
        if (!Plugin::kInputs[input].engine) return type_name(Plugin::kInputs[input].type);
        return input == 0 ? "float32, float16 or bfloat16" : type_name(engine);
    }
};

}  // namespace madtp
