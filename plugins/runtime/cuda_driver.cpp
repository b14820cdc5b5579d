#include "cuda_driver.h"

#include <madtp/engine.hpp>

namespace madtp::detail {

CudaDriver::CudaDriver()
    : library_({"libcuda.so.1"}, "CUDA's driver", "Install a driver, or leave the stream out."),
      synchronize_(reinterpret_cast<int (*)(void*)>(library_.find("cuStreamSynchronize"))) {
    if (synchronize_ == nullptr) { throw Error(Code::library, "CUDA's driver has no cuStreamSynchronize"); }
}

void CudaDriver::synchronize(void* stream) const {
    if (int const status = synchronize_(stream); status != 0) {
        throw Error(Code::backend, "waiting for the stream that was given failed",
            "CUDA's driver returned " + std::to_string(status) +
                ": it is no stream of this process, or earlier work failed.");
    }
}

}  // namespace madtp::detail
