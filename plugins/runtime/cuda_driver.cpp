#include "cuda_driver.h"

#include <algorithm>
#include <madtp/engine.hpp>

namespace madtp::detail {
namespace {

constexpr int kOutOfMemory = 2;
constexpr unsigned kNonBlocking = 1;  // the stream does not wait for the legacy default stream

}  // namespace

template <typename Function>
void CudaDriver::find(Function& function, char const* name) {
    function = reinterpret_cast<Function>(library_.find(name));
    if (function == nullptr) {
        throw Error(Code::library, "CUDA's driver has no " + std::string(name), "It is too old.",
            "Install a driver for CUDA 12 or later.");
    }
}

CudaDriver::CudaDriver()
    : library_({"libcuda.so.1"}, "CUDA's driver", "Use a machine with an NVIDIA GPU and its driver, or the CPU.") {
    find(init, "cuInit");
    find(get_device, "cuDeviceGet");
    find(retain_context, "cuDevicePrimaryCtxRetain");
    find(release_context, "cuDevicePrimaryCtxRelease_v2");
    find(push_context, "cuCtxPushCurrent_v2");
    find(pop_context, "cuCtxPopCurrent_v2");
    find(allocate, "cuMemAlloc_v2");
    find(free, "cuMemFree_v2");
    find(copy_to_device, "cuMemcpyHtoDAsync_v2");
    find(copy_to_host, "cuMemcpyDtoHAsync_v2");
    find(create_stream, "cuStreamCreate");
    find(destroy_stream, "cuStreamDestroy_v2");
    find(wait_for, "cuStreamSynchronize");
    find(begin_capture, "cuStreamBeginCapture_v2");
    find(end_capture, "cuStreamEndCapture");
    find(instantiate, "cuGraphInstantiateWithFlags");
    find(launch, "cuGraphLaunch");
    find(destroy_graph, "cuGraphDestroy");
    find(destroy_executable, "cuGraphExecDestroy");
    find(describe, "cuGetErrorString");
}

void CudaDriver::check(int status, std::string const& what) const {
    if (status == 0) { return; }
    char const* text = nullptr;
    describe(status, &text);
    std::string const why =
        "CUDA's driver says: " + (text == nullptr ? std::to_string(status) : std::string(text)) + ".";
    if (status == kOutOfMemory) {
        throw Error(
            Code::memory, what + ": the GPU's memory is short", why, "Ask with smaller batches, or free the GPU.");
    }
    throw Error(Code::backend, what + " failed", why, "Look at the GPU and its driver with nvidia-smi.");
}

void CudaDriver::synchronize(void* stream) const {
    if (int const status = wait_for(stream); status != 0) {
        throw Error(Code::backend, "waiting for the stream that was given failed",
            "CUDA's driver returned " + std::to_string(status) +
                ": it is no stream of this process, or earlier work failed.");
    }
}

CudaDevice::CudaDevice(int ordinal) {
    driver_.check(driver_.init(0), "starting CUDA");
    if (ordinal < 0 || driver_.get_device(&device_, ordinal) != 0) {
        throw Error(Code::input, "there is no GPU " + std::to_string(ordinal), "CUDA counts them from 0.",
            "Choose another device_id; nvidia-smi lists them.");
    }
    driver_.check(driver_.retain_context(&context_, device_), "opening the GPU");
}

CudaDevice::~CudaDevice() { driver_.release_context(device_); }

CudaDevice::Use::Use(CudaDevice const& device) : driver_(device.driver_) {
    driver_.check(driver_.push_context(device.context_), "choosing the GPU");
}

CudaDevice::Use::~Use() {
    void* context = nullptr;
    driver_.pop_context(&context);
}

DeviceMemory::DeviceMemory(std::shared_ptr<CudaDevice const> device, std::size_t bytes)
    : device_(std::move(device)), bytes_(bytes) {
    CudaDevice::Use const use(*device_);
    device_->driver().check(
        device_->driver().allocate(&address_, std::max<std::size_t>(bytes, 1)), std::to_string(bytes) + " bytes");
}

DeviceMemory::~DeviceMemory() {
    try {
        CudaDevice::Use const use(*device_);
        device_->driver().free(address_);
    } catch (Error const&) {  // the driver is gone, and the memory with it
    }
}

CudaStream::CudaStream(std::shared_ptr<CudaDevice const> device) : device_(std::move(device)) {
    CudaDevice::Use const use(*device_);
    device_->driver().check(device_->driver().create_stream(&stream_, kNonBlocking), "making a stream");
}

CudaStream::~CudaStream() {
    try {
        CudaDevice::Use const use(*device_);
        device_->driver().destroy_stream(stream_);
    } catch (Error const&) {  // as above
    }
}

}  // namespace madtp::detail
