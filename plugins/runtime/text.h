// Texts of others in messages.
#pragma once

#include <string>
#include <string_view>

namespace madtp::detail {

// In quotes, and cut where it is long.
std::string in_quotes(std::string_view text);

// UTF-8 without anything that a terminal would obey rather than show: control characters but the line feed, line
// separators and directions of writing as escapes ("\x1b"), "?" for what is no UTF-8.
std::string printable(std::string_view text);

}  // namespace madtp::detail
