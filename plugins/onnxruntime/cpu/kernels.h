// The CPU kernels of the two custom ops, in float32: what is compiled once for each instruction set.
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

// One AlignedAttention call. B samples, L tokens with the class token at index 0, H heads of D = C / H.
struct Attention {
    float const* qkv;       // [B, L, 3C]
    float const* key_mask;  // [B, L]
    float* context;         // [B, L, C]
    float* column_score;    // [B, L - 1]
    float* class_score;     // [B, L - 1]
    // workspace
    float* keys;            // [B, H, L, D], in tiles of `tile` keys: [D][tile]
    float* values;          // [B, H, L, D], in tiles of `tile` places: [L][tile]; the last ones may have fewer
    float* class_row;       // [B, H, L], probabilities of the class query
    float* norm;            // [B, H, L], of the context
    float* partial;         // [B, blocks, L], column sums of the queries of each block
    size_t batch, length, width, heads, head_size, blocks;
    bool causal;
};

// The importance of one sample's N tokens, and its threshold.
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
    // Keys and values of one head of one sample, in the order in which `attend` needs them.
    void (*pack)(Attention const& call, size_t sample, size_t head) noexcept;
    // All heads for the queries of one block of one sample; `scratch` has `queries` floats for each of 2 L + 2 D rows, on
    // a 64-byte boundary.
    void (*attend)(Attention const& call, size_t sample, size_t block, float* scratch) noexcept;
    // Column and class score of one sample, when all its blocks are done.
    void (*finish)(Attention const& call, size_t sample) noexcept;
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
