// Stands in for the CUDA header of this name when kernels are compiled for the host. See README.md.
#pragma once
#include <cstddef>

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorNotSupported = 801
};

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

char const* cudaGetErrorString(cudaError_t error);

// The thread's last error: of a call that failed, until it is got.
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

// Memory of a pool and copies, in memory.cpp. One stream and one device are all there is.
using cudaMemPool_t = struct CUmemPoolHandle_st*;
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };

struct cudaMemLocation {
    cudaMemLocationType type;
    int id;
};

struct cudaMemPoolProps {
    cudaMemAllocationType allocType;
    cudaMemLocation location;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, cudaMemPoolProps const* properties);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMallocFromPoolAsync(void** memory, size_t bytes, cudaMemPool_t pool, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* target, void const* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
