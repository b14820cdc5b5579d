#include <madtp/engine.hpp>

#include "text.h"

namespace madtp {
namespace {

std::string lines(std::string const& summary, std::string const& why, std::string const& fix) {
    std::string text = summary;
    for (std::string const& line : {why, fix}) {
        if (!line.empty()) { text += "\n" + line; }
    }
    return text;
}

}  // namespace

Error::Error(Code code, std::string summary, std::string why, std::string fix)
    : std::runtime_error(detail::printable(lines(summary, why, fix))),
      code_(code),
      summary_(detail::printable(summary)),
      why_(detail::printable(why)),
      fix_(detail::printable(fix)) {}

Error::~Error() = default;  // here, so that all libraries of a program share its type information

}  // namespace madtp
