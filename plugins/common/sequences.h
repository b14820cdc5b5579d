// Sequences that lie end to end in the rows of a buffer: sequence s from row ends[s] to the one before ends[s + 1]. `ends` may
// hold anything at all; what is found here lies within the buffer.
#pragma once
#include "common/device.h"

namespace madtp {

struct Sequence {
    int first, length;  // rows
};

__device__ __forceinline__ Sequence sequence_at(int const* ends, int index, int rows) {
    int const first = min(max(ends[index], 0), rows);
    return {first, min(max(ends[index + 1], first), rows) - first};
}

// A sequence has tiles of its own, `size` rows each. Those of sequence s are numbered from first / size + s on: so a tile is
// found by its number without a list, and few numbers have none. Numbers of all tiles are below this.
inline int64_t tile_numbers(int rows, int sequences, int size) { return int64_t{rows / size} + sequences; }

struct Tile {
    Sequence sequence;  // no rows where there is no such tile
    int owner;          // number of the sequence
    int index;          // of the tile in it
    int first;          // its first row in the sequence
};

// The tile of this block, by its number.
template <int size>
__device__ __forceinline__ Tile tile_at(int const* ends, int sequences, int rows, int number) {
    int low = 0, high = sequences;  // sequence `low` has its first tile at `number` or before, `high` behind
    while (high - low > 1) {
        int const middle = low + (high - low) / 2;
        if (min(max(ends[middle], 0), rows) / size + middle <= number)
            low = middle;
        else
            high = middle;
    }
    Tile tile{sequence_at(ends, low, rows), low, 0, 0};
    int const index = number - (tile.sequence.first / size + low);
    if (index < 0 || index > (tile.sequence.length - 1) / size) {
        tile.sequence.length = 0;
        return tile;
    }
    tile.index = index;
    tile.first = index * size;
    return tile;
}

}  // namespace madtp
