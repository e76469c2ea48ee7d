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
#include "backward.cuh"

namespace margin_loss {

template <class Kind>
__device__ void stream_gradient(const MarginLossCall &call, const MarginLossChunk &chunk) {
    using T = typename Kind::T;
    __shared__ CosineTile<Kind> tile;
    __shared__ RowConstants<T> constants[TILE];
    i64 class_tiles = (chunk.classes + TILE - 1) / TILE;
    i64 row0 = chunk.row0 + blockIdx.x / class_tiles * TILE, class0 = chunk.class0 + blockIdx.x % class_tiles * TILE;
    recompute_g(call, chunk, Scratch<T>(call, chunk), tile, constants, row0, class0);
}

template <class Kind>
__device__ void stream_contract(const MarginLossCall &call, const MarginLossChunk &chunk) {
    __shared__ ContractTile<Kind> tile;
    contract(call, chunk, Scratch<typename Kind::T>(call, chunk), tile, blockIdx.x);
}

template <class Kind>
__device__ void stream_backward(const MarginLossCall &call, const MarginLossChunk &chunk) {
    using T = typename Kind::T;
    extern __shared__ __align__(16) unsigned char memory[];
    StepTiles<Kind> &shared = StepTiles<Kind>::at(memory);
    Scratch<T> scratch(call, chunk, nullptr, memory);
    i64 row_tiles = (call.n + TILE - 1) / TILE, class_tiles = (call.c + TILE - 1) / TILE;
    for (i64 at = 0; at < row_tiles * class_tiles; at++) {
        recompute_g(call, chunk, scratch, shared.cosines, shared.constants, at / class_tiles * TILE, at % class_tiles * TILE);
        __syncthreads(); // the next tile overwrites cosines and constants; after the last: g and its dots are whole
    }
    contract_all(call, chunk, scratch, shared.contract);
}

// out = in·upstream, eight of `count` elements a thread at a time, by all of the grid.
template <class E, class T>
__device__ void scale(E *out, const E *in, i64 count, T upstream) {
    bool aligned = rows_aligned(out, 0) && rows_aligned(in, 0);
    for (i64 at = 8 * (i64(blockIdx.x) * THREADS + threadIdx.x); at < count; at += 8 * i64(gridDim.x) * THREADS) {
        T v[8];
        load_some(in + at, count - at, aligned, v);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= upstream;
        store_some(out + at, count - at, aligned, v);
    }
}

// Both gradients of a loss on a tape by their upstream gradient, a scalar on the device: dX (x_count), dW (w_count), either count 0 where it is not
// wanted.
template <class X, class W>
__device__ void scale_gradients(X *dx, const X *from_x, i64 x_count, W *dw, const W *from_w, i64 w_count, const typename AccumulatorOf<X>::Type *upstream) {
    scale(dx, from_x, x_count, *upstream);
    scale(dw, from_w, w_count, *upstream);
}

} // namespace margin_loss

#define ENTRY(NAME, ...)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, margin_loss::BLOCKS<__VA_ARGS__>)                                                                   \
        stream_gradient_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {           \
        margin_loss::stream_gradient<__VA_ARGS__>(call, chunk);                                                                                \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, margin_loss::BLOCKS<__VA_ARGS__>)                                                                   \
        stream_contract_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {           \
        margin_loss::stream_contract<__VA_ARGS__>(call, chunk);                                                                                \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS, MARGIN_LOSS_STEP_BLOCKS)                                          \
        stream_backward_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {           \
        margin_loss::stream_backward<__VA_ARGS__>(call, chunk);                                                                         \
    }
#include "entries.h"

#define SCALE(NAME, X, W)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS)                                                                   \
        scale_gradients_##NAME(X *dx, const X *from_x, long long x_count, W *dw, const W *from_w, long long w_count,                    \
                               const margin_loss::AccumulatorOf<X>::Type *upstream) {                                                   \
        margin_loss::scale_gradients<X, W>(dx, from_x, x_count, dw, from_w, w_count, upstream);                                         \
    }
SCALE(f64, double, double)
SCALE(f32, float, float)
SCALE(f16, __half, __half)
SCALE(bf16, __nv_bfloat16, __nv_bfloat16)
SCALE(f16_f32, __half, float)
SCALE(bf16_f32, __nv_bfloat16, float)
