// The two ops on the CUDA provider, in float32, float16 and bfloat16: the kernels of madtp/kernels.h on the node's stream.
#pragma once
#include "onnxruntime/arguments.h"

namespace madtp::onnxruntime {

class CudaAlignedAttention {
public:
    explicit CudaAlignedAttention(Attributes const& attributes) : mAttributes{attributes} {}
    void run(Call const& context) const;

private:
    AttentionAttributes mAttributes;
};

class CudaTokenCompact {
public:
    explicit CudaTokenCompact(Attributes const& attributes) : mAttributes{attributes} {}
    void run(Call const& context) const;

private:
    CompactAttributes mAttributes;
};

}  // namespace madtp::onnxruntime
