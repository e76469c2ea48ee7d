// Loss of every row, and what backward needs of it, at any size.
//
//     for each row tile, for each split of the classes:              a block
//         for each class tile of the split:
//             c = x̂·ŵ; merge max, Σ 2^z, Σ 2^z·c, Σ c, best class, target
//     the last split of a row tile: merge the splits in order, finish the rows
//     the last row tile: reduce the rows' losses
//
// N×C cosines are never in memory: a split leaves one Statistics a row. Which block comes last is of no consequence for a result.
#include "finish.cuh"

namespace margin_loss {

template <class Kind>
__device__ void stream_forward(const MarginLossCall &call) {
    using T = typename Kind::T;
    __shared__ CosineTile<Kind> tile;
    Scratch<T> scratch(call);
    i64 row_tile = blockIdx.x / call.splits, split = blockIdx.x % call.splits;
    i64 row0 = row_tile * TILE, class_tiles = (call.c + TILE - 1) / TILE, row_tiles = (call.n + TILE - 1) / TILE;
    i64 begin = class_tiles * split / call.splits, end = class_tiles * (split + 1) / call.splits;

    tile.load_labels(call, row0);
    __syncthreads();
    Statistics<T> row = no_statistics<T>();
    for (i64 class_tile = begin; class_tile < end; class_tile++) {
        i64 class0 = class_tile * TILE;
        typename CosineTile<Kind>::Sums acc;
        tile.multiply_and_norm(call, row0, class0, acc);
        tile.load_prior(call, class0);
        tile.keep(acc, tile.cosines);
        if (row_tile == 0 && threadIdx.x < TILE && class0 + threadIdx.x < call.c)
            scratch.class_norms[class0 + threadIdx.x] = tile.class_norms[threadIdx.x];
        // Tile by tile, as fused_step: a small problem's loss is the same to the last bit with gradients and without.
        Statistics<T> of_tile = no_statistics<T>();
        tile.add_statistics(call, class0, tile.cosines, of_tile);
        merge(row, merge_halves(of_tile));
        __syncthreads(); // the next product overwrites the cosines
    }

    i64 i = row0 + threadIdx.x / 2;
    bool mine = threadIdx.x % 2 == 0 && i < call.n;
    if (call.splits > 1) {
        if (mine) scratch.partials[split * call.n + i] = row;
        if (!is_last(call.arrivals + 1 + row_tile, unsigned(call.splits))) return;
        if (mine) {
            row = scratch.partials[i];
            for (i64 other = 1; other < call.splits; other++) merge(row, scratch.partials[other * call.n + i]);
        }
    }
    if (mine) finish_row(call, scratch.rows, i, tile.labels[threadIdx.x / 2], tile.row_norms[threadIdx.x / 2], row);
    if (is_last(call.arrivals, unsigned(row_tiles))) reduce_rows<T>(call, scratch.rows, true);
}

} // namespace margin_loss

#define ENTRY(NAME, ...)                                                                                             \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, margin_loss::BLOCKS<__VA_ARGS__>) stream_forward_##NAME(__grid_constant__ const MarginLossCall call) { \
        margin_loss::stream_forward<__VA_ARGS__>(call);                                                                     \
    }
#include "entries.h"
