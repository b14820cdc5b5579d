#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "sha256.h"

namespace madtp::detail {
namespace {

constexpr std::size_t kChunk = 1 << 20;

[[noreturn]] void fail() { throw std::runtime_error(std::string(std::strerror(errno)) + "."); }

void check_regular(struct stat const& status) {
    if (S_ISREG(status.st_mode)) { return; }
    if (S_ISDIR(status.st_mode)) { throw std::runtime_error("It is a folder."); }
    char const* kind = S_ISFIFO(status.st_mode)                             ? "a pipe"
                       : S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode) ? "a device"
                       : S_ISSOCK(status.st_mode)                           ? "a socket"
                                                                            : "not a regular file";
    throw std::runtime_error(std::string("It is ") + kind + "; only regular files are read.");
}

}  // namespace

File::File(std::string const& path) {
    if (path.find('\0') != std::string::npos) { throw std::runtime_error("Its name holds a null character."); }
    struct stat status;
    if (::stat(path.c_str(), &status) != 0) { fail(); }
    check_regular(status);
    // O_NONBLOCK: what turns into a pipe between the question what it is and its opening is not waited for either.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor_ < 0) { fail(); }
    try {
        if (::fstat(descriptor_, &status) != 0) { fail(); }
        check_regular(status);
    } catch (...) {
        ::close(descriptor_);
        throw;
    }
    size_ = static_cast<uint64_t>(status.st_size);
}

File::~File() { ::close(descriptor_); }

std::size_t File::read(uint64_t offset, void* data, std::size_t size) const {
    std::size_t done = 0;
    while (done < size) {
        ssize_t const got =
            ::pread(descriptor_, static_cast<char*>(data) + done, size - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR) { continue; }
        if (got < 0) { fail(); }
        if (got == 0) { break; }
        done += static_cast<std::size_t>(got);
    }
    return done;
}

std::string read_file(std::string const& path, uint64_t most) {
    File const file(path);
    if (file.size() > most) {
        throw std::runtime_error(
            "It holds " + std::to_string(file.size()) + " bytes; at most " + std::to_string(most) + " are read.");
    }
    std::string content(file.size(), '\0');
    content.resize(file.read(0, content.data(), content.size()));
    return content;
}

std::string file_sha256(std::string const& path, uint64_t most) {
    File const file(path);
    if (file.size() > most) { throw std::runtime_error("It has " + std::to_string(file.size()) + " bytes."); }
    Sha256 hash;
    std::vector<char> chunk(kChunk);
    for (uint64_t offset = 0;;) {
        std::size_t const got = file.read(offset, chunk.data(), chunk.size());
        if (got == 0) { return hash.hex(); }
        hash.update(chunk.data(), got);
        offset += got;
    }
}

std::string sha256_of(std::string_view content) {
    Sha256 hash;
    hash.update(content.data(), content.size());
    return hash.hex();
}

std::string folder_of(std::string const& path) {
    auto const slash = path.rfind('/');
    if (slash == std::string::npos) { return "."; }
    return slash == 0 ? "/" : path.substr(0, slash);
}

std::string name_of_file(std::string const& path) { return path.substr(path.rfind('/') + 1); }

std::string suffix_of(std::string const& path) {
    std::string const name = name_of_file(path);
    auto const dot = name.rfind('.');
    return dot == std::string::npos || dot == 0 ? "" : name.substr(dot);
}

bool is_bare_name(std::string_view name) {
    return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
           name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

}  // namespace madtp::detail
