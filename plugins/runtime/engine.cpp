#include <unistd.h>

#include <algorithm>

#include "engine_state.h"
#include "guarded.h"
#include "part_checks.h"

namespace madtp {
namespace detail {
namespace {

// The range of requests that the first encoder was built for, as Python's sessions take it.
Range batch_of(Manifest const& manifest) {
    for (PartInfo const& part : manifest.parts) {
        if (part.name == "decoder") { continue; }
        for (TensorInfo const& info : part.inputs) {
            auto const found = part.profile.find(info.name);
            if (found != part.profile.end() && !info.shape.empty() && batches_in(info.shape[0]) == 1) {
                Profile const& profile = found->second;
                return {profile.min[0], profile.opt[0], profile.max[0]};
            }
        }
    }
    return {};
}

}  // namespace

EngineState::EngineState(Document given, std::unique_ptr<Backend> runtime)
    : document(std::move(given)), batch(batch_of(document.manifest)), process(::getpid()), backend(std::move(runtime)) {
    if (document.manifest.batch_invariant) { usual_batch = std::max<int64_t>(batch.opt, 1); }
    for (std::size_t i = 0; i < document.parts.size(); ++i) {
        OpenPart part;
        part.info = &document.manifest.parts[i];
        for (EngineFiles const& engine : document.parts[i].engines) {
            part.buckets.push_back({engine.least, engine.batch, backend->open(*part.info, document.parts[i], engine)});
        }
        parts_.push_back(std::move(part));
    }
}

OpenPart const& EngineState::part(std::string_view name) const {
    PartInfo const* info = &document.manifest.part(name);
    return *std::find_if(parts_.begin(), parts_.end(), [&](OpenPart const& part) { return part.info == info; });
}

std::shared_ptr<EngineState> EngineState::load(std::string const& path, EngineOptions const& options) {
    Document document = open_manifest(path);
    check_files(document);
    std::unique_ptr<Backend> backend =
        document.is_plan() ? open_tensorrt(document, options) : open_onnxruntime(document, options);
    return std::make_shared<EngineState>(std::move(document), std::move(backend));
}

}  // namespace detail

Engine Engine::load(std::string const& path, EngineOptions const& options) {
    return detail::guarded([&] { return Engine(detail::EngineState::load(path, options)); });
}

std::shared_ptr<detail::EngineState> const& Engine::opened() const {
    if (!state_) { throw Error(Code::input, "the engine was moved elsewhere", {}, "Use what it became."); }
    return state_;
}

Manifest const& Engine::manifest() const { return opened()->document.manifest; }

Range Engine::batch() const { return opened()->batch; }

int64_t Engine::usual_batch() const { return opened()->usual_batch; }

std::string Engine::execution() const { return opened()->backend->execution(); }

}  // namespace madtp
