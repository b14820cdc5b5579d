// Attributes and inputs of the dynamic ops, checked alike for every provider. Each check is a sentence of its own.
#pragma once
#include "onnxruntime/op.h"

namespace madtp::onnxruntime {

// Refuse an input of another shape than `wanted`, and one that is not a single number.
void expect(char const* op, char const* name, Input const& input, Shape const& wanted, char const* asked);
void expect_number(char const* op, char const* name, Input const& input);
// `heads` of a node, which is one at least.
int64_t heads_of(char const* op, Attributes const& attributes);

struct AttentionAttributes {
    explicit AttentionAttributes(Attributes const& attributes, char const* op = "AlignedAttention");
    int64_t heads;
    bool causal;
};

struct AttentionArguments {
    AttentionArguments(Call const& context, AttentionAttributes const& attributes);
    Input qkv, key_mask;
    int64_t batch, length, width;
};

struct CompactAttributes {
    explicit CompactAttributes(Attributes const& attributes, char const* op = "TokenCompact");
    int32_t layer;
    float keep_margin;
};

// Where `temperature` and `min_keep` lie is for the provider to say: they are not read here.
struct CompactArguments {
    explicit CompactArguments(Call const& context);
    Input tokens, key_mask, source_ids, column_score, class_score, alignment, temperature, min_keep;
    int64_t batch, length, width, alignments;
};

}  // namespace madtp::onnxruntime
