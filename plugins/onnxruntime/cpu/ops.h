// The two ops on the CPU provider, in float32.
#pragma once
#include "onnxruntime/arguments.h"

namespace madtp::onnxruntime {

class AlignedAttention {
public:
    explicit AlignedAttention(Attributes const& attributes);
    void run(Call const& context) const;

private:
    AttentionAttributes mAttributes;
};

class TokenCompact {
public:
    explicit TokenCompact(Attributes const& attributes);
    void run(Call const& context) const;

private:
    CompactAttributes mAttributes;
};

}  // namespace madtp::onnxruntime
