// Texts of anyone in messages.
#pragma once
#include <string>
#include <string_view>

namespace madtp {

// The beginning of a text in quotes. Control characters and bytes that are not ASCII become escapes: a message may reach
// a terminal.
inline std::string shown(std::string_view text) {
    constexpr std::size_t kMost = 56;
    std::string result = "'";
    for (unsigned char c : text.substr(0, kMost)) {
        constexpr char kDigits[] = "0123456789abcdef";
        if (c >= ' ' && c < 0x7f) {
            result += static_cast<char>(c);
        } else {
            result += {'\\', 'x', kDigits[c >> 4], kDigits[c & 15]};
        }
    }
    return result + (text.size() > kMost ? "...'" : "'");
}

}  // namespace madtp
