// What the libraries that are built from plugins/ say of themselves, read before any of their code runs.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace madtp::detail {

struct BuildLine {
    std::string version, source;
    std::vector<int> sm;  // compute capabilities, 90 for 9.0; empty: no code for GPUs

    bool operator<(BuildLine const& other) const {
        return std::tie(version, source, sm) < std::tie(other.version, other.source, other.sm);
    }
    bool operator==(BuildLine const& other) const {
        return std::tie(version, source, sm) == std::tie(other.version, other.source, other.sm);
    }
};

// All lines of one kind ("madtp-plugins", "madtp-onnxruntime") in a library, or in a plan that embeds one.
std::set<BuildLine> build_lines(std::string_view content, std::string_view mark);

struct BuiltLibrary {
    std::string path, sha256;
    BuildLine line;
};

// A library of this project and version. `noun`: what messages call it. Throws Code::library.
BuiltLibrary loadable_library(std::string const& path, std::string_view mark, std::string const& noun);

}  // namespace madtp::detail
