// Kernels that TensorRT for RTX compiled, kept in a file between processes.
#pragma once

#include <mutex>
#include <string>
#include <string_view>

namespace madtp::detail {

class KernelFile {
public:
    // Empty: nothing is kept on disk. Throws Code::file: there is something that is no file, or it cannot be written.
    explicit KernelFile(std::string path);

    std::string content();                // empty where there is nothing yet
    void keep(std::string_view content);  // threads may call it; a disk that is full costs a cache, and no answer

private:
    std::string const path_;
    std::mutex mutex_;
    std::string content_;
};

}  // namespace madtp::detail
