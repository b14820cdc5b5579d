// What runs the graphs and plans of an artifact: one interface for all runtimes.
#pragma once

#include <madtp/engine.hpp>
#include <memory>
#include <string>

#include "manifest.h"

namespace madtp::detail {

// Where a run's outputs are wanted, and what they have to wait for.
struct Placement {
    Device outputs = Device::host;
    void* stream = nullptr;  // of the caller; null: none
};

// Runs one graph or plan for one session: one call at a time.
class Runner {
public:
    virtual ~Runner() = default;

    // `inputs` are all that the part lists, the temperature too, in the types that it lists. Throws Error.
    virtual Outputs::Map run(Inputs const& inputs, Placement const& placement) = 0;

    // Whether the latest run replayed a CUDA graph.
    virtual bool replayed() const noexcept { return false; }
};

// A graph or plan that was opened; threads may make runners of it, which do not outlive it.
class Program {
public:
    virtual ~Program() = default;
    virtual std::unique_ptr<Runner> runner() = 0;
};

class Backend {
public:
    virtual ~Backend() = default;

    // The program of one of the files of a part. Throws Error.
    virtual std::unique_ptr<Program> open(PartInfo const& part, PartFiles const& files, EngineFiles const& engine) = 0;
    virtual std::string execution() const = 0;  // what runs it, in words
};

// Throw Error where the runtime is missing, of another version, or cannot run this artifact here.
std::unique_ptr<Backend> open_onnxruntime(Document const& document, EngineOptions const& options);
std::unique_ptr<Backend> open_tensorrt(Document const& document, EngineOptions const& options);

}  // namespace madtp::detail
