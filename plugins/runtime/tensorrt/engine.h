// A plan that TensorRT has loaded.
#pragma once

#include <NvInferRuntime.h>

#include <madtp/engine.hpp>
#include <memory>
#include <mutex>
#include <string>

#include "cuda_driver.h"
#include "kernel_file.h"
#include "library.h"

namespace madtp::detail {

// What all plans of an artifact share; it outlives them.
struct TrtShared {
    TrtShared(Document const& document, EngineOptions const& options);
    TrtShared(TrtShared const&) = delete;
    ~TrtShared();

    TrtLibrary library;
    std::shared_ptr<CudaDevice const> device;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    KernelFile kernels;
    std::mutex opening;  // engines promise nothing of contexts that several threads make at once
};

struct TrtEngine {
    TrtEngine() = default;
    TrtEngine(TrtEngine const&) = delete;
    ~TrtEngine();

    std::shared_ptr<TrtShared> shared;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::string path;
    bool captures = false;  // whether its runs are to be captured as CUDA graphs
};

}  // namespace madtp::detail
