#include "kernel_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <madtp/engine.hpp>
#include <stdexcept>

#include "files.h"
#include "text.h"

namespace madtp::detail {
namespace {

constexpr uint64_t kMostBytes = 1ull << 32;

}  // namespace

KernelFile::KernelFile(std::string path) : path_(std::move(path)) {
    if (path_.empty()) { return; }
    std::string const fix = "Name another file in EngineOptions::kernel_cache.";
    if (::access(folder_of(path_).c_str(), W_OK) != 0) {
        throw Error(Code::file, "the cache of kernels " + in_quotes(path_) + " cannot be written",
            "Its folder is missing, or not yours to write in.", fix);
    }
    if (::access(path_.c_str(), F_OK) != 0) { return; }
    try {
        content_ = read_file(path_, kMostBytes);
    } catch (std::runtime_error const& error) {
        throw Error(Code::file, "the cache of kernels " + in_quotes(path_) + " cannot be read", error.what(), fix);
    }
}

std::string KernelFile::content() {
    std::lock_guard const lock(mutex_);
    return content_;
}

void KernelFile::keep(std::string_view content) {
    std::lock_guard const lock(mutex_);
    if (content == content_) { return; }
    content_ = content;
    if (path_.empty()) { return; }
    std::string fresh = path_ + ".XXXXXX";  // of this call alone: other engines may keep theirs in the same file
    int const descriptor = ::mkstemp(fresh.data());
    if (descriptor < 0) { return; }
    ::fchmod(descriptor, 0644);  // others who share the folder read it
    ::close(descriptor);
    std::ofstream file(fresh, std::ios::binary);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    file.close();
    if (!file || std::rename(fresh.c_str(), path_.c_str()) != 0) { std::remove(fresh.c_str()); }
}

}  // namespace madtp::detail
