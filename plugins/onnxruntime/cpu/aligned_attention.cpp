// AlignedAttention on the CPU: packs keys and values, then takes the queries of a sample block by block. Of the
// probabilities only those of one head and one block exist at a time.
#include <atomic>

#include "onnxruntime/cpu/buffer.h"
#include "onnxruntime/cpu/instruction_set.h"
#include "onnxruntime/cpu/ops.h"

namespace madtp::onnxruntime {

AlignedAttention::AlignedAttention(Attributes const& attributes) : mAttributes{attributes} {}

void AlignedAttention::run(Call const& context) const {
    AttentionArguments const arguments{context, mAttributes};
    int64_t const scored = arguments.length - 1;
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
    call.columns = cpu::round_up(call.length, cpu::kPanel);
    call.depth = cpu::round_up(call.head_size, cpu::kPanel);
    call.blocks = call.length == 1 ? 1 : cpu::round_up(call.length - 1, cpu::kBlockRows) / cpu::kBlockRows;
    call.causal = mAttributes.causal;
    if (call.batch == 0) { return; }

    size_t const pairs = call.batch * call.heads;
    auto const keys = cpu::allocate<float>(pairs * call.columns * call.head_size);
    auto const values = cpu::allocate<float>(pairs * call.length * call.depth);
    auto const mask = cpu::allocate<float>(call.batch * call.columns);
    auto const class_row = cpu::allocate<float>(pairs * call.length);
    auto const norm = cpu::allocate<float>(pairs * call.length);
    auto const partial = cpu::allocate<float>(call.batch * call.blocks * call.columns);
    call.keys = keys.get();
    call.values = values.get();
    call.mask = mask.get();
    call.class_row = class_row.get();
    call.norm = norm.get();
    call.partial = partial.get();

    cpu::Kernels const& kernels = cpu::kernels();
    context.parallel(pairs, [&](size_t i) noexcept { kernels.pack(call, i / call.heads, i % call.heads); });
    std::atomic<bool> fits{true};
    context.parallel(call.batch * call.blocks, [&](size_t i) noexcept {
        auto const scratch = cpu::try_allocate<float>(cpu::block_floats(call.columns, call.head_size, call.depth));
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
