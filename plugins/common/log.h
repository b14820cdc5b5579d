// Messages to TensorRT's logger, or to standard error where the library was given none.
#pragma once
#include <NvInferRuntime.h>

namespace madtp {

// Where TensorRT tells the library to find its logger; null forgets it.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// One message, formatted like printf: what is wrong, why, and what to do.
[[gnu::format(printf, 1, 2)]] void log_error(char const* format, ...) noexcept;

}  // namespace madtp
