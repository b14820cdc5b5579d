/* madtp/engine.hpp for other languages. Nothing is thrown; every call that can fail returns an error, or NULL.
 *
 *     MadtpEngine* engine = NULL;
 *     MadtpError* error = madtp_engine_load("out.json", NULL, &engine);
 *     if (error != NULL) { fputs(madtp_error_summary(error), stderr); madtp_error_free(error); }
 *
 * What a call fills in is NULL where it failed. Every object is freed by its own function, which takes NULL too.
 */
#ifndef MADTP_ENGINE_H
#define MADTP_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#ifndef MADTP_RUNTIME_API
#define MADTP_RUNTIME_API __attribute__((visibility("default")))
#endif
#ifdef __cplusplus
#ifndef MADTP_NOEXCEPT
#define MADTP_NOEXCEPT noexcept
#endif
extern "C" {
#else
#ifndef MADTP_NOEXCEPT
#define MADTP_NOEXCEPT
#endif
#endif

typedef enum MadtpCode {
    MADTP_OK = 0,
    MADTP_ERROR_MANIFEST = 1, /* missing, malformed, changed, or of another version */
    MADTP_ERROR_FILE = 2,     /* missing, no regular file, or another than the manifest describes */
    MADTP_ERROR_LIBRARY = 3,  /* cannot be loaded, is of another version, or not of this project */
    MADTP_ERROR_BACKEND = 4,  /* the runtime refuses the artifact, or failed while it ran */
    MADTP_ERROR_INPUT = 5,    /* an option or input that the artifact cannot take */
    MADTP_ERROR_MEMORY = 6,   /* memory ran out, on the host or the device */
    MADTP_ERROR_BUSY = 7,     /* the session is answering another thread */
    MADTP_ERROR_INTERNAL = 8  /* a defect of this library */
} MadtpCode;

typedef enum MadtpType {
    MADTP_TYPE_FLOAT32 = 0,
    MADTP_TYPE_FLOAT16 = 1,
    MADTP_TYPE_INT32 = 2,
    MADTP_TYPE_INT64 = 3
} MadtpType;
typedef enum MadtpDevice { MADTP_DEVICE_HOST = 0, MADTP_DEVICE_CUDA = 1 } MadtpDevice;

typedef struct MadtpError MadtpError;
typedef struct MadtpEngine MadtpEngine;   /* threads may share it */
typedef struct MadtpSession MadtpSession; /* one thread at a time */
typedef struct MadtpOutputs MadtpOutputs;

/* What is wrong, why, and what to do; the latter two may be "". They live as long as the error. */
MADTP_RUNTIME_API MadtpCode madtp_error_code(MadtpError const* error) MADTP_NOEXCEPT;
MADTP_RUNTIME_API char const* madtp_error_summary(MadtpError const* error) MADTP_NOEXCEPT;
MADTP_RUNTIME_API char const* madtp_error_why(MadtpError const* error) MADTP_NOEXCEPT;
MADTP_RUNTIME_API char const* madtp_error_fix(MadtpError const* error) MADTP_NOEXCEPT;
MADTP_RUNTIME_API void madtp_error_free(MadtpError* error) MADTP_NOEXCEPT;

/* As madtp::EngineOptions; zero and NULL are the defaults. */
typedef struct MadtpEngineOptions {
    size_t size; /* sizeof(MadtpEngineOptions): later versions may append fields */
    MadtpDevice device;
    int32_t device_id;
    int32_t threads;
    int32_t no_cuda_graphs;
    char const* runtime_library;
    char const* op_library;
    char const* kernel_cache;
    void* stream;
} MadtpEngineOptions;

MADTP_RUNTIME_API MadtpError* madtp_engine_load(
    char const* path, MadtpEngineOptions const* options, MadtpEngine** engine) MADTP_NOEXCEPT;
MADTP_RUNTIME_API void madtp_engine_free(MadtpEngine* engine) MADTP_NOEXCEPT; /* sessions of it go on */

/* Strings live as long as the engine. */
MADTP_RUNTIME_API char const* madtp_engine_task(MadtpEngine const* engine) MADTP_NOEXCEPT;
MADTP_RUNTIME_API char const* madtp_engine_layout(MadtpEngine const* engine) MADTP_NOEXCEPT;
MADTP_RUNTIME_API char const* madtp_engine_execution(MadtpEngine const* engine) MADTP_NOEXCEPT;
MADTP_RUNTIME_API float madtp_engine_temperature(MadtpEngine const* engine) MADTP_NOEXCEPT;
MADTP_RUNTIME_API int64_t madtp_engine_max_batch(MadtpEngine const* engine) MADTP_NOEXCEPT;
MADTP_RUNTIME_API int64_t madtp_engine_usual_batch(MadtpEngine const* engine) MADTP_NOEXCEPT;
MADTP_RUNTIME_API size_t madtp_engine_parts(MadtpEngine const* engine) MADTP_NOEXCEPT;
MADTP_RUNTIME_API char const* madtp_engine_part(MadtpEngine const* engine, size_t index) MADTP_NOEXCEPT; /* or NULL */

MADTP_RUNTIME_API MadtpError* madtp_session_open(MadtpEngine const* engine, MadtpSession** session) MADTP_NOEXCEPT;
MADTP_RUNTIME_API void madtp_session_free(MadtpSession* session) MADTP_NOEXCEPT;

/* Of a session, since it was opened: calls; batches that ran; batches that ran again on the next bucket, because their
 * tokens did not fit; runs that replayed a CUDA graph. */
typedef struct MadtpStatistics {
    int64_t calls;
    int64_t runs;
    int64_t overflows;
    int64_t graph_replays;
} MadtpStatistics;

MADTP_RUNTIME_API MadtpStatistics madtp_session_statistics(MadtpSession const* session) MADTP_NOEXCEPT;

typedef struct MadtpInput {
    char const* name;
    void const* data; /* row-major and contiguous; lives until the call returns */
    MadtpType type;
    MadtpDevice device;
    int64_t const* shape;
    size_t dimensions;
} MadtpInput;

/* As madtp::RunOptions. */
typedef struct MadtpRunOptions {
    size_t size; /* sizeof(MadtpRunOptions) */
    int32_t has_temperature;
    float temperature;
    int64_t batch;
    MadtpDevice outputs;
    void* stream;
} MadtpRunOptions;

/* Runs a part; `options` may be NULL. */
MADTP_RUNTIME_API MadtpError* madtp_session_infer(MadtpSession* session, char const* part, MadtpInput const* inputs,
    size_t count, MadtpRunOptions const* options, MadtpOutputs** outputs) MADTP_NOEXCEPT;

typedef struct MadtpOutput {
    char const* name;
    void const* data;
    MadtpType type;
    MadtpDevice device;
    int64_t const* shape;
    size_t dimensions;
} MadtpOutput;

/* Outputs in the order of their names; what they point to lives as long as `outputs`. */
MADTP_RUNTIME_API size_t madtp_outputs_count(MadtpOutputs const* outputs) MADTP_NOEXCEPT;
MADTP_RUNTIME_API MadtpError* madtp_outputs_at(
    MadtpOutputs const* outputs, size_t index, MadtpOutput* output) MADTP_NOEXCEPT;
MADTP_RUNTIME_API MadtpError* madtp_outputs_find(
    MadtpOutputs const* outputs, char const* name, MadtpOutput* output) MADTP_NOEXCEPT;
MADTP_RUNTIME_API void madtp_outputs_free(MadtpOutputs* outputs) MADTP_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
