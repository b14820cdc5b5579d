#include "onnxruntime/cpu/quantized_linear.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "onnxruntime/cpu/buffer.h"
#include "onnxruntime/cpu/quantized_kernels.h"
#include "onnxruntime/cpu/weight_memory.h"

namespace madtp::onnxruntime {
namespace {

constexpr size_t kChunkBytes = 1 << 19;  // of quantized activations that a task goes over: half a level-2 cache or less
constexpr size_t kGroup = 4, kManyRows = 64;
constexpr size_t kTaskFloats = 1 << 15;  // of a task that looks for the range, or quantizes

// The parameters that DynamicQuantizeLinear of ONNX defines, as ONNX Runtime rounds them.
cpu::Quantization quantization_of(cpu::Range range) noexcept {
    float const scale = range.lowest == range.highest ? 1.0F : (range.highest - range.lowest) / 255.0F;
    float const zero_point = std::nearbyintf(std::clamp(-range.lowest / scale, 0.0F, 255.0F));
    return {scale, static_cast<int32_t>(zero_point)};
}

}  // namespace

QuantizedLinear::QuantizedLinear(Attributes const& attributes, bool gelu) : mGelu{gelu} {
    Input const weight = attributes.constant(1);
    if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] < 1) {
        refuse("the weight of QuantizedLinear is " + text(weight.shape) + "; it has to be [inputs, outputs]");
    }
    mDepth = weight.shape[0];
    mColumns = weight.shape[1];
    auto const depth = static_cast<size_t>(mDepth), columns = static_cast<size_t>(mColumns);
    mSteps = cpu::round_up(depth, cpu::kTileBytes) / cpu::kTileBytes;
    mPanels = cpu::round_up(columns, cpu::kColumns) / cpu::kColumns;
    size_t const bytes = mPanels * mSteps * 2 * cpu::kTile;
    mWeight = cpu::weight_memory(bytes);
    std::fill_n(mWeight.get(), bytes, int8_t{0});
    mColumnSum.assign(columns, 0);
    auto const* source = weight.as<int8_t>();
    for (size_t k = 0; k < depth; ++k) {
        for (size_t n = 0; n < columns; ++n) {
            int8_t const value = source[k * columns + n];
            mColumnSum[n] += value;
            size_t const tile = (n / cpu::kColumns * mSteps + k / cpu::kTileBytes) * 2 + n % cpu::kColumns / cpu::kTileRows;
            size_t const row = k % cpu::kTileBytes / 4, byte = n % cpu::kTileRows * 4 + k % 4;
            mWeight[tile * cpu::kTile + row * cpu::kTileBytes + byte] = value;
        }
    }
}

void QuantizedLinear::run(Call const& context) const {
    Input const activations = context.input(0), scale = context.input(2), bias = context.input(3);
    if (activations.shape.empty() || activations.shape.back() != mDepth) {
        refuse("activations of QuantizedLinear are " + text(activations.shape) + "; its weight asks for " +
            std::to_string(mDepth) + " in the last dimension");
    }
    Shape const wanted{mColumns};
    if (scale.shape != wanted || bias.shape != wanted) {
        refuse("scale and bias of QuantizedLinear are " + text(scale.shape) + " and " + text(bias.shape) +
            "; its weight asks for " + text(wanted));
    }
    Shape shape = activations.shape;
    shape.back() = mColumns;
    auto const depth = static_cast<size_t>(mDepth);
    size_t rows = 1;
    for (size_t axis = 0; axis + 1 < shape.size(); ++axis) { rows *= static_cast<size_t>(shape[axis]); }
    float* output = context.output<float>(0, shape);
    if (rows == 0) { return; }

    auto const* values = activations.as<float>();
    size_t const count = rows * depth, parts = cpu::round_up(count, kTaskFloats) / kTaskFloats;
    std::vector<cpu::Range> ranges(parts);
    context.parallel(parts, [&](size_t part) noexcept {
        size_t const first = part * kTaskFloats;
        ranges[part] = cpu::range_of(values + first, std::min(kTaskFloats, count - first));
    });
    cpu::Range range{0, 0};
    bool finite = true;
    for (cpu::Range const& part : ranges) {
        range = {std::min(range.lowest, part.lowest), std::max(range.highest, part.highest)};
        finite = finite && std::isfinite(part.highest - part.lowest);
    }
    if (!finite || !std::isfinite(range.highest - range.lowest)) {
        std::fill_n(output, rows * static_cast<size_t>(mColumns), std::numeric_limits<float>::quiet_NaN());
        return;
    }
    cpu::Quantization const quantization = quantization_of(range);
    size_t const strips = cpu::round_up(rows, cpu::kTileRows) / cpu::kTileRows, strip_bytes = mSteps * cpu::kTile;
    auto const tiles = cpu::allocate<uint8_t>(strips * strip_bytes);
    // a task has as many strips as floats to look at above
    size_t const strips_each = std::max<size_t>(kTaskFloats / (cpu::kTileRows * depth), 1);
    context.parallel(cpu::round_up(strips, strips_each) / strips_each, [&](size_t task) noexcept {
        for (size_t strip = task * strips_each; strip < std::min((task + 1) * strips_each, strips); ++strip) {
            size_t const first = strip * cpu::kTileRows;
            cpu::quantize_rows(values + first * depth, std::min(cpu::kTileRows, rows - first), depth, quantization,
                tiles.get() + strip * strip_bytes);
        }
    });
    cpu::QuantizedLinear const call{tiles.get(), mWeight.get(), mColumnSum.data(), scale.as<float>(), bias.as<float>(),
        output, rows, static_cast<size_t>(mColumns), mSteps, quantization, mGelu};
    // whole pairs of strips, so that no task but the last has a single one
    size_t const chunk = std::max<size_t>(kChunkBytes / strip_bytes / 2, 1) * cpu::kColumns;
    size_t const chunks = cpu::round_up(rows, chunk) / chunk;
    // Many rows take several panels at a time, which writes longer pieces of each row.
    size_t const group = rows >= kManyRows ? kGroup : 1, groups = cpu::round_up(mPanels, group) / group;
    context.parallel(chunks * groups, [&](size_t i) noexcept {
        size_t const first = i / groups * chunk, panel = i % groups * group;
        cpu::multiply_panels(call, panel, std::min(panel + group, mPanels), first, std::min(first + chunk, rows));
    });
}

}  // namespace madtp::onnxruntime
