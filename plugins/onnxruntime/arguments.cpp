#include "onnxruntime/arguments.h"

#include <cmath>
#include <limits>

namespace madtp::onnxruntime {

void expect(char const* op, char const* name, Input const& input, Shape const& wanted, char const* asked) {
    if (input.shape != wanted) {
        refuse(std::string{name} + " of " + op + " is " + text(input.shape) + "; " + asked + " " + text(wanted));
    }
}

void expect_number(char const* op, char const* name, Input const& input) {
    int64_t numbers = 1;
    for (int64_t size : input.shape) { numbers *= size; }
    if (numbers != 1) { refuse(std::string{name} + " of " + op + " is " + text(input.shape) + "; it has to be one number"); }
}

int64_t heads_of(char const* op, Attributes const& attributes) {
    int64_t const heads = attributes.integer("heads");
    if (heads < 1) { refuse(std::string{op} + " has " + std::to_string(heads) + " heads; it needs one at least"); }
    return heads;
}

AttentionAttributes::AttentionAttributes(Attributes const& attributes, char const* op)
    : heads{heads_of(op, attributes)}, causal{attributes.integer("causal") != 0} {}

AttentionArguments::AttentionArguments(Call const& context, AttentionAttributes const& attributes)
    : qkv{context.input(0)}, key_mask{context.input(1)} {
    int64_t const heads = attributes.heads;
    if (qkv.shape.size() != 3 || qkv.shape[1] < 1 || qkv.shape[2] < 1 || qkv.shape[2] % 3 != 0 ||
        qkv.shape[2] / 3 % heads != 0) {
        refuse("qkv of AlignedAttention is " + text(qkv.shape) + "; it has to be [samples, tokens, 3 * width], the width a "
            "multiple of " + std::to_string(heads) + " heads");
    }
    batch = qkv.shape[0];
    length = qkv.shape[1];
    width = qkv.shape[2] / 3;
    expect("AlignedAttention", "key_mask", key_mask, {batch, length}, "qkv asks for");
}

CompactAttributes::CompactAttributes(Attributes const& attributes, char const* op)
    : keep_margin{attributes.number("keep_margin", 0)} {
    int64_t const number = attributes.integer("layer");
    if (number < 0 || number >= std::numeric_limits<int32_t>::max()) {
        refuse("layer of " + std::string{op} + " is " + std::to_string(number) + "; it has to be the number of a layer");
    }
    layer = static_cast<int32_t>(number);
    if (!(keep_margin >= 0 && std::isfinite(keep_margin))) {
        refuse("keep_margin of " + std::string{op} + " is " + std::to_string(keep_margin) + "; it has to be zero or more");
    }
}

CompactArguments::CompactArguments(Call const& context)
    : tokens{context.input(0)}, key_mask{context.input(1)}, source_ids{context.input(2)}, column_score{context.input(3)},
      class_score{context.input(4)}, alignment{context.input(5)}, temperature{context.input(6)},
      min_keep{context.input(7)} {
    constexpr char const *kCompact = "TokenCompact", *kAsked = "its tokens ask for";
    if (tokens.shape.size() != 3 || tokens.shape[1] < 2) {
        refuse("tokens of TokenCompact are " + text(tokens.shape) + "; they have to be [samples, 2 tokens or more, width]");
    }
    if (alignment.shape.size() != 3 || alignment.shape[2] < 1) {
        refuse("alignment of TokenCompact is " + text(alignment.shape) + "; it has to be [samples, tokens - 1, alignments]");
    }
    batch = tokens.shape[0];
    length = tokens.shape[1];
    width = tokens.shape[2];
    alignments = alignment.shape[2];
    if (length > std::numeric_limits<int32_t>::max()) {
        refuse("TokenCompact got " + text(tokens.shape) + ", too many tokens");
    }
    expect(kCompact, "key_mask", key_mask, {batch, length}, kAsked);
    expect(kCompact, "source_ids", source_ids, {batch, length}, kAsked);
    expect(kCompact, "column_score", column_score, {batch, length - 1}, kAsked);
    expect(kCompact, "class_score", class_score, {batch, length - 1}, kAsked);
    expect(kCompact, "alignment", alignment, {batch, length - 1, alignments}, kAsked);
    expect_number(kCompact, "temperature", temperature);
    expect_number(kCompact, "min_keep", min_keep);
}

}  // namespace madtp::onnxruntime
