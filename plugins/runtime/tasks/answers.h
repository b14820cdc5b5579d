// Choosing an answer among candidates.
#pragma once
#include <utility>
#include <vector>

#include "tasks/decoder.h"

namespace madtp {

struct RankedAnswers {
    std::vector<std::pair<std::size_t, float>> top;  // those that were read to the end: place and score, best first
    std::size_t best = 0;                            // place of the chosen one
};

// For each sample of the source the answer of the largest label-smoothed log probability among the `k` that are
// likeliest by their first word. `answers` are ids, [DEC] first and [SEP] last.
std::vector<RankedAnswers> rank_answers(
    Session& session, Source const& source, std::vector<Ids> const& answers, std::size_t k, std::int64_t pad_id);

}  // namespace madtp
