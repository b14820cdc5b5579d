// The ops on the CPU provider, in float32.
#pragma once
#include "onnxruntime/packed_arguments.h"

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

class PackedAlignedAttention {
public:
    explicit PackedAlignedAttention(Attributes const& attributes);
    void run(Call const& context) const;

private:
    AttentionAttributes mAttributes;
};

class PackedTokenCompact {
public:
    explicit PackedTokenCompact(Attributes const& attributes);
    void run(Call const& context) const;

private:
    PackedCompactAttributes mAttributes;
};

class VarlenAttention {
public:
    explicit VarlenAttention(Attributes const& attributes);
    void run(Call const& context) const;

private:
    VarlenAttributes mAttributes;
};

}  // namespace madtp::onnxruntime
