/* The CUDA kernels of the two custom ops, without TensorRT: raw device pointers, sizes, a workspace and a stream.
 *
 * What they compute is written down in docs/semantics.md; `madtp/ops/reference.py` is the readable reference. All calls are
 * asynchronous, allocate nothing, never synchronise, and may be captured into a CUDA graph. Results are bit-identical
 * from run to run, and a sample's AlignedAttention does not depend on its batch mates.
 *
 * Dimensions: B samples, L tokens with the class token at index 0, N = L - 1, C width, T alignment tokens.
 */
#ifndef MADTP_KERNELS_H
#define MADTP_KERNELS_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

/* Shown by the library, however it is compiled. */
#define MADTP_API __attribute__((visibility("default")))
#ifdef __cplusplus
#define MADTP_NOEXCEPT noexcept
extern "C" {
#else
#define MADTP_NOEXCEPT
#endif

enum {
    MADTP_FLOAT32 = 0,
    MADTP_FLOAT16 = 1,
    MADTP_BFLOAT16 = 2, /* needs compute capability 8.0 in AlignedAttention */
    MADTP_MAX_HEAD_SIZE = 256,
    MADTP_MAX_BATCH = 65535 /* a grid dimension */
};

/* Sizes of one AlignedAttention call. */
typedef struct MadtpAttentionShape {
    int32_t batch;  /* B, 1 to MADTP_MAX_BATCH */
    int32_t length; /* L, at least 1 */
    int32_t width;  /* C, a multiple of heads and of 8 */
    int32_t heads;  /* H; C / H at most MADTP_MAX_HEAD_SIZE */
    int32_t causal; /* 1: a query sees no key after itself */
    int32_t dtype;  /* MADTP_FLOAT32, ... of qkv and context */
} MadtpAttentionShape;

/* Bytes of workspace: 4 * B * L * (4 * H + ceil(L / 64)), no term of L * L * H. Zero for sizes that are not allowed. */
MADTP_API size_t madtp_aligned_attention_workspace(MadtpAttentionShape const* shape) MADTP_NOEXCEPT;

/* qkv [B, L, 3C], key_mask [B, L] float32 (added to the scores of that key)
 *   -> context [B, L, C], column_score [B, N] and class_score [B, N] float32.
 * Every pointer is a device pointer; qkv, context and workspace on a 16-byte boundary, the others on one of 4 bytes.
 * Errors: cudaErrorInvalidValue (a size, dtype or pointer outside the above), cudaErrorNotSupported (bfloat16 before
 * compute capability 8.0), or whatever the launch returns. */
MADTP_API cudaError_t madtp_aligned_attention(MadtpAttentionShape const* shape, void const* qkv, float const* key_mask,
    void* context, float* column_score, float* class_score, void* workspace, cudaStream_t stream) MADTP_NOEXCEPT;

/* Sizes of one TokenCompact call. */
typedef struct MadtpCompactShape {
    int32_t batch;      /* B, 1 to MADTP_MAX_BATCH */
    int32_t length;     /* L, at least 2 */
    int32_t width;      /* C, a multiple of 8 */
    int32_t alignments; /* T, at least 1 */
    int32_t layer;      /* the merged token's source id is -(layer + 1) */
    int32_t max_tokens; /* room in the outputs, in tokens; 0 is L. Where more would stay, the best that fit do. */
    int32_t dtype;      /* MADTP_FLOAT32, ... of tokens and compacted */
} MadtpCompactShape;

/* Bytes of workspace: O(B * (L + T)). Zero for sizes that are not allowed. */
MADTP_API size_t madtp_token_compact_workspace(MadtpCompactShape const* shape) MADTP_NOEXCEPT;

/* The inputs of TokenCompact, all on the device; tokens on a 16-byte boundary, the others on one of their type. */
typedef struct MadtpCompactInputs {
    void const* tokens;        /* [B, L, C] */
    float const* key_mask;     /* [B, L] */
    int32_t const* source_ids; /* [B, L] */
    float const* column_score; /* [B, N] */
    float const* class_score;  /* [B, N] */
    float const* alignment;    /* [B, N, T] */
    float const* temperature;  /* []; zero, negative or NaN: nothing is pruned */
    int64_t const* min_keep;   /* []; fewer tokens to keep than this leave the layer unchanged */
} MadtpCompactInputs;

/* Its outputs: n rows a sample, densely packed. n is known on the device alone, so the buffers hold
 * min(L, max_tokens) rows a sample; what lies behind the n-th row of the last sample is not written. `compacted` and the
 * workspace lie on a 16-byte boundary, the others on one of their type. */
typedef struct MadtpCompactOutputs {
    void* compacted;        /* [B, n, C] */
    float* compacted_mask;  /* [B, n] */
    int32_t* compacted_ids; /* [B, n] */
    int64_t* count;         /* []: n */
} MadtpCompactOutputs;

/* Errors: cudaErrorInvalidValue (a size, dtype or pointer outside the above), or whatever the launch returns. */
MADTP_API cudaError_t madtp_token_compact(MadtpCompactShape const* shape, MadtpCompactInputs const* inputs,
    MadtpCompactOutputs const* outputs, void* workspace, cudaStream_t stream) MADTP_NOEXCEPT;

/* The same with a lower threshold: less keep_margin times the mean of |importance| over the sample's N tokens. keep_margin
 * is finite and at least 0, else cudaErrorInvalidValue; 0 is madtp_token_compact, bit for bit. */
MADTP_API cudaError_t madtp_token_compact_margin(MadtpCompactShape const* shape, MadtpCompactInputs const* inputs,
    MadtpCompactOutputs const* outputs, float keep_margin, void* workspace, cudaStream_t stream) MADTP_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
