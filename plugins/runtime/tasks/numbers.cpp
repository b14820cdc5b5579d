#include "tasks/numbers.h"

#include <algorithm>
#include <cmath>

namespace madtp {
namespace {

constexpr double kSmoothing = 0.1;

// The logarithm of the sum of exponentials.
double log_sum(float const* row, std::size_t size) {
    double const most = *std::max_element(row, row + size);
    double sum = 0;
    for (std::size_t i = 0; i < size; ++i) { sum += std::exp(row[i] - most); }
    return most + std::log(sum);
}

}  // namespace

Ranked largest(std::vector<float> const& values, std::size_t k) {
    Ranked ranked;
    ranked.reserve(values.size());
    for (float value : values) { ranked.emplace_back(value, static_cast<std::int64_t>(ranked.size())); }
    k = std::min(k, ranked.size());
    auto const end = ranked.begin() + static_cast<std::ptrdiff_t>(k);
    auto const larger = [](auto const& left, auto const& right) { return left.first > right.first; };
    // The calls of torch (aten/src/ATen/native/TopKImpl.h), so that the standard library orders equal ones alike.
    if (k * 64 <= ranked.size()) {
        std::partial_sort(ranked.begin(), end, ranked.end(), larger);
    } else if (k > 0) {
        std::nth_element(ranked.begin(), end - 1, ranked.end(), larger);
        std::sort(ranked.begin(), end - 1, larger);
    }
    ranked.resize(k);
    return ranked;
}

std::vector<float> log_softmax(float const* row, std::size_t size) {
    double const sum = log_sum(row, size);
    std::vector<float> result(size);
    std::transform(row, row + size, result.begin(), [&](float value) { return static_cast<float>(value - sum); });
    return result;
}

std::vector<float> softmax(float const* row, std::size_t size) {
    double const sum = log_sum(row, size);
    std::vector<float> result(size);
    std::transform(
        row, row + size, result.begin(), [&](float value) { return static_cast<float>(std::exp(value - sum)); });
    return result;
}

float smoothed_loss(float const* logits, std::size_t size, std::int64_t target) {
    double const sum = log_sum(logits, size);
    double all = 0;
    for (std::size_t i = 0; i < size; ++i) { all += sum - logits[i]; }
    return static_cast<float>((1 - kSmoothing) * (sum - logits[target]) + kSmoothing / static_cast<double>(size) * all);
}

}  // namespace madtp
