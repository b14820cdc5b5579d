// The orientation that a camera notes in EXIF data, and turning an image by it.
#include <algorithm>
#include <cstring>

#include "tasks/decoders.h"

namespace madtp {
namespace {

constexpr std::uint16_t kOrientation = 0x0112;
constexpr std::size_t kEntry = 12;  // bytes of an entry: tag, type, count, value
constexpr std::uint16_t kByte = 1, kShort = 3, kLong = 4;

// Numbers of a TIFF file, in its byte order; 0 behind its end.
class Tiff {
public:
    explicit Tiff(Bytes bytes) : bytes_(bytes), big_(bytes.size > 1 && bytes.data[0] == 'M') {}
    std::uint32_t number(std::size_t at, std::size_t width) const {
        if (at > bytes_.size || bytes_.size - at < width) { return 0; }
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < width; ++i) {
            value = value << 8 | bytes_.data[big_ ? at + i : at + width - 1 - i];
        }
        return value;
    }

private:
    Bytes bytes_;
    bool big_;
};

}  // namespace

int exif_orientation(Bytes bytes) noexcept {
    if (bytes.size < 8 || (std::memcmp(bytes.data, "MM\0*", 4) != 0 && std::memcmp(bytes.data, "II*\0", 4) != 0)) {
        return 1;
    }
    Tiff const tiff(bytes);
    std::size_t const directory = tiff.number(4, 4);
    std::size_t const entries = tiff.number(directory, 2);
    for (std::size_t i = 0; i < entries; ++i) {
        std::size_t const entry = directory + 2 + i * kEntry;
        if (tiff.number(entry, 2) != kOrientation) { continue; }
        std::uint32_t const type = tiff.number(entry + 2, 2);
        std::size_t const width = type == kByte ? 1 : type == kShort ? 2 : type == kLong ? 4 : 0;
        std::uint32_t const value = width == 0 || tiff.number(entry + 4, 4) != 1 ? 0 : tiff.number(entry + 8, width);
        return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
    return 1;
}

Image upright(Image image) {
    if (image.orientation < 2 || image.orientation > 8) { return image; }
    bool const transposed = image.orientation > 4;
    Image turned{transposed ? image.height : image.width, transposed ? image.width : image.height, {}};
    turned.rgb.resize(image.rgb.size());
    // Where the pixel at (x, y) of the upright image lies: mirrored left to right, top to bottom, or both, before that
    // rows and columns change places.
    bool const right_left =
        image.orientation == 2 || image.orientation == 3 || image.orientation == 7 || image.orientation == 8;
    bool const bottom_top =
        image.orientation == 3 || image.orientation == 4 || image.orientation == 6 || image.orientation == 7;
    std::uint8_t* out = turned.rgb.data();
    for (int y = 0; y < turned.height; ++y) {
        for (int x = 0; x < turned.width; ++x, out += 3) {
            int const across = transposed ? y : x, down = transposed ? x : y;
            std::size_t const column = right_left ? image.width - 1 - across : across;
            std::size_t const row = bottom_top ? image.height - 1 - down : down;
            std::memcpy(out, image.rgb.data() + (row * image.width + column) * 3, 3);
        }
    }
    return turned;
}

}  // namespace madtp
