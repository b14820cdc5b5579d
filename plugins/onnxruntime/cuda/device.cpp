#include "onnxruntime/cuda/device.h"

#include <limits>
#include <map>
#include <mutex>

namespace madtp::onnxruntime::cuda {
namespace {

constexpr uint64_t kKeptBytes = 256u << 20;  // that the pool keeps when a stream is waited for

std::string reason(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation: return "the GPU is out of memory. Use smaller batches, or free memory";
        case cudaErrorInvalidValue: return "it does not take these sizes, or a tensor that does not lie on 16 bytes";
        case cudaErrorNotSupported: return "bfloat16 needs compute capability 8.0 or newer";
        case cudaErrorNoKernelImageForDevice:
            return "the library has no code for this GPU. Build it with MADTP_SM=<compute capability without the dot>";
        default: return cudaGetErrorString(error);
    }
}

// The memory of every scratch of the current device. Made once, and left to the process: streams may outlive statics.
cudaMemPool_t pool() {
    static std::mutex mutex;
    static auto& pools = *new std::map<int, cudaMemPool_t>;
    int device = 0;
    check(cudaGetDevice(&device), "asking for the device");
    std::lock_guard<std::mutex> const lock{mutex};
    auto const found = pools.find(device);
    if (found != pools.end()) { return found->second; }
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t made = nullptr;
    check(cudaMemPoolCreate(&made, &properties), "making a pool of memory");
    uint64_t kept = kKeptBytes;
    check(cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &kept), "setting up a pool of memory");
    return pools.emplace(device, made).first->second;
}

}  // namespace

void check(cudaError_t error, char const* doing) {
    if (error == cudaSuccess) { return; }
    static_cast<void>(cudaGetLastError());  // the thread's last error is not for a later call to find
    throw Failure(ORT_EP_FAIL, std::string{doing} + " failed: " + reason(error));
}

int32_t kernel_dtype(Input const& input) {
    switch (input.type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return MADTP_FLOAT32;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return MADTP_FLOAT16;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return MADTP_BFLOAT16;
        default: refuse("a tensor is neither float32, float16 nor bfloat16");
    }
}

size_t element_bytes(Input const& input) { return kernel_dtype(input) == MADTP_FLOAT32 ? 4 : 2; }

int32_t narrow(int64_t size, char const* op, Input const& input) {
    if (size > std::numeric_limits<int32_t>::max()) {
        refuse(std::string{op} + " got " + text(input.shape) + ", more than its kernels can count");
    }
    return static_cast<int32_t>(size);
}

Scratch::Scratch(size_t bytes, cudaStream_t stream) : mStream{stream} {
    check(cudaMallocFromPoolAsync(&mMemory, bytes, pool(), stream), "getting memory for a kernel");
}

Scratch::~Scratch() { static_cast<void>(cudaFreeAsync(mMemory, mStream)); }

void copy(void* target, void const* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (bytes > 0) { check(cudaMemcpyAsync(target, source, bytes, kind, stream), "copying"); }
}

}  // namespace madtp::onnxruntime::cuda
