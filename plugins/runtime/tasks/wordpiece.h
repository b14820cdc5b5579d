// WordPiece with the vocabulary of a checkpoint.
//
// Our own, because nothing that can be installed by name gives Python's ids with a checkpoint's own vocab.txt: the
// BertTokenizer of onnxruntime-extensions 0.15 strips Latin accents only (9 of 19 hostile texts differ: Vietnamese,
// Hangul, kana, Greek), blingfire has the published vocabularies compiled in, and the package tokenizers has no C API.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace madtp {

class WordPiece {
public:
    // `pieces` by their ids; [DEC] and [ENC] are among them. Of a piece that is there twice the last id counts.
    explicit WordPiece(std::vector<std::string> pieces);

    // Ids of a text as it is. The names of special tokens, as written, are read as those.
    std::vector<std::int64_t> encode(std::string_view text, char const* name) const;
    // The text of ids, special tokens left out.
    std::string decode(std::vector<std::int64_t> const& ids) const;

private:
    void encode_plain(std::string_view text, char const* name, std::vector<std::int64_t>& ids) const;
    void encode_word(std::u32string_view word, std::vector<std::int64_t>& ids) const;

    std::vector<std::string> pieces_;
    std::unordered_map<std::string, std::int64_t> ids_;
    std::vector<std::string> special_;  // those that the vocabulary has
};

}  // namespace madtp
