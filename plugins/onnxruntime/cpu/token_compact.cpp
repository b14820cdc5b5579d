// TokenCompact on the CPU: importance, threshold and selection of every sample, then one pass that gathers and merges.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "onnxruntime/cpu/buffer.h"
#include "onnxruntime/cpu/instruction_set.h"
#include "onnxruntime/cpu/ops.h"

namespace madtp::onnxruntime {
namespace {

// Sizes of a call: B samples of L tokens, N = L - 1 of which are scored, C wide, T alignment tokens.
struct Sizes {
    size_t batch, length, scored, width, alignments;
};

Sizes sizes_of(CompactArguments const& inputs) {
    auto const size = [](int64_t value) { return static_cast<size_t>(value); };
    return {size(inputs.batch), size(inputs.length), size(inputs.length - 1), size(inputs.width), size(inputs.alignments)};
}

// Tokens of one sample above its threshold; all where something is not finite, which must decide nothing.
size_t count_above(float const* importance, size_t count, float threshold) noexcept {
    float magnitude = std::fabs(threshold);
    size_t above = 0;
    for (size_t j = 0; j < count; ++j) {
        magnitude += std::fabs(importance[j]);
        above += importance[j] > threshold ? 1 : 0;
    }
    return magnitude <= std::numeric_limits<float>::max() ? above : count;
}

// What stays of one sample: rows of [class, K - 1 best by position, K-th best], and what is merged, by position.
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
void copy(Input const& input, T* target, size_t count) noexcept {
    if (count > 0) { std::memcpy(target, input.data, count * sizeof(T)); }
}

void leave_unchanged(Call const& context, CompactArguments const& inputs, Sizes const& sizes) {
    size_t const rows = sizes.batch * sizes.length;
    float* compacted = context.output<float>(0, inputs.tokens.shape);
    copy(inputs.key_mask, context.output<float>(1, inputs.key_mask.shape), rows);
    copy(inputs.source_ids, context.output<int32_t>(2, inputs.key_mask.shape), rows);
    *context.output<int64_t>(3, {}) = static_cast<int64_t>(sizes.length);
    context.parallel(sizes.batch, [&](size_t sample) noexcept {
        size_t const floats = sizes.length * sizes.width;
        std::memcpy(compacted + sample * floats, inputs.tokens.as<float>() + sample * floats, floats * sizeof(float));
    });
}

}  // namespace

TokenCompact::TokenCompact(Attributes const& attributes) : mAttributes{attributes} {}

void TokenCompact::run(Call const& context) const {
    CompactArguments const inputs{context};
    float const temperature = *inputs.temperature.as<float>();
    int64_t const min_keep = *inputs.min_keep.as<int64_t>();
    Sizes const sizes = sizes_of(inputs);
    size_t const scored = sizes.scored;
    if (!(temperature > 0) || sizes.batch == 0) { return leave_unchanged(context, inputs, sizes); }

    cpu::Kernels const& kernels = cpu::kernels();
    auto const importance = cpu::allocate<float>(2 * sizes.batch * scored);
    auto const above = cpu::allocate<size_t>(sizes.batch);
    context.parallel(sizes.batch, [&](size_t sample) noexcept {
        float* own = importance.get() + 2 * sample * scored;
        cpu::Scores const scores{inputs.column_score.as<float>() + sample * scored,
            inputs.class_score.as<float>() + sample * scored,
            inputs.alignment.as<float>() + sample * scored * sizes.alignments, own, own + scored, scored,
            sizes.alignments, temperature, mAttributes.keep_margin};
        above[sample] = count_above(own, scored, kernels.threshold(scores));
    });
    size_t const keep = *std::max_element(above.get(), above.get() + sizes.batch);
    if (static_cast<int64_t>(keep) < std::max<int64_t>(min_keep, 1) || scored - keep < 2) {
        return leave_unchanged(context, inputs, sizes);
    }

    size_t const count = keep + 2, dropped = scored - keep;
    auto const batch = static_cast<int64_t>(sizes.batch), tokens = static_cast<int64_t>(count);
    float* compacted = context.output<float>(0, {batch, tokens, inputs.tokens.shape[2]});
    float* mask = context.output<float>(1, {batch, tokens});
    int32_t* ids = context.output<int32_t>(2, {batch, tokens});
    *context.output<int64_t>(3, {}) = tokens;
    auto const kept_rows = cpu::allocate<int32_t>(sizes.batch * (keep + 1));
    auto const dropped_rows = cpu::allocate<int32_t>(sizes.batch * dropped);
    auto const weights = cpu::allocate<float>(sizes.batch * dropped);
    auto const order = cpu::allocate<int32_t>(sizes.batch * scored);
    context.parallel(sizes.batch, [&](size_t sample) noexcept {
        float const* key_mask = inputs.key_mask.as<float>() + sample * sizes.length;
        int32_t const* source_ids = inputs.source_ids.as<int32_t>() + sample * sizes.length;
        Selection chosen{kept_rows.get() + sample * (keep + 1), dropped_rows.get() + sample * dropped,
            weights.get() + sample * dropped, 0};
        select(importance.get() + 2 * sample * scored, scored, keep, order.get() + sample * scored, chosen);
        for (size_t row = 0; row <= keep; ++row) {
            mask[sample * count + row] = key_mask[chosen.kept[row]];
            ids[sample * count + row] = source_ids[chosen.kept[row]];
        }
        mask[sample * count + keep + 1] = key_mask[chosen.swallowed];
        ids[sample * count + keep + 1] = -(mAttributes.layer + 1);
    });
    // by columns, which samples of any size have enough of
    constexpr size_t kColumns = 64;
    size_t const parts = cpu::round_up(sizes.width, kColumns) / kColumns;
    context.parallel(sizes.batch * parts, [&](size_t i) noexcept {
        size_t const sample = i / parts, first = i % parts * kColumns;
        size_t const columns = std::min(kColumns, sizes.width - first);
        float const* source = inputs.tokens.as<float>() + sample * sizes.length * sizes.width + first;
        float* target = compacted + sample * count * sizes.width + first;
        int32_t const* kept = kept_rows.get() + sample * (keep + 1);
        for (size_t row = 0; row <= keep; ++row) {
            size_t const from = static_cast<size_t>(kept[row]) * sizes.width;
            std::memcpy(target + row * sizes.width, source + from, columns * sizeof(float));
        }
        kernels.merge(source, sizes.width, dropped_rows.get() + sample * dropped, weights.get() + sample * dropped, dropped,
            columns, target + (keep + 1) * sizes.width);
    });
}

}  // namespace madtp::onnxruntime
