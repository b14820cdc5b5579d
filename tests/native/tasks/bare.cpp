// What the library says where it was compiled without libpng, libjpeg and ICU, and what works nonetheless.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "madtp/image.hpp"
#include "tasks/unicode.h"

namespace {

template <typename Call>
void report(Call const& call) {
    try {
        call();
    } catch (madtp::Error const& error) { std::printf("%s\n", error.what()); }
}

}  // namespace

int main(int count, char** given) {
    for (int i = 1; i < count; ++i) {
        report([&] { madtp::read_image(given[i]); });
    }
    report([] { madtp::code_points("a text", "the text"); });
    std::uint8_t const pixels[] = {0, 10, 20, 30, 40, 50};
    madtp::Image const image = madtp::resize({pixels, 2, 1, 6}, 1, 1);
    std::printf("'%s' %d %d %d\n", madtp::image_formats(), image.rgb[0], image.rgb[1], image.rgb[2]);
    return 0;
}
