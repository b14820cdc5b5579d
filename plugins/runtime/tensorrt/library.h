// TensorRT or TensorRT for RTX, whichever the headers are of, opened at run time.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>

#include "manifest.h"
#include "shared_library.h"

namespace madtp::detail {

#ifdef TRT_MAJOR_RTX
constexpr bool kIsRtx = true;
#else
constexpr bool kIsRtx = false;
#endif

class TrtLibrary {
public:
    // Throws Code::library: the artifact is of the other TensorRT, the library cannot be loaded, is none, or is of
    // another generation than the headers, so that calls would end up in other functions.
    TrtLibrary(Document const& document, std::string const& option);

    std::string const& name() const noexcept { return name_; }  // "TensorRT 10.14.1"

    // Makes a plugin library known, once in a process. Throws Code::library.
    void register_plugins(std::string const& path) const;

    // Throws Code::library: it cannot start here.
    std::unique_ptr<nvinfer1::IRuntime> runtime() const;

private:
    SharedLibrary library_;
    std::string name_;
};

// Forgets what TensorRT logged in this thread.
void forget_messages();
// The first error that it has logged in this thread since then; a sentence without one.
std::string first_message();

// What a call that failed comes to: Code::memory where the message says so.
[[noreturn]] void fail_with_message(Code code, std::string const& summary, std::string const& fix);

}  // namespace madtp::detail
