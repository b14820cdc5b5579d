// Vectors of floats as wide as the instruction set that this is compiled for, in GCC's and Clang's vector extension.
//
// Everything here has internal linkage: the same template compiled for two instruction sets must not become one.
#pragma once
#include <cstddef>
#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr size_t kLanes = 16;
#elif defined(__AVX__)
constexpr size_t kLanes = 8;
#else
constexpr size_t kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float LooseVector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline Vector load(float const* source) noexcept { return *reinterpret_cast<LooseVector const*>(source); }
inline void store(float* target, Vector value) noexcept { *reinterpret_cast<LooseVector*>(target) = value; }
inline Vector broadcast(float value) noexcept { return value - Vector{}; }

// The larger of the two; the first where one is not a number.
inline Vector larger(Vector a, Vector b) noexcept { return b > a ? b : a; }

inline float sum(Vector value) noexcept {
    float total = 0;
    for (size_t lane = 0; lane < kLanes; ++lane) { total += value[lane]; }
    return total;
}

inline float maximum(Vector value) noexcept {
    float most = value[0];
    for (size_t lane = 1; lane < kLanes; ++lane) { most = value[lane] > most ? value[lane] : most; }
    return most;
}

// e^x for x <= 0, within 2 units in the last place; below -87.3 it is zero, and NaN stays NaN.
// Cody-Waite reduction by log 2 and the polynomial of Cephes' expf.
inline Vector exponential(Vector x) noexcept {
    constexpr float kShift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
    Vector const shifted = x * 1.44269504088896341F + kShift;
    Vector const whole = shifted - kShift;
    Vector const rest = (x - whole * 0.693359375F) + whole * 2.12194440e-4F;
    Vector power = rest * 1.9875691500e-4F + 1.3981999507e-3F;
    power = power * rest + 8.3334519073e-3F;
    power = power * rest + 4.1665795894e-2F;
    power = power * rest + 1.6666665459e-1F;
    power = power * rest + 5.0000001201e-1F;
    power = power * rest * rest + rest + 1.0F;
    // the low bits of `shifted` hold the integer: into the exponent with it
    Integers const bits = reinterpret_cast<Integers>(power) + (reinterpret_cast<Integers>(shifted) << 23);
    return x < -87.3F ? Vector{} : reinterpret_cast<Vector>(bits);
}

}  // namespace
