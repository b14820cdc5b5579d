// CUDA for the ops: errors as sentences, memory that is given and taken back in the order of a stream, types.
#pragma once
#include "madtp/kernels.h"
#include "onnxruntime/op.h"

namespace madtp::onnxruntime::cuda {

// Throws what a call of CUDA or of the kernels returned, if it failed; `doing` completes "... failed".
void check(cudaError_t error, char const* doing);

// MADTP_FLOAT32, ... of an input.
int32_t kernel_dtype(Input const& input);
size_t element_bytes(Input const& input);

// A size as the kernels take it. Refuses what does not fit, in words about `input` of `op`.
int32_t narrow(int64_t size, char const* op, Input const& input);

// Device memory for what is enqueued on `stream` while it lives. Where the stream has got past that, it may serve others.
// ONNX Runtime's own call for this (KernelContext_GetScratchBuffer) ends the process where memory is short.
class Scratch {
public:
    Scratch(size_t bytes, cudaStream_t stream);
    ~Scratch();
    Scratch(Scratch const&) = delete;
    Scratch& operator=(Scratch const&) = delete;

    template <typename T = void>
    T* get() const noexcept {
        return static_cast<T*>(mMemory);
    }

private:
    cudaStream_t mStream;
    void* mMemory = nullptr;
};

void copy(void* target, void const* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);

}  // namespace madtp::onnxruntime::cuda
