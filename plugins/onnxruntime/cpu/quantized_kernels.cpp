#include "onnxruntime/cpu/quantized_kernels.h"

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "onnxruntime/cpu/vector.h"

namespace madtp::cpu {
namespace {

static_assert(kLanes == kTileRows, "a row of an accumulator tile is a vector");

constexpr size_t kStepBytes = 2 * kTile;  // of a weight panel
constexpr size_t kStreamed = size_t{4} << 20;  // bytes of an output that no cache of a core holds until it is read

struct alignas(64) TileConfiguration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    TileConfiguration() noexcept {
        for (size_t tile = 0; tile < 8; ++tile) {
            row_bytes[tile] = kTileBytes;
            rows[tile] = kTileRows;
        }
    }
};

// The tiles of a thread, for as long as this lives.
struct Tiles {
    Tiles() noexcept {
        TileConfiguration const configuration;
        _tile_loadconfig(&configuration);
    }
    ~Tiles() { _tile_release(); }
    Tiles(Tiles const&) = delete;
    Tiles& operator=(Tiles const&) = delete;
};

// x / 2 * (1 + erf(x / sqrt 2)); erf as a rational function, within 5e-7, as in Eigen's generic_fast_erf_float.
Vector gelu_of(Vector x) noexcept {
    constexpr float kBound = 4.0F;  // erf is one in float32 from here on
    Vector root = x * 0.70710678118654752F;
    root = root > kBound ? broadcast(kBound) : root;
    root = root < -kBound ? broadcast(-kBound) : root;
    Vector const square = root * root;
    Vector above = square * -2.72614225801306e-10F + 2.77068142495902e-08F;
    above = above * square + -2.10102402082508e-06F;
    above = above * square + -5.69250639462346e-05F;
    above = above * square + -7.34990630326855e-04F;
    above = above * square + -2.95459980854025e-03F;
    above = above * square + -1.60960333262415e-02F;
    Vector below = square * -1.45660718464996e-05F + -2.13374055278905e-04F;
    below = below * square + -1.68282697438203e-03F;
    below = below * square + -7.37332916720468e-03F;
    below = below * square + -1.42647390514189e-02F;
    return x * 0.5F * (1.0F + root * above / below);
}

// What turns the sums of a panel's half, sixteen columns, into outputs.
struct Epilogue {
    Integers correction;
    Vector scale, bias;
    __mmask16 filled;
    bool gelu, streams;

    Epilogue(QuantizedLinear const& call, size_t column) noexcept
        : filled{static_cast<__mmask16>(column >= call.columns ? 0
              : call.columns - column >= kLanes                ? 0xFFFF
                                                               : (1U << (call.columns - column)) - 1)},
          gelu{call.gelu},
          streams{call.rows * call.columns * sizeof(float) >= kStreamed && call.columns % kLanes == 0 &&
              reinterpret_cast<uintptr_t>(call.output) % sizeof(Vector) == 0} {
        __m512i const sums = _mm512_maskz_loadu_epi32(filled, call.column_sum + column);
        correction = reinterpret_cast<Integers>(sums) * call.quantization.zero_point;
        scale = reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(filled, call.scale + column)) * call.quantization.scale;
        bias = reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(filled, call.bias + column));
    }

    void store(int32_t const* sums, float* output) const noexcept {
        Integers const whole = *reinterpret_cast<Integers const*>(sums) - correction;
        Vector value = __builtin_convertvector(whole, Vector) * scale + bias;
        if (gelu) { value = gelu_of(value); }
        if (streams) {
            _mm512_stream_ps(output, reinterpret_cast<__m512>(value));
        } else {
            _mm512_mask_storeu_ps(output, filled, reinterpret_cast<__m512>(value));
        }
    }
};

// 32 rows of tiles (or 16) times a panel, into [32, 32] sums.
void multiply_tiles(uint8_t const* above, uint8_t const* below, int8_t const* weight, size_t steps, int32_t* sums) noexcept {
    constexpr size_t kStride = kColumns * sizeof(int32_t);
    _tile_zero(0);
    _tile_zero(1);
    if (below == nullptr) {
        for (size_t step = 0; step < steps; ++step) {
            _tile_loadd(4, above + step * kTile, kTileBytes);
            _tile_loadd(6, weight + step * kStepBytes, kTileBytes);
            _tile_loadd(7, weight + step * kStepBytes + kTile, kTileBytes);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
        }
    } else {
        _tile_zero(2);
        _tile_zero(3);
        for (size_t step = 0; step < steps; ++step) {
            _tile_loadd(4, above + step * kTile, kTileBytes);
            _tile_loadd(6, weight + step * kStepBytes, kTileBytes);
            _tile_dpbusd(0, 4, 6);
            _tile_loadd(7, weight + step * kStepBytes + kTile, kTileBytes);
            _tile_dpbusd(1, 4, 7);
            _tile_loadd(5, below + step * kTile, kTileBytes);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
        _tile_stored(2, sums + kTileRows * kColumns, kStride);
        _tile_stored(3, sums + kTileRows * kColumns + kTileRows, kStride);
    }
    _tile_stored(0, sums, kStride);
    _tile_stored(1, sums + kTileRows, kStride);
}

}  // namespace

bool has_amx() noexcept {
    constexpr unsigned kAmx = 1U << 24 | 1U << 25;  // AMX-TILE and AMX-INT8 in EDX of leaf 7
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAmx) != kAmx) { return false; }
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Range range_of(float const* values, size_t count) noexcept {
    Vector low{}, high{}, broken{};
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        Vector const value = load(values + i);
        low = value < low ? value : low;
        high = value > high ? value : high;
        broken += value - value;  // zero, or NaN
    }
    Range range{-maximum(-low), maximum(high)};
    float rest = sum(broken);
    for (; i < count; ++i) {
        range.lowest = values[i] < range.lowest ? values[i] : range.lowest;
        range.highest = values[i] > range.highest ? values[i] : range.highest;
        rest += values[i] - values[i];
    }
    return {range.lowest + rest, range.highest + rest};
}

void quantize_rows(float const* values, size_t rows, size_t depth, Quantization quantization, uint8_t* tiles) noexcept {
    constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    Vector const scale = broadcast(quantization.scale), inverse = 1.0F / scale;
    float const zero_point = static_cast<float>(quantization.zero_point);
    __m512 const least = _mm512_set1_ps(-zero_point), most = _mm512_set1_ps(255 - zero_point);
    __m512i const shift = _mm512_set1_epi32(quantization.zero_point);
    for (size_t r = 0; r < rows; ++r) {
        float const* row = values + r * depth;
        for (size_t k = 0; k < depth; k += kLanes) {
            auto const filled = static_cast<__mmask16>(depth - k >= kLanes ? 0xFFFF : (1U << (depth - k)) - 1);
            Vector const value = reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(filled, row + k));
            Vector quotient = value * inverse;
            // A division takes ten times as long, and rounds otherwise near the middle between two integers alone.
            Vector const rest = quotient - reinterpret_cast<Vector>(
                _mm512_roundscale_ps(reinterpret_cast<__m512>(quotient), kNearestEven));
            __m512 const distance = _mm512_abs_ps(reinterpret_cast<__m512>(rest));
            if (_mm512_cmp_ps_mask(distance, _mm512_set1_ps(0.4999F), _CMP_NLE_UQ) != 0) { quotient = value / scale; }
            __m512 const clipped = _mm512_min_ps(_mm512_max_ps(reinterpret_cast<__m512>(quotient), least), most);
            __m512i const whole = _mm512_add_epi32(_mm512_cvtps_epi32(clipped), shift);
            uint8_t* target = tiles + k / kTileBytes * kTile + r * kTileBytes + k % kTileBytes;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm512_cvtepi32_epi8(whole));
        }
    }
}

void multiply_panels(
    QuantizedLinear const& call, size_t first_panel, size_t last_panel, size_t first, size_t end) noexcept {
    alignas(64) int32_t sums[kColumns * kColumns];
    {
        Tiles const tiles;
        for (size_t row = first; row < end; row += kColumns) {
            uint8_t const* above = call.activations + row / kTileRows * call.steps * kTile;
            uint8_t const* below = row + kTileRows < end ? above + call.steps * kTile : nullptr;
            size_t const rows = end - row < kColumns ? end - row : kColumns;
            for (size_t panel = first_panel; panel < last_panel; ++panel) {
                multiply_tiles(above, below, call.weight + panel * call.steps * kStepBytes, call.steps, sums);
                size_t const column = panel * kColumns;
                Epilogue const left{call, column}, right{call, column + kLanes};
                for (size_t r = 0; r < rows; ++r) {
                    float* output = call.output + (row + r) * call.columns + column;
                    left.store(sums + r * kColumns, output);
                    right.store(sums + r * kColumns + kLanes, output + kLanes);
                }
            }
        }
    }
    _mm_sfence();  // what was streamed is there before another thread is told
}

}  // namespace madtp::cpu
