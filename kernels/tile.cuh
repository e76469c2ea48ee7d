// Products of tiles by fused multiply-adds: 64 × 64 accumulators over 128 threads, eight rows by four columns each.
//
//     acc[m][n] = Σ_k A[m][k]·B[n][k]
//
// A step of 16 k at a time: while one step's operands are multiplied from shared memory, the next one's are on their way in registers. An
// operand is either contiguous along k (`AlongK`: rows of X and W in the logits, rows of g in dX) or across it (`AcrossK`: the others), and
// widened, masked and scaled on its way, so that no normalised copy of X or W exists anywhere.
#ifndef MARGIN_LOSS_TILE_CUH
#define MARGIN_LOSS_TILE_CUH

#include "common.cuh"

namespace margin_loss {

constexpr int STEP = 16;
constexpr int ROWS_A_THREAD = 8, COLUMNS_A_THREAD = 4;
// 4 more than a tile keeps rows aligned for vector accesses.
constexpr int PADDED = TILE + 4;

template <class T>
using Step = T[STEP][PADDED];

template <class T>
struct Stages {
    Step<T> a[2], b[2];
};

// Element (m, k) of this thread's row at row[k]. Lanes take different rows, so that their stores to shared memory meet no bank twice.
template <class T, class E, bool SQUARES>
struct AlongK {
    const E *row; // null: the row is not there, or does not count
    i64 depth;
    bool aligned;
    T factor;
    T squares; // Σ of what was fetched, squared
    T v[8];

    __device__ static int lane() { return threadIdx.x % TILE; }
    __device__ static int part() { return threadIdx.x / TILE; }

    __device__ AlongK(const E *row, i64 depth, bool aligned, T factor)
        : row(row), depth(depth), aligned(aligned), factor(factor), squares(0) {}

    __device__ void fetch(i64 k0) {
        i64 k = k0 + 8 * part();
        load_some(row + k, row == nullptr ? 0 : depth - k, aligned, v);
        T sum = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] *= factor;
            if (SQUARES) sum += v[i] * v[i];
        }
        squares += sum;
    }

    __device__ void store(Step<T> &step) const {
#pragma unroll
        for (int i = 0; i < 8; i++) step[8 * part() + i][lane()] = v[i];
    }
};

// Element (m, k) at base[k·stride + m]; `factor(k)` scales all of k, and says by 0 that it is not even to be read.
template <class T, class E, class Factor>
struct AcrossK {
    const E *base;
    i64 stride, width, depth;
    bool aligned;
    Factor factor;
    T v[8];

    __device__ AcrossK(const E *base, i64 stride, i64 width, i64 depth, bool aligned, Factor factor)
        : base(base), stride(stride), width(width), depth(depth), aligned(aligned), factor(factor) {}

    __device__ void fetch(i64 k0) {
        i64 k = k0 + threadIdx.x / 8;
        int m = 8 * (threadIdx.x % 8);
        bool there = k < depth && factor.counts(k);
        load_some(base + k * stride + m, there ? width - m : 0, aligned, v);
        if (there) factor.apply(k, v);
    }

    __device__ void store(Step<T> &step) const {
        T *to = &step[threadIdx.x / 8][8 * (threadIdx.x % 8)];
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = v[i];
    }
};

// The factor 1.
struct Plain {
    __device__ bool counts(i64) const { return true; }
    template <class T>
    __device__ void apply(i64, T (&)[8]) const {}
};

template <class T>
struct Accumulators {
    T at[ROWS_A_THREAD][COLUMNS_A_THREAD];

    // The place of at[0][0] in the tile.
    __device__ static int row() { return ROWS_A_THREAD * (threadIdx.x / (TILE / COLUMNS_A_THREAD)); }
    __device__ static int column() { return COLUMNS_A_THREAD * (threadIdx.x % (TILE / COLUMNS_A_THREAD)); }

    __device__ void clear() {
#pragma unroll
        for (int m = 0; m < ROWS_A_THREAD; m++)
#pragma unroll
            for (int n = 0; n < COLUMNS_A_THREAD; n++) at[m][n] = T(0);
    }
};

// Adds a product to `acc`, over k in [0, depth). All of the block's threads; the stages are free again only after a barrier.
template <class T, class A, class B>
__device__ inline void add_product(Accumulators<T> &acc, A &a, B &b, i64 depth, Stages<T> &stages) {
    int steps = int((depth + STEP - 1) / STEP);
    int row = acc.row(), column = acc.column();
    a.fetch(0), b.fetch(0);
    a.store(stages.a[0]), b.store(stages.b[0]);
    __syncthreads();
    for (int step = 0; step < steps; step++) {
        bool more = step + 1 < steps;
        if (more) a.fetch(i64(step + 1) * STEP), b.fetch(i64(step + 1) * STEP);
        const Step<T> &left = stages.a[step % 2], &right = stages.b[step % 2];
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            T m_values[ROWS_A_THREAD], n_values[COLUMNS_A_THREAD];
#pragma unroll
            for (int m = 0; m < ROWS_A_THREAD; m++) m_values[m] = left[k][row + m];
#pragma unroll
            for (int n = 0; n < COLUMNS_A_THREAD; n++) n_values[n] = right[k][column + n];
#pragma unroll
            for (int m = 0; m < ROWS_A_THREAD; m++)
#pragma unroll
                for (int n = 0; n < COLUMNS_A_THREAD; n++) acc.at[m][n] = fma(m_values[m], n_values[n], acc.at[m][n]);
        }
        if (more) {
            // The other stage was last read before the barrier below, one turn ago.
            a.store(stages.a[(step + 1) % 2]), b.store(stages.b[(step + 1) % 2]);
            __syncthreads();
        }
    }
}

} // namespace margin_loss

#endif
