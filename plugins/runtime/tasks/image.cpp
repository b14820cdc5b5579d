// Image files: opened with care, told apart by their first bytes, handed to the decoder of their format.
#include "madtp/image.hpp"

#include <cstring>
#include <stdexcept>

#include "files.h"
#include "tasks/decoders.h"
#include "tasks/fail.h"
#include "tasks/limits.h"

namespace madtp {
namespace {

bool begins_with(Bytes bytes, char const* magic, std::size_t size) {
    return bytes.size >= size && std::memcmp(bytes.data, magic, size) == 0;
}

Image decode(Bytes bytes, std::string const& name) {
    if (bytes.data == nullptr || bytes.size == 0) { fail_to_decode(name, "It is empty."); }
    if (begins_with(bytes, "\xff\xd8\xff", 3)) { return decode_jpeg(bytes, name); }
    if (begins_with(bytes, "\x89PNG\r\n\x1a\n", 8)) { return decode_png(bytes, name); }
    fail("cannot read " + name, "It is neither a PNG nor a JPEG file.",
        "Convert it to one of them; or decode it yourself and hand over 8-bit RGB pixels.");
}

}  // namespace

void check_size(std::int64_t width, std::int64_t height, std::string const& name) {
    std::string const size = std::to_string(width) + " x " + std::to_string(height);
    if (width < 1 || height < 1) { fail(name + " has no pixels", "It is " + size + ".", "Use another image."); }
    // Each side on its own first, so that the product cannot overflow.
    if (width > kMostPixels || height > kMostPixels || width * height > kMostPixels) {
        fail(name + " has " + size + " pixels",
            "More than " + std::to_string(kMostPixels / 1'000'000) + " million are not decoded.", "Scale it down.");
    }
}

void fail_to_decode(std::string const& name, std::string const& why) {
    fail("cannot read " + name, why, "Replace it with a complete image file (PNG or JPEG).");
}

Image decode_image(void const* bytes, std::size_t size, std::string const& name, bool rotate) {
    return guarded([&] {
        Image image = decode({static_cast<std::uint8_t const*>(bytes), size}, name);
        return rotate ? upright(std::move(image)) : image;
    });
}

Image read_image(std::filesystem::path const& path, bool rotate) {
    return guarded([&] {
        std::string const name = "the image '" + path.string() + "'";
        std::string bytes;
        try {
            bytes = detail::read_file(path.string(), kMostImageBytes);
        } catch (std::runtime_error const& error) { fail_to_decode(name, error.what()); }
        return decode_image(bytes.data(), bytes.size(), name, rotate);
    });
}

char const* image_formats() noexcept {
#if defined(MADTP_PNG) && defined(MADTP_JPEG)
    return "PNG, JPEG";
#elif defined(MADTP_PNG)
    return "PNG";
#elif defined(MADTP_JPEG)
    return "JPEG";
#else
    return "";
#endif
}

}  // namespace madtp
