#include "onnxruntime/cpu/compaction.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "onnxruntime/cpu/instruction_set.h"

namespace madtp::onnxruntime {
namespace {

// Tokens of one sequence above its threshold; all where something is not finite, which must decide nothing.
size_t count_above(float const* importance, size_t count, float threshold) noexcept {
    float magnitude = std::fabs(threshold);
    size_t above = 0;
    for (size_t j = 0; j < count; ++j) {
        magnitude += std::fabs(importance[j]);
        above += importance[j] > threshold ? 1 : 0;
    }
    return magnitude <= std::numeric_limits<float>::max() ? above : count;
}

// What stays of one sequence: rows of [class, K - 1 best by position, K-th best], and what is merged, by position.
struct Selection {
    int32_t* kept;     // [K + 1], tokens
    int32_t* dropped;  // [N - K], tokens
    float* weights;    // [N - K], of the dropped ones
    int32_t swallowed; // the best of the dropped ones
};

// `order` is scratch for N indices.
void select(float const* importance, size_t count, size_t keep, int32_t* order, Selection& selection) noexcept {
    // of equal ones the lower index is the better
    auto const better = [importance](int32_t a, int32_t b) {
        return importance[a] > importance[b] || (importance[a] == importance[b] && a < b);
    };
    for (size_t j = 0; j < count; ++j) { order[j] = static_cast<int32_t>(j); }
    std::nth_element(order, order + keep, order + count, better);
    int32_t const swallowed = order[keep];
    int32_t const last = *std::max_element(order, order + keep, better);
    std::sort(order, order + keep);
    std::sort(order + keep, order + count);
    size_t row = 0;
    selection.kept[row++] = 0;
    for (size_t i = 0; i < keep; ++i) {
        if (order[i] != last) { selection.kept[row++] = order[i] + 1; }
    }
    selection.kept[row] = last + 1;
    double total = 0;
    for (size_t j = keep; j < count; ++j) { total += importance[order[j]]; }
    float const whole = static_cast<float>(total) + cpu::kEpsilon;
    for (size_t j = keep; j < count; ++j) {
        selection.dropped[j - keep] = order[j] + 1;
        selection.weights[j - keep] = importance[order[j]] / whole;
    }
    selection.swallowed = swallowed + 1;
}

template <typename T>
void copy(T const* source, T* target, size_t count) noexcept {
    if (count > 0) { std::memcpy(target, source, count * sizeof(T)); }
}

size_t rows_of(std::vector<Span> const& sequences) {
    return sequences.empty() ? 0 : sequences.back().first + sequences.back().length;
}

}  // namespace

Plan plan(Call const& context, Compaction const& call, std::vector<Span> const& sequences) {
    cpu::Kernels const& kernels = cpu::kernels();
    size_t const count = sequences.size(), rows = rows_of(sequences);
    Plan made{cpu::allocate<float>(rows), std::vector<size_t>(count), std::vector<size_t>(count + 1)};
    auto const best_alignment = cpu::allocate<float>(rows);
    std::vector<size_t> above(count);  // tokens that each asks for
    context.parallel(count, [&](size_t s) noexcept {
        auto const [first, length, start] = sequences[s];
        size_t const scored = length > 0 ? length - 1 : 0;
        above[s] = scored;
        if (!(call.temperature > 0) || scored == 0) { return; }
        cpu::Scores const scores{call.column_score + start, call.class_score + start,
            call.alignment + start * call.alignments, made.importance.get() + first, best_alignment.get() + first, scored,
            call.alignments, call.temperature, call.keep_margin};
        above[s] = count_above(scores.importance, scored, kernels.threshold(scores));
    });
    std::vector<size_t> wanted(call.requests);
    for (size_t s = 0; s < count; ++s) {
        size_t& most = wanted[s % call.requests];
        most = std::max(most, above[s]);
    }
    for (size_t s = 0; s < count; ++s) {
        size_t const request = s % call.requests, keep = wanted[request], length = sequences[s].length;
        bool const enough = static_cast<int64_t>(keep) >= std::max<int64_t>(call.min_keep[request], 1);
        made.keep[s] = enough && keep + 3 <= length ? keep : 0;  // two tokens to merge, at least
        made.starts[s + 1] = made.starts[s] + (made.keep[s] > 0 ? keep + 2 : length);
    }
    return made;
}

void compact(Call const& context, Compaction const& call, std::vector<Span> const& sequences, Plan const& plan,
    Compacted const& result) {
    cpu::Kernels const& kernels = cpu::kernels();
    size_t const count = sequences.size(), rows = rows_of(sequences);
    auto const start_of = [&](size_t s) { return std::min(plan.starts[s], result.rows); };
    auto const chosen = cpu::allocate<int32_t>(rows);   // of a sequence, from its first row: K + 1 kept, N - K dropped ones
    auto const weights = cpu::allocate<float>(rows);    // of the dropped ones
    auto const order = cpu::allocate<int32_t>(rows);
    context.parallel(count, [&](size_t s) noexcept {
        Span const& sequence = sequences[s];
        size_t const first = sequence.first, keep = plan.keep[s], start = start_of(s), room = start_of(s + 1) - start;
        float const* key_mask = call.key_mask + first;
        int32_t const* source_ids = call.source_ids + first;
        if (keep == 0) {
            copy(key_mask, result.key_mask + start, room);
            copy(source_ids, result.ids + start, room);
            return;
        }
        Selection selection{chosen.get() + first, chosen.get() + first + keep + 1, weights.get() + first, 0};
        select(plan.importance.get() + first, sequence.length - 1, keep, order.get() + first, selection);
        for (size_t row = 0; row < std::min(room, keep + 1); ++row) {
            result.key_mask[start + row] = key_mask[selection.kept[row]];
            result.ids[start + row] = source_ids[selection.kept[row]];
        }
        if (room == keep + 2) {
            result.key_mask[start + keep + 1] = key_mask[selection.swallowed];
            result.ids[start + keep + 1] = call.merged_id;
        }
    });
    // by columns, which sequences of any length have enough of; one that is left unchanged by rows
    constexpr size_t kColumns = 64;
    size_t const width = call.width, parts = cpu::round_up(width, kColumns) / kColumns;
    context.parallel(count * parts, [&](size_t i) noexcept {
        size_t const s = i / parts, part = i % parts, keep = plan.keep[s], start = start_of(s);
        size_t const room = start_of(s + 1) - start;
        float const* source = call.tokens + sequences[s].first * width;
        float* target = result.tokens + start * width;
        if (keep == 0) {
            size_t const begin = room * part / parts, end = room * (part + 1) / parts;
            copy(source + begin * width, target + begin * width, (end - begin) * width);
            return;
        }
        size_t const first = part * kColumns, columns = std::min(kColumns, width - first);
        int32_t const* kept = chosen.get() + sequences[s].first;
        for (size_t row = 0; row < std::min(room, keep + 1); ++row) {
            float const* token = source + static_cast<size_t>(kept[row]) * width;
            copy(token + first, target + row * width + first, columns);
        }
        if (room == keep + 2) {
            kernels.merge(source + first, width, kept + keep + 1, weights.get() + sequences[s].first,
                sequences[s].length - 1 - keep, columns, target + (keep + 1) * width + first);
        }
    });
    size_t const last = start_of(count);
    std::fill(result.tokens + last * width, result.tokens + result.rows * width, 0.0F);
    std::fill(result.key_mask + last, result.key_mask + result.rows, 0.0F);
    std::fill(result.ids + last, result.ids + result.rows, 0);
}

}  // namespace madtp::onnxruntime
