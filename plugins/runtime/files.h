// Reading files that others made: regular ones, of a size that is checked first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace madtp::detail {

// A regular file, open for reading: a pipe could be waited for, and a device read, for ever. Functions throw
// std::runtime_error, whose text says why.
class File {
public:
    explicit File(std::string const& path);
    File(File const&) = delete;
    File& operator=(File const&) = delete;
    ~File();

    uint64_t size() const noexcept { return size_; }
    // Bytes read at an offset: fewer than asked for only at the end.
    std::size_t read(uint64_t offset, void* data, std::size_t size) const;

private:
    int descriptor_ = -1;
    uint64_t size_ = 0;
};

std::string read_file(std::string const& path, uint64_t most);  // also refuses a file of more than `most` bytes
std::string file_sha256(std::string const& path, uint64_t most);
std::string sha256_of(std::string_view content);

std::string folder_of(std::string const& path);  // "." where it has none
std::string name_of_file(std::string const& path);
std::string suffix_of(std::string const& path);  // ".onnx"
bool is_bare_name(std::string_view name);        // no path leads elsewhere

}  // namespace madtp::detail
