// JPEG through libjpeg, with the settings that Pillow decodes with (the library's defaults).
#include "tasks/decoders.h"
#include "tasks/fail.h"
#include "tasks/limits.h"

#ifdef MADTP_JPEG
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs it before

#include <jerror.h>
#include <jpeglib.h>

#include <cstring>

namespace madtp {
namespace {

// libjpeg reports by callbacks that must not return: they jump to where a call began. No function that is jumped over
// has an object with a destructor.
struct Decoder {
    jpeg_decompress_struct jpeg;
    jpeg_error_mgr errors;
    std::jmp_buf begin;
    char message[JMSG_LENGTH_MAX];

    explicit Decoder(Bytes bytes) : jpeg{}, errors{}, message{} {
        jpeg.err = jpeg_std_error(&errors);
        errors.error_exit = [](j_common_ptr common) {
            Decoder* self = static_cast<Decoder*>(common->client_data);
            common->err->format_message(common, self->message);
            std::longjmp(self->begin, 1);
        };
        errors.emit_message = [](j_common_ptr common, int level) {
            // Of all warnings Pillow minds one: the file ends early, which libjpeg would fill up with grey.
            if (level < 0 && common->err->msg_code == JWRN_JPEG_EOF) {
                Decoder* self = static_cast<Decoder*>(common->client_data);
                std::strcpy(self->message, "image file is truncated");
                std::longjmp(self->begin, 1);
            }
        };
        jpeg.client_data = this;
        bytes_ = bytes;
    }
    ~Decoder() { jpeg_destroy_decompress(&jpeg); }
    Decoder(Decoder const&) = delete;
    Decoder& operator=(Decoder const&) = delete;

    bool read_header() noexcept {
        if (setjmp(begin) != 0) { return false; }
        jpeg_create_decompress(&jpeg);
        jpeg_mem_src(&jpeg, const_cast<unsigned char*>(bytes_.data), static_cast<unsigned long>(bytes_.size));
        jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xffff);
        jpeg_read_header(&jpeg, TRUE);
        // As Pillow: grey, RGB, or four channels.
        jpeg.out_color_space = jpeg.num_components == 1 ? JCS_GRAYSCALE : jpeg.num_components == 3 ? JCS_RGB : JCS_CMYK;
        return true;
    }

    // Rows of `stride` bytes, as many as the image has.
    bool read_rows(std::uint8_t* rows, std::size_t stride) noexcept {
        if (setjmp(begin) != 0) { return false; }
        jpeg_start_decompress(&jpeg);
        while (jpeg.output_scanline < jpeg.output_height) {
            JSAMPROW row = rows + jpeg.output_scanline * stride;
            jpeg_read_scanlines(&jpeg, &row, 1);
        }
        jpeg_finish_decompress(&jpeg);
        return true;
    }

private:
    Bytes bytes_{};
};

int orientation(jpeg_decompress_struct const& jpeg) {
    constexpr char kExif[] = {'E', 'x', 'i', 'f', 0, 0};
    for (auto marker = jpeg.marker_list; marker != nullptr; marker = marker->next) {
        if (marker->data_length > sizeof kExif && std::memcmp(marker->data, kExif, sizeof kExif) == 0) {
            return exif_orientation({marker->data + sizeof kExif, marker->data_length - sizeof kExif});
        }
    }
    return 1;
}

// One pixel of CMYK as Adobe writes it, inverted, to RGB as Pillow converts it.
void to_rgb(std::uint8_t const* cmyk, std::uint8_t* rgb) {
    int const black = cmyk[3];
    for (int channel = 0; channel < 3; ++channel) {
        int const product = (255 - cmyk[channel]) * black + 128;
        int const ink = ((product >> 8) + product) >> 8;  // divided by 255, rounded
        rgb[channel] = static_cast<std::uint8_t>(black - ink < 0 ? 0 : black - ink);
    }
}

}  // namespace

Image decode_jpeg(Bytes bytes, std::string const& name) {
    Decoder decoder(bytes);
    if (!decoder.read_header()) { fail_to_decode(name, std::string(decoder.message) + "."); }
    jpeg_decompress_struct const& jpeg = decoder.jpeg;
    check_size(jpeg.image_width, jpeg.image_height, name);
    int const channels = jpeg.num_components;
    if (channels != 1 && channels != 3 && channels != 4) {
        fail_to_decode(name, "It has " + std::to_string(channels) + " channels.");
    }
    Image image{static_cast<int>(jpeg.image_width), static_cast<int>(jpeg.image_height), {}, orientation(jpeg)};
    std::size_t const area = static_cast<std::size_t>(image.width) * image.height;
    std::vector<std::uint8_t> rows(area * channels);
    if (!decoder.read_rows(rows.data(), static_cast<std::size_t>(image.width) * channels)) {
        fail_to_decode(name, std::string(decoder.message) + ".");
    }
    if (channels == 3) {
        image.rgb = std::move(rows);
        return image;
    }
    image.rgb.resize(area * 3);
    for (std::size_t i = 0; i < area; ++i) {
        if (channels == 4) {
            to_rgb(rows.data() + i * 4, image.rgb.data() + i * 3);
        } else {
            std::memset(image.rgb.data() + i * 3, rows[i], 3);
        }
    }
    return image;
}

}  // namespace madtp
#else
namespace madtp {

Image decode_jpeg(Bytes, std::string const& name) {
    fail("cannot read " + name,
        "It is a JPEG file, and this build has no decoder for it: it was compiled without libjpeg.",
        "Install libjpeg (Debian: libjpeg-dev) and build again; or hand over 8-bit RGB pixels.");
}

}  // namespace madtp
#endif
