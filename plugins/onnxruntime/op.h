// What the ops of ONNX Runtime share: errors as OrtStatus, tensors with checked shapes, and an OrtCustomOp for a kernel class.
#pragma once
#include <onnxruntime_c_api.h>

#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace madtp::onnxruntime {

// The oldest C API that has what is used here (KernelContext_ParallelFor): that of ONNX Runtime 1.17.
constexpr uint32_t kApiVersion = 17;

// A sentence for the user, which ONNX Runtime prefixes with the node.
struct Failure : std::runtime_error {
    Failure(OrtErrorCode error, std::string const& message) : std::runtime_error(message), code(error) {}
    OrtErrorCode code;
};

[[noreturn]] inline void refuse(std::string const& message) { throw Failure(ORT_INVALID_ARGUMENT, message); }

// Throws what a call of the API returned, if it did.
inline void check(OrtApi const& api, OrtStatus* status) {
    if (status == nullptr) { return; }
    std::string const message = api.GetErrorMessage(status);
    OrtErrorCode const code = api.GetErrorCode(status);
    api.ReleaseStatus(status);
    throw Failure(code, message);
}

// Runs `work`; what it throws becomes a status.
template <typename Work>
OrtStatus* guarded(OrtApi const& api, Work&& work) noexcept {
    try {
        work();
        return nullptr;
    } catch (Failure const& failure) {
        return api.CreateStatus(failure.code, failure.what());
    } catch (std::bad_alloc const&) {
        return api.CreateStatus(ORT_FAIL, "memory is short: the tensors of this call do not fit");
    } catch (std::exception const& error) {
        return api.CreateStatus(ORT_FAIL, error.what());
    } catch (...) {
        return api.CreateStatus(ORT_FAIL, "an unknown error");
    }
}

using Shape = std::vector<int64_t>;

inline std::string text(Shape const& shape) {
    std::string written = "[";
    for (size_t i = 0; i < shape.size(); ++i) { written += (i == 0 ? "" : ", ") + std::to_string(shape[i]); }
    return written + "]";
}

// An input: where it lies, and its shape.
struct Input {
    void const* data;
    Shape shape;
    ONNXTensorElementDataType type;

    template <typename T>
    T const* as() const noexcept {
        return static_cast<T const*>(data);
    }
};

// What a value of ONNX Runtime holds.
inline Input input_of(OrtApi const& api, OrtValue const* value) {
    OrtTensorTypeAndShapeInfo* raw = nullptr;
    check(api, api.GetTensorTypeAndShape(value, &raw));
    auto const release = [&api](OrtTensorTypeAndShapeInfo* held) { api.ReleaseTensorTypeAndShapeInfo(held); };
    std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> const info{raw, release};
    Input found{};
    size_t rank = 0;
    check(api, api.GetDimensionsCount(info.get(), &rank));
    found.shape.resize(rank);
    check(api, api.GetDimensions(info.get(), found.shape.data(), rank));
    check(api, api.GetTensorElementType(info.get(), &found.type));
    void* data = nullptr;
    check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));  // there is no other way to read
    found.data = data;
    return found;
}

// One call of a kernel: its inputs, outputs, threads and stream.
class Call {
public:
    Call(OrtApi const& api, OrtKernelContext* context) noexcept : mApi{api}, mContext{context} {}

    Input input(size_t index) const {
        OrtValue const* value = nullptr;
        check(mApi, mApi.KernelContext_GetInput(mContext, index, &value));
        return input_of(mApi, value);
    }

    template <typename T>
    T* output(size_t index, Shape const& shape) const {
        OrtValue* value = nullptr;
        check(mApi, mApi.KernelContext_GetOutput(mContext, index, shape.data(), shape.size(), &value));
        void* data = nullptr;
        check(mApi, mApi.GetTensorMutableData(value, &data));
        return static_cast<T*>(data);
    }

    // Calls work(0) ... work(total - 1) on the threads of the session. `work` must not throw.
    template <typename Work>
    void parallel(size_t total, Work const& work) const {
        static_assert(noexcept(work(size_t{})), "an exception cannot leave a thread of the session");
        if (total <= 1) {
            if (total == 1) { work(0); }
            return;
        }
        auto const step = [](void* data, size_t index) { (*static_cast<Work const*>(data))(index); };
        void* data = const_cast<void*>(static_cast<void const*>(&work));
        check(mApi, mApi.KernelContext_ParallelFor(mContext, step, total, 0, data));
    }

    // The CUDA stream that the node runs on.
    void* stream() const {
        void* stream = nullptr;
        check(mApi, mApi.KernelContext_GetGPUComputeStream(mContext, &stream));
        return stream;
    }

private:
    OrtApi const& mApi;
    OrtKernelContext* mContext;
};

// Attributes of a node.
class Attributes {
public:
    Attributes(OrtApi const& api, OrtKernelInfo const* info) noexcept : mApi{api}, mInfo{info} {}

    int64_t integer(char const* name) const {
        int64_t value = 0;
        check(mApi, mApi.KernelInfoGetAttribute_int64(mInfo, name, &value));
        return value;
    }

    // The attribute, or `absent` where the node lacks it.
    float number(char const* name, float absent) const {
        float value = 0;
        OrtStatus* status = mApi.KernelInfoGetAttribute_float(mInfo, name, &value);
        if (status == nullptr) { return value; }
        mApi.ReleaseStatus(status);
        return absent;
    }

    // An input that is an initializer.
    Input constant(size_t index) const {
        int constant = 0;
        OrtValue const* value = nullptr;
        check(mApi, mApi.KernelInfoGetConstantInput_tensor(mInfo, index, &constant, &value));
        if (constant == 0) { refuse("input " + std::to_string(index) + " has to be an initializer"); }
        return input_of(mApi, value);
    }

private:
    OrtApi const& mApi;
    OrtKernelInfo const* mInfo;
};

// What an op looks like from outside. A type of ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED stands for the engine's.
struct Signature {
    char const* name;
    std::vector<ONNXTensorElementDataType> inputs, outputs;
};

// An op for one provider and one engine data type, whose nodes are objects of `Kernel`:
// `Kernel(Attributes const&)` and `void run(Call const&) const`, both of which may throw.
template <typename Kernel>
class Op : public OrtCustomOp {
public:
    // `provider` is null for the CPU.
    Op(Signature signature, char const* provider, ONNXTensorElementDataType type)
        : OrtCustomOp{}, mSignature{std::move(signature)}, mProvider{provider} {
        for (auto* list : {&mSignature.inputs, &mSignature.outputs}) {
            for (auto& entry : *list) { entry = entry == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED ? type : entry; }
        }
        version = kApiVersion;
        GetName = [](OrtCustomOp const* op) { return self(op).mSignature.name; };
        GetExecutionProviderType = [](OrtCustomOp const* op) { return self(op).mProvider; };
        GetInputTypeCount = [](OrtCustomOp const* op) { return self(op).mSignature.inputs.size(); };
        GetInputType = [](OrtCustomOp const* op, size_t index) { return self(op).mSignature.inputs[index]; };
        GetOutputTypeCount = [](OrtCustomOp const* op) { return self(op).mSignature.outputs.size(); };
        GetOutputType = [](OrtCustomOp const* op, size_t index) { return self(op).mSignature.outputs[index]; };
        GetInputCharacteristic = [](OrtCustomOp const*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        GetOutputCharacteristic = [](OrtCustomOp const*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        GetInputMemoryType = [](OrtCustomOp const*, size_t) { return OrtMemTypeDefault; };
        GetVariadicInputMinArity = GetVariadicOutputMinArity = [](OrtCustomOp const*) { return 0; };
        GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](OrtCustomOp const*) { return 0; };
        GetStartVersion = [](OrtCustomOp const*) { return 1; };
        GetEndVersion = [](OrtCustomOp const*) { return 1; };
        CreateKernelV2 = [](OrtCustomOp const*, OrtApi const* api, OrtKernelInfo const* info, void** kernel) {
            return guarded(*api, [&] { *kernel = new Node{*api, Kernel{Attributes{*api, info}}}; });
        };
        KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
            auto const& node = *static_cast<Node const*>(kernel);
            return guarded(node.api, [&] { node.kernel.run(Call{node.api, context}); });
        };
        KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
    }

private:
    struct Node {
        OrtApi const& api;
        Kernel kernel;
    };

    static Op const& self(OrtCustomOp const* op) noexcept { return *static_cast<Op const*>(op); }

    Signature mSignature;
    char const* mProvider;
};

// The ops of docs/semantics.md, and those of the packed layout.
Signature aligned_attention_signature();
Signature token_compact_signature();
Signature packed_aligned_attention_signature();
Signature packed_token_compact_signature();
Signature varlen_attention_signature();
// A linear layer with an INT8 weight, and one with a GELU behind it.
Signature quantized_linear_signature();
Signature quantized_linear_gelu_signature();

// The ops that this library has, CPU first; they live as long as the process.
std::vector<OrtCustomOp const*> cpu_ops();
#ifdef MADTP_CUDA
std::vector<OrtCustomOp const*> cuda_ops();
#endif

}  // namespace madtp::onnxruntime
