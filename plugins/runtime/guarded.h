// What leaves the library: Errors alone.
#pragma once
#include <exception>
#include <new>

#include "madtp/engine.hpp"

namespace madtp::detail {

// Calls `function`; whatever it throws becomes an Error.
template <typename Function>
auto guarded(Function&& function) -> decltype(function()) {
    try {
        return function();
    } catch (Error const&) { throw; } catch (std::bad_alloc const&) {
        throw Error(Code::memory, "memory ran out", {}, "Ask with smaller batches or images, or free memory.");
    } catch (std::exception const& error) {
        throw Error(Code::internal, "the engine failed where it should not", error.what(), "Report this.");
    }
}

}  // namespace madtp::detail
