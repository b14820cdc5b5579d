// Texts for an artifact: read as the published reader of its task reads them, to the ids that Python gives.
//
// WordPiece (nlvr, vqa, caption, retrieval), where the library was built with ICU. The byte pair encoding of CLIP is
// not here: its table is no file of an artifact, and texts are mended before it by a package for Python. Programs hand
// over CLIP's ids themselves, [77] with zeros behind the end of text.
#ifndef MADTP_TOKENIZER_HPP
#define MADTP_TOKENIZER_HPP

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "madtp/engine.hpp"

namespace madtp {

using Ids = std::vector<std::int64_t>;

// Whether this build reads texts.
MADTP_RUNTIME_API bool can_read_texts() noexcept;

// Reads the texts of one artifact. Copies are the same reader; threads may share it. Throws Error, also for a text that
// is not UTF-8.
class MADTP_RUNTIME_API TextReader {
public:
    // With the vocabulary of the manifest; `vocabulary` names the checkpoint's vocab.txt where the export had none.
    // Refused is a vocabulary of another model.
    explicit TextReader(Manifest const& manifest, std::string const& vocabulary = {});

    // Ids of a sentence, question or caption: [ENC] (retrieval: [CLS]), its pieces, [SEP]. A text that the published
    // code would cut is refused; `cut` reads its beginning.
    Ids ids(std::string_view text, bool cut = false) const;

    // Ids of an answer of vqa, which is taken as it is: [DEC], its pieces, [SEP].
    Ids answer_ids(std::string_view answer) const;

    // Ids that a caption begins with: [DEC], the pieces of the prompt.
    Ids prompt_ids(std::string_view prompt) const;

    // The text of generated ids, special ones left out. A caption still begins with its prompt.
    std::string decode(Ids const& ids) const;

private:
    struct State;
    std::shared_ptr<State const> state_;
};

}  // namespace madtp

#endif
