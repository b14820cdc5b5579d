// Runs a plan for one session.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "context.h"
#include "cuda_graphs.h"
#include "engine.h"

namespace madtp::detail {

class TrtRunner : public Runner {
public:
    TrtRunner(std::shared_ptr<TrtEngine> engine, PartInfo const& part);  // throws Code::memory: no room for it
    ~TrtRunner() override;

    Outputs::Map run(Inputs const& inputs, Placement const& placement) override;
    bool replayed() const noexcept override { return replayed_; }

private:
    class Output;

    void give(std::string const& name, TensorView const& view, void* stream, CudaGraphs::Key& key);
    bool make_room(CudaGraphs::Key& key);
    void enqueue(CudaGraphs::Key const& key, bool has_fixed_sizes, void* stream);
    Outputs::Map take(Placement const& placement, void* stream);

    std::shared_ptr<TrtEngine> engine_;
    PartInfo const& part_;
    std::shared_ptr<CudaDevice const> device_;
    CudaStream stream_;
    std::map<std::string, std::shared_ptr<DeviceMemory>> inputs_;  // copies of what the caller has on the host
    std::map<std::string, std::vector<char>> host_inputs_;         // of those that TensorRT reads there
    std::map<std::string, std::unique_ptr<Output>> outputs_;
    TrtContext context_;
    std::optional<CudaGraphs> graphs_;
    bool replayed_ = false;
};

}  // namespace madtp::detail
