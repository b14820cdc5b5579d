// CUDA graphs of an execution context, captured once for its shapes and addresses, then replayed. A context may not
// change as long as a graph that was captured from it is replayed: it has one, of its latest call.
// https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html#cuda-graphs
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cuda_driver.h"

namespace madtp::detail {

class CudaGraphs {
public:
    using Key = std::vector<int64_t>;  // all shapes and addresses of a call

    explicit CudaGraphs(std::shared_ptr<CudaDevice const> device) : device_(device), stream_(std::move(device)) {}
    CudaGraphs(CudaGraphs const&) = delete;
    ~CudaGraphs();

    // Replays what `enqueue` does, on `stream`. False: nothing was done, and the call has to be enqueued as usual, as
    // the first with a key is, because TensorRT may load kernels then; the second in a row is captured. What cannot be
    // captured is not tried again. Throws Code::backend: the launch failed.
    bool replay(Key const& key, void* stream, std::function<bool(void*)> const& enqueue);
    void ran(Key const& key);  // as usual

private:
    void* capture(std::function<bool(void*)> const& enqueue);
    void clear() noexcept;

    std::shared_ptr<CudaDevice const> device_;
    CudaStream stream_;  // on which is captured: the caller's may be one that cannot be
    void* executable_ = nullptr;
    Key last_;
    bool captures_ = true;
};

}  // namespace madtp::detail
