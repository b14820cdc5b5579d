#include "tensor.h"

#include <cstring>
#include <limits>
#include <new>

#include "part_checks.h"
#include "text.h"

namespace madtp {

std::size_t size_of(DataType type) noexcept {
    switch (type) {
    case DataType::float16: return 2;
    case DataType::int64: return 8;
    default: return 4;
    }
}

char const* name_of(DataType type) noexcept {
    switch (type) {
    case DataType::float32: return "float32";
    case DataType::float16: return "float16";
    case DataType::int32: return "int32";
    case DataType::int64: return "int64";
    }
    return "unknown";
}

std::size_t Tensor::size() const noexcept { return memory_ == nullptr ? 0 : detail::elements_of(shape_).value_or(0); }

std::size_t Tensor::bytes() const noexcept { return size() * size_of(type_); }

void Tensor::check(DataType type) const {
    if (device_ != Device::host) {
        throw Error(Code::input, "a tensor on a GPU was asked for its elements", "They are in the GPU's memory.",
            "Ask for outputs on the host, or copy them.");
    }
    if (type_ != type) {
        throw Error(Code::input, std::string("a tensor of ") + name_of(type_) + " was read as " + name_of(type));
    }
}

Tensor const& Outputs::operator[](std::string_view name) const {
    auto const found = tensors_.find(name);
    if (found == tensors_.end()) {
        throw Error(
            Code::input, "there is no output " + detail::in_quotes(name), "The manifest lists the part's outputs.");
    }
    return found->second;
}

Outputs::Map Outputs::token_counts() const {
    Map counts;
    for (auto const& [name, tensor] : tensors_) {
        std::string_view const view = name;
        if (view != detail::kOverflow && detail::stays_on_host(view)) {
            counts.emplace(view.substr(0, view.size() - detail::kCounts.size()), tensor);
        }
    }
    return counts;
}

namespace detail {

std::optional<std::size_t> elements_of(Shape const& shape) noexcept {
    bool empty = false;
    std::size_t count = 1;
    for (int64_t size : shape) {
        if (size < 0) { return std::nullopt; }
        empty = empty || size == 0;
        // Signed, so that differences of pointers into it can be told.
        if (size != 0 && __builtin_mul_overflow(count, static_cast<std::size_t>(size), &count)) { return std::nullopt; }
        if (count > std::numeric_limits<std::size_t>::max() / 16) { return std::nullopt; }
    }
    return empty ? 0 : count;
}

std::string shown(Shape const& shape) {
    std::string text = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) { text += (i == 0 ? "" : ", ") + std::to_string(shape[i]); }
    return text + "]";
}

Tensor host_tensor(DataType type, Shape shape) {
    std::optional<std::size_t> const count = elements_of(shape);
    void* memory = nullptr;
    if (count) { memory = ::operator new(*count * size_of(type) + 1, std::nothrow); }
    if (memory == nullptr) {
        throw Error(Code::memory, "there is no memory for a tensor of shape " + shown(shape),
            "The host's memory is short.", "Ask with smaller batches.");
    }
    return {std::shared_ptr<void>(memory, [](void* given) { ::operator delete(given); }), type, std::move(shape)};
}

float half_to_float(uint16_t half) noexcept {
    uint32_t const sign = uint32_t{half & 0x8000u} << 16;
    uint32_t const exponent = half >> 10 & 0x1f;
    uint32_t mantissa = half & 0x3ffu;
    uint32_t bits = sign;
    if (exponent == 0x1f) {
        bits |= 0x7f800000u | mantissa << 13;
    } else if (exponent != 0) {
        bits |= (exponent + 112) << 23 | mantissa << 13;
    } else if (mantissa != 0) {  // subnormal: normalise
        uint32_t shifted = 113;
        while ((mantissa & 0x400u) == 0) { mantissa <<= 1, --shifted; }
        bits |= shifted << 23 | (mantissa & 0x3ffu) << 13;
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t float_to_half(float value) noexcept {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    uint32_t const sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { return static_cast<uint16_t>(sign | 0x7e00u); }   // NaN
    if (magnitude >= 0x477ff000u) { return static_cast<uint16_t>(sign | 0x7c00u); }  // rounds to infinity
    uint32_t const exponent = magnitude >> 23;
    if (exponent >= 113) {
        uint32_t const shifted = magnitude - (112u << 23);
        return static_cast<uint16_t>(sign | ((shifted + 0xfffu + (shifted >> 13 & 1u)) >> 13));
    }
    if (exponent < 102) { return static_cast<uint16_t>(sign); }
    uint32_t const mantissa = (magnitude & 0x7fffffu) | 0x800000u, shift = 126 - exponent;
    uint32_t const half = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), middle = 1u << (shift - 1);
    return static_cast<uint16_t>(sign | (half + (rest > middle || (rest == middle && (half & 1u)) ? 1 : 0)));
}

}  // namespace detail
}  // namespace madtp
