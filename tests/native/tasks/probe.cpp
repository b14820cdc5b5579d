// Tasks of the runtime as C functions, for tests in Python: images and texts in, pixels and ids out.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "madtp/tasks.hpp"

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

PROBE int probe_resize(
    std::uint8_t const* rgb, int width, int height, std::size_t stride, int to_width, int to_height) {
    return guarded([&] { image = madtp::resize({rgb, width, height, stride}, to_width, to_height); });
}

// [3, size, size] to `to`; `settings` is mean and deviation.
PROBE int probe_preprocess(
    std::uint8_t const* rgb, int width, int height, int size, double const* settings, float* to) {
    return guarded([&] {
        madtp::ImageSettings manifest;
        manifest.mode = "RGB";
        manifest.resize = "bicubic";
        manifest.scale = 1.0 / 255;
        manifest.size = size;
        std::memcpy(manifest.mean, settings, sizeof manifest.mean);
        std::memcpy(manifest.std, settings + 3, sizeof manifest.std);
        values = madtp::preprocess(
            {rgb, width, height, static_cast<std::size_t>(width) * 3}, madtp::ImagePreprocessing(manifest));
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
        constexpr char const* kNames[] = {"vocab_size", "max_position", "pad_token_id", "cls_token_id", "sep_token_id",
            "bos_token_id", "enc_token_id"};
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

namespace {

// A session, and what it will be asked with.
struct Asked {
    madtp::TaskSession session;
    std::vector<madtp::Pixels> images;
    std::vector<madtp::Text> texts, candidates;
};

// JSON of what a session answered. Declared first, so that lists and tables of anything find it.
std::string json(madtp::Judgement const& value);
std::string json(madtp::Answer const& value);
std::string json(madtp::Caption const& value);
template <typename T, typename U>
std::string json(std::pair<T, U> const& pair);
template <typename T>
std::string json(std::vector<T> const& list);
template <typename T>
std::string json(madtp::Table<T> const& table);

std::string json(std::string const& text) {
    std::string result = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') { result += '\\'; }
        result += c;
    }
    return result + "\"";
}
std::string json(bool value) { return value ? "true" : "false"; }
std::string json(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.17g", value);
    return text;
}
std::string json(float value) { return json(static_cast<double>(value)); }
std::string json(int64_t value) { return std::to_string(value); }
std::string json(int32_t value) { return std::to_string(value); }
std::string json(std::size_t value) { return std::to_string(value); }
template <typename T, typename U>
std::string json(std::pair<T, U> const& pair) {
    return "[" + json(pair.first) + "," + json(pair.second) + "]";
}
template <typename T>
std::string json(std::vector<T> const& list) {
    std::string result;
    for (T const& value : list) { result += (result.empty() ? "" : ",") + json(value); }
    return "[" + result + "]";
}
template <typename T>
std::string json(std::map<std::string, T> const& map) {
    std::string result;
    for (auto const& [name, value] : map) { result += (result.empty() ? "" : ",") + json(name) + ":" + json(value); }
    return "{" + result + "}";
}
template <typename T>
std::string json(madtp::Table<T> const& table) {
    std::vector<std::vector<T>> rows;
    for (std::size_t row = 0; row < table.rows; ++row) { rows.emplace_back(table[row], table[row] + table.columns); }
    return json(rows);
}
std::string json(madtp::Judgement const& value) {
    return "{\"answer\":" + json(value.answer) + ",\"probability\":" + json(value.probability) +
           ",\"logits\":" + json(std::vector<float>(value.logits, value.logits + 2)) +
           ",\"tokens\":" + json(value.tokens) + ",\"batch\":" + json(value.batch) + "}";
}
std::string json(madtp::Answer const& value) {
    return "{\"text\":" + json(value.text) + ",\"ranked\":" + json(value.ranked) + ",\"top\":" + json(value.top) +
           ",\"ids\":" + json(value.ids) + ",\"tokens\":" + json(value.tokens) + ",\"batch\":" + json(value.batch) +
           "}";
}
std::string json(madtp::Caption const& value) {
    return "{\"text\":" + json(value.text) + ",\"ids\":" + json(value.ids) + ",\"tokens\":" + json(value.tokens) +
           ",\"batch\":" + json(value.batch) + "}";
}
std::string json(madtp::Ranking const& value) {
    return "{\"sim\":" + json(value.sim) + ",\"score_i2t\":" + json(value.score_i2t) +
           ",\"score_t2i\":" + json(value.score_t2i) + ",\"tokens\":" + json(value.tokens) + ",\"top\":" +
           json(std::vector<madtp::Found>{
               madtp::Ranking::top(value.score_i2t, 2), madtp::Ranking::top(value.score_t2i, 2)}) +
           ",\"batch\":" + json(std::vector<int64_t>{value.image_batch, value.text_batch, value.match_batch}) + "}";
}

}  // namespace

// A session; null where it is refused.
PROBE void* probe_open(char const* manifest, char const* runtime, char const* vocabulary) {
    std::unique_ptr<Asked> asked;
    guarded([&] {
        madtp::EngineOptions options;
        options.threads = 1;
        options.runtime_library = runtime;
        options.op_library = "none";
        madtp::TaskSession session(madtp::Engine::load(manifest, options), vocabulary);
        asked.reset(new Asked{std::move(session), {}, {}, {}});
    });
    return asked.release();
}

// Another session of the engine of one.
PROBE void* probe_open_another(void const* asked, char const* vocabulary) {
    std::unique_ptr<Asked> another;
    guarded([&] {
        madtp::Session const& session = static_cast<Asked const*>(asked)->session.session();
        another.reset(new Asked{madtp::TaskSession(session.engine(), vocabulary), {}, {}, {}});
    });
    return another.release();
}

PROBE void probe_close(void* asked) { delete static_cast<Asked*>(asked); }

// What the next call asks with; the pixels have to live until then. A text of no `text` is `count` ids.
PROBE void probe_add_image(void* asked, std::uint8_t const* rgb, int width, int height) {
    static_cast<Asked*>(asked)->images.push_back({rgb, width, height, static_cast<std::size_t>(width) * 3});
}
PROBE void probe_add_text(void* asked, int candidate, char const* text, std::size_t count, int64_t const* from) {
    Asked& session = *static_cast<Asked*>(asked);
    madtp::Text added =
        text != nullptr ? madtp::Text(std::string(text, count)) : madtp::Text(madtp::Ids(from, from + count));
    (candidate != 0 ? session.candidates : session.texts).push_back(std::move(added));
}

// Asks; the products are probe_message(), as JSON. `numbers` are temperature (negative: the manifest's), batch, cut,
// beams, max_length, min_length, k, k_test, image_batch, text_batch, match_batch.
PROBE int probe_ask(void* asked, char const* method, double const* numbers) {
    Asked& session = *static_cast<Asked*>(asked);
    auto const whole = [&](std::size_t place) { return static_cast<int64_t>(numbers[place]); };
    auto const fill = [&](madtp::AskOptions& options) {
        if (numbers[0] >= 0) { options.temperature = static_cast<float>(numbers[0]); }
        options.batch = whole(1);
        options.cut = whole(2) != 0;
    };
    int const code = guarded([&] {
        std::string const name = method;
        if (name == "judge") {
            madtp::AskOptions options;
            fill(options);
            std::vector<madtp::Statement> statements;
            for (std::size_t i = 0; i < session.texts.size(); ++i) {
                statements.push_back({session.images[2 * i], session.images[2 * i + 1], session.texts[i]});
            }
            message = json(session.session.judge(statements, options));
        } else if (name == "answer") {
            madtp::AnswerOptions options;
            fill(options);
            options.candidates = session.candidates;
            options.beams = whole(3);
            options.max_length = whole(4);
            options.min_length = whole(5);
            options.k = whole(6);
            std::vector<madtp::Question> questions;
            for (std::size_t i = 0; i < session.texts.size(); ++i) {
                questions.push_back({session.images[i], session.texts[i]});
            }
            message = json(session.session.answer(questions, options));
        } else if (name == "caption") {
            madtp::CaptionOptions options;
            fill(options);
            if (!session.texts.empty()) { options.prompt = session.texts.front(); }
            options.beams = whole(3);
            options.max_length = whole(4);
            options.min_length = whole(5);
            message = json(session.session.caption(session.images, options));
        } else {
            madtp::RankOptions options;
            fill(options);
            options.k_test = whole(7);
            options.image_batch = whole(8);
            options.text_batch = whole(9);
            options.match_batch = whole(10);
            message = json(session.session.rank(session.images, session.texts, options));
        }
    });
    session.images.clear();
    session.texts.clear();
    session.candidates.clear();
    return code;
}
