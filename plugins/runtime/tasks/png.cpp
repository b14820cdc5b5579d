// PNG through libpng, to the pixels that Pillow decodes and converts to RGB.
#include "tasks/decoders.h"
#include "tasks/fail.h"
#include "tasks/limits.h"

#ifdef MADTP_PNG
#include <png.h>

#include <cstdio>
#include <cstring>

namespace madtp {
namespace {

// libpng reports errors by a callback that must not return: it jumps to where a call began. No function that is jumped
// over has an object with a destructor.
struct Decoder {
    png_structp png;
    png_infop info;
    char message[128];
    Bytes rest;
    std::uint32_t frames;

    explicit Decoder(Bytes bytes) : png(nullptr), info(nullptr), message{}, rest(bytes), frames(1) {
        png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
        info = png == nullptr ? nullptr : png_create_info_struct(png);
    }
    ~Decoder() { png_destroy_read_struct(&png, &info, nullptr); }
    Decoder(Decoder const&) = delete;
    Decoder& operator=(Decoder const&) = delete;

    bool read_header() noexcept {
        if (info == nullptr) {
            std::snprintf(message, sizeof message, "%s", "libpng found no memory, or is of another version");
            return false;
        }
        if (setjmp(png_jmpbuf(png)) != 0) { return false; }
        png_set_read_fn(png, this, on_read);
        png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // pixels are limited, not sides
        png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);  // a damaged file, whatever is damaged
        png_set_read_user_chunk_fn(png, this, on_chunk);
        png_read_info(png, info);
        return true;
    }

    // Rows of `stride` bytes, as many as the image has.
    bool read_rows(png_bytepp rows, std::size_t stride) noexcept {
        if (setjmp(png_jmpbuf(png)) != 0) { return false; }
        png_set_expand(png);    // palettes to colours, grey to 8 bits, a transparent colour to alpha
        png_set_strip_16(png);  // Pillow takes the high byte
        png_set_gray_to_rgb(png);
        png_set_strip_alpha(png);
        png_set_interlace_handling(png);
        png_read_update_info(png, info);
        if (png_get_rowbytes(png, info) != stride) { png_error(png, "its pixels are of no known kind"); }
        png_read_image(png, rows);
        return true;
    }

private:
    static void on_error(png_structp png, png_const_charp text) {
        Decoder* self = static_cast<Decoder*>(png_get_error_ptr(png));
        std::snprintf(self->message, sizeof self->message, "%s", text);
        png_longjmp(png, 1);
    }

    static void on_read(png_structp png, png_bytep to, std::size_t count) {
        Decoder* self = static_cast<Decoder*>(png_get_io_ptr(png));
        if (count > self->rest.size) { png_error(png, "image file is truncated"); }
        std::memcpy(to, self->rest.data, count);
        self->rest = {self->rest.data + count, self->rest.size - count};
    }

    // A chunk that libpng does not know: acTL says how many frames an animation has.
    static int on_chunk(png_structp png, png_unknown_chunkp chunk) {
        Decoder* self = static_cast<Decoder*>(png_get_user_chunk_ptr(png));
        if (std::memcmp(chunk->name, "acTL", 4) == 0 && chunk->size >= 8) {
            self->frames = png_get_uint_32(chunk->data);
        }
        return 1;
    }
};

int orientation(png_structp png, png_infop info) {
#ifdef PNG_eXIf_SUPPORTED
    png_uint_32 size = 0;
    png_bytep exif = nullptr;
    if (png_get_eXIf_1(png, info, &size, &exif) != 0) { return exif_orientation({exif, size}); }
#endif
    return 1;
}

}  // namespace

Image decode_png(Bytes bytes, std::string const& name) {
    Decoder decoder(bytes);
    if (!decoder.read_header()) { fail_to_decode(name, std::string(decoder.message) + "."); }
    png_structp const png = decoder.png;
    png_infop const info = decoder.info;
    check_size(png_get_image_width(png, info), png_get_image_height(png, info), name);
    if (png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, info) == 16) {
        fail(name + " has more than 8 bits a channel", "Its values would be cut off, which shows another picture.",
            "Convert it to 8 bits, scaling the values.");
    }
    if (decoder.frames > 1) {
        fail(name + " has " + std::to_string(decoder.frames) + " frames",
            "The model sees one picture, and the first may show something else than the rest.",
            "Save the frame that is meant as a PNG or JPEG file.");
    }
    Image image{static_cast<int>(png_get_image_width(png, info)), static_cast<int>(png_get_image_height(png, info)), {},
        orientation(png, info)};
    std::size_t const stride = static_cast<std::size_t>(image.width) * 3;
    image.rgb.resize(stride * image.height);
    std::vector<png_bytep> rows(image.height);
    for (int y = 0; y < image.height; ++y) { rows[y] = image.rgb.data() + y * stride; }
    if (!decoder.read_rows(rows.data(), stride)) { fail_to_decode(name, std::string(decoder.message) + "."); }
    return image;
}

}  // namespace madtp
#else
namespace madtp {

Image decode_png(Bytes, std::string const& name) {
    fail("cannot read " + name,
        "It is a PNG file, and this build has no decoder for it: it was compiled without libpng.",
        "Install libpng (Debian: libpng-dev) and build again; or hand over 8-bit RGB pixels.");
}

}  // namespace madtp
#endif
