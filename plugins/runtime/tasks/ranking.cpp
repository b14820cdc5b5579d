// As madtp/tasks/ranking.py.
#include "tasks/ranking.h"

#include <algorithm>

#include "tasks/model_checks.h"
#include "tasks/numbers.h"

namespace madtp {
namespace {

constexpr float kNotMatched = -100.0f;  // the score of a pair that was not among the best by similarity

template <typename T>
void append(Table<T>& table, Tensor const& rows) {
    table.columns = static_cast<std::size_t>(rows.shape().back());
    table.values.insert(table.values.end(), rows.as<T>(), rows.as<T>() + rows.size());
    table.rows = table.values.size() / std::max<std::size_t>(table.columns, 1);
}

void append_counts(Ranking& ranking, char const* encoder, Outputs const& outputs) {
    for (auto const& [name, counts] : outputs.token_counts()) { append(ranking.tokens[encoder], counts); }
}

// What matching needs of every image: the states that it kept.
struct ImageStates {
    std::vector<std::vector<float>> rows;  // [n, width] of each
    std::size_t width = 0, longest = 0;
    bool packed = false;

    void add(Outputs const& outputs) {
        Tensor const& states = outputs["image_tokens"];
        packed = outputs.contains("image_lengths");
        std::size_t const length = static_cast<std::size_t>(states.shape()[1]);
        width = static_cast<std::size_t>(states.shape()[2]);
        for (std::int64_t image = 0; image < states.shape()[0]; ++image) {
            std::int64_t const kept = packed ? outputs["image_lengths"].as<std::int64_t>()[image] : states.shape()[1];
            auto const own = static_cast<std::size_t>(own_rows(kept, states.shape()[1]));
            float const* begin = states.as<float>() + static_cast<std::size_t>(image) * length * width;
            rows.emplace_back(begin, begin + own * width);
            longest = std::max(longest, own);
        }
    }
};

class Matcher {
public:
    Matcher(Session& session, ImageStates const& images, std::vector<Ids> texts, RankingSizes const& sizes,
        RunOptions const& options, Ranking& ranking)
        : session_(session),
          images_(images),
          texts_(std::move(texts)),
          sizes_(sizes),
          options_(options),
          ranking_(ranking) {
        Manifest const& manifest = session.engine().manifest();
        std::int64_t const enc = config_id(manifest, "enc_token_id");
        for (Ids& ids : texts_) { ids.front() = enc; }
    }

    // Scores of the best candidates of each row by similarity; the others have kNotMatched.
    Table<float> scores(Table<float> const& similarity, bool rows_are_images) {
        Table<float> result{
            similarity.rows, similarity.columns, std::vector<float>(similarity.values.size(), kNotMatched)};
        for (std::size_t row = 0; row < similarity.rows; ++row) {
            std::vector<float> const values(similarity[row], similarity[row] + similarity.columns);
            Ranked const best = largest(values, sizes_.k_test);
            for (std::size_t begin = 0; begin < best.size(); begin += sizes_.pairs) {
                Ranked const part(best.begin() + static_cast<std::ptrdiff_t>(begin),
                    best.begin() + static_cast<std::ptrdiff_t>(std::min(begin + sizes_.pairs, best.size())));
                std::vector<float> const logits = match(part, row, rows_are_images);
                for (std::size_t i = 0; i < part.size(); ++i) {
                    std::size_t const column = static_cast<std::size_t>(part[i].second);
                    result.values[row * similarity.columns + column] = part[i].first + logits[i];
                }
            }
        }
        return result;
    }

private:
    std::vector<float> match(Ranked const& part, std::size_t row, bool rows_are_images) {
        std::vector<Ids> words;
        std::vector<std::size_t> shown;
        for (auto const& [value, place] : part) {
            std::size_t const other = static_cast<std::size_t>(place);
            words.push_back(texts_[rows_are_images ? other : row]);
            shown.push_back(rows_are_images ? row : other);
        }
        TextSettings const& settings = session_.engine().manifest().text;
        IdRows const ids(words, settings.pad_id, static_cast<std::size_t>(settings.max_tokens));
        std::size_t const length = length_of(shown);
        std::vector<float> states;
        Ids lengths;
        for (std::size_t image : shown) { add_states(states, lengths, image, length); }
        auto const pairs = static_cast<std::int64_t>(part.size());
        Inputs inputs{{"input_ids", ids.ids()}, {"attention_mask", ids.mask()},
            {"image_tokens",
                {states.data(), {pairs, static_cast<std::int64_t>(length), static_cast<std::int64_t>(images_.width)}}}};
        if (images_.packed) { inputs["image_lengths"] = {lengths.data(), {pairs}}; }
        RunOptions options = options_;
        options.batch = pairs;
        Outputs const outputs = session_.infer("match", inputs, options);
        append_counts(ranking_, "match", outputs);
        std::vector<float> logits;
        for (std::size_t i = 0; i < part.size(); ++i) {
            logits.push_back(outputs["itm_logits"].as<float>()[2 * i + 1]);
        }
        return logits;
    }

    // States that each image of a call has. Alone it has its own; with others in the dynamic layout all are as long as
    // the longest of *all* images, as in the published evaluation.
    std::size_t length_of(std::vector<std::size_t> const& shown) const {
        std::size_t length = 0;
        for (std::size_t image : shown) { length = std::max(length, images_.rows[image].size() / images_.width); }
        return images_.packed || sizes_.pairs == 1 ? length : images_.longest;
    }

    void add_states(std::vector<float>& states, Ids& lengths, std::size_t image, std::size_t length) const {
        std::vector<float> const& own = images_.rows[image];
        auto const width = static_cast<std::ptrdiff_t>(images_.width);
        states.insert(states.end(), own.begin(), own.end());
        lengths.push_back(static_cast<std::int64_t>(own.size() / images_.width));
        for (std::size_t i = own.size() / images_.width; i < length; ++i) {
            if (images_.packed) {
                states.resize(states.size() + images_.width);
            } else {  // a copy of its class token
                states.insert(states.end(), own.begin(), own.begin() + width);
            }
        }
    }

    Session& session_;
    ImageStates const& images_;
    std::vector<Ids> texts_;
    RankingSizes const& sizes_;
    RunOptions const& options_;
    Ranking& ranking_;
};

Table<float> embed_texts(Session& session, std::vector<Ids> const& texts, bool masked, RankingSizes const& sizes,
    RunOptions options, Ranking& ranking) {
    Manifest const& manifest = session.engine().manifest();
    Table<float> embeddings;
    for (auto const& [begin, end] : spans(texts.size(), sizes.texts, "texts")) {
        std::vector<Ids> const batch(
            texts.begin() + static_cast<std::ptrdiff_t>(begin), texts.begin() + static_cast<std::ptrdiff_t>(end));
        IdRows const rows(batch, manifest.text.pad_id, static_cast<std::size_t>(manifest.text.max_tokens));
        Inputs inputs{{"input_ids", rows.ids()}};
        if (masked) { inputs["attention_mask"] = rows.mask(); }
        options.batch = static_cast<std::int64_t>(end - begin);
        Outputs const outputs = session.infer("text", inputs, options);
        append(embeddings, outputs["text_embed"]);
        append_counts(ranking, "text", outputs);
    }
    return embeddings;
}

Table<float> embed_images(Session& session, std::vector<Pixels> const& images, RankingSizes const& sizes,
    RunOptions options, Ranking& ranking, ImageStates* states) {
    ImagePreprocessing const settings(session.engine().manifest().image);
    Table<float> embeddings;
    for (auto const& [begin, end] : spans(images.size(), sizes.images, "images")) {
        PixelRows rows(settings);
        for (std::size_t number = begin; number < end; ++number) {
            rows.add(images[number], "image " + std::to_string(number));
        }
        options.batch = static_cast<std::int64_t>(end - begin);
        Outputs const outputs = session.infer("image", {{"image", rows.view()}}, options);
        append(embeddings, outputs["image_embed"]);
        append_counts(ranking, "vision", outputs);
        if (states != nullptr) { states->add(outputs); }
    }
    return embeddings;
}

Table<float> products(Table<float> const& left, Table<float> const& right) {
    Table<float> result{left.rows, right.rows, {}};
    for (std::size_t i = 0; i < left.rows; ++i) {
        for (std::size_t j = 0; j < right.rows; ++j) {
            double sum = 0;
            for (std::size_t c = 0; c < left.columns; ++c) { sum += static_cast<double>(left[i][c]) * right[j][c]; }
            result.values.push_back(static_cast<float>(sum));
        }
    }
    return result;
}

Table<float> transposed(Table<float> const& table) {
    Table<float> result{table.columns, table.rows, {}};
    for (std::size_t column = 0; column < table.columns; ++column) {
        for (std::size_t row = 0; row < table.rows; ++row) { result.values.push_back(table[row][column]); }
    }
    return result;
}

}  // namespace

Ranking rank_pairs(Session& session, std::vector<Pixels> const& images, std::vector<Ids> const& texts,
    RankingSizes const& sizes, RunOptions const& options) {
    Ranking ranking;
    ranking.image_batch = static_cast<std::int64_t>(sizes.images);
    ranking.text_batch = static_cast<std::int64_t>(sizes.texts);
    ranking.match_batch = static_cast<std::int64_t>(sizes.pairs);
    bool const matches = session.engine().manifest().task == "retrieval";
    ImageStates states;
    Table<float> const words = embed_texts(session, texts, matches, sizes, options, ranking);
    Table<float> const shown = embed_images(session, images, sizes, options, ranking, matches ? &states : nullptr);
    ranking.sim = products(shown, words);
    Table<float> const by_text = transposed(ranking.sim);
    if (!matches) {
        ranking.score_i2t = ranking.sim;
        ranking.score_t2i = by_text;
        return ranking;
    }
    Matcher matcher(session, states, texts, sizes, options, ranking);
    ranking.score_i2t = matcher.scores(ranking.sim, true);
    ranking.score_t2i = matcher.scores(by_text, false);
    return ranking;
}

Found Ranking::top(Table<float> const& score, std::size_t k) {
    Found found;
    for (std::size_t row = 0; row < score.rows; ++row) {
        found.emplace_back();
        for (auto const& [value, place] : largest({score[row], score[row] + score.columns}, k)) {
            if (value != kNotMatched) { found.back().emplace_back(static_cast<std::size_t>(place), value); }
        }
    }
    return found;
}

}  // namespace madtp
