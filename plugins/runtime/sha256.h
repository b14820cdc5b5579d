// SHA-256, as FIPS 180-4 defines it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace madtp::detail {

class Sha256 {
public:
    void update(void const* data, std::size_t size);
    std::string hex();  // digest; nothing may be added afterwards

private:
    void block(uint8_t const* bytes);

    std::array<uint32_t, 8> state_{
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> pending_{};
    uint64_t size_ = 0;
};

}  // namespace madtp::detail
