// As madtp/tasks/answers.py.
#include "tasks/answers.h"

#include <algorithm>

#include "tasks/numbers.h"

namespace madtp {
namespace {

// The score of each of the chosen answers, word by word; `start` is the logits of the first.
std::vector<float> scores_of(Session& session, Source const& source, std::vector<Ids const*> const& chosen,
    float const* start, std::size_t vocabulary, std::int64_t pad_id) {
    std::vector<float> scores;
    std::size_t longest = 0;
    for (Ids const* ids : chosen) {
        scores.push_back(-smoothed_loss(start, vocabulary, (*ids)[1]));
        longest = std::max(longest, ids->size());
    }
    Decoder decoder(session, source, static_cast<std::int64_t>(chosen.size()));
    for (std::size_t word = 2; word < longest; ++word) {
        Ids newest;
        for (Ids const* ids : chosen) {
            for (std::size_t at = word == 2 ? 0 : word - 1; at < word; ++at) {
                newest.push_back(at < ids->size() ? (*ids)[at] : pad_id);  // behind an end any id will do
            }
        }
        Tensor const logits = decoder.step(newest);
        for (std::size_t row = 0; row < chosen.size(); ++row) {
            if (word >= chosen[row]->size()) { continue; }
            scores[row] -= smoothed_loss(logits.as<float>() + row * vocabulary, vocabulary, (*chosen[row])[word]);
        }
    }
    return scores;
}

}  // namespace

std::vector<RankedAnswers> rank_answers(
    Session& session, Source const& source, std::vector<Ids> const& answers, std::size_t k, std::int64_t pad_id) {
    Ids const begins(static_cast<std::size_t>(source.batch()), answers.front().front());
    Tensor const start = Decoder(session, source, 1).step(begins);
    std::size_t const vocabulary = static_cast<std::size_t>(start.shape().back());
    std::vector<RankedAnswers> results;
    for (std::int64_t sample = 0; sample < source.batch(); ++sample) {
        float const* own = start.as<float>() + static_cast<std::size_t>(sample) * vocabulary;
        std::vector<float> const first = softmax(own, vocabulary);
        std::vector<float> likely;
        for (Ids const& answer : answers) { likely.push_back(first[static_cast<std::size_t>(answer[1])]); }
        std::vector<Ids const*> chosen;
        RankedAnswers result;
        for (auto const& [probability, place] : largest(likely, k)) {
            chosen.push_back(&answers[static_cast<std::size_t>(place)]);
            result.top.emplace_back(static_cast<std::size_t>(place), 0.0f);
        }
        std::vector<float> const scores = scores_of(session, source.of(sample), chosen, own, vocabulary, pad_id);
        for (std::size_t i = 0; i < scores.size(); ++i) { result.top[i].second = scores[i]; }
        std::stable_sort(result.top.begin(), result.top.end(),
            [](auto const& left, auto const& right) { return left.second > right.second; });
        result.best = result.top.front().first;
        results.push_back(std::move(result));
    }
    return results;
}

}  // namespace madtp
