#include "part_checks.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "tensor.h"
#include "text.h"

namespace madtp::detail {
namespace {

std::string listed(std::vector<std::string> const& names) {
    std::string text;
    for (std::string const& name : names) { text += (text.empty() ? "" : ", ") + name; }
    return text.empty() ? "none" : text.substr(0, 300);
}

void check_names(PartInfo const& part, Inputs const& inputs) {
    std::vector<std::string> wanted, given;
    for (TensorInfo const& info : part.inputs) {
        if (info.name != kTemperature) { wanted.push_back(info.name); }
    }
    for (auto const& [name, view] : inputs) { given.push_back(name); }
    std::sort(wanted.begin(), wanted.end());
    if (wanted != given) {
        throw Error(Code::input, "the inputs of part " + part.name + " are " + listed(given),
            "It takes " + listed(wanted) + ".", "Give these; the temperature is an option of the call.");
    }
}

bool has_type(TensorView const& view, DataType type) {
    return view.type == type ||
           (view.type == DataType::float32 && type == DataType::float16 && view.device == Device::host);
}

bool fits(TensorInfo const& info, Profile const& profile, Shape const& shape, int64_t most) {
    if (shape.size() != info.shape.size()) { return false; }
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        bool const is_batch = batches_in(info.shape[axis]) == 1;
        int64_t const least = is_batch ? 1 : profile.min[axis];
        if (shape[axis] < least || shape[axis] > (is_batch ? most : profile.max[axis])) { return false; }
    }
    return true;
}

void check_input(TensorInfo const& info, Profile const& profile, TensorView const& view, int64_t most) {
    std::string const name = "input " + in_quotes(info.name);
    int const type = static_cast<int>(view.type), device = static_cast<int>(view.device);
    if (type < 0 || type > 3 || device < 0 || device > 1) {
        throw Error(
            Code::input, name + " has a type or device that is none", {}, "Use the values of DataType and Device.");
    }
    if (!has_type(view, info.type)) {
        throw Error(Code::input, name + " is " + name_of(view.type),
            std::string("The artifact takes ") + name_of(info.type) + ".");
    }
    if (!fits(info, profile, view.shape, most)) {
        Shape least = profile.min, largest = profile.max;
        for (std::size_t axis = 0; axis < least.size(); ++axis) {
            if (batches_in(info.shape[axis]) == 1) { least[axis] = 1, largest[axis] = most; }
        }
        throw Error(Code::input, name + " has shape " + shown(view.shape),
            "The artifact was built for " + shown(least) + " to " + shown(largest) + ".",
            "Send a batch of that size, or export again with another --batch or --text.");
    }
    std::optional<std::size_t> const count = elements_of(view.shape);
    if (!count) { throw Error(Code::input, name + " has shape " + shown(view.shape), "No memory can hold that."); }
    if (view.data == nullptr && *count > 0) { throw Error(Code::input, name + " has no data", "Its pointer is null."); }
}

// One symbol is one size: ONNX Runtime would fail somewhere within.
int64_t common_size(PartInfo const& part, Inputs const& inputs, std::string const& symbol) {
    int64_t size = -1;
    for (TensorInfo const& info : part.inputs) {
        for (std::size_t axis = 0; axis < info.shape.size(); ++axis) {
            if (info.shape[axis].symbol != symbol) { continue; }
            int64_t const given = inputs.find(info.name)->second.shape[axis];
            if (size >= 0 && given != size) {
                throw Error(Code::input,
                    "input " + in_quotes(info.name) + " has " + std::to_string(given) + " in the place of its " +
                        symbol + ", another input " + std::to_string(size),
                    "All have to agree.");
            }
            size = given;
        }
    }
    return size;
}

std::string shown_expected(TensorInfo const& info) {
    std::string text = "[";
    for (std::size_t i = 0; i < info.shape.size(); ++i) {
        Dimension const& size = info.shape[i];
        text += (i == 0 ? "" : ", ") + (size.size < 0 ? size.symbol : std::to_string(size.size));
    }
    return text + "]";
}

}  // namespace

bool stays_on_host(std::string_view output) noexcept {
    return output == kOverflow ||
           (output.size() >= kCounts.size() && output.substr(output.size() - kCounts.size()) == kCounts);
}

int64_t batches_in(Dimension const& dimension) noexcept {
    if (dimension.size >= 0) { return 0; }
    if (dimension.symbol == "batch") { return 1; }
    char* end = nullptr;
    long const count = std::strtol(dimension.symbol.c_str(), &end, 10);
    return count > 0 && count < 1000 && std::string_view(end) == "*batch" ? count : 0;
}

int64_t check_inputs(PartInfo const& part, Inputs const& inputs, int64_t most) {
    check_names(part, inputs);
    for (TensorInfo const& info : part.inputs) {
        if (info.name == kTemperature) { continue; }
        auto const profile = part.profile.find(info.name);
        Profile fixed;
        if (profile == part.profile.end()) {
            for (Dimension const& size : info.shape) { fixed.min.push_back(size.size); }
            fixed.opt = fixed.max = fixed.min;
        }
        check_input(
            info, profile == part.profile.end() ? fixed : profile->second, inputs.find(info.name)->second, most);
    }
    common_size(part, inputs, "text");
    return common_size(part, inputs, "batch");
}

void check_outputs(PartInfo const& part, Outputs::Map const& outputs, int64_t rows) {
    char const* const fix = "Artifact and manifest do not belong together; export again.";
    for (TensorInfo const& info : part.outputs) {
        auto const found = outputs.find(info.name);
        if (found == outputs.end()) {
            throw Error(
                Code::backend, "the artifact gives no output " + in_quotes(info.name), "Its manifest lists it.", fix);
        }
        Tensor const& value = found->second;
        bool fits = value.type() == info.type && value.shape().size() == info.shape.size();
        for (std::size_t axis = 0; fits && axis < info.shape.size(); ++axis) {
            int64_t const batches = batches_in(info.shape[axis]), fixed = info.shape[axis].size;
            int64_t const size = value.shape()[axis];
            fits = fixed >= 0 ? size == fixed : batches > 0 ? size == batches * rows : size >= 0;
        }
        if (!fits) {
            throw Error(Code::backend,
                "the artifact's output " + in_quotes(info.name) + " is " + name_of(value.type()) + " " +
                    shown(value.shape()) + " for a batch of " + std::to_string(rows),
                std::string("Its manifest lists ") + name_of(info.type) + " " + shown_expected(info) + ".", fix);
        }
    }
}

void check_finite(PartInfo const& part, Outputs::Map const& outputs, float temperature) {
    for (auto const& [name, value] : outputs) {
        if (value.type() != DataType::float32 || value.device() != Device::host) { continue; }
        float const* const numbers = value.as<float>();
        // A sum of magnitudes would overflow; the difference of a number to itself tells what is not finite.
        bool const finite =
            std::all_of(numbers, numbers + value.size(), [](float number) { return number - number == 0; });
        if (!finite) {
            char shown[32];
            std::snprintf(shown, sizeof shown, "%g", static_cast<double>(temperature));
            throw Error(Code::backend,
                "the artifact's output " + in_quotes(name) + " of part " + part.name + " is not finite (temperature " +
                    shown + ")",
                "Answers made of it would be wrong. An input may hold numbers that are not finite.",
                "Compare the artifact with its checkpoint: python -m export validate.");
        }
    }
}

void check_temperature(float temperature) {
    if (!std::isfinite(temperature) || temperature < 0) {
        throw Error(Code::input, "the temperature is " + std::to_string(temperature),
            "It must be a finite number, zero or more.", "Use 0 for the dense model.");
    }
}

}  // namespace madtp::detail
