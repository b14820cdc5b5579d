// PackedAlignedAttention on tensor cores. A block looks up its tile's sequence, and ends where there is none.
//
//   packed_context_kernel    a block for each (query tile, head)
//   packed_statistics_kernel a block for each (key tile, kMostPartials-th groups of queries)
#include "aligned_attention/paths.h"
#include "aligned_attention/tensor_core_tiles.h"
#include "packed_aligned_attention/arguments.h"

namespace madtp::attention {
namespace {

using namespace tensor_core;

template <typename T, int D, int M>
__global__ void __launch_bounds__(kThreads, M == 1 ? kLeastBlocks : 0) packed_context_kernel(PackedArguments const p) {
    if constexpr (M <= kMostTiles) {
        Tile const tile =
            tile_at<kTile * M>(p.cu_seqlens, p.sequences, p.all.length, static_cast<int>(blockIdx.x));
        if (tile.sequence.length == 0) return;
        auto const head = head_of<T>(p.all, rows_of(p, tile), static_cast<int>(blockIdx.y), D);
        compute_context<T, D, M, true>(p.all, head, tile.index);
    }
}

template <typename T, int D, int M>
__global__ void __launch_bounds__(kThreads) packed_statistics_kernel(PackedArguments const p) {
    if constexpr (M <= kMostTiles) {
        Tile const tile = tile_at<kTile>(p.cu_seqlens, p.sequences, p.all.length, static_cast<int>(blockIdx.x));
        if (tile.first + 1 >= tile.sequence.length) return;
        Rows const rows = rows_of(p, tile);
        int const first = static_cast<int>(blockIdx.y), partials = partials_of(rows.length);
        for (int query_tile = first; query_tile * M < partials; query_tile += kMostPartials / M) {
            if (query_tile != first) __syncthreads();  // the sums before are read
            compute_statistics<T, D, M>(p.all, rows, tile.index, query_tile, StorePacked{p, rows});
        }
    }
}

template <typename T, int D, int M>
cudaError_t launch_tiles(PackedArguments const& p, cudaStream_t stream) {
    auto const tiles = static_cast<unsigned>(tile_numbers(p.all.length, p.sequences, kTile * M));
    cudaError_t const error = launch(packed_context_kernel<T, D, M>, dim3(tiles, static_cast<unsigned>(p.all.heads)),
        dim3(kThreads), sizeof(ContextShared<T, D>), stream, p);
    if (error != cudaSuccess || p.all.length == 1) return error;
    auto const keys = static_cast<unsigned>(tile_numbers(p.all.length, p.sequences, kTile));
    return launch(packed_statistics_kernel<T, D, M>, dim3(keys, static_cast<unsigned>(divide_up(p.partials, M))),
        dim3(kThreads), sizeof(StatisticsShared<T, D, M>), stream, p);
}

template <typename T, int D>
cudaError_t launch_head_size(PackedArguments const& p, cudaStream_t stream) {
    if constexpr (D <= 64) {
        bool const many = p.all.heads * tile_numbers(p.all.length, p.sequences, 2 * kTile) >= kManyBlocks;
        if (many && p.all.capability >= 8) return launch_tiles<T, D, 2>(p, stream);
    }
    return launch_tiles<T, D, 1>(p, stream);
}

}  // namespace

template <typename T>
cudaError_t launch_packed_tensor_core(PackedArguments const& p, cudaStream_t stream) {
    switch (p.all.head_size) {
        case 32: return launch_head_size<T, 32>(p, stream);
        case 64: return launch_head_size<T, 64>(p, stream);
        case 128: return launch_head_size<T, 128>(p, stream);
        default: return cudaErrorNotSupported;
    }
}

template cudaError_t launch_packed_tensor_core<__half>(PackedArguments const&, cudaStream_t);
template cudaError_t launch_packed_tensor_core<__nv_bfloat16>(PackedArguments const&, cudaStream_t);

}  // namespace madtp::attention
