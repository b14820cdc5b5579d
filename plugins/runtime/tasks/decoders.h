// What decodes one format, and the orientation in EXIF data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "madtp/image.hpp"

namespace madtp {

struct Bytes {
    std::uint8_t const* data;
    std::size_t size;
};

// Each throws madtp::Error, whose text calls the image `name`.
Image decode_jpeg(Bytes bytes, std::string const& name);
Image decode_png(Bytes bytes, std::string const& name);

// The orientation, 1 to 8, in a TIFF header as EXIF data begins with; 1 where there is none, or it is damaged.
int exif_orientation(Bytes tiff) noexcept;

// The image with its orientation applied.
Image upright(Image image);

// The error of an image that ends early or is damaged.
[[noreturn]] void fail_to_decode(std::string const& name, std::string const& why);

}  // namespace madtp
