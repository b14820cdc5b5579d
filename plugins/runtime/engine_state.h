// What is behind an Engine.
#pragma once

#include <sys/types.h>

#include <madtp/engine.hpp>
#include <memory>
#include <string_view>
#include <vector>

#include "backend.h"
#include "manifest.h"

namespace madtp::detail {

// A program that has room for most batches of at least and at most so many requests, or for everything.
struct Bucket {
    int64_t least = 1, batch = 0;
    std::unique_ptr<Program> program;
};

struct OpenPart {
    PartInfo const* info = nullptr;
    std::vector<Bucket> buckets;  // in the order in which they are tried; the last has room for everything
};

class EngineState {
public:
    EngineState(Document document, std::unique_ptr<Backend> backend);

    OpenPart const& part(std::string_view name) const;  // throws Code::input: there is none

    Document const document;
    Range batch;              // requests that the encoders take
    int64_t usual_batch = 1;  // run together unless the caller says otherwise
    pid_t process = 0;        // that opened it: another one has none of its threads
    std::unique_ptr<Backend> const backend;

    static std::shared_ptr<EngineState> load(std::string const& path, EngineOptions const& options);

private:
    std::vector<OpenPart> parts_;
};

}  // namespace madtp::detail
