#include "shared_library.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <madtp/engine.hpp>
#include <stdexcept>

#include "files.h"

namespace madtp::detail {

SharedLibrary::SharedLibrary(std::vector<std::string> const& names, std::string const& noun, std::string const& fix) {
    std::string why;
    for (std::string const& name : names) {
        if (name.find('/') != std::string::npos) {
            try {
                File const file(name);  // dlopen waits for ever for what a pipe gives
            } catch (std::runtime_error const& error) {
                why += (why.empty() ? "" : "; ") + name + ": " + error.what();
                continue;
            }
        }
        handle_ = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (handle_ != nullptr) { break; }
        char const* error = ::dlerror();
        why += (why.empty() ? "" : "; ") + std::string(error == nullptr ? name : error);
    }
    if (handle_ == nullptr) { throw Error(Code::library, noun + " cannot be loaded", why + ".", fix); }
    link_map* map = nullptr;
    bool const known = ::dlinfo(handle_, RTLD_DI_LINKMAP, &map) == 0 && map->l_name != nullptr;
    path_ = known ? map->l_name : names.front();
}

void* SharedLibrary::find(char const* symbol) const noexcept { return ::dlsym(handle_, symbol); }

std::string folder_of_this_library() {
    Dl_info info;
    bool const known = ::dladdr(reinterpret_cast<void const*>(&folder_of_this_library), &info) != 0;
    return known && info.dli_fname != nullptr ? folder_of(info.dli_fname) : ".";
}

std::vector<std::string> names_of(std::string const& option, char const* variable, std::vector<std::string> usual) {
    if (!option.empty()) { return {option}; }
    char const* given = std::getenv(variable);
    if (given != nullptr && *given != '\0') { return {given}; }
    return usual;
}

}  // namespace madtp::detail
