// madtp/engine.h over madtp/engine.hpp: nothing is thrown across.
#include <madtp/engine.h>

#include <algorithm>
#include <cstring>
#include <madtp/engine.hpp>
#include <new>

struct MadtpError {
    MadtpCode code;
    std::string summary, why, fix;
};

struct MadtpEngine {
    madtp::Engine engine;
    std::string execution;
};

struct MadtpSession {
    madtp::Session session;
};

struct MadtpOutputs {
    madtp::Outputs outputs;
};

namespace {

// Where there is no memory for an error: it is never freed.
MadtpError no_memory{MADTP_ERROR_MEMORY, "memory ran out", "", ""};

MadtpError* make_error(
    MadtpCode code, std::string const& summary, std::string const& why, std::string const& fix) noexcept {
    try {
        return new MadtpError{code, summary, why, fix};
    } catch (...) { return &no_memory; }
}

template <typename Function>
MadtpError* guarded(Function&& function) noexcept {
    try {
        function();
        return nullptr;
    } catch (madtp::Error const& error) {
        return make_error(static_cast<MadtpCode>(error.code()), error.summary(), error.why(), error.fix());
    } catch (std::bad_alloc const&) { return &no_memory; } catch (std::exception const& error) {
        return make_error(MADTP_ERROR_INTERNAL, "the engine failed where it should not", error.what(), "Report this.");
    } catch (...) {
        return make_error(MADTP_ERROR_INTERNAL, "the engine failed where it should not", "", "Report this.");
    }
}

void need(bool given, char const* what) {
    if (!given) {
        throw madtp::Error(madtp::Code::input, std::string(what) + " is NULL", "It is needed.", "Give one.");
    }
}

std::string text_or_empty(char const* text) { return text == nullptr ? "" : text; }

// A forgotten `size` would make defaults of all fields.
void need_size(size_t size, size_t least) {
    if (size < least) {
        throw madtp::Error(madtp::Code::input, "the size of the options is " + std::to_string(size),
            "It says which fields they have.", "Set size to sizeof of the structure.");
    }
}

void need_device(MadtpDevice const& device, char const* name) {
    int number = 0;  // as a caller in C wrote it, who is free to write what the enumeration has not
    static_assert(sizeof number == sizeof device);
    std::memcpy(&number, &device, sizeof number);
    if (number != MADTP_DEVICE_HOST && number != MADTP_DEVICE_CUDA) {
        throw madtp::Error(madtp::Code::input, std::string(name) + " is " + std::to_string(number) + ", no device",
            {}, "Use MADTP_DEVICE_HOST or MADTP_DEVICE_CUDA.");
    }
}

madtp::EngineOptions options_of(MadtpEngineOptions const* given) {
    madtp::EngineOptions options;
    if (given == nullptr) { return options; }
    MadtpEngineOptions known{};  // of a caller with an older header some fields are missing
    need_size(given->size, sizeof given->size + sizeof given->device);
    std::memcpy(&known, given, std::min(given->size, sizeof known));
    need_device(known.device, "device");
    if (known.threads < 0) { throw madtp::Error(madtp::Code::input, "the number of threads is negative"); }
    options.device = static_cast<madtp::Device>(known.device);
    options.device_id = known.device_id;
    options.threads = known.threads;
    options.cuda_graphs = known.no_cuda_graphs == 0;
    options.runtime_library = text_or_empty(known.runtime_library);
    options.op_library = text_or_empty(known.op_library);
    options.kernel_cache = text_or_empty(known.kernel_cache);
    options.stream = known.stream;
    return options;
}

madtp::RunOptions options_of(MadtpRunOptions const* given) {
    madtp::RunOptions options;
    if (given == nullptr) { return options; }
    MadtpRunOptions known{};
    need_size(given->size, sizeof given->size + sizeof given->has_temperature);
    std::memcpy(&known, given, std::min(given->size, sizeof known));
    need_device(known.outputs, "outputs");
    if (known.has_temperature != 0) { options.temperature = known.temperature; }
    options.batch = known.batch;
    options.outputs = static_cast<madtp::Device>(known.outputs);
    options.stream = known.stream;
    return options;
}

madtp::Inputs inputs_of(MadtpInput const* given, size_t count) {
    need(given != nullptr || count == 0, "the list of inputs");
    madtp::Inputs inputs;
    for (size_t i = 0; i < count; ++i) {
        MadtpInput const& input = given[i];
        need(input.name != nullptr, "the name of an input");
        need(input.shape != nullptr || input.dimensions == 0, "the shape of an input");
        if (input.dimensions > 16) {
            throw madtp::Error(
                madtp::Code::input, std::string("input '") + input.name + "' has more than 16 dimensions");
        }
        madtp::Shape shape(input.shape, input.shape + input.dimensions);
        madtp::TensorView const view(input.data, static_cast<madtp::DataType>(input.type), std::move(shape),
            static_cast<madtp::Device>(input.device));
        if (!inputs.emplace(input.name, view).second) {
            throw madtp::Error(madtp::Code::input, std::string("input '") + input.name + "' is given twice");
        }
    }
    return inputs;
}

void fill(std::pair<std::string const, madtp::Tensor> const& entry, MadtpOutput* output) {
    auto const& [name, tensor] = entry;
    *output = {name.c_str(), tensor.data(), static_cast<MadtpType>(tensor.type()),
        static_cast<MadtpDevice>(tensor.device()), tensor.shape().data(), tensor.shape().size()};
}

}  // namespace

extern "C" {

MadtpCode madtp_error_code(MadtpError const* error) noexcept { return error == nullptr ? MADTP_OK : error->code; }
char const* madtp_error_summary(MadtpError const* error) noexcept {
    return error == nullptr ? "" : error->summary.c_str();
}
char const* madtp_error_why(MadtpError const* error) noexcept { return error == nullptr ? "" : error->why.c_str(); }
char const* madtp_error_fix(MadtpError const* error) noexcept { return error == nullptr ? "" : error->fix.c_str(); }
void madtp_error_free(MadtpError* error) noexcept {
    if (error != &no_memory) { delete error; }
}

MadtpError* madtp_engine_load(char const* path, MadtpEngineOptions const* options, MadtpEngine** engine) noexcept {
    if (engine != nullptr) { *engine = nullptr; }
    return guarded([&] {
        need(path != nullptr, "the path");
        need(engine != nullptr, "the place for the engine");
        madtp::Engine loaded = madtp::Engine::load(path, options_of(options));
        std::string execution = loaded.execution();
        *engine = new MadtpEngine{std::move(loaded), std::move(execution)};
    });
}

void madtp_engine_free(MadtpEngine* engine) noexcept { delete engine; }

char const* madtp_engine_task(MadtpEngine const* engine) noexcept { return engine->engine.manifest().task.c_str(); }
char const* madtp_engine_layout(MadtpEngine const* engine) noexcept { return engine->engine.manifest().layout.c_str(); }
char const* madtp_engine_execution(MadtpEngine const* engine) noexcept { return engine->execution.c_str(); }
float madtp_engine_temperature(MadtpEngine const* engine) noexcept { return engine->engine.manifest().temperature; }
int64_t madtp_engine_max_batch(MadtpEngine const* engine) noexcept { return engine->engine.batch().max; }
int64_t madtp_engine_usual_batch(MadtpEngine const* engine) noexcept { return engine->engine.usual_batch(); }
size_t madtp_engine_parts(MadtpEngine const* engine) noexcept { return engine->engine.manifest().parts.size(); }

char const* madtp_engine_part(MadtpEngine const* engine, size_t index) noexcept {
    auto const& parts = engine->engine.manifest().parts;
    return index < parts.size() ? parts[index].name.c_str() : nullptr;
}

MadtpError* madtp_session_open(MadtpEngine const* engine, MadtpSession** session) noexcept {
    if (session != nullptr) { *session = nullptr; }
    return guarded([&] {
        need(engine != nullptr, "the engine");
        need(session != nullptr, "the place for the session");
        *session = new MadtpSession{madtp::Session(engine->engine)};
    });
}

void madtp_session_free(MadtpSession* session) noexcept { delete session; }

MadtpStatistics madtp_session_statistics(MadtpSession const* session) noexcept {
    madtp::Statistics const found = session->session.statistics();
    return {found.calls, found.runs, found.overflows, found.graph_replays};
}

MadtpError* madtp_session_infer(MadtpSession* session, char const* part, MadtpInput const* inputs, size_t count,
    MadtpRunOptions const* options, MadtpOutputs** outputs) noexcept {
    if (outputs != nullptr) { *outputs = nullptr; }
    return guarded([&] {
        need(session != nullptr, "the session");
        need(part != nullptr, "the name of the part");
        need(outputs != nullptr, "the place for the outputs");
        madtp::Outputs found = session->session.infer(part, inputs_of(inputs, count), options_of(options));
        *outputs = new MadtpOutputs{std::move(found)};
    });
}

size_t madtp_outputs_count(MadtpOutputs const* outputs) noexcept {
    return outputs == nullptr ? 0 : outputs->outputs.all().size();
}

MadtpError* madtp_outputs_at(MadtpOutputs const* outputs, size_t index, MadtpOutput* output) noexcept {
    return guarded([&] {
        need(outputs != nullptr, "the outputs");
        need(output != nullptr, "the place for the output");
        auto const& all = outputs->outputs.all();
        if (index >= all.size()) {
            throw madtp::Error(madtp::Code::input, "there is no output " + std::to_string(index),
                "There are " + std::to_string(all.size()) + ".");
        }
        fill(*std::next(all.begin(), static_cast<std::ptrdiff_t>(index)), output);
    });
}

MadtpError* madtp_outputs_find(MadtpOutputs const* outputs, char const* name, MadtpOutput* output) noexcept {
    return guarded([&] {
        need(outputs != nullptr, "the outputs");
        need(name != nullptr, "the name of the output");
        need(output != nullptr, "the place for the output");
        outputs->outputs[name];  // throws where there is none
        fill(*outputs->outputs.all().find(name), output);
    });
}

void madtp_outputs_free(MadtpOutputs* outputs) noexcept { delete outputs; }
}
