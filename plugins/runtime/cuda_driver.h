// The few calls of CUDA's driver that the engine makes itself. libcuda.so.1 is opened where it is needed.
#pragma once

#include <memory>

#include "shared_library.h"

namespace madtp::detail {

class CudaDriver {
public:
    CudaDriver();  // throws Code::library: there is none

    // Waits for what was queued on a stream of the caller. Throws Code::backend.
    void synchronize(void* stream) const;

private:
    SharedLibrary library_;
    int (*synchronize_)(void*);
};

}  // namespace madtp::detail
