#include "json.h"

#include <charconv>
#include <set>
#include <stdexcept>

namespace madtp::detail {
namespace {

constexpr int kDeepest = 64;

// As Python's repr: the shortest digits that give the number back, with an exponent below 1e-4 and from 1e16 on.
std::string python_float(double value) {
    char text[32];
    auto const end = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific).ptr;
    std::string_view const written(text, static_cast<std::size_t>(end - text));
    auto const e = written.find('e');
    std::string digits;
    for (char character : written.substr(0, e)) {
        if (character >= '0' && character <= '9') { digits += character; }
    }
    std::string const sign = written[0] == '-' ? "-" : "";
    int const exponent = std::stoi(std::string(written.substr(e + 1)));
    if (exponent < -4 || exponent >= 16) { return std::string(written); }
    if (exponent < 0) { return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits; }
    auto const whole = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() <= whole) { return sign + digits + std::string(whole - digits.size(), '0') + ".0"; }
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

void append(std::string& text, Json const& value) {
    switch (value.type()) {
    case Json::value_t::object: {
        char separator = '{';
        for (auto const& [name, entry] : value.items()) {  // sorted by UTF-8 bytes, which is by code point
            text += separator + Json(name).dump() + ":";
            append(text, entry);
            separator = ',';
        }
        text += value.empty() ? "{}" : "}";
        return;
    }
    case Json::value_t::array: {
        char separator = '[';
        for (auto const& entry : value) {
            text += separator;
            append(text, entry);
            separator = ',';
        }
        text += value.empty() ? "[]" : "]";
        return;
    }
    case Json::value_t::number_float: text += python_float(value.get<double>()); return;
    default: text += value.dump();
    }
}

// "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the bracket.
std::string readable(char const* message) {
    std::string_view text = message;
    auto const end = text.find("] ");
    return std::string(end == std::string_view::npos ? text : text.substr(end + 2)).substr(0, 300);
}

}  // namespace

Json parse_json(std::string_view text) {
    std::vector<std::set<std::string>> names;
    auto const check = [&](int depth, Json::parse_event_t event, Json& parsed) {
        if (depth > kDeepest) { throw std::runtime_error("its brackets are nested too deep"); }
        if (event == Json::parse_event_t::object_start) { names.emplace_back(); }
        if (event == Json::parse_event_t::object_end) { names.pop_back(); }
        if (event == Json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second) {
            throw std::runtime_error(
                "the name '" + parsed.get<std::string>().substr(0, 80) + "' stands twice in one object");
        }
        return true;
    };
    try {
        return Json::parse(text, check);
    } catch (Json::exception const& error) { throw std::runtime_error(readable(error.what())); }
}

std::string canonical_json(Json const& value) {
    std::string text;
    append(text, value);
    return text;
}

}  // namespace madtp::detail
