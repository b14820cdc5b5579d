// In the place of the TensorRT backend where its headers were not there when this library was built.
#include "backend.h"
#include "text.h"

namespace madtp::detail {

std::unique_ptr<Backend> open_tensorrt(Document const& document, EngineOptions const&) {
    throw Error(Code::library,
        "this build of the engine runs no plans, and " + in_quotes(document.manifest.artifact) + " is one",
        "TensorRT's headers were not there when it was built.",
        "Build it with headers of " + document.manifest.backend + ", or export to .onnx.");
}

}  // namespace madtp::detail
