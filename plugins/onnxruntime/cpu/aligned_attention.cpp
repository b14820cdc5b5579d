// AlignedAttention on the CPU: takes the queries of a sample block by block. Of the probabilities only those of one head and
// one block exist at a time.
#include <atomic>

#include "onnxruntime/cpu/buffer.h"
#include "onnxruntime/cpu/instruction_set.h"
#include "onnxruntime/cpu/ops.h"

namespace madtp::onnxruntime {

AlignedAttention::AlignedAttention(Attributes const& attributes)
    : mHeads{attributes.integer("heads")}, mCausal{attributes.integer("causal") != 0} {
    if (mHeads < 1) { refuse("AlignedAttention has " + std::to_string(mHeads) + " heads; it needs one at least"); }
}

void AlignedAttention::run(Call const& context) const {
    Input const qkv = context.input(0), key_mask = context.input(1);
    if (qkv.shape.size() != 3 || qkv.shape[1] < 1 || qkv.shape[2] < 1 || qkv.shape[2] % 3 != 0 ||
        qkv.shape[2] / 3 % mHeads != 0) {
        refuse("qkv of AlignedAttention is " + text(qkv.shape) + "; it has to be [samples, tokens, 3 * width], the width a "
            "multiple of " + std::to_string(mHeads) + " heads");
    }
    Shape const rows{qkv.shape[0], qkv.shape[1]};
    if (key_mask.shape != rows) {
        refuse("key_mask of AlignedAttention is " + text(key_mask.shape) + "; qkv asks for " + text(rows));
    }
    int64_t const width = qkv.shape[2] / 3, scored = rows[1] - 1;
    cpu::Kernels const& kernels = cpu::kernels();
    cpu::Attention call{};
    call.qkv = qkv.as<float>();
    call.key_mask = key_mask.as<float>();
    call.context = context.output<float>(0, {rows[0], rows[1], width});
    call.column_score = context.output<float>(1, {rows[0], scored});
    call.class_score = context.output<float>(2, {rows[0], scored});
    call.batch = static_cast<size_t>(rows[0]);
    call.length = static_cast<size_t>(rows[1]);
    call.width = static_cast<size_t>(width);
    call.heads = static_cast<size_t>(mHeads);
    call.head_size = call.width / call.heads;
    call.blocks = cpu::round_up(call.length, kernels.queries) / kernels.queries;
    call.causal = mCausal;
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
