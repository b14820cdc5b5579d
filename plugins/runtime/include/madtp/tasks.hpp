// Images and texts in, the product of the task out: what export.Session is in Python.
//
//     madtp::Engine engine = madtp::Engine::load("out.json");
//     madtp::TaskSession session(engine);
//     madtp::Image left = madtp::read_image("left.jpg"), right = madtp::read_image("right.jpg");
//     madtp::Judgement judgement = session.judge({{left, right, "both images show a dog"}}).front();
//
// Link madtp::tasks. Every failure is a madtp::Error, and the session answers the next request as usual.
#ifndef MADTP_TASKS_HPP
#define MADTP_TASKS_HPP

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "madtp/engine.hpp"
#include "madtp/image.hpp"
#include "madtp/tokenizer.hpp"

namespace madtp {

// A text in UTF-8; or its ids, as TextReader or Python makes them, special ones included. CLIP takes ids only.
class Text {
public:
    Text(std::string text) : value_(std::move(text)) {}
    Text(char const* text) : value_(std::string(text)) {}
    Text(Ids ids) : value_(std::move(ids)) {}

    std::string const* text() const noexcept { return std::get_if<std::string>(&value_); }  // null where it is ids
    Ids const* ids() const noexcept { return std::get_if<Ids>(&value_); }

private:
    std::variant<std::string, Ids> value_;
};

struct AskOptions {
    std::optional<float> temperature;  // absent: the manifest's; 0 is dense
    // Requests run together. 0: Engine::usual_batch, with which no answer depends on the others. More change the
    // answers of a dynamic artifact, as in published evaluations.
    std::int64_t batch = 0;
    bool cut = false;  // read the beginning of an overlong text, as the published code does, instead of refusing it
};

// Tokens after each layer, class token included, by encoder: "vision", "text".
using Tokens = std::map<std::string, std::vector<std::int32_t>>;

// A sentence about two images (nlvr). The pixels have to live until the call returns.
struct Statement {
    Pixels left, right;
    Text sentence;
};

// Whether a sentence is true of its images.
struct Judgement {
    bool answer = false;
    double probability = 0;    // that it is true
    float logits[2] = {0, 0};  // of false and true
    Tokens tokens;             // of both images, which keep equally many
    std::int64_t batch = 1;    // requests in its batch
};

struct Question {
    Pixels image;
    Text question;
};

struct AnswerOptions : AskOptions {
    std::vector<Text> candidates;  // to choose from, all different; none: the answer is written freely
    std::int64_t k = 0;      // of them, likeliest first words first, that are read to the end; 0: as many as can be,
                             // 128 at most
    std::int64_t beams = 3;  // of the search that writes; 1 is greedy
    std::int64_t max_length = 10, min_length = 1;  // ids of a written answer, [DEC] included
};

// The answer to a question about an image (vqa).
struct Answer {
    std::string text;     // empty where ids were asked with and there is no vocabulary to tell
    bool ranked = false;  // chosen among candidates
    // Candidates that were read to the end, by their place, with the log probability of the whole answer; best first.
    std::vector<std::pair<std::size_t, float>> top;
    Ids ids;  // [DEC] first
    Tokens tokens;
    std::int64_t batch = 1;
};

struct CaptionOptions : AskOptions {
    std::optional<Text> prompt;  // that every caption continues; absent: the manifest's
    std::int64_t beams = 3;
    std::int64_t max_length = 20, min_length = 5;  // ids of a caption, [DEC] and the prompt included
};

// A sentence about an image (caption).
struct Caption {
    std::string text;  // without the prompt; empty where there is no vocabulary
    Ids ids;           // [DEC] and the prompt first
    Tokens tokens;
    std::int64_t batch = 1;
};

struct RankOptions : AskOptions {
    std::int64_t k_test = 256;  // candidates that retrieval matches in each row
    // Images and texts encoded, and pairs matched, together; 0: `batch`.
    std::int64_t image_batch = 0, text_batch = 0, match_batch = 0;
};

// A table of numbers, row by row.
template <typename T>
struct Table {
    std::size_t rows = 0, columns = 0;
    std::vector<T> values;

    T const* operator[](std::size_t row) const { return values.data() + row * columns; }
};

using Found = std::vector<std::vector<std::pair<std::size_t, float>>>;  // of each query: place and score, best first

// Scores of I images and T texts (retrieval, clip).
struct Ranking {
    Table<float> sim;  // [I, T] similarity of the embeddings
    // Ranks the texts of each image, [I, T]: in retrieval -100 outside the best `k_test` of its row, the similarity
    // plus the matching logit within; in clip the similarity.
    Table<float> score_i2t;
    Table<float> score_t2i;  // [T, I] ranks the images of each text
    // "vision" [I, layers], "text" [T, layers], and in retrieval "match" [pairs, layers], in the order in which they
    // were matched: row by row of score_i2t, then of score_t2i, the most similar first.
    std::map<std::string, Table<std::int32_t>> tokens;
    std::int64_t image_batch = 1, text_batch = 1, match_batch = 1;

    // The best k of each row of a score; fewer where fewer were matched.
    MADTP_RUNTIME_API static Found top(Table<float> const& score, std::size_t k);
};

// Answers requests to an artifact, from one thread at a time; many share an engine.
class MADTP_RUNTIME_API TaskSession {
public:
    // `vocabulary` names the checkpoint's vocab.txt where the export had none. Without one, requests with ids work.
    explicit TaskSession(Engine const& engine, std::string const& vocabulary = {});
    TaskSession(TaskSession&&) noexcept;
    TaskSession& operator=(TaskSession&&) noexcept;
    ~TaskSession();

    std::vector<Judgement> judge(std::vector<Statement> const& statements, AskOptions const& options = {});
    std::vector<Answer> answer(std::vector<Question> const& questions, AnswerOptions const& options = {});
    std::vector<Caption> caption(std::vector<Pixels> const& images, CaptionOptions const& options = {});
    Ranking rank(std::vector<Pixels> const& images, std::vector<Text> const& texts, RankOptions const& options = {});

    Session const& session() const;  // that runs the parts: its statistics, its engine

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace madtp

#endif
