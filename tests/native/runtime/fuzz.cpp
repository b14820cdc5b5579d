// The loader of manifests and artifacts against inputs that nobody meant: it may refuse them, and nothing else.
//
//     fuzz SECONDS SEED FILE [FILE ...]
//
// A mutation driver, for compilers without libFuzzer: the same seed gives the same inputs. With clang,
// -fsanitize=fuzzer and -DMADTP_LIBFUZZER take the function below alone.
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <madtp/engine.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "build_line.h"
#include "files.h"
#include "manifest.h"
#include "onnx_file.h"

namespace {

// A file in memory under a name; reading it anew costs no disk.
class MemoryFile {
public:
    MemoryFile() : descriptor_(::memfd_create("fuzz", 0)), path_("/proc/self/fd/" + std::to_string(descriptor_)) {}
    ~MemoryFile() { ::close(descriptor_); }

    std::string const& write(std::string const& content) const {
        bool const written = ::ftruncate(descriptor_, 0) == 0 && ::pwrite(descriptor_, content.data(), content.size(),
                                                                     0) == static_cast<ssize_t>(content.size());
        if (!written) { throw std::runtime_error("the file in memory cannot be written"); }
        return path_;
    }

private:
    int descriptor_;
    std::string path_;
};

int accepted = 0;

template <typename Function>
void attempt(Function&& function) {
    try {
        function();
        ++accepted;
    } catch (madtp::Error const&) {
    } catch (std::runtime_error const&) {  // of the functions that File and Field are behind
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, std::size_t size) {
    static MemoryFile const file;
    std::string const content(reinterpret_cast<char const*>(data), size);
    std::string const& path = file.write(content);
    if (size > 0 && (content[0] == '{' || content[0] == '[')) {
        attempt([&] { madtp::detail::read_manifest(content, "/nowhere/out.json"); });
        attempt([&] { madtp::detail::check_files(madtp::detail::open_manifest(path)); });
    } else {
        attempt([&] { madtp::detail::external_locations(path); });
        attempt([&] { madtp::detail::loadable_library(path, "madtp-onnxruntime", "op library"); });
    }
    return 0;
}

#ifndef MADTP_LIBFUZZER
namespace {

char const* const kTokens[] = {"null", "true", "-1", "0", "1e999", "9223372036854775808", "-9223372036854775809",
    "\"\"", "[]", "{}", "\"..\"", "\"a/b\"", "\\u0000", "\\ud800", "4294967296", "1.5", "\"\\u202e\"", "[[[[[[[[",
    "\xff\xfe", "madtp-onnxruntime {\"version\": \"0.1.0\", \"source\": \"\", \"sm\": \"80,\"}"};

class Mutator {
public:
    Mutator(std::vector<std::string> corpus, uint64_t seed) : corpus_(std::move(corpus)), random_(seed) {}

    std::string next() {
        std::string text = pick(corpus_);
        for (std::size_t i = 1 + below(4); i > 0; --i) { change(text); }
        return text;
    }

private:
    std::size_t below(std::size_t limit) { return limit == 0 ? 0 : random_() % limit; }
    std::string const& pick(std::vector<std::string> const& all) { return all[below(all.size())]; }

    // A number or word of a JSON text, or a few bytes of anything else.
    std::pair<std::size_t, std::size_t> token(std::string const& text) {
        std::size_t const at = text.find_first_of(":,[", below(text.size()));
        if (at == std::string::npos) { return {below(text.size()), below(8)}; }
        std::size_t const begin = std::min(text.find_first_not_of(":,[ \n", at), text.size());
        std::size_t const end = std::min(text.find_first_of(",]}\n", begin), text.size());
        return {begin, end - begin};
    }

    void change(std::string& text) {
        std::size_t const at = below(text.size() + 1), length = below(std::min<std::size_t>(text.size() - at, 64) + 1);
        switch (below(8)) {
        case 0:
            if (at < text.size()) { text[at] = static_cast<char>(text[at] ^ (1 << below(8))); }
            return;
        case 1:
            if (at < text.size()) { text[at] = static_cast<char>(random_()); }
            return;
        case 2: text.erase(at, length); return;
        case 3: text.insert(at, text.substr(at, length)); return;
        case 4: text.resize(at); return;
        case 5: {
            std::string const& other = pick(corpus_);
            std::size_t const from = below(other.size());
            text.insert(at, other.substr(from, below(200)));
            return;
        }
        default: {
            auto const [begin, size] = token(text);
            text.replace(begin, size, kTokens[below(std::size(kTokens))]);
        }
        }
    }

    std::vector<std::string> corpus_;
    std::mt19937_64 random_;
};

}  // namespace

int main(int count, char** given) {
    if (count < 4) {
        std::fprintf(stderr, "usage: fuzz SECONDS SEED FILE [FILE ...]\n");
        return 2;
    }
    std::vector<std::string> corpus;
    for (int i = 3; i < count; ++i) { corpus.push_back(madtp::detail::read_file(given[i], 1 << 20)); }
    for (std::string const& one : corpus) {
        LLVMFuzzerTestOneInput(reinterpret_cast<uint8_t const*>(one.data()), one.size());
    }
    Mutator mutator(corpus, std::strtoull(given[2], nullptr, 10));
    auto const end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(given[1]));
    int inputs = 0;
    for (; std::chrono::steady_clock::now() < end; ++inputs) {
        std::string const text = mutator.next();
        LLVMFuzzerTestOneInput(reinterpret_cast<uint8_t const*>(text.data()), text.size());
    }
    std::printf("%d inputs, %d times accepted\n", inputs, accepted);
    return 0;
}
#endif
