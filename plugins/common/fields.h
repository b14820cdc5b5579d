// The fields of a plugin: 32-bit integers or floats with a name and a range. TensorRT hands them to the creator when a network is
// built (from the ONNX node's attributes) and again when a plan is loaded (as they were serialised).
#pragma once
#include <NvInferRuntime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "common/log.h"

namespace madtp {

inline float float_of(int32_t bits) noexcept {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct FieldSpec {
    char const* name;
    int32_t smallest, largest;
    bool required;  // a missing one that is not is zero
    nvinfer1::PluginFieldType type = nvinfer1::PluginFieldType::kINT32;  // or kFLOAT32
};

// False, and an error in the log, unless `fields` holds exactly what `specs` say; `values` in their order, those of floats
// as their bits.
bool read_fields(char const* plugin, nvinfer1::PluginFieldCollection const* fields, FieldSpec const* specs,
    size_t count, int32_t* values) noexcept;

// Values with the collection that TensorRT wants to see them as. Not movable: the collection points into it.
template <size_t count>
class FieldValues {
public:
    FieldValues(std::array<FieldSpec, count> const& specs, std::array<int32_t, count> const& values) noexcept
        : values_(values) {
        for (size_t index = 0; index < count; ++index)
            fields_[index] = {specs[index].name, &values_[index], specs[index].type, 1};
    }
    FieldValues(FieldValues const&) = delete;
    FieldValues& operator=(FieldValues const&) = delete;

    nvinfer1::PluginFieldCollection const* collection() const noexcept { return &collection_; }
    std::array<int32_t, count> const& values() const noexcept { return values_; }
    int32_t operator[](size_t index) const noexcept { return values_[index]; }
    float as_float(size_t index) const noexcept { return float_of(values_[index]); }

private:
    std::array<int32_t, count> values_;
    std::array<nvinfer1::PluginField, count> fields_{};
    nvinfer1::PluginFieldCollection collection_{static_cast<int32_t>(count), fields_.data()};
};

}  // namespace madtp
