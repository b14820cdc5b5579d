// Images for an artifact: decoded as Pillow does, resized and normalised as Python's preprocessing does, bit for bit.
//
// Pixels are 8-bit RGB. PNG and JPEG files are decoded where the library was built with libpng and libjpeg; pixels that
// a program decoded itself need neither. Every function throws madtp::Error for what a user can cause, and may be
// called from any number of threads at once.
#ifndef MADTP_IMAGE_HPP
#define MADTP_IMAGE_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "madtp/engine.hpp"

namespace madtp {

// 8-bit RGB pixels that lie somewhere: rows from top to bottom, `stride` bytes from one to the next.
struct Pixels {
    std::uint8_t const* rgb = nullptr;
    int width = 0;
    int height = 0;
    std::size_t stride = 0;
};

// An image in memory, rows end to end.
struct Image {
    int width = 0;
    int height = 0;
    std::vector<std::uint8_t> rgb;
    int orientation = 1;  // by its EXIF data; 2 to 8 ask for a turn or a mirror image that `rgb` has not undergone

    operator Pixels() const noexcept { return {rgb.data(), width, height, static_cast<std::size_t>(width) * 3}; }
};

// What a manifest says of images (`preprocessing.image`).
struct ImagePreprocessing {
    int size = 0;  // side of the square that the model takes
    std::array<float, 3> mean{};
    std::array<float, 3> std{};

    ImagePreprocessing() = default;
    MADTP_RUNTIME_API explicit ImagePreprocessing(ImageSettings const& settings);
};

// Decode a PNG or JPEG file completely; every 8-bit mode becomes RGB: alpha is dropped, palettes are looked up.
//
// The published readers ignore the EXIF orientation, and so does this; `rotate` follows it.
//
// Refused: what is no regular file, truncated or damaged, more than 537 MB or 64 million pixels, more than 8 bits of
// grey, animations, and formats that this build cannot decode (see image_formats).
MADTP_RUNTIME_API Image read_image(std::filesystem::path const& path, bool rotate = false);

// The same of a file's bytes; messages call it `name`.
MADTP_RUNTIME_API Image decode_image(
    void const* bytes, std::size_t size, std::string const& name = "the image", bool rotate = false);

// What this build decodes: "PNG, JPEG", one of the two, or "".
MADTP_RUNTIME_API char const* image_formats() noexcept;

// Bicubic with antialiasing, as Pillow's Image.resize: the aspect ratio is what is asked for.
MADTP_RUNTIME_API Image resize(Pixels const& pixels, int width, int height);

// [3, size, size]: resized to a square, scaled to 0..1, normalised.
MADTP_RUNTIME_API std::vector<float> preprocess(Pixels const& pixels, ImagePreprocessing const& settings);

}  // namespace madtp

#endif
