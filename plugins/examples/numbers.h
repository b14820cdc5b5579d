// Numbers of a command line.
#pragma once
#include <charconv>
#include <cstring>
#include <madtp/engine.hpp>
#include <string>

// The number that the whole text is; whole numbers where T is one. Throws madtp::Error: it is none.
template <typename T>
T number_of(std::string const& name, char const* text) {
    T number{};
    char const* end = text + std::strlen(text);
    auto const [stopped, error] = std::from_chars(text, end, number);
    if (error != std::errc() || stopped != end) {
        throw madtp::Error(madtp::Code::input, name + " is '" + text + "', no number that it takes");
    }
    return number;
}
