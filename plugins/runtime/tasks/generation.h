// Writing texts with a decoder: greedy and beam search.
#pragma once
#include <vector>

#include "tasks/decoder.h"

namespace madtp {

// How long a text may become, its prompt included, and the ids that end it and fill it up.
struct Limits {
    std::int64_t max_length, min_length;
    std::int64_t end_id, pad_id;
};

// A text for each sample of the source, as the published evaluation writes it; the prompt is its beginning, and nothing
// fills it up. With one beam the search is greedy.
std::vector<Ids> write_texts(
    Session& session, Source const& source, Ids const& prompt, Limits const& limits, std::int64_t beams);

}  // namespace madtp
