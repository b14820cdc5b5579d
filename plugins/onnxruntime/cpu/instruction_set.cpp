#include "onnxruntime/cpu/instruction_set.h"

#include <cstdlib>
#include <cstring>

namespace madtp::cpu {
namespace {

Kernels const& best() noexcept {
#ifdef __x86_64__
    char const* wanted = std::getenv("MADTP_CPU");
    bool const any = wanted == nullptr || std::strcmp(wanted, "avx512") == 0;
    bool const avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (any && avx512) { return avx512_kernels; }
    bool const avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if ((any || std::strcmp(wanted, "avx2") == 0) && avx2) { return avx2_kernels; }
#endif
    return baseline_kernels;
}

}  // namespace

Kernels const& kernels() noexcept {
    static Kernels const& chosen = best();
    return chosen;
}

}  // namespace madtp::cpu
