#include "cuda_graphs.h"

#include <madtp/engine.hpp>

namespace madtp::detail {
namespace {

constexpr int kThreadLocal = 1;  // other threads may go on while one captures

}  // namespace

CudaGraphs::~CudaGraphs() { clear(); }

void CudaGraphs::clear() noexcept {
    if (executable_ != nullptr) { device_->driver().destroy_executable(executable_); }
    executable_ = nullptr;
}

bool CudaGraphs::replay(Key const& key, void* stream, std::function<bool(void*)> const& enqueue) {
    if (key != last_) {
        clear();
        last_.clear();  // what is not told to have run did not
        return false;
    }
    if (executable_ == nullptr && captures_) {
        executable_ = capture(enqueue);
        captures_ = executable_ != nullptr;
    }
    if (executable_ == nullptr) { return false; }
    device_->driver().check(device_->driver().launch(executable_, stream), "launching a CUDA graph");
    return true;
}

void CudaGraphs::ran(Key const& key) { last_ = key; }

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
