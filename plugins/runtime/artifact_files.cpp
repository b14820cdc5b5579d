// The files of an artifact, held to the hashes in its manifest.
#include <stdexcept>

#include "files.h"
#include "manifest.h"
#include "onnx_file.h"
#include "text.h"

namespace madtp::detail {
namespace {

constexpr uint64_t kMostBytes = 1ull << 38;  // to hash more would take hours

[[noreturn]] void foreign(std::string const& path, std::string const& why, Document const& document) {
    throw Error(Code::file,
        in_quotes(path) + " is not the file that the manifest of " + in_quotes(document.manifest.artifact) +
            " describes",
        why, "Use the files of one export, or export again.");
}

void check_file(NamedFile const& file, Document const& document) {
    std::string const path = document.folder + "/" + file.name;
    std::string hash;
    try {
        hash = file_sha256(path, kMostBytes);
    } catch (std::runtime_error const& error) { foreign(path, error.what(), document); }
    if (hash != file.sha256) { foreign(path, "Its sha256 is another.", document); }
}

// Refuse a graph whose weights lie in another file than the one whose hash was checked.
void check_locations(EngineFiles const& engine, Document const& document) {
    std::string const path = document.folder + "/" + engine.artifact.name;
    std::set<std::string> locations;
    try {
        locations = external_locations(path);
    } catch (std::runtime_error const& error) { foreign(path, error.what(), document); }
    for (std::string const& location : locations) {
        if (!engine.external_data || location != engine.external_data->name) {
            throw Error(Code::file, in_quotes(path) + " takes weights from " + in_quotes(location),
                "Its manifest names no such file, so that nothing vouches for what is in it.",
                "Use the files of one export, or export again.");
        }
    }
}

}  // namespace

void check_files(Document const& document) {
    for (PartFiles const& part : document.parts) {
        for (EngineFiles const& engine : part.engines) {
            check_file(engine.artifact, document);
            if (engine.external_data) { check_file(*engine.external_data, document); }
            if (!document.is_plan()) { check_locations(engine, document); }
        }
    }
    if (document.library && document.library->file) {
        check_file({*document.library->file, document.library->sha256}, document);
    }
    if (document.vocabulary) { check_file(*document.vocabulary, document); }
}

}  // namespace madtp::detail
