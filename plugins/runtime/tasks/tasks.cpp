#include "madtp/tasks.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "tasks/answers.h"
#include "tasks/fail.h"
#include "tasks/generation.h"
#include "tasks/model_checks.h"
#include "tasks/ranking.h"
#include "tasks/requests.h"
#include "text.h"

namespace madtp {
namespace {

constexpr std::int64_t kMostAnswers = 128;  // candidates that the published evaluation reads to the end

// A batch of prepared requests of nlvr, vqa or caption. Where the artifact takes no fewer than so many, the last one
// follows as often as it has to: copies keep as many tokens as what they are copies of, so nothing depends on them.
struct Batch {
    std::size_t begin, end, rows;
    std::size_t size() const { return end - begin; }
};

}  // namespace

struct TaskSession::State {
    State(Engine const& engine, std::string const& vocabulary)
        : session(engine), manifest(session.engine().manifest()), preprocessing(manifest.image) {
        check_model(manifest);
        try {
            reader.emplace(manifest, vocabulary);
        } catch (Error const& error) {
            if (!vocabulary.empty()) { throw; }
            unread.emplace(error);  // of use only to those who ask with ids
        }
    }

    void begin(char const* method, std::vector<std::string> const& tasks) const {
        if (std::find(tasks.begin(), tasks.end(), manifest.task) == tasks.end()) {
            fail("this session is of a " + manifest.task + " model, which cannot " + method, "",
                "Call the method of its task: judge (nlvr), answer (vqa), caption, or rank (retrieval, clip).");
        }
    }

    TextReader const& texts() const {
        if (!reader) { throw *unread; }
        return *reader;
    }

    // Ids that were handed over, which messages call `name`, if the model has them all.
    Ids const& checked(Ids const& ids, std::string const& name) const {
        std::int64_t const size = config_number(manifest, "vocab_size", 1, INT32_MAX);
        if (ids.empty()) { fail("there are no ids of " + name, "", "Hand over one at least."); }
        for (std::int64_t id : ids) {
            if (id < 0 || id >= size) {
                fail("an id of " + name + " is " + std::to_string(id),
                    "The model has ids 0 to " + std::to_string(size - 1) + ".",
                    "Make them with the model's vocabulary.");
            }
        }
        return ids;
    }

    // Ids of a request's text, which messages call `name`.
    Ids ids_of(Text const& text, bool cut, std::string const& name) const {
        if (text.ids() != nullptr) { return checked(*text.ids(), name); }
        try {
            return texts().ids(*text.text(), cut);
        } catch (Error const& error) {
            throw Error(error.code(), name + ": " + error.summary(), error.why(), error.fix());
        }
    }

    // Candidates as ids, all different and with words.
    std::vector<Ids> candidate_ids(std::vector<Text> const& candidates, DecoderLimits const& limits) const {
        std::vector<Ids> ids;
        std::set<std::string> seen;
        for (Text const& candidate : candidates) {
            std::string const name = "candidate " + std::to_string(ids.size());
            if (candidate.text() != nullptr && !seen.insert(*candidate.text()).second) {
                fail("the candidates are not different",
                    name + ", " + detail::in_quotes(*candidate.text()) + ", is there twice.", "Leave it out.");
            }
            ids.push_back(
                candidate.text() != nullptr ? texts().answer_ids(*candidate.text()) : checked(*candidate.ids(), name));
            if (ids.back().size() <= 2) {  // [DEC] and [SEP]
                fail(name + " has no words", "Nothing is left of it as the model reads it.", "Leave it out.");
            }
            limits.check(1, "candidates", 1, static_cast<std::int64_t>(ids.back().size()), ", by " + name);
        }
        return ids;
    }

    std::string text_of(Ids const& ids) const { return reader ? reader->decode(ids) : std::string(); }

    std::vector<Batch> batches(std::size_t count, AskOptions const& options) const {
        std::size_t const size =
            checked_batch(options.batch, session.engine(), "batch", session.engine().usual_batch());
        std::size_t const least = static_cast<std::size_t>(session.engine().batch().min);
        std::vector<Batch> result;
        for (auto const& [begin, end] : spans(count, size, "requests")) {
            result.push_back({begin, end, std::max(end - begin, least)});
        }
        return result;
    }

    // The texts of a batch, copies included.
    IdRows rows_of(std::vector<Ids> const& ids, Batch const& batch) const {
        std::vector<Ids> rows;
        for (std::size_t row = 0; row < batch.rows; ++row) {
            rows.push_back(ids[std::min(batch.begin + row, batch.end - 1)]);
        }
        return IdRows(rows, manifest.text.pad_id, 0);
    }

    // One image of each request of a batch, copies included.
    template <typename ImageOf>
    PixelRows pixels_of(Batch const& batch, char const* name, ImageOf const& image_of) const {
        PixelRows pixels(preprocessing);
        for (std::size_t row = 0; row < batch.rows; ++row) {
            std::size_t const number = batch.begin + row;
            if (number < batch.end) {
                pixels.add(image_of(number), name + std::to_string(number));
            } else {
                pixels.repeat_last();
            }
        }
        return pixels;
    }

    RunOptions run_options(AskOptions const& options, Batch const& batch) const {
        RunOptions run;
        run.temperature = options.temperature;
        run.batch = static_cast<std::int64_t>(batch.rows);
        return run;
    }

    Limits limits(std::int64_t max_length, std::int64_t min_length, std::size_t prompt) const {
        if (max_length <= static_cast<std::int64_t>(prompt)) {
            fail("max_length " + std::to_string(max_length) + " leaves nothing to write after a prompt of " +
                     std::to_string(prompt) + " ids",
                "Lengths count the prompt.", "Raise max_length.");
        }
        if (min_length > max_length) {
            fail(
                "min_length " + std::to_string(min_length) + " is larger than max_length " + std::to_string(max_length),
                "", "Lower min_length.");
        }
        return {max_length, min_length, config_id(manifest, "sep_token_id"), config_id(manifest, "pad_token_id")};
    }

    Session session;
    Manifest const& manifest;
    ImagePreprocessing preprocessing;
    std::optional<TextReader> reader;
    std::optional<Error> unread;
};

TaskSession::TaskSession(Engine const& engine, std::string const& vocabulary)
    : state_(guarded([&] { return std::make_unique<State>(engine, vocabulary); })) {}
TaskSession::TaskSession(TaskSession&&) noexcept = default;
TaskSession& TaskSession::operator=(TaskSession&&) noexcept = default;
TaskSession::~TaskSession() = default;

namespace {

template <typename State>
State& opened(std::unique_ptr<State> const& state) {
    if (!state) { fail("the session was moved elsewhere", "", "Ask the one that it became."); }
    return *state;
}

}  // namespace

Session const& TaskSession::session() const { return opened(state_).session; }

std::vector<Judgement> TaskSession::judge(std::vector<Statement> const& statements, AskOptions const& options) {
    return guarded([&] {
        State& state = opened(state_);
        state.begin("judge", {"nlvr"});
        std::vector<Ids> ids;
        for (Statement const& statement : statements) {
            ids.push_back(state.ids_of(statement.sentence, options.cut, "sentence " + std::to_string(ids.size())));
        }
        std::vector<Judgement> results;
        for (Batch const& batch : state.batches(statements.size(), options)) {
            PixelRows const left =
                state.pixels_of(batch, "the left image ", [&](std::size_t number) { return statements[number].left; });
            PixelRows const right = state.pixels_of(
                batch, "the right image ", [&](std::size_t number) { return statements[number].right; });
            IdRows const words = state.rows_of(ids, batch);
            Inputs const inputs{{"image0", left.view()}, {"image1", right.view()}, {"input_ids", words.ids()},
                {"attention_mask", words.mask()}};
            Outputs const outputs = state.session.infer("model", inputs, state.run_options(options, batch));
            for (std::size_t row = 0; row < batch.size(); ++row) {
                float const* logits = outputs["logits"].as<float>() + 2 * row;
                Judgement result;
                result.answer = logits[1] > logits[0];
                result.probability = 1 / (1 + std::exp(static_cast<double>(logits[0]) - logits[1]));
                std::copy_n(logits, 2, result.logits);
                result.tokens = tokens_of(outputs, row);
                result.batch = static_cast<std::int64_t>(batch.size());
                results.push_back(std::move(result));
            }
        }
        return results;
    });
}

std::vector<Answer> TaskSession::answer(std::vector<Question> const& questions, AnswerOptions const& options) {
    return guarded([&] {
        State& state = opened(state_);
        state.begin("answer", {"vqa"});
        std::vector<Ids> ids;
        for (Question const& question : questions) {
            ids.push_back(state.ids_of(question.question, options.cut, "question " + std::to_string(ids.size())));
        }
        DecoderLimits const decoder(state.manifest);
        Ids const prompt{config_id(state.manifest, "bos_token_id")};
        std::vector<Ids> const candidates = state.candidate_ids(options.candidates, decoder);
        std::int64_t k = options.k == 0 ? std::min(kMostAnswers, decoder.texts) : options.k;
        Limits limits{};
        if (candidates.empty()) {
            if (options.k != 0) {
                fail("k does not apply without candidates", "It is how many of them are read.", "Leave it out.");
            }
            decoder.check(options.beams, "beams", 1, options.max_length);
            limits = state.limits(options.max_length, options.min_length, 1);
        } else {
            k = std::min(k, static_cast<std::int64_t>(candidates.size()));
            decoder.check(k, "candidates (k)", 1, 1);
            if (state.session.engine().batch().min > 1) {
                fail("this artifact cannot rank candidates",
                    "They are read question by question, and it was built for batches of " +
                        std::to_string(state.session.engine().batch().min) + " or more.",
                    "Export again with --batch 1:N:M, or ask without candidates.");
            }
        }
        std::vector<Answer> results;
        for (Batch const& batch : state.batches(questions.size(), options)) {
            PixelRows const pixels =
                state.pixels_of(batch, "image ", [&](std::size_t number) { return questions[number].image; });
            IdRows const words = state.rows_of(ids, batch);
            Outputs const encoded = state.session.infer("encoder",
                {{"image", pixels.view()}, {"input_ids", words.ids()}, {"attention_mask", words.mask()}},
                state.run_options(options, batch));
            Source const source(encoded);
            std::vector<Ids> written;
            std::vector<RankedAnswers> ranked;
            if (candidates.empty()) {
                written = write_texts(state.session, source, prompt, limits, options.beams);
            } else {
                ranked = rank_answers(state.session, source, candidates, static_cast<std::size_t>(k),
                    config_id(state.manifest, "pad_token_id"));
            }
            for (std::size_t row = 0; row < batch.size(); ++row) {
                Answer result;
                result.ranked = written.empty();
                if (result.ranked) {
                    std::size_t const best = ranked[row].best;
                    std::string const* text = options.candidates[best].text();
                    result.top = ranked[row].top;
                    result.ids = candidates[best];
                    result.text = text != nullptr ? *text : state.text_of(result.ids);
                } else {
                    result.ids = written[row];
                    result.text = state.text_of(result.ids);
                }
                result.tokens = tokens_of(encoded, row);
                result.batch = static_cast<std::int64_t>(batch.size());
                results.push_back(std::move(result));
            }
        }
        return results;
    });
}

std::vector<Caption> TaskSession::caption(std::vector<Pixels> const& images, CaptionOptions const& options) {
    return guarded([&] {
        State& state = opened(state_);
        state.begin("caption", {"caption"});
        Text const asked = options.prompt.value_or(Text(state.manifest.text.prompt.value_or("")));
        Ids const prompt = asked.ids() != nullptr ? state.checked(*asked.ids(), "the prompt")
                                                  : state.texts().prompt_ids(*asked.text());
        DecoderLimits(state.manifest).check(options.beams, "beams", prompt.size(), options.max_length);
        Limits const limits = state.limits(options.max_length, options.min_length, prompt.size());
        std::string const begins = state.text_of(prompt);
        std::vector<Caption> results;
        for (Batch const& batch : state.batches(images.size(), options)) {
            PixelRows const pixels =
                state.pixels_of(batch, "image ", [&](std::size_t number) { return images[number]; });
            Outputs const encoded =
                state.session.infer("encoder", {{"image", pixels.view()}}, state.run_options(options, batch));
            std::vector<Ids> const written = write_texts(state.session, Source(encoded), prompt, limits, options.beams);
            for (std::size_t row = 0; row < batch.size(); ++row) {
                Caption result;
                result.ids = written[row];
                result.text = state.text_of(result.ids);
                if (result.text.rfind(begins, 0) == 0) { result.text.erase(0, begins.size()); }
                std::size_t const first = result.text.find_first_not_of(' ');
                std::size_t const last = result.text.find_last_not_of(' ');
                result.text = first == std::string::npos ? "" : result.text.substr(first, last + 1 - first);
                result.tokens = tokens_of(encoded, row);
                result.batch = static_cast<std::int64_t>(batch.size());
                results.push_back(std::move(result));
            }
        }
        return results;
    });
}

Ranking TaskSession::rank(
    std::vector<Pixels> const& images, std::vector<Text> const& texts, RankOptions const& options) {
    return guarded([&] {
        State& state = opened(state_);
        state.begin("rank", {"retrieval", "clip"});
        if (options.k_test < 1) {
            fail("k_test is " + std::to_string(options.k_test), "It has to be 1 or more.", "Raise it.");
        }
        Engine const& engine = state.session.engine();
        auto const usual =
            static_cast<std::int64_t>(checked_batch(options.batch, engine, "batch", engine.usual_batch()));
        RankingSizes const sizes{checked_batch(options.image_batch, engine, "image_batch", usual),
            checked_batch(options.text_batch, engine, "text_batch", usual),
            checked_batch(options.match_batch, engine, "match_batch", usual), static_cast<std::size_t>(options.k_test)};
        std::vector<Ids> ids;
        for (Text const& text : texts) {
            ids.push_back(state.ids_of(text, options.cut, "text " + std::to_string(ids.size())));
        }
        RunOptions run;
        run.temperature = options.temperature;
        return rank_pairs(state.session, images, ids, sizes, run);
    });
}

}  // namespace madtp
