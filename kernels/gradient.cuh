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

// `a` is the row's coefficient.
template <bool NORMS_IN_G, class T>
__device__ inline RowConstants<T> row_constants(const MarginLossCall &call, const RowState<T> &state, double a) {
    if (state.label < 0) {
        // An ignored row's g is 0, whatever its cosines: 2^(z − ∞); that of a row that cannot be poisons what it reaches. A class whose norm is NaN
        // makes it NaN, as all of that class's gradient is in any case.
        T nothing = state.label == IGNORED ? T(0) : T(NAN);
        return {T(INFINITY), T(1), -nothing, nothing, T(1)};
    }
    T length = NORMS_IN_G ? state.norm.magnitude() : T(1), inverse = T(1) / length;
    T uniform = T(a * call.options.label_smoothing / double(call.c));
    return {state.max, T(a * state.others) * inverse, uniform * inverse, T(a * state.target) * inverse, length};
}

// What write_g takes of a tile's rows and classes, from their states and norms. Needs a barrier.
template <class Kind>
__device__ void load_backward(const MarginLossCall &call, const Scratch<typename Kind::T> &scratch, CosineTile<Kind> &tile,
                              i64 row0, i64 class0, double factor) {
    using T = typename Kind::T;
    constexpr int TILE = CosineTile<Kind>::TILE;
    for (int at = thread(); at < 2 * TILE; at += THREADS) {
        int r = at % TILE;
        if (at < TILE) {
            RowState<T> state = {};
            state.label = IGNORED;
            double a = 0.0;
            if (row0 + r < call.n) {
                state = scratch.rows[row0 + r];
                a = coefficient(call, row0 + r, state, factor);
            }
            tile.labels[r] = state.label;
            tile.set_norm(0, r, state.label >= 0 ? state.norm : Norm<T>{T(1), T(0)});
            tile.constants[r] = row_constants<Kind::Contract::NORMS_IN_G>(call, state, a);
        } else {
            tile.set_norm(1, r, class0 + r < call.c ? scratch.class_norms[class0 + r] : Norm<T>{T(1), T(0)});
        }
    }
    tile.load_prior(call, class0);
}

// Numbers side by side, in one store.
template <class G, class T, int COUNT>
__device__ inline void store_together(G *to, const T (&v)[COUNT]) {
    struct alignas(COUNT * sizeof(G) < 16 ? COUNT * sizeof(G) : 16) { G at[COUNT]; } all;
#pragma unroll
    for (int i = 0; i < COUNT; i++) all.at[i] = v[i];
    *reinterpret_cast<decltype(all) *>(to) = all;
}

// g of the tile at (row0, class0), which is in the chunk, from its cosines and the rows' constants, to the workspace; and Σ_i g·c. Needs a
// barrier before the next tile's.
template <class Kind>
__device__ void write_g(const MarginLossCall &call, const MarginLossChunk &chunk, const Scratch<typename Kind::T> &scratch, CosineTile<Kind> &tile,
                        i64 row0, i64 class0, const typename CosineTile<Kind>::Sums &cosines) {
    using T = typename Kind::T;
    using Engine = typename Kind::Contract;
    using G = typename Engine::G;
    using Sums = typename CosineTile<Kind>::Sums;
    constexpr int TILE = CosineTile<Kind>::TILE, ROWS = Sums::ROWS, COLUMNS = Sums::COLUMNS, SIDE_BY_SIDE = Sums::SIDE_BY_SIDE;
    typename CosineTile<Kind>::Place place;
    i64 rows = chunk.row0 + chunk.rows - row0;
    G *g = static_cast<G *>(scratch.g) + (row0 - chunk.row0) * chunk.stride + (class0 - chunk.class0);
    T scale = scale2<T>(call.options);
    // Four columns of a wide tile at a time, half of another's: what is known of all would be more registers than there are.
    constexpr int GROUP = COLUMNS > 8 ? COLUMNS / 4 : COLUMNS / 2 > SIDE_BY_SIDE ? COLUMNS / 2 : SIDE_BY_SIDE;
#pragma unroll
    for (int first = 0; first < COLUMNS; first += GROUP) {
        __syncwarp(); // lest the compiler mix them
        T prior[GROUP], inverses[GROUP], sums[GROUP];
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            prior[j] = tile.prior2[place.column(first + j)], inverses[j] = tile.class_inverses[place.column(first + j)], sums[j] = T(0);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int row = place.row(i), target = place.number_of(tile.target_in(class0, row)) - first;
            RowConstants<T> of = tile.constants[row];
            T values[GROUP];
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                T c = cosines.at[cosines.index(i, first + j)];
                values[j] = fma(of.factor, power_of_two(fma(scale, c, prior[j]) - of.max), -of.uniform);
            }
            if (target >= 0 && target < GROUP) {
#pragma unroll
                for (int j = 0; j < GROUP; j++) values[j] = j == target ? of.target : values[j];
            }
#pragma unroll
            for (int j0 = 0; j0 < GROUP; j0 += SIDE_BY_SIDE) {
                T rounded[SIDE_BY_SIDE];
                G g_of[SIDE_BY_SIDE];
#pragma unroll
                for (int j = 0; j < SIDE_BY_SIDE; j++) rounded[j] = Engine::NORMS_IN_G ? values[j0 + j] * inverses[j0 + j] : values[j0 + j];
                Engine::to_g(rounded, g_of);
                if (row < rows) store_together(g + row * chunk.stride + place.column(first + j0), g_of);
#pragma unroll
                for (int j = 0; j < SIDE_BY_SIDE; j++) {
                    T c = cosines.at[cosines.index(i, first + j0 + j)];
                    sums[j0 + j] = fma(Engine::NORMS_IN_G ? rounded[j] * of.length : rounded[j], c, sums[j0 + j]);
                }
            }
        }
        if (!chunk.dw) continue;
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
#pragma unroll
            for (int offset = Sums::ROW_LANES; offset < 32; offset *= 2) sums[j] += __shfl_xor_sync(~0u, sums[j], offset);
            if (place.thread % 32 < Sums::ROW_LANES) tile.dots[place.column_part()][place.column(first + j)] = sums[j];
        }
    }
    if (!chunk.dw) return;
    __syncthreads();
    int column = place.thread;
    if (column >= TILE) return;
    T sum = tile.dots[0][column];
    for (int part = 1; part < Sums::COLUMN_PARTS; part++) sum += tile.dots[part][column];
    if constexpr (Engine::NORMS_IN_G) sum = sum == T(0) ? sum : sum * tile.class_norms[column].magnitude();
    scratch.class_dots[row0 / TILE * chunk.stride + (class0 - chunk.class0) + column] = sum;
}

// g of the tile at (row0, class0) from states and norms: its cosines once more.
template <class Kind>
__device__ void recompute_g(const MarginLossCall &call, const MarginLossChunk &chunk, const Scratch<typename Kind::T> &scratch,
                            CosineTile<Kind> &tile, i64 row0, i64 class0) {
    load_backward(call, scratch, tile, row0, class0, *call.factor);
    __syncthreads(); // the product takes labels and norms of every row and class
    typename CosineTile<Kind>::Sums acc;
    tile.template multiply<false>(call, row0, class0, true, acc);
    tile.to_cosines(acc);
    write_g(call, chunk, scratch, tile, row0, class0, acc);
}

} // namespace margin_loss

#endif
