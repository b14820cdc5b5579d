// Execution contexts: for TensorRT for RTX with what makes its answers the same from the first call to the last.
#pragma once

#include <NvInferRuntime.h>

#include <memory>

#include "kernel_file.h"

namespace madtp::detail {

struct TrtContext {
#ifdef TRT_MAJOR_RTX
    std::unique_ptr<nvinfer1::IRuntimeCache> kernels;  // outlives the context
    std::unique_ptr<nvinfer1::IRuntimeConfig> config;
#endif
    std::unique_ptr<nvinfer1::IExecutionContext> context;
};

// One for an engine; null within where there is no room for it. `graphs`: TensorRT for RTX is to capture its runs as
// CUDA graphs, which it does by itself.
TrtContext open_context(nvinfer1::ICudaEngine& engine, KernelFile& kernels, bool graphs);

}  // namespace madtp::detail
