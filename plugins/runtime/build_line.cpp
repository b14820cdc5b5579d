#include "build_line.h"

#include <madtp/engine.hpp>

#include "files.h"
#include "json.h"
#include "text.h"

namespace madtp::detail {
namespace {

constexpr uint64_t kMostBytes = 1ull << 30;
constexpr std::size_t kLongestLine = 500;

BuildLine parse_line(std::string_view text) {
    Field const line = Field::parse(text);
    BuildLine result{line["version"].text(), line["source"].text(), {}};
    std::string const sm = line["sm"].text();
    for (std::size_t begin = 0; begin < sm.size();) {
        std::size_t const end = std::min(sm.find(',', begin), sm.size());
        result.sm.push_back(std::stoi(sm.substr(begin, end - begin)));
        begin = end + 1;
    }
    return result;
}

}  // namespace

std::set<BuildLine> build_lines(std::string_view content, std::string_view mark) {
    std::set<BuildLine> lines;
    std::string const begin = std::string(mark) + " {";
    for (std::size_t at = content.find(begin); at != std::string_view::npos; at = content.find(begin, at + 1)) {
        std::string_view const rest = content.substr(at + mark.size() + 1, kLongestLine + 3);
        std::size_t const end = rest.find('\0');
        if (end == std::string_view::npos || rest[end - 1] != '}') { continue; }
        try {
            lines.insert(parse_line(rest.substr(0, end)));
        } catch (std::exception const&) {  // malformed: none of ours
        }
    }
    return lines;
}

BuiltLibrary loadable_library(std::string const& path, std::string_view mark, std::string const& noun) {
    std::string content;
    try {
        content = read_file(path, kMostBytes);
    } catch (std::exception const& error) {
        throw Error(Code::library, "cannot read the " + noun + " " + in_quotes(path), error.what());
    }
    std::set<BuildLine> const lines = build_lines(content, mark);
    if (content.compare(0, 4,
            "\x7f"
            "ELF") != 0 ||
        lines.size() != 1) {
        throw Error(Code::library, in_quotes(path) + " is not the " + noun + " of this project",
            "It does not carry the line that every build writes into it.",
            "Name the one that ./build.sh plugins builds.");
    }
    if (lines.begin()->version != MADTP_VERSION) {
        throw Error(Code::library,
            "the " + noun + " " + in_quotes(path) + " is of version " + in_quotes(lines.begin()->version),
            "This is version " MADTP_VERSION ", which loads only libraries of its own version.",
            "Use the files of one version.");
    }
    return {path, sha256_of(content), *lines.begin()};
}

}  // namespace madtp::detail
