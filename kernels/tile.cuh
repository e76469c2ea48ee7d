// Products of tiles: 64 × 64 sums over 128 threads, by fused multiply-adds or by TF32 tensor cores.
//
//     acc[m][n] += Σ_k A[m][k]·B[n][k]
//
// A step of 16 k at a time: while one step's operands are multiplied from shared memory, the next one's are on their way in registers. An
// operand is either contiguous along k (`AlongK`: rows of X and W in the logits, rows of g in dX) or across it (`AcrossK`: the others), and
// widened, masked and scaled on its way, so that no normalised copy of X or W exists anywhere. mma.cuh has the same names for operands of two
// bytes, which go to tensor cores as they are.
#ifndef MARGIN_LOSS_TILE_CUH
#define MARGIN_LOSS_TILE_CUH

#include "common.cuh"

namespace margin_loss {

// A row of X or W as x̂ = (x·scale)/|length|. `scale` is a power of two, and 1 but for rows whose squares are beyond T; a negative length
// says that the row is shorter than 1e-12: it is divided by that, and its gradient has no projection. 0: the row does not count.
template <class T>
struct Norm {
    T scale, length;

    __device__ bool projects() const { return !(length < T(0)); }
    __device__ T magnitude() const { return length < T(0) ? -length : length; }
};

// a / b, rounded as a division is but for subnormal results, from −b and 1 / b: a cosine of 1 is to be 1, where ψ′ is large.
template <class T>
__device__ inline T divide_by(T a, T minus_b, T inverse) {
    T quotient = a * inverse;
    return fma(fma(quotient, minus_b, a), inverse, quotient);
}

template <class T>
__device__ inline T divide(T a, T b, T inverse) { return divide_by(a, -b, inverse); }

// How k is masked and scaled in an operand that is contiguous across it. This one: not at all.
struct Plain {
    static constexpr bool SCALES = false;
    __device__ bool counts(i64) const { return true; }
    template <class T>
    __device__ Norm<T> norm(i64) const { return {T(1), T(1)}; }
};

// One step by fused multiply-adds: eight rows by four columns a thread.
template <class T_>
struct FmaCore {
    using T = T_;
    static constexpr int ROWS = 8, COLUMNS = 4, PADDING = 4;
    static constexpr bool ROUNDS = false;
    __device__ static T round(T v) { return v; }

    // A thread's sums: number i of its rows by number j of its columns is at[index(i, j)]. The lanes that have a row stand side by side, in
    // ROW_PARTS warps; a column's in COLUMN_PARTS.
    struct Sums {
        static constexpr int ROWS = FmaCore::ROWS, COLUMNS = FmaCore::COLUMNS, SIDE_BY_SIDE = COLUMNS;
        static constexpr int ROW_LANES = TILE / COLUMNS, ROW_PARTS = 1, COLUMN_PARTS = THREADS / 32;
        T at[ROWS * COLUMNS];

        __device__ static int index(int i, int j) { return i * COLUMNS + j; }
    };

    // Where a thread's sums are in the tile.
    struct Place {
        int thread = margin_loss::thread();

        __device__ int row(int i) const { return ROWS * (thread / Sums::ROW_LANES) + i; }
        __device__ int column(int j) const { return COLUMNS * (thread % Sums::ROW_LANES) + j; }
        // How far a row is from the first one of its half, a column likewise: the same for every thread.
        __device__ static int row_on(int i) { return i % (ROWS / 2); }
        __device__ static int column_on(int j) { return j % (COLUMNS / 2); }
        __device__ int row_part() const { return 0; }
        __device__ int column_part() const { return thread / 32; }
        // The number of a column among this thread's; −1 where it is another's.
        __device__ int number_of(int column) const { return column >= 0 && column / COLUMNS == thread % Sums::ROW_LANES ? column % COLUMNS : -1; }
    };

    template <class Step>
    __device__ static void add(Sums &acc, const Step &left, const Step &right) {
        Place place;
        int row = place.row(0), column = place.column(0);
#pragma unroll
        for (int k = 0; k < int(sizeof(Step) / sizeof(left[0])); k++) {
            T m_values[ROWS], n_values[COLUMNS];
#pragma unroll
            for (int m = 0; m < ROWS; m++) m_values[m] = left[k][row + m];
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) n_values[n] = right[k][column + n];
#pragma unroll
            for (int e = 0; e < ROWS * COLUMNS; e++) acc.at[e] = fma(m_values[e / COLUMNS], n_values[e % COLUMNS], acc.at[e]);
        }
    }
};

// The same as mma.sync.m16n8 has them, four warps of a quarter of the tile each: [16 rows][8 columns][4]. Warps side by side begin with different
// halves of the rows that they share, warps below each other with different halves of the columns: the first half is each one's own to add up
// squares of.
template <int TILE>
struct MmaSums {
    static constexpr int SIDE = TILE / 2; // of a warp's quarter
    static constexpr int ROWS = SIDE / 8, COLUMNS = SIDE / 4, SIDE_BY_SIDE = 2;
    static constexpr int ROW_LANES = 4, ROW_PARTS = 2, COLUMN_PARTS = 2;
    float at[ROWS * COLUMNS];

    __device__ static int index(int i, int j) { return 4 * (i / 2 * (COLUMNS / 2) + j / 2) + 2 * (i % 2) + j % 2; }
};

template <int TILE>
struct MmaPlace {
    using Sums = MmaSums<TILE>;
    static constexpr int SIDE = Sums::SIDE, ROWS = Sums::ROWS, COLUMNS = Sums::COLUMNS;
    int thread = margin_loss::thread();

    __device__ int row_part() const { return thread / 32 % 2; }
    __device__ int column_part() const { return thread / 64; }
    // Where the first and second half of this warp's rows and columns begin.
    __device__ int rows_of(int half) const { return SIDE * column_part() + SIDE / 2 * (half ^ row_part()); }
    __device__ int columns_of(int half) const { return SIDE * row_part() + SIDE / 2 * (half ^ column_part()); }

    __device__ static int row_on(int i) { return 8 * (i % (ROWS / 2)); }
    __device__ static int column_on(int j) { return 8 * (j % (COLUMNS / 2) / 2) + j % 2; }
    __device__ int row(int i) const { return rows_of(i / (ROWS / 2)) + row_on(i) + thread % 32 / 4; }
    __device__ int column(int j) const { return columns_of(j / (COLUMNS / 2)) + column_on(j) + 2 * (thread % 4); }
    __device__ int number_of(int column) const {
        int own = column - SIDE * row_part(), half = own / (SIDE / 2) ^ column_part();
        bool here = column >= 0 && own >= 0 && own < SIDE && own % 8 / 2 == thread % 4;
        return here ? half * (COLUMNS / 2) + own % (SIDE / 2) / 8 * 2 + own % 2 : -1;
    }
};

// One step by mma.sync.m16n8k8 on TF32: f32 rounded to 11 significant bits, which f16 fits into, range and all. With eight more than a tile in
// a row, the four k and eight rows that a fragment's lanes read lie in different banks.
struct Tf32Core {
    using T = float;
    using Sums = MmaSums<TILE>;
    using Place = MmaPlace<TILE>;
    static constexpr int PADDING = 8;
    static constexpr bool ROUNDS = true;
    __device__ static float round(float v) {
        unsigned int bits;
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
        return __uint_as_float(bits);
    }

    template <class Step>
    __device__ static void add(Sums &acc, const Step &left, const Step &right) {
        Place place;
        int lane = place.thread % 32;
        int m0[2] = {place.rows_of(0) + lane / 4, place.rows_of(1) + lane / 4}, n0[2] = {place.columns_of(0) + lane / 4, place.columns_of(1) + lane / 4};
        __syncwarp(); // lanes part where they fetch a matrix's edge; mma.sync takes them together
#pragma unroll
        for (int k0 = 0; k0 < int(sizeof(Step) / sizeof(left[0])); k0 += 8) {
            int k = k0 + lane % 4;
            unsigned int a[2][4], b[4][2];
#pragma unroll
            for (int i = 0; i < 8; i++) a[i / 4][i % 4] = __float_as_uint(left[k + 4 * (i % 4 / 2)][m0[i / 4] + 8 * (i % 2)]);
#pragma unroll
            for (int i = 0; i < 8; i++) b[i / 2][i % 2] = __float_as_uint(right[k + 4 * (i % 2)][n0[i / 4] + 8 * (i / 2 % 2)]);
#pragma unroll
            for (int mn = 0; mn < 8; mn++) {
                float *d = acc.at + 4 * mn;
                const unsigned int(&m)[4] = a[mn / 4], (&n)[2] = b[mn % 4];
                asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                             : "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3]), "r"(n[0]), "r"(n[1]));
            }
        }
    }
};

// Products whose operands come through registers.
template <class Core>
struct Staged {
    using T = typename Core::T;
    using Sums = typename Core::Sums;
    using Place = typename Core::Place;
    static constexpr int TILE = margin_loss::TILE, STEP = 16;
    static constexpr int SQUARE_PARTS = 2; // that a row's sum of squares comes in
    // What g is kept as between the passes of a gradient, and whether it has the inverse norms of its row and its class in it.
    using G = T;
    static constexpr bool NORMS_IN_G = Core::ROUNDS;
    __device__ static G to_g(T v) { return Core::round(v); }
    // As many at once, and what they are after it.
    template <int COUNT>
    __device__ static void to_g(T (&v)[COUNT], G (&g)[COUNT]) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) g[i] = v[i] = Core::round(v[i]);
    }

    // Rows stay aligned for vector accesses.
    using Step = T[STEP][TILE + Core::PADDING];

    // Aligned, so that a row's values come four at a time: one at a time, lanes would meet in banks.
    struct alignas(16) Stages {
        Step a[2], b[2];
    };

    // Element (m, k) at base[m·stride + k]; `norms`, where not null, have a scale for each m. A row does not count where `mask`, if not null,
    // is negative. Lanes take different rows, so that their stores to shared memory meet no bank twice.
    template <class E>
    struct AlongK {
        const E *row; // this thread's; null: it is not there, or does not count
        i64 depth;
        bool aligned;
        T factor;
        T squares; // Σ of what was fetched, squared
        T v[8];

        __device__ static int lane() { return threadIdx.x % TILE; }
        __device__ static int part() { return threadIdx.x / TILE; }

        __device__ AlongK(const E *base, i64 stride, i64 rows, i64 depth, const int *mask, const Norm<T> *norms,
                          bool = false)
            : row(nullptr), depth(depth), aligned(rows_aligned(base, stride)), factor(1), squares(0) {
            if (lane() < rows && (mask == nullptr || mask[lane()] >= 0)) row = base + lane() * stride;
            if (norms != nullptr) factor = norms[lane()].scale;
        }

        __device__ void fetch(i64 k0) {
            i64 k = k0 + 8 * part();
            load_some(row + k, row == nullptr ? 0 : depth - k, aligned, v);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] *= factor;
        }

        __device__ void add_squares() {
            T sum = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) sum += v[i] * v[i];
            squares += sum;
        }

        __device__ void store(Step &step) const {
#pragma unroll
            for (int i = 0; i < 8; i++) step[8 * part() + i][lane()] = Core::round(v[i]);
        }
    };

    // Element (m, k) at base[k·stride + m]; `by` masks and scales k.
    template <class E, class By>
    struct AcrossK {
        const E *base;
        i64 stride, width, depth;
        bool aligned;
        By by;
        T v[8];

        __device__ AcrossK(const E *base, i64 stride, i64 width, i64 depth, By by, bool = false)
            : base(base), stride(stride), width(width), depth(depth), aligned(rows_aligned(base, stride)), by(by) {}

        __device__ void fetch(i64 k0) {
            i64 k = k0 + threadIdx.x / 8;
            int m = 8 * (threadIdx.x % 8);
            bool there = k < depth && by.counts(k);
            load_some(base + k * stride + m, there ? width - m : 0, aligned, v);
            if (!By::SCALES || !there) return;
            Norm<T> norm = by.template norm<T>(k);
            T length = norm.magnitude(), inverse = T(1) / length;
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = NORMS_IN_G ? v[i] * norm.scale : divide(v[i] * norm.scale, length, inverse);
        }

        __device__ void store(Step &step) const {
            T rounded[8];
#pragma unroll
            for (int i = 0; i < 8; i++) rounded[i] = Core::round(v[i]);
            store8(&step[threadIdx.x / 8][8 * (threadIdx.x % 8)], rounded, threadIdx.x % 8 >= 4);
        }
    };

    // Sets `acc` to a product over k in [0, depth), and leaves Σ A² and Σ B² of each row in `squares` where that is not null. All of the
    // block's threads. Ends with a barrier: the stages are free, and the squares can be read.
    template <bool SQUARES, class A, class B>
    __device__ static void multiply(Sums &acc, A a, B b, i64 depth, Stages &stages, T (*squares)[SQUARE_PARTS][TILE]) {
#pragma unroll
        for (int e = 0; e < TILE * TILE / THREADS; e++) acc.at[e] = T(0);
        int steps = int((depth + STEP - 1) / STEP);
        a.fetch(0), b.fetch(0);
        a.store(stages.a[0]), b.store(stages.b[0]);
        add_squares<SQUARES>(a, b);
        __syncthreads();
        for (int step = 0; step < steps; step++) {
            bool more = step + 1 < steps;
            if (more) a.fetch(i64(step + 1) * STEP), b.fetch(i64(step + 1) * STEP);
            const Step &left = stages.a[step % 2], &right = stages.b[step % 2];
            Core::add(acc, left, right);
            if (more) {
                // The other stage was last read before the barrier below, one turn ago.
                a.store(stages.a[(step + 1) % 2]), b.store(stages.b[(step + 1) % 2]);
                add_squares<SQUARES>(a, b);
                __syncthreads();
            }
        }
        if constexpr (SQUARES) {
            squares[0][a.part()][a.lane()] = a.squares;
            squares[1][b.part()][b.lane()] = b.squares;
        }
        __syncthreads();
    }

    template <bool SQUARES, class A, class B>
    __device__ static void add_squares(A &a, B &b) {
        if constexpr (SQUARES) a.add_squares(), b.add_squares();
    }
};

template <class T>
using Fma = Staged<FmaCore<T>>;
using Tf32 = Staged<Tf32Core>;

} // namespace margin_loss

#endif
