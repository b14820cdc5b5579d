#include "tasks/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tasks/fail.h"

namespace madtp {
namespace {

class Descriptor {
public:
    explicit Descriptor(char const* path) : number_(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
    ~Descriptor() {
        if (number_ >= 0) { close(number_); }
    }
    Descriptor(Descriptor const&) = delete;
    Descriptor& operator=(Descriptor const&) = delete;
    int number() const { return number_; }

private:
    int number_;
};

[[noreturn]] void fail_to_read(std::string const& name, std::string const& why) {
    fail("cannot read " + name, why, "Name a file that is complete and may be read.");
}

}  // namespace

std::vector<std::uint8_t> read_file(std::filesystem::path const& path, std::string const& name, std::size_t most) {
    Descriptor const file(path.c_str());
    struct stat status {};
    if (file.number() < 0 || fstat(file.number(), &status) != 0) {
        fail_to_read(name, std::string(std::strerror(errno)) + ".");
    }
    if (!S_ISREG(status.st_mode)) { fail_to_read(name, "It is not a regular file."); }
    if (static_cast<std::uintmax_t>(status.st_size) > most) {
        fail_to_read(name, "It has more than " + std::to_string(most / 1'000'000) + " MB.");
    }
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(status.st_size));
    std::size_t done = 0;
    while (done < bytes.size()) {
        ssize_t const got = read(file.number(), bytes.data() + done, bytes.size() - done);
        if (got < 0 && errno == EINTR) { continue; }
        if (got < 0) { fail_to_read(name, std::string(std::strerror(errno)) + "."); }
        if (got == 0) { break; }  // it was cut while it was read
        done += static_cast<std::size_t>(got);
    }
    bytes.resize(done);
    return bytes;
}

}  // namespace madtp
