// What both forms of TokenCompact share: importance, threshold and selection of every sequence, then one pass that gathers and
// merges. Rows of all sequences lie end to end, before and after.
#pragma once
#include <vector>

#include "onnxruntime/cpu/buffer.h"
#include "onnxruntime/op.h"

namespace madtp::onnxruntime {

// Rows of a sequence, and the row of its second token in column_score, class_score and alignment.
struct Span {
    size_t first, length, scores;
};

struct Compaction {
    float const* tokens;         // [rows, width]
    float const* key_mask;       // [rows]
    int32_t const* source_ids;   // [rows]
    float const* column_score;
    float const* class_score;
    float const* alignment;      // `alignments` wide
    int64_t const* min_keep;     // [requests]
    size_t requests;             // sequence s is of request s % requests; those of a request keep equally many
    size_t width, alignments;
    float temperature, keep_margin;
    int32_t merged_id;
};

// What a call comes to.
struct Plan {
    cpu::Buffer<float> importance;  // of the N tokens of a sequence that are scored, from its first row
    std::vector<size_t> keep;       // K of every sequence; 0 leaves it unchanged
    std::vector<size_t> starts;     // rows that sequences need, as cu_seqlens: K + 2 each, or as many as before
};

Plan plan(Call const& context, Compaction const& call, std::vector<Span> const& sequences);

struct Compacted {
    float* tokens;      // [rows, width]
    float* key_mask;    // [rows]
    int32_t* ids;       // [rows]
    size_t rows;        // those that the sequences have no use for become 0; those that do not fit are left out
};

void compact(Call const& context, Compaction const& call, std::vector<Span> const& sequences, Plan const& plan,
    Compacted const& result);

}  // namespace madtp::onnxruntime
