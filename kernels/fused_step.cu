// Loss and both gradients in one cooperative launch, where the cosines of the whole batch fit into the shared memory of the grid:
//
//     1. for each of my tiles:   c = x̂·ŵ, kept on chip; its rows' statistics
//     2. for each of my rows:    the statistics of all class tiles, merged; the row's loss and state
//     3. for each of my tiles:   g from the cosines that were kept
//     4. for each of my blocks of work: a tile of dX or dW from g
//
// with a barrier of the grid between. Nothing is computed twice; X and W are read for the logits and again for the gradients, and each gradient
// is written once. Between the phases, rows' statistics and g go through the workspace, which a device's second-level cache holds. A problem of
// a few tiles is one block's: its barriers are the block's, and its workspace is shared memory.
#include <cooperative_groups.h>

#include "contract.cuh"

namespace margin_loss {

template <class Kind>
__device__ void fused_step(const MarginLossCall &call, const MarginLossChunk &chunk) {
    using T = typename Kind::T;
    extern __shared__ __align__(16) unsigned char memory[];
    StepTiles<Kind> &shared = StepTiles<Kind>::at(memory);
    CosineTile<Kind> &tile = shared.cosines;
    Values<T> *kept = reinterpret_cast<Values<T> *>(memory + sizeof(shared)); // (my tiles)
    cooperative_groups::grid_group grid = cooperative_groups::this_grid();

    i64 row_tiles = (call.n + TILE - 1) / TILE, class_tiles = (call.c + TILE - 1) / TILE, tiles = row_tiles * class_tiles;
    // Blocks that have tiles; where there are more blocks than tiles, the others wait for the gradients.
    i64 owners = gridDim.x < tiles ? gridDim.x : tiles;
    bool owns = blockIdx.x < owners;
    i64 begin = owns ? tiles * blockIdx.x / owners : tiles, end = owns ? tiles * (blockIdx.x + 1) / owners : tiles;
    unsigned char *own = call.on_chip ? memory : nullptr;
    Scratch<T> scratch(call, chunk, own, own);
    int r = threadIdx.x % TILE;
    auto wait_for_all = [&] {
        if (call.on_chip) __syncthreads();
        else grid.sync();
    };
    // The block that has a tile. Those of one row tile each leave one Statistics of its rows, in the order of their classes.
    auto owner = [&](i64 of) { return ((of + 1) * owners - 1) / tiles; };

    Statistics<T> row = no_statistics<T>();
    for (i64 at = begin; at < end; at++) {
        i64 row_tile = at / class_tiles, row0 = row_tile * TILE, class_tile = at % class_tiles, class0 = class_tile * TILE;
        tile.load_labels(call, row0);
        tile.load_prior(call, class0);
        __syncthreads();
        typename CosineTile<Kind>::Sums acc;
        tile.multiply_and_norm(call, row0, class0, acc);
        tile.keep(acc, kept[at - begin]);
        if (threadIdx.x < TILE) {
            if (class_tile == 0 && row0 + r < call.n) scratch.rows[row0 + r].norm = tile.row_norms[r];
        } else if (row0 == 0 && class0 + r < call.c) {
            scratch.class_norms[class0 + r] = tile.class_norms[r];
        }
        // Tile by tile, as where each is a block's: the sums' grouping follows the tiles.
        Statistics<T> of_tile = no_statistics<T>();
        tile.add_statistics(call, class0, kept[at - begin], of_tile);
        merge(row, merge_halves(of_tile));
        if (at + 1 == end || class_tile + 1 == class_tiles) {
            i64 i = row0 + threadIdx.x / 2;
            if (threadIdx.x % 2 == 0 && i < call.n) scratch.partials[(blockIdx.x - owner(row_tile * class_tiles)) * call.n + i] = row;
            row = no_statistics<T>();
        }
        __syncthreads(); // the next tile's labels and norms
    }
    wait_for_all(); // every tile's statistics and norms

    int lane = threadIdx.x % 32;
    for (i64 i = i64(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32; i < call.n; i += i64(gridDim.x) * (THREADS / 32)) {
        i64 first_tile = i / TILE * class_tiles, parts = owner(first_tile + class_tiles - 1) - owner(first_tile) + 1;
        row = no_statistics<T>();
        for (i64 part = lane; part < parts; part += 32) merge(row, scratch.partials[part * call.n + i]);
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            merge(row, shuffled(row, [offset](auto field) { return __shfl_down_sync(~0u, field, offset); }));
        if (lane == 0) finish_row(call, scratch.rows, i, label_of(call, i), scratch.rows[i].norm, row);
    }
    wait_for_all(); // every row's state

    // Each block finds the reduction's factor for itself: one barrier of the grid less.
    double factor = reduce_rows<T>(call, scratch.rows, blockIdx.x == 0);
    for (i64 at = begin; at < end; at++) {
        i64 row0 = at / class_tiles * TILE, class0 = at % class_tiles * TILE;
        load_backward(call, scratch, tile, shared.constants, row0, class0, factor);
        __syncthreads();
        write_g(call, chunk, scratch, tile, row0, class0, kept[at - begin], shared.constants);
        __syncthreads(); // the next tile's constants
    }
    wait_for_all(); // all of g, and the factor in memory

    contract_all(call, chunk, scratch, shared.contract);
}

} // namespace margin_loss

#define ENTRY(NAME, ...)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, MARGIN_LOSS_STEP_BLOCKS)                                             \
        fused_step_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {                \
        margin_loss::fused_step<__VA_ARGS__>(call, chunk);                                                                              \
    }
#include "entries.h"
