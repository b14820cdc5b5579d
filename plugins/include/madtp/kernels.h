/* The CUDA kernels of the custom ops, without TensorRT: raw device pointers, sizes, a workspace and a stream.
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
    MADTP_MAX_BATCH = 65535, /* a grid dimension */
    MADTP_MAX_ROWS = 1 << 24 /* of the packed layout */
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

/* The packed layout: S sequences of Q requests lie end to end in R rows, sequence s from row cu_seqlens[s] to the one before
 * cu_seqlens[s + 1]. Sequences may have no rows. Rows behind the last sequence are not read, and not written. No call reads
 * cu_seqlens on the host; launches depend on the sizes in the shape alone, so a captured call serves any lengths. Values of
 * cu_seqlens that do not ascend give meaningless results, within the buffers. What a sequence comes to does not depend on
 * the others of its call, on R or on S, bit for bit; those of a request share the number of tokens that they keep. */

/* Sizes of one PackedAlignedAttention call. */
typedef struct MadtpPackedAttentionShape {
    int32_t rows;      /* R, 1 to MADTP_MAX_ROWS */
    int32_t sequences; /* S, 1 to MADTP_MAX_BATCH */
    int32_t width;     /* C, a multiple of heads and of 8 */
    int32_t heads;     /* H; C / H at most MADTP_MAX_HEAD_SIZE */
    int32_t causal;    /* 1: a query sees no key after itself */
    int32_t dtype;     /* MADTP_FLOAT32, ... of qkv and context */
} MadtpPackedAttentionShape;

/* Bytes of workspace: 4 * R * (4 * H + min(16, ceil(R / 64))). Zero for sizes that are not allowed. */
MADTP_API size_t madtp_packed_aligned_attention_workspace(MadtpPackedAttentionShape const* shape) MADTP_NOEXCEPT;

/* qkv [R, 3C], key_mask [R] float32, cu_seqlens [S + 1] int32
 *   -> context [R, C], column_score [R] and class_score [R] float32, zero for class tokens.
 * Boundaries and errors are those of madtp_aligned_attention. A sequence of up to 1025 tokens is computed in the order of
 * madtp_aligned_attention; beyond that column scores are added up in another one. */
MADTP_API cudaError_t madtp_packed_aligned_attention(MadtpPackedAttentionShape const* shape, void const* qkv,
    float const* key_mask, int32_t const* cu_seqlens, void* context, float* column_score, float* class_score,
    void* workspace, cudaStream_t stream) MADTP_NOEXCEPT;

/* Sizes of one PackedTokenCompact call. */
typedef struct MadtpPackedCompactShape {
    int32_t rows;       /* R, 1 to MADTP_MAX_ROWS */
    int32_t sequences;  /* S, 1 to MADTP_MAX_BATCH */
    int32_t group;      /* S / Q, sequences of a request: sequence s is of request s % Q */
    int32_t width;      /* C, a multiple of 8 */
    int32_t alignments; /* T, at least 1 */
    int32_t layer;      /* the merged tokens' source id is -(layer + 1) */
    int32_t capacity;   /* rows of the outputs, 1 to MADTP_MAX_ROWS; R is always enough */
    int32_t dtype;      /* MADTP_FLOAT32, ... of tokens and compacted */
} MadtpPackedCompactShape;

/* Bytes of workspace: O(R + S * T). Zero for sizes that are not allowed. */
MADTP_API size_t madtp_packed_token_compact_workspace(MadtpPackedCompactShape const* shape) MADTP_NOEXCEPT;

/* The inputs of PackedTokenCompact, all on the device; tokens on a 16-byte boundary, the others on one of their type. */
typedef struct MadtpPackedCompactInputs {
    void const* tokens;        /* [R, C] */
    float const* key_mask;     /* [R] */
    int32_t const* source_ids; /* [R] */
    float const* column_score; /* [R], not used of class tokens */
    float const* class_score;  /* [R], likewise */
    float const* alignment;    /* [R, T], likewise */
    int32_t const* cu_seqlens; /* [S + 1] */
    float const* temperature;  /* []; zero, negative or NaN: nothing is pruned */
    int64_t const* min_keep;   /* [Q]; fewer tokens to keep than this leave the request's sequences unchanged */
} MadtpPackedCompactInputs;

/* Its outputs. More rows than `capacity` are an overflow, which `count` tells: sequences that there is no room for lose rows
 * then, and the results are of no use. What lies behind the last sequence is not written. */
typedef struct MadtpPackedCompactOutputs {
    void* compacted;               /* [capacity, C] */
    float* compacted_mask;         /* [capacity] */
    int32_t* compacted_ids;        /* [capacity] */
    int32_t* compacted_cu_seqlens; /* [S + 1], at most capacity */
    int64_t* count;                /* []: rows that all sequences need */
} MadtpPackedCompactOutputs;

/* keep_margin and errors as of madtp_token_compact_margin. */
MADTP_API cudaError_t madtp_packed_token_compact(MadtpPackedCompactShape const* shape,
    MadtpPackedCompactInputs const* inputs, MadtpPackedCompactOutputs const* outputs, float keep_margin, void* workspace,
    cudaStream_t stream) MADTP_NOEXCEPT;

/* Sizes of one VarlenAttention call. */
typedef struct MadtpVarlenShape {
    int32_t rows;      /* R of query, 1 to MADTP_MAX_ROWS */
    int32_t key_rows;  /* M of key_value, 0 to MADTP_MAX_ROWS */
    int32_t sequences; /* S, 1 to MADTP_MAX_BATCH, of both */
    int32_t width;     /* C, a multiple of heads and of 8 */
    int32_t heads;     /* H; C / H at most MADTP_MAX_HEAD_SIZE */
    int32_t dtype;     /* MADTP_FLOAT32, ... */
} MadtpVarlenShape;

/* query [R, C], key_value [M, 2C] (keys, then values), cu_seqlens and cu_keys [S + 1] int32 -> context [R, C]: of a sequence's
 * rows over the keys of the same number, zero where there are none. There is no workspace. Rows lie on a 16-byte boundary,
 * cu_seqlens and cu_keys on one of 4. Errors as of madtp_aligned_attention. */
MADTP_API cudaError_t madtp_varlen_attention(MadtpVarlenShape const* shape, void const* query, void const* key_value,
    int32_t const* cu_seqlens, int32_t const* cu_keys, void* context, cudaStream_t stream) MADTP_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
