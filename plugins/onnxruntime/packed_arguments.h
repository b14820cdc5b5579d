// Attributes and inputs of the packed ops, checked alike for every provider. Where `cu_seqlens`, `cu_keys`, `temperature`
// and `min_keep` lie is for the provider to say: they are not read here.
#pragma once
#include "onnxruntime/arguments.h"

namespace madtp::onnxruntime {

struct PackedAttentionArguments {
    PackedAttentionArguments(Call const& context, AttentionAttributes const& attributes);
    Input qkv, key_mask, cu_seqlens;
    int64_t rows, width, sequences;
};

struct PackedCompactAttributes {
    explicit PackedCompactAttributes(Attributes const& attributes);
    CompactAttributes compact;
    int64_t capacity, group;
};

struct PackedCompactArguments {
    PackedCompactArguments(Call const& context, PackedCompactAttributes const& attributes);
    Input tokens, key_mask, source_ids, column_score, class_score, alignment, cu_seqlens, temperature, min_keep;
    int64_t rows, width, alignments, sequences;
};

struct VarlenAttributes {
    explicit VarlenAttributes(Attributes const& attributes);
    int64_t heads;
};

struct VarlenArguments {
    VarlenArguments(Call const& context, VarlenAttributes const& attributes);
    Input query, key_value, cu_seqlens, cu_keys;
    int64_t rows, key_rows, width, sequences;
};

}  // namespace madtp::onnxruntime
