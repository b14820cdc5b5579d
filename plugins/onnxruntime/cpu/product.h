// Products of small matrices, in tiles that stay in registers.
#pragma once
#include "onnxruntime/cpu/vector.h"

namespace {

constexpr size_t kMostVectors = 3;                  // columns of a tile, in vectors
constexpr size_t kTileRows = kLanes == 16 ? 8 : 4;  // 24 accumulators of 32 registers, or 12 of 16

constexpr size_t kAhead = 64;                       // `left` is read once, from far away: so many columns ahead

// Rows of a product, as they leave the registers.
template <size_t Rows, size_t Vectors>
using Tile = Vector[Rows][Vectors];

// `Rows` rows of `left`, which lies there as [depth][Rows].
template <size_t Rows, size_t Vectors, typename Done>
[[gnu::always_inline]] inline void multiply_tile(
    size_t first, float const* left, float const* right, size_t depth, Done const& done) noexcept {
    Tile<Rows, Vectors> total = {};
    for (size_t k = 0; k < depth; ++k) {
        __builtin_prefetch(left + (k + kAhead) * Rows);
        Vector row[Vectors];
#pragma GCC unroll 3
        for (size_t v = 0; v < Vectors; ++v) { row[v] = load(right + (k * Vectors + v) * kLanes); }
#pragma GCC unroll 8
        for (size_t r = 0; r < Rows; ++r) {
            Vector const factor = broadcast(left[k * Rows + r]);
#pragma GCC unroll 3
            for (size_t v = 0; v < Vectors; ++v) { total[r][v] += factor * row[v]; }
        }
    }
    done(first, total);
}

template <size_t Rows, size_t Vectors, typename Done>
[[gnu::always_inline]] inline void multiply_rest(
    size_t first, size_t rows, float const* left, float const* right, size_t depth, Done const& done) noexcept {
    if (rows == Rows) {
        multiply_tile<Rows, Vectors>(first, left, right, depth, done);
    } else if constexpr (Rows > 1) {
        multiply_rest<Rows - 1, Vectors>(first, rows, left, right, depth, done);
    }
}

// done(row, tile) gets rows `row` and following of the product of `left` [rows][stored], of which `depth` columns are taken,
// and `right` [depth][Vectors]. `left` is in tiles of kTileRows rows, the last of which may have fewer; within a tile of n
// rows the order is [stored][n].
template <size_t Vectors, typename Done>
[[gnu::always_inline]] inline void multiply(size_t rows, float const* left, size_t stored, float const* right, size_t depth,
    Done const& done) noexcept {
    size_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows) {
        multiply_tile<kTileRows, Vectors>(row, left + row * stored, right, depth, done);
    }
    multiply_rest<kTileRows - 1, Vectors>(row, rows - row, left + row * stored, right, depth, done);
}

}  // namespace
