#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "batches.h"
#include "engine_state.h"
#include "guarded.h"
#include "part_checks.h"

namespace madtp {
namespace detail {

class SessionState {
public:
    explicit SessionState(Engine engine, std::shared_ptr<EngineState> state)
        : engine(std::move(engine)), state_(std::move(state)) {}

    Outputs infer(std::string_view name, Inputs const& inputs, RunOptions const& options);

    Engine const engine;
    Statistics statistics() const noexcept {
        return {calls_.load(), runs_.load(), overflows_.load(), graph_replays_.load()};
    }

private:
    // Of a part, made when they are first needed.
    struct Runners {
        OpenPart const* part = nullptr;
        std::vector<std::unique_ptr<Runner>> buckets;
    };

    Runners& runners(std::string_view name);
    Outputs::Map run_batch(
        Runners& runners, Inputs const& inputs, RunOptions const& options, int64_t begin, int64_t end);
    Outputs::Map run_buckets(
        Runners& runners, Inputs const& inputs, Placement const& placement, int64_t rows, float temperature);

    std::shared_ptr<EngineState> state_;
    std::map<std::string, Runners, std::less<>> runners_;
    std::atomic<bool> busy_{false};
    std::atomic<int64_t> calls_{0}, runs_{0}, overflows_{0}, graph_replays_{0};
};

namespace {

// Marks a session as busy while a call runs.
class Turn {
public:
    explicit Turn(std::atomic<bool>& busy) : busy_(busy) {
        if (busy.exchange(true)) {
            throw Error(Code::busy, "the session is answering another thread", "A session takes one call at a time.",
                "Open a session for each thread; they share the engine.");
        }
    }
    Turn(Turn const&) = delete;
    ~Turn() { busy_.store(false); }

private:
    std::atomic<bool>& busy_;
};

// Whether a result says that its tokens had no room; the output that says so, one int32 on the host, is taken out.
bool overflowed(Outputs::Map& outputs) {
    auto const found = outputs.find(kOverflow);
    if (found == outputs.end()) { return false; }
    bool const any = *found->second.as<int32_t>() != 0;
    outputs.erase(found);
    return any;
}

}  // namespace

SessionState::Runners& SessionState::runners(std::string_view name) {
    auto const found = runners_.find(name);
    if (found != runners_.end()) { return found->second; }
    OpenPart const& part = state_->part(name);
    Runners fresh;
    fresh.part = &part;
    fresh.buckets.resize(part.buckets.size());
    return runners_.emplace(std::string(name), std::move(fresh)).first->second;
}

Outputs::Map SessionState::run_buckets(
    Runners& runners, Inputs const& inputs, Placement const& placement, int64_t rows, float temperature) {
    PartInfo const& part = *runners.part->info;
    for (std::size_t number = 0; number < runners.buckets.size(); ++number) {
        Bucket const& bucket = runners.part->buckets[number];
        bool const is_last = number + 1 == runners.buckets.size();
        bool const takes = bucket.least <= rows && rows <= bucket.batch;
        // The dense model prunes nothing, so only the last has room for it.
        if (!is_last && (!takes || temperature == 0)) { continue; }
        std::unique_ptr<Runner>& runner = runners.buckets[number];
        if (!runner) { runner = bucket.program->runner(); }
        Outputs::Map outputs = runner->run(inputs, placement);
        ++runs_;
        graph_replays_ += runner->replayed() ? 1 : 0;
        check_outputs(part, outputs, rows);
        if (!overflowed(outputs)) { return outputs; }
        overflows_ += is_last ? 0 : 1;
    }
    throw Error(Code::backend, "an engine with room for everything says that there was not enough",
        "It is not what its manifest says.", "Export again.");
}

Outputs::Map SessionState::run_batch(
    Runners& runners, Inputs const& inputs, RunOptions const& options, int64_t begin, int64_t end) {
    PartInfo const& part = *runners.part->info;
    std::vector<Tensor> copies;
    Inputs given = inputs;
    int64_t rows = end - begin;
    if (can_be_cut(part)) {
        int64_t const least = part.profile.begin()->second.min[0];
        given = cut(inputs, begin, end, least, copies);
        rows = std::max(rows, least);
    }
    given = narrow(part, given, copies);
    float const temperature = options.temperature.value_or(state_->document.manifest.temperature);
    bool const prunes =
        std::any_of(part.inputs.begin(), part.inputs.end(), [](auto const& info) { return info.name == kTemperature; });
    if (prunes) { given.emplace(kTemperature, TensorView(&temperature, Shape{})); }
    Outputs::Map outputs = run_buckets(runners, given, {options.outputs, options.stream}, rows, temperature);
    outputs = without_copies(part, widen(std::move(outputs)), rows, end - begin);
    check_finite(part, outputs, temperature);
    return outputs;
}

Outputs SessionState::infer(std::string_view name, Inputs const& inputs, RunOptions const& options) {
    Turn const turn(busy_);
    if (::getpid() != state_->process) {
        throw Error(Code::input, "the engine was opened in another process",
            "What runs it stayed there: its threads, its place on a GPU. Waiting for them would never end.",
            "Load an engine in each process.");
    }
    Runners& runners = this->runners(name);
    PartInfo const& part = *runners.part->info;
    if (options.temperature) { check_temperature(*options.temperature); }
    bool const splits = can_be_cut(part);
    int64_t most = state_->batch.max;
    for (auto const& [input, profile] : part.profile) {
        for (TensorInfo const& info : part.inputs) {
            for (std::size_t axis = 0; info.name == input && axis < info.shape.size(); ++axis) {
                if (batches_in(info.shape[axis]) == 1) { most = std::min(most, profile.max[axis]); }
            }
        }
    }
    if (options.batch < 0 || options.batch > most) {
        throw Error(Code::input, "the batch is " + std::to_string(options.batch),
            "The artifact takes up to " + std::to_string(most) + " requests at a time.",
            "Choose another number, or export again with another --batch.");
    }
    int64_t const rows = check_inputs(part, inputs, splits ? INT32_MAX : most);
    ++calls_;
    int64_t const size = !splits ? rows : std::min(options.batch > 0 ? options.batch : state_->usual_batch, most);
    std::vector<Outputs::Map> batches;
    std::vector<int64_t> sizes;
    for (int64_t begin = 0; begin < rows; begin += size) {
        int64_t const end = std::min(begin + size, rows);
        batches.push_back(run_batch(runners, inputs, options, begin, end));
        sizes.push_back(end - begin);
    }
    return Outputs(join(part, batches, sizes, state_->document.manifest.layout == "packed"));
}

}  // namespace detail

Session::Session(Engine const& engine)
    : state_(detail::guarded([&] { return std::make_unique<detail::SessionState>(engine, engine.opened()); })) {}

Session::Session(Session&& other) noexcept = default;
Session& Session::operator=(Session&& other) noexcept = default;
Session::~Session() = default;

namespace {

detail::SessionState& opened(std::unique_ptr<detail::SessionState> const& state) {
    if (!state) { throw Error(Code::input, "the session was moved elsewhere", {}, "Ask the one that it became."); }
    return *state;
}

}  // namespace

Outputs Session::infer(std::string_view part, Inputs const& inputs, RunOptions const& options) {
    return detail::guarded([&] { return opened(state_).infer(part, inputs, options); });
}

Engine const& Session::engine() const { return opened(state_).engine; }

Statistics Session::statistics() const noexcept { return state_ ? state_->statistics() : Statistics{}; }

}  // namespace madtp
