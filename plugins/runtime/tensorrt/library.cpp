#include "library.h"

#include <cstring>

#include "text.h"

namespace madtp::detail {
namespace {

constexpr int32_t kHeaders = NV_TENSORRT_VERSION;
constexpr int32_t kFirstTensorRt =
    100000;  // 10.0.0; the numbers of TensorRT for RTX are below, of TensorRT 8 still more so
constexpr int32_t kFirstRtx = 10000;
constexpr char const* kPluginNamespace = "madtp";
constexpr char const* kPlugin = "TokenCompact";
constexpr char const* kPluginKind = "PLUGIN CREATOR_V3ONE";

std::string product(bool rtx) { return rtx ? "TensorRT for RTX" : "TensorRT"; }

std::string dotted(int32_t number) {
    return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
           std::to_string(number % 100);
}

// What is logged tells why calls fail. TensorRT keeps the first logger that it is given for as long as it is loaded.
class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, nvinfer1::AsciiChar const* text) noexcept override {
        if (severity > Severity::kERROR || text == nullptr || !message().empty()) { return; }
        try {
            message() = printable(text);
        } catch (...) {  // a message that memory is too short for
        }
    }

    static std::string& message() {
        static thread_local std::string first;
        return first;
    }

    static Logger& only() {
        static Logger& logger = *new Logger;  // outlives the library
        return logger;
    }
};

std::vector<std::string> usual_names() {
    if (kIsRtx) { return {"libtensorrt_rtx.so.1", "libtensorrt_rtx.so"}; }
    return {"libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR), "libnvinfer.so"};
}

std::string how_to_fit() {
    return "Use " + product(kIsRtx) + " " + std::to_string(NV_TENSORRT_MAJOR) + "." +
           std::to_string(NV_TENSORRT_MINOR) + (kIsRtx ? "" : " or a later " + std::to_string(NV_TENSORRT_MAJOR)) +
           ", or build the engine with the headers of the one that is to run: TENSORRT_ROOT.";
}

void check_artifact(Document const& document) {
    if ((document.manifest.backend == "tensorrt-rtx") == kIsRtx) { return; }
    throw Error(Code::library,
        in_quotes(document.manifest.artifact) + " is a plan of " + product(!kIsRtx) +
            ", and this build of the engine runs " + product(kIsRtx),
        "It was built with the headers of " + product(kIsRtx) + " " + dotted(kHeaders) + ".",
        "Build it with those of " + product(!kIsRtx) + " (TENSORRT_ROOT), or export with the other --backend.");
}

// Virtual functions keep their places within a major version of TensorRT, and new ones are added behind them. Nothing
// of that kind is promised of TensorRT for RTX, where 1.5 moved some.
bool fits(int32_t library) {
    bool const same_major = library / 10000 == kHeaders / 10000;
    int32_t const minor = library / 100 % 100, oldest = kHeaders / 100 % 100;
    return same_major && (kIsRtx ? minor == oldest : minor >= oldest);
}

bool knows_plugins(nvinfer1::IPluginRegistry const& registry) {
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* const creators = registry.getAllCreators(&count);
    for (int32_t i = 0; creators != nullptr && i < count; ++i) {
        if (std::strcmp(creators[i]->getInterfaceInfo().kind, kPluginKind) != 0) { continue; }
        auto const* const creator = static_cast<nvinfer1::IPluginCreatorV3One const*>(creators[i]);
        if (std::strcmp(creator->getPluginName(), kPlugin) == 0 &&
            std::strcmp(creator->getPluginNamespace(), kPluginNamespace) == 0) {
            return true;
        }
    }
    return false;
}

}  // namespace

void forget_messages() { Logger::message().clear(); }

std::string first_message() {
    std::string const message = Logger::message().substr(0, 500);
    return message.empty() ? "It does not say why." : message;
}

void fail_with_message(Code code, std::string const& summary, std::string const& fix) {
    std::string const why = first_message();
    bool const is_memory = why.find("out of memory") != std::string::npos ||
                           why.find("OutOfMemory") != std::string::npos ||
                           why.find("OUT_OF_MEMORY") != std::string::npos;
    if (is_memory) { throw Error(Code::memory, summary, why, "Ask with smaller batches, or free the GPU."); }
    throw Error(code, summary, why, fix);
}

TrtLibrary::TrtLibrary(Document const& document, std::string const& option)
    : library_((check_artifact(document), names_of(option, "MADTP_TENSORRT", usual_names())), product(kIsRtx),
          "Install it, or name its library: EngineOptions::runtime_library, or MADTP_TENSORRT in the environment.") {
    auto const version = reinterpret_cast<int32_t (*)()>(library_.find("getInferLibVersion"));
    if (version == nullptr) {
        throw Error(Code::library, in_quotes(library_.path()) + " is not " + product(kIsRtx),
            "It has no getInferLibVersion.", how_to_fit());
    }
    int32_t const number = version();
    bool const is_rtx = number >= kFirstRtx && number < kFirstTensorRt;
    name_ = product(is_rtx) + " " + (number < kFirstRtx ? "8 or older" : dotted(number));
    if (!fits(number)) {
        throw Error(Code::library,
            in_quotes(library_.path()) + " is " + name_ + ", which this build of the engine cannot call",
            "It was built with the headers of " + product(kIsRtx) + " " + dotted(kHeaders) +
                ", and others place their functions elsewhere.",
            how_to_fit());
    }
}

void TrtLibrary::register_plugins(std::string const& path) const {
    auto const registry =
        reinterpret_cast<nvinfer1::IPluginRegistry* (*)() noexcept>(library_.find("getPluginRegistry"));
    if (registry == nullptr || registry() == nullptr) { throw Error(Code::library, name_ + " has no plugin registry"); }
    if (knows_plugins(*registry())) { return; }
    forget_messages();
    if (registry()->loadLibrary(path.c_str()) == nullptr) {
        throw Error(Code::library, name_ + " cannot load the plugin library " + in_quotes(path), first_message(),
            "Use the library of the same export as the plan, or export again.");
    }
}

std::unique_ptr<nvinfer1::IRuntime> TrtLibrary::runtime() const {
    auto const create =
        reinterpret_cast<void* (*)(void*, int32_t) noexcept>(library_.find("createInferRuntime_INTERNAL"));
    if (create == nullptr) { throw Error(Code::library, name_ + " has no createInferRuntime_INTERNAL"); }
    forget_messages();
    nvinfer1::ILogger* const logger = &Logger::only();
    std::unique_ptr<nvinfer1::IRuntime> runtime(static_cast<nvinfer1::IRuntime*>(create(logger, kHeaders)));
    if (!runtime) {
        fail_with_message(Code::library, name_ + " cannot start", "Look at the GPU and its driver with nvidia-smi.");
    }
    return runtime;
}

}  // namespace madtp::detail
