// The contraction of a chunk's g with X and W:
//
//     dX_i = (Σ_j g_ij·ŵ_j − (Σ_j g_ij·c_ij)·x̂_i)·(1/‖X_i‖)
//     dW_j = (Σ_i g_ij·x̂_i − (Σ_i g_ij·c_ij)·ŵ_j)·(1/‖W_j‖)
#ifndef MARGIN_LOSS_CONTRACT_CUH
#define MARGIN_LOSS_CONTRACT_CUH

#include "gradient.cuh"

namespace margin_loss {

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
    constexpr i64 STEP = MARGIN_LOSS_STEP;
    i64 steps = (depth + STEP - 1) / STEP;
    *begin = steps * split / splits * STEP;
    *end = steps * (split + 1) / splits * STEP;
    if (*end > depth) *end = depth;
}

// Whether this block is to go on with a tile's whole sum in `acc`: it alone has it, or it came last and adds up all splits in their order.
template <class T, class Sums>
__device__ bool gather(Sums &acc, const MarginLossChunk &chunk, i64 tile, i64 first_sum, i64 split, i64 splits) {
    constexpr int EACH = Sums::ROWS * Sums::COLUMNS, ALL = EACH * THREADS;
    if (splits == 1) return true;
    T *sums = static_cast<T *>(chunk.partial_sums) + first_sum * ALL + thread();
#pragma unroll
    for (int e = 0; e < EACH; e++) sums[split * ALL + e * THREADS] = acc.at[e];
    if (!is_last(chunk.arrivals + tile, unsigned(splits))) return false;
#pragma unroll
    for (int e = 0; e < EACH; e++) acc.at[e] = T(0);
    for (i64 other = 0; other < splits; other++)
#pragma unroll
        for (int e = 0; e < EACH; e++) acc.at[e] += sums[other * ALL + e * THREADS];
    return true;
}

// What a row of a gradient takes beside its sums.
template <class T>
struct alignas(16) RowEnd {
    T scale;
    T length;  // 0: the row does not count
    T inverse; // 1/length
    T along;   // what of the row's own direction comes to its sums: of x̂, or, where g has the norms in it, of x·scale
};

// Where a column's sum stands in its row of ContractTile::values: groups of four change places in every second 32, so that eight lanes that read
// every second group meet no bank twice.
__device__ inline int place_in_row(int column) { return column ^ column / 32 % 2 * 4; }

// Shared memory of a contraction.
template <class Kind>
struct ContractTile {
    using T = typename Kind::T;
    using Engine = typename Kind::Contract;
    static constexpr int TILE = Engine::TILE;

    union {
        typename Engine::Stages stages;
        T values[TILE][TILE + 8]; // threads that write neighbouring rows meet no bank twice
    };
    RowEnd<T> ends[TILE];

    // At the start of a block's dynamic shared memory.
    __device__ static ContractTile &at(unsigned char *memory) {
        static_assert(sizeof(ContractTile) == Kind::CONTRACT_SHARED, "what the host makes room for");
        return *reinterpret_cast<ContractTile *>(memory);
    }

    __device__ void set(int r, Norm<T> norm, T dot) {
        T length = norm.magnitude();
        T along = norm.projects() ? -dot : T(0);
        ends[r] = {norm.scale, length, T(1) / length, Engine::NORMS_IN_G ? along / length / length : along};
    }
};

// Row `row` of a gradient, whose elements are E or, where gradients are wide, T.
template <class E, class T>
__device__ void *gradient_at(const MarginLossCall &call, void *gradient, i64 row) {
    return static_cast<char *>(gradient) + row * call.d * i64(call.wide_gradients ? sizeof(T) : sizeof(E));
}

// What the two gradients have in common once a tile's sums are whole: earlier chunks, the projection, the norm, and the rounding; eight
// dimensions of a row at a time, a thread's of the same columns. Begins and ends with a barrier.
//
//     out[m][d] = (Σ − dot_m·unit row m)·(scale/length of m); where g has the norms in it, (Σ − dot_m/length²·row m·scale)·scale
template <bool NORMS_IN_G, class E, class T, class Tile, class Sums>
__device__ void write_gradient(Tile &tile, const Sums &acc, void *out, bool wide, T *sums, const E *values, i64 stride, i64 d, i64 d0, i64 rows,
                               bool first, bool last) {
    constexpr int TILE = Tile::TILE, SIDE_BY_SIDE = Sums::SIDE_BY_SIDE, ACROSS = TILE / 8, DOWN = THREADS / ACROSS;
    typename Tile::Engine::Place place;
    constexpr int GROUP = Sums::COLUMNS / 2 >= SIDE_BY_SIDE ? Sums::COLUMNS / 2 : Sums::COLUMNS;
#pragma unroll
    for (int at = 0; at < 2 * Sums::COLUMNS; at += GROUP) {
        // What follows is this address and a number known to the compiler.
        int i0 = at / Sums::COLUMNS * (Sums::ROWS / 2), first_column = at % Sums::COLUMNS;
        T *to = &tile.values[place.row(i0)][place_in_row(place.column(first_column))];
#pragma unroll
        for (int i = i0; i < i0 + Sums::ROWS / 2; i++) {
#pragma unroll
            for (int j0 = first_column; j0 < first_column + GROUP; j0 += SIDE_BY_SIDE) {
                T together[SIDE_BY_SIDE];
#pragma unroll
                for (int j = 0; j < SIDE_BY_SIDE; j++) together[j] = acc.at[acc.index(i, j0 + j)];
                store_together(to + place.row_on(i) * (TILE + 8) + place.column_on(j0), together);
            }
        }
    }
    __syncthreads();
    int row = place.thread / ACROSS, column = place.thread % ACROSS * 8;
    i64 left = d - d0 - column;
    if (left > 0) {
        bool out_aligned = wide ? rows_aligned(static_cast<T *>(out), d) : rows_aligned(static_cast<E *>(out), d);
        bool sums_aligned = rows_aligned(sums, d), values_aligned = rows_aligned(values, stride);
        const T *low = &tile.values[row][place_in_row(column)], *high = &tile.values[row][place_in_row(column + 4)];
        i64 size = wide ? sizeof(T) : sizeof(E);
        char *to = static_cast<char *>(out) + (row * d + d0 + column) * size;
        values += row * stride + d0 + column, sums += row * d + d0 + column;
        i64 to_next = DOWN * d * size, values_next = DOWN * stride, sums_next = DOWN * d; // products of the loop's counter would be made anew in each turn
#pragma unroll 1
        for (int end = rows < TILE ? int(rows) : TILE; row < end; row += DOWN) {
            T v[8], own[8];
            load4(low, v), load4(high, v + 4);
            if (!first) {
                load_some(sums, left, sums_aligned, own);
#pragma unroll
                for (int i = 0; i < 8; i++) v[i] += own[i];
            }
            if (last) {
                RowEnd<T> of = tile.ends[row];
                load_some(values, of.length != T(0) ? left : 0, values_aligned, own);
                if (of.scale != T(1)) {
#pragma unroll
                    for (int i = 0; i < 8; i++) own[i] *= of.scale;
                }
#pragma unroll
                for (int i = 0; i < 8; i++)
                    v[i] = NORMS_IN_G ? fma(of.along, own[i], v[i]) : divide(fma(of.along, divide(own[i], of.length, of.inverse), v[i]), of.length, of.inverse);
                if (of.scale != T(1)) {
#pragma unroll
                    for (int i = 0; i < 8; i++) v[i] *= of.scale;
                }
                if (of.length == T(0)) {
#pragma unroll
                    for (int i = 0; i < 8; i++) v[i] = T(0);
                }
                if (wide) store_some(reinterpret_cast<T *>(to), left, out_aligned, v);
                else store_some(reinterpret_cast<E *>(to), left, out_aligned, v);
            } else {
                store_some(sums, left, sums_aligned, v);
            }
            to += to_next, values += values_next, sums += sums_next;
            low += DOWN * (TILE + 8), high += DOWN * (TILE + 8);
        }
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
    constexpr int TILE = Engine::TILE, LOGITS_TILE = Kind::Logits::TILE;
    i64 d_tiles = (call.d + TILE - 1) / TILE;
    i64 dx_tiles = chunk.dx ? (chunk.rows + TILE - 1) / TILE * d_tiles : 0, dx_blocks = dx_tiles * chunk.dx_splits;
    const RowState<T> *rows = scratch.rows + chunk.row0;
    const Norm<T> *class_norms = scratch.class_norms + chunk.class0;
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
        int r = thread();
        if (r < TILE && i0 + r < chunk.rows) {
            RowState<T> state = rows[i0 + r];
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
            tile.set(r, state.label >= 0 ? state.norm : Norm<T>{T(1), state.label == IGNORED ? T(0) : T(NAN)}, dot);
        }
        i64 row0 = chunk.row0 + i0;
        write_gradient<Engine::NORMS_IN_G, X, T>(tile, acc, gradient_at<X, T>(call, call.dx, row0), call.wide_gradients, static_cast<T *>(chunk.dx_sums) + i0 * call.d,
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
        i64 row_tiles = (call.n + LOGITS_TILE - 1) / LOGITS_TILE, class0 = chunk.class0 + j0;
        int r = thread();
        if (r < TILE && class0 + r < call.c) {
            T dot = T(0);
            if (chunk.last_rows)
                for (i64 t = 0; t < row_tiles; t++) dot += scratch.class_dots[t * chunk.stride + j0 + r];
            tile.set(r, class_norms[j0 + r], dot);
        }
        write_gradient<Engine::NORMS_IN_G, W, T>(tile, acc, gradient_at<W, T>(call, call.dw, class0), call.wide_gradients, static_cast<T *>(chunk.dw_sums) + j0 * call.d,
                             static_cast<const W *>(call.w) + class0 * call.w_stride, call.w_stride, call.d, d0, chunk.classes - j0,
                             chunk.first_rows, chunk.last_rows);
    }
}

// This block's share of a chunk's contraction, where the chunk is all there is.
template <class Kind>
__device__ void contract_all(const MarginLossCall &call, const MarginLossChunk &chunk, const Scratch<typename Kind::T> &scratch,
                             ContractTile<Kind> &tile) {
    constexpr int TILE = Kind::Contract::TILE;
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

    // At the start of a block's dynamic shared memory.
    __device__ static StepTiles &at(unsigned char *memory) {
        static_assert(sizeof(StepTiles) == Kind::STEP_SHARED && Kind::STEP_SHARED % 16 == 0, "what the host makes room for");
        return *reinterpret_cast<StepTiles *>(memory);
    }
};

} // namespace margin_loss

#endif
