// The CPU kernels, compiled once for each instruction set; MADTP_KERNELS names the table.
#include "onnxruntime/cpu/kernels.h"

#include "onnxruntime/cpu/vector.h"

namespace madtp::cpu {
namespace {

constexpr size_t kPanelVectors = kPanel / kLanes;
// A tile of the product is as large as the registers allow: 24 accumulators of 32, or 12 of 16.
constexpr size_t kTileRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 3;
constexpr size_t kTilePanels = kLanes == 16 ? 2 : 1;

// A packed matrix: panels of sixteen columns, each of `rows` rows, of which a product may need the first only.
struct Packed {
    float const* panels;
    size_t rows;

    Packed behind(size_t panel) const noexcept { return {panels + panel * rows * kPanel, rows}; }
};

// `Rows` rows of `a`, `depth` deep, times the first `Panels` panels of `b`.
template <size_t Rows, size_t Panels>
void multiply_tile(float const* a, size_t a_stride, Packed b, size_t depth, float* c, size_t c_stride) noexcept {
    constexpr size_t kVectors = Panels * kPanelVectors;
    Vector total[Rows][kVectors] = {};
    for (size_t k = 0; k < depth; ++k) {
        Vector right[kVectors];
#pragma GCC unroll 8
        for (size_t v = 0; v < kVectors; ++v) {
            right[v] = load(b.panels + (v / kPanelVectors * b.rows + k) * kPanel + v % kPanelVectors * kLanes);
        }
#pragma GCC unroll 12
        for (size_t r = 0; r < Rows; ++r) {
            Vector const left = broadcast(a[r * a_stride + k]);
#pragma GCC unroll 8
            for (size_t v = 0; v < kVectors; ++v) { total[r][v] += left * right[v]; }
        }
    }
#pragma GCC unroll 12
    for (size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
        for (size_t v = 0; v < kVectors; ++v) { store(c + r * c_stride + v * kLanes, total[r][v]); }
    }
}

template <size_t Rows>
void multiply_rows(float const* a, size_t a_stride, Packed b, size_t depth, size_t panels, float* c,
    size_t c_stride) noexcept {
    size_t panel = 0;
    for (; panel + kTilePanels <= panels; panel += kTilePanels) {
        multiply_tile<Rows, kTilePanels>(a, a_stride, b.behind(panel), depth, c + panel * kPanel, c_stride);
    }
    for (; panel < panels; ++panel) {
        multiply_tile<Rows, 1>(a, a_stride, b.behind(panel), depth, c + panel * kPanel, c_stride);
    }
}

template <size_t Rows>
void multiply_rest(size_t rows, float const* a, size_t a_stride, Packed b, size_t depth, size_t panels, float* c,
    size_t c_stride) noexcept {
    if (rows == Rows) {
        multiply_rows<Rows>(a, a_stride, b, depth, panels, c, c_stride);
    } else if constexpr (Rows > 1) {
        multiply_rest<Rows - 1>(rows, a, a_stride, b, depth, panels, c, c_stride);
    }
}

// c [rows, 16 * panels] = a [rows, depth] times panels; what a packed panel pads is zero in `c`.
void multiply(size_t rows, float const* a, size_t a_stride, Packed b, size_t depth, size_t panels, float* c,
    size_t c_stride) noexcept {
    for (; rows >= kTileRows; rows -= kTileRows, a += kTileRows * a_stride, c += kTileRows * c_stride) {
        multiply_rows<kTileRows>(a, a_stride, b, depth, panels, c, c_stride);
    }
    if (rows > 0) { multiply_rest<kTileRows - 1>(rows, a, a_stride, b, depth, panels, c, c_stride); }
}

float square_root(float value) noexcept { return __builtin_sqrtf(value); }

void pack(Attention const& call, size_t sample, size_t head) noexcept {
    size_t const stride = 3 * call.width, size = call.head_size, length = call.length;
    float const* key = call.qkv + sample * length * stride + call.width + head * size;
    float const* value = key + call.width;
    float* keys = call.keys + (sample * call.heads + head) * call.columns * size;
    for (size_t first = 0; first < length; first += kPanel, keys += size * kPanel) {
        size_t const filled = length - first < kPanel ? length - first : kPanel;
        for (size_t column = 0; column < filled; ++column) {
            for (size_t d = 0; d < size; ++d) { keys[d * kPanel + column] = key[(first + column) * stride + d]; }
        }
        for (size_t column = filled; column < kPanel; ++column) {
            for (size_t d = 0; d < size; ++d) { keys[d * kPanel + column] = 0; }
        }
    }
    float* values = call.values + (sample * call.heads + head) * length * call.depth;
    for (size_t first = 0; first < size; first += kPanel, values += length * kPanel) {
        size_t const filled = size - first < kPanel ? size - first : kPanel;
        for (size_t row = 0; row < length; ++row) {
            for (size_t d = 0; d < kPanel; ++d) {
                values[row * kPanel + d] = d < filled ? value[row * stride + first + d] : 0;
            }
        }
    }
    if (head == 0) {
        float* mask = call.mask + sample * call.columns;
        for (size_t column = 0; column < call.columns; ++column) {
            mask[column] = column < length ? call.key_mask[sample * length + column] : -__builtin_inff();
        }
    }
}

// Softmax of a row of scores, and `most` = the larger of `most` and it. Returns false where the row is not finite.
bool normalise(float* row, float const* mask, size_t columns, float* most) noexcept {
    Vector peak = broadcast(-__builtin_inff());
    for (size_t j = 0; j < columns; j += kLanes) {
        Vector const score = load(row + j) + load(mask + j);
        store(row + j, score);
        peak = larger(peak, score);
    }
    Vector const top = broadcast(maximum(peak));
    Vector total{};
    for (size_t j = 0; j < columns; j += kLanes) {
        Vector const power = exponential(load(row + j) - top);
        store(row + j, power);
        total += power;
    }
    float const whole = sum(total);
    Vector const scale = broadcast(1 / whole);
    for (size_t j = 0; j < columns; j += kLanes) {
        Vector const probability = load(row + j) * scale;
        store(row + j, probability);
        store(most + j, larger(load(most + j), probability));
    }
    return whole - whole == 0;
}

void attend(Attention const& call, size_t sample, size_t block, float* scratch) noexcept {
    size_t const stride = 3 * call.width, size = call.head_size, length = call.length, depth = call.depth;
    // the first block has the class query too
    size_t const first = block == 0 ? 0 : 1 + block * kBlockRows;
    size_t const behind = 1 + (block + 1) * kBlockRows, end = behind < length ? behind : length, rows = end - first;
    // the panels that any of these queries may see
    size_t const columns = call.causal ? round_up(end, kPanel) : call.columns;
    float* scores = scratch;
    float* most = scores + (kBlockRows + 1) * call.columns;
    float* queries = most + (kBlockRows + 1) * call.columns;
    float* context = queries + (kBlockRows + 1) * round_up(size, kPanel);
    for (size_t i = 0; i < rows * call.columns; ++i) { most[i] = 0; }
    bool finite[kBlockRows + 1];
    for (size_t r = 0; r < rows; ++r) { finite[r] = true; }
    float const root = square_root(static_cast<float>(size));
    float const* mask = call.mask + sample * call.columns;
    for (size_t head = 0; head < call.heads; ++head) {
        float const* query = call.qkv + (sample * length + first) * stride + head * size;
        for (size_t r = 0; r < rows; ++r) {
            for (size_t d = 0; d < size; ++d) { queries[r * size + d] = query[r * stride + d] / root; }
        }
        size_t const index = sample * call.heads + head;
        multiply(rows, queries, size, {call.keys + index * call.columns * size, size}, size, columns / kPanel, scores, columns);
        for (size_t r = 0; r < rows; ++r) {
            float* row = scores + r * columns;
            if (call.causal) {
                for (size_t j = first + r + 1; j < columns; ++j) { row[j] = -__builtin_inff(); }
            }
            if (!normalise(row, mask, columns, most + r * call.columns)) { finite[r] = false; }
        }
        if (block == 0) {
            float* class_row = call.class_row + index * length;
            for (size_t j = 0; j < length; ++j) { class_row[j] = j < columns ? scores[j] : 0; }
        }
        multiply(rows, scores, columns, {call.values + index * length * depth, length},
            columns < length ? columns : length, depth / kPanel, context, depth);
        for (size_t r = 0; r < rows; ++r) {
            float* target = call.context + (sample * length + first + r) * call.width + head * size;
            float const* row = context + r * depth;
            Vector squares{};
            for (size_t d = 0; d < depth; d += kLanes) { squares += load(row + d) * load(row + d); }
            call.norm[index * length + first + r] = square_root(sum(squares));
            for (size_t d = 0; d < size; ++d) { target[d] = row[d]; }
        }
    }
    float* partial = call.partial + (sample * call.blocks + block) * call.columns;
    for (size_t j = 0; j < call.columns; ++j) { partial[j] = 0; }
    for (size_t r = first == 0 ? 1 : 0; r < rows; ++r) {
        // a row that is not finite makes every score that it reaches so
        float const poison = finite[r] ? 0.0F : __builtin_nanf("");
        for (size_t j = 0; j < call.columns; ++j) { partial[j] += most[r * call.columns + j] + poison; }
    }
}

void finish(Attention const& call, size_t sample) noexcept {
    size_t const length = call.length;
    float* column_score = call.column_score + sample * (length - 1);
    float* class_score = call.class_score + sample * (length - 1);
    float const* partial = call.partial + sample * call.blocks * call.columns;
    for (size_t j = 1; j < length; ++j) {
        float total = 0;
        for (size_t block = 0; block < call.blocks; ++block) { total += partial[block * call.columns + j]; }
        column_score[j - 1] = total;
    }
    float const* norm = call.norm + sample * call.heads * length;
    float const* class_row = call.class_row + sample * call.heads * length;
    for (size_t j = 1; j < length; ++j) {
        float norms = 0, total = 0;
        for (size_t head = 0; head < call.heads; ++head) { norms += norm[head * length + j]; }
        for (size_t head = 0; head < call.heads; ++head) {
            total += class_row[head * length + j] * (norm[head * length + j] / (norms + kEpsilon));
        }
        class_score[j - 1] = total;
    }
}

// Some lanes from memory; the others repeat the first.
Vector load_some(float const* source, size_t lanes) noexcept {
    if (lanes >= kLanes) { return load(source); }
    Vector value = broadcast(source[0]);
    for (size_t lane = 1; lane < lanes; ++lane) { value[lane] = source[lane]; }
    return value;
}

float total_of(float const* values, size_t count) noexcept {
    double total = 0;
    for (size_t i = 0; i < count; ++i) { total += values[i]; }
    return static_cast<float>(total);
}

// The largest of a row; NaN where there is one.
float best_of(float const* row, size_t count) noexcept {
    Vector best = load_some(row, count);
    Integers unordered{};
    for (size_t t = 0; t < count; t += kLanes) {
        Vector const value = load_some(row + t, count - t);
        best = larger(best, value);
        unordered |= value != value;
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
        if (unordered[lane]) { return __builtin_nanf(""); }
    }
    return maximum(best);
}

float threshold(Scores const& scores) noexcept {
    constexpr size_t kRun = 32;  // rows that are added up before they go into the total, which keeps its digits
    size_t const tokens = scores.tokens, width = scores.alignments;
    for (size_t j = 0; j < tokens; ++j) { scores.best_alignment[j] = best_of(scores.alignment + j * width, width); }
    float const column_total = total_of(scores.column_score, tokens) + kEpsilon;
    float const alignment_total = total_of(scores.best_alignment, tokens) + kEpsilon;
    for (size_t j = 0; j < tokens; ++j) {
        float const column = scores.column_score[j] / column_total, aligned = scores.best_alignment[j] / alignment_total;
        scores.importance[j] = (column + aligned + scores.class_score[j]) / 3;
    }
    Vector const temperature = broadcast(scores.temperature);
    float least = __builtin_inff();
    for (size_t t = 0; t < width; t += kLanes) {
        float const* column = scores.alignment + t;
        size_t const lanes = width - t < kLanes ? width - t : kLanes;
        Vector peak = load_some(column, lanes);
        for (size_t j = 1; j < tokens; ++j) { peak = larger(peak, load_some(column + j * width, lanes)); }
        peak = peak / temperature;
        Vector weights{}, weighted{};
        for (size_t begin = 0; begin < tokens; begin += kRun) {
            Vector run_weights{}, run_weighted{};
            size_t const end = begin + kRun < tokens ? begin + kRun : tokens;
            for (size_t j = begin; j < end; ++j) {
                Vector const weight = exponential(load_some(column + j * width, lanes) / temperature - peak);
                run_weights += weight;
                run_weighted += weight * scores.importance[j];
            }
            weights += run_weights;
            weighted += run_weighted;
        }
        Vector const mean = weighted / weights;
        for (size_t lane = 0; lane < lanes; ++lane) {
            if (!(mean[lane] >= least)) { least = mean[lane]; }  // NaN is taken, and then kept
            if (least != least) { return least; }
        }
    }
    if (scores.keep_margin > 0) {
        double magnitude = 0;
        for (size_t j = 0; j < tokens; ++j) { magnitude += __builtin_fabsf(scores.importance[j]); }
        least -= scores.keep_margin * static_cast<float>(magnitude / static_cast<double>(tokens));
    }
    return least;
}

void merge(float const* tokens, size_t width, int32_t const* rows, float const* weights, size_t count, size_t columns,
    float* merged) noexcept {
    constexpr size_t kVectors = 4;
    size_t first = 0;
    for (; first + kVectors * kLanes <= columns; first += kVectors * kLanes) {
        Vector total[kVectors] = {};
        for (size_t j = 0; j < count; ++j) {
            float const* row = tokens + static_cast<size_t>(rows[j]) * width + first;
            Vector const weight = broadcast(weights[j]);
            for (size_t v = 0; v < kVectors; ++v) { total[v] += weight * load(row + v * kLanes); }
        }
        for (size_t v = 0; v < kVectors; ++v) { store(merged + first + v * kLanes, total[v]); }
    }
    for (; first < columns; ++first) {
        float total = 0;
        for (size_t j = 0; j < count; ++j) { total += weights[j] * tokens[static_cast<size_t>(rows[j]) * width + first]; }
        merged[first] = total;
    }
}

}  // namespace

extern Kernels const MADTP_KERNELS{pack, attend, finish, threshold, merge};

}  // namespace madtp::cpu
