// The two ops on the CPU provider, in float32.
#pragma once
#include "onnxruntime/op.h"

namespace madtp::onnxruntime {

class AlignedAttention {
public:
    explicit AlignedAttention(Attributes const& attributes);
    void run(Call const& context) const;

private:
    int64_t mHeads;
    bool mCausal;
};

class TokenCompact {
public:
    explicit TokenCompact(Attributes const& attributes);
    void run(Call const& context) const;

private:
    int32_t mLayer;
    float mKeepMargin;
};

}  // namespace madtp::onnxruntime
