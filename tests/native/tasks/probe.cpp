// Tasks of the runtime as C functions, for tests in Python: images and texts in, pixels and ids out.
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "madtp/image.hpp"
#include "madtp/tokenizer.hpp"

#define PROBE extern "C" __attribute__((visibility("default")))

namespace {

thread_local std::string message;
thread_local madtp::Image image;
thread_local std::vector<float> values;
thread_local madtp::Ids ids;
thread_local std::string decoded;

template <typename Call>
int guarded(Call const& call) noexcept {
    try {
        call();
        return 0;
    } catch (madtp::Error const& error) {
        message = error.summary() + "\n" + error.why() + "\n" + error.fix();
        return static_cast<int>(error.code());
    } catch (std::exception const& error) {
        message = error.what();
        return -1;
    }
}

}  // namespace

PROBE char const* probe_message() { return message.c_str(); }
PROBE char const* probe_formats() { return madtp::image_formats(); }

PROBE int probe_read(char const* path, int rotate) {
    return guarded([&] { image = madtp::read_image(path, rotate != 0); });
}

PROBE int probe_decode(void const* bytes, std::size_t size) {
    return guarded([&] { image = madtp::decode_image(bytes, size); });
}

// [width, height, orientation] of the last image.
PROBE void probe_size(int32_t* size) {
    size[0] = image.width;
    size[1] = image.height;
    size[2] = image.orientation;
}

PROBE void probe_pixels(std::uint8_t* to) { std::memcpy(to, image.rgb.data(), image.rgb.size()); }

PROBE int probe_resize(std::uint8_t const* rgb, int width, int height, std::size_t stride, int to_width, int to_height) {
    return guarded([&] { image = madtp::resize({rgb, width, height, stride}, to_width, to_height); });
}

// [3, size, size] to `to`; `settings` is mean and deviation.
PROBE int probe_preprocess(std::uint8_t const* rgb, int width, int height, int size, double const* settings, float* to) {
    return guarded([&] {
        madtp::ImageSettings manifest;
        manifest.size = size;
        std::memcpy(manifest.mean, settings, sizeof manifest.mean);
        std::memcpy(manifest.std, settings + 3, sizeof manifest.std);
        values = madtp::preprocess({rgb, width, height, static_cast<std::size_t>(width) * 3},
            madtp::ImagePreprocessing(manifest));
        std::memcpy(to, values.data(), values.size() * sizeof(float));
    });
}

// A reader for a model of `task`; null where it is refused. `config` is vocab_size, max_position, and the ids of
// padding, [CLS], [SEP], [DEC] and [ENC].
PROBE void* probe_reader(char const* task, char const* vocabulary, char const* dropped_as, int max_words, int first_id,
    double const* config) {
    std::unique_ptr<madtp::TextReader> reader;
    guarded([&] {
        madtp::Manifest manifest;
        manifest.task = task;
        constexpr char const* kNames[] = {
            "vocab_size", "max_position", "pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "enc_token_id"};
        for (std::size_t i = 0; i < 7; ++i) { manifest.config[kNames[i]] = config[i]; }
        manifest.text.tokenizer = "bert-wordpiece";
        manifest.text.dropped = max_words < 0 ? "" : "[.!\"()*#:;~]";
        manifest.text.dropped_as = dropped_as;
        if (max_words >= 0) { manifest.text.max_words = max_words; }
        manifest.text.first_id = first_id;
        reader = std::make_unique<madtp::TextReader>(manifest, vocabulary);
    });
    return reader.release();
}

PROBE void probe_close_reader(void* reader) { delete static_cast<madtp::TextReader*>(reader); }

// Reads a text as `kind` says: 0 as a request's, 1 so and cut, 2 as an answer, 3 as a prompt.
PROBE int probe_ids(void const* reader, char const* text, std::size_t size, int kind) {
    return guarded([&] {
        auto const& texts = *static_cast<madtp::TextReader const*>(reader);
        std::string_view const view(text, size);
        ids = kind == 2 ? texts.answer_ids(view) : kind == 3 ? texts.prompt_ids(view) : texts.ids(view, kind == 1);
    });
}

PROBE std::size_t probe_count() { return ids.size(); }
PROBE void probe_copy_ids(int64_t* to) { std::memcpy(to, ids.data(), ids.size() * sizeof(int64_t)); }

PROBE char const* probe_decode_ids(void const* reader, int64_t const* from, std::size_t count) {
    decoded = static_cast<madtp::TextReader const*>(reader)->decode(madtp::Ids(from, from + count));
    return decoded.c_str();
}
