// Which of the compiled instruction sets the processor has.
#pragma once
#include "onnxruntime/cpu/kernels.h"

namespace madtp::cpu {

// The best that the processor has, or the lesser one that the environment variable MADTP_CPU names: baseline, avx2, avx512.
Kernels const& kernels() noexcept;

}  // namespace madtp::cpu
