// Loss and both gradients in one cooperative launch, where the cosines of the whole batch fit into the shared memory of the grid:
//
//     1. for each of my tiles:   c = x̂·ŵ, kept on chip; its rows' statistics
//     2. for each of my rows:    the statistics of all class tiles, merged; the row's loss and state
//     3. for each of my tiles:   g from the cosines that were kept
//     4. for each of my blocks of work: a tile of dX or dW from g
//
// with a barrier of the grid between. Nothing is computed twice; X and W are read for the logits and again for the gradients, and each gradient
// is written once. Between the phases, rows' statistics and g go through the workspace, which a device's second-level cache holds.
#include <cooperative_groups.h>

#include "backward.cuh"

namespace margin_loss {

// The fixed part of the shared memory; the kept cosines follow.
template <class Kind>
struct FusedShared {
    union {
        CosineTile<Kind> tile;
        ContractTile<Kind> contract;
    };
    RowConstants<typename Kind::T> constants[TILE];
};

template <class T>
__device__ inline Statistics<T> shuffle_down(const Statistics<T> &row, int offset) {
    Statistics<T> other;
    other.max = __shfl_down_sync(~0u, row.max, offset);
    other.sum = __shfl_down_sync(~0u, row.sum, offset);
    other.weighted = __shfl_down_sync(~0u, row.weighted, offset);
    other.total = __shfl_down_sync(~0u, row.total, offset);
    other.best = __shfl_down_sync(~0u, row.best, offset);
    other.target = __shfl_down_sync(~0u, row.target, offset);
    other.best_class = __shfl_down_sync(~0u, row.best_class, offset);
    return other;
}

template <class Kind>
__device__ void fused_step(const MarginLossCall &call, const MarginLossChunk &chunk) {
    using T = typename Kind::T;
    extern __shared__ __align__(16) unsigned char memory[];
    FusedShared<Kind> &shared = *reinterpret_cast<FusedShared<Kind> *>(memory);
    static_assert(sizeof(FusedShared<Kind>) == Kind::FUSED_SHARED && Kind::FUSED_SHARED % 16 == 0, "what the host makes room for");
    Values<T> *kept = reinterpret_cast<Values<T> *>(memory + sizeof(FusedShared<Kind>));
    CosineTile<Kind> &tile = shared.tile;
    cooperative_groups::grid_group grid = cooperative_groups::this_grid();

    i64 row_tiles = (call.n + TILE - 1) / TILE, class_tiles = (call.c + TILE - 1) / TILE, tiles = row_tiles * class_tiles;
    i64 begin = tiles * blockIdx.x / gridDim.x, end = tiles * (blockIdx.x + 1) / gridDim.x;
    RowState<T> *rows = static_cast<RowState<T> *>(call.rows);
    Norm<T> *class_norms = static_cast<Norm<T> *>(call.class_norms);
    Statistics<T> *partials = static_cast<Statistics<T> *>(call.partials); // (class tiles, N)
    int r = threadIdx.x % TILE;

    for (i64 at = begin; at < end; at++) {
        i64 row0 = at % row_tiles * TILE, class_tile = at / row_tiles, class0 = class_tile * TILE;
        tile.load_labels(call, row0);
        tile.load_prior(call, class0);
        __syncthreads();
        typename CosineTile<Kind>::Sums acc;
        tile.multiply_and_norm(call, row0, class0, acc);
        tile.keep(acc, kept[at - begin]);
        if (threadIdx.x < TILE) {
            if (class_tile == 0 && row0 + r < call.n) rows[row0 + r].norm = tile.row_norms[r];
        } else if (row0 == 0 && class0 + r < call.c) {
            class_norms[class0 + r] = tile.class_norms[r];
        }
        Statistics<T> row = no_statistics<T>();
        tile.add_statistics(call, class0, kept[at - begin], row);
        row = merge_halves(row);
        i64 i = row0 + threadIdx.x / 2;
        if (threadIdx.x % 2 == 0 && i < call.n) partials[class_tile * call.n + i] = row;
        __syncthreads(); // the next tile's labels and norms
    }
    grid.sync(); // every tile's statistics and norms

    int lane = threadIdx.x % 32;
    for (i64 i = i64(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32; i < call.n; i += i64(gridDim.x) * (THREADS / 32)) {
        Statistics<T> row = no_statistics<T>();
        for (i64 class_tile = lane; class_tile < class_tiles; class_tile += 32) merge(row, partials[class_tile * call.n + i]);
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) merge(row, shuffle_down(row, offset));
        if (lane == 0) finish_row(call, i, label_of(call, i), rows[i].norm, row);
    }
    grid.sync(); // every row's state

    // Each block finds the reduction's factor for itself: one barrier of the grid less.
    double factor = reduce_rows<T>(call, blockIdx.x == 0);
    for (i64 at = begin; at < end; at++) {
        i64 row0 = at % row_tiles * TILE, class0 = at / row_tiles * TILE;
        load_backward(call, tile, shared.constants, row0, class0, factor);
        __syncthreads();
        write_g(call, chunk, tile, row0, class0, kept[at - begin], shared.constants);
        __syncthreads(); // the next tile's constants
    }
    grid.sync(); // all of g, and the factor in memory

    i64 d_tiles = (call.d + TILE - 1) / TILE;
    i64 blocks = (chunk.dx ? row_tiles * d_tiles * chunk.dx_splits : 0) + (chunk.dw ? class_tiles * d_tiles * chunk.dw_splits : 0);
    for (i64 block = blockIdx.x; block < blocks; block += gridDim.x) contract(call, chunk, shared.contract, block);
}

} // namespace margin_loss

#define ENTRY(NAME, ...)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, MARGIN_LOSS_FUSED_BLOCKS)                                            \
        fused_step_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {                \
        margin_loss::fused_step<__VA_ARGS__>(call, chunk);                                                                              \
    }
#include "entries.h"
