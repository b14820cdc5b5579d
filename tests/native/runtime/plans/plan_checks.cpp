// Checks of plans in the engine, with the TensorRT that the environment names.
//
//     plan_checks load ARTIFACT [KERNELS [GPU]]   asks it thrice, or says what is wrong; KERNELS keeps what is compiled
//     plan_checks lengths ARTIFACT                outputs whose size depends on data
//     plan_checks rooms ARTIFACT                  buckets, CUDA graphs, memory and streams of the caller
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <madtp/engine.hpp>
#include <string>
#include <thread>
#include <vector>

namespace {

void check(bool holds, char const* what) {
    if (!holds) { throw std::runtime_error(std::string("not so: ") + what); }
}

madtp::Error error_of(std::function<void()> const& call) {
    try {
        call();
    } catch (madtp::Error const& error) { return error; }
    throw std::runtime_error("not so: it is refused");
}

bool has(madtp::Tensor const& tensor, std::vector<float> const& values) {
    auto const* const found = static_cast<float const*>(tensor.data());
    return tensor.size() == values.size() && std::equal(values.begin(), values.end(), found);
}

std::vector<float> plus(std::vector<float> values, float room) {
    for (float& value : values) { value += room; }
    return values;
}

struct Asked {
    std::vector<float> values;

    madtp::Inputs inputs(madtp::Device device = madtp::Device::host) const {
        return {{"x", {values.data(), {static_cast<int64_t>(values.size()) / 3, 3}, device}}};
    }
};

void check_lengths(madtp::Engine const& engine) {
    madtp::Session session(engine);
    madtp::RunOptions once;
    once.temperature = 1.0f;
    once.batch = 2;
    Asked const asked{{1, 2, 3, 4, 5, 2}};
    for (int i = 0; i < 3; ++i) {
        madtp::Outputs const found = session.infer("model", asked.inputs(), once);
        check(has(found["logits"], {2, 4, 6, 8, 10, 4}), "logits");
        check(found["states"].shape() == madtp::Shape({2, 3, 1}), "as long as the data says");
        check(has(found["states"], {1, 1, 1, 4, 4, 4}) && has(found["cache"], {1, 1, 1, 4, 4, 4}), "what they hold");
        check(found.token_counts().at("vision").as<int32_t>()[3] == 5, "token counts");
    }
    Asked const longer{{7, 7, 1000, 8, 8, 1}};
    check(session.infer("model", longer.inputs(), once)["cache"].shape() == madtp::Shape({1, 2, 1000}), "longer ones");
    check(session.statistics().graph_replays == 0, "sizes that depend on data are not captured");
    Asked const huge{{7, 7, 4e8f, 8, 8, 1}};
    check(error_of([&] { session.infer("model", huge.inputs(), once); }).code() == madtp::Code::memory, "no memory");
    Asked const none{{7, 7, 0, 8, 8, 0}};
    check(
        session.infer("model", none.inputs(), once)["states"].size() == 0, "no tokens, and the next request is right");
}

void check_graphs(madtp::Engine const& engine, int64_t replays) {
    madtp::Session session(engine);
    for (int i = 0; i < 5; ++i) {
        Asked const asked{{static_cast<float>(i), 8, 1}};
        check(
            has(session.infer("model", asked.inputs())["logits"], plus(asked.values, 2)), "the first bucket's answer");
    }
    check(session.statistics().graph_replays == replays, "all calls but the first are replayed");
    Asked const two{{1, 2, 3, 4, 5, 6}};
    check(has(session.infer("model", two.inputs())["logits"], plus(two.values, 1000)), "no bucket has room");
    check(session.statistics().overflows == 2, "what did not fit is counted");
}

// A graph holds for the shapes of its calls: others are enqueued anew, and so are those that come back.
void check_other_shapes(madtp::Engine const& engine, int64_t replays) {
    madtp::Session session(engine);
    madtp::RunOptions together;
    together.batch = 2;
    for (int round = 0; round < 3; ++round) {
        for (int rows = 1; rows <= 2; ++rows) {
            for (int i = 0; i < 3; ++i) {
                Asked asked{std::vector<float>(static_cast<std::size_t>(3 * rows), 1.0f)};
                asked.values[0] = static_cast<float>(10 * rows + i);
                check(has(session.infer("model", asked.inputs(), together)["logits"], plus(asked.values, 2)),
                    "the answer of this call's rows");
            }
        }
    }
    check(session.statistics().graph_replays == replays, "all but the first call in a row are replayed");
}

void check_refusals(madtp::Engine const& engine) {
    madtp::Session session(engine);
    Asked const failing{{-1, 0, 0}}, exhausting{{-2, 0, 0}}, good{{1, 1, 1}};
    madtp::Error const failed = error_of([&] { session.infer("model", failing.inputs()); });
    check(failed.code() == madtp::Code::backend && failed.why() == "the kernel failed", "why it failed");
    check(error_of([&] { session.infer("model", exhausting.inputs()); }).code() == madtp::Code::memory, "memory");
    check(has(session.infer("model", good.inputs())["logits"], plus(good.values, 2)), "the next request is right");
}

void check_memory_of_the_caller(madtp::Engine const& engine) {
    madtp::Session session(engine);
    void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
    auto const push = reinterpret_cast<int (*)(void*)>(dlsym(driver, "cuCtxPushCurrent_v2"));
    auto const create = reinterpret_cast<int (*)(void**, unsigned)>(dlsym(driver, "cuStreamCreate"));
    auto const destroy = reinterpret_cast<int (*)(void*)>(dlsym(driver, "cuStreamDestroy_v2"));
    madtp::RunOptions options;
    options.outputs = madtp::Device::cuda;
    push(nullptr);
    create(&options.stream, 0);
    Asked asked{{1, 2, 1}};  // the stand-in's GPU reads what is on the host
    std::vector<madtp::Outputs> kept;
    for (int i = 0; i < 4; ++i) {
        asked.values[0] = static_cast<float>(i);
        kept.push_back(session.infer("model", asked.inputs(madtp::Device::cuda), options));
        check(kept.back()["logits"].device() == madtp::Device::cuda, "they stay there");
    }
    for (int i = 0; i < 4; ++i) { check(has(kept[i]["logits"], {2.0f + i, 4, 3}), "later calls leave results alone"); }
    check(error_of([&] { kept[0]["logits"].as<float>(); }).code() == madtp::Code::input, "they are not on the host");
    destroy(options.stream);
}

void check_threads(madtp::Engine const& engine) {
    std::vector<int> right(4);
    std::vector<std::thread> threads;
    for (std::size_t number = 0; number < right.size(); ++number) {
        threads.emplace_back([&, number] {
            madtp::Session session(engine);
            for (int i = 0; i < 50; ++i) {
                Asked const asked{{static_cast<float>(i), static_cast<float>(number), 1}};
                right[number] += has(session.infer("model", asked.inputs())["logits"], plus(asked.values, 2));
            }
        });
    }
    for (std::thread& thread : threads) { thread.join(); }
    for (int count : right) { check(count == 50, "sessions of several threads answer right"); }
}

}  // namespace

int main(int count, char** given) {
    std::string const what = count > 2 ? given[1] : "";
    try {
        madtp::EngineOptions options;
        if (count > 3) { options.kernel_cache = given[3]; }
        if (count > 4) { options.device_id = std::atoi(given[4]); }
        madtp::Engine const engine = madtp::Engine::load(count > 2 ? given[2] : "", options);
        if (what == "load") {
            Asked const asked{{1, 1, 1}};
            madtp::Session session(engine);
            for (int i = 0; i < 3; ++i) { session.infer("model", asked.inputs()); }
            madtp::Engine::load(given[2], options);  // what is once in a process is done once
            std::printf(
                "%s, %d replays\n", engine.execution().c_str(), static_cast<int>(session.statistics().graph_replays));
        } else if (what == "lengths") {
            check_lengths(engine);
        } else if (what == "rooms") {
            bool const captures = engine.execution().find("RTX") == std::string::npos;  // RTX does by itself
            check_graphs(engine, captures ? 4 : 0);
            check_other_shapes(engine, captures ? 12 : 0);
            options.cuda_graphs = false;
            if (captures) { check_graphs(madtp::Engine::load(given[2], options), 0); }
            check_refusals(engine);
            check_memory_of_the_caller(engine);
            check_threads(engine);
        } else {
            throw std::runtime_error("usage: plan_checks load|lengths|rooms ARTIFACT");
        }
    } catch (madtp::Error const& error) {
        std::fprintf(stderr, "%d %s\n", static_cast<int>(error.code()), error.what());
        return 2;
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
