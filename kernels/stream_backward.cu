// Gradients from the rows' states and the norms that stream_forward left. At any size, a chunk of rows and classes at a time:
//
//     stream_gradient, a block for each row tile and class tile:      c = x̂·ŵ once more, and g into the workspace
//     stream_contract, a block for each tile of dX and of dW:         g·Ŵ and gᵀ·X̂, less their projections
//
// g of a chunk is all that is kept. Where a gradient takes several chunks, they come one after the other and add to its sums; where a sum is
// long and tiles are few, it is split among blocks, and the last of a tile adds up their parts in order.
//
// A problem of a few tiles, in one launch of one block, whose shared memory keeps all of g:
//
//     stream_backward:    for each row tile and class tile:           c = x̂·ŵ once more, and g
//                         for each tile of dX and of dW:              the same contraction
//
// States and norms stay in global memory there: a copy of them would be one more pass, for what the first-level cache has after one read.
#include "contract.cuh"

namespace margin_loss {

template <class Kind>
__device__ void stream_gradient(const MarginLossCall &call, const MarginLossChunk &chunk) {
    constexpr int TILE = CosineTile<Kind>::TILE;
    extern __shared__ __align__(128) unsigned char memory[];
    i64 class_tiles = (chunk.classes + TILE - 1) / TILE;
    i64 row0 = chunk.row0 + blockIdx.x / class_tiles * TILE, class0 = chunk.class0 + blockIdx.x % class_tiles * TILE;
    recompute_g(call, chunk, Scratch<typename Kind::T>(call, chunk), StepTiles<Kind>::at(memory).cosines, row0, class0);
}

template <class Kind>
__device__ void stream_contract(const MarginLossCall &call, const MarginLossChunk &chunk) {
    extern __shared__ __align__(128) unsigned char memory[];
    contract(call, chunk, Scratch<typename Kind::T>(call, chunk), ContractTile<Kind>::at(memory), blockIdx.x);
}

template <class Kind>
__device__ void stream_backward(const MarginLossCall &call, const MarginLossChunk &chunk) {
    constexpr int TILE = CosineTile<Kind>::TILE;
    extern __shared__ __align__(128) unsigned char memory[];
    StepTiles<Kind> &shared = StepTiles<Kind>::at(memory);
    Scratch<typename Kind::T> scratch(call, chunk, nullptr, memory);
    i64 row_tiles = (call.n + TILE - 1) / TILE, class_tiles = (call.c + TILE - 1) / TILE;
    for (i64 at = 0; at < row_tiles * class_tiles; at++) {
        recompute_g(call, chunk, scratch, shared.cosines, at / class_tiles * TILE, at % class_tiles * TILE);
        __syncthreads(); // the next tile overwrites norms and constants; after the last: g and its dots are whole
    }
    contract_all(call, chunk, scratch, shared.contract);
}

} // namespace margin_loss

#define ENTRY(NAME, ...)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, (__VA_ARGS__::BLOCKS))                                                                   \
        stream_gradient_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {           \
        margin_loss::stream_gradient<__VA_ARGS__>(call, chunk);                                                                                \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, (__VA_ARGS__::BLOCKS))                                                                   \
        stream_contract_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {           \
        margin_loss::stream_contract<__VA_ARGS__>(call, chunk);                                                                                \
    }
#include "entries.h"

// A problem of a few tiles has none that are wide.
#define NARROW
#define ENTRY(NAME, ...)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, MARGIN_LOSS_STEP_BLOCKS)                                          \
        stream_backward_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {           \
        margin_loss::stream_backward<__VA_ARGS__>(call, chunk);                                                                         \
    }
#include "entries.h"
