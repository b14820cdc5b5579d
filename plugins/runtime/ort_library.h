// ONNX Runtime, opened at run time, through its C API.
#pragma once

#include <onnxruntime_c_api.h>

#include <madtp/engine.hpp>
#include <memory>
#include <string>
#include <vector>

#include "shared_library.h"

namespace madtp::detail {

class OrtLibrary {
public:
    // Throws Code::library: it cannot be loaded, is none, or is too old.
    explicit OrtLibrary(std::string const& option);

    OrtApi const& api() const noexcept { return *api_; }
    std::string const& version() const noexcept { return version_; }
    std::string const& path() const noexcept { return library_.path(); }
    std::vector<std::string> providers() const;

    // Throws what a status says: memory, or `code` with `summary` and `fix`.
    void check(
        OrtStatus* status, std::string const& summary, std::string const& fix = {}, Code code = Code::backend) const;
    void check(OrtStatus* status) const { check(status, "ONNX Runtime failed"); }

    // An object of the API with the function that releases it.
    template <typename T>
    std::unique_ptr<T, void(ORT_API_CALL*)(T*)> own(T* object, void(ORT_API_CALL* release)(T*)) const {
        return {object, release};
    }

private:
    SharedLibrary library_;
    OrtApi const* api_ = nullptr;
    std::string version_;
};

template <typename T>
using OrtOwned = std::unique_ptr<T, void(ORT_API_CALL*)(T*)>;

// Whether `version` ("1.21.0") is at least `oldest` ("1.17"); also where one of them is none.
bool at_least(std::string const& version, std::string const& oldest);

}  // namespace madtp::detail
