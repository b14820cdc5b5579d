// Plans in TensorRT or TensorRT for RTX.
#include "backend.h"

#include <algorithm>

#include "build_line.h"
#include "engine.h"
#include "files.h"
#include "runner.h"
#include "text.h"

namespace madtp::detail {
namespace {

constexpr uint64_t kMostPlanBytes = 1ull << 36;
constexpr char const* kMark = "madtp-plugins";
constexpr char const* kExportAgain = "Use the files of one export, or export again.";

nvinfer1::DataType trt_type(DataType type) {
    switch (type) {
    case DataType::float16: return nvinfer1::DataType::kHALF;
    case DataType::int32: return nvinfer1::DataType::kINT32;
    case DataType::int64: return nvinfer1::DataType::kINT64;
    default: return nvinfer1::DataType::kFLOAT;
    }
}

// The library of plugins beside a plan; nothing where it needs none, or embeds it. Loading it runs its code.
std::optional<std::string> plugins_of(Document const& document) {
    if (!document.library || !document.library->file) { return std::nullopt; }
    LibraryEntry const& entry = *document.library;
    BuiltLibrary const library = loadable_library(document.folder + "/" + *entry.file, kMark, "plugin library");
    if (library.sha256 != entry.sha256 || !(library.line == BuildLine{entry.version, entry.source, entry.sm})) {
        throw Error(Code::library, in_quotes(library.path) + " is not the plugin library that the manifest describes",
            "It is of another build.", kExportAgain);
    }
    return library.path;
}

// Refuse a plan that embeds another library than its manifest describes.
void check_embedded(std::string const& plan, std::string const& path, LibraryEntry const& entry) {
    std::set<BuildLine> const lines = build_lines(plan, kMark);
    if (lines != std::set<BuildLine>{{entry.version, entry.source, entry.sm}} || entry.version != MADTP_VERSION) {
        throw Error(Code::library, in_quotes(path) + " does not embed the plugin library that its manifest describes",
            "Loading it would run unknown code, or that of another version than " MADTP_VERSION ".", kExportAgain);
    }
}

void check_tensors(nvinfer1::ICudaEngine const& engine, PartInfo const& part, std::string const& path) {
    auto const check = [&](std::vector<TensorInfo> const& tensors, nvinfer1::TensorIOMode mode) {
        for (TensorInfo const& info : tensors) {
            if (engine.getTensorIOMode(info.name.c_str()) != mode ||
                engine.getTensorDataType(info.name.c_str()) != trt_type(info.type)) {
                throw Error(Code::backend, in_quotes(path) + " is not what its manifest says",
                    "It has no " + std::string(mode == nvinfer1::TensorIOMode::kINPUT ? "input " : "output ") +
                        in_quotes(info.name) + " of type " + name_of(info.type) + ".",
                    kExportAgain);
            }
        }
    };
    check(part.inputs, nvinfer1::TensorIOMode::kINPUT);
    check(part.outputs, nvinfer1::TensorIOMode::kOUTPUT);
}

class TrtProgram : public Program {
public:
    TrtProgram(std::shared_ptr<TrtEngine> engine, PartInfo const& part) : engine_(std::move(engine)), part_(part) {}

    std::unique_ptr<Runner> runner() override { return std::make_unique<TrtRunner>(engine_, part_); }

private:
    std::shared_ptr<TrtEngine> engine_;
    PartInfo const& part_;
};

class TrtBackend : public Backend {
public:
    TrtBackend(Document const& document, EngineOptions const& options)
        : shared_(std::make_shared<TrtShared>(document, options)),
          folder_(document.folder),
          library_(document.library),
          built_with_(document.manifest.backend_version),
          captures_(options.cuda_graphs && document.manifest.layout == "packed") {}

    std::unique_ptr<Program> open(PartInfo const& part, PartFiles const& files, EngineFiles const& engine) override {
        std::string const path = folder_ + "/" + engine.artifact.name;
        std::string plan;
        try {
            plan = read_file(path, kMostPlanBytes);
        } catch (std::runtime_error const& error) {
            throw Error(Code::file, "cannot read the plan " + in_quotes(path), error.what(), kExportAgain);
        }
        bool const carries = library_ && library_->embedded && files.has_plugin_layers;
        if (carries) { check_embedded(plan, path, *library_); }
        CudaDevice::Use const use(*shared_->device);
        forget_messages();
        shared_->runtime->setEngineHostCodeAllowed(carries);  // for its plugin library, and for nothing else
        auto opened = std::make_shared<TrtEngine>();
        opened->shared = shared_;
        opened->engine.reset(shared_->runtime->deserializeCudaEngine(plan.data(), plan.size()));
        if (!opened->engine) {
            fail_with_message(Code::backend, shared_->library.name() + " cannot load " + in_quotes(path),
                "It was built with " + built_with_ +
                    ". Plans run in the version, and on the kind of GPU, that they were built for; export again here.");
        }
        check_tensors(*opened->engine, part, path);
        opened->path = path;
        opened->captures = captures_;
        return std::make_unique<TrtProgram>(std::move(opened), part);
    }

    std::string execution() const override { return shared_->library.name() + " on a GPU"; }

private:
    std::shared_ptr<TrtShared> shared_;
    std::string folder_;
    std::optional<LibraryEntry> library_;
    std::string built_with_;
    bool captures_;
};

}  // namespace

TrtShared::TrtShared(Document const& document, EngineOptions const& options)
    : library(document, options.runtime_library), kernels(kIsRtx ? options.kernel_cache : std::string()) {
    if (std::optional<std::string> const plugins = plugins_of(document)) { library.register_plugins(*plugins); }
    device = std::make_shared<CudaDevice>(options.device_id);
    CudaDevice::Use const use(*device);
    runtime = library.runtime();
}

TrtShared::~TrtShared() {
    try {
        CudaDevice::Use const use(*device);
        runtime.reset();
    } catch (Error const&) {  // the driver is gone
    }
}

TrtEngine::~TrtEngine() {
    try {
        CudaDevice::Use const use(*shared->device);
        engine.reset();
    } catch (Error const&) {  // as above
    }
}

std::unique_ptr<Backend> open_tensorrt(Document const& document, EngineOptions const& options) {
    return std::make_unique<TrtBackend>(document, options);
}

}  // namespace madtp::detail
