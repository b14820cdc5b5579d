// VarlenAttention on the CPU.
#include <algorithm>

#include "onnxruntime/cpu/attention.h"
#include "onnxruntime/cpu/ops.h"
#include "onnxruntime/cpu/sequences.h"

namespace madtp::onnxruntime {

VarlenAttention::VarlenAttention(Attributes const& attributes) : mAttributes{attributes} {}

void VarlenAttention::run(Call const& context) const {
    VarlenArguments const arguments{context, mAttributes};
    auto const starts = starts_of("cu_seqlens of VarlenAttention", arguments.cu_seqlens, arguments.rows);
    auto const key_starts = starts_of("cu_keys of VarlenAttention", arguments.cu_keys, arguments.key_rows);
    cpu::Attention call{};
    call.query = arguments.query.as<float>();
    call.key = arguments.key_value.as<float>();
    call.context = context.output<float>(0, arguments.query.shape);
    call.width = call.query_stride = static_cast<size_t>(arguments.width);
    call.key_stride = 2 * call.width;
    call.heads = static_cast<size_t>(mAttributes.heads);
    call.head_size = call.width / call.heads;
    std::vector<cpu::Sequence> sequences;
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
        size_t const first = starts[s], first_key = key_starts[s];
        sequences.push_back({first, starts[s + 1] - first, first_key, key_starts[s + 1] - first_key, 0, 0});
    }
    auto const rows = static_cast<size_t>(arguments.rows);
    std::fill(call.context + starts.back() * call.width, call.context + rows * call.width, 0.0F);
    attend(context, call, sequences);
}

}  // namespace madtp::onnxruntime
