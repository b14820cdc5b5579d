// AlignedAttention on the CPU: takes the queries of a sample block by block. Of the probabilities only those of one head and
// one block exist at a time.
#include <atomic>

#include "onnxruntime/cpu/buffer.h"
#include "onnxruntime/cpu/instruction_set.h"
#include "onnxruntime/cpu/ops.h"

namespace madtp::onnxruntime {

AlignedAttention::AlignedAttention(Attributes const& attributes) : mAttributes{attributes} {}

void AlignedAttention::run(Call const& context) const {
    AttentionArguments const arguments{context, mAttributes};
    int64_t const scored = arguments.length - 1;
    cpu::Kernels const& kernels = cpu::kernels();
    cpu::Attention call{};
    call.qkv = arguments.qkv.as<float>();
    call.key_mask = arguments.key_mask.as<float>();
    call.context = context.output<float>(0, {arguments.batch, arguments.length, arguments.width});
    call.column_score = context.output<float>(1, {arguments.batch, scored});
    call.class_score = context.output<float>(2, {arguments.batch, scored});
    call.batch = static_cast<size_t>(arguments.batch);
    call.length = static_cast<size_t>(arguments.length);
    call.width = static_cast<size_t>(arguments.width);
    call.heads = static_cast<size_t>(mAttributes.heads);
    call.head_size = call.width / call.heads;
    call.blocks = cpu::round_up(call.length, kernels.queries) / kernels.queries;
    call.causal = mAttributes.causal;
    if (call.batch == 0) { return; }

    size_t const pairs = call.batch * call.heads;
    auto const keys = cpu::allocate<float>(pairs * call.length * call.head_size);
    auto const values = cpu::allocate<float>(pairs * call.length * call.head_size);
    auto const class_row = cpu::allocate<float>(pairs * call.length);
    auto const norm = cpu::allocate<float>(pairs * call.length);
    auto const partial = cpu::allocate<float>(call.batch * call.blocks * call.length);
    call.keys = keys.get();
    call.values = values.get();
    call.class_row = class_row.get();
    call.norm = norm.get();
    call.partial = partial.get();
    size_t const floats = 2 * kernels.queries * (call.length + call.head_size);
    context.parallel(pairs, [&](size_t i) noexcept { kernels.pack(call, i / call.heads, i % call.heads); });
    std::atomic<bool> fits{true};
    context.parallel(call.batch * call.blocks, [&](size_t i) noexcept {
        auto const scratch = cpu::try_allocate<float>(floats);
        if (scratch == nullptr) {
            fits = false;
            return;
        }
        kernels.attend(call, i / call.blocks, i % call.blocks, scratch.get());
    });
    if (!fits) { throw std::bad_alloc{}; }
    context.parallel(call.batch, [&](size_t sample) noexcept { kernels.finish(call, sample); });
}

}  // namespace madtp::onnxruntime
