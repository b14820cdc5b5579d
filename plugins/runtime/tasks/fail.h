// How these sources report what a user can correct.
#pragma once
#include <exception>
#include <new>
#include <string>

#include "madtp/engine.hpp"

namespace madtp {

[[noreturn]] inline void fail(std::string const& what, std::string const& why, std::string const& fix) {
    throw Error(Code::input, what, why, fix);
}

// Calls `function`; whatever it throws becomes an Error.
template <typename Function>
auto guarded(Function&& function) -> decltype(function()) {
    try {
        return function();
    } catch (Error const&) { throw; } catch (std::bad_alloc const&) {
        throw Error(Code::memory, "memory ran out", {}, "Ask with smaller batches or images, or free memory.");
    } catch (std::exception const& error) {
        throw Error(Code::internal, "a task failed where it should not", error.what(), "Report this.");
    }
}

}  // namespace madtp
