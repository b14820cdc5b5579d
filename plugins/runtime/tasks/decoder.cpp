#include "tasks/decoder.h"

#include <cstring>
#include <numeric>

#include "tasks/model_checks.h"

namespace madtp {
namespace {

Tensor host_tensor(DataType type, Shape shape) {
    std::size_t bytes = size_of(type);
    for (std::int64_t size : shape) { bytes *= static_cast<std::size_t>(size); }
    auto memory = std::make_shared<std::vector<char>>(bytes);
    return {std::shared_ptr<void>(memory, memory->data()), type, std::move(shape)};
}

}  // namespace

Source::Source(Outputs const& encoded) : cache(encoded["source_cache"]) {
    if (encoded.contains("source_lengths")) { lengths = encoded["source_lengths"]; }
}

Source Source::of(std::int64_t sample) const {
    Shape shape = cache.shape();
    std::int64_t const outer = shape[0] * shape[1], samples = shape[2], heads = shape[3], states = shape[4];
    std::int64_t const own = lengths ? own_rows(lengths->as<std::int64_t>()[sample], states) : states;
    std::size_t const row = static_cast<std::size_t>(shape[5]);
    shape[2] = 1;
    shape[4] = own;
    Tensor const part = host_tensor(DataType::float32, shape);
    auto* to = static_cast<float*>(part.memory().get());
    for (std::int64_t i = 0; i < outer; ++i) {
        for (std::int64_t head = 0; head < heads; ++head) {
            std::size_t const begin = static_cast<std::size_t>(((i * samples + sample) * heads + head) * states);
            std::size_t const count = static_cast<std::size_t>(own) * row;
            std::memcpy(to, cache.as<float>() + begin * row, count * sizeof(float));
            to += count;
        }
    }
    if (!lengths) { return {part, std::nullopt}; }
    Tensor const length = host_tensor(DataType::int64, {1});
    *static_cast<std::int64_t*>(length.memory().get()) = own;
    return {part, length};
}

Decoder::Decoder(Session& session, Source const& source, std::int64_t texts)
    : session_(session), source_(source), texts_(texts) {
    Shape const& cache = source.cache.shape();
    past_ = host_tensor(DataType::float32, {cache[0], cache[1], cache[2], texts, cache[3], 0, cache[5]});
}

Tensor Decoder::step(Ids const& ids, Ids rows) {
    std::int64_t const batch = source_.batch(), all = batch * texts_;
    if (rows.empty()) {
        rows.resize(static_cast<std::size_t>(all));
        std::iota(rows.begin(), rows.end(), 0);
    }
    Inputs inputs;
    inputs["input_ids"] = {ids.data(), {batch, texts_, static_cast<std::int64_t>(ids.size()) / all}};
    inputs["rows"] = {rows.data(), {batch, texts_}};
    inputs["past"] = past_.view();
    inputs["source_cache"] = source_.cache.view();
    if (source_.lengths) { inputs["source_lengths"] = source_.lengths->view(); }
    Outputs const outputs = session_.infer("decoder", inputs);
    past_ = outputs["present"];
    return outputs["logits"];
}

}  // namespace madtp
