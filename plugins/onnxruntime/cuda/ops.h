// The ops on the CUDA provider, in float32, float16 and bfloat16: the kernels of madtp/kernels.h on the node's stream.
#pragma once
#include "onnxruntime/packed_arguments.h"

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

class CudaPackedAlignedAttention {
public:
    explicit CudaPackedAlignedAttention(Attributes const& attributes);
    void run(Call const& context) const;

private:
    AttentionAttributes mAttributes;
};

class CudaPackedTokenCompact {
public:
    explicit CudaPackedTokenCompact(Attributes const& attributes) : mAttributes{attributes} {}
    void run(Call const& context) const;

private:
    PackedCompactAttributes mAttributes;
};

class CudaVarlenAttention {
public:
    explicit CudaVarlenAttention(Attributes const& attributes) : mAttributes{attributes} {}
    void run(Call const& context) const;

private:
    VarlenAttributes mAttributes;
};

}  // namespace madtp::onnxruntime
