// .onnx artifacts in ONNX Runtime, on its CPU or its CUDA provider.
#include <algorithm>
#include <mutex>

#include "backend.h"
#include "build_line.h"
#include "cuda_driver.h"
#include "files.h"
#include "ort_library.h"
#include "part_checks.h"
#include "tensor.h"
#include "text.h"

namespace madtp::detail {
namespace {

constexpr char const* kOpLibrary = "libmadtp_onnxruntime.so";
constexpr char const* kNone = "none";
constexpr char const* kCuda = "CUDAExecutionProvider";

ONNXTensorElementDataType ort_type(DataType type) {
    switch (type) {
    case DataType::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DataType::int32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DataType::int64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
}

// What all programs of an engine share; it outlives them and all results.
struct OrtShared {
    explicit OrtShared(EngineOptions const& given)
        : options(given),
          library(given.runtime_library),
          environment(nullptr, library.api().ReleaseEnv),
          host(nullptr, library.api().ReleaseMemoryInfo),
          gpu(nullptr, library.api().ReleaseMemoryInfo) {
        OrtEnv* env = nullptr;
        library.check(library.api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "madtp", &env));
        environment.reset(env);
        OrtMemoryInfo* info = nullptr;
        library.check(library.api().CreateMemoryInfo("Cpu", OrtArenaAllocator, 0, OrtMemTypeDefault, &info));
        host.reset(info);
        library.check(
            library.api().CreateMemoryInfo("Cuda", OrtDeviceAllocator, options.device_id, OrtMemTypeDefault, &info));
        gpu.reset(info);
    }

    OrtMemoryInfo const* memory(Device device) const { return device == Device::host ? host.get() : gpu.get(); }

    // Waits for what the caller queued before, unless ONNX Runtime runs on that stream itself.
    void wait_for(void* stream) {
        if (stream == nullptr || stream == options.stream) { return; }
        std::call_once(device_opened, [&] { device = std::make_unique<CudaDevice>(options.device_id); });
        CudaDevice::Use const use(*device);
        device->driver().synchronize(stream);
    }

    EngineOptions options;
    OrtLibrary library;
    OrtOwned<OrtEnv> environment;
    OrtOwned<OrtMemoryInfo> host, gpu;
    std::once_flag device_opened;
    std::unique_ptr<CudaDevice> device;
};

// The loaded graph, with what it needs; results share it.
struct OrtGraph {
    OrtGraph(std::shared_ptr<OrtShared> shared, OrtSession* session)
        : shared(std::move(shared)), session(session, this->shared->library.api().ReleaseSession) {}

    std::shared_ptr<OrtShared> shared;
    OrtOwned<OrtSession> session;
};

class OrtRunner : public Runner {
public:
    OrtRunner(std::shared_ptr<OrtGraph> graph, PartInfo const& part, std::string path)
        : graph_(std::move(graph)),
          part_(part),
          path_(std::move(path)),
          library_(graph_->shared->library),
          binding_(nullptr, library_.api().ReleaseIoBinding) {
        OrtIoBinding* binding = nullptr;
        library_.check(library_.api().CreateIoBinding(graph_->session.get(), &binding));
        binding_.reset(binding);
    }

    Outputs::Map run(Inputs const& inputs, Placement const& placement) override {
        OrtApi const& api = library_.api();
        std::string const failure = "ONNX Runtime cannot run " + in_quotes(path_);
        std::string const fix = "The file is not as the export left it, or memory is short.";
        graph_->shared->wait_for(placement.stream);
        // Bindings do not outlive the call: the caller's memory does not, either.
        struct Unbind {
            OrtRunner& runner;
            ~Unbind() {
                runner.library_.api().ClearBoundInputs(runner.binding_.get());
                runner.library_.api().ClearBoundOutputs(runner.binding_.get());
            }
        } const unbind{*this};
        for (auto const& [name, view] : inputs) {
            OrtOwned<OrtValue> const value = value_of(view);
            library_.check(api.BindInput(binding_.get(), name.c_str(), value.get()), failure, fix);
        }
        for (TensorInfo const& output : part_.outputs) {
            OrtMemoryInfo const* place = graph_->shared->memory(device_of(output, placement));
            library_.check(api.BindOutputToDevice(binding_.get(), output.name.c_str(), place), failure, fix);
        }
        bool const on_gpu = graph_->shared->options.device == Device::cuda;
        if (on_gpu) { library_.check(api.SynchronizeBoundInputs(binding_.get()), failure, fix); }
        library_.check(api.RunWithBinding(graph_->session.get(), nullptr, binding_.get()), failure, fix);
        if (on_gpu) { library_.check(api.SynchronizeBoundOutputs(binding_.get()), failure, fix); }
        return take_outputs(placement, failure);
    }

private:
    OrtOwned<OrtValue> value_of(TensorView const& view) {
        static char nothing = 0;  // for a tensor without elements, whose pointer may be null
        std::size_t const bytes = elements_of(view.shape).value_or(0) * size_of(view.type);
        void* data = bytes == 0 ? &nothing : const_cast<void*>(view.data);  // inputs are not written to
        OrtValue* value = nullptr;
        library_.check(library_.api().CreateTensorWithDataAsOrtValue(graph_->shared->memory(view.device), data, bytes,
            view.shape.data(), view.shape.size(), ort_type(view.type), &value));
        return library_.own(value, library_.api().ReleaseValue);
    }

    static Device device_of(TensorInfo const& output, Placement const& placement) {
        return stays_on_host(output.name) ? Device::host : placement.outputs;
    }

    Outputs::Map take_outputs(Placement const& placement, std::string const& failure) {
        OrtApi const& api = library_.api();
        OrtAllocator* allocator = nullptr;
        library_.check(api.GetAllocatorWithDefaultOptions(&allocator));
        OrtValue** values = nullptr;
        std::size_t count = 0;
        library_.check(api.GetBoundOutputValues(binding_.get(), allocator, &values, &count), failure);
        std::vector<std::shared_ptr<OrtValue>> owned;
        for (std::size_t i = 0; i < count; ++i) {
            owned.emplace_back(
                values[i], [graph = graph_](OrtValue* value) { graph->shared->library.api().ReleaseValue(value); });
        }
        if (values != nullptr) { library_.check(api.AllocatorFree(allocator, values)); }
        Outputs::Map outputs;
        for (std::size_t i = 0; i < count && i < part_.outputs.size(); ++i) {
            outputs.emplace(part_.outputs[i].name,
                tensor_of(owned[i], device_of(part_.outputs[i], placement), part_.outputs[i].name));
        }
        return outputs;
    }

    Tensor tensor_of(std::shared_ptr<OrtValue> const& value, Device device, std::string const& name) {
        OrtApi const& api = library_.api();
        OrtTensorTypeAndShapeInfo* info = nullptr;
        library_.check(api.GetTensorTypeAndShape(value.get(), &info));
        OrtOwned<OrtTensorTypeAndShapeInfo> const released = library_.own(info, api.ReleaseTensorTypeAndShapeInfo);
        std::size_t rank = 0;
        library_.check(api.GetDimensionsCount(info, &rank));
        Shape shape(rank);
        library_.check(api.GetDimensions(info, shape.data(), rank));
        ONNXTensorElementDataType type;
        library_.check(api.GetTensorElementType(info, &type));
        for (DataType const known : {DataType::float32, DataType::float16, DataType::int32, DataType::int64}) {
            if (ort_type(known) == type) {
                void* data = nullptr;
                library_.check(api.GetTensorMutableData(value.get(), &data));
                return {std::shared_ptr<void>(value, data), known, std::move(shape), device};
            }
        }
        throw Error(Code::backend, "the artifact's output " + in_quotes(name) + " has a type that is not known here",
            "ONNX's type number " + std::to_string(type) + ".",
            "Artifact and manifest do not belong together; export again.");
    }

    std::shared_ptr<OrtGraph> graph_;
    PartInfo const& part_;
    std::string path_;
    OrtLibrary const& library_;
    OrtOwned<OrtIoBinding> binding_;
};

class OrtProgram : public Program {
public:
    OrtProgram(std::shared_ptr<OrtGraph> graph, PartInfo const& part, std::string path)
        : graph_(std::move(graph)), part_(part), path_(std::move(path)) {}

    std::unique_ptr<Runner> runner() override { return std::make_unique<OrtRunner>(graph_, part_, path_); }

private:
    std::shared_ptr<OrtGraph> graph_;
    PartInfo const& part_;
    std::string path_;
};

class OrtBackend : public Backend {
public:
    OrtBackend(Document const& document, EngineOptions const& options)
        : shared_(std::make_shared<OrtShared>(options)), folder_(document.folder) {
        if (!document.oldest.empty() && !at_least(shared_->library.version(), document.oldest)) {
            throw Error(Code::library, "ONNX Runtime " + shared_->library.version() + " is too old for this artifact",
                "It needs " + document.oldest + " or later.", "Use a newer ONNX Runtime.");
        }
        check_provider();
        choose_library(document);
    }

    std::unique_ptr<Program> open(PartInfo const& part, PartFiles const&, EngineFiles const& engine) override {
        OrtApi const& api = shared_->library.api();
        std::string const path = folder_ + "/" + engine.artifact.name;
        OrtOwned<OrtSessionOptions> const options = session_options();
        OrtSession* session = nullptr;
        shared_->library.check(api.CreateSession(shared_->environment.get(), path.c_str(), options.get(), &session),
            "ONNX Runtime " + shared_->library.version() + " cannot load " + in_quotes(path),
            "It was made for another version, or a tool changed it so; export again.");
        return std::make_unique<OrtProgram>(std::make_shared<OrtGraph>(shared_, session), part, path);
    }

    std::string execution() const override {
        std::string const what = op_library_
                                     ? "kernels of " + name_of_file(op_library_->path) + " " + op_library_->line.version
                                     : "function bodies (" + reason_ + ")";
        return what + " on " + (shared_->options.device == Device::cuda ? "a GPU" : "the CPU") + ", ONNX Runtime " +
               shared_->library.version();
    }

private:
    void check_provider() const {
        if (shared_->options.device == Device::host) { return; }
        std::vector<std::string> const known = shared_->library.providers();
        if (std::find(known.begin(), known.end(), kCuda) == known.end()) {
            throw Error(Code::library, "this ONNX Runtime cannot run on GPUs",
                "Version " + shared_->library.version() + " in " + in_quotes(shared_->library.path()) +
                    " has no CUDA provider.",
                "Use a build of ONNX Runtime with CUDA, or the CPU.");
        }
    }

    // The library of custom ops: what was named, or the one beside this library where it can be used.
    void choose_library(Document const& document) {
        std::string const& asked = shared_->options.op_library;
        if (asked == kNone) {
            reason_ = "asked for";
            return;
        }
        bool const on_gpu = shared_->options.device == Device::cuda;
        std::string const path = asked.empty() ? folder_of_this_library() + "/" + kOpLibrary : asked;
        try {
            BuiltLibrary library = loadable_library(path, "madtp-onnxruntime", "op library");
            if (on_gpu && library.line.sm.empty()) {
                throw Error(Code::library, "the op library " + in_quotes(path) + " has kernels for CPUs alone",
                    "It was built without CUDA.", "Build it where nvcc is installed, or use the CPU.");
            }
            op_library_ = std::move(library);
        } catch (Error const& error) {
            if (!asked.empty()) { throw; }
            reason_ = error.summary();
            return;
        }
        bool const has_ops = std::any_of(
            document.parts.begin(), document.parts.end(), [](PartFiles const& part) { return part.has_custom_nodes; });
        if (!has_ops) {
            reason_ = "the file has no custom ops: their bodies are inlined";
        } else if (!on_gpu && document.manifest.precision == "fp16") {
            reason_ = std::string(kOpLibrary) + " has no kernels for float16 on the CPU";
        }
        if (!reason_.empty()) { op_library_.reset(); }
    }

    OrtOwned<OrtSessionOptions> session_options() const {
        OrtApi const& api = shared_->library.api();
        OrtSessionOptions* options = nullptr;
        shared_->library.check(api.CreateSessionOptions(&options));
        OrtOwned<OrtSessionOptions> owned = shared_->library.own(options, api.ReleaseSessionOptions);
        shared_->library.check(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR));
        // Otherwise sums of 8-bit products saturate on processors without VNNI; elsewhere it changes nothing.
        shared_->library.check(api.AddSessionConfigEntry(options, "session.x64quantprecision", "1"));
        if (shared_->options.threads > 0) {
            shared_->library.check(api.SetIntraOpNumThreads(options, shared_->options.threads));
        }
        if (op_library_) {
            shared_->library.check(api.RegisterCustomOpsLibrary_V2(options, op_library_->path.c_str()),
                "ONNX Runtime " + shared_->library.version() + " cannot register the op library " +
                    in_quotes(op_library_->path),
                "Use a newer ONNX Runtime, or op_library = \"none\".", Code::library);
        }
        if (shared_->options.device == Device::cuda) { add_cuda(options); }
        return owned;
    }

    void add_cuda(OrtSessionOptions* options) const {
        OrtLibrary const& library = shared_->library;
        OrtApi const& api = library.api();
        std::string const failure = "ONNX Runtime cannot run on a GPU";
        std::string const fix = "CUDA's libraries or the driver do not fit it: see its log, or use the CPU.";
        OrtCUDAProviderOptionsV2* cuda = nullptr;
        library.check(api.CreateCUDAProviderOptions(&cuda), failure, fix, Code::library);
        OrtOwned<OrtCUDAProviderOptionsV2> const owned = library.own(cuda, api.ReleaseCUDAProviderOptions);
        std::string const device = std::to_string(shared_->options.device_id);
        char const* const keys[] = {"device_id", "use_tf32"};  // TF32 would cost parity
        char const* const values[] = {device.c_str(), "0"};
        library.check(api.UpdateCUDAProviderOptions(cuda, keys, values, 2), failure, fix, Code::library);
        if (void* stream = shared_->options.stream; stream != nullptr) {
            library.check(api.UpdateCUDAProviderOptionsWithValue(cuda, "user_compute_stream", stream), failure, fix,
                Code::library);
        }
        library.check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda), failure, fix, Code::library);
    }

    std::shared_ptr<OrtShared> shared_;
    std::string folder_, reason_;
    std::optional<BuiltLibrary> op_library_;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(Document const& document, EngineOptions const& options) {
    return std::make_unique<OrtBackend>(document, options);
}

}  // namespace madtp::detail
