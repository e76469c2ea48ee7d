// Gradients of a chunk of rows and classes, from the rows' states and the norms that stream_forward left.
//
//     stream_gradient, a block for each row tile and class tile:
//         c = x̂·ŵ;  g_ij = a_i·2^(z_ij − max_i) − u_i, and t_i at the target;  Σ_i g·c
//     stream_contract, a block for each class tile and dimension tile, and for each row tile and dimension tile:
//         dW_j = (Σ_i g_ij·x̂_i − (Σ_i g_ij·c_ij)·ŵ_j)·(1/‖W_j‖)
//         dX_i = (Σ_j g_ij·ŵ_j − (Σ_j g_ij·c_ij)·x̂_i)·(1/‖X_i‖)
//
// g of the chunk is all that is kept, within the workspace. Where a gradient takes several chunks, they come one after the other and add to
// its sums; where a sum is long and tiles are few, it is split among blocks, and the last of a tile adds up their parts in order.
#include "rows.cuh"

namespace margin_loss {

template <class X, class W>
__device__ void stream_gradient(const MarginLossCall &call, const MarginLossChunk &chunk) {
    using T = typename Types<X, W>::T;
    struct RowConstants {
        T max, factor, uniform, target;
    };
    __shared__ CosineTile<X, W> tile;
    __shared__ RowConstants constants[TILE];
    __shared__ T dots[TILE / ROWS_A_THREAD][TILE];

    i64 class_tiles = (chunk.classes + TILE - 1) / TILE;
    i64 row0 = chunk.row0 + blockIdx.x / class_tiles * TILE, class0 = chunk.class0 + blockIdx.x % class_tiles * TILE;
    int r = threadIdx.x % TILE;
    if (threadIdx.x < TILE) {
        i64 i = row0 + r;
        tile.labels[r] = BAD_LABEL;
        tile.row_norms[r] = {T(1), T(0)};
        constants[r] = {T(0), T(0), T(0), T(0)};
        if (i < call.n) {
            RowState<T> state = static_cast<const RowState<T> *>(call.rows)[i];
            double a = coefficient(call, i, state);
            tile.labels[r] = state.label;
            if (state.label >= 0) {
                tile.row_norms[r] = state.norm;
                constants[r] = {state.max, T(a * state.others), T(a * call.options.label_smoothing / double(call.c)), T(a * state.target)};
            } else if (state.label != IGNORED) {
                constants[r] = {T(0), T(NAN), T(0), T(NAN)}; // a row that cannot be poisons what it reaches
            }
        }
    } else {
        i64 j = class0 + r;
        tile.class_norms[r] = j < call.c ? static_cast<const Norm<T> *>(call.class_norms)[j] : Norm<T>{T(1), T(0)};
    }
    tile.load_prior(call, class0);
    __syncthreads();

    Accumulators<T> acc;
    tile.template multiply<false>(call, row0, class0, tile.row_norms[r].scale, tile.class_norms[r].scale, acc);
    T scale = scale2<T>(call.options);
    T sums[COLUMNS_A_THREAD] = {};
    T *g = static_cast<T *>(chunk.g) + (row0 - chunk.row0) * chunk.stride + (class0 - chunk.class0);
#pragma unroll
    for (int m = 0; m < ROWS_A_THREAD; m++) {
        int row = acc.row() + m;
        RowConstants of = constants[row];
        bool counts = tile.labels[row] >= 0, there = row0 + row < chunk.row0 + chunk.rows;
        int target = counts && tile.labels[row] >= class0 ? int(tile.labels[row] - class0 < TILE ? tile.labels[row] - class0 : -1) : -1;
#pragma unroll
        for (int n = 0; n < COLUMNS_A_THREAD; n++) {
            int column = acc.column() + n;
            T c = tile.cosine(acc, m, n);
            T value = of.factor * exp2(fma(scale, c, tile.prior2[column]) - of.max) - of.uniform;
            if (column == target) value = of.target;
            // Masked last, so that nothing computed above can make padding, or a row that does not count, anything but 0.
            if (!counts) value = of.target;
            if (class0 + column >= call.c) value = T(0);
            if (there) g[row * chunk.stride + column] = value;
            sums[n] += value == T(0) ? T(0) : value * c;
        }
    }
    if (chunk.class_dots == nullptr) return;
    // Σ over the tile's rows, in the order of rows.
#pragma unroll
    for (int n = 0; n < COLUMNS_A_THREAD; n++) dots[acc.row() / ROWS_A_THREAD][acc.column() + n] = sums[n];
    __syncthreads();
    if (threadIdx.x < TILE) {
        T dot = T(0);
        for (int part = 0; part < TILE / ROWS_A_THREAD; part++) dot += dots[part][r];
        static_cast<T *>(chunk.class_dots)[row0 / TILE * chunk.stride + (class0 - chunk.class0) + r] = dot;
    }
}

// ŵ_j, for k a class of the chunk.
template <class T>
struct ByClass {
    const Norm<T> *norms;

    __device__ bool counts(i64) const { return true; }
    __device__ void apply(i64 k, T (&v)[8]) const {
        Norm<T> norm = norms[k];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = v[i] * norm.scale * norm.magnitude();
    }
};

// x̂_i, for k a row of the chunk; rows that do not count are not read.
template <class T>
struct ByRow {
    const RowState<T> *rows;

    __device__ bool counts(i64 k) const { return rows[k].label >= 0; }
    __device__ void apply(i64 k, T (&v)[8]) const {
        Norm<T> norm = rows[k].norm;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = v[i] * norm.scale * norm.magnitude();
    }
};

// k of split `split` of `splits`, in whole steps.
__device__ inline void split_of(i64 depth, i64 split, i64 splits, i64 *begin, i64 *end) {
    i64 steps = (depth + STEP - 1) / STEP;
    *begin = steps * split / splits * STEP;
    *end = steps * (split + 1) / splits * STEP;
    if (*end > depth) *end = depth;
}

// Whether this block is to go on with a tile's whole sum in `acc`: it alone has it, or it came last and adds up all splits in their order.
template <class T>
__device__ bool gather(Accumulators<T> &acc, const MarginLossChunk &chunk, i64 tile, i64 first_sum, i64 split, i64 splits) {
    if (splits == 1) return true;
    T *sums = static_cast<T *>(chunk.partial_sums) + first_sum * (TILE * TILE);
#pragma unroll
    for (int e = 0; e < ROWS_A_THREAD * COLUMNS_A_THREAD; e++)
        sums[split * (TILE * TILE) + e * THREADS + threadIdx.x] = acc.at[e / COLUMNS_A_THREAD][e % COLUMNS_A_THREAD];
    if (!is_last(chunk.arrivals + tile, unsigned(splits))) return false;
    acc.clear();
    for (i64 other = 0; other < splits; other++)
#pragma unroll
        for (int e = 0; e < ROWS_A_THREAD * COLUMNS_A_THREAD; e++)
            acc.at[e / COLUMNS_A_THREAD][e % COLUMNS_A_THREAD] += sums[other * (TILE * TILE) + e * THREADS + threadIdx.x];
    return true;
}

// What the two gradients have in common once their sums are whole: earlier chunks, the projection, the norm, and the rounding.
//
//     out[m][d] = (Σ − dots[m]·unit row m)·(scale·inverse of m)
template <class T, class E>
__device__ void write_gradient(const Accumulators<T> &acc, E *out, T *sums, const E *values, i64 stride, i64 d, i64 d0, i64 rows,
                               const Norm<T> *norms, const T *dots, bool first, bool last) {
#pragma unroll
    for (int m = 0; m < ROWS_A_THREAD; m++) {
        int row = acc.row() + m;
        if (row >= rows) continue;
        Norm<T> norm = norms[row];
#pragma unroll
        for (int n = 0; n < COLUMNS_A_THREAD; n++) {
            i64 at = d0 + acc.column() + n;
            if (at >= d) continue;
            T sum = acc.at[m][n];
            if (!first) sum += sums[row * d + at];
            if (!last) {
                sums[row * d + at] = sum;
                continue;
            }
            // An inverse of 0: a row that does not count, whatever is in it.
            bool counts = norm.inverse != T(0);
            if (counts && norm.projects()) sum -= dots[row] * (T(widen(values[row * stride + at])) * norm.scale * norm.inverse);
            out[row * d + at] = Narrow<E, T>::of(counts ? sum * norm.magnitude() * norm.scale : T(0));
        }
    }
}

template <class X, class W>
__device__ void stream_contract(const MarginLossCall &call, const MarginLossChunk &chunk) {
    using T = typename Types<X, W>::T;
    __shared__ Stages<T> stages;
    __shared__ Norm<T> norms[TILE];
    __shared__ T dots[TILE];
    i64 d_tiles = (call.d + TILE - 1) / TILE;
    i64 class_tiles = chunk.dw ? (chunk.classes + TILE - 1) / TILE : 0;
    i64 dw_blocks = class_tiles * d_tiles * chunk.dw_splits, block = blockIdx.x;
    const T *g = static_cast<const T *>(chunk.g);
    const RowState<T> *rows = static_cast<const RowState<T> *>(call.rows) + chunk.row0;
    const Norm<T> *class_norms = static_cast<const Norm<T> *>(call.class_norms) + chunk.class0;
    int r = threadIdx.x % TILE;
    Accumulators<T> acc;
    acc.clear();
    i64 begin, end;

    if (block < dw_blocks) {
        i64 split = block % chunk.dw_splits, tile = block / chunk.dw_splits;
        i64 j0 = tile / d_tiles * TILE, d0 = tile % d_tiles * TILE; // j0 counts from the chunk's first class
        split_of(chunk.rows, split, chunk.dw_splits, &begin, &end);
        const X *x = static_cast<const X *>(call.x);
        bool aligned = rows_aligned(x, call.x_stride);
        AcrossK<T, T, Plain> a(g + j0 + begin * chunk.stride, chunk.stride, TILE, end - begin, true, {});
        AcrossK<T, X, ByRow<T>> b(x + (chunk.row0 + begin) * call.x_stride + d0, call.x_stride, call.d - d0, end - begin, aligned, {rows + begin});
        add_product(acc, a, b, end - begin, stages);
        if (!gather(acc, chunk, tile, tile * chunk.dw_splits, split, chunk.dw_splits)) return;
        i64 j = chunk.class0 + j0 + r, row_tiles = (call.n + TILE - 1) / TILE;
        if (threadIdx.x < TILE && j < call.c) {
            T dot = T(0);
            if (chunk.last_rows)
                for (i64 t = 0; t < row_tiles; t++) dot += static_cast<const T *>(chunk.class_dots)[t * chunk.stride + j0 + r];
            dots[r] = dot;
            norms[r] = class_norms[j0 + r];
        }
        __syncthreads();
        write_gradient<T, W>(acc, static_cast<W *>(call.dw) + (chunk.class0 + j0) * call.d, static_cast<T *>(chunk.dw_sums) + j0 * call.d,
                             static_cast<const W *>(call.w) + (chunk.class0 + j0) * call.w_stride, call.w_stride, call.d, d0, chunk.classes - j0,
                             norms, dots, chunk.first_rows, chunk.last_rows);
    } else {
        block -= dw_blocks;
        i64 split = block % chunk.dx_splits, tile = block / chunk.dx_splits;
        i64 i0 = tile / d_tiles * TILE, d0 = tile % d_tiles * TILE; // i0 counts from the chunk's first row
        split_of(chunk.classes, split, chunk.dx_splits, &begin, &end);
        const W *w = static_cast<const W *>(call.w);
        bool aligned = rows_aligned(w, call.w_stride);
        AlongK<T, T, false> a(i0 + r < chunk.rows ? g + (i0 + r) * chunk.stride + begin : nullptr, end - begin, true, T(1));
        AcrossK<T, W, ByClass<T>> b(w + (chunk.class0 + begin) * call.w_stride + d0, call.w_stride, call.d - d0, end - begin, aligned,
                                    {class_norms + begin});
        add_product(acc, a, b, end - begin, stages);
        bool dw_is_split = chunk.dw_splits > 1; // its counters and sums come first
        i64 first_tile = dw_is_split ? class_tiles * d_tiles : 0, first_sum = dw_is_split ? dw_blocks : 0;
        if (!gather(acc, chunk, first_tile + tile, first_sum + tile * chunk.dx_splits, split, chunk.dx_splits)) return;
        if (threadIdx.x < TILE && i0 + r < chunk.rows) {
            RowState<T> state = rows[i0 + r];
            dots[r] = T(coefficient(call, chunk.row0 + i0 + r, state) * double(state.dot));
            norms[r] = state.label >= 0 ? state.norm : Norm<T>{T(1), state.label == IGNORED ? T(0) : T(NAN)};
        }
        __syncthreads();
        write_gradient<T, X>(acc, static_cast<X *>(call.dx) + (chunk.row0 + i0) * call.d, static_cast<T *>(chunk.dx_sums) + i0 * call.d,
                             static_cast<const X *>(call.x) + (chunk.row0 + i0) * call.x_stride, call.x_stride, call.d, d0, chunk.rows - i0, norms,
                             dots, chunk.first_classes, chunk.last_classes);
    }
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

#define ENTRY(NAME, X, W)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS)                                                                   \
        stream_gradient_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {           \
        margin_loss::stream_gradient<X, W>(call, chunk);                                                                                \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS)                                                                   \
        stream_contract_##NAME(__grid_constant__ const MarginLossCall call, __grid_constant__ const MarginLossChunk chunk) {           \
        margin_loss::stream_contract<X, W>(call, chunk);                                                                                \
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
