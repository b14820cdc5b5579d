#include "sha256.h"

#include <algorithm>

namespace madtp::detail {
namespace {

constexpr std::array<uint32_t, 64> kRound = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7,
    0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c,
    0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotate(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

}  // namespace

void Sha256::block(uint8_t const* bytes) {
    std::array<uint32_t, 64> words;
    for (std::size_t i = 0; i < 16; ++i) {
        uint8_t const* word = bytes + 4 * i;
        words[i] = uint32_t{word[0]} << 24 | uint32_t{word[1]} << 16 | uint32_t{word[2]} << 8 | word[3];
    }
    for (std::size_t i = 16; i < 64; ++i) {
        uint32_t const early = words[i - 15], late = words[i - 2];
        words[i] = words[i - 16] + (rotate(early, 7) ^ rotate(early, 18) ^ early >> 3) + words[i - 7] +
                   (rotate(late, 17) ^ rotate(late, 19) ^ late >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < 64; ++i) {
        uint32_t const first =
            h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + kRound[i] + words[i];
        uint32_t const second = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    std::array<uint32_t, 8> const mixed = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) { state_[i] += mixed[i]; }
}

void Sha256::update(void const* data, std::size_t size) {
    auto const* bytes = static_cast<uint8_t const*>(data);
    std::size_t filled = size_ % 64;
    size_ += size;
    while (size > 0) {
        if (filled == 0 && size >= 64) {
            block(bytes);
            bytes += 64, size -= 64;
            continue;
        }
        std::size_t const taken = std::min(size, 64 - filled);
        std::copy_n(bytes, taken, pending_.begin() + static_cast<std::ptrdiff_t>(filled));
        bytes += taken, size -= taken, filled += taken;
        if (filled == 64) {
            block(pending_.data());
            filled = 0;
        }
    }
}

std::string Sha256::hex() {
    uint64_t const bits = 8 * size_;
    uint8_t const one = 0x80, zero = 0;
    update(&one, 1);
    while (size_ % 64 != 56) { update(&zero, 1); }
    std::array<uint8_t, 8> length;
    for (std::size_t i = 0; i < 8; ++i) { length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i)); }
    update(length.data(), length.size());
    std::string text;
    for (uint32_t word : state_) {
        for (int shift = 28; shift >= 0; shift -= 4) { text += "0123456789abcdef"[word >> shift & 15]; }
    }
    return text;
}

}  // namespace madtp::detail
