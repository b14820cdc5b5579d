// Every image against every text by embedding, and the best pairs once more by matching.
#pragma once
#include <vector>

#include "tasks/requests.h"

namespace madtp {

struct RankingSizes {
    std::size_t images, texts, pairs, k_test;
};

// Ranks images and texts, which are ids with [CLS] first. `match` is whether the artifact has that part (retrieval).
Ranking rank_pairs(Session& session, std::vector<Pixels> const& images, std::vector<Ids> const& texts,
    RankingSizes const& sizes, RunOptions const& options);

}  // namespace madtp
