// Pillow's bicubic resize, by the arithmetic of its src/libImaging/Resample.c: coefficients in double, rounded to fixed
// point; one pass over columns and one over rows, with 8-bit pixels between them. All sums are of whole numbers, so the
// result is Pillow's to the last bit, in whatever order they are added.
#include <algorithm>
#include <cmath>

#include "madtp/image.hpp"
#include "tasks/fail.h"
#include "tasks/limits.h"

namespace madtp {
namespace {

constexpr int kFractionBits = 32 - 8 - 2;  // of a coefficient: 8 bits of a pixel and 2 of headroom are left of 32
constexpr double kSupport = 2.0;           // of the bicubic filter, in pixels of the smaller image

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) { return ((a + 2.0) * x - (a + 3.0)) * x * x + 1; }
    if (x < 2.0) { return (((x - 5) * x + 8) * x - 4) * a; }
    return 0.0;
}

// Which inputs make an output, and with which weight: those of output i begin at `first[i]`, `taps` at most.
struct Weights {
    int taps;
    std::vector<int> first, count;
    std::vector<std::int32_t> fixed;

    std::int32_t const* of(int output) const { return fixed.data() + static_cast<std::size_t>(output) * taps; }
};

Weights weights(int input, int output) {
    double const scale = static_cast<double>(input) / output;
    double const stretch = std::max(scale, 1.0);  // antialiasing: the filter grows with what it has to cover
    double const support = kSupport * stretch;
    Weights result{static_cast<int>(std::ceil(support)) * 2 + 1, {}, {}, {}};
    result.fixed.resize(static_cast<std::size_t>(output) * result.taps);
    std::vector<double> exact(result.taps);
    for (int place = 0; place < output; ++place) {
        double const center = (place + 0.5) * scale;
        int const first = std::max(static_cast<int>(center - support + 0.5), 0);
        int const count = std::min(static_cast<int>(center + support + 0.5), input) - first;
        double sum = 0.0;
        for (int tap = 0; tap < count; ++tap) {
            exact[tap] = bicubic((tap + first - center + 0.5) * (1.0 / stretch));
            sum += exact[tap];
        }
        std::int32_t* fixed = result.fixed.data() + static_cast<std::size_t>(place) * result.taps;
        for (int tap = 0; tap < count; ++tap) {
            double const scaled = (sum != 0.0 ? exact[tap] / sum : exact[tap]) * (1 << kFractionBits);
            fixed[tap] = static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
        }
        result.first.push_back(first);
        result.count.push_back(count);
    }
    return result;
}

constexpr std::int32_t kHalf = 1 << (kFractionBits - 1);

std::uint8_t clipped(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kFractionBits, 0, 255)); }

Image resized_columns(Pixels const& from, int width) {
    Weights const columns = weights(from.width, width);
    Image to{width, from.height, std::vector<std::uint8_t>(static_cast<std::size_t>(width) * from.height * 3)};
    std::uint8_t* out = to.rgb.data();
    for (int y = 0; y < from.height; ++y) {
        std::uint8_t const* row = from.rgb + y * from.stride;
        for (int x = 0; x < width; ++x) {
            std::uint8_t const* in = row + static_cast<std::size_t>(columns.first[x]) * 3;
            std::int32_t const* weight = columns.of(x);
            std::int32_t red = kHalf, green = kHalf, blue = kHalf;
            for (int tap = 0; tap < columns.count[x]; ++tap, in += 3) {
                red += in[0] * weight[tap];
                green += in[1] * weight[tap];
                blue += in[2] * weight[tap];
            }
            *out++ = clipped(red);
            *out++ = clipped(green);
            *out++ = clipped(blue);
        }
    }
    return to;
}

Image resized_rows(Pixels const& from, int height) {
    Weights const rows = weights(from.height, height);
    std::size_t const bytes = static_cast<std::size_t>(from.width) * 3;
    Image to{from.width, height, std::vector<std::uint8_t>(bytes * height)};
    std::vector<std::int32_t> sums(bytes);
    for (int y = 0; y < height; ++y) {
        std::fill(sums.begin(), sums.end(), kHalf);
        for (int tap = 0; tap < rows.count[y]; ++tap) {
            std::uint8_t const* in = from.rgb + (rows.first[y] + tap) * from.stride;
            std::int32_t const weight = rows.of(y)[tap];
            for (std::size_t i = 0; i < bytes; ++i) { sums[i] += in[i] * weight; }
        }
        std::transform(sums.begin(), sums.end(), to.rgb.begin() + static_cast<std::ptrdiff_t>(y * bytes), clipped);
    }
    return to;
}

// Pixels between the passes are rounded, so their order shows. Pillow begins with the columns; from version 13 on with
// the rows where it takes away more than twice as many of them (its pull request 9549).
bool rows_first(Pixels const& from, int width, int height) {
    return height < from.height && from.height - height > 2 * (from.width - width);
}

void check(Pixels const& pixels, int width, int height) {
    check_size(pixels.width, pixels.height, "the image");
    check_size(width, height, "the resized image");
    if (pixels.rgb == nullptr || pixels.stride < static_cast<std::size_t>(pixels.width) * 3) {
        fail("the pixels of the image are not 8-bit RGB",
            pixels.rgb == nullptr ? "They are null."
                                  : "Rows of " + std::to_string(pixels.width) + " pixels are said to lie " +
                                        std::to_string(pixels.stride) + " bytes apart.",
            "Hand over width * 3 bytes a row, and a stride of that or more.");
    }
}

Image resized(Pixels const& pixels, int width, int height) {
    check(pixels, width, height);
    // A pass that changes nothing is left out; its coefficients could be none but 1.
    bool const columns = width != pixels.width, rows = height != pixels.height;
    if (columns && rows) {
        return rows_first(pixels, width, height) ? resized_columns(resized_rows(pixels, height), width)
                                                 : resized_rows(resized_columns(pixels, width), height);
    }
    if (columns) { return resized_columns(pixels, width); }
    if (rows) { return resized_rows(pixels, height); }
    Image same{width, height, {}};
    same.rgb.reserve(static_cast<std::size_t>(width) * height * 3);
    for (int y = 0; y < height; ++y) {
        std::uint8_t const* row = pixels.rgb + y * pixels.stride;
        same.rgb.insert(same.rgb.end(), row, row + static_cast<std::size_t>(width) * 3);
    }
    return same;
}

}  // namespace

ImagePreprocessing::ImagePreprocessing(ImageSettings const& settings) : size(static_cast<int>(settings.size)) {
    bool const known = settings.mode == "RGB" && settings.resize.rfind("bicubic", 0) == 0 &&
                       std::abs(settings.scale * 255 - 1) < 1e-6;
    if (!known) {
        throw Error(Code::manifest, "the artifact's images are prepared in a way that this library does not know",
            "It scales RGB by 1/255 and resizes bicubically; the manifest says '" + settings.mode + "', '" +
                settings.resize + "' and " + std::to_string(settings.scale) + ".",
            "Use the library of the version that exported it.");
    }
    for (std::size_t channel = 0; channel < 3; ++channel) {
        mean[channel] = static_cast<float>(settings.mean[channel]);
        std[channel] = static_cast<float>(settings.std[channel]);
    }
}

Image resize(Pixels const& pixels, int width, int height) {
    return guarded([&] { return resized(pixels, width, height); });
}

std::vector<float> preprocess(Pixels const& pixels, ImagePreprocessing const& settings) {
    return guarded([&] {
        Image const square = resized(pixels, settings.size, settings.size);
        std::size_t const area = square.rgb.size() / 3;
        std::vector<float> result(area * 3);
        for (std::size_t channel = 0; channel < 3; ++channel) {
            float* out = result.data() + channel * area;
            for (std::size_t i = 0; i < area; ++i) {
                out[i] = (square.rgb[i * 3 + channel] / 255.0f - settings.mean[channel]) / settings.std[channel];
            }
        }
        return result;
    });
}

}  // namespace madtp
