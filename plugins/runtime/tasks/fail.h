// How these sources report what a user can correct.
#pragma once
#include <string>

#include "guarded.h"
#include "madtp/engine.hpp"

namespace madtp {

[[noreturn]] inline void fail(std::string const& what, std::string const& why, std::string const& fix) {
    throw Error(Code::input, what, why, fix);
}

using detail::guarded;

}  // namespace madtp
