// Libraries that are opened at run time.
#pragma once

#include <string>
#include <vector>

namespace madtp::detail {

// An open library, which stays in the process: runtimes leave threads and exit handlers behind.
class SharedLibrary {
public:
    // The first of `names` that can be opened; `noun` is for messages. Throws Code::library.
    SharedLibrary(std::vector<std::string> const& names, std::string const& noun, std::string const& fix);

    std::string const& path() const noexcept { return path_; }  // of the file that was opened
    void* find(char const* symbol) const noexcept;              // null where it has none

private:
    void* handle_ = nullptr;
    std::string path_;
};

std::string folder_of_this_library();

// The names to try for a runtime: the option, else the environment variable, else the usual ones.
std::vector<std::string> names_of(std::string const& option, char const* variable, std::vector<std::string> usual);

}  // namespace madtp::detail
