// Stands in for the CUDA header of this name when kernels are compiled for the host. See README.md.
#pragma once
#include <cstddef>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNotSupported = 801 };

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

char const* cudaGetErrorString(cudaError_t error);

// The thread's last error: of a call that failed, until it is got.
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
