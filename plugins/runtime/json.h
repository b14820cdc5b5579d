// JSON as the manifest's readers agree on it: strict, and its canonical text.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace madtp::detail {

using Json = nlohmann::json;

// RFC 8259 in UTF-8, no name twice in an object, brackets at most 64 deep. Throws std::runtime_error: what is wrong.
Json parse_json(std::string_view text);

// What `json.dumps(..., sort_keys=True, separators=(",", ":"), ensure_ascii=False)` of Python gives.
std::string canonical_json(Json const& value);

}  // namespace madtp::detail
