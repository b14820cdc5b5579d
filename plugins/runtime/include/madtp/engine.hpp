// An exported artifact in a C++ program: open it once (Engine), ask it from any number of threads (a Session each).
//
//     madtp::Engine engine = madtp::Engine::load("out.json");
//     madtp::Session session(engine);
//     madtp::Outputs outputs = session.infer("model", {{"image0", left}, {"image1", right}, ...});
//     float const* logits = outputs["logits"].as<float>();
//
// Runs .onnx artifacts in ONNX Runtime and .plan artifacts in TensorRT or TensorRT for RTX, opened at run time.
// Every failure is a madtp::Error; a Session that threw one answers the next request as usual.
#ifndef MADTP_ENGINE_HPP
#define MADTP_ENGINE_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#define MADTP_RUNTIME_API __attribute__((visibility("default")))

namespace madtp {

// What kind of thing went wrong; the values are those of MadtpCode in engine.h.
enum class Code : int32_t {
    manifest = 1,  // the manifest is missing, malformed, changed, or of another version
    file = 2,      // a file of the artifact is missing, no regular file, or another than the manifest describes
    library = 3,   // a library (runtime, ops, plugins) cannot be loaded, is of another version, or not of this project
    backend = 4,   // the runtime refuses the artifact, or failed while it ran
    input = 5,     // an option or input that the artifact cannot take
    memory = 6,    // memory ran out, on the host or the device
    busy = 7,      // the session is answering another thread
    internal = 8   // a defect of this library
};

// Says what is wrong, why, and what to do; what() is all three, a line each.
class MADTP_RUNTIME_API Error : public std::runtime_error {
public:
    Error(Code code, std::string summary, std::string why = {}, std::string fix = {});
    Error(Error const&) = default;
    ~Error() override;

    Code code() const noexcept { return code_; }
    std::string const& summary() const noexcept { return summary_; }  // what is wrong, naming the file or input
    std::string const& why() const noexcept { return why_; }          // may be empty
    std::string const& fix() const noexcept { return fix_; }          // what to do; may be empty

private:
    Code code_;
    std::string summary_, why_, fix_;
};

enum class DataType : int32_t { float32 = 0, float16 = 1, int32 = 2, int64 = 3 };
enum class Device : int32_t { host = 0, cuda = 1 };

MADTP_RUNTIME_API std::size_t size_of(DataType type) noexcept;      // bytes of one element
MADTP_RUNTIME_API char const* name_of(DataType type) noexcept;      // "float32", ...

using Shape = std::vector<int64_t>;

template <typename T>
struct TypeOf;  // the DataType of a C++ type
template <>
struct TypeOf<float> { static constexpr DataType value = DataType::float32; };
template <>
struct TypeOf<int32_t> { static constexpr DataType value = DataType::int32; };
template <>
struct TypeOf<int64_t> { static constexpr DataType value = DataType::int64; };

// Memory of the caller, row-major and contiguous; it has to live, unchanged, until the call returns.
struct TensorView {
    void const* data = nullptr;
    DataType type = DataType::float32;
    Shape shape;
    Device device = Device::host;

    TensorView() = default;
    TensorView(void const* data, DataType type, Shape shape, Device device = Device::host)
        : data(data), type(type), shape(std::move(shape)), device(device) {}
    template <typename T>
    TensorView(T const* data, Shape shape, Device device = Device::host)
        : TensorView(data, TypeOf<T>::value, std::move(shape), device) {}
};

using Inputs = std::map<std::string, TensorView, std::less<>>;

// A result. Copies share its memory, which lives as long as the last of them.
class MADTP_RUNTIME_API Tensor {
public:
    Tensor() = default;
    Tensor(std::shared_ptr<void> memory, DataType type, Shape shape, Device device = Device::host)
        : memory_(std::move(memory)), type_(type), shape_(std::move(shape)), device_(device) {}

    DataType type() const noexcept { return type_; }
    Shape const& shape() const noexcept { return shape_; }
    Device device() const noexcept { return device_; }
    std::size_t size() const noexcept;   // elements
    std::size_t bytes() const noexcept;
    void const* data() const noexcept { return memory_.get(); }  // of `device`
    std::shared_ptr<void> const& memory() const noexcept { return memory_; }
    TensorView view() const { return {memory_.get(), type_, shape_, device_}; }  // as an input of the next part

    // Its elements, on the host. Throws Code::input where it is of another type, or on a GPU.
    template <typename T>
    T const* as() const {
        check(TypeOf<T>::value);
        return static_cast<T const*>(memory_.get());
    }

private:
    void check(DataType type) const;

    std::shared_ptr<void> memory_;
    DataType type_ = DataType::float32;
    Shape shape_;
    Device device_ = Device::host;
};

// The outputs of one call, by the names that the manifest lists.
class MADTP_RUNTIME_API Outputs {
public:
    using Map = std::map<std::string, Tensor, std::less<>>;

    Outputs() = default;
    explicit Outputs(Map tensors) : tensors_(std::move(tensors)) {}

    Tensor const& operator[](std::string_view name) const;  // throws Code::input: there is none of that name
    bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }
    Map const& all() const noexcept { return tensors_; }

    // Tokens after each layer, class token included, by encoder ("vision", "text"): int32 [sequences, layers] on the
    // host. NLVR's vision has the left images of all requests first, then the right ones.
    Map token_counts() const;

private:
    Map tensors_;
};

// A dimension is a number, or a symbol that inputs give a size ("batch", "text").
struct Dimension {
    int64_t size = -1;   // -1: the symbol's
    std::string symbol;  // empty: a number
};

struct TensorInfo {
    std::string name;
    DataType type = DataType::float32;
    std::vector<Dimension> shape;
};

struct Profile {  // shapes of one input that the part was built for
    Shape min, opt, max;
};

struct Range {
    int64_t min = 1, opt = 1, max = 1;
};

struct PartInfo {
    std::string name, file;
    std::vector<TensorInfo> inputs, outputs;  // "temperature" is one of the inputs where the part prunes
    std::map<std::string, Profile, std::less<>> profile;
};

// What the manifest says of images and texts (docs/manifest.md).
struct ImageSettings {
    int64_t size = 0;
    std::string mode, resize;
    double scale = 0;
    double mean[3] = {}, std[3] = {};
};

struct TextSettings {
    std::string tokenizer;  // "bert-wordpiece" or "clip-bpe"
    bool lowercase = true, padded = false;
    std::string dropped, dropped_as;
    std::optional<int64_t> max_words, last_id;
    int64_t first_id = 0, pad_id = 0, max_tokens = 0;
    std::optional<std::string> prompt;
    std::string vocabulary_path;    // empty: no file beside the manifest
    std::string vocabulary_sha256;  // empty: no vocabulary is known
};

struct Manifest {
    std::string path, task, artifact, layout, batching, precision;
    std::string backend, backend_version;
    std::map<std::string, double> config;  // the numbers among the sizes of the model
    float temperature = 0;                 // default of a request; 0 is dense
    std::vector<PartInfo> parts;
    ImageSettings image;
    TextSettings text;
    bool batch_invariant = false;  // no answer depends on what else is in its batch
    std::string sha256;            // its own hash; empty in schema 3

    MADTP_RUNTIME_API PartInfo const& part(std::string_view name) const;  // throws Code::input: there is none
};

struct EngineOptions {
    Device device = Device::host;  // of ONNX Runtime: its CPU or its CUDA provider; plans always run on a GPU
    int device_id = 0;             // of the GPU
    int threads = 0;               // of ONNX Runtime, within a request; 0 leaves the number to it
    // The runtime: libonnxruntime.so, libnvinfer.so or libtensorrt_rtx.so. Empty: MADTP_ONNXRUNTIME or MADTP_TENSORRT
    // in the environment, else the library's usual names.
    std::string runtime_library;
    // libmadtp_onnxruntime.so, whose kernels take the place of function bodies. Empty: the one beside this library,
    // where there is one that can be used. "none": function bodies.
    std::string op_library;
    // A cudaStream_t on which ONNX Runtime's CUDA provider runs everything; null: one of its own.
    void* stream = nullptr;
    bool cuda_graphs = true;       // replay packed plans as CUDA graphs
    std::string kernel_cache;      // TensorRT for RTX: file that keeps compiled kernels between processes; empty: none
};

struct RunOptions {
    std::optional<float> temperature;  // absent: the manifest's
    // Rows run together. 0: OPT of the artifact's batches where answers do not depend on them, else 1. More rows than
    // that are split; fewer than the artifact's least are filled up with copies, which are cut off again.
    int64_t batch = 0;
    Device outputs = Device::host;     // cuda: leave them on the GPU
    // The caller's cudaStream_t: what was queued on it before is done before inputs are read, and outputs may be read
    // by what is queued on it afterwards. Null: inputs are ready, and outputs are complete on return.
    void* stream = nullptr;
};

struct Statistics {  // of a session
    int64_t calls = 0;         // infer
    int64_t runs = 0;          // of the runtime: batches
    int64_t overflows = 0;     // batches that were run again on the next bucket, because their tokens did not fit
    int64_t graph_replays = 0; // runs that replayed a CUDA graph
};

namespace detail {
class EngineState;
class SessionState;
}  // namespace detail

// An open artifact. Copies are the same engine; threads may share it. It lives until its last copy and session is gone.
class MADTP_RUNTIME_API Engine {
public:
    // `path`: the manifest out.json, or the artifact beside it (out.onnx, out.plan). Checks all files against the
    // manifest, and libraries before they are loaded. Throws Error.
    static Engine load(std::string const& path, EngineOptions const& options = {});

    Manifest const& manifest() const;
    Range batch() const;            // requests that one run takes
    int64_t usual_batch() const;    // what RunOptions::batch = 0 means
    std::string execution() const;  // what runs it, in words

private:
    friend class Session;
    explicit Engine(std::shared_ptr<detail::EngineState> state) : state_(std::move(state)) {}
    std::shared_ptr<detail::EngineState> const& opened() const;

    std::shared_ptr<detail::EngineState> state_;
};

// Asks an engine, from one thread at a time: a call while another one runs is refused (Code::busy).
class MADTP_RUNTIME_API Session {
public:
    explicit Session(Engine const& engine);
    Session(Session&& other) noexcept;
    Session& operator=(Session&& other) noexcept;
    ~Session();

    // Runs one part (Manifest::parts names them). `inputs` are all but the temperature. Float16 inputs may be given as
    // float32 on the host, and float16 outputs come as float32 on the host. Throws Error.
    Outputs infer(std::string_view part, Inputs const& inputs, RunOptions const& options = {});

    Engine const& engine() const;
    Statistics statistics() const noexcept;

private:
    std::unique_ptr<detail::SessionState> state_;
};

}  // namespace madtp

#endif
