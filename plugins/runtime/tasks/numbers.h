// Numbers of a row of logits or scores. Sums are in double, and results rounded to float once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace madtp {

using Ranked = std::vector<std::pair<float, std::int64_t>>;  // value and place

// The largest k of a row, the largest first. Equal ones in the order that torch.topk gives on CPUs, which decides what
// answers with one first word are read.
Ranked largest(std::vector<float> const& values, std::size_t k);

std::vector<float> log_softmax(float const* row, std::size_t size);
std::vector<float> softmax(float const* row, std::size_t size);

// Cross-entropy with label smoothing of 0.1, by which the published code ranks answers.
float smoothed_loss(float const* logits, std::size_t size, std::int64_t target);

}  // namespace madtp
