// Linear layers in INT8 on the tiles of Intel AMX: weights per output channel, activations per tensor as they come.
#pragma once
#include <cstddef>
#include <cstdint>

namespace madtp::cpu {

constexpr size_t kTileRows = 16, kTileBytes = 64;  // of an AMX tile
constexpr size_t kTile = kTileRows * kTileBytes;
constexpr size_t kColumns = 2 * kTileRows;         // outputs of a weight panel

// uint8 activations: value = (q - zero_point) * scale, as DynamicQuantizeLinear of ONNX defines it.
struct Quantization {
    float scale;
    int32_t zero_point;
};

struct Range {
    float lowest, highest;  // zero included; NaN where a value is not finite
};

// One call: `rows` activations of `depth`, in tiles of 16 by 64; K = steps * 64.
struct QuantizedLinear {
    uint8_t const* activations;  // [rows / 16, steps, 16, 64], rows and depth rounded up
    int8_t const* weight;        // [columns / 32, steps, 2, 16, 64], four rows of the weight in each of the 16; padded with zeros
    int32_t const* column_sum;   // [columns], of the weight
    float const* scale;          // [columns], of the weight
    float const* bias;           // [columns]
    float* output;               // [rows, columns]
    size_t rows, columns, steps;
    Quantization quantization;
    bool gelu;
};

// Whether the processor has AMX tiles, and the system lets this process use them.
bool has_amx() noexcept;

// The range of some activations.
Range range_of(float const* values, size_t count) noexcept;

// Rows of `depth` floats into a row of tiles; `rows` is at most 16.
void quantize_rows(float const* values, size_t rows, size_t depth, Quantization quantization, uint8_t* tiles) noexcept;

// Rows `first` to `end` of the output, columns of weight panels `first_panel` to `last_panel`; `first` is a multiple of 32.
void multiply_panels(
    QuantizedLinear const& call, size_t first_panel, size_t last_panel, size_t first, size_t end) noexcept;

}  // namespace madtp::cpu
