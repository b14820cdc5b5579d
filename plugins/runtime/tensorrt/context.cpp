#include "context.h"

namespace madtp::detail {

#ifdef TRT_MAJOR_RTX

// By itself TensorRT for RTX compiles kernels for sizes that it has not seen, while it runs on with others, and swaps
// them in when they are ready: times shift, and bits may. Nearly every request here has sizes of its own.
// https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-dynamic-shapes.html
TrtContext open_context(nvinfer1::ICudaEngine& engine, KernelFile& kernels, bool graphs) {
    TrtContext opened;
    opened.config.reset(engine.createRuntimeConfig());
    if (!opened.config) { return opened; }
    opened.config->setDynamicShapesKernelSpecializationStrategy(
        nvinfer1::DynamicShapesKernelSpecializationStrategy::kNONE);
    if (graphs) { opened.config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE); }
    opened.kernels.reset(opened.config->createRuntimeCache());
    if (opened.kernels) {
        std::string const known = kernels.content();
        if (!known.empty()) {
            opened.kernels->deserialize(known.data(), known.size());
        }  // takes nothing of another GPU
        opened.config->setRuntimeCache(*opened.kernels);
    }
    opened.context.reset(engine.createExecutionContext(opened.config.get()));
    if (opened.kernels && opened.context) {
        std::unique_ptr<nvinfer1::IHostMemory> const content(opened.kernels->serialize());
        if (content) { kernels.keep({static_cast<char const*>(content->data()), content->size()}); }
    }
    return opened;
}

#else

TrtContext open_context(nvinfer1::ICudaEngine& engine, KernelFile&, bool) {
    TrtContext opened;
    opened.context.reset(engine.createExecutionContext());
    return opened;
}

#endif

}  // namespace madtp::detail
