// What the kernels of PackedAlignedAttention share. A sequence is computed as AlignedAttention computes a sample.
#pragma once
#include "aligned_attention/arguments.h"
#include "common/sequences.h"

namespace madtp::attention {

// Column sums that a key has room for. One of its blocks takes every kMostPartials-th group of queries, whatever the
// sequence's length: the grid is known without it, and so is the order in which the sums are added up.
constexpr int kMostPartials = 16;

struct PackedArguments {
    Arguments all;  // B is 1 and L is R: pointers to the first row
    int const* cu_seqlens;
    int sequences;
    int partials;  // room, at most kMostPartials
};

__device__ __forceinline__ Rows rows_of(PackedArguments const& p, Tile const& tile) {
    return {tile.sequence.first, tile.sequence.length, int64_t{tile.sequence.first} * p.all.heads};
}

// Where the partial sums of a sequence lie.
__device__ __forceinline__ float* column_partial(PackedArguments const& p, Rows const& rows) {
    return p.all.column_partial + rows.first * p.partials;
}

// Those that share a place come from one block, in ascending order.
struct StorePacked {
    PackedArguments const& p;
    Rows const& rows;

    __device__ __forceinline__ void operator()(int partial, int key, float sum) const {
        float& place = column_partial(p, rows)[int64_t{partial % kMostPartials} * rows.length + key];
        place = partial < kMostPartials ? sum : place + sum;
    }
};

// As launch_tensor_core and launch_plain.
template <typename T>
cudaError_t launch_packed_tensor_core(PackedArguments const& arguments, cudaStream_t stream);
template <typename T>
cudaError_t launch_packed_plain(PackedArguments const& arguments, cudaStream_t stream);

}  // namespace madtp::attention
