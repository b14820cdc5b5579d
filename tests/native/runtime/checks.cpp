// Checks of the engine's C++ interface and of what its library does not show, to be run under the sanitizers too.
//
//     checks engine MANIFEST ONNXRUNTIME    asks the made-up artifact of tests/helpers/made_up_engines.py
//     checks halves                         all float16 numbers, there and back
//     checks canonical < JSON               canonical JSON of what is read
//     checks sha256 < BYTES                 digest of what is read
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <iterator>
#include <madtp/engine.hpp>
#include <string>
#include <thread>
#include <vector>

#include "files.h"
#include "json.h"
#include "tensor.h"

namespace {

void check(bool holds, char const* what) {
    if (!holds) { throw std::runtime_error(std::string("not so: ") + what); }
}

madtp::Code code_of(std::function<void()> const& call) {
    try {
        call();
    } catch (madtp::Error const& error) {
        check(!error.summary().empty() && std::strstr(error.what(), error.summary().c_str()) != nullptr, "a sentence");
        return error.code();
    }
    return madtp::Code{};
}

bool is_twice(madtp::Tensor const& tensor, std::vector<float> const& values) {
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (tensor.as<float>()[i] != 2 * values[i]) { return false; }
    }
    return tensor.size() == values.size();
}

void check_engine(std::string const& path, std::string const& runtime) {
    madtp::EngineOptions options;
    options.runtime_library = runtime;
    options.threads = 1;
    std::vector<float> values = {1, 2, 2, 4, 5, 2};
    madtp::Inputs const inputs = {{"x", {values.data(), {2, 3}}}};
    madtp::RunOptions once;
    once.temperature = 1.0f;

    madtp::Outputs kept;
    madtp::Session moved = [&] {
        madtp::Engine const engine = madtp::Engine::load(path, options);
        check(engine.manifest().part("model").outputs.size() == 4, "the manifest lists four outputs");
        madtp::Session session(engine);
        kept = session.infer("model", inputs, once);
        return session;
    }();
    check(is_twice(kept["logits"], values), "outputs outlive the engine's handle");
    check(is_twice(moved.infer("model", inputs, once)["logits"], values), "a session that was moved answers");
    check(kept.token_counts().count("vision") == 1, "token counts are found by encoder");
    {
        madtp::Session const gone = std::move(moved);
        check(code_of([&] { moved.infer("model", inputs); }) == madtp::Code::input, "what was moved from is refused");
        check(code_of([&] { moved.engine(); }) == madtp::Code::input, "its engine is elsewhere too");
        check(moved.statistics().calls == 0, "what was moved from counts nothing");
        madtp::Engine lent = gone.engine();
        madtp::Engine const other = std::move(lent);
        check(code_of([&] { lent.manifest(); }) == madtp::Code::input, "an engine that was moved from is refused");
        check(code_of([&] { madtp::Session refused(lent); }) == madtp::Code::input, "and opens no session");
    }
    check(is_twice(kept["logits"], values), "outputs outlive engine and session");

    madtp::Engine const engine = madtp::Engine::load(path, options);
    madtp::Session session(engine);
    madtp::Outputs const first = session.infer("model", inputs, once);
    madtp::Outputs const again = session.infer("model", {{"x", first["logits"].view()}}, once);
    check(again["logits"].as<float>()[0] == 4, "outputs are inputs");
    check(code_of([&] { first["poetry"]; }) == madtp::Code::input, "an output that is not there");
    check(code_of([&] { first["logits"].as<int32_t>(); }) == madtp::Code::input, "another type");
    check(code_of([&] { session.infer("model", {}); }) == madtp::Code::input, "no inputs");
    madtp::TensorView view(values.data(), {2, 3});
    view.type = static_cast<madtp::DataType>(77);
    check(code_of([&] { session.infer("model", {{"x", view}}); }) == madtp::Code::input, "a type that is none");

    std::vector<std::thread> threads;
    std::vector<int> right(4);
    for (int& count : right) {
        threads.emplace_back([&] {
            madtp::Session own(engine);
            for (int i = 0; i < 50; ++i) { count += is_twice(own.infer("model", inputs, once)["logits"], values); }
        });
    }
    for (std::thread& thread : threads) { thread.join(); }
    for (int count : right) { check(count == 50, "sessions of several threads answer right"); }
}

void check_halves() {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        auto const half = static_cast<uint16_t>(bits);
        float const value = madtp::detail::half_to_float(half);
        if (std::isnan(value)) {
            check((half & 0x7c00) == 0x7c00 && (half & 0x3ff) != 0, "only NaN is NaN");
            continue;
        }
        check(madtp::detail::float_to_half(value) == half, "a half comes back");
        if ((half & 0x7fff) >= 0x7bff) { continue; }
        float const next = madtp::detail::half_to_float(static_cast<uint16_t>(half + 1));
        uint16_t const even = half % 2 == 0 ? half : static_cast<uint16_t>(half + 1);
        check(madtp::detail::float_to_half((value + next) / 2) == even, "ties go to the even one");
    }
    check(madtp::detail::float_to_half(65519.99f) == 0x7bff, "what rounds down stays finite");
    check(madtp::detail::float_to_half(65520.0f) == 0x7c00, "what rounds up does not");
}

std::string read_all() { return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()}; }

}  // namespace

int main(int count, char** given) {
    std::string const what = count > 1 ? given[1] : "";
    try {
        if (what == "engine" && count == 4) {
            check_engine(given[2], given[3]);
        } else if (what == "halves") {
            check_halves();
        } else if (what == "canonical") {
            std::cout << madtp::detail::Field::parse(read_all()).canonical();
        } else if (what == "sha256") {
            std::cout << madtp::detail::sha256_of(read_all());
        } else {
            throw std::runtime_error("usage: checks engine|halves|canonical|sha256");
        }
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
