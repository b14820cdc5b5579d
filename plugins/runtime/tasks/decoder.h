// The part `decoder`, step by step, and what it looks at.
#pragma once
#include <optional>

#include "madtp/engine.hpp"
#include "madtp/tokenizer.hpp"

namespace madtp {

// Keys and values of an encoder's states, float32 [layers, 2, batch, heads, states, size]; and in the packed layout how
// many of the states each sample has, int64 [batch].
struct Source {
    Tensor cache;
    std::optional<Tensor> lengths;

    explicit Source(Outputs const& encoded);
    std::int64_t batch() const { return cache.shape()[2]; }
    Source of(std::int64_t sample) const;

private:
    Source(Tensor cache, std::optional<Tensor> lengths) : cache(std::move(cache)), lengths(std::move(lengths)) {}
};

// Writes `texts` texts for each sample of a source at once, and keeps the cache of what was written.
class Decoder {
public:
    Decoder(Session& session, Source const& source, std::int64_t texts);

    // Logits [batch * texts, vocabulary] of the id after the given ones: `ids` has as many for each text. `rows` says
    // which text of the step before each text continues; empty: itself.
    Tensor step(Ids const& ids, Ids rows = {});

private:
    Session& session_;
    Source const& source_;
    std::int64_t texts_;
    Tensor past_;
};

}  // namespace madtp
