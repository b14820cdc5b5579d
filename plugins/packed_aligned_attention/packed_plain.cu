// PackedAlignedAttention without tensor cores; the kernels are those of packed_tensor_core.cu.
#include "aligned_attention/plain_tiles.h"
#include "packed_aligned_attention/arguments.h"

namespace madtp::attention {
namespace {

using namespace plain;

template <typename T, int parts>
__global__ void __launch_bounds__(kThreads) packed_plain_context_kernel(PackedArguments const p) {
    Tile const tile = tile_at<kTile>(p.cu_seqlens, p.sequences, p.all.length, static_cast<int>(blockIdx.x));
    if (tile.sequence.length == 0) return;
    auto const head = head_of<T>(p.all, rows_of(p, tile), static_cast<int>(blockIdx.y), p.all.head_size);
    compute_context<T, parts, true>(p.all, head, tile.index);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) packed_plain_statistics_kernel(PackedArguments const p) {
    Tile const tile = tile_at<kTile>(p.cu_seqlens, p.sequences, p.all.length, static_cast<int>(blockIdx.x));
    if (tile.first + 1 >= tile.sequence.length) return;
    Rows const rows = rows_of(p, tile);
    int const first = static_cast<int>(blockIdx.y), partials = partials_of(rows.length);
    for (int query_tile = first; query_tile < partials; query_tile += kMostPartials) {
        if (query_tile != first) __syncthreads();  // the sums before are read
        compute_statistics<T>(p.all, rows, tile.index, query_tile, StorePacked{p, rows});
    }
}

template <typename T, int parts>
cudaError_t launch_parts(PackedArguments const& p, cudaStream_t stream) {
    auto const tiles = static_cast<unsigned>(tile_numbers(p.all.length, p.sequences, kTile));
    cudaError_t const error = launch(packed_plain_context_kernel<T, parts>,
        dim3(tiles, static_cast<unsigned>(p.all.heads)), dim3(kThreads), sizeof(ContextShared), stream, p);
    if (error != cudaSuccess || p.all.length == 1) return error;
    return launch(packed_plain_statistics_kernel<T>, dim3(tiles, static_cast<unsigned>(p.partials)), dim3(kThreads),
        sizeof(StatisticsShared), stream, p);
}

}  // namespace

template <typename T>
cudaError_t launch_packed_plain(PackedArguments const& p, cudaStream_t stream) {
    if (p.all.head_size <= kTile) return launch_parts<T, 1>(p, stream);
    if (p.all.head_size <= 2 * kTile) return launch_parts<T, 2>(p, stream);
    return launch_parts<T, 4>(p, stream);
}

template cudaError_t launch_packed_plain<float>(PackedArguments const&, cudaStream_t);
template cudaError_t launch_packed_plain<__half>(PackedArguments const&, cudaStream_t);
template cudaError_t launch_packed_plain<__nv_bfloat16>(PackedArguments const&, cudaStream_t);

}  // namespace madtp::attention
