// TensorRT's data types as those of the kernels.
#pragma once
#include <NvInferRuntime.h>

#include "madtp/kernels.h"

namespace madtp {

inline int32_t kernel_dtype(nvinfer1::DataType type) noexcept {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return MADTP_FLOAT32;
        case nvinfer1::DataType::kHALF: return MADTP_FLOAT16;
        case nvinfer1::DataType::kBF16: return MADTP_BFLOAT16;
        default: return -1;  // the kernels refuse it
    }
}

}  // namespace madtp
