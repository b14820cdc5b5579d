// What tasks rely on beyond what the engine checks: a manifest can be edited and sealed again.
#pragma once
#include "madtp/engine.hpp"

namespace madtp {

// A whole number of the manifest's config, from `least` to `most`. Throws Code::manifest.
std::int64_t config_number(Manifest const& manifest, char const* name, std::int64_t least, std::int64_t most);

// An id of the manifest's config that the model has. Throws Code::manifest.
std::int64_t config_id(Manifest const& manifest, char const* name);

// Refuses a manifest whose parts have no outputs of the shapes that its task reads. Throws Code::manifest.
void check_model(Manifest const& manifest);

// How many of `most` rows are a sequence's own, as an output says. Throws Code::backend: more, or fewer than none.
std::int64_t own_rows(std::int64_t length, std::int64_t most);

}  // namespace madtp
