#include "tasks/requests.h"

#include <algorithm>

#include "tasks/fail.h"

namespace madtp {
namespace {

// The size of a dimension that a part was built for.
std::int64_t most(PartInfo const& part, char const* input, std::size_t dimension) {
    auto const profile = part.profile.find(input);
    bool const known = profile != part.profile.end() && profile->second.max.size() > dimension;
    if (!known) { throw Error(Code::manifest, std::string("the manifest has no profile of the decoder's ") + input); }
    return profile->second.max[dimension];
}

}  // namespace

void PixelRows::add(Pixels const& pixels, std::string const& name) {
    try {
        std::vector<float> const row = preprocess(pixels, settings_);
        values_.insert(values_.end(), row.begin(), row.end());
    } catch (Error const& error) { throw Error(error.code(), name + ": " + error.summary(), error.why(), error.fix()); }
}

void PixelRows::repeat_last() {
    std::size_t const row = static_cast<std::size_t>(settings_.size) * settings_.size * 3;
    values_.resize(values_.size() + row);
    std::copy_n(
        values_.end() - 2 * static_cast<std::ptrdiff_t>(row), row, values_.end() - static_cast<std::ptrdiff_t>(row));
}

TensorView PixelRows::view() const {
    std::int64_t const size = settings_.size;
    return {values_.data(), {static_cast<std::int64_t>(values_.size()) / (3 * size * size), 3, size, size}};
}

IdRows::IdRows(std::vector<Ids> const& rows, std::int64_t pad_id, std::size_t least) {
    std::size_t length = least;
    for (Ids const& row : rows) { length = std::max(length, row.size()); }
    ids_.assign(rows.size() * length, pad_id);
    mask_.assign(rows.size() * length, 0);
    shape_ = {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(length)};
    for (std::size_t number = 0; number < rows.size(); ++number) {
        std::copy(
            rows[number].begin(), rows[number].end(), ids_.begin() + static_cast<std::ptrdiff_t>(number * length));
        std::fill_n(mask_.begin() + static_cast<std::ptrdiff_t>(number * length), rows[number].size(), 1);
    }
}

std::vector<std::pair<std::size_t, std::size_t>> spans(std::size_t count, std::size_t size, char const* what) {
    if (count == 0) { fail(std::string("there are 0 ") + what, "", "Give at least one."); }
    std::vector<std::pair<std::size_t, std::size_t>> result;
    for (std::size_t begin = 0; begin < count; begin += size) {
        result.emplace_back(begin, std::min(begin + size, count));
    }
    return result;
}

std::size_t checked_batch(std::int64_t batch, Engine const& engine, char const* name, std::int64_t usual) {
    if (batch == 0) { return static_cast<std::size_t>(usual); }
    Range const built = engine.batch();
    if (batch < 1 || batch > built.max) {
        fail(std::string(name) + " is " + std::to_string(batch),
            "The artifact takes up to " + std::to_string(built.max) + " requests at a time.",
            batch > 1 ? "Choose another number, or export again with --batch 1:" + std::to_string(built.opt) + ":N."
                      : "");
    }
    return static_cast<std::size_t>(batch);
}

Tokens tokens_of(Outputs const& outputs, std::size_t request) {
    Tokens tokens;
    for (auto const& [encoder, counts] : outputs.token_counts()) {
        std::size_t const layers = static_cast<std::size_t>(counts.shape().back());
        std::int32_t const* row = counts.as<std::int32_t>() + request * layers;
        tokens[encoder].assign(row, row + layers);
    }
    return tokens;
}

DecoderLimits::DecoderLimits(Manifest const& manifest) {
    PartInfo const& part = manifest.part("decoder");
    texts = most(part, "input_ids", 1);
    prompt = most(part, "input_ids", 2);
    ids = most(part, "past", 5) + 2;  // the last id is only written, the one before it is new
}

void DecoderLimits::check(std::int64_t asked_texts, char const* name, std::size_t asked_prompt, std::int64_t asked_ids,
    std::string const& source) const {
    struct Limit {
        char const* what;
        std::int64_t asked, most;
        std::string fix;
    };
    auto const length = static_cast<std::int64_t>(asked_prompt);
    for (Limit const& limit : {Limit{name, asked_texts, texts, "--beams " + std::to_string(asked_texts)},
             Limit{"ids of a prompt", length, prompt, "--max-length " + std::to_string(3 * length + 1)},
             Limit{"ids of a text", asked_ids, ids, "--max-length " + std::to_string(asked_ids)}}) {
        if (limit.asked >= 1 && limit.asked <= limit.most) { continue; }
        fail(std::to_string(limit.asked) + " " + limit.what + " were asked for" + source,
            "The artifact's decoder was built for 1 to " + std::to_string(limit.most) + ".",
            limit.asked > limit.most ? "Ask for fewer, or export again with " + limit.fix + "."
                                     : "Ask for one at least.");
    }
}

}  // namespace madtp
