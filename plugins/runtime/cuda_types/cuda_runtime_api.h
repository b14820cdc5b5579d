// What TensorRT's headers need of CUDA's: types of pointers alone, as CUDA declares them. No CUDA has to be installed.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
