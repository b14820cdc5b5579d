// Vectors of floats as wide as the instruction set that this is compiled for, in GCC's and Clang's vector extension.
//
// Everything here has internal linkage: the same template compiled for two instruction sets must not become one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

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
typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef float Four __attribute__((vector_size(4 * sizeof(float))));
typedef float LooseFour __attribute__((vector_size(4 * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vector load(float const* source) noexcept { return *reinterpret_cast<LooseVector const*>(source); }
inline void store(float* target, Vector value) noexcept { *reinterpret_cast<LooseVector*>(target) = value; }
inline Vector broadcast(float value) noexcept { return value - Vector{}; }

// The larger of the two; the first where one is not a number.
inline Vector larger(Vector a, Vector b) noexcept { return b > a ? b : a; }

inline float sum(Vector value) noexcept {
    Four parts[kLanes / 4];
    std::memcpy(parts, &value, sizeof(value));
    for (size_t i = 1; i < kLanes / 4; ++i) { parts[0] += parts[i]; }
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

inline float maximum(Vector value) noexcept {
    float most = value[0];
    for (size_t lane = 1; lane < kLanes; ++lane) { most = value[lane] > most ? value[lane] : most; }
    return most;
}

// e^x for x <= 0, within 2 units in the last place; below -87.3 it is zero, and NaN stays NaN.
// 2^whole times 2^rest; the polynomial is the minimax one of degree 6 for 2^rest, of relative error 2e-9.
inline Vector exponential(Vector x) noexcept {
    constexpr float kLog2E = 1.44269504088896341F, kShift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
    Vector const shifted = x * kLog2E + kShift;
    Vector const rest = x * kLog2E - (shifted - kShift);
    Vector power = rest * 0x1.41d334p-13F + 0x1.5f456ap-10F;
    power = power * rest + 0x1.3b2dbcp-7F;
    power = power * rest + 0x1.c6aed4p-5F;
    power = power * rest + 0x1.ebfbdap-3F;
    power = power * rest + 0x1.62e430p-1F;
    power = power * rest + 1.0F;
    // the low bits of `shifted` hold the integer: into the exponent with it
    Bits const bits = reinterpret_cast<Bits>(power) + (reinterpret_cast<Bits>(shifted) << 23);
    return x < -87.3F ? Vector{} : reinterpret_cast<Vector>(bits);
}

// target[column][row] = factor * source[row][column]; the strides are those of the rows in memory.
inline void transpose(float const* source, size_t source_stride, size_t rows, size_t columns, float factor, float* target,
    size_t target_stride) noexcept {
    size_t const whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (size_t row = 0; row < whole_rows; row += 4) {
        for (size_t column = 0; column < whole_columns; column += 4) {
            Four part[4];
            for (size_t i = 0; i < 4; ++i) {
                part[i] = *reinterpret_cast<LooseFour const*>(source + (row + i) * source_stride + column) * factor;
            }
            for (size_t i = 0; i < 4; ++i) {
                *reinterpret_cast<LooseFour*>(target + (column + i) * target_stride + row) =
                    Four{part[0][i], part[1][i], part[2][i], part[3][i]};
            }
        }
    }
    for (size_t row = 0; row < rows; ++row) {
        for (size_t column = row < whole_rows ? whole_columns : 0; column < columns; ++column) {
            target[column * target_stride + row] = source[row * source_stride + column] * factor;
        }
    }
}

}  // namespace
