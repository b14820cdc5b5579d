// Requests per second of one engine that several threads share, each with a session of its own.
//
//     throughput ARTIFACT [--threads 4] [--requests 100] [--batch 1] [--temperature T] [--device cuda]
//                [--onnxruntime LIBRARY]
//
// Inputs are made up. Every thread asks the same, and a thread whose answers are others than the first one's fails.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <madtp/engine.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "numbers.h"

namespace {

struct Arguments {
    std::string artifact;
    int threads = 4, requests = 100;
    int64_t batch = 1;
    madtp::EngineOptions engine;
    madtp::RunOptions run;
};

Arguments parse(int count, char** given) {
    Arguments arguments;
    for (int i = 1; i < count; ++i) {
        std::string const name = given[i];
        if (name.rfind("--", 0) != 0) {
            arguments.artifact = name;
            continue;
        }
        if (++i == count) { throw madtp::Error(madtp::Code::input, name + " has no value"); }
        if (name == "--threads") {
            arguments.threads = number_of<int>(name, given[i]);
        } else if (name == "--requests") {
            arguments.requests = number_of<int>(name, given[i]);
        } else if (name == "--batch") {
            arguments.batch = number_of<int64_t>(name, given[i]);
        } else if (name == "--temperature") {
            arguments.run.temperature = number_of<float>(name, given[i]);
        } else if (name == "--device" && std::strcmp(given[i], "cuda") == 0) {
            arguments.engine.device = madtp::Device::cuda;
        } else if (name == "--onnxruntime") {
            arguments.engine.runtime_library = given[i];
        } else {
            throw madtp::Error(madtp::Code::input, "there is no option " + name + " " + given[i]);
        }
    }
    if (arguments.artifact.empty() || arguments.threads < 1 || arguments.requests < 1 || arguments.batch < 1) {
        throw madtp::Error(madtp::Code::input, "usage: throughput ARTIFACT [--threads N] [--requests N] [--batch N]");
    }
    arguments.run.batch = arguments.batch;
    arguments.engine.threads = 1;  // parallel requests instead of parallel operators
    return arguments;
}

// Memory of the inputs of one part: random pixels, ids that every vocabulary has, and masks of ones.
struct MadeUp {
    std::vector<std::vector<float>> pixels;
    std::vector<std::vector<int64_t>> ids;
    madtp::Inputs inputs;

    MadeUp(madtp::PartInfo const& part, int64_t batch) {
        std::mt19937 random(7);
        for (madtp::TensorInfo const& info : part.inputs) {
            auto const profile = part.profile.find(info.name);
            if (profile == part.profile.end()) { continue; }  // the temperature
            madtp::Shape shape = profile->second.opt;
            shape[0] = batch;
            std::size_t size = 1;
            for (int64_t one : shape) { size *= static_cast<std::size_t>(one); }
            if (info.type == madtp::DataType::int64) {
                bool const is_mask = info.name == "attention_mask";
                std::vector<int64_t>& values = ids.emplace_back(size, 1);
                for (int64_t& value : values) { value = is_mask ? 1 : static_cast<int64_t>(random() % 4); }
                inputs.emplace(info.name, madtp::TensorView(values.data(), shape));
            } else {
                std::vector<float>& values = pixels.emplace_back(size);
                for (float& value : values) { value = static_cast<float>(random() % 512) / 128 - 2; }
                inputs.emplace(info.name, madtp::TensorView(values.data(), shape));
            }
        }
    }
};

bool are_same(madtp::Outputs const& left, madtp::Outputs const& right) {
    for (auto const& [name, tensor] : left.all()) {
        madtp::Tensor const& other = right[name];
        if (tensor.shape() != other.shape() || std::memcmp(tensor.data(), other.data(), tensor.bytes()) != 0) {
            return false;
        }
    }
    return true;
}

int measure(Arguments const& arguments) {
    madtp::Engine const engine = madtp::Engine::load(arguments.artifact, arguments.engine);
    madtp::PartInfo const& part = engine.manifest().parts.front();
    MadeUp const made(part, arguments.batch);
    madtp::Outputs const expected = madtp::Session(engine).infer(part.name, made.inputs, arguments.run);

    std::atomic<int> left{arguments.requests};
    std::vector<std::exception_ptr> failures(static_cast<std::size_t>(arguments.threads));
    std::vector<std::thread> threads;
    auto const begin = std::chrono::steady_clock::now();
    for (std::exception_ptr& failure : failures) {
        threads.emplace_back([&] {
            try {
                madtp::Session session(engine);
                while (left.fetch_sub(1) > 0) {
                    if (!are_same(expected, session.infer(part.name, made.inputs, arguments.run))) {
                        throw madtp::Error(madtp::Code::backend, "two threads got different answers to one request");
                    }
                }
            } catch (...) { failure = std::current_exception(); }
        });
    }
    for (std::thread& thread : threads) { thread.join(); }
    for (std::exception_ptr const& failure : failures) {
        if (failure) { std::rethrow_exception(failure); }
    }
    double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf(
        "%s, part %s, runs %s\n", engine.manifest().task.c_str(), part.name.c_str(), engine.execution().c_str());
    std::printf("%d threads, batches of %lld: %.1f requests per second\n", arguments.threads,
        static_cast<long long>(arguments.batch), arguments.requests * static_cast<double>(arguments.batch) / seconds);
    return 0;
}

}  // namespace

int main(int count, char** given) {
    try {
        return measure(parse(count, given));
    } catch (std::exception const& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}
