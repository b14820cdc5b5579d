// JSON as the manifest's readers agree on it: strict, with the place of every value at hand, and its canonical text.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace madtp::detail {

// A value with the place where it stands, for messages. Functions throw std::runtime_error: where, and what is wrong.
class Field {
public:
    // Of a text: RFC 8259 in UTF-8, no name twice in an object, brackets at most 64 deep.
    static Field parse(std::string_view text);

    Field operator[](char const* name) const;
    std::optional<Field> find(char const* name) const;  // nothing where it is absent or null
    std::vector<Field> entries(std::size_t most) const;
    std::vector<std::pair<std::string, Field>> members(std::size_t most) const;

    bool is_text() const noexcept;
    bool is_number() const noexcept;
    std::string text() const;
    std::string text_of(std::vector<std::string> const& choices) const;
    std::string file_name() const;  // a bare one
    std::string sha256() const;
    bool flag() const;
    int64_t whole(int64_t least, int64_t most) const;
    double number(double least, double most) const;
    [[noreturn]] void fail(std::string const& why) const;

    // What `json.dumps(..., sort_keys=True, separators=(",", ":"), ensure_ascii=False)` of Python gives of it, of an
    // object without its member `but`.
    std::string canonical(std::string const& but = {}) const;

private:
    Field(std::shared_ptr<nlohmann::json const> value, std::string place)
        : value_(std::move(value)), place_(std::move(place)) {}
    Field inner(nlohmann::json const& value, std::string const& place) const;

    std::shared_ptr<nlohmann::json const> value_;  // keeps all of the text's values
    std::string place_;
};

}  // namespace madtp::detail
