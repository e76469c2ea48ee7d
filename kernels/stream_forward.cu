// Loss of every row, and what backward needs of it, at any size.
//
//     for each row tile, for each split of the classes:              a block
//         for each class tile of the split:
//             c = x̂·ŵ; merge max, Σ 2^z, Σ 2^z·c, Σ c, best class, target
//     the last split of a row tile: merge the splits in order, finish the rows
//     the last row tile: reduce the rows' losses
//
// N×C cosines are never in memory: a split leaves one Statistics a row. Which block comes last is of no consequence for a result.
#include "contract.cuh"

namespace margin_loss {

template <class Kind>
__device__ void stream_forward(const MarginLossCall &call) {
    using T = typename Kind::T;
    constexpr int TILE = CosineTile<Kind>::TILE;
    extern __shared__ __align__(128) unsigned char memory[];
    CosineTile<Kind> &tile = StepTiles<Kind>::at(memory).cosines;
    Scratch<T> scratch(call);
    i64 row_tile = blockIdx.x / call.splits, split = blockIdx.x % call.splits;
    i64 row0 = row_tile * TILE, class_tiles = (call.c + TILE - 1) / TILE;
    int begin = int(class_tiles * split / call.splits), end = int(class_tiles * (split + 1) / call.splits);
    int r = threadIdx.x % TILE;

    tile.load_labels(call, row0);
    for (int class_tile = begin; class_tile < end; class_tile++) {
        i64 class0 = i64(class_tile) * TILE;
        tile.load_prior(call, class0);
        __syncthreads(); // labels and prior; and the last tile's statistics and norms are read
        typename CosineTile<Kind>::Sums acc;
        tile.multiply_and_norm(call, row0, class0, acc);
        tile.to_cosines(acc);
        tile.add_up(call, class0, acc);
        __syncthreads(); // every warp's statistics
        if (threadIdx.x < TILE) {
            if (row0 == 0 && class0 + r < call.c) scratch.class_norms[class0 + r] = tile.class_norms[r];
            // Tile by tile, as fused_step: a small problem's loss is the same to the last bit with gradients and without.
            tile.merge_statistics(r, class0, class_tile == begin);
        }
    }

    i64 i = row0 + r;
    bool mine = threadIdx.x < TILE && i < call.n;
    Statistics<T> row = no_statistics<T>();
    if (threadIdx.x < TILE) row = tile.so_far[r];
    if (call.splits > 1) {
        if (mine) scratch.partials[split * call.n + i] = row;
        if (!is_last(call.arrivals + 1 + row_tile, unsigned(call.splits))) return;
        if (mine) {
            row = scratch.partials[i];
            for (i64 other = 1; other < call.splits; other++) merge(row, scratch.partials[other * call.n + i]);
        }
    }
    if (mine) finish_row(call, scratch.rows, i, tile.labels[r], tile.row_norms[r], row);
    if (is_last(call.arrivals, unsigned((call.n + TILE - 1) / TILE))) reduce_rows<T>(call, scratch.rows, true);
}

} // namespace margin_loss

#define ENTRY(NAME, ...)                                                                                             \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, (__VA_ARGS__::BLOCKS)) stream_forward_##NAME(__grid_constant__ const MarginLossCall call) { \
        margin_loss::stream_forward<__VA_ARGS__>(call);                                                                     \
    }
#include "entries.h"
