// AlignedAttention and its packed form on the CPU.
#include <algorithm>

#include "onnxruntime/cpu/attention.h"
#include "onnxruntime/cpu/ops.h"
#include "onnxruntime/cpu/sequences.h"

namespace madtp::onnxruntime {
namespace {

cpu::Attention call_of(Input const& qkv, Input const& key_mask, int64_t width, AttentionAttributes const& attributes) {
    cpu::Attention call{};
    call.query = qkv.as<float>();
    call.key_mask = key_mask.as<float>();
    call.width = static_cast<size_t>(width);
    call.key = call.query + call.width;
    call.query_stride = call.key_stride = 3 * call.width;
    call.heads = static_cast<size_t>(attributes.heads);
    call.head_size = call.width / call.heads;
    call.causal = attributes.causal;
    call.statistics = true;
    return call;
}

}  // namespace

AlignedAttention::AlignedAttention(Attributes const& attributes) : mAttributes{attributes} {}

void AlignedAttention::run(Call const& context) const {
    AttentionArguments const arguments{context, mAttributes};
    int64_t const scored = arguments.length - 1;
    cpu::Attention call = call_of(arguments.qkv, arguments.key_mask, arguments.width, mAttributes);
    call.context = context.output<float>(0, {arguments.batch, arguments.length, arguments.width});
    call.column_score = context.output<float>(1, {arguments.batch, scored});
    call.class_score = context.output<float>(2, {arguments.batch, scored});
    auto const length = static_cast<size_t>(arguments.length);
    std::vector<cpu::Sequence> samples;
    for (size_t i = 0; i < static_cast<size_t>(arguments.batch); ++i) {
        samples.push_back({i * length, length, i * length, length, i * (length - 1), 0});
    }
    attend(context, call, samples);
}

PackedAlignedAttention::PackedAlignedAttention(Attributes const& attributes)
    : mAttributes{attributes, "PackedAlignedAttention"} {}

void PackedAlignedAttention::run(Call const& context) const {
    PackedAttentionArguments const arguments{context, mAttributes};
    auto const starts = starts_of("cu_seqlens of PackedAlignedAttention", arguments.cu_seqlens, arguments.rows);
    cpu::Attention call = call_of(arguments.qkv, arguments.key_mask, arguments.width, mAttributes);
    call.context = context.output<float>(0, {arguments.rows, arguments.width});
    call.column_score = context.output<float>(1, {arguments.rows});
    call.class_score = context.output<float>(2, {arguments.rows});
    std::vector<cpu::Sequence> sequences;
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
        size_t const first = starts[s], length = starts[s + 1] - first;
        sequences.push_back({first, length, first, length, first + 1, 0});
        if (length > 0) { call.column_score[first] = call.class_score[first] = 0; }
    }
    // nothing of what the rows behind the last sequence hold goes on
    auto const rows = static_cast<size_t>(arguments.rows), last = starts.back();
    std::fill(call.context + last * call.width, call.context + rows * call.width, 0.0F);
    std::fill(call.column_score + last, call.column_score + rows, 0.0F);
    std::fill(call.class_score + last, call.class_score + rows, 0.0F);
    attend(context, call, sequences);
}

}  // namespace madtp::onnxruntime
