// TokenCompact and its packed form on the CPU.
#include <algorithm>

#include "onnxruntime/cpu/compaction.h"
#include "onnxruntime/cpu/ops.h"
#include "onnxruntime/cpu/sequences.h"

namespace madtp::onnxruntime {
namespace {

// Of the arguments of either form.
template <typename Arguments>
Compaction call_of(Arguments const& inputs, CompactAttributes const& attributes, size_t requests) {
    return {inputs.tokens.template as<float>(), inputs.key_mask.template as<float>(),
        inputs.source_ids.template as<int32_t>(), inputs.column_score.template as<float>(),
        inputs.class_score.template as<float>(), inputs.alignment.template as<float>(),
        inputs.min_keep.template as<int64_t>(), requests, static_cast<size_t>(inputs.width),
        static_cast<size_t>(inputs.alignments), *inputs.temperature.template as<float>(), attributes.keep_margin,
        -(attributes.layer + 1)};
}

}  // namespace

TokenCompact::TokenCompact(Attributes const& attributes) : mAttributes{attributes} {}

void TokenCompact::run(Call const& context) const {
    CompactArguments const inputs{context};
    auto const batch = static_cast<size_t>(inputs.batch), length = static_cast<size_t>(inputs.length);
    Compaction const call = call_of(inputs, mAttributes, 1);  // all samples keep equally many
    std::vector<Span> samples;
    for (size_t i = 0; i < batch; ++i) { samples.push_back({i * length, length, i * (length - 1)}); }
    Plan const made = plan(context, call, samples);
    size_t const tokens = batch == 0 ? length : made.starts[1];
    auto const count = static_cast<int64_t>(tokens);
    Compacted const result{context.output<float>(0, {inputs.batch, count, inputs.width}),
        context.output<float>(1, {inputs.batch, count}), context.output<int32_t>(2, {inputs.batch, count}),
        batch * tokens};
    *context.output<int64_t>(3, {}) = count;
    compact(context, call, samples, made, result);
}

PackedTokenCompact::PackedTokenCompact(Attributes const& attributes) : mAttributes{attributes} {}

void PackedTokenCompact::run(Call const& context) const {
    PackedCompactArguments const inputs{context, mAttributes};
    auto const starts = starts_of("cu_seqlens of PackedTokenCompact", inputs.cu_seqlens, inputs.rows);
    Compaction const call = call_of(inputs, mAttributes.compact, static_cast<size_t>(inputs.sequences / mAttributes.group));
    std::vector<Span> sequences;
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
        sequences.push_back({starts[s], starts[s + 1] - starts[s], starts[s] + 1});
    }
    Plan const made = plan(context, call, sequences);
    auto const needed = static_cast<int64_t>(made.starts.back());
    int64_t const capacity = mAttributes.capacity;
    int64_t const rows = capacity > 0 ? capacity : capacity < 0 ? inputs.rows : needed;
    Compacted const result{context.output<float>(0, {rows, inputs.width}), context.output<float>(1, {rows}),
        context.output<int32_t>(2, {rows}), static_cast<size_t>(rows)};
    auto* cu_seqlens = context.output<int32_t>(3, inputs.cu_seqlens.shape);
    for (size_t s = 0; s < starts.size(); ++s) {
        cu_seqlens[s] = static_cast<int32_t>(std::min(made.starts[s], result.rows));
    }
    *context.output<int64_t>(4, {}) = needed;
    compact(context, call, sequences, made, result);
}

}  // namespace madtp::onnxruntime
