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

// A thread's cosines of a tile, kept as it has them: sixteen bytes a thread side by side.
template <class T, class Sums>
struct Kept {
    static constexpr int VALUES = sizeof(Sums) / sizeof(T), EACH = 16 / sizeof(T);
    struct alignas(16) Part { T at[EACH]; } parts[VALUES / EACH][THREADS];

    __device__ void put(const Sums &sums) {
        int own = thread();
#pragma unroll
        for (int p = 0; p < VALUES / EACH; p++) {
            Part part;
#pragma unroll
            for (int i = 0; i < EACH; i++) part.at[i] = sums.at[EACH * p + i];
            parts[p][own] = part;
        }
    }
    __device__ void get(Sums &sums) const {
        int own = thread();
#pragma unroll
        for (int p = 0; p < VALUES / EACH; p++) {
            Part part = parts[p][own];
#pragma unroll
            for (int i = 0; i < EACH; i++) sums.at[EACH * p + i] = part.at[i];
        }
    }
};

// A block's tiles: number `begin` to `end` of all, row tile by row tile. The first `owners` blocks have some; where there are more blocks than
// tiles, the others wait for the gradients.
struct Share {
    int class_tiles, tiles, owners, begin, end;

    // The block that has a tile. Those of one row tile each leave one Statistics of its rows, in the order of their classes.
    __device__ int owner(int of) const { return int((i64(of + 1) * owners - 1) / tiles); }
};

template <class Kind>
__device__ void fused_step(const MarginLossCall &call, const MarginLossChunk &chunk) {
    using T = typename Kind::T;
    using Sums = typename CosineTile<Kind>::Sums;
    constexpr int TILE = CosineTile<Kind>::TILE;
    extern __shared__ __align__(128) unsigned char memory[];
    StepTiles<Kind> &shared = StepTiles<Kind>::at(memory);
    CosineTile<Kind> &tile = shared.cosines;
    __shared__ Share share; // not in registers, which are the products'
    if (threadIdx.x == 0) {
        // So many tiles as there is shared memory for.
        int class_tiles = int((call.c + TILE - 1) / TILE), tiles = int((call.n + TILE - 1) / TILE) * class_tiles;
        int blocks = gridDim.x, block = blockIdx.x, owners = blocks < tiles ? blocks : tiles;
        int begin = block < owners ? int(i64(tiles) * block / owners) : tiles, end = block < owners ? int(i64(tiles) * (block + 1) / owners) : tiles;
        share = {class_tiles, tiles, owners, begin, end};
    }
    __syncthreads();
    auto own = [&] { return call.on_chip ? memory : nullptr; };
    auto wait_for_all = [&] {
        if (call.on_chip) __syncthreads();
        else cooperative_groups::this_grid().sync();
    };
    // The last tile's cosines stay where its operands were.
    auto kept = [&](int at) -> Kept<T, Sums> & {
        static_assert(sizeof(Kept<T, Sums>) <= sizeof(tile.stages), "room for a tile's cosines");
        bool last = at + 1 == share.end;
        return reinterpret_cast<Kept<T, Sums> *>(last ? memory : memory + Kind::STEP_SHARED)[last ? 0 : at - share.begin];
    };

    for (int at = share.begin; at < share.end; at++) {
        tile.load_labels(call, i64(at / share.class_tiles) * TILE);
        tile.load_prior(call, i64(at % share.class_tiles) * TILE);
        __syncthreads();
        Sums acc;
        tile.multiply_and_norm(call, i64(at / share.class_tiles) * TILE, i64(at % share.class_tiles) * TILE, acc);
        int row_tile = at / share.class_tiles, class_tile = at % share.class_tiles, r = thread();
        i64 row0 = i64(row_tile) * TILE, class0 = i64(class_tile) * TILE;
        tile.to_cosines(acc);
        tile.add_up(call, class0, acc);
        kept(at).put(acc);
        __syncthreads(); // every warp's statistics
        if (r < TILE) {
            Scratch<T> scratch(call, own());
            if (class_tile == 0 && row0 + r < call.n) scratch.rows[row0 + r].norm = tile.row_norms[r];
            if (row0 == 0 && class0 + r < call.c) scratch.class_norms[class0 + r] = tile.class_norms[r];
            // Tile by tile, as where each is a block's: the sums' grouping follows the tiles.
            tile.merge_statistics(r, class0, at == share.begin || class_tile == 0);
            if ((at + 1 == share.end || class_tile + 1 == share.class_tiles) && row0 + r < call.n)
                scratch.partials[(blockIdx.x - share.owner(row_tile * share.class_tiles)) * call.n + row0 + r] = tile.so_far[r];
        }
        __syncthreads(); // the next tile's labels and norms
    }
    wait_for_all(); // every tile's statistics and norms

    Scratch<T> scratch(call, chunk, own(), own());
    // As many lanes a row as it can have parts, up to a warp; where there is one block for all, one.
    int lanes = 1;
    while (lanes < 32 && lanes < share.class_tiles && !call.on_chip) lanes *= 2;
    int lane = threadIdx.x % lanes;
    for (i64 first = (i64(blockIdx.x) * THREADS + threadIdx.x / 32 * 32) / lanes; first < call.n; first += i64(gridDim.x) * THREADS / lanes) {
        i64 i = first + threadIdx.x % 32 / lanes;
        Statistics<T> row = no_statistics<T>();
        if (i < call.n) {
            int first_tile = int(i / TILE) * share.class_tiles;
            int parts = share.owner(first_tile + share.class_tiles - 1) - share.owner(first_tile) + 1;
            for (int part = lane; part < parts; part += lanes) merge(row, scratch.partials[part * call.n + i]);
        }
        for (int offset = lanes / 2; offset > 0; offset /= 2)
            merge(row, shuffled(row, [offset](auto field) { return __shfl_down_sync(~0u, field, offset); }));
        if (lane == 0 && i < call.n) finish_row(call, scratch.rows, i, label_of(call, i), scratch.rows[i].norm, row);
    }
    wait_for_all(); // every row's state

    // Each block finds the reduction's factor for itself: one barrier of the grid less.
    double factor = reduce_rows<T>(call, scratch.rows, blockIdx.x == 0);
    for (int at = share.begin; at < share.end; at++) {
        i64 row0 = i64(at / share.class_tiles) * TILE, class0 = i64(at % share.class_tiles) * TILE;
        load_backward(call, scratch, tile, row0, class0, factor);
        __syncthreads();
        Sums cosines;
        kept(at).get(cosines);
        write_g(call, chunk, scratch, tile, row0, class0, cosines);
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
