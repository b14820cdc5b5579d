// What all plugins do alike: capabilities, names, cloning, fields, and the creator.
#pragma once
#include <NvInferRuntime.h>

#include <array>
#include <new>

#include "common/fields.h"
#include "common/log.h"

namespace madtp {

constexpr char const* kNamespace = "madtp";
constexpr char const* kVersion = "1";  // of the op definitions (madtp/ops/spec.py), not of the library

// A 32-bit size from a dimension that TensorRT gives as 64 bits; zero where it is unknown (-1) or does not fit.
inline int32_t size_of(int64_t dimension) noexcept {
    return dimension < 0 || dimension > INT32_MAX ? 0 : static_cast<int32_t>(dimension);
}

// The base of a plugin. `Plugin` has: kName, kFields (an array of FieldSpec), a constructor from their values, and the
// rest of the IPluginV3OneBuild and IPluginV3OneRuntime interfaces.
template <typename Plugin, size_t field_count>
class PluginBase : public nvinfer1::IPluginV3,
                   public nvinfer1::IPluginV3OneCore,
                   public nvinfer1::IPluginV3OneBuild,
                   public nvinfer1::IPluginV3OneRuntime {
public:
    using Values = std::array<int32_t, field_count>;

    explicit PluginBase(Values const& values) noexcept : fields_(Plugin::kFields, values) {}

    // Whether fields within their ranges make a plugin; what does not is logged.
    static bool accepts(Values const&) noexcept { return true; }

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(fields_.values()); }

    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return Plugin::kName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    // A plugin keeps nothing between calls: what enqueue needs it reads from the descriptions that it is given.
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const*, int32_t, nvinfer1::PluginTensorDesc const*,
        int32_t) noexcept override {
        return 0;
    }
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return fields_.collection(); }

protected:
    int32_t field(size_t index) const noexcept { return fields_[index]; }
    float float_field(size_t index) const noexcept { return fields_.as_float(index); }

private:
    FieldValues<field_count> fields_;
};

template <typename Plugin>
class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    Creator() noexcept = default;
    Creator(char const* version, char const* name_space) noexcept : version_(version), namespace_(name_space) {}

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const*, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase) noexcept override {
        typename Plugin::Values values{};
        if (!read_fields(Plugin::kName, fields, Plugin::kFields.data(), values.size(), values.data())) return nullptr;
        if (!Plugin::accepts(values)) return nullptr;
        auto* const plugin = new (std::nothrow) Plugin(values);
        if (plugin == nullptr)
            log_error("%s: out of host memory. The plugin object could not be made. Free memory and try again.",
                Plugin::kName);
        return plugin;
    }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return names_.collection(); }
    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return Plugin::kName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return version_; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return namespace_; }

private:
    char const* version_ = kVersion;
    char const* namespace_ = kNamespace;
    FieldValues<Plugin::kFields.size()> names_{Plugin::kFields, {}};
};

// kLINEAR in every plugin: neither kernel has a use for vectorised formats.
inline bool is_linear(nvinfer1::PluginTensorDesc const& tensor, nvinfer1::DataType type) noexcept {
    return tensor.type == type && tensor.format == nvinfer1::TensorFormat::kLINEAR;
}

inline bool is_data_type(nvinfer1::DataType type) noexcept {
    return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF ||
        type == nvinfer1::DataType::kBF16;
}

// A type as messages call it.
inline char const* type_name(nvinfer1::DataType type) noexcept {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return "float32";
        case nvinfer1::DataType::kHALF: return "float16";
        case nvinfer1::DataType::kBF16: return "bfloat16";
        case nvinfer1::DataType::kINT32: return "int32";
        case nvinfer1::DataType::kINT64: return "int64";
        case nvinfer1::DataType::kBOOL: return "bool";
        default: return "another";
    }
}

}  // namespace madtp
