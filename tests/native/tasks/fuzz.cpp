// Damaged images and arbitrary texts for a number of seconds: each is taken, or refused with a madtp::Error.
//
//     fuzz SECONDS THREADS TASK VOCABULARY VOCABULARY_SIZE IMAGE...
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "madtp/tasks.hpp"

namespace {

using Random = std::mt19937;

std::string content(char const* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

uint32_t crc(std::string const& data, std::size_t begin, std::size_t end) {
    uint32_t sum = 0xffffffff;
    for (std::size_t at = begin; at < end; ++at) {
        sum ^= static_cast<unsigned char>(data[at]);
        for (int bit = 0; bit < 8; ++bit) { sum = sum >> 1 ^ (sum & 1 ? 0xedb88320 : 0); }
    }
    return ~sum;
}

// Right checksums for the chunks of a PNG file, without which nothing else in it would be looked at.
void repair(std::string& data) {
    auto const number = [&](std::size_t at) {
        uint32_t value = 0;
        for (std::size_t i = 0; i < 4; ++i) { value = value << 8 | static_cast<unsigned char>(data[at + i]); }
        return value;
    };
    for (std::size_t at = 8; at + 12 <= data.size();) {
        std::size_t const end = at + 8 + number(at);
        if (end + 4 > data.size()) { return; }
        uint32_t const sum = crc(data, at + 4, end);
        for (std::size_t i = 0; i < 4; ++i) { data[end + i] = static_cast<char>(sum >> (24 - 8 * i)); }
        at = end + 4;
    }
}

std::string damaged(std::string data, Random& random) {
    for (unsigned changes = 1 + random() % 6; changes > 0 && !data.empty(); --changes) {
        std::size_t const at = random() % (random() % 2 == 0 ? data.size() : std::min<std::size_t>(data.size(), 200));
        switch (random() % 5) {
            case 0: data.resize(at); break;
            case 1: data.insert(at, data, random() % data.size(), random() % 40); break;
            case 2: data.erase(at, random() % 40); break;
            default: data[at] = static_cast<char>(random() % 3 == 0 ? 0xff : random()); break;
        }
    }
    if (random() % 4 != 0) { repair(data); }
    return data;
}

std::string text(Random& random) {
    std::string result;
    for (unsigned size = random() % 60; size > 0; --size) {
        uint32_t const code = random() % 4 == 0 ? random() % 0x120000 : random() % (random() % 2 == 0 ? 0x80 : 0x3000);
        if (random() % 50 == 0) { result += static_cast<char>(random()); }  // perhaps no UTF-8
        auto const next = [&](int shift) { result += static_cast<char>(0x80 | (code >> shift & 63)); };
        if (code < 0x80) {
            result += static_cast<char>(code);
        } else if (code < 0x800) {
            result += static_cast<char>(0xc0 | code >> 6);
        } else if (code < 0x10000) {
            result += static_cast<char>(0xe0 | code >> 12);
        } else {
            result += static_cast<char>(0xf0 | code >> 18);
        }
        if (code >= 0x10000) { next(12); }
        if (code >= 0x800) { next(6); }
        if (code >= 0x80) { next(0); }
        if (random() % 20 == 0) { result += "[SEP]"; }
    }
    return result;
}

madtp::Manifest manifest(char const* task, int64_t size) {
    madtp::Manifest result;
    result.task = task;
    result.text.tokenizer = "bert-wordpiece";
    result.text.dropped = "[.!\"()*#:;~]";
    result.text.dropped_as = " ";
    result.text.max_words = 40;
    result.config = {{"vocab_size", size}, {"max_position", 512}, {"pad_token_id", 0}, {"cls_token_id", 2},
        {"sep_token_id", 3}, {"bos_token_id", size - 2}, {"enc_token_id", size - 1}};
    return result;
}

}  // namespace

int main(int count, char** given) {
    if (count < 7) { return 2; }
    auto const end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(given[1]));
    madtp::TextReader const reader(manifest(given[3], std::atoll(given[5])), given[4]);
    std::vector<std::string> images;
    for (int i = 6; i < count; ++i) { images.push_back(content(given[i])); }
    std::atomic<long> asked{0}, taken{0};
    std::vector<std::thread> threads;
    for (int number = 0; number < std::atoi(given[2]); ++number) {
        threads.emplace_back([&, number] {
            Random random(static_cast<unsigned>(number));
            while (std::chrono::steady_clock::now() < end) {
                std::string const data = damaged(images[random() % images.size()], random);
                std::string const words = text(random);
                asked += 2;
                try {
                    madtp::Image const image = madtp::decode_image(data.data(), data.size(), "x", random() % 2 == 0);
                    madtp::resize(image, 1 + static_cast<int>(random() % 40), 1 + static_cast<int>(random() % 40));
                    ++taken;
                } catch (madtp::Error const&) {}  // refused, which is right
                try {
                    reader.decode(random() % 2 == 0 ? reader.ids(words, true) : reader.answer_ids(words));
                    ++taken;
                } catch (madtp::Error const&) {}
            }
        });
    }
    for (std::thread& thread : threads) { thread.join(); }
    std::printf("%ld inputs, %ld times accepted\n", asked.load(), taken.load());
    return 0;
}
