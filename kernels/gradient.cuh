// g of a tile from its cosines and its rows' constants:
//
//     g_ij = a_i·2^(z_ij − max_i) − u_i, and t_i at the target
//
// On tensor cores g is kept rounded as they take it, and by the inverse norms of its row and its class, g_ij/(‖X_i‖·‖W_j‖), so that X and W go
// in as they are, and one g serves both products: dX's is then multiplied by ‖X_i‖, dW's by ‖W_j‖. A projection's sum takes g as it was
// rounded: near a pole ψ′ is large, and must cancel.
#ifndef MARGIN_LOSS_GRADIENT_CUH
#define MARGIN_LOSS_GRADIENT_CUH

#include "finish.cuh"

namespace margin_loss {

// What g takes of a row.
template <class T>
struct RowConstants {
    T max;
    T factor;  // a_i
    T uniform; // u_i
    T target;  // t_i
    T inverse, length; // of the norm: what g is multiplied by, and what that is undone by
};

template <class T>
__device__ inline RowConstants<T> row_constants(const MarginLossCall &call, const RowState<T> &state, double a) {
    if (state.label < 0) {
        // An ignored row's g is 0; that of a row that cannot be poisons what it reaches.
        T nothing = state.label == IGNORED ? T(0) : T(NAN);
        return {T(0), nothing, T(0), nothing, T(1), T(1)};
    }
    T length = state.norm.magnitude();
    return {state.max, T(a * state.others), T(a * call.options.label_smoothing / double(call.c)), T(a * state.target), T(1) / length, length};
}

// What write_g takes of a tile's rows and classes, from their states and norms. Needs a barrier.
template <class Kind>
__device__ void load_backward(const MarginLossCall &call, const Scratch<typename Kind::T> &scratch, CosineTile<Kind> &tile,
                              RowConstants<typename Kind::T> *constants, i64 row0, i64 class0, double factor) {
    using T = typename Kind::T;
    int r = threadIdx.x % TILE;
    if (threadIdx.x < TILE) {
        RowState<T> state = {};
        state.label = IGNORED;
        double a = 0.0;
        if (row0 + r < call.n) {
            state = scratch.rows[row0 + r];
            a = coefficient(call, row0 + r, state, factor);
        }
        tile.labels[r] = state.label;
        tile.row_norms[r] = state.label >= 0 ? state.norm : Norm<T>{T(1), T(0)};
        constants[r] = row_constants(call, state, a);
    } else {
        i64 j = class0 + r;
        tile.class_norms[r] = j < call.c ? scratch.class_norms[j] : Norm<T>{T(1), T(0)};
    }
    tile.load_prior(call, class0);
}

// g of the tile at (row0, class0), which is in the chunk, from its cosines and the rows' constants, to the workspace; and Σ_i g·c.
template <class Kind>
__device__ void write_g(const MarginLossCall &call, const MarginLossChunk &chunk, const Scratch<typename Kind::T> &scratch,
                        const CosineTile<Kind> &tile, i64 row0, i64 class0, const Values<typename Kind::T> &cosines,
                        const RowConstants<typename Kind::T> *constants) {
    using T = typename Kind::T;
    using Engine = typename Kind::Contract;
    using G = typename Engine::G;
    __shared__ T dots[TILE];
    int column = threadIdx.x % TILE, part = threadIdx.x / TILE;
    i64 first = (row0 - chunk.row0) * chunk.stride + (class0 - chunk.class0) + column;
    G *g = static_cast<G *>(scratch.g) + first;
    int rows = int(chunk.row0 + chunk.rows - row0 < TILE ? chunk.row0 + chunk.rows - row0 : TILE);
    T scale = scale2<T>(call.options), prior = tile.prior2[column];
    T class_length = tile.class_norms[column].magnitude(), class_inverse = T(1) / class_length;
    T sum = T(0);
    // Halves of rows one after the other, as the contraction adds them up: at a pole the two sums are to cancel.
    for (int row = part * (TILE / 2); row < rows && row < (part + 1) * (TILE / 2); row++) {
        RowConstants<T> of = constants[row];
        T c = cosines[row][column];
        T value = fma(of.factor, exp2(fma(scale, c, prior) - of.max), -of.uniform);
        if (column == tile.target_in(class0, row)) value = of.target;
        // Masked last, so that nothing computed above can make a row that does not count anything but 0; padded classes are not read.
        if (tile.labels[row] < 0) value = of.target;
        if constexpr (Engine::NORMS_IN_G) {
            bool zero = value == T(0); // whatever the norms of what does not count
            G rounded = Engine::to_g(zero ? T(0) : value * of.inverse * class_inverse);
            g[row * chunk.stride] = rounded;
            if (!zero) sum = fma(widen(rounded) * of.length * class_length, c, sum);
        } else {
            g[row * chunk.stride] = value;
            if (value != T(0)) sum = fma(value, c, sum);
        }
    }
    if (!chunk.dw) return;
    if (part == 1) dots[column] = sum;
    __syncthreads();
    if (part == 0) scratch.class_dots[row0 / TILE * chunk.stride + (class0 - chunk.class0) + column] = sum + dots[column];
}

// g of the tile at (row0, class0) from states and norms: its cosines once more.
template <class Kind>
__device__ void recompute_g(const MarginLossCall &call, const MarginLossChunk &chunk, const Scratch<typename Kind::T> &scratch,
                            CosineTile<Kind> &tile, RowConstants<typename Kind::T> *constants, i64 row0, i64 class0) {
    load_backward(call, scratch, tile, constants, row0, class0, *call.factor);
    __syncthreads(); // the product takes labels and norms of every row and class
    typename CosineTile<Kind>::Sums acc;
    tile.template multiply<false>(call, row0, class0, true, acc);
    tile.keep(acc, tile.cosines);
    write_g(call, chunk, scratch, tile, row0, class0, tile.cosines, constants);
}

} // namespace margin_loss

#endif
