#include <madtp/engine.hpp>

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
    : std::runtime_error(lines(summary, why, fix)),
      code_(code),
      summary_(std::move(summary)),
      why_(std::move(why)),
      fix_(std::move(fix)) {}

Error::~Error() = default;  // here, so that all libraries of a program share its type information

}  // namespace madtp
