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
    Norm<T> norms[TILE];
    T inverses[TILE]; // 1/length
    T dots[TILE];

    // At the start of a block's dynamic shared memory.
    __device__ static ContractTile &at(unsigned char *memory) {
        static_assert(sizeof(ContractTile) == Kind::CONTRACT_SHARED, "what the host makes room for");
        return *reinterpret_cast<ContractTile *>(memory);
    }

    __device__ void set(int r, Norm<T> norm, T dot) {
        norms[r] = norm;
        inverses[r] = T(1) / norm.magnitude();
        dots[r] = dot;
    }
};

// Row `row` of a gradient, whose elements are E or, where gradients are wide, T.
template <class E, class T>
__device__ void *gradient_at(const MarginLossCall &call, void *gradient, i64 row) {
    return static_cast<char *>(gradient) + row * call.d * i64(call.wide_gradients ? sizeof(T) : sizeof(E));
}

// What the two gradients have in common once a tile's sums are whole: earlier chunks, the projection, the norm, and the rounding; eight
// dimensions of a row at a time. Begins and ends with a barrier.
//
//     out[m][d] = (Σ − dots[m]·unit row m)·(scale/length of m), where g has the norms in it Σ·length first
template <bool NORMS_IN_G, class E, class T, class Tile, class Sums>
__device__ void write_gradient(Tile &tile, const Sums &acc, void *out, bool wide, T *sums, const E *values, i64 stride, i64 d, i64 d0, i64 rows,
                               bool first, bool last) {
    constexpr int TILE = Tile::TILE, SIDE_BY_SIDE = Sums::SIDE_BY_SIDE;
    typename Tile::Engine::Place place;
#pragma unroll
    for (int i = 0; i < Sums::ROWS; i++) {
#pragma unroll
        for (int j0 = 0; j0 < Sums::COLUMNS; j0 += SIDE_BY_SIDE) {
            T together[SIDE_BY_SIDE];
#pragma unroll
            for (int j = 0; j < SIDE_BY_SIDE; j++) together[j] = acc.at[acc.index(i, j0 + j)];
            store_together(&tile.values[place.row(i)][place.column(j0)], together);
        }
    }
    __syncthreads();
    bool out_aligned = wide ? rows_aligned(static_cast<T *>(out), d) : rows_aligned(static_cast<E *>(out), d);
    bool sums_aligned = rows_aligned(sums, d), values_aligned = rows_aligned(values, stride);
#pragma unroll 1
    for (int at = place.thread; at < TILE * TILE / 8; at += THREADS) {
        int row = at / (TILE / 8), column = at % (TILE / 8) * 8;
        i64 k = d0 + column, left = d - k;
        if (row >= rows || left <= 0) continue;
        T sum[8], own[8] = {};
        load8(&tile.values[row][column], sum, at % 8 >= 4);
        if (!first) {
            T earlier[8];
            load_some(sums + row * d + k, left, sums_aligned, earlier);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += earlier[i];
        }
        if (!last) {
            store_some(sums + row * d + k, left, sums_aligned, sum);
            continue;
        }
        Norm<T> norm = tile.norms[row];
        bool counts = norm.length != T(0), projects = counts && norm.projects();
        T length = norm.magnitude(), inverse = tile.inverses[row], dot = projects ? tile.dots[row] : T(0);
        if (projects) load_some(values + row * stride + k, left, values_aligned, own);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (NORMS_IN_G) sum[i] *= length;
            sum[i] = fma(-dot, divide(own[i] * norm.scale, length, inverse), sum[i]);
            sum[i] = counts ? divide(sum[i], length, inverse) * norm.scale : T(0);
        }
        if (wide)
            store_some(static_cast<T *>(out) + row * d + k, left, out_aligned, sum);
        else
            store_some(static_cast<E *>(out) + row * d + k, left, out_aligned, sum);
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
