// What the attentions share: the workspace of a call, and how its work is divided.
#pragma once
#include <vector>

#include "onnxruntime/cpu/kernels.h"
#include "onnxruntime/op.h"

namespace madtp::onnxruntime {

// Computes `call`, of whose workspace nothing is set, for `sequences`, whose rows lie end to end; their `partial` is set here.
void attend(Call const& context, cpu::Attention call, std::vector<cpu::Sequence>& sequences);

}  // namespace madtp::onnxruntime
