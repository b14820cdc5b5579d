#include "text.h"

#include <cstdint>
#include <cstdio>

namespace madtp::detail {
namespace {

constexpr std::size_t kLongest = 200;

bool is_hidden(uint32_t sign) {
    return (sign < 0x20 && sign != '\n') || (sign >= 0x7f && sign <= 0x9f) || sign == 0x61c || sign == 0x200e ||
           sign == 0x200f || (sign >= 0x2028 && sign <= 0x202e) || (sign >= 0x2066 && sign <= 0x2069) ||
           sign == 0xfffe || sign == 0xffff;
}

// Bytes of the UTF-8 sequence that `text` begins with, and its sign; 0 where it is none.
std::size_t read_sign(std::string_view text, uint32_t& sign) {
    auto const byte = [&](std::size_t at) { return static_cast<uint8_t>(text[at]); };
    std::size_t const size = byte(0) < 0x80       ? 1
                             : byte(0) >> 5 == 6  ? 2
                             : byte(0) >> 4 == 14 ? 3
                             : byte(0) >> 3 == 30 ? 4
                                                  : 0;
    if (size == 0 || text.size() < size) { return 0; }
    sign = size == 1 ? byte(0) : byte(0) & (0x7fu >> size);
    for (std::size_t i = 1; i < size; ++i) {
        if (byte(i) >> 6 != 2) { return 0; }
        sign = sign << 6 | (byte(i) & 0x3fu);
    }
    constexpr uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};  // a longer sequence than a sign needs is none
    bool const is_surrogate = sign >= 0xd800 && sign <= 0xdfff;
    return sign < least[size] || sign > 0x10ffff || is_surrogate ? 0 : size;
}

}  // namespace

std::string in_quotes(std::string_view text) {
    return "'" + std::string(text.substr(0, kLongest)) + (text.size() > kLongest ? "...'" : "'");
}

std::string printable(std::string_view text) {
    std::string shown;
    while (!text.empty()) {
        uint32_t sign = 0;
        std::size_t const size = read_sign(text, sign);
        if (size == 0) {
            shown += '?';
        } else if (is_hidden(sign)) {
            char escape[8];
            std::snprintf(escape, sizeof escape, sign < 0x100 ? "\\x%02x" : "\\u%04x", sign);
            shown += escape;
        } else {
            shown += text.substr(0, size);
        }
        text.remove_prefix(size == 0 ? 1 : size);
    }
    return shown;
}

}  // namespace madtp::detail
