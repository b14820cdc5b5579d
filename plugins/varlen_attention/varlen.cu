// VarlenAttention: softmax attention of sequences to others, with the context kernels of AlignedAttention, without a mask and
// without statistics. A block for each (query tile, head) looks up its tile's sequence, and ends where there is none.
#include "aligned_attention/paths.h"
#include "aligned_attention/plain_tiles.h"
#include "aligned_attention/tensor_core_tiles.h"
#include "common/sequences.h"

namespace madtp::attention {
namespace {

struct VarlenArguments {
    Arguments all;  // sizes, scale and context; B is 1 and L is R
    void const* query;      // [R, C]
    void const* key_value;  // [M, 2C]
    int const* cu_seqlens;
    int const* cu_keys;
    int sequences, key_rows;
};

// A head of a tile's sequence and of what that looks at. There are no statistics.
template <typename T>
__device__ __forceinline__ Head<T> varlen_head(VarlenArguments const& v, Tile const& tile, int head, int head_size) {
    Sequence const keys = sequence_at(v.cu_keys, tile.owner, v.key_rows);
    int64_t const width = v.all.width, first = tile.sequence.first * width + head * head_size;
    T const* const key = static_cast<T const*>(v.key_value) + keys.first * 2 * width + head * head_size;
    return {static_cast<T const*>(v.query) + first, key, width, 2 * width, tile.sequence.length,
        keys.length, nullptr, static_cast<T*>(v.all.context) + first, 0};
}

template <typename T, int D, int M>
__global__ void __launch_bounds__(tensor_core::kThreads, M == 1 ? tensor_core::kLeastBlocks : 0)
    varlen_context_kernel(VarlenArguments const v) {
    if constexpr (M <= tensor_core::kMostTiles) {
        Tile const tile =
            tile_at<kTile * M>(v.cu_seqlens, v.sequences, v.all.length, static_cast<int>(blockIdx.x));
        if (tile.sequence.length == 0) return;
        Head<T> const head = varlen_head<T>(v, tile, static_cast<int>(blockIdx.y), D);
        tensor_core::compute_context<T, D, M, false>(v.all, head, tile.index);
    }
}

template <typename T, int parts>
__global__ void __launch_bounds__(plain::kThreads) varlen_plain_context_kernel(VarlenArguments const v) {
    Tile const tile = tile_at<kTile>(v.cu_seqlens, v.sequences, v.all.length, static_cast<int>(blockIdx.x));
    if (tile.sequence.length == 0) return;
    Head<T> const head = varlen_head<T>(v, tile, static_cast<int>(blockIdx.y), v.all.head_size);
    plain::compute_context<T, parts, false>(v.all, head, tile.index);
}

struct Launcher {
    VarlenArguments v;
    cudaStream_t stream;

    template <typename T>
    cudaError_t tensor_core(int capability) const {
        switch (v.all.head_size) {
            case 32: return head_size<T, 32>(capability);
            case 64: return head_size<T, 64>(capability);
            case 128: return head_size<T, 128>(capability);
            default: return cudaErrorNotSupported;
        }
    }
    template <typename T>
    cudaError_t plain() const {
        if (v.all.head_size <= kTile) return start(varlen_plain_context_kernel<T, 1>);
        if (v.all.head_size <= 2 * kTile) return start(varlen_plain_context_kernel<T, 2>);
        return start(varlen_plain_context_kernel<T, 4>);
    }

private:
    dim3 grid(int queries) const {
        return dim3(static_cast<unsigned>(tile_numbers(v.all.length, v.sequences, queries)),
            static_cast<unsigned>(v.all.heads));
    }
    cudaError_t start(void (*kernel)(VarlenArguments)) const {
        return launch(kernel, grid(kTile), dim3(plain::kThreads), sizeof(plain::ContextShared), stream, v);
    }
    template <typename T, int D, int M>
    cudaError_t tiles() const {
        return launch(varlen_context_kernel<T, D, M>, grid(kTile * M), dim3(tensor_core::kThreads),
            sizeof(tensor_core::ContextShared<T, D>), stream, v);
    }
    template <typename T, int D>
    cudaError_t head_size(int capability) const {
        if constexpr (D <= 64) {
            bool const many = v.all.heads * tile_numbers(v.all.length, v.sequences, 2 * kTile) >= kManyBlocks;
            if (many && capability >= 8) return tiles<T, D, 2>();
        }
        return tiles<T, D, 1>();
    }
};

bool valid(MadtpVarlenShape const& shape) {
    return shape.rows >= 1 && shape.rows <= MADTP_MAX_ROWS && shape.key_rows >= 0 && shape.key_rows <= MADTP_MAX_ROWS &&
        shape.sequences >= 1 && shape.sequences <= MADTP_MAX_BATCH &&
        valid_heads(shape.width, shape.heads, shape.dtype);
}

}  // namespace
}  // namespace madtp::attention

extern "C" cudaError_t madtp_varlen_attention(MadtpVarlenShape const* shape, void const* query, void const* key_value,
    int32_t const* cu_seqlens, int32_t const* cu_keys, void* context, cudaStream_t stream) noexcept {
    using namespace madtp::attention;
    if (shape == nullptr || !valid(*shape)) return cudaErrorInvalidValue;
    for (void const* const vectors : {query, const_cast<void const*>(context)})
        if (!madtp::is_aligned(vectors, madtp::kVectorBytes)) return cudaErrorInvalidValue;
    if (shape->key_rows > 0 && !madtp::is_aligned(key_value, madtp::kVectorBytes)) return cudaErrorInvalidValue;
    for (int32_t const* const ends : {cu_seqlens, cu_keys})
        if (!madtp::is_aligned(ends, sizeof(int32_t))) return cudaErrorInvalidValue;

    madtp::CallerError const caller_error;
    VarlenArguments v{};
    v.all.context = context;
    v.all.batch = 1;
    v.all.length = shape->rows;
    v.all.width = shape->width;
    v.all.heads = shape->heads;
    v.all.head_size = shape->width / shape->heads;
    set_scale(v.all);
    v.query = query;
    v.key_value = key_value;
    v.cu_seqlens = cu_seqlens;
    v.cu_keys = cu_keys;
    v.sequences = shape->sequences;
    v.key_rows = shape->key_rows;
    return launch_path(v.all.head_size, shape->dtype, Launcher{v, stream});
}
