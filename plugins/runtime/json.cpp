#include "json.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "files.h"
#include "text.h"

namespace madtp::detail {
namespace {

using Json = nlohmann::json;

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

void append(std::string& text, Json const& value, std::string const& but) {
    switch (value.type()) {
    case Json::value_t::object: {
        text += '{';
        char const* separator = "";
        for (auto const& [name, entry] : value.items()) {  // sorted by UTF-8 bytes, which is by code point
            if (!but.empty() && name == but) { continue; }
            text += separator + Json(name).dump() + ":";
            append(text, entry, {});
            separator = ",";
        }
        text += '}';
        return;
    }
    case Json::value_t::array: {
        text += '[';
        char const* separator = "";
        for (auto const& entry : value) {
            text += separator;
            append(text, entry, {});
            separator = ",";
        }
        text += ']';
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

// Refuses, while a text is read, what is nested too deep and names that stand twice.
class Strict {
public:
    bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
        if (depth > kDeepest) { throw std::runtime_error("Its brackets are nested too deep."); }
        if (event == Json::parse_event_t::object_start) { names_.emplace_back(); }
        if (event == Json::parse_event_t::object_end) { names_.pop_back(); }
        if (event == Json::parse_event_t::key && !names_.back().insert(parsed.get<std::string>()).second) {
            throw std::runtime_error(
                "The name " + in_quotes(parsed.get<std::string>()) + " stands twice in one object.");
        }
        return true;
    }

private:
    std::vector<std::set<std::string>> names_;  // of the objects that are open
};

}  // namespace

Field Field::parse(std::string_view text) {
    Strict strict;
    try {
        return {std::make_shared<Json const>(Json::parse(text, std::ref(strict))), "$"};
    } catch (Json::exception const& error) { throw std::runtime_error(readable(error.what())); }
}

Field Field::inner(Json const& value, std::string const& place) const {
    return {std::shared_ptr<Json const>(value_, &value), place_ + place};
}

void Field::fail(std::string const& why) const { throw std::runtime_error("At " + place_ + ": " + why + "."); }

Field Field::operator[](char const* name) const {
    if (!value_->is_object()) { fail("it is no object"); }
    auto const found = value_->find(name);
    if (found == value_->end()) { fail(std::string("'") + name + "' is missing"); }
    return inner(*found, std::string(".") + name);
}

std::optional<Field> Field::find(char const* name) const {
    auto const found = value_->is_object() ? value_->find(name) : value_->end();
    if (found == value_->end() || found->is_null()) { return std::nullopt; }
    return inner(*found, std::string(".") + name);
}

std::vector<Field> Field::entries(std::size_t most) const {
    if (!value_->is_array()) { fail("it is no list"); }
    if (value_->size() > most) { fail("it has more than " + std::to_string(most) + " entries"); }
    std::vector<Field> found;
    for (std::size_t i = 0; i < value_->size(); ++i) {
        found.push_back(inner((*value_)[i], "[" + std::to_string(i) + "]"));
    }
    return found;
}

std::vector<std::pair<std::string, Field>> Field::members(std::size_t most) const {
    if (!value_->is_object()) { fail("it is no object"); }
    if (value_->size() > most) { fail("it has more than " + std::to_string(most) + " members"); }
    std::vector<std::pair<std::string, Field>> found;
    for (auto const& [name, entry] : value_->items()) { found.emplace_back(name, inner(entry, "." + name)); }
    return found;
}

bool Field::is_text() const noexcept { return value_->is_string(); }

bool Field::is_number() const noexcept { return value_->is_number(); }

std::string Field::text() const {
    if (!value_->is_string()) { fail("it is no text"); }
    return value_->get<std::string>();
}

std::string Field::text_of(std::vector<std::string> const& choices) const {
    std::string given = text();
    if (std::find(choices.begin(), choices.end(), given) == choices.end()) {
        std::string known;
        for (std::string const& choice : choices) { known += (known.empty() ? "" : ", ") + choice; }
        fail(in_quotes(given) + " is none of " + known);
    }
    return given;
}

std::string Field::file_name() const {
    std::string given = text();
    if (!is_bare_name(given)) {
        fail(in_quotes(given) + " is not a bare file name, and files lie beside their manifest");
    }
    return given;
}

std::string Field::sha256() const {
    std::string given = text();
    if (given.size() != 64 || given.find_first_not_of("0123456789abcdef") != std::string::npos) {
        fail(in_quotes(given) + " is no sha256");
    }
    return given;
}

bool Field::flag() const {
    if (!value_->is_boolean()) { fail("it is neither true nor false"); }
    return value_->get<bool>();
}

int64_t Field::whole(int64_t least, int64_t most) const {
    // An unsigned number beyond int64 would come out negative.
    bool const fits = value_->is_number_integer() &&
                      (!value_->is_number_unsigned() || value_->get<uint64_t>() <= uint64_t{INT64_MAX});
    if (!fits || value_->get<int64_t>() < least || value_->get<int64_t>() > most) {
        fail("it has to be a whole number from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value_->get<int64_t>();
}

double Field::number(double least, double most) const {
    if (!value_->is_number() || !(value_->get<double>() >= least && value_->get<double>() <= most)) {
        fail("it has to be a number within its limits");
    }
    return value_->get<double>();
}

std::string Field::canonical(std::string const& but) const {
    std::string text;
    append(text, *value_, but);
    return text;
}

}  // namespace madtp::detail
