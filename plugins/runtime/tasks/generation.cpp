// As madtp/tasks/generation.py, which says why: the ids that transformers 4.15 gives for a length penalty of 1, no
// early stopping and no repetition penalty.
#include "tasks/generation.h"

#include <algorithm>
#include <limits>

#include "tasks/numbers.h"

namespace madtp {
namespace {

constexpr double kNever = -1e9;  // initial score of all beams of a sample but the first, which would all be the same

struct Candidate {
    double score;
    std::int64_t row, token;
};

struct Finished {
    double mean;  // log probability
    Ids ids;      // without [SEP]
};

bool worse(Finished const& left, Finished const& right) { return left.mean < right.mean; }

// What beam search knows of one sample.
class Sample {
public:
    explicit Sample(std::size_t beams) : beams_(beams) {}
    bool done() const { return done_; }

    // Take in the best candidates, in their order; returns the ones to pursue, as many as there are beams.
    std::vector<Candidate> advance(
        std::vector<Candidate> const& candidates, std::vector<Ids> const& texts, Limits const& limits) {
        if (done_) { return std::vector<Candidate>(beams_, {0.0, 0, limits.pad_id}); }
        std::vector<Candidate> pursued;
        for (std::size_t rank = 0; rank < candidates.size() && pursued.size() < beams_; ++rank) {
            Candidate const& candidate = candidates[rank];
            if (candidate.token != limits.end_id) {
                pursued.push_back(candidate);
            } else if (rank < beams_) {
                finish(candidate.score, texts[static_cast<std::size_t>(candidate.row)]);
            }
        }
        if (finished_.size() == beams_) {
            double const reachable = candidates.front().score / static_cast<double>(texts.front().size());
            done_ = worst()->mean >= reachable;
        }
        return pursued;
    }

    // Keep a finished text of summed log probability `score` if it is among the best.
    void finish(double score, Ids const& ids) {
        double const mean = score / static_cast<double>(ids.size());
        if (finished_.size() < beams_ || mean > worst()->mean) { finished_.push_back({mean, ids}); }
        if (finished_.size() > beams_) { finished_.erase(worst()); }
    }

    // Of equal ones the latest.
    Ids const& best() const { return std::max_element(finished_.rbegin(), finished_.rend(), worse)->ids; }

private:
    std::vector<Finished>::iterator worst() { return std::min_element(finished_.begin(), finished_.end(), worse); }

    std::size_t beams_;
    std::vector<Finished> finished_;  // in the order they came
    bool done_ = false;
};

// A text that is too short must not end.
void forbid_end(float* scores, std::size_t length, Limits const& limits) {
    if (static_cast<std::int64_t>(length) < limits.min_length) {
        scores[limits.end_id] = -std::numeric_limits<float>::infinity();
    }
}

bool is_full(std::vector<Ids> const& texts, Limits const& limits) {
    return static_cast<std::int64_t>(texts.front().size()) >= limits.max_length;
}

std::vector<Ids> greedy(Decoder& decoder, std::vector<Ids> texts, Ids newest, Limits const& limits) {
    std::vector<bool> running(texts.size(), true);
    while (!is_full(texts, limits) && std::find(running.begin(), running.end(), true) != running.end()) {
        Tensor const logits = decoder.step(newest);
        std::size_t const vocabulary = static_cast<std::size_t>(logits.shape().back());
        newest.clear();
        for (std::size_t row = 0; row < texts.size(); ++row) {
            float const* own = logits.as<float>() + row * vocabulary;
            std::vector<float> scores(own, own + vocabulary);
            forbid_end(scores.data(), texts[row].size(), limits);
            std::int64_t const chosen = std::max_element(scores.begin(), scores.end()) - scores.begin();
            newest.push_back(running[row] ? chosen : limits.pad_id);
            running[row] = running[row] && chosen != limits.end_id;
            texts[row].push_back(newest.back());
        }
    }
    return texts;
}

// The best ways to go on with one sample: twice as many as beams, because a beam has one way to end.
std::vector<Candidate> best_candidates(float const* logits, std::size_t vocabulary, std::size_t number,
    std::vector<double> const& scores, std::size_t length, std::size_t beams, Limits const& limits) {
    std::vector<float> totals;
    totals.reserve(beams * vocabulary);
    for (std::size_t row = number * beams; row < (number + 1) * beams; ++row) {
        std::vector<float> own = log_softmax(logits + row * vocabulary, vocabulary);
        forbid_end(own.data(), length, limits);
        for (float value : own) { totals.push_back(value + static_cast<float>(scores[row])); }
    }
    std::vector<Candidate> candidates;
    for (auto const& [value, place] : largest(totals, 2 * beams)) {
        std::int64_t const beam = place / static_cast<std::int64_t>(vocabulary);
        candidates.push_back(
            {value, static_cast<std::int64_t>(number * beams) + beam, place % static_cast<std::int64_t>(vocabulary)});
    }
    return candidates;
}

std::vector<Ids> beam_search(
    Decoder& decoder, std::vector<Ids> texts, Ids newest, Limits const& limits, std::size_t beams) {
    std::vector<Sample> samples(texts.size() / beams, Sample(beams));
    std::vector<double> scores(texts.size(), kNever);
    for (std::size_t row = 0; row < texts.size(); row += beams) { scores[row] = 0.0; }
    Ids rows;
    auto const is_done = [](Sample const& sample) { return sample.done(); };
    while (!is_full(texts, limits) && !std::all_of(samples.begin(), samples.end(), is_done)) {
        Tensor const logits = decoder.step(newest, rows);
        std::size_t const vocabulary = static_cast<std::size_t>(logits.shape().back());
        std::vector<double> next;
        rows.clear();
        newest.clear();
        for (std::size_t number = 0; number < samples.size(); ++number) {
            std::vector<Candidate> const candidates =
                best_candidates(logits.as<float>(), vocabulary, number, scores, texts.front().size(), beams, limits);
            for (Candidate const& candidate : samples[number].advance(candidates, texts, limits)) {
                next.push_back(candidate.score);
                rows.push_back(candidate.row);
                newest.push_back(candidate.token);
            }
        }
        scores = std::move(next);
        std::vector<Ids> longer;
        for (std::size_t row = 0; row < rows.size(); ++row) {
            longer.push_back(texts[static_cast<std::size_t>(rows[row])]);
            longer.back().push_back(newest[row]);
        }
        texts = std::move(longer);
    }
    std::vector<Ids> results;
    for (std::size_t number = 0; number < samples.size(); ++number) {
        for (std::size_t row = number * beams; !samples[number].done() && row < (number + 1) * beams; ++row) {
            samples[number].finish(scores[row], texts[row]);
        }
        results.push_back(samples[number].best());
        if (static_cast<std::int64_t>(results.back().size()) < limits.max_length) {
            results.back().push_back(limits.end_id);
        }
    }
    return results;
}

}  // namespace

std::vector<Ids> write_texts(
    Session& session, Source const& source, Ids const& prompt, Limits const& limits, std::int64_t beams) {
    std::vector<Ids> const texts(static_cast<std::size_t>(source.batch() * beams), prompt);
    Ids newest;
    for (Ids const& text : texts) { newest.insert(newest.end(), text.begin(), text.end()); }
    Decoder decoder(session, source, beams);
    std::vector<Ids> written = beams == 1
                                   ? greedy(decoder, texts, newest, limits)
                                   : beam_search(decoder, texts, newest, limits, static_cast<std::size_t>(beams));
    for (Ids& text : written) {
        while (!text.empty() && text.back() == limits.pad_id) { text.pop_back(); }
    }
    return written;
}

}  // namespace madtp
