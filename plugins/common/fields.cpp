#include "common/fields.h"

namespace madtp {
namespace {

// A foreign string as it may be printed: its beginning, with anything but printable ASCII as question marks.
struct Printable {
    char text[61];

    explicit Printable(char const* foreign) noexcept {
        size_t length = 0;
        for (; foreign[length] != '\0' && length + 1 < sizeof text; ++length)
            text[length] = foreign[length] >= ' ' && foreign[length] <= '~' ? foreign[length] : '?';
        text[length] = '\0';
    }
};

FieldSpec const* find(FieldSpec const* specs, size_t count, char const* name) noexcept {
    for (size_t index = 0; index < count; ++index)
        if (std::strcmp(specs[index].name, name) == 0) return &specs[index];
    return nullptr;
}

bool is_float(FieldSpec const& spec) noexcept { return spec.type == nvinfer1::PluginFieldType::kFLOAT32; }

// Neither NaN nor infinity is.
bool in_range(FieldSpec const& spec, int32_t value) noexcept {
    if (!is_float(spec)) return value >= spec.smallest && value <= spec.largest;
    float const number = float_of(value);
    return number >= static_cast<float>(spec.smallest) && number <= static_cast<float>(spec.largest);
}

}  // namespace

bool read_fields(char const* plugin, nvinfer1::PluginFieldCollection const* fields, FieldSpec const* specs,
    size_t count, int32_t* values) noexcept {
    if (fields == nullptr || fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
        log_error("%s: no field collection. The creator needs its fields. Export the model again.", plugin);
        return false;
    }
    uint64_t seen = 0;  // a bit for each spec
    for (size_t index = 0; index < count; ++index) values[index] = 0;
    for (int32_t index = 0; index < fields->nbFields; ++index) {
        nvinfer1::PluginField const& field = fields->fields[index];
        char const* const name = field.name == nullptr ? "" : field.name;
        FieldSpec const* const spec = find(specs, count, name);
        if (spec == nullptr) {
            log_error("%s: unknown field '%s'. This version of the plugin has no such field. Use the plugin library "
                      "that the model was exported with.",
                plugin, Printable(name).text);
            return false;
        }
        if (field.type != spec->type || field.length != 1 || field.data == nullptr) {
            log_error("%s: field '%s' has type %d and length %d. It has to be one %s (type %d, length 1). Export the "
                      "model again.",
                plugin, name, static_cast<int>(field.type), static_cast<int>(field.length),
                is_float(*spec) ? "float32" : "int32", static_cast<int>(spec->type));
            return false;
        }
        auto const position = static_cast<size_t>(spec - specs);
        if ((seen >> position & 1) != 0) {
            log_error("%s: field '%s' is given twice. One value has to be meant. Export the model again.", plugin, name);
            return false;
        }
        seen |= uint64_t{1} << position;
        int32_t value;
        std::memcpy(&value, field.data, sizeof value);
        if (!in_range(*spec, value)) {
            log_error("%s: field '%s' is %.10g. It has to be %d to %d. Export the model again.", plugin, name,
                is_float(*spec) ? static_cast<double>(float_of(value)) : static_cast<double>(value), spec->smallest,
                spec->largest);
            return false;
        }
        values[position] = value;
    }
    for (size_t index = 0; index < count; ++index) {
        if (specs[index].required && (seen >> index & 1) == 0) {
            log_error("%s: field '%s' is missing. The plugin cannot guess it. Export the model again.", plugin,
                specs[index].name);
            return false;
        }
    }
    return true;
}

}  // namespace madtp
