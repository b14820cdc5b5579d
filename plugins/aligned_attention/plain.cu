// AlignedAttention without tensor cores, for float32 and for head sizes that the tensor-core path does not know: the same two
// kernels as there (tensor_core.cu). plain_tiles.h has the work of a block.
#include "aligned_attention/plain_tiles.h"

namespace madtp::attention {
namespace {

using namespace plain;

template <typename T, int parts>
__global__ void __launch_bounds__(kThreads) plain_context_kernel(Arguments const a) {
    auto const head = head_of<T>(a, rows_of(a, static_cast<int>(blockIdx.z)), static_cast<int>(blockIdx.y), a.head_size);
    compute_context<T, parts, true>(a, head, static_cast<int>(blockIdx.x));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) plain_statistics_kernel(Arguments const a) {
    int const sample = static_cast<int>(blockIdx.z);
    compute_statistics<T>(
        a, rows_of(a, sample), static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), StorePartial{a, sample});
}

template <typename T, int parts>
cudaError_t launch_parts(Arguments const& a, cudaStream_t stream) {
    auto const tiles = static_cast<unsigned>(divide_up(a.length, kTile));
    auto const heads = static_cast<unsigned>(a.heads), batch = static_cast<unsigned>(a.batch);
    cudaError_t const error = launch(plain_context_kernel<T, parts>, dim3(tiles, heads, batch), dim3(kThreads),
        sizeof(ContextShared), stream, a);
    if (error != cudaSuccess || a.length == 1) return error;
    auto const others = static_cast<unsigned>(divide_up(a.length - 1, kTile));
    return launch(plain_statistics_kernel<T>, dim3(others, others, batch), dim3(kThreads), sizeof(StatisticsShared),
        stream, a);
}

}  // namespace

template <typename T>
cudaError_t launch_plain(Arguments const& a, cudaStream_t stream) {
    static_assert(MADTP_MAX_HEAD_SIZE == 4 * kTile);
    if (a.head_size <= kTile) return launch_parts<T, 1>(a, stream);
    if (a.head_size <= 2 * kTile) return launch_parts<T, 2>(a, stream);
    return launch_parts<T, 4>(a, stream);
}

template cudaError_t launch_plain<float>(Arguments const&, cudaStream_t);
template cudaError_t launch_plain<__half>(Arguments const&, cudaStream_t);
template cudaError_t launch_plain<__nv_bfloat16>(Arguments const&, cudaStream_t);

}  // namespace madtp::attention
