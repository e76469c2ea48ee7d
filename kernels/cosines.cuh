// A tile of cosines: products and norms found in one pass, and the statistics of its rows. A thread's cosines stay in its registers, as its
// engine has them.
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

// Instead of the cosine of a class that is not there: less than any, so that it is no row's best.
constexpr int NOT_THERE = -2;

// What the blocks of every kernel with logits share: a row tile, a class tile, and what is known of them.
template <class Kind>
struct CosineTile {
    using X = typename Kind::X;
    using W = typename Kind::W;
    using T = typename Kind::T;
    using Engine = typename Kind::Logits;
    using Sums = typename Engine::Sums;
    using Place = typename Engine::Place;
    static constexpr int TILE = Engine::TILE;

    typename Engine::Stages stages;
    Norm<T> row_norms[TILE], class_norms[TILE];
    T row_inverses[TILE], class_inverses[TILE]; // 1/‖·‖; 0 of what is not there
    T prior2[TILE];                             // −∞ of a class that is not there
    int labels[TILE];
    union {
        Statistics<T> so_far[TILE];     // of the rows, over the class tiles before
        RowConstants<T> constants[TILE]; // for g
    };
    union {
        T squares[2][Engine::SQUARE_PARTS][TILE]; // of rows and of classes
        // Of the rows, from each of the warps side by side.
        struct {
            T max[Sums::ROW_PARTS][TILE], sum[Sums::ROW_PARTS][TILE], weighted[Sums::ROW_PARTS][TILE], total[Sums::ROW_PARTS][TILE];
            T best[Sums::ROW_PARTS][TILE], target[TILE]; // the latter where it is in the tile
            int best_column[Sums::ROW_PARTS][TILE];
        } parts;
        T dots[Sums::COLUMN_PARTS][TILE]; // Σ_i g·c of the warps below each other
    };

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
            bool there = class0 + j < call.c;
            prior2[j] = !there ? T(-INFINITY) : call.options.prior != nullptr ? T(call.options.prior[class0 + j] * LOG2_E) : T(0);
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

    __device__ T square(int of, int r) const {
        T sum = squares[of][0][r];
        for (int part = 1; part < Engine::SQUARE_PARTS; part++) sum += squares[of][part][r];
        return sum;
    }

    // The norm that a row's (`of` 0) or class's sum of squares makes under `scale`.
    __device__ Norm<T> norm_of(int of, int r, T scale) const {
        T norm = sqrt(square(of, r));
        if (!(norm < T(INFINITY))) return {T(1), T(NAN)};
        T shortest = T(SHORTEST) * scale;
        return {scale, norm < shortest ? -shortest : norm};
    }

    __device__ void set_norm(int of, int r, Norm<T> norm) {
        (of == 0 ? row_norms : class_norms)[r] = norm;
        (of == 0 ? row_inverses : class_inverses)[r] = norm.length == T(0) ? T(0) : T(1) / norm.magnitude();
    }

    // Products and both norms. Rows whose squares are neither near overflow nor near underflow take no scale, and a tile of such rows and
    // classes one product; another tile is multiplied again under powers of two. What a row's scale and norm are depends on the row alone.
    __device__ void multiply_and_norm(const MarginLossCall &call, i64 row0, i64 class0, Sums &acc) {
        // The product of two norms then leaves room for g on both sides in bf16.
        constexpr T LEAST = T(8.673617379884035e-19), MOST = T(1.152921504606847e18); // 2^-60, 2^60
        multiply<true>(call, row0, class0, false, acc);
        bool all_plain = true;
        for (int at = thread(); at < 2 * TILE; at += THREADS) {
            int of = at / TILE, r = at % TILE;
            bool there = of == 0 ? labels[r] >= 0 : class0 + r < call.c;
            bool plain = !there || (square(of, r) >= LEAST && square(of, r) <= MOST);
            all_plain = all_plain && plain;
            set_norm(of, r, there ? norm_of(of, r, T(1)) : Norm<T>{T(1), T(0)});
            if (!plain) (of == 0 ? row_norms : class_norms)[r].scale = T(0); // to be found
        }
        if (!__syncthreads_or(!all_plain)) return;

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
        for (int at = thread(); at < 2 * TILE; at += THREADS) {
            int of = at / TILE, r = at % TILE;
            if (of == 0 ? labels[r] >= 0 : class0 + r < call.c) set_norm(of, r, norm_of(of, r, (of == 0 ? row_norms : class_norms)[r].scale));
        }
        __syncthreads();
    }

    // Products become cosines, in [−1, 1] (NaN stays); 0 where a row does not count, NOT_THERE where a class is not there.
    __device__ void to_cosines(Sums &acc) const {
        Place place;
        T minus_lengths[Sums::ROWS], inverses[Sums::ROWS];
#pragma unroll
        for (int i = 0; i < Sums::ROWS; i++) minus_lengths[i] = -row_norms[place.row(i)].magnitude(), inverses[i] = row_inverses[place.row(i)];
#pragma unroll
        for (int j = 0; j < Sums::COLUMNS; j++) {
            T length = class_norms[place.column(j)].magnitude(), inverse = class_inverses[place.column(j)];
            bool there = prior2[place.column(j)] != T(-INFINITY);
            T least = there ? T(-1) : T(NOT_THERE), most = there ? T(1) : T(NOT_THERE);
#pragma unroll
            for (int i = 0; i < Sums::ROWS; i++) {
                T &c = acc.at[acc.index(i, j)];
                c = clamped(divide_by(c, minus_lengths[i] * length, inverses[i] * inverse), least, most);
            }
        }
    }

    // Puts what the cosines give to the statistics of their rows into `parts`. Needs a barrier before `statistics`.
    __device__ void add_up(const MarginLossCall &call, i64 class0, const Sums &cosines) {
        constexpr int ROWS = Sums::ROWS, COLUMNS = Sums::COLUMNS;
        Place place;
        T scale = scale2<T>(call.options), prior[COLUMNS];
        bool smoothed = call.options.label_smoothing > 0.0;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) prior[j] = prior2[place.column(j)];
        auto over_row = [](auto value, auto with) {
#pragma unroll
            for (int offset = 1; offset < Sums::ROW_LANES; offset *= 2) value = with(value, __shfl_xor_sync(~0u, value, offset));
            return value;
        };
        auto largest = [](T a, T b) { return fmax(a, b); }; // the number, where one is NaN
        auto sum_of = [](T a, T b) { return a + b; };
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int row = place.row(i), target_number = place.number_of(target_in(class0, row));
            const T *c = cosines.at;
            T max = T(-INFINITY), target = T(0), total = T(0), sum = T(0), weighted = T(0), z[COLUMNS];
            // The best of each half of this thread's columns, which come in order; the lowest column wins a tie.
            T best = T(-INFINITY), best_of[2] = {best, best};
            int best_column = TILE, column_of[2] = {TILE, TILE};
            auto beats = [](T c, int column, T best, int best_column) { return (c > best) | ((c == best) & (column < best_column)); };
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                T own = c[cosines.index(i, j)];
                z[j] = fma(scale, own, prior[j]);
                int half = j / (COLUMNS / 2);
                bool better = own > best_of[half];
                best_of[half] = better ? own : best_of[half], column_of[half] = better ? place.column(j) : column_of[half];
            }
            if (target_number >= 0) {
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
                    bool is_target = j == target_number;
                    target = is_target ? c[cosines.index(i, j)] : target;
                    z[j] = is_target ? T(-INFINITY) : z[j];
                }
            }
            if (smoothed) {
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
                    bool other = j != target_number && prior[j] != T(-INFINITY); // a class that is there, and not the target
                    total += other ? c[cosines.index(i, j)] : T(0);
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                bool better = beats(best_of[half], column_of[half], best, best_column);
                best = better ? best_of[half] : best, best_column = better ? column_of[half] : best_column;
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) max = largest(max, z[j]);
            max = over_row(max, largest);
            // A maximum of −∞ says that there is no non-target, or that every z is NaN and stays so; (−∞) − (−∞) is not to be formed.
            T from = max == T(-INFINITY) ? T(0) : max;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                T e = power_of_two(z[j] - from);
                sum += e;
                weighted = fma(e, c[cosines.index(i, j)], weighted);
            }
            sum = over_row(sum, sum_of), weighted = over_row(weighted, sum_of), total = over_row(total, sum_of);
#pragma unroll
            for (int offset = 1; offset < Sums::ROW_LANES; offset *= 2) {
                T other = __shfl_xor_sync(~0u, best, offset);
                int other_column = __shfl_xor_sync(~0u, best_column, offset);
                bool better = beats(other, other_column, best, best_column);
                best = better ? other : best, best_column = better ? other_column : best_column;
            }
            int part = place.row_part();
            if (target_number >= 0) parts.target[row] = target;
            if (place.thread % Sums::ROW_LANES == 0) {
                parts.max[part][row] = max, parts.sum[part][row] = sum, parts.weighted[part][row] = weighted, parts.total[part][row] = total;
                parts.best[part][row] = best, parts.best_column[part][row] = best_column;
            }
        }
    }

    // The tile's statistics of a row join those so far; the first tile's begin them. They stay in memory: registers are the products'.
    __device__ void merge_statistics(int r, i64 class0, bool first) {
        Statistics<T> row = first ? no_statistics<T>() : so_far[r];
        merge(row, statistics(r, class0));
        so_far[r] = row;
    }

    // The tile's statistics of a row.
    __device__ Statistics<T> statistics(int r, i64 class0) const {
        auto of_part = [&](int part) {
            bool met = parts.best[part][r] > T(NOT_THERE);
            return Statistics<T>{parts.max[part][r],  parts.sum[part][r],    parts.weighted[part][r],
                                 parts.total[part][r], parts.best[part][r], part == 0 && target_in(class0, r) >= 0 ? parts.target[r] : T(0),
                                 met ? class0 + parts.best_column[part][r] : 0};
        };
        Statistics<T> row = of_part(0);
        for (int part = 1; part < Sums::ROW_PARTS; part++) merge(row, of_part(part));
        return row;
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

} // namespace margin_loss

#endif
