#include "runner.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "part_checks.h"
#include "tensor.h"
#include "text.h"

namespace madtp::detail {
namespace {

constexpr char const* kFix = "The plan is not as the export left it, or the GPU's memory is short.";

nvinfer1::Dims dims_of(Shape const& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

Shape shape_of(nvinfer1::Dims const& dims) { return {dims.d, dims.d + std::max<int32_t>(dims.nbDims, 0)}; }

std::size_t bytes_of(Shape const& shape, DataType type) { return elements_of(shape).value_or(0) * size_of(type); }

// Memory of at least so many bytes, the one that is there where it is large enough.
void reserve(
    std::shared_ptr<DeviceMemory>& memory, std::shared_ptr<CudaDevice const> const& device, std::size_t bytes) {
    if (memory && memory->bytes() >= bytes) { return; }
    memory.reset();  // before the larger one is made
    memory = std::make_shared<DeviceMemory>(device, bytes);
}

// Waits for what a call queued, also where it fails: the caller's memory may go then.
class Drained {
public:
    Drained(CudaDriver const& driver, void* stream) : driver_(driver), stream_(stream) {}
    Drained(Drained const&) = delete;
    ~Drained() {
        if (!done_) { driver_.wait_for(stream_); }
    }
    void wait() {
        done_ = true;
        driver_.check(driver_.wait_for(stream_), "running the plan");
    }

private:
    CudaDriver const& driver_;
    void* stream_;
    bool done_ = false;
};

}  // namespace

// The memory of an output. Where its size depends on data, TensorRT asks for it while it runs.
class TrtRunner::Output : public nvinfer1::IOutputAllocator {
public:
    Output(TensorInfo const& info, std::shared_ptr<CudaDevice const> device) : info(info), device_(std::move(device)) {}

    void* reallocateOutputAsync(char const*, void*, uint64_t size, uint64_t, cudaStream_t) noexcept override {
        try {
            reserve(memory, device_, size);
            return memory->data();
        } catch (...) {
            failure = std::current_exception();
            return nullptr;
        }
    }
    void notifyShape(char const*, nvinfer1::Dims const& dims) noexcept override {
        try {
            shape = shape_of(dims);
        } catch (...) { failure = std::current_exception(); }
    }

    TensorInfo const& info;
    std::shared_ptr<DeviceMemory> memory;  // shared with the results that were left on the GPU
    Shape shape;
    std::exception_ptr failure;
    bool allocates = false;  // whether TensorRT was told to ask

private:
    std::shared_ptr<CudaDevice const> device_;
};

TrtRunner::TrtRunner(std::shared_ptr<TrtEngine> engine, PartInfo const& part)
    : engine_(std::move(engine)), part_(part), device_(engine_->shared->device), stream_(device_) {
    for (TensorInfo const& info : part_.outputs) {
        outputs_.emplace(info.name, std::make_unique<Output>(info, device_));
    }
    std::lock_guard const lock(engine_->shared->opening);
    CudaDevice::Use const use(*device_);
    forget_messages();
    context_ = open_context(*engine_->engine, engine_->shared->kernels, engine_->captures);
    if (!context_.context) {
        fail_with_message(Code::memory,
            engine_->shared->library.name() + " cannot make " + in_quotes(engine_->path) + " ready to run",
            "Most likely the GPU's memory is short: free it, open fewer sessions, or export with a smaller --batch.");
    }
    if (engine_->captures && !kIsRtx) { graphs_.emplace(device_); }
}

TrtRunner::~TrtRunner() {
    try {
        CudaDevice::Use const use(*device_);
        graphs_.reset();
        std::lock_guard const lock(engine_->shared->opening);
        context_.context.reset();
    } catch (Error const&) {  // the driver is gone
    }
}

Outputs::Map TrtRunner::run(Inputs const& inputs, Placement const& placement) {
    CudaDevice::Use const use(*device_);
    void* const stream = placement.stream == nullptr ? stream_.get() : placement.stream;
    Drained drained(device_->driver(), stream);
    replayed_ = false;
    CudaGraphs::Key key;
    forget_messages();
    for (auto const& [name, view] : inputs) { give(name, view, stream, key); }
    bool const has_fixed_sizes = make_room(key);
    enqueue(key, has_fixed_sizes, stream);
    Outputs::Map outputs = take(placement, stream);
    drained.wait();
    return outputs;
}

void TrtRunner::give(std::string const& name, TensorView const& view, void* stream, CudaGraphs::Key& key) {
    std::size_t const bytes = bytes_of(view.shape, view.type);
    void const* address = view.data;
    if (view.device == Device::host &&
        engine_->engine->getTensorLocation(name.c_str()) == nvinfer1::TensorLocation::kHOST) {
        auto const* const begin = static_cast<char const*>(view.data);
        std::vector<char>& copy = host_inputs_[name];
        copy.assign(begin, begin + bytes);
        address = copy.data();
        key.insert(key.end(), copy.begin(), copy.end());  // a graph is of its values too
    } else if (view.device == Device::host) {
        std::shared_ptr<DeviceMemory>& memory = inputs_[name];
        reserve(memory, device_, bytes);
        if (bytes > 0) {
            device_->driver().check(
                device_->driver().copy_to_device(memory->address(), view.data, bytes, stream), "copying an input");
        }
        address = memory->data();
    }
    nvinfer1::IExecutionContext& context = *context_.context;
    if (!context.setInputShape(name.c_str(), dims_of(view.shape)) ||
        !context.setTensorAddress(name.c_str(), const_cast<void*>(address))) {
        fail_with_message(Code::input,
            engine_->shared->library.name() + " does not take input " + in_quotes(name) + " of shape " +
                shown(view.shape),
            kFix);
    }
    key.insert(key.end(), view.shape.begin(), view.shape.end());
    key.push_back(static_cast<int64_t>(reinterpret_cast<intptr_t>(address)));
}

// Whether the sizes of all outputs are known before it runs.
bool TrtRunner::make_room(CudaGraphs::Key& key) {
    nvinfer1::IExecutionContext& context = *context_.context;
    if (context.inferShapes(0, nullptr) != 0) {
        fail_with_message(Code::backend,
            engine_->shared->library.name() + " cannot tell the shapes of " + in_quotes(engine_->path), kFix);
    }
    bool all_known = true;
    for (auto const& [name, output] : outputs_) {
        if (output->memory.use_count() > 1) { output->memory.reset(); }  // a result that the caller has
        output->failure = nullptr;
        output->shape = shape_of(context.getTensorShape(name.c_str()));
        bool const known =
            std::all_of(output->shape.begin(), output->shape.end(), [](int64_t size) { return size >= 0; });
        reserve(output->memory, device_, known ? bytes_of(output->shape, output->info.type) : 1);
        bool taken = context.setTensorAddress(name.c_str(), output->memory->data());
        if (known == output->allocates) {
            output->allocates = !known;
            taken = context.setOutputAllocator(name.c_str(), known ? nullptr : output.get()) && taken;
        }
        if (!taken) {
            fail_with_message(Code::backend, in_quotes(engine_->path) + " has no output " + in_quotes(name), kFix);
        }
        all_known = all_known && known;
        key.push_back(static_cast<int64_t>(output->memory->address()));
    }
    return all_known;
}

void TrtRunner::enqueue(CudaGraphs::Key const& key, bool has_fixed_sizes, void* stream) {
    auto const on = [&](void* where) { return context_.context->enqueueV3(static_cast<cudaStream_t>(where)); };
    if (graphs_ && has_fixed_sizes && graphs_->replay(key, stream, on)) {
        replayed_ = true;
        return;
    }
    forget_messages();  // of a capture that failed
    bool const enqueued = on(stream);
    for (auto const& [name, output] : outputs_) {
        if (output->failure) { std::rethrow_exception(output->failure); }
    }
    if (!enqueued) {
        fail_with_message(
            Code::backend, engine_->shared->library.name() + " cannot run " + in_quotes(engine_->path), kFix);
    }
    if (graphs_ && has_fixed_sizes) { graphs_->ran(key); }
}

Outputs::Map TrtRunner::take(Placement const& placement, void* stream) {
    Outputs::Map outputs;
    for (auto const& [name, output] : outputs_) {
        DataType const type = output->info.type;
        if (placement.outputs == Device::cuda && !stays_on_host(name)) {
            std::shared_ptr<void> const memory(output->memory, output->memory->data());
            outputs.emplace(name, Tensor(memory, type, output->shape, Device::cuda));
            continue;
        }
        Tensor const tensor = host_tensor(type, output->shape);
        if (tensor.bytes() > output->memory->bytes()) {
            throw Error(Code::backend,
                in_quotes(engine_->path) + " gives more of " + in_quotes(name) + " than it asked room for", {}, kFix);
        }
        if (tensor.bytes() > 0) {
            device_->driver().check(device_->driver().copy_to_host(
                                        tensor.memory().get(), output->memory->address(), tensor.bytes(), stream),
                "copying an output");
        }
        outputs.emplace(name, tensor);
    }
    return outputs;
}

}  // namespace madtp::detail
