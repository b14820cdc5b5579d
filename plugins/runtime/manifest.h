// Reading manifests (docs/manifest.md), strictly.
#pragma once

#include <madtp/engine.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace madtp::detail {

struct NamedFile {
    std::string name, sha256;
};

struct LibraryEntry {
    std::optional<std::string> file;  // beside the artifact; absent where the plan embeds it
    bool embedded = false;
    std::string version, sha256, source;
    std::vector<int> sm;
};

// A graph or plan of a part.
struct EngineFiles {
    NamedFile artifact;
    std::optional<NamedFile> external_data;
    int64_t least = 1, batch = 0;  // requests that it takes
};

struct PartFiles {
    std::vector<EngineFiles> engines;  // in the order in which they are tried; the last has room for everything
    bool has_custom_nodes = false, has_plugin_layers = false;
};

// A manifest: what programs see of it, and what it takes to open the artifact.
struct Document {
    Manifest manifest;
    std::string folder;
    std::optional<LibraryEntry> library;
    std::optional<NamedFile> vocabulary;
    std::vector<PartFiles> parts;  // as manifest.parts
    std::string oldest;            // ONNX Runtime that runs it; empty: not said

    bool is_plan() const;
};

// The manifest that `path` means: itself, or the one beside an artifact. Throws Code::manifest.
Document open_manifest(std::string const& path);

// Of a text; `path` is for messages and folders. Throws Code::manifest.
Document read_manifest(std::string const& text, std::string const& path);

// Holds the artifact's files to the hashes in its manifest. Throws Code::file.
void check_files(Document const& document);

}  // namespace madtp::detail
