#include "tasks/wordpiece.h"

#include <algorithm>

#include "tasks/unicode.h"

namespace madtp {
namespace {

constexpr std::size_t kLongestWord = 100;  // characters; a longer one is unknown
constexpr char kUnknown[] = "[UNK]";
constexpr char const* kSpecial[] = {"[PAD]", kUnknown, "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"};
// What decoding joins to the word before it, in this order: the rules of transformers 4.15, which BLIP decodes with.
constexpr char const* kJoined[] = {".", "?", "!", ",", "' ", "n't", "'m", "'s", "'ve", "'re"};

void replace_all(std::string& text, std::string const& what, std::string const& with) {
    for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + with.size())) {
        text.replace(at, what.size(), with);
    }
}

}  // namespace

WordPiece::WordPiece(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {
    for (std::size_t id = 0; id < pieces_.size(); ++id) { ids_[pieces_[id]] = static_cast<std::int64_t>(id); }
    for (char const* name : kSpecial) {
        if (ids_.count(name) != 0) { special_.emplace_back(name); }
    }
}

std::vector<std::int64_t> WordPiece::encode(std::string_view text, char const* name) const {
    std::vector<std::int64_t> ids;
    std::size_t begin = 0;
    for (std::size_t at = text.find('['); at != std::string_view::npos; at = text.find('[', at)) {
        auto const found = std::find_if(special_.begin(), special_.end(),
            [&](std::string const& token) { return text.compare(at, token.size(), token) == 0; });
        if (found == special_.end()) {
            ++at;
            continue;
        }
        encode_plain(text.substr(begin, at - begin), name, ids);
        ids.push_back(ids_.at(*found));
        begin = at += found->size();
    }
    encode_plain(text.substr(begin), name, ids);
    return ids;
}

void WordPiece::encode_plain(std::string_view text, char const* name, std::vector<std::int64_t>& ids) const {
    std::u32string const clean = bert_normalized(code_points(text, name));
    std::size_t begin = 0;
    for (std::size_t at = 0; at <= clean.size(); ++at) {
        bool const ends = at == clean.size();
        bool const mark = !ends && is_bert_punctuation(clean[at]);
        if (!ends && !mark && !is_bert_space(clean[at])) { continue; }
        if (at > begin) { encode_word(std::u32string_view(clean).substr(begin, at - begin), ids); }
        if (mark) { encode_word(std::u32string_view(clean).substr(at, 1), ids); }
        begin = at + 1;
    }
}

// The longest piece that fits, again and again; a word that has a part that is no piece is unknown.
void WordPiece::encode_word(std::u32string_view word, std::vector<std::int64_t>& ids) const {
    std::size_t const known = ids.size();
    std::size_t begin = word.size() > kLongestWord ? std::u32string_view::npos : 0;
    while (begin < word.size()) {
        std::size_t end = word.size();
        for (; end > begin; --end) {
            auto const piece = ids_.find((begin == 0 ? "" : "##") + utf8(word.substr(begin, end - begin)));
            if (piece != ids_.end()) {
                ids.push_back(piece->second);
                break;
            }
        }
        begin = end == begin ? std::u32string_view::npos : end;
    }
    if (begin == std::u32string_view::npos) {
        ids.resize(known);
        ids.push_back(ids_.at(kUnknown));
    }
}

std::string WordPiece::decode(std::vector<std::int64_t> const& ids) const {
    std::string text;
    bool first = true;
    for (std::int64_t id : ids) {
        if (id < 0 || id >= static_cast<std::int64_t>(pieces_.size())) { continue; }
        std::string const& piece = pieces_[static_cast<std::size_t>(id)];
        bool const special = std::find(special_.begin(), special_.end(), piece) != special_.end();
        if (special || ids_.at(piece) != id) { continue; }
        bool const goes_on = !first && piece.rfind("##", 0) == 0;
        if (!first && !goes_on) { text += ' '; }
        text += goes_on ? piece.substr(2) : piece;
        first = false;
    }
    for (std::string const part : kJoined) {
        replace_all(text, " " + part, part.back() == ' ' ? part.substr(0, part.size() - 1) : part);
    }
    return text;
}

}  // namespace madtp
