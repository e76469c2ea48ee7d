// Gradients of a chunk of rows and classes: g from cosines, and its contraction with X and W.
//
//     g_ij = a_i·2^(z_ij − max_i) − u_i, and t_i at the target
//     dX_i = (Σ_j g_ij·ŵ_j − (Σ_j g_ij·c_ij)·x̂_i)·(1/‖X_i‖)
//     dW_j = (Σ_i g_ij·x̂_i − (Σ_i g_ij·c_ij)·ŵ_j)·(1/‖W_j‖)
//
// On tensor cores g is kept rounded as they take it, and by the inverse norms of its row and its class, g_ij/(‖X_i‖·‖W_j‖), so that X and W go
// in as they are, and one g serves both products: dX's is then multiplied by ‖X_i‖, dW's by ‖W_j‖. A projection's sum takes g as it was
// rounded: near a pole ψ′ is large, and must cancel.
#ifndef MARGIN_LOSS_BACKWARD_CUH
#define MARGIN_LOSS_BACKWARD_CUH

#include "rows.cuh"

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

// k is a class: ŵ_j.
template <class T>
struct ByClass {
    const Norm<T> *norms;

    static constexpr bool SCALES = true;
    __device__ bool counts(i64) const { return true; }
    template <class>
    __device__ Norm<T> norm(i64 k) const { return norms[k]; }
};

// k is a row: x̂_i; rows that do not count are not read.
template <class T>
struct ByRow {
    const RowState<T> *rows;

    static constexpr bool SCALES = true;
    __device__ bool counts(i64 k) const { return rows[k].label >= 0; }
    template <class>
    __device__ Norm<T> norm(i64 k) const { return rows[k].norm; }
};

// k of split `split` of `splits`, in whole steps of 64.
__device__ inline void split_of(i64 depth, i64 split, i64 splits, i64 *begin, i64 *end) {
    i64 steps = (depth + TILE - 1) / TILE;
    *begin = steps * split / splits * TILE;
    *end = steps * (split + 1) / splits * TILE;
    if (*end > depth) *end = depth;
}

// Whether this block is to go on with a tile's whole sum in `acc`: it alone has it, or it came last and adds up all splits in their order.
template <class T, class Sums>
__device__ bool gather(Sums &acc, const MarginLossChunk &chunk, i64 tile, i64 first_sum, i64 split, i64 splits) {
    if (splits == 1) return true;
    T *sums = static_cast<T *>(chunk.partial_sums) + first_sum * (TILE * TILE) + threadIdx.x;
#pragma unroll
    for (int e = 0; e < TILE * TILE / THREADS; e++) sums[split * (TILE * TILE) + e * THREADS] = acc.at[e];
    if (!is_last(chunk.arrivals + tile, unsigned(splits))) return false;
#pragma unroll
    for (int e = 0; e < TILE * TILE / THREADS; e++) acc.at[e] = T(0);
    for (i64 other = 0; other < splits; other++)
#pragma unroll
        for (int e = 0; e < TILE * TILE / THREADS; e++) acc.at[e] += sums[other * (TILE * TILE) + e * THREADS];
    return true;
}

// Shared memory of a contraction.
template <class Kind>
struct ContractTile {
    using T = typename Kind::T;
    using Engine = typename Kind::Contract;

    union {
        typename Engine::Stages stages;
        Values<T> values;
    };
    Norm<T> norms[TILE];
    T dots[TILE];
};

// What the two gradients have in common once a tile's sums are whole: earlier chunks, the projection, the norm, and the rounding. Begins and
// ends with a barrier.
//
//     out[m][d] = (Σ − dots[m]·unit row m)·(scale/length of m), where g has the norms in it Σ·length first
template <bool NORMS_IN_G, class E, class T, class Tile, class Sums>
__device__ void write_gradient(Tile &tile, const Sums &acc, E *out, T *sums, const E *values, i64 stride, i64 d, i64 d0, i64 rows, bool first,
                               bool last) {
#pragma unroll
    for (int e = 0; e < TILE * TILE / THREADS; e++) tile.values[acc.row(e)][acc.column(e)] = acc.at[e];
    __syncthreads();
    i64 at = d0 + threadIdx.x % TILE;
    for (int row = threadIdx.x / TILE; row < TILE && row < rows && at < d; row += 2) {
        Norm<T> norm = tile.norms[row];
        T sum = tile.values[row][threadIdx.x % TILE];
        if (!first) sum += sums[row * d + at];
        if (!last) {
            sums[row * d + at] = sum;
            continue;
        }
        bool counts = norm.length != T(0);
        if (NORMS_IN_G) sum *= norm.magnitude();
        if (counts && norm.projects()) sum -= tile.dots[row] * (T(widen(values[row * stride + at])) * norm.scale / norm.length);
        out[row * d + at] = Narrow<E, T>::of(counts ? sum / norm.magnitude() * norm.scale : T(0));
    }
    __syncthreads();
}

// Block `block` of a contraction: first come the tiles of dX and their splits, whose sums are long, then those of dW.
template <class Kind>
__device__ void contract(const MarginLossCall &call, const MarginLossChunk &chunk, const Scratch<typename Kind::T> &scratch,
                         ContractTile<Kind> &tile, i64 block) {
    using X = typename Kind::X;
    using W = typename Kind::W;
    using T = typename Kind::T;
    using Engine = typename Kind::Contract;
    using G = typename Engine::G;
    i64 d_tiles = (call.d + TILE - 1) / TILE;
    i64 dx_tiles = chunk.dx ? (chunk.rows + TILE - 1) / TILE * d_tiles : 0, dx_blocks = dx_tiles * chunk.dx_splits;
    const RowState<T> *rows = scratch.rows + chunk.row0;
    const Norm<T> *class_norms = scratch.class_norms + chunk.class0;
    int r = threadIdx.x % TILE;
    typename Engine::Sums acc;
    i64 begin, end;

    if (block < dx_blocks) {
        i64 split = block % chunk.dx_splits, at = block / chunk.dx_splits;
        i64 i0 = at / d_tiles * TILE, d0 = at % d_tiles * TILE; // i0 counts from the chunk's first row
        split_of(chunk.classes, split, chunk.dx_splits, &begin, &end);
        const G *g = static_cast<const G *>(scratch.g) + i0 * chunk.stride + begin;
        const W *w = static_cast<const W *>(call.w) + (chunk.class0 + begin) * call.w_stride + d0;
        typename Engine::template AlongK<G> a(g, chunk.stride, chunk.rows - i0, end - begin, nullptr, nullptr, scratch.g_on_chip);
        typename Engine::template AcrossK<W, ByClass<T>> b(w, call.w_stride, call.d - d0, end - begin, {class_norms + begin});
        Engine::template multiply<false>(acc, a, b, end - begin, tile.stages, nullptr);
        if (!gather<T>(acc, chunk, at, at * chunk.dx_splits, split, chunk.dx_splits)) return;
        if (threadIdx.x < TILE && i0 + r < chunk.rows) {
            RowState<T> state = rows[i0 + r];
            tile.norms[r] = state.label >= 0 ? state.norm : Norm<T>{T(1), state.label == IGNORED ? T(0) : T(NAN)};
            T dot = T(0);
            if (state.label >= 0) {
                double a = coefficient(call, chunk.row0 + i0 + r, state, *call.factor);
                T target = T(a * state.target);
                if constexpr (Engine::NORMS_IN_G) {
                    // As write_g has it.
                    T length = state.norm.magnitude(), class_length = scratch.class_norms[state.label].magnitude();
                    target = widen(Engine::to_g(target * (T(1) / length) * (T(1) / class_length))) * length * class_length;
                }
                dot = T(a * state.dot) + target * state.cosine;
            }
            tile.dots[r] = dot;
        }
        i64 row0 = chunk.row0 + i0;
        write_gradient<Engine::NORMS_IN_G, X, T>(tile, acc, static_cast<X *>(call.dx) + row0 * call.d, static_cast<T *>(chunk.dx_sums) + i0 * call.d,
                             static_cast<const X *>(call.x) + row0 * call.x_stride, call.x_stride, call.d, d0, chunk.rows - i0,
                             chunk.first_classes, chunk.last_classes);
    } else {
        block -= dx_blocks;
        i64 split = block % chunk.dw_splits, at = block / chunk.dw_splits;
        i64 j0 = at / d_tiles * TILE, d0 = at % d_tiles * TILE; // j0 counts from the chunk's first class
        split_of(chunk.rows, split, chunk.dw_splits, &begin, &end);
        const G *g = static_cast<const G *>(scratch.g) + j0 + begin * chunk.stride;
        const X *x = static_cast<const X *>(call.x) + (chunk.row0 + begin) * call.x_stride + d0;
        typename Engine::template AcrossK<G, Plain> a(g, chunk.stride, TILE, end - begin, {}, scratch.g_on_chip);
        typename Engine::template AcrossK<X, ByRow<T>> b(x, call.x_stride, call.d - d0, end - begin, {rows + begin});
        Engine::template multiply<false>(acc, a, b, end - begin, tile.stages, nullptr);
        bool dx_is_split = chunk.dx_splits > 1; // its counters and sums come first
        i64 first_tile = dx_is_split ? dx_tiles : 0, first_sum = dx_is_split ? dx_blocks : 0;
        if (!gather<T>(acc, chunk, first_tile + at, first_sum + at * chunk.dw_splits, split, chunk.dw_splits)) return;
        i64 row_tiles = (call.n + TILE - 1) / TILE, class0 = chunk.class0 + j0;
        if (threadIdx.x < TILE && class0 + r < call.c) {
            T dot = T(0);
            if (chunk.last_rows)
                for (i64 t = 0; t < row_tiles; t++) dot += scratch.class_dots[t * chunk.stride + j0 + r];
            tile.dots[r] = dot;
            tile.norms[r] = class_norms[j0 + r];
        }
        write_gradient<Engine::NORMS_IN_G, W, T>(tile, acc, static_cast<W *>(call.dw) + class0 * call.d, static_cast<T *>(chunk.dw_sums) + j0 * call.d,
                             static_cast<const W *>(call.w) + class0 * call.w_stride, call.w_stride, call.d, d0, chunk.classes - j0,
                             chunk.first_rows, chunk.last_rows);
    }
}

// This block's share of a chunk's contraction, where the chunk is all there is.
template <class Kind>
__device__ void contract_all(const MarginLossCall &call, const MarginLossChunk &chunk, const Scratch<typename Kind::T> &scratch,
                             ContractTile<Kind> &tile) {
    i64 row_tiles = (call.n + TILE - 1) / TILE, class_tiles = (call.c + TILE - 1) / TILE, d_tiles = (call.d + TILE - 1) / TILE;
    i64 blocks = (chunk.dx ? row_tiles * d_tiles * chunk.dx_splits : 0) + (chunk.dw ? class_tiles * d_tiles * chunk.dw_splits : 0);
    for (i64 block = blockIdx.x; block < blocks; block += gridDim.x) contract(call, chunk, scratch, tile, block);
}

// What a block that goes from cosines to gradients has in shared memory; what it keeps between the two follows.
template <class Kind>
struct StepTiles {
    union {
        CosineTile<Kind> cosines;
        ContractTile<Kind> contract;
    };
    RowConstants<typename Kind::T> constants[TILE];

    // At the start of a block's dynamic shared memory.
    __device__ static StepTiles &at(unsigned char *memory) {
        static_assert(sizeof(StepTiles) == Kind::STEP_SHARED && Kind::STEP_SHARED % 16 == 0, "what the host makes room for");
        return *reinterpret_cast<StepTiles *>(memory);
    }
};

} // namespace margin_loss

#endif
