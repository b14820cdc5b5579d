// The CPU kernels of the custom ops, in float32: what is compiled once for each instruction set.
//
// What they compute is written down in docs/semantics.md; `madtp/ops/reference.py` is the readable reference. Nothing here
// allocates, throws or knows ONNX Runtime. No result depends on the number of threads or on batch mates.
#pragma once
#include <cstddef>
#include <cstdint>

namespace madtp::cpu {

constexpr float kEpsilon = 1e-8F; // of every normalisation in the importance

constexpr size_t round_up(size_t value, size_t multiple) noexcept {
    return (value + multiple - 1) / multiple * multiple;
}

// A sequence: its queries, the keys that they look at, and its place in what else a call has.
struct Sequence {
    size_t first, length;    // rows of queries
    size_t first_key, keys;  // rows of keys and values; in self-attention those of the queries
    size_t scores;           // of its second token, in column_score and class_score
    size_t partial;          // of its part of `partial`
};

// One call of an attention. C wide rows of all sequences, H heads of D = C / H. What the workspace has for one sequence
// begins where the same numbers for all rows before it end.
struct Attention {
    float const* query;     // rows `query_stride` apart
    float const* key;       // rows `key_stride` apart; the value of a key lies C behind it
    float const* key_mask;  // of every row of keys; without statistics there is none
    float* context;         // C wide rows
    float* column_score;    // of all tokens but the first of a sequence
    float* class_score;     // likewise
    // workspace
    float* keys;            // of a sequence [H, keys, D], in tiles of `tile` keys: [D][tile]
    float* values;          // likewise, in tiles of `tile` places: [keys][tile]; the last ones may have fewer
    float* class_row;       // [H, keys], probabilities of the class query
    float* norm;            // [H, length], of the context
    float* partial;         // [blocks, keys], column sums of the queries of each block
    size_t query_stride, key_stride, width, heads, head_size;
    bool causal, statistics;
};

// The importance of one sequence's N tokens, and its threshold.
struct Scores {
    float const* column_score;  // [N]
    float const* class_score;   // [N]
    float const* alignment;     // [N, T]
    float* importance;          // [N]
    float* best_alignment;      // [N], scratch
    size_t tokens, alignments;
    float temperature, keep_margin;
};

// The kernels of one instruction set.
struct Kernels {
    // Queries of one block.
    size_t queries;
    // Keys and values of one head of one sequence, in the order in which `attend` needs them.
    void (*pack)(Attention const& call, Sequence const& sequence, size_t head) noexcept;
    // All heads for the queries of one block of one sequence that has keys; `scratch` has `queries` floats for each of
    // 2 keys + 2 D rows, on a 64-byte boundary.
    void (*attend)(Attention const& call, Sequence const& sequence, size_t block, float* scratch) noexcept;
    // Column and class score of one sequence, when all its blocks are done.
    void (*finish)(Attention const& call, Sequence const& sequence) noexcept;
    // Writes the importance and returns the threshold.
    float (*threshold)(Scores const& scores) noexcept;
    // merged[c] = sum over j of weights[j] * tokens[rows[j]][c], for `columns` columns; rows are `width` floats apart.
    void (*merge)(float const* tokens, size_t width, int32_t const* rows, float const* weights, size_t count,
        size_t columns, float* merged) noexcept;
};

extern Kernels const baseline_kernels;
extern Kernels const avx2_kernels;
extern Kernels const avx512_kernels;

}  // namespace madtp::cpu
