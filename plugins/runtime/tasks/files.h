// Reading whole files that may come from anyone.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace madtp {

// The bytes of a regular file, which messages call `name`. Refused are other things in its place (a FIFO would be
// waited for without end) and more than `most` bytes.
std::vector<std::uint8_t> read_file(std::filesystem::path const& path, std::string const& name, std::size_t most);

}  // namespace madtp
