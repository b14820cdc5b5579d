#include "cuda_graphs.h"

#include <madtp/engine.hpp>

namespace madtp::detail {
namespace {

constexpr std::size_t kMost = 16;  // graphs that are kept
constexpr int kThreadLocal = 1;    // other threads may go on while one captures

}  // namespace

CudaGraphs::~CudaGraphs() { clear(); }

void CudaGraphs::clear() noexcept {
    for (auto const& [key, executable] : graphs_) { device_->driver().destroy_executable(executable); }
    graphs_.clear();
}

bool CudaGraphs::replay(Key const& key, void* stream, std::function<bool(void*)> const& enqueue) {
    auto found = graphs_.find(key);
    if (found == graphs_.end()) {
        if (!captures_ || seen_.count(key) == 0) { return false; }
        void* const executable = capture(enqueue);
        captures_ = executable != nullptr;
        if (!captures_) { return false; }
        if (graphs_.size() >= kMost) { clear(); }
        found = graphs_.emplace(key, executable).first;
    }
    device_->driver().check(device_->driver().launch(found->second, stream), "launching a CUDA graph");
    return true;
}

void CudaGraphs::ran(Key const& key) {
    if (seen_.size() >= kMost) { seen_.clear(); }
    seen_.insert(key);
}

// Null: it cannot be captured.
void* CudaGraphs::capture(std::function<bool(void*)> const& enqueue) {
    CudaDriver const& driver = device_->driver();
    if (driver.begin_capture(stream_.get(), kThreadLocal) != 0) { return nullptr; }
    bool const enqueued = enqueue(stream_.get());
    void* graph = nullptr;
    if (driver.end_capture(stream_.get(), &graph) != 0 || graph == nullptr) { return nullptr; }
    void* executable = nullptr;
    bool const made = enqueued && driver.instantiate(&executable, graph, 0) == 0;
    driver.destroy_graph(graph);
    return made ? executable : nullptr;
}

}  // namespace madtp::detail
