// The parts of Unicode that reading texts needs, in the versions that Python's tokenizer has; on ICU.
#pragma once
#include <string>
#include <string_view>

namespace madtp {

// Code points of UTF-8. Throws what a user can correct: the text, which messages call `name`, is not Unicode; or this
// build has no ICU.
std::u32string code_points(std::string_view utf8, char const* name);
std::string utf8(std::u32string_view text);

// Python's str.lower and str.isspace.
std::u32string lower(std::u32string const& text);
bool is_space(char32_t c) noexcept;

// BERT's cleaning of a text before it is split, as the package tokenizers does it: control characters dropped, Chinese
// characters apart, accents stripped, lower case.
std::u32string bert_normalized(std::u32string const& text);
// What is a piece of its own, as there.
bool is_bert_punctuation(char32_t c) noexcept;
// What parts words, as there (Unicode's White_Space).
bool is_bert_space(char32_t c) noexcept;

}  // namespace madtp
