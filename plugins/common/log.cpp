#include "common/log.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace madtp {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};
constexpr int kLongestMessage = 1024;

// The virtual functions of a TensorRT object: it may be of another generation than the headers that this was compiled with.
void* const* functions_of(void* object) noexcept { return *static_cast<void* const* const*>(object); }

// The version of the TensorRT that made the finder, as its getInferLibVersion says; zero where that cannot be told.
int32_t version_of(nvinfer1::ILoggerFinder* finder) noexcept {
    Dl_info library{};
    if (dladdr(functions_of(finder), &library) == 0) return 0;
    void* const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) return 0;
    auto const version = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
    int32_t const number = version == nullptr ? 0 : version();
    dlclose(handle);
    return number;
}

// The one virtual function that ILoggerFinder or ILogger adds; null where that cannot be told. In TensorRT 10 and TensorRT
// for RTX 1.4 it is the first. From TensorRT 11 and TensorRT for RTX 1.5 on both derive from IVersionedInterface, whose
// four go before; by it an object says what it is and of which major version, so that a later layout is not called.
void* function_of(void* object, char const* kind, int32_t version) noexcept {
    bool const rtx = version >= 10000 && version < 100000;
    if ((rtx && version < 10500) || (version >= 100000 && version < 110000)) return functions_of(object)[0];
    if (!rtx && version < 110000) return nullptr;
    auto const info = static_cast<nvinfer1::IVersionedInterface*>(object)->getInterfaceInfo();
    bool const known = info.kind != nullptr && std::strcmp(info.kind, kind) == 0 && info.major == 1;
    return known ? functions_of(object)[4] : nullptr;
}

// Whether TensorRT's logger took the message.
bool log_to(nvinfer1::ILoggerFinder* finder, char const* message) noexcept {
    int32_t const version = finder == nullptr ? 0 : version_of(finder);
    if (version == 0) return false;
    auto const find_logger = reinterpret_cast<void* (*)(void*)>(function_of(finder, "ILoggerFinder", version));
    void* const logger = find_logger == nullptr ? nullptr : find_logger(finder);
    if (logger == nullptr) return false;
    auto const log =
        reinterpret_cast<void (*)(void*, int32_t, char const*)>(function_of(logger, "ILogger", version));
    if (log == nullptr) return false;
    log(logger, static_cast<int32_t>(nvinfer1::ILogger::Severity::kERROR), message);
    return true;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void log_error(char const* format, ...) noexcept {
    char message[kLongestMessage];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (!log_to(logger_finder, message)) std::fprintf(stderr, "%s\n", message);
}

}  // namespace madtp
