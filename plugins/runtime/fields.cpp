#include "fields.h"

#include <algorithm>
#include <stdexcept>

#include "files.h"
#include "text.h"

namespace madtp::detail {

void Field::fail(std::string const& why) const { throw std::runtime_error("At " + place_ + ": " + why + "."); }

Field Field::operator[](char const* name) const {
    if (!value_->is_object()) { fail("it is no object"); }
    auto const found = value_->find(name);
    if (found == value_->end()) { fail(std::string("'") + name + "' is missing"); }
    return {*found, place_ + "." + name};
}

std::optional<Field> Field::find(char const* name) const {
    if (!has(name) || (*value_)[name].is_null()) { return std::nullopt; }
    return (*this)[name];
}

std::vector<Field> Field::entries(std::size_t most) const {
    if (!value_->is_array()) { fail("it is no list"); }
    if (value_->size() > most) { fail("it has more than " + std::to_string(most) + " entries"); }
    std::vector<Field> found;
    for (std::size_t i = 0; i < value_->size(); ++i) {
        found.emplace_back((*value_)[i], place_ + "[" + std::to_string(i) + "]");
    }
    return found;
}

std::vector<std::pair<std::string, Field>> Field::members(std::size_t most) const {
    if (!value_->is_object()) { fail("it is no object"); }
    if (value_->size() > most) { fail("it has more than " + std::to_string(most) + " members"); }
    std::vector<std::pair<std::string, Field>> found;
    for (auto const& [name, entry] : value_->items()) { found.emplace_back(name, Field(entry, place_ + "." + name)); }
    return found;
}

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

}  // namespace madtp::detail
