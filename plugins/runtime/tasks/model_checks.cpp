#include "tasks/model_checks.h"

#include <algorithm>
#include <cmath>

#include "text.h"

namespace madtp {
namespace {

constexpr std::int64_t kMostIds = 10'000'000;
constexpr std::int64_t kVaries = -1, kBatch = -2;

[[noreturn]] void refuse(std::string const& what, std::string const& why) {
    throw Error(Code::manifest, what, why, "It was changed after the export, or is damaged: export again.");
}

std::string in_words(std::vector<Dimension> const& shape) {
    std::string words;
    for (Dimension const& size : shape) {
        words += (words.empty() ? "" : ", ") + (size.size < 0 ? size.symbol : std::to_string(size.size));
    }
    return "[" + words + "]";
}

// The sizes of a part's output; `expected` has kBatch for one row of each request, kVaries where any will do.
void check_output(Manifest const& manifest, char const* part, char const* name, Shape const& expected) {
    for (TensorInfo const& info : manifest.part(part).outputs) {
        if (info.name != name) { continue; }
        bool fits = info.shape.size() == expected.size();
        for (std::size_t axis = 0; fits && axis < expected.size(); ++axis) {
            Dimension const& size = info.shape[axis];
            fits = expected[axis] == kVaries ||
                   (expected[axis] == kBatch ? size.symbol == "batch" : size.size == expected[axis]);
        }
        if (fits) { return; }
        refuse("the output " + detail::in_quotes(name) + " of part " + detail::in_quotes(part) + " is no such output",
            "The manifest says that its shape is " + in_words(info.shape) + ".");
    }
    refuse("part " + detail::in_quotes(part) + " has no output " + detail::in_quotes(name),
        "The task " + detail::in_quotes(manifest.task) + " reads it.");
}

void check_counts(PartInfo const& part) {
    std::string const suffix = "_token_counts";
    for (TensorInfo const& info : part.outputs) {
        bool const counts = info.name.size() > suffix.size() &&
                            info.name.compare(info.name.size() - suffix.size(), suffix.size(), suffix) == 0;
        if (counts && (info.shape.size() != 2 || info.shape.back().size < 0)) {
            refuse("the output " + detail::in_quotes(info.name) + " has no count for each layer",
                "The manifest says that its shape is " + in_words(info.shape) + ".");
        }
    }
}

std::int64_t width_of(Manifest const& manifest, char const* part, char const* name) {
    for (TensorInfo const& info : manifest.part(part).outputs) {
        if (info.name == name && !info.shape.empty()) { return info.shape.back().size; }
    }
    return 0;
}

void check_embeddings(Manifest const& manifest) {
    std::int64_t const width = std::max<std::int64_t>(width_of(manifest, "image", "image_embed"), 1);
    check_output(manifest, "image", "image_embed", {kBatch, width});
    check_output(manifest, "text", "text_embed", {kBatch, width});
}

}  // namespace

std::int64_t config_number(Manifest const& manifest, char const* name, std::int64_t least, std::int64_t most) {
    auto const found = manifest.config.find(name);
    if (found == manifest.config.end()) { refuse(std::string("the manifest's config has no ") + name, ""); }
    double const value = found->second;
    bool const fits = value >= static_cast<double>(least) && value <= static_cast<double>(most);  // NaN does not
    if (!fits || std::floor(value) != value) {
        refuse("the manifest's config has a " + std::string(name) + " of " + std::to_string(value),
            "It has to be a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ".");
    }
    return static_cast<std::int64_t>(value);
}

std::int64_t config_id(Manifest const& manifest, char const* name) {
    return config_number(manifest, name, 0, config_number(manifest, "vocab_size", 1, kMostIds) - 1);
}

void check_model(Manifest const& manifest) {
    bool const packed = manifest.layout == "packed";
    for (PartInfo const& part : manifest.parts) { check_counts(part); }
    if (manifest.task == "nlvr") {
        check_output(manifest, "model", "logits", {kBatch, 2});
    } else if (manifest.task == "vqa" || manifest.task == "caption") {
        for (char const* name : {"sep_token_id", "pad_token_id", "bos_token_id"}) { config_id(manifest, name); }
        std::int64_t const vocabulary = config_number(manifest, "vocab_size", 1, kMostIds);
        check_output(manifest, "decoder", "logits", {kBatch, kVaries, vocabulary});
        check_output(manifest, "decoder", "present", Shape(7, kVaries));
        check_output(manifest, "encoder", "source_cache", {kVaries, kVaries, kBatch, kVaries, kVaries, kVaries});
        if (packed) { check_output(manifest, "encoder", "source_lengths", {kBatch}); }
    } else if (manifest.task == "retrieval") {
        config_id(manifest, "enc_token_id");
        check_embeddings(manifest);
        check_output(manifest, "image", "image_tokens", {kBatch, kVaries, kVaries});
        if (packed) { check_output(manifest, "image", "image_lengths", {kBatch}); }
        check_output(manifest, "match", "itm_logits", {kBatch, 2});
    } else if (manifest.task == "clip") {
        check_embeddings(manifest);
    }
}

std::int64_t own_rows(std::int64_t length, std::int64_t most) {
    if (length < 0 || length > most) {
        throw Error(Code::backend, "the engine says that a sequence has " + std::to_string(length) + " rows",
            "It gave " + std::to_string(most) + ".", "The artifact is damaged: export again.");
    }
    return length;
}

}  // namespace madtp
