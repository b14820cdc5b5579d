// CUDA's driver, through the calls that the engine makes itself. libcuda.so.1 is opened where it is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "shared_library.h"

namespace madtp::detail {

class CudaDriver {
public:
    CudaDriver();  // throws Code::library: there is none

    // Functions of https://docs.nvidia.com/cuda/cuda-driver-api/; all return a CUresult. Handles are pointers.
    int (*init)(unsigned flags) = nullptr;
    int (*get_device)(int* device, int ordinal) = nullptr;
    int (*retain_context)(void** context, int device) = nullptr;
    int (*release_context)(int device) = nullptr;
    int (*push_context)(void* context) = nullptr;
    int (*pop_context)(void** context) = nullptr;
    int (*allocate)(uint64_t* address, std::size_t bytes) = nullptr;
    int (*free)(uint64_t address) = nullptr;
    int (*copy_to_device)(uint64_t to, void const* from, std::size_t bytes, void* stream) = nullptr;
    int (*copy_to_host)(void* to, uint64_t from, std::size_t bytes, void* stream) = nullptr;
    int (*create_stream)(void** stream, unsigned flags) = nullptr;
    int (*destroy_stream)(void* stream) = nullptr;
    int (*wait_for)(void* stream) = nullptr;
    int (*begin_capture)(void* stream, int mode) = nullptr;
    int (*end_capture)(void* stream, void** graph) = nullptr;
    int (*instantiate)(void** executable, void* graph, unsigned long long flags) = nullptr;
    int (*launch)(void* executable, void* stream) = nullptr;
    int (*destroy_graph)(void* graph) = nullptr;
    int (*destroy_executable)(void* executable) = nullptr;
    int (*describe)(int status, char const** text) = nullptr;

    // Throws what a status says: Code::memory, or Code::backend with what was done.
    void check(int status, std::string const& what) const;

    // Waits for what was queued on a stream of the caller. Throws Code::backend.
    void synchronize(void* stream) const;

private:
    template <typename Function>
    void find(Function& function, char const* name);

    SharedLibrary library_;
};

// A GPU, through the context that CUDA's runtime, and so TensorRT, uses too.
class CudaDevice {
public:
    explicit CudaDevice(int ordinal);  // throws Code::library: no driver; Code::input: no such GPU
    CudaDevice(CudaDevice const&) = delete;
    ~CudaDevice();

    CudaDriver const& driver() const noexcept { return driver_; }

    // Makes it the GPU of this thread as long as it lives.
    class Use {
    public:
        explicit Use(CudaDevice const& device);
        Use(Use const&) = delete;
        ~Use();

    private:
        CudaDriver const& driver_;
    };

private:
    CudaDriver driver_;
    int device_ = 0;
    void* context_ = nullptr;
};

class DeviceMemory {
public:
    DeviceMemory(std::shared_ptr<CudaDevice const> device, std::size_t bytes);  // throws Code::memory
    DeviceMemory(DeviceMemory const&) = delete;
    ~DeviceMemory();

    void* data() const noexcept { return reinterpret_cast<void*>(address_); }
    uint64_t address() const noexcept { return address_; }
    std::size_t bytes() const noexcept { return bytes_; }

private:
    std::shared_ptr<CudaDevice const> device_;
    uint64_t address_ = 0;
    std::size_t bytes_ = 0;
};

class CudaStream {
public:
    explicit CudaStream(std::shared_ptr<CudaDevice const> device);
    CudaStream(CudaStream const&) = delete;
    ~CudaStream();

    void* get() const noexcept { return stream_; }

private:
    std::shared_ptr<CudaDevice const> device_;
    void* stream_ = nullptr;
};

}  // namespace madtp::detail
