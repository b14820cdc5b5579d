// The last reduction of AlignedAttention, from row statistics and partial column sums.
#pragma once
#include "aligned_attention/arguments.h"

namespace madtp::attention {

struct Scores {
    float column, of_class;
};

// The scores of a key that is not the class token. Column score: `partials` sums in ascending order. Class score: the class
// query's probabilities, heads weighted by the norm of the key's context; where causal it sees no key but itself.
__device__ __forceinline__ Scores scores_of(
    Arguments const& a, Rows const& rows, int key, float const* column_partial, int partials) {
    float column = 0.0f;
    for (int partial = 0; partial < partials; ++partial)
        column += column_partial[int64_t{partial} * rows.length + key];
    float total_norm = 0.0f;
    for (int head = 0; head < a.heads; ++head)
        total_norm += a.context_norm[rows.statistics + int64_t{head} * rows.length + key];
    float class_score = 0.0f;
    for (int head = 0; head < a.heads; ++head) {
        int64_t const row = rows.statistics + int64_t{head} * rows.length;
        float const score = a.causal ? -kInfinity : a.class_row[row + key];
        float const probability = fast_exp2(score - a.row_maximum[row] + a.row_log_scale[row]);
        class_score += probability * a.context_norm[row + key] / (total_norm + kEpsilon);
    }
    return {column, class_score};
}

}  // namespace madtp::attention
