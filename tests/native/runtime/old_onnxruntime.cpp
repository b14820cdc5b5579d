// An ONNX Runtime that is too old: it knows no API that is asked for.
#include <onnxruntime_c_api.h>

namespace {

OrtApi const* ORT_API_CALL api(uint32_t) noexcept { return nullptr; }
char const* ORT_API_CALL version() noexcept { return "1.16.3"; }
OrtApiBase const base = {api, version};

}  // namespace

extern "C" [[gnu::visibility("default")]] OrtApiBase const* ORT_API_CALL OrtGetApiBase() noexcept { return &base; }
