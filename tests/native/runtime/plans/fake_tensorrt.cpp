// TensorRT and CUDA's driver in one library, for tests: "GPU memory" is the host's, and a plan is a text.
//
//     room N     logits are x + N; overflow, whether the largest x[:, 2] is more than N and the temperature above zero
//     lengths    the graph of `write_counting_engine` (tests/helpers/made_up_engines.py): sizes depend on data
//     hosted     likewise, and it brings code, which has to be allowed
//     other      was built with another version
//
// x[0, 0] of -1 makes a run fail, and of -2 memory run out. What the engine must not call ends the process: stubs.h.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "stubs.h"

#define EXPORT extern "C" [[gnu::visibility("default")]]

using namespace nvinfer1;

namespace {

constexpr int kOutOfMemory = 2, kNoContext = 201, kNotCapturing = 900;
thread_local int contexts = 0;  // that were pushed and not popped

using Work = std::vector<std::function<void()>>;

struct Stream {
    bool capturing = false;
    Work recorded;
};

// What is queued runs at once, or is recorded.
void queue(void* stream, std::function<void()> work) {
    auto* const on = static_cast<Stream*>(stream);
    if (on->capturing) {
        on->recorded.push_back(std::move(work));
    } else {
        work();
    }
}

ILogger* logger = nullptr;

bool refuse(char const* message) {
    logger->log(ILogger::Severity::kWARNING, "a warning, which is nobody's reason");
    logger->log(ILogger::Severity::kERROR, message);
    logger->log(ILogger::Severity::kERROR, "what follows from it");
    return false;
}

int64_t size_of(Dims const& dims) {
    int64_t size = 1;
    for (int32_t i = 0; i < dims.nbDims; ++i) { size *= dims.d[i]; }
    return size;
}

struct Plan {
    std::string kind;
    float room = 0;
};

struct Place {
    Dims shape{-1, {}};
    void* memory = nullptr;
    IOutputAllocator* allocator = nullptr;
};

class ContextImpl final : public StubExecutionContext {
public:
    explicit ContextImpl(Plan const& plan) : plan_(plan) {}

    bool setInputShape(char const* name, Dims const& dims) noexcept override {
        places_[name].shape = dims;
        return true;
    }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        places_[name].memory = data;
        return data != nullptr;
    }
    bool setOutputAllocator(char const* name, IOutputAllocator* allocator) noexcept override {
        places_[name].allocator = allocator;
        return true;
    }
    int32_t inferShapes(int32_t, char const**) noexcept override { return places_["x"].shape.nbDims == 2 ? 0 : 1; }
    Dims getTensorShape(char const* name) const noexcept override {
        int64_t const batch = places_.at("x").shape.d[0];
        std::string const what = name;
        if (what == "logits") { return {2, {batch, 3}}; }
        if (what == "overflow") { return {0, {}}; }
        if (what == "vision_token_counts") { return {2, {2 * batch, 1}}; }
        return what == "states" ? Dims{3, {batch, -1, 1}} : Dims{3, {1, batch, -1}};
    }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (contexts == 0) { return refuse("no GPU is current"); }
        auto const* const x = static_cast<float const*>(places_["x"].memory);
        bool const capturing = reinterpret_cast<Stream*>(stream)->capturing;
        if (!capturing && x[0] == -1) { return refuse("the kernel failed"); }
        if (!capturing && x[0] == -2) { return refuse("Error Code 2: OutOfMemory (Requested size was 7 bytes.)"); }
        if (plan_.kind != "room") { return !capturing && enqueue_lengths(stream, x); }
        queue(stream, [places = places_, room = plan_.room]() mutable {
            auto const* const given = static_cast<float const*>(places["x"].memory);
            auto const temperature = *static_cast<float const*>(places["temperature"].memory);
            int64_t const batch = places["x"].shape.d[0];
            float most = 0;
            for (int64_t i = 0; i < 3 * batch; ++i) {
                static_cast<float*>(places["logits"].memory)[i] = given[i] + room;
                if (i % 3 == 2) { most = std::max(most, given[i]); }
            }
            *static_cast<int32_t*>(places["overflow"].memory) = temperature > 0 && most > room;
        });
        return true;
    }

private:
    bool enqueue_lengths(cudaStream_t stream, float const* x) {
        int64_t const batch = places_["x"].shape.d[0];
        auto const temperature = *static_cast<float const*>(places_["temperature"].memory);
        float most = 0;
        for (int64_t row = 0; row < batch; ++row) {
            most = std::max(most, x[3 * row + 2]);
            for (int64_t i = 3 * row; i < 3 * row + 3; ++i) {
                static_cast<float*>(places_["logits"].memory)[i] = x[i] * (1 + temperature);
            }
            for (int64_t side = 0; side < 2; ++side) {
                static_cast<int32_t*>(places_["vision_token_counts"].memory)[side * batch + row] =
                    static_cast<int32_t>(x[3 * row + side]);
            }
        }
        auto const length = static_cast<int64_t>(most);
        for (char const* name : {"states", "cache"}) {
            Dims const shape = name[0] == 's' ? Dims{3, {batch, length, 1}} : Dims{3, {1, batch, length}};
            Place& place = places_[name];
            if (place.allocator == nullptr) { return refuse("an output of unknown size has no allocator"); }
            auto* const memory = static_cast<float*>(place.allocator->reallocateOutputAsync(
                name, place.memory, static_cast<uint64_t>(4 * size_of(shape)), 256, stream));
            if (memory == nullptr) { return refuse("an output got no memory"); }
            for (int64_t i = 0; i < batch * length; ++i) { memory[i] = x[i / length * 3]; }
            place.allocator->notifyShape(name, shape);
        }
        return true;
    }

    Plan plan_;
    std::map<std::string, Place> places_;
};

class Context final : public IExecutionContext {
public:
    explicit Context(Plan const& plan) : own_(plan) { mImpl = &own_; }

private:
    ContextImpl own_;
};

#ifdef TRT_MAJOR_RTX
class HostMemoryImpl final : public StubHostMemory {
public:
    explicit HostMemoryImpl(std::string content) : content_(std::move(content)) {}
    void* data() const noexcept override { return const_cast<char*>(content_.data()); }
    std::size_t size() const noexcept override { return content_.size(); }

private:
    std::string content_;
};

class HostMemory final : public IHostMemory {
public:
    explicit HostMemory(std::string content) : own_(std::move(content)) { mImpl = &own_; }

private:
    HostMemoryImpl own_;
};

class Cache final : public IRuntimeCache {
public:
    bool deserialize(void const* blob, std::size_t size) noexcept override {
        content.assign(static_cast<char const*>(blob), size);
        return true;
    }
    IHostMemory* serialize() const noexcept override { return new HostMemory(content); }

    std::string content;
};

class ConfigImpl final : public StubRuntimeConfig {
public:
    void setDynamicShapesKernelSpecializationStrategy(
        DynamicShapesKernelSpecializationStrategy given) noexcept override {
        strategy = given;
    }
    bool setCudaGraphStrategy(CudaGraphStrategy given) noexcept override {
        graphs = given;
        return true;
    }
    IRuntimeCache* createRuntimeCache() const noexcept override { return new Cache; }
    bool setRuntimeCache(IRuntimeCache const& given) noexcept override {
        cache = const_cast<Cache*>(static_cast<Cache const*>(&given));
        return true;
    }

    DynamicShapesKernelSpecializationStrategy strategy = DynamicShapesKernelSpecializationStrategy::kLAZY;
    CudaGraphStrategy graphs = CudaGraphStrategy::kDISABLED;
    Cache* cache = nullptr;
};

class Config final : public IRuntimeConfig {
public:
    Config() { mImpl = &own; }
    ConfigImpl own;
};
#endif

class EngineImpl final : public StubCudaEngine {
public:
    explicit EngineImpl(Plan plan) : plan_(std::move(plan)) {}

    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        bool const is_input = std::strcmp(name, "x") == 0 || std::strcmp(name, "temperature") == 0;
        bool const is_given = (std::strcmp(name, "overflow") == 0) == (plan_.kind == "room");
        if (is_input) { return TensorIOMode::kINPUT; }
        return is_given || std::strcmp(name, "logits") == 0 ? TensorIOMode::kOUTPUT : TensorIOMode::kNONE;
    }
    nvinfer1::DataType getTensorDataType(char const* name) const noexcept override {
        bool const is_count = std::strcmp(name, "overflow") == 0 || std::strcmp(name, "vision_token_counts") == 0;
        return is_count ? nvinfer1::DataType::kINT32 : nvinfer1::DataType::kFLOAT;
    }
    TensorLocation getTensorLocation(char const* name) const noexcept override {
        bool const on_host = plan_.kind != "room" && std::strcmp(name, "temperature") == 0;
        return on_host ? TensorLocation::kHOST : TensorLocation::kDEVICE;
    }
#ifdef TRT_MAJOR_RTX
    IRuntimeConfig* createRuntimeConfig() noexcept override { return new Config; }
    IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig* given) noexcept override {
        ConfigImpl const& config = static_cast<Config*>(given)->own;
        bool const captures = config.graphs == CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE;
        if (config.strategy != DynamicShapesKernelSpecializationStrategy::kNONE || config.cache == nullptr ||
            captures != (plan_.kind == "room")) {
            refuse("the context was not set up");
            return nullptr;
        }
        config.cache->content += "k";  // a kernel was compiled
        return new Context(plan_);
    }
#else
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
        return new Context(plan_);
    }
#endif

private:
    Plan plan_;
};

class Engine final : public ICudaEngine {
public:
    explicit Engine(Plan const& plan) : own_(plan) { mImpl = &own_; }

private:
    EngineImpl own_;
};

class RuntimeImpl final : public StubRuntime {
public:
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        std::istringstream text(std::string(static_cast<char const*>(blob), size));
        Plan plan;
        text >> plan.kind >> plan.room;
        if (plan.kind == "hosted" && !allowed_) {
            refuse("host code is not allowed");
        } else if (plan.kind == "other") {
            refuse("The engine plan file is not compatible with this version");
        } else {
            return new Engine(plan);
        }
        return nullptr;
    }
    void setEngineHostCodeAllowed(bool allowed) noexcept override { allowed_ = allowed; }

private:
    bool allowed_ = false;
};

class Runtime final : public IRuntime {
public:
    Runtime() { mImpl = &own_; }

private:
    RuntimeImpl own_;
};

class Registry final : public StubPluginRegistry {
public:
    PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept override {
        if (creators_ != nullptr) { unexpected("a second loadLibrary"); }
        void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (handle == nullptr) {
            refuse(dlerror());
            return nullptr;
        }
        creators_ =
            reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(handle, "getCreators"))(count_);
        return handle;
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
        *count = count_;
        return creators_;
    }

private:
    IPluginCreatorInterface* const* creators_ = nullptr;
    int32_t count_ = 0;
};

}  // namespace

EXPORT int32_t getInferLibVersion() noexcept {
    char const* const version = std::getenv("FAKE_VERSION");
    return version == nullptr ? NV_TENSORRT_VERSION : std::atoi(version);
}
EXPORT void* createInferRuntime_INTERNAL(void* given, int32_t) noexcept {
    logger = static_cast<ILogger*>(given);
    return static_cast<IRuntime*>(new Runtime);
}
EXPORT IPluginRegistry* getPluginRegistry() noexcept {
    static Registry registry;
    return &registry;
}

EXPORT int cuInit(unsigned) { return 0; }
EXPORT int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? 0 : 101; }
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &logger, 0; }
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
EXPORT int cuCtxPushCurrent_v2(void*) { return ++contexts, 0; }
EXPORT int cuCtxPopCurrent_v2(void** context) { return *context = &logger, --contexts, 0; }
EXPORT int cuMemAlloc_v2(uint64_t* address, std::size_t bytes) {
    if (contexts == 0) { return kNoContext; }
    if (bytes > (1u << 30)) { return kOutOfMemory; }
    *address = reinterpret_cast<uint64_t>(std::malloc(bytes));
    return 0;
}
EXPORT int cuMemFree_v2(uint64_t address) {
    std::free(reinterpret_cast<void*>(address));
    return contexts == 0 ? kNoContext : 0;
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, void const* from, std::size_t bytes, void*) {
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return 0;
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, std::size_t bytes, void*) {
    std::memcpy(to, reinterpret_cast<void const*>(from), bytes);
    return 0;
}
EXPORT int cuStreamCreate(void** stream, unsigned) { return *stream = new Stream, contexts == 0 ? kNoContext : 0; }
EXPORT int cuStreamDestroy_v2(void* stream) { return delete static_cast<Stream*>(stream), 0; }
EXPORT int cuStreamSynchronize(void* stream) { return static_cast<Stream*>(stream)->capturing ? kNotCapturing : 0; }
EXPORT int cuStreamBeginCapture_v2(void* stream, int) {
    return static_cast<Stream*>(stream)->capturing = true, std::getenv("FAKE_NO_GRAPHS") != nullptr ? kNotCapturing : 0;
}
EXPORT int cuStreamEndCapture(void* given, void** graph) {
    auto* const stream = static_cast<Stream*>(given);
    *graph = new Work(std::move(stream->recorded));
    *stream = {};
    return 0;
}
EXPORT int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    return *executable = new Work(*static_cast<Work*>(graph)), 0;
}
EXPORT int cuGraphLaunch(void* executable, void* stream) {
    for (auto const& work : *static_cast<Work*>(executable)) { queue(stream, work); }
    return 0;
}
EXPORT int cuGraphDestroy(void* graph) { return delete static_cast<Work*>(graph), 0; }
EXPORT int cuGraphExecDestroy(void* executable) { return delete static_cast<Work*>(executable), 0; }
EXPORT int cuGetErrorString(int status, char const** text) {
    return *text = status == kOutOfMemory ? "out of memory" : "some error", 0;
}
