// The CPU kernels, compiled once for each instruction set; MADTP_KERNELS names the table.
#include "onnxruntime/cpu/kernels.h"

#include "onnxruntime/cpu/product.h"

namespace madtp::cpu {
namespace {

constexpr size_t kBlock = kMostVectors * kLanes;  // queries of one task
constexpr size_t kRun = 32;  // numbers that are added up before they go into the total, which keeps its digits

float square_root(float value) noexcept { return __builtin_sqrtf(value); }

void prefetch(float const* data, size_t count) noexcept {
    constexpr size_t kLine = 16;
    for (size_t i = 0; i < count; i += kLine) { __builtin_prefetch(data + i); }
}

void pack_values(float const* value, size_t stride, size_t size, size_t first, size_t rows, size_t length,
    float* values) noexcept {
    size_t const whole = size / kTileRows * kTileRows, rest = size - whole;
    for (size_t row = first; row < first + rows; ++row) {
        float const* source = value + row * stride;
        for (size_t d = 0; d < whole; d += kTileRows) {
            std::memcpy(values + d * length + row * kTileRows, source + d, kTileRows * sizeof(float));
        }
        for (size_t d = 0; d < rest; ++d) { values[whole * length + row * rest + d] = source[whole + d]; }
    }
}

void pack(Attention const& call, Sequence const& sequence, size_t head) noexcept {
    size_t const stride = call.key_stride, size = call.head_size, length = sequence.keys;
    size_t const place = sequence.first_key * call.width + head * length * size;
    float const* key = call.key + sequence.first_key * stride + head * size;
    float const* value = key + call.width;
    float* keys = call.keys + place;
    for (size_t first = 0; first < length; first += kTileRows) {
        size_t const rows = length - first < kTileRows ? length - first : kTileRows;
        for (size_t row = 0; row < rows; ++row) {
            prefetch(key + (first + kTileRows + row) * stride, size);
            prefetch(value + (first + kTileRows + row) * stride, size);
        }
        transpose(key + first * stride, stride, rows, size, 1, keys + first * size, rows);
        pack_values(value, stride, size, first, rows, length, call.values + place);
    }
}

// `Vectors` vectors of queries through all heads. Everything has a row for each key (or each place of a head) and a lane for
// each query: the softmax is then a few operations on whole vectors. Without statistics there is no mask either.
template <size_t Vectors, bool Statistics>
void attend_queries(Attention const& call, Sequence const& sequence, size_t first, size_t rows, float* scratch) noexcept {
    constexpr size_t kQueries = Vectors * kLanes;
    size_t const stride = call.query_stride, size = call.head_size, length = sequence.keys;
    size_t const keys = call.causal ? first + rows : length;  // that any of these queries may see
    float* scores = scratch;                  // [keys][queries], then what is left of the probabilities
    float* most = scores + keys * kQueries;   // [keys][queries], the largest probability over heads
    float* queries = most + (Statistics ? keys * kQueries : 0);  // [D][queries]
    float* context = queries + size * kQueries;
    float const root = square_root(static_cast<float>(size));
    float const* mask = Statistics ? call.key_mask + sequence.first_key : nullptr;
    Vector const minus_infinity = broadcast(-__builtin_inff());
    Vector poison[Vectors] = {};  // NaN for a query one of whose rows is not finite
    Integers number[Vectors];
    for (size_t i = 0; i < kQueries; ++i) { number[i / kLanes][i % kLanes] = static_cast<int32_t>(first + i); }
    for (size_t i = 0; i < size * kQueries; ++i) { queries[i] = 0; }
    for (size_t head = 0; head < call.heads; ++head) {
        float const* query = call.query + (sequence.first + first) * stride + head * size;
        size_t const packed = sequence.first_key * call.width + head * length * size;
        transpose(query, stride, rows, size, 1 / root, queries, kQueries);

        Vector peak[Vectors];
        for (size_t v = 0; v < Vectors; ++v) { peak[v] = minus_infinity; }
        multiply<Vectors>(keys, call.keys + packed, size, queries, size, [&](size_t row, auto& tile) {
            constexpr size_t kRows = sizeof(tile) / sizeof(tile[0]);
            bool const hides = call.causal && row + kRows > first;
#pragma GCC unroll 8
            for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
                for (size_t v = 0; v < Vectors; ++v) {
                    Vector score = tile[r][v];
                    if constexpr (Statistics) { score += mask[row + r]; }
                    if (hides) { score = number[v] < static_cast<int32_t>(row + r) ? minus_infinity : score; }
                    store(scores + ((row + r) * Vectors + v) * kLanes, score);
                    peak[v] = larger(peak[v], score);
                }
            }
        });

        Vector scale[Vectors] = {};
        for (size_t begin = 0; begin < keys; begin += kRun) {
            Vector run[Vectors] = {};
            size_t const end = begin + kRun < keys ? begin + kRun : keys;
            for (size_t j = begin; j < end; ++j) {
                for (size_t v = 0; v < Vectors; ++v) {
                    float* place = scores + (j * Vectors + v) * kLanes;
                    Vector const power = exponential(load(place) - peak[v]);
                    store(place, power);
                    run[v] += power;
                }
            }
            for (size_t v = 0; v < Vectors; ++v) { scale[v] += run[v]; }
        }
        float const hidden = scale[0][0] - scale[0][0];  // of the class query: nothing, or NaN like all of its row
        for (size_t v = 0; v < Vectors; ++v) {
            poison[v] += scale[v] - scale[v];
            scale[v] = 1.0F / scale[v];
        }
        if constexpr (Statistics) {
            for (size_t j = 0; j < keys; ++j) {
                for (size_t v = 0; v < Vectors; ++v) {
                    size_t const place = (j * Vectors + v) * kLanes;
                    Vector const probability = load(scores + place) * scale[v];
                    store(most + place, head == 0 ? probability : larger(load(most + place), probability));
                }
            }
            if (first == 0) {
                float* class_row = call.class_row + sequence.first_key * call.heads + head * length;
                for (size_t j = 0; j < length; ++j) { class_row[j] = j < keys ? scores[j * kQueries] * scale[0][0] : hidden; }
            }
        }

        Vector squares[Vectors] = {};
        multiply<Vectors>(size, call.values + packed, length, scores, keys, [&](size_t row, auto& tile) {
            constexpr size_t kRows = sizeof(tile) / sizeof(tile[0]);
#pragma GCC unroll 8
            for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
                for (size_t v = 0; v < Vectors; ++v) {
                    Vector const value = tile[r][v] * scale[v];
                    store(context + ((row + r) * Vectors + v) * kLanes, value);
                    squares[v] += value * value;
                }
            }
        });
        if constexpr (Statistics) {
            float* norm = call.norm + sequence.first * call.heads + head * sequence.length + first;
            for (size_t r = 0; r < rows; ++r) { norm[r] = square_root(squares[r / kLanes][r % kLanes]); }
        }
        transpose(context, kQueries, size, rows, 1, call.context + (sequence.first + first) * call.width + head * size,
            call.width);
    }

    if constexpr (Statistics) {
        float* partial = call.partial + sequence.partial + first / kBlock * length;
        Integers counts[Vectors];  // neither the class query nor what fills the last vector
        for (size_t v = 0; v < Vectors; ++v) { counts[v] = (number[v] != 0) & (number[v] < static_cast<int32_t>(first + rows)); }
        for (size_t j = 0; j < length; ++j) {
            Vector total{};
            for (size_t v = 0; v < Vectors; ++v) {
                Vector const column = j < keys ? load(most + (j * Vectors + v) * kLanes) + poison[v] : poison[v];
                total += counts[v] ? column : Vector{};
            }
            partial[j] = sum(total);
        }
    }
}

template <bool Statistics>
void attend_block(Attention const& call, Sequence const& sequence, size_t block, float* scratch) noexcept {
    size_t const first = block * kBlock, left = sequence.length - first, rows = left < kBlock ? left : kBlock;
    if (rows <= kLanes) {
        attend_queries<1, Statistics>(call, sequence, first, rows, scratch);
    } else if (rows <= 2 * kLanes) {
        attend_queries<2, Statistics>(call, sequence, first, rows, scratch);
    } else {
        attend_queries<3, Statistics>(call, sequence, first, rows, scratch);
    }
}

void attend(Attention const& call, Sequence const& sequence, size_t block, float* scratch) noexcept {
    (call.statistics ? attend_block<true> : attend_block<false>)(call, sequence, block, scratch);
}

void finish(Attention const& call, Sequence const& sequence) noexcept {
    size_t const length = sequence.length, blocks = (length + kBlock - 1) / kBlock;
    float* column_score = call.column_score + sequence.scores;
    float* class_score = call.class_score + sequence.scores;
    float const* partial = call.partial + sequence.partial;
    for (size_t j = 1; j < length; ++j) {
        float total = 0;
        for (size_t block = 0; block < blocks; ++block) { total += partial[block * length + j]; }
        column_score[j - 1] = total;
    }
    float const* norm = call.norm + sequence.first * call.heads;
    float const* class_row = call.class_row + sequence.first * call.heads;
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
        for (size_t begin = 0; begin < count; begin += kRun) {
            Vector run[kVectors] = {};
            size_t const end = begin + kRun < count ? begin + kRun : count;
            for (size_t j = begin; j < end; ++j) {
                float const* row = tokens + static_cast<size_t>(rows[j]) * width + first;
                Vector const weight = broadcast(weights[j]);
                for (size_t v = 0; v < kVectors; ++v) { run[v] += weight * load(row + v * kLanes); }
            }
            for (size_t v = 0; v < kVectors; ++v) { total[v] += run[v]; }
        }
        for (size_t v = 0; v < kVectors; ++v) { store(merged + first + v * kLanes, total[v]); }
    }
    for (; first < columns; ++first) {
        double total = 0;
        for (size_t j = 0; j < count; ++j) { total += weights[j] * tokens[static_cast<size_t>(rows[j]) * width + first]; }
        merged[first] = static_cast<float>(total);
    }
}

}  // namespace

extern Kernels const MADTP_KERNELS{kBlock, pack, attend, finish, threshold, merge};

}  // namespace madtp::cpu
