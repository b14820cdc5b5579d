#include "onnxruntime/cpu/attention.h"

#include <atomic>
#include <cstring>

#include "onnxruntime/cpu/buffer.h"
#include "onnxruntime/cpu/instruction_set.h"

namespace madtp::onnxruntime {
namespace {

// A task: some queries of one sequence. Of the probabilities only those of one head and one block exist at a time.
struct Block {
    size_t sequence, number;
};

}  // namespace

void attend(Call const& context, cpu::Attention call, std::vector<cpu::Sequence>& sequences) {
    cpu::Kernels const& kernels = cpu::kernels();
    std::vector<Block> blocks;
    size_t rows = 0, keys = 0, partials = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
        cpu::Sequence& sequence = sequences[s];
        sequence.partial = partials;
        rows = sequence.first + sequence.length;
        keys = sequence.first_key + sequence.keys;
        if (sequence.keys == 0) {
            float* nothing = call.context + sequence.first * call.width;
            if (sequence.length > 0) { std::memset(nothing, 0, sequence.length * call.width * sizeof(float)); }
            continue;
        }
        size_t const count = cpu::round_up(sequence.length, kernels.queries) / kernels.queries;
        for (size_t number = 0; number < count; ++number) { blocks.push_back({s, number}); }
        partials += count * sequence.keys;
    }
    auto const own_keys = cpu::allocate<float>(keys * call.width);
    auto const values = cpu::allocate<float>(keys * call.width);
    auto const class_row = cpu::allocate<float>(call.statistics ? keys * call.heads : 0);
    auto const norm = cpu::allocate<float>(call.statistics ? rows * call.heads : 0);
    auto const partial = cpu::allocate<float>(call.statistics ? partials : 0);
    call.keys = own_keys.get();
    call.values = values.get();
    call.class_row = class_row.get();
    call.norm = norm.get();
    call.partial = partial.get();
    context.parallel(sequences.size() * call.heads, [&](size_t i) noexcept {
        kernels.pack(call, sequences[i / call.heads], i % call.heads);
    });
    std::atomic<bool> fits{true};
    context.parallel(blocks.size(), [&](size_t i) noexcept {
        cpu::Sequence const& sequence = sequences[blocks[i].sequence];
        auto const scratch = cpu::try_allocate<float>(2 * kernels.queries * (sequence.keys + call.head_size));
        if (scratch == nullptr) {
            fits = false;
            return;
        }
        kernels.attend(call, sequence, blocks[i].number, scratch.get());
    });
    if (!fits) { throw std::bad_alloc{}; }
    if (call.statistics) {
        context.parallel(sequences.size(), [&](size_t s) noexcept { kernels.finish(call, sequences[s]); });
    }
}

}  // namespace madtp::onnxruntime
