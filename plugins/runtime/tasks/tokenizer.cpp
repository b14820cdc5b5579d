#include "madtp/tokenizer.hpp"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "files.h"
#include "tasks/fail.h"
#include "tasks/unicode.h"
#include "tasks/wordpiece.h"
#include "text.h"

namespace madtp {
namespace {

constexpr std::uint64_t kMostVocabulary = 64'000'000;     // bytes
constexpr std::u32string_view kDropped = U".!\"()*#:;~";  // what every published reader drops
constexpr char kDroppedPattern[] = "[.!\"()*#:;~]";       // as the manifest says it

// The ids that a task uses, and what they are of.
struct NamedId {
    char const* field;
    char const* token;
    std::string_view tasks;
};
constexpr NamedId kNamed[] = {{"pad_token_id", "[PAD]", "nlvr vqa caption retrieval"},
    {"cls_token_id", "[CLS]", "retrieval"}, {"sep_token_id", "[SEP]", "nlvr vqa caption retrieval"},
    {"bos_token_id", "[DEC]", "vqa caption"}, {"enc_token_id", "[ENC]", "nlvr vqa retrieval"}};

// Ids that a published reader cuts after; the others take what comes.
std::optional<std::size_t> most_ids(std::string const& task) {
    return task == "vqa" || task == "retrieval" ? std::optional<std::size_t>(35) : std::nullopt;
}

std::int64_t whole(Manifest const& manifest, char const* name) {
    auto const found = manifest.config.find(name);
    return found == manifest.config.end() ? -1 : static_cast<std::int64_t>(found->second);
}

std::vector<std::string> lines(std::string text) {
    if (text.rfind("\xef\xbb\xbf", 0) == 0) { text.erase(0, 3); }
    std::vector<std::string> result(1);
    for (std::size_t at = 0; at < text.size(); ++at) {
        if (text[at] == '\n') {
            if (at + 1 < text.size()) { result.emplace_back(); }
        } else if (text[at] != '\r' || at + 1 == text.size() || text[at + 1] != '\n') {
            result.back() += text[at];
        }
    }
    return result;
}

std::string listed(std::vector<std::string> const& names) {
    std::string text;
    for (std::string const& name : names) { text += (text.empty() ? "" : ", ") + name; }
    return text;
}

// Why these pieces, [DEC] and [ENC] included, are not those of the model; empty if they are.
std::string mismatch(Manifest const& manifest, std::vector<std::string> const& pieces) {
    std::vector<std::string> missing;
    for (char const* token : {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}) {
        if (std::find(pieces.begin(), pieces.end(), token) == pieces.end()) { missing.emplace_back(token); }
    }
    if (!missing.empty()) { return "It lacks " + listed(missing) + "."; }
    std::int64_t const size = whole(manifest, "vocab_size");
    if (static_cast<std::int64_t>(pieces.size()) != size) {
        return "It has " + std::to_string(pieces.size() - 2) + " pieces; the model has " + std::to_string(size) +
               ", [DEC] and [ENC] included.";
    }
    for (NamedId const& named : kNamed) {
        std::int64_t const id = whole(manifest, named.field);
        bool const used = named.tasks.find(manifest.task) != std::string_view::npos;
        if (used && (id < 0 || id >= size || pieces[static_cast<std::size_t>(id)] != named.token)) {
            return std::string("Its ") + named.token + " is not entry " + std::to_string(id) +
                   ", which is the model's " + named.field + ".";
        }
    }
    return {};
}

WordPiece read_vocabulary(Manifest const& manifest, std::string const& path) {
    std::string const name = "the vocabulary '" + path + "'";
    std::string text;
    try {
        text = detail::read_file(path, kMostVocabulary);
    } catch (std::runtime_error const& error) {
        fail("cannot read " + name, error.what(), "Put the checkpoint's vocab.txt there.");
    }
    code_points(text, name.c_str());
    if (!manifest.text.vocabulary_sha256.empty() && detail::sha256_of(text) != manifest.text.vocabulary_sha256) {
        fail(name + " is not the one that the artifact was exported with", "Its sha256 differs.",
            "Use the vocab.txt of the checkpoint.");
    }
    std::vector<std::string> pieces = lines(text);
    pieces.emplace_back("[DEC]");
    pieces.emplace_back("[ENC]");
    std::string const why = mismatch(manifest, pieces);
    if (!why.empty()) {
        fail(name + " does not belong to this model", why, "Use the vocab.txt that the checkpoint was trained with.");
    }
    return WordPiece(std::move(pieces));
}

// Lower case, some punctuation dropped, and nothing cut yet.
std::u32string normalized(std::u32string const& text, std::u32string const& dropped_as) {
    std::u32string kept;
    for (char32_t c : lower(text)) {
        if (kDropped.find(c) == std::u32string_view::npos) {
            kept += c;
        } else {
            kept += dropped_as;
        }
    }
    auto const without = [](std::u32string& line, char32_t end) {
        while (!line.empty() && line.back() == end) { line.pop_back(); }
    };
    if (dropped_as.empty()) {
        without(kept, U' ');
        return kept;
    }
    std::u32string single;  // two or more of white space become one space
    for (std::size_t at = 0; at < kept.size();) {
        std::size_t end = at;
        while (end < kept.size() && is_space(kept[end])) { ++end; }
        single += end - at >= 2 ? U' ' : kept[at];
        at = std::max(end, at + 1);
    }
    without(single, U'\n');
    without(single, U' ');
    return single.substr(std::min(single.find_first_not_of(U' '), single.size()));
}

}  // namespace

struct TextReader::State {
    static State open(Manifest const& manifest, std::string const& vocabulary);
    Ids ids(std::string_view text, bool cut) const;
    Ids prompt_ids(std::string_view prompt) const {
        Ids result = words.encode(prompt, "the text");
        result.insert(result.begin(), dec);
        return result;
    }

    Manifest manifest;
    WordPiece words;
    std::u32string dropped_as;
    std::int64_t dec, sep, positions;
};

TextReader::State TextReader::State::open(Manifest const& manifest, std::string const& vocabulary) {
    TextSettings const& settings = manifest.text;
    if (settings.tokenizer != "bert-wordpiece") {
        fail("texts of this artifact cannot be read here",
            "They are read with " + detail::in_quotes(settings.tokenizer) + "; this library has WordPiece.",
            "Hand over ids, as Python's export.Session makes them.");
    }
    bool const reads = settings.max_words.has_value();  // captions have a prompt alone
    if (!settings.lowercase || (reads && settings.dropped != kDroppedPattern)) {
        fail("texts of this artifact cannot be read here",
            "Its manifest asks for a reader that this library does not know.",
            "Use the library of the version that made the artifact.");
    }
    std::string const path = vocabulary.empty() ? settings.vocabulary_path : vocabulary;
    if (path.empty()) {
        fail("there is no vocabulary beside '" + manifest.path + "'",
            "The checkpoint had no vocab.txt beside it when it was exported, so texts cannot be turned into ids.",
            "Name the checkpoint's vocab.txt.");
    }
    return {manifest, read_vocabulary(manifest, path), code_points(settings.dropped_as, "the manifest"),
        whole(manifest, "bos_token_id"), whole(manifest, "sep_token_id"), whole(manifest, "max_position")};
}

Ids TextReader::State::ids(std::string_view text, bool cut) const {
    TextSettings const& settings = manifest.text;
    if (!settings.max_words.has_value()) {
        fail("a captioning request has no text", "It is an image.", "Give the prompt as a prompt.");
    }
    std::u32string const clean = normalized(code_points(text, "the text"), dropped_as);
    std::size_t const most = static_cast<std::size_t>(*settings.max_words);
    std::size_t count = 1, end = clean.size();
    for (std::size_t at = clean.find(U' '); at != std::u32string::npos; at = clean.find(U' ', at + 1)) {
        if (count++ == most) { end = at; }
    }
    Ids pieces = words.encode(utf8(std::u32string_view(clean).substr(0, end)), "the text");
    std::optional<std::size_t> const limit = most_ids(manifest.task);
    std::string why;
    if (count > most) {
        why = "has " + std::to_string(count) + " words; the limit is " + std::to_string(most);
    } else if (limit && pieces.size() + 2 > *limit) {
        why = "has " + std::to_string(pieces.size() + 2) + " tokens; the limit is " + std::to_string(*limit);
    }
    if (!why.empty() && !cut) {
        fail("the text " + detail::in_quotes(text) + " " + why,
            "The published code cuts the rest off; here it is not cut silently, that would ask another question.",
            "Shorten the text, or ask for it to be cut.");
    }
    if (limit && pieces.size() + 2 > *limit) { pieces.resize(*limit - 2); }
    pieces.insert(pieces.begin(), settings.first_id);
    pieces.push_back(settings.last_id.value_or(sep));
    if (static_cast<std::int64_t>(pieces.size()) > positions) {
        fail("the text " + detail::in_quotes(text) + " has " + std::to_string(pieces.size()) + " tokens",
            "The model has " + std::to_string(positions) + " positions.",
            "Shorten the text; it is not cut silently because that would ask another question.");
    }
    return pieces;
}

bool can_read_texts() noexcept {
#ifdef MADTP_ICU
    return true;
#else
    return false;
#endif
}

TextReader::TextReader(Manifest const& manifest, std::string const& vocabulary)
    : state_(guarded([&] { return std::make_shared<State const>(State::open(manifest, vocabulary)); })) {}

Ids TextReader::ids(std::string_view text, bool cut) const {
    return guarded([&] { return state_->ids(text, cut); });
}

Ids TextReader::answer_ids(std::string_view answer) const {
    return guarded([&] {
        Ids ids = state_->prompt_ids(answer);
        ids.push_back(state_->sep);
        return ids;
    });
}

Ids TextReader::prompt_ids(std::string_view prompt) const {
    return guarded([&] { return state_->prompt_ids(prompt); });
}

std::string TextReader::decode(Ids const& ids) const {
    return guarded([&] { return state_->words.decode(ids); });
}

}  // namespace madtp
