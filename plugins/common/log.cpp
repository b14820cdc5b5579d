#include "common/log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace madtp {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};
constexpr int kLongestMessage = 1024;

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void log_error(char const* format, ...) noexcept {
    char message[kLongestMessage];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    nvinfer1::ILoggerFinder* const finder = logger_finder;
    nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger != nullptr)
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);
    else
        std::fprintf(stderr, "%s\n", message);
}

}  // namespace madtp
