#include "ort_library.h"

#include <cstdio>

#include "text.h"

namespace madtp::detail {
namespace {

constexpr uint32_t kApiVersion = 17;  // the oldest that has all that is called
constexpr char const* kFix =
    "Install ONNX Runtime 1.17 or later, or name its library: EngineOptions::runtime_library, "
    "or MADTP_ONNXRUNTIME in the environment.";

// The first line of a message of ONNX Runtime.
std::string first_line(std::string const& message) { return message.substr(0, message.find('\n')); }

bool is_memory(std::string const& message) {
    return message.find("Failed to allocate memory") != std::string::npos ||
           message.find("bad_alloc") != std::string::npos || message.find("out of memory") != std::string::npos ||
           message.find("Available memory of") != std::string::npos;
}

}  // namespace

OrtLibrary::OrtLibrary(std::string const& option)
    : library_(
          names_of(option, "MADTP_ONNXRUNTIME", {"libonnxruntime.so.1", "libonnxruntime.so"}), "ONNX Runtime", kFix) {
    auto const base = reinterpret_cast<OrtApiBase const*(ORT_API_CALL*)() noexcept>(library_.find("OrtGetApiBase"));
    if (base == nullptr) {
        throw Error(Code::library, in_quotes(path()) + " is not ONNX Runtime", "It has no OrtGetApiBase.", kFix);
    }
    version_ = base()->GetVersionString();
    api_ = base()->GetApi(kApiVersion);
    if (api_ == nullptr) {
        throw Error(Code::library, "ONNX Runtime " + version_ + " in " + in_quotes(path()) + " is too old",
            "Its API of version " + std::to_string(kApiVersion) + " is called.", kFix);
    }
}

std::vector<std::string> OrtLibrary::providers() const {
    char** names = nullptr;
    int count = 0;
    check(api_->GetAvailableProviders(&names, &count));
    std::vector<std::string> found(names, names + count);
    check(api_->ReleaseAvailableProviders(names, count));
    return found;
}

void OrtLibrary::check(OrtStatus* status, std::string const& summary, std::string const& fix, Code code) const {
    if (status == nullptr) { return; }
    OrtOwned<OrtStatus> const owned = own(status, api_->ReleaseStatus);
    std::string const message = first_line(api_->GetErrorMessage(status));
    if (is_memory(message)) {
        throw Error(Code::memory, summary, "Memory is short: " + message, "Ask with smaller batches, or free memory.");
    }
    throw Error(code, summary, message, fix);
}

bool at_least(std::string const& version, std::string const& oldest) {
    int major = 0, minor = 0, wanted_major = 0, wanted_minor = 0;
    if (std::sscanf(version.c_str(), "%d.%d", &major, &minor) != 2) { return true; }
    if (std::sscanf(oldest.c_str(), "%d.%d", &wanted_major, &wanted_minor) != 2) { return true; }
    return major != wanted_major ? major > wanted_major : minor >= wanted_minor;
}

}  // namespace madtp::detail
