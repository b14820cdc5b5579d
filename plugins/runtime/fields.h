// A value of a JSON file with the place where it stands, for messages.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "json.h"

namespace madtp::detail {

// Functions throw std::runtime_error: where, and what is wrong there.
class Field {
public:
    Field(Json const& value, std::string place) : value_(&value), place_(std::move(place)) {}

    bool has(char const* name) const { return value_->is_object() && value_->contains(name); }
    Field operator[](char const* name) const;
    std::optional<Field> find(char const* name) const;  // nothing where it is absent or null
    std::vector<Field> entries(std::size_t most) const;
    std::vector<std::pair<std::string, Field>> members(std::size_t most) const;

    bool is_null() const { return value_->is_null(); }
    bool is_text() const { return value_->is_string(); }
    std::string text() const;
    std::string text_of(std::vector<std::string> const& choices) const;
    std::string file_name() const;
    std::string sha256() const;
    bool flag() const;
    int64_t whole(int64_t least, int64_t most) const;
    double number(double least, double most) const;
    Json const& json() const { return *value_; }
    [[noreturn]] void fail(std::string const& why) const;

private:
    Json const* value_;
    std::string place_;
};

}  // namespace madtp::detail
