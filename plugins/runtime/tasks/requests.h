// Requests on their way into a part: prepared images and ids, and the batches that they make.
#pragma once
#include <string>
#include <vector>

#include "madtp/tasks.hpp"

namespace madtp {

// Images of one input, float32 [rows, 3, size, size].
class PixelRows {
public:
    explicit PixelRows(ImagePreprocessing const& settings) : settings_(settings) {}
    // Prepares an image, which messages call `name`.
    void add(Pixels const& pixels, std::string const& name);
    void repeat_last();
    TensorView view() const;

private:
    ImagePreprocessing settings_;
    std::vector<float> values_;
};

// Ids of texts, int64 [rows, length]: padded to the longest, and to `least` at least; and their mask, 1 for words.
class IdRows {
public:
    IdRows(std::vector<Ids> const& rows, std::int64_t pad_id, std::size_t least);
    TensorView ids() const { return {ids_.data(), shape_}; }
    TensorView mask() const { return {mask_.data(), shape_}; }
    std::int64_t* row(std::size_t number) { return ids_.data() + number * static_cast<std::size_t>(shape_[1]); }

private:
    Ids ids_, mask_;
    Shape shape_;
};

// Begin and end of batches of `size`; the last one may be smaller. No requests are refused, which messages call `what`.
std::vector<std::pair<std::size_t, std::size_t>> spans(std::size_t count, std::size_t size, char const* what);

// A batch size that the artifact takes; 0 is `usual`.
std::size_t checked_batch(std::int64_t batch, Engine const& engine, char const* name, std::int64_t usual);

// Token counts of rows [begin, end) of an output, which are alike for what a request has several of.
Tokens tokens_of(Outputs const& outputs, std::size_t request);

// What a decoder was built for.
class DecoderLimits {
public:
    explicit DecoderLimits(Manifest const& manifest);
    // Refuses `texts` at once, which messages call `name`, or ids of a prompt or text that exceed these limits.
    void check(std::int64_t texts, char const* name, std::size_t prompt, std::int64_t ids,
        std::string const& source = {}) const;
    std::int64_t texts = 0, prompt = 0, ids = 0;
};

}  // namespace madtp
