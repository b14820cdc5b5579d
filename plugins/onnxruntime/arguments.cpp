#include "onnxruntime/arguments.h"

#include <cmath>
#include <limits>

namespace madtp::onnxruntime {
namespace {

void expect(char const* name, Input const& input, Shape const& wanted) {
    if (input.shape != wanted) {
        refuse(std::string{name} + " of TokenCompact is " + text(input.shape) + "; its tokens ask for " + text(wanted));
    }
}

void expect_number(char const* name, Input const& input) {
    int64_t numbers = 1;
    for (int64_t size : input.shape) { numbers *= size; }
    if (numbers != 1) { refuse(std::string{name} + " of TokenCompact is " + text(input.shape) + "; it has to be one number"); }
}

}  // namespace

AttentionAttributes::AttentionAttributes(Attributes const& attributes)
    : heads{attributes.integer("heads")}, causal{attributes.integer("causal") != 0} {
    if (heads < 1) { refuse("AlignedAttention has " + std::to_string(heads) + " heads; it needs one at least"); }
}

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
    Shape const rows{batch, length};
    if (key_mask.shape != rows) {
        refuse("key_mask of AlignedAttention is " + text(key_mask.shape) + "; qkv asks for " + text(rows));
    }
}

CompactAttributes::CompactAttributes(Attributes const& attributes) : keep_margin{attributes.number("keep_margin", 0)} {
    int64_t const number = attributes.integer("layer");
    if (number < 0 || number >= std::numeric_limits<int32_t>::max()) {
        refuse("layer of TokenCompact is " + std::to_string(number) + "; it has to be the number of a layer");
    }
    layer = static_cast<int32_t>(number);
    if (!(keep_margin >= 0 && std::isfinite(keep_margin))) {
        refuse("keep_margin of TokenCompact is " + std::to_string(keep_margin) + "; it has to be zero or more");
    }
}

CompactArguments::CompactArguments(Call const& context)
    : tokens{context.input(0)}, key_mask{context.input(1)}, source_ids{context.input(2)}, column_score{context.input(3)},
      class_score{context.input(4)}, alignment{context.input(5)}, temperature{context.input(6)},
      min_keep{context.input(7)} {
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
    expect("key_mask", key_mask, {batch, length});
    expect("source_ids", source_ids, {batch, length});
    expect("column_score", column_score, {batch, length - 1});
    expect("class_score", class_score, {batch, length - 1});
    expect("alignment", alignment, {batch, length - 1, alignments});
    expect_number("temperature", temperature);
    expect_number("min_keep", min_keep);
}

}  // namespace madtp::onnxruntime
