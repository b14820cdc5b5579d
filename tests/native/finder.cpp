// What a plugin library sees of a TensorRT that gives it a logger: a finder and a logger, and a version that says how
// their virtual functions are laid out. Compiled for each generation:
//   MADTP_VERSIONED   the two derive from IVersionedInterface: TensorRT 11, TensorRT for RTX 1.5
//   MADTP_UNKNOWN     without getInferLibVersion
#include <cstdint>
#include <cstdlib>
#include <string>

namespace {

#ifdef MADTP_VERSIONED
struct Info {
    char const* kind;
    int32_t major, minor;
};
struct Interface {
    explicit Interface(char const* kind) : info{kind, 1, 0} {}
    virtual int32_t language() const noexcept { return 0; }
    virtual Info interface_info() const noexcept { return info; }
    virtual ~Interface() { std::abort(); }
    Info info;
};
#else
struct Interface {
    explicit Interface(char const*) {}
};
#endif

struct Logger final : Interface {
    Logger() : Interface("ILogger") {}
    virtual void log(int32_t severity, char const* message) noexcept {
        said = std::to_string(severity) + " " + message;
    }
    virtual ~Logger() { std::abort(); }
    std::string said;
};

struct Finder final : Interface {
    Finder() : Interface("ILoggerFinder") {}
    virtual Logger* find_logger() { return found; }
    virtual ~Finder() { std::abort(); }
    Logger* found = nullptr;
};

// Never destroyed: nobody may.
Logger* const logger = new Logger;
Finder* const finder = new Finder;
int32_t version = 0;

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

#ifndef MADTP_UNKNOWN
EXPORT int32_t getInferLibVersion() noexcept { return version; }
#endif
// The finder of a TensorRT of this version; it finds a logger that has been told nothing so far, or none.
EXPORT void* finder_of(int32_t of, int32_t has_logger) noexcept {
    version = of;
    logger->said.clear();
    finder->found = has_logger != 0 ? logger : nullptr;
    return finder;
}
#ifdef MADTP_VERSIONED
// What finder and logger say that they are from now on, and of which major version.
EXPORT void finder_calls_itself(char const* kind, int32_t major) noexcept { finder->info = {kind, major, 0}; }
EXPORT void finder_calls_its_logger(char const* kind, int32_t major) noexcept { logger->info = {kind, major, 0}; }
#endif
// "severity message" of the last message; empty where there was none.
EXPORT char const* finder_said() noexcept { return logger->said.c_str(); }
}
