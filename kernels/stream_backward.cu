// Gradients at any size, from the rows' states and the norms that stream_forward left, a chunk of rows and classes at a time:
//
//     stream_gradient, a block for each row tile and class tile:      c = x̂·ŵ once more, and g into the workspace
//     stream_contract, a block for each tile of dX and of dW:         g·Ŵ and gᵀ·X̂, less their projections
//
// g of a chunk is all that is kept. Where a gradient takes several chunks, they come one after the other and add to its sums; where a sum is
// long and tiles are few, it is split among blocks, and the last of a tile adds up their parts in order.
#include "backward.cuh"

namespace margin_loss {

template <class Kind>
__device__ void stream_gradient(const MarginLossCall &call, const MarginLossChunk &chunk) {
    using T = typename Kind::T;
    __shared__ CosineTile<Kind> tile;
    __shared__ RowConstants<T> constants[TILE];
    Scratch<T> scratch(call, chunk);
    i64 class_tiles = (chunk.classes + TILE - 1) / TILE;
    i64 row0 = chunk.row0 + blockIdx.x / class_tiles * TILE, class0 = chunk.class0 + blockIdx.x % class_tiles * TILE;
    load_backward(call, scratch, tile, constants, row0, class0, *call.factor);
    __syncthreads();
    typename CosineTile<Kind>::Sums acc;
    tile.template multiply<false>(call, row0, class0, true, acc);
    tile.keep(acc, tile.cosines);
    write_g(call, chunk, scratch, tile, row0, class0, tile.cosines, constants);
}

template <class Kind>
__device__ void stream_contract(const MarginLossCall &call, const MarginLossChunk &chunk) {
    __shared__ ContractTile<Kind> tile;
    contract(call, chunk, Scratch<typename Kind::T>(call, chunk), tile, blockIdx.x);
}

// out = in·upstream, a scalar on the device.
template <class E>
__device__ void scale_gradient(E *out, const E *in, const typename AccumulatorOf<E>::Type *upstream, i64 count) {
    using T = typename AccumulatorOf<E>::Type;
    T factor = *upstream;
    for (i64 at = i64(blockIdx.x) * THREADS + threadIdx.x; at < count; at += i64(gridDim.x) * THREADS)
        out[at] = Narrow<E, T>::of(T(widen(in[at])) * factor);
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
    }
#include "entries.h"

#define SCALE(NAME, E)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS)                                                                   \
        scale_gradient_##NAME(E *out, const E *in, const margin_loss::AccumulatorOf<E>::Type *upstream, long long count) {              \
        margin_loss::scale_gradient<E>(out, in, upstream, count);                                                                       \
    }
SCALE(f64, double)
SCALE(f32, float)
SCALE(f16, __half)
SCALE(bf16, __nv_bfloat16)
