// AlignedAttention on tensor cores, in two kernels: tensor_core_tiles.h has the work of a block.
//
//   context_kernel    a block for each (query tile, head, sample)
//   statistics_kernel a block for each (key tile, query tile, sample)
#include "aligned_attention/paths.h"
#include "aligned_attention/tensor_core_tiles.h"

namespace madtp::attention {
namespace {

using namespace tensor_core;

template <typename T, int D, int M>
__global__ void __launch_bounds__(kThreads, M == 1 ? kLeastBlocks : 0) context_kernel(Arguments const a) {
    if constexpr (M <= kMostTiles) {
        auto const head = head_of<T>(a, rows_of(a, static_cast<int>(blockIdx.z)), static_cast<int>(blockIdx.y), D);
        compute_context<T, D, M, true>(a, head, static_cast<int>(blockIdx.x));
    }
}

template <typename T, int D, int M>
__global__ void __launch_bounds__(kThreads) statistics_kernel(Arguments const a) {
    if constexpr (M <= kMostTiles) {
        int const sample = static_cast<int>(blockIdx.z);
        compute_statistics<T, D, M>(
            a, rows_of(a, sample), static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), StorePartial{a, sample});
    }
}

template <typename T, int D, int M>
cudaError_t launch_tiles(Arguments const& a, cudaStream_t stream) {
    auto const queries = static_cast<unsigned>(divide_up(a.length, kTile * M));
    auto const heads = static_cast<unsigned>(a.heads), batch = static_cast<unsigned>(a.batch);
    cudaError_t const error = launch(context_kernel<T, D, M>, dim3(queries, heads, batch), dim3(kThreads),
        sizeof(ContextShared<T, D>), stream, a);
    if (error != cudaSuccess || a.length == 1) return error;
    auto const other_queries = static_cast<unsigned>(divide_up(a.length - 1, kTile * M));
    auto const other_keys = static_cast<unsigned>(divide_up(a.length - 1, kTile));
    return launch(statistics_kernel<T, D, M>, dim3(other_keys, other_queries, batch), dim3(kThreads),
        sizeof(StatisticsShared<T, D, M>), stream, a);
}

template <typename T, int D>
cudaError_t launch_head_size(Arguments const& a, cudaStream_t stream) {
    if constexpr (D <= 64) {
        bool const many = a.batch * int64_t{a.heads} * divide_up(a.length, 2 * kTile) >= kManyBlocks;
        if (many && a.capability >= 8) return launch_tiles<T, D, 2>(a, stream);
    }
    return launch_tiles<T, D, 1>(a, stream);
}

}  // namespace

template <typename T>
cudaError_t launch_tensor_core(Arguments const& a, cudaStream_t stream) {
    switch (a.head_size) {
        case 32: return launch_head_size<T, 32>(a, stream);
        case 64: return launch_head_size<T, 64>(a, stream);
        case 128: return launch_head_size<T, 128>(a, stream);
        default: return cudaErrorNotSupported;
    }
}

template cudaError_t launch_tensor_core<__half>(Arguments const&, cudaStream_t);
template cudaError_t launch_tensor_core<__nv_bfloat16>(Arguments const&, cudaStream_t);

}  // namespace madtp::attention
