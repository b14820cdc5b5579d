#include "onnxruntime/packed_arguments.h"

#include <limits>

namespace madtp::onnxruntime {
namespace {

constexpr char const* kAttention = "PackedAlignedAttention";
constexpr char const* kCompact = "PackedTokenCompact";
constexpr char const* kVarlen = "VarlenAttention";

// S, of [S + 1].
int64_t sequences_of(char const* op, char const* name, Input const& cu_seqlens) {
    if (cu_seqlens.shape.size() != 1 || cu_seqlens.shape[0] < 1) {
        refuse(std::string{name} + " of " + op + " is " + text(cu_seqlens.shape) + "; it has to be [sequences + 1]");
    }
    return cu_seqlens.shape[0] - 1;
}

}  // namespace

PackedAttentionArguments::PackedAttentionArguments(Call const& context, AttentionAttributes const& attributes)
    : qkv{context.input(0)}, key_mask{context.input(1)}, cu_seqlens{context.input(2)} {
    int64_t const heads = attributes.heads;
    if (qkv.shape.size() != 2 || qkv.shape[1] < 1 || qkv.shape[1] % 3 != 0 || qkv.shape[1] / 3 % heads != 0) {
        refuse("qkv of PackedAlignedAttention is " + text(qkv.shape) + "; it has to be [rows, 3 * width], the width a "
            "multiple of " + std::to_string(heads) + " heads");
    }
    rows = qkv.shape[0];
    width = qkv.shape[1] / 3;
    expect(kAttention, "key_mask", key_mask, {rows}, "qkv asks for");
    sequences = sequences_of(kAttention, "cu_seqlens", cu_seqlens);
}

PackedCompactAttributes::PackedCompactAttributes(Attributes const& attributes)
    : compact{attributes, kCompact}, capacity{attributes.integer("capacity")}, group{attributes.integer("group")} {
    if (capacity < -1 || capacity > std::numeric_limits<int32_t>::max()) {
        refuse("capacity of PackedTokenCompact is " + std::to_string(capacity) + "; it has to be a number of rows, 0 for "
            "as many as are needed, or -1 for as many as come in");
    }
    if (group < 1) {
        refuse("group of PackedTokenCompact is " + std::to_string(group) + "; a request has one sequence at least");
    }
}

PackedCompactArguments::PackedCompactArguments(Call const& context, PackedCompactAttributes const& attributes)
    : tokens{context.input(0)}, key_mask{context.input(1)}, source_ids{context.input(2)}, column_score{context.input(3)},
      class_score{context.input(4)}, alignment{context.input(5)}, cu_seqlens{context.input(6)},
      temperature{context.input(7)}, min_keep{context.input(8)} {
    constexpr char const* kAsked = "its tokens ask for";
    if (tokens.shape.size() != 2) {
        refuse("tokens of PackedTokenCompact are " + text(tokens.shape) + "; they have to be [rows, width]");
    }
    if (alignment.shape.size() != 2 || alignment.shape[1] < 1) {
        refuse("alignment of PackedTokenCompact is " + text(alignment.shape) + "; it has to be [rows, alignments]");
    }
    rows = tokens.shape[0];
    width = tokens.shape[1];
    alignments = alignment.shape[1];
    expect(kCompact, "key_mask", key_mask, {rows}, kAsked);
    expect(kCompact, "source_ids", source_ids, {rows}, kAsked);
    expect(kCompact, "column_score", column_score, {rows}, kAsked);
    expect(kCompact, "class_score", class_score, {rows}, kAsked);
    expect(kCompact, "alignment", alignment, {rows, alignments}, kAsked);
    sequences = sequences_of(kCompact, "cu_seqlens", cu_seqlens);
    if (sequences % attributes.group != 0) {
        refuse("cu_seqlens of PackedTokenCompact is " + text(cu_seqlens.shape) + ": " + std::to_string(sequences) +
            " sequences, which are no requests of " + std::to_string(attributes.group));
    }
    expect(kCompact, "min_keep", min_keep, {sequences / attributes.group}, "its requests ask for");
    expect_number(kCompact, "temperature", temperature);
}

VarlenAttributes::VarlenAttributes(Attributes const& attributes) : heads{heads_of(kVarlen, attributes)} {}

VarlenArguments::VarlenArguments(Call const& context, VarlenAttributes const& attributes)
    : query{context.input(0)}, key_value{context.input(1)}, cu_seqlens{context.input(2)}, cu_keys{context.input(3)} {
    int64_t const heads = attributes.heads;
    if (query.shape.size() != 2 || query.shape[1] < 1 || query.shape[1] % heads != 0) {
        refuse("query of VarlenAttention is " + text(query.shape) + "; it has to be [rows, width], the width a multiple of " +
            std::to_string(heads) + " heads");
    }
    rows = query.shape[0];
    width = query.shape[1];
    if (key_value.shape.size() != 2 || key_value.shape[1] != 2 * width) {
        refuse("key_value of VarlenAttention is " + text(key_value.shape) + "; query asks for [rows, " +
            std::to_string(2 * width) + "]");
    }
    key_rows = key_value.shape[0];
    sequences = sequences_of(kVarlen, "cu_seqlens", cu_seqlens);
    expect(kVarlen, "cu_keys", cu_keys, cu_seqlens.shape, "cu_seqlens asks for");
}

}  // namespace madtp::onnxruntime
