// A tile of cosines: products and norms found in one pass, and the statistics of its rows.
#ifndef MARGIN_LOSS_COSINES_CUH
#define MARGIN_LOSS_COSINES_CUH

#include "kind.cuh"
#include "memory.cuh"

namespace margin_loss {

constexpr double SHORTEST = 1e-12;
constexpr double LOG2_E = 1.44269504088896340736;

// z·log₂e = scale2·c + prior2
template <class T>
__device__ inline T scale2(const MarginLossOptions &options) {
    return T(options.scale * LOG2_E);
}

// A tile of numbers between two ways of owning them. Two more than a tile: lanes that walk along two halves of neighbouring rows meet no
// bank twice.
template <class T>
using Values = T[TILE][MARGIN_LOSS_VALUES_ROW];

// What the blocks of every kernel with logits share: a row tile, a class tile, and their cosines.
template <class Kind>
struct CosineTile {
    using X = typename Kind::X;
    using W = typename Kind::W;
    using T = typename Kind::T;
    using Engine = typename Kind::Logits;
    using Sums = typename Engine::Sums;

    union {
        typename Engine::Stages stages;
        Values<T> cosines;
    };
    Norm<T> row_norms[TILE], class_norms[TILE];
    T squares[2][2][TILE]; // of rows and of classes, in two parts
    T prior2[TILE];
    int labels[TILE];

    // Labels of the rows that start at row0; BAD_LABEL beyond the last. Needs a barrier before they are read.
    __device__ void load_labels(const MarginLossCall &call, i64 row0) {
        int r = threadIdx.x;
        if (r < TILE) labels[r] = row0 + r < call.n ? label_of(call, row0 + r) : BAD_LABEL;
    }

    // The column of a row's target in the class tile; −1 where it is not there.
    __device__ int target_in(i64 class0, int row) const {
        i64 column = labels[row] - class0;
        return labels[row] >= 0 && column >= 0 && column < TILE ? int(column) : -1;
    }

    __device__ void load_prior(const MarginLossCall &call, i64 class0) {
        int j = threadIdx.x;
        if (j < TILE) {
            bool there = call.options.prior != nullptr && class0 + j < call.c;
            prior2[j] = there ? T(call.options.prior[class0 + j] * LOG2_E) : T(0);
        }
    }

    // The products of a tile, scaled by the norms' scales if `scaled`; with SQUARES, `squares` too. Rows that do not count are not read:
    // their content reaches nothing. Ends with a barrier.
    template <bool SQUARES>
    __device__ void multiply(const MarginLossCall &call, i64 row0, i64 class0, bool scaled, Sums &acc) {
        const X *x = static_cast<const X *>(call.x) + row0 * call.x_stride;
        const W *w = static_cast<const W *>(call.w) + class0 * call.w_stride;
        typename Engine::template AlongK<X> a(x, call.x_stride, call.n - row0, call.d, labels, scaled ? row_norms : nullptr);
        typename Engine::template AlongK<W> b(w, call.w_stride, call.c - class0, call.d, nullptr, scaled ? class_norms : nullptr);
        Engine::template multiply<SQUARES>(acc, a, b, call.d, stages, squares);
    }

    // The norm that this thread's sum of squares (threads below TILE: of rows, others: of classes) makes under `scale`.
    __device__ Norm<T> norm_of(T scale) const {
        int of = threadIdx.x / TILE, r = threadIdx.x % TILE;
        T norm = sqrt(squares[of][0][r] + squares[of][1][r]);
        if (!(norm < T(INFINITY))) return {T(1), T(NAN)};
        T shortest = T(SHORTEST) * scale;
        return {scale, norm < shortest ? -shortest : norm};
    }

    // Products and both norms. Rows whose squares are neither near overflow nor near underflow take no scale, and a tile of such rows and
    // classes one product; another tile is multiplied again under powers of two. What a row's scale and norm are depends on the row alone.
    __device__ void multiply_and_norm(const MarginLossCall &call, i64 row0, i64 class0, Sums &acc) {
        // The product of two norms then leaves room for g on both sides in bf16.
        constexpr T LEAST = T(8.673617379884035e-19), MOST = T(1.152921504606847e18); // 2^-60, 2^60
        multiply<true>(call, row0, class0, false, acc);
        int of = threadIdx.x / TILE, r = threadIdx.x % TILE;
        bool there = of == 0 ? labels[r] >= 0 : class0 + r < call.c;
        T square = squares[of][0][r] + squares[of][1][r];
        bool plain = !there || (square >= LEAST && square <= MOST);
        Norm<T> &own = of == 0 ? row_norms[r] : class_norms[r];
        own = there ? norm_of(T(1)) : Norm<T>{T(1), T(0)};
        if (!__syncthreads_or(!plain)) return;

        if (!plain) own.scale = T(0); // to be found
        __syncthreads();
        for (int at = threadIdx.x / 32; at < 2 * TILE; at += THREADS / 32) {
            Norm<T> &norm = at < TILE ? row_norms[at] : class_norms[at - TILE];
            if (norm.scale != T(0)) continue;
            T largest = T(0);
            for (i64 k = threadIdx.x % 32; k < call.d; k += 32) {
                T v = at < TILE ? T(widen(static_cast<const X *>(call.x)[(row0 + at) * call.x_stride + k]))
                                : T(widen(static_cast<const W *>(call.w)[(class0 + at - TILE) * call.w_stride + k]));
                v = fabs(v);
                if (v > largest) largest = v;
            }
            for (int offset = 16; offset > 0; offset /= 2) {
                T other = __shfl_xor_sync(~0u, largest, offset);
                if (other > largest) largest = other;
            }
            // At 2^-60 and below a row is shorter than SHORTEST whatever its norm.
            int exponent = largest > T(0) && largest < T(INFINITY) ? ilogb(largest) : 0;
            if (threadIdx.x % 32 == 0) norm.scale = scalbn(T(1), -(exponent < -60 ? -60 : exponent));
        }
        __syncthreads();
        multiply<true>(call, row0, class0, true, acc);
        if (there) own = norm_of(own.scale);
        __syncthreads();
    }

    // Leaves the cosines, clamped to [−1, 1] (NaN stays), in `values`: in the tile itself, where the stages were, or elsewhere. Ends with a
    // barrier.
    __device__ void keep(const Sums &acc, Values<T> &values) const {
#pragma unroll
        for (int e = 0; e < TILE * TILE / THREADS; e++) {
            int row = acc.row(e), column = acc.column(e);
            T length = row_norms[row].magnitude() * class_norms[column].magnitude();
            T c = divide(acc.at[e], length, T(1) / length);
            values[row][column] = c > T(1) ? T(1) : c < T(-1) ? T(-1) : c;
        }
        __syncthreads();
    }

    // Adds the tile to the statistics of this thread's half row: row threadIdx / 2, every other class.
    __device__ void add_statistics(const MarginLossCall &call, i64 class0, const Values<T> &values, Statistics<T> &row) const {
        int r = threadIdx.x / 2, first = threadIdx.x % 2;
        int classes = int(call.c - class0 < TILE ? call.c - class0 : TILE);
        int target = target_in(class0, r);
        T scale = scale2<T>(call.options);
        Statistics<T> tile = no_statistics<T>();
        for (int j = first; j < classes; j += 2) {
            T c = values[r][j];
            if (c > tile.best) tile.best = c, tile.best_class = class0 + j;
            if (j == target) {
                tile.target = c;
            } else {
                T z = fma(scale, c, prior2[j]);
                if (z > tile.max) tile.max = z;
                tile.total += c;
            }
        }
        for (int j = first; j < classes; j += 2) {
            if (j == target) continue;
            T c = values[r][j];
            // With a maximum of −∞ every z is NaN, and stays so.
            T e = exp2(fma(scale, c, prior2[j]) - tile.max);
            tile.sum += e;
            tile.weighted = fma(e, c, tile.weighted);
        }
        merge(row, tile);
    }
};

// Another lane's statistics, each field by `shuffle`.
template <class T, class Shuffle>
__device__ inline Statistics<T> shuffled(const Statistics<T> &own, Shuffle shuffle) {
    Statistics<T> other;
    other.max = shuffle(own.max), other.sum = shuffle(own.sum), other.weighted = shuffle(own.weighted);
    other.total = shuffle(own.total), other.best = shuffle(own.best), other.target = shuffle(own.target);
    other.best_class = shuffle(own.best_class);
    return other;
}

// The statistics of two neighbouring lanes, of the lower one's classes and the upper one's, in both.
template <class T>
__device__ inline Statistics<T> merge_halves(const Statistics<T> &own) {
    Statistics<T> row = own, other = shuffled(own, [](auto field) { return __shfl_xor_sync(~0u, field, 1); });
    // The lower classes first. Value by value: a reference to one of two would put both into local memory.
    bool lower = threadIdx.x % 2 == 0;
    auto exchange = [lower](auto &a, auto &b) {
        auto first = lower ? a : b, second = lower ? b : a;
        a = first, b = second;
    };
    exchange(row.max, other.max), exchange(row.sum, other.sum), exchange(row.weighted, other.weighted);
    exchange(row.total, other.total), exchange(row.best, other.best), exchange(row.target, other.target);
    exchange(row.best_class, other.best_class);
    merge(row, other);
    return row;
}

} // namespace margin_loss

#endif
