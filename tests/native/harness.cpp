// Drives plugin objects as TensorRT does, without TensorRT: a C ABI for tests/helpers/harness.py. Structures of TensorRT's
// headers (fields, dimensions, descriptions) are passed as they are; Python lays them out alike and checks their sizes.
#include <NvInfer.h>
#include <NvInferImpl.h>
#include <dlfcn.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

// How a dimension that is a size tensor is told to Python: this plus the index of the output that holds it.
constexpr int64_t kSizeTensor = std::numeric_limits<int64_t>::min();

class Logger final : public ILogger {
public:
    void log(Severity severity, AsciiChar const* message) noexcept override {
        messages_.push_back(std::to_string(static_cast<int>(severity)) + " " + message);
    }
    std::vector<std::string> messages_;
};

class Finder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger_; }
    Logger logger_;
};

struct Library {
    void* handle;
    IPluginCreatorInterface* const* creators;
    int32_t count;
    void (*set_finder)(ILoggerFinder*);
    Finder finder;
};

// An expression with its value; only what the builder was given as a constant says that it is one. `derived` says
// whether it depends on a size tensor, which TensorRT does not tell.
class Expression final : public IDimensionExpr, public apiv::VDimensionExpr {
public:
    Expression(int64_t value, bool constant, bool size_tensor = false, bool derived = false)
        : derived(size_tensor || derived), value_(value), constant_(constant), size_tensor_(size_tensor) {
        mImpl = this;
    }
    bool isConstant() const override { return constant_; }
    int64_t getConstantValue() const override { return constant_ ? value_ : std::numeric_limits<int64_t>::min(); }
    bool isSizeTensor() const override { return size_tensor_; }
    int64_t value() const { return value_; }

    bool const derived;

private:
    int64_t value_;
    bool constant_, size_tensor_;
};

Expression const& seen(IDimensionExpr const& expression) { return static_cast<Expression const&>(expression); }
int64_t value_of(IDimensionExpr const& expression) { return seen(expression).value(); }

// Wraps as hardware does: the plugin is on trial here, not these sums.
int64_t evaluate(DimensionOperation operation, int64_t a, int64_t b) {
    auto const ua = static_cast<uint64_t>(a), ub = static_cast<uint64_t>(b);
    if ((operation == DimensionOperation::kFLOOR_DIV || operation == DimensionOperation::kCEIL_DIV) && b == 0) return 0;
    switch (operation) {
        case DimensionOperation::kSUM: return static_cast<int64_t>(ua + ub);
        case DimensionOperation::kPROD: return static_cast<int64_t>(ua * ub);
        case DimensionOperation::kMAX: return a > b ? a : b;
        case DimensionOperation::kMIN: return a < b ? a : b;
        case DimensionOperation::kSUB: return static_cast<int64_t>(ua - ub);
        case DimensionOperation::kEQUAL: return a == b;
        case DimensionOperation::kLESS: return a < b;
        case DimensionOperation::kFLOOR_DIV: return a / b - (a % b != 0 && (a < 0) != (b < 0));
        case DimensionOperation::kCEIL_DIV: return a / b + (a % b != 0 && (a < 0) == (b < 0));
    }
    return 0;
}

struct SizeTensor {
    int64_t output, opt, upper, opt_is_derived;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
public:
    // Fails (returns null) from the call of this number on; negative: never.
    explicit Builder(int32_t fails_from) : left_(fails_from) { mImpl = this; }

    IDimensionExpr const* constant(int64_t value) override { return add(value, true); }
    IDimensionExpr const* operation(
        DimensionOperation operation, IDimensionExpr const& first, IDimensionExpr const& second) override {
        int64_t const value = evaluate(operation, value_of(first), value_of(second));
        return add(value, false, false, seen(first).derived || seen(second).derived);
    }
    IDimensionExpr const* declareSizeTensor(
        int32_t output, IDimensionExpr const& opt, IDimensionExpr const& upper) override {
        declared.push_back({output, value_of(opt), value_of(upper), seen(opt).derived});
        return add(kSizeTensor + output, false, true);
    }
    std::vector<SizeTensor> declared;

private:
    IDimensionExpr const* add(int64_t value, bool constant, bool size_tensor = false, bool derived = false) {
        if (left_ == 0) return nullptr;
        if (left_ > 0) --left_;
        expressions_.push_back(std::make_unique<Expression>(value, constant, size_tensor, derived));
        return expressions_.back().get();
    }
    int32_t left_;
    std::vector<std::unique_ptr<Expression>> expressions_;
};

class ResourceContext final : public IPluginResourceContext {
public:
    IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

template <typename Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneCore* core(IPluginV3* plugin) {
    return capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
}
IPluginV3OneBuild* build(IPluginV3* plugin) {
    return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}
IPluginCreatorV3One* creator(Library* library, int32_t index) {
    return static_cast<IPluginCreatorV3One*>(library->creators[index]);
}

thread_local std::string text;

char const* interface_of(IVersionedInterface const* object) {
    if (object == nullptr) return nullptr;
    InterfaceInfo const info = object->getInterfaceInfo();
    text = std::string(info.kind) + " " + std::to_string(info.major) + "." + std::to_string(info.minor);
    return text.c_str();
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// By this the plugin library tells which generation the finder and the logger above are of.
EXPORT int32_t getInferLibVersion() noexcept {
    return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

EXPORT int64_t harness_sizeof(int32_t which) {
    size_t const sizes[] = {
        sizeof(PluginField), sizeof(PluginFieldCollection), sizeof(Dims), sizeof(PluginTensorDesc),
        sizeof(DynamicPluginTensorDesc), sizeof(SizeTensor)};
    return static_cast<int64_t>(sizes[which]);
}

// Null where the library cannot be loaded; harness_load_error says why.
EXPORT Library* harness_open(char const* path) {
    void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return nullptr;
    auto const get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(handle, "getCreators"));
    auto const set = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"));
    if (get == nullptr || set == nullptr) return nullptr;
    auto* const library = new Library{handle, nullptr, 0, set, {}};
    library->creators = get(library->count);
    set(&library->finder);
    return library;
}
EXPORT char const* harness_load_error() { return dlerror(); }
EXPORT void harness_close(Library* library) {
    library->set_finder(nullptr);
    dlclose(library->handle);
    delete library;
}
EXPORT void harness_use_logger(Library* library, int32_t use) {
    library->set_finder(use != 0 ? &library->finder : nullptr);
}
// "severity message" of the message of this number since they were forgotten; null behind the last.
EXPORT char const* harness_message(Library* library, int32_t index) {
    auto const& messages = library->finder.logger_.messages_;
    return static_cast<size_t>(index) < messages.size() ? messages[static_cast<size_t>(index)].c_str() : nullptr;
}
EXPORT void harness_forget_messages(Library* library) { library->finder.logger_.messages_.clear(); }

EXPORT int32_t harness_creators(Library* library) { return library->count; }
EXPORT char const* harness_creator_interface(Library* library, int32_t index) {
    return interface_of(library->creators[index]);
}
EXPORT char const* harness_creator_name(Library* library, int32_t index) {
    return creator(library, index)->getPluginName();
}
EXPORT char const* harness_creator_version(Library* library, int32_t index) {
    return creator(library, index)->getPluginVersion();
}
EXPORT char const* harness_creator_namespace(Library* library, int32_t index) {
    return creator(library, index)->getPluginNamespace();
}
EXPORT PluginFieldCollection const* harness_field_names(Library* library, int32_t index) {
    return creator(library, index)->getFieldNames();
}
EXPORT IPluginV3* harness_create(
    Library* library, int32_t index, PluginFieldCollection const* fields, int32_t phase) {
    return creator(library, index)->createPlugin("layer", fields, static_cast<TensorRTPhase>(phase));
}

EXPORT void harness_destroy(IPluginV3* plugin) { delete plugin; }
EXPORT IPluginV3* harness_clone(IPluginV3* plugin) { return plugin->clone(); }
EXPORT IPluginV3* harness_attach(IPluginV3* plugin) {
    ResourceContext context;
    return runtime(plugin)->attachToContext(&context);
}
EXPORT char const* harness_interface(IPluginV3* plugin) { return interface_of(plugin); }
EXPORT char const* harness_capability(IPluginV3* plugin, int32_t type) {
    return interface_of(plugin->getCapabilityInterface(static_cast<PluginCapabilityType>(type)));
}
EXPORT char const* harness_name(IPluginV3* plugin) { return core(plugin)->getPluginName(); }
EXPORT char const* harness_version(IPluginV3* plugin) { return core(plugin)->getPluginVersion(); }
EXPORT char const* harness_namespace(IPluginV3* plugin) { return core(plugin)->getPluginNamespace(); }
EXPORT PluginFieldCollection const* harness_serialize(IPluginV3* plugin) {
    return runtime(plugin)->getFieldsToSerialize();
}

EXPORT int32_t harness_output_count(IPluginV3* plugin) { return build(plugin)->getNbOutputs(); }
EXPORT int32_t harness_output_types(
    IPluginV3* plugin, DataType const* inputs, int32_t input_count, DataType* outputs, int32_t output_count) {
    return build(plugin)->getOutputDataTypes(outputs, output_count, inputs, input_count);
}
// `sizes` has room for eight declared size tensors; their number goes to `declared`. With `later`, the second dimension of
// every input is the size tensor of a layer before.
EXPORT int32_t harness_output_shapes(IPluginV3* plugin, Dims const* inputs, int32_t input_count, int32_t later,
    Dims* outputs, int32_t output_count, int32_t fails_from, SizeTensor* sizes, int32_t* declared) {
    std::vector<std::unique_ptr<Expression>> given;
    std::vector<DimsExprs> in(static_cast<size_t>(input_count)), out(static_cast<size_t>(output_count), DimsExprs{});
    for (int32_t input = 0; input < input_count; ++input) {
        in[input] = {};
        in[input].nbDims = inputs[input].nbDims;
        for (int32_t axis = 0; axis < Dims::MAX_DIMS; ++axis) {
            if (axis >= inputs[input].nbDims) continue;  // null, so that reading it is noticed
            given.push_back(std::make_unique<Expression>(inputs[input].d[axis], false, later != 0 && axis == 1));
            in[input].d[axis] = given.back().get();
        }
    }
    Builder builder(fails_from);
    int32_t const result =
        build(plugin)->getOutputShapes(in.data(), input_count, nullptr, 0, out.data(), output_count, builder);
    *declared = static_cast<int32_t>(builder.declared.size());
    for (int32_t index = 0; index < *declared && index < 8; ++index) sizes[index] = builder.declared[index];
    for (int32_t output = 0; result == 0 && output < output_count; ++output) {
        outputs[output].nbDims = out[output].nbDims;
        for (int32_t axis = 0; axis < out[output].nbDims; ++axis)
            outputs[output].d[axis] = value_of(*out[output].d[axis]);
    }
    return result;
}
EXPORT int32_t harness_supports(IPluginV3* plugin, int32_t position, DynamicPluginTensorDesc const* tensors,
    int32_t input_count, int32_t output_count) {
    return build(plugin)->supportsFormatCombination(position, tensors, input_count, output_count);
}
EXPORT int32_t harness_configure(
    IPluginV3* plugin, DynamicPluginTensorDesc const* tensors, int32_t input_count, int32_t output_count) {
    return build(plugin)->configurePlugin(tensors, input_count, tensors + input_count, output_count);
}
EXPORT int64_t harness_workspace(
    IPluginV3* plugin, DynamicPluginTensorDesc const* tensors, int32_t input_count, int32_t output_count) {
    return static_cast<int64_t>(
        build(plugin)->getWorkspaceSize(tensors, input_count, tensors + input_count, output_count));
}
EXPORT int32_t harness_on_shape_change(
    IPluginV3* plugin, PluginTensorDesc const* tensors, int32_t input_count, int32_t output_count) {
    return runtime(plugin)->onShapeChange(tensors, input_count, tensors + input_count, output_count);
}
EXPORT int32_t harness_enqueue(IPluginV3* plugin, PluginTensorDesc const* tensors, int32_t input_count,
    void const* const* inputs, void* const* outputs, void* workspace) {
    return runtime(plugin)->enqueue(tensors, tensors + input_count, inputs, outputs, workspace, nullptr);
}
}
