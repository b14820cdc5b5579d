// What a part takes and gives, checked against its manifest.
#pragma once

#include <madtp/engine.hpp>
#include <string_view>

namespace madtp::detail {

constexpr char const* kTemperature = "temperature";
constexpr char const* kOverflow = "overflow";          // output of a bucket: tokens that it had no room for
constexpr std::string_view kCounts = "_token_counts";  // how outputs end that say how many tokens each layer kept

// Whether an output is on the host wherever the others are: programs steer by it.
bool stays_on_host(std::string_view output) noexcept;

// How many batches a dimension counts: 1 for "batch", 2 for "2*batch"; 0 where it is something else.
int64_t batches_in(Dimension const& dimension) noexcept;

// Refuse inputs that the part was not built for; the batch may be any from 1 to `most`. Returns it. Throws Code::input.
int64_t check_inputs(PartInfo const& part, Inputs const& inputs, int64_t most);

// Refuse outputs that the manifest does not describe, for a batch of `rows`. Throws Code::backend.
void check_outputs(PartInfo const& part, Outputs::Map const& outputs, int64_t rows);

// Refuse outputs on the host that are not finite numbers. Throws Code::backend.
void check_finite(PartInfo const& part, Outputs::Map const& outputs, float temperature);

// Throws Code::input: it is no finite number from zero.
void check_temperature(float temperature);

}  // namespace madtp::detail
