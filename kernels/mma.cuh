// Products of tiles on tensor cores: 64 × 64 sums in f32 over four warps of 32 × 32, by mma.sync.m16n8k16 on f16 or bf16. The names are those
// of tile.cuh.
//
// A step is 64 k. Both operands lie in shared memory as 64 rows of 128 bytes: rows of m for `AlongK`, of k for `AcrossK`, which `ldmatrix`
// transposes. Sixteen-byte chunk c of row r stands at c ^ (r mod 8): the eight rows that one `ldmatrix` phase reads, and the eight chunks that a
// copy of one row writes, lie in different banks. Chunks come by `cp.async`, past the registers, while the step before is multiplied; those
// that need a scale, or are not aligned, come through registers.
#ifndef MARGIN_LOSS_MMA_CUH
#define MARGIN_LOSS_MMA_CUH

#include "tile.cuh"

namespace margin_loss {

__device__ inline unsigned int shared_address(const void *p) { return static_cast<unsigned int>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes to shared memory, the first `bytes` of them from `from` and zeros after. They are there after wait_copies and a barrier.
__device__ inline void copy16(void *to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last LATER groups have landed.
template <int LATER>
__device__ inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

template <bool TRANSPOSE>
__device__ inline void load_matrices(unsigned int (&r)[4], const void *row) {
    if constexpr (TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

__device__ inline void multiply_add(float *d, const unsigned int (&a)[4], const unsigned int *b, __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void multiply_add(float *d, const unsigned int (&a)[4], const unsigned int *b, __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class E>
struct Mma {
    using T = float;
    static constexpr int STEP = 64;
    static constexpr int CHUNK = 8; // elements of 16 bytes
    using Sums = MmaSums;
    using G = E;
    static constexpr bool NORMS_IN_G = true;
    __device__ static G to_g(float v) { return Narrow<E, float>::of(v); }

    // Rows of 64 elements, their chunks swizzled.
    struct Panel {
        uint4 chunks[TILE][TILE / CHUNK];

        __device__ uint4 &at(int row, int chunk) { return chunks[row][chunk ^ (row % 8)]; }
    };

    struct Stages {
        Panel a[2], b[2];
    };

    // One chunk, from `count` elements at `from`; `copies` where they are aligned and in global memory, as cp.async takes them.
    __device__ static void fetch_chunk(uint4 &to, const E *from, i64 count, bool aligned, bool copies, float scale) {
        int elements = count >= CHUNK ? CHUNK : count > 0 ? int(count) : 0;
        if (scale == 1.f && copies) {
            copy16(&to, from, elements * int(sizeof(E)));
            return;
        }
        float v[CHUNK];
        load_some(from, count, aligned, v);
        union { uint4 bits; E halves[CHUNK]; } all;
#pragma unroll
        for (int i = 0; i < CHUNK; i++) all.halves[i] = Narrow<E, float>::of(v[i] * scale);
        to = all.bits;
    }

    // Threads take a chunk of every sixteenth row: eight neighbours read 128 bytes side by side.
    __device__ static int chunk() { return threadIdx.x % 8; }
    __device__ static int row(int i) { return threadIdx.x / 8 + 16 * i; }

    template <class>
    struct AlongK {
        static constexpr bool ALONG = true;
        const E *base;
        i64 stride, rows, depth;
        bool aligned, copies;
        const int *mask;
        const Norm<float> *norms;

        __device__ AlongK(const E *base, i64 stride, i64 rows, i64 depth, const int *mask, const Norm<float> *norms,
                          bool on_chip = false)
            : base(base), stride(stride), rows(rows), depth(depth), aligned(rows_aligned(base, stride)), copies(aligned && !on_chip), mask(mask),
              norms(norms) {}

        __device__ void fetch(i64 k0, Panel &to) const {
            i64 k = k0 + CHUNK * chunk();
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = row(i);
                bool there = r < rows && k < depth && (mask == nullptr || mask[r] >= 0);
                const E *from = there ? base + r * stride + k : base;
                fetch_chunk(to.at(r, chunk()), from, there ? depth - k : 0, aligned, copies, norms != nullptr && there ? norms[r].scale : 1.f);
            }
        }
    };

    template <class, class By>
    struct AcrossK {
        static constexpr bool ALONG = false;
        const E *base;
        i64 stride, width, depth;
        bool aligned, copies;
        By by;

        __device__ AcrossK(const E *base, i64 stride, i64 width, i64 depth, By by, bool on_chip = false)
            : base(base), stride(stride), width(width), depth(depth), aligned(rows_aligned(base, stride)), copies(aligned && !on_chip), by(by) {}

        __device__ void fetch(i64 k0, Panel &to) const {
            i64 m = CHUNK * chunk();
#pragma unroll
            for (int i = 0; i < 4; i++) {
                i64 k = k0 + row(i);
                bool there = k < depth && m < width && by.counts(k);
                const E *from = there ? base + k * stride + m : base;
                fetch_chunk(to.at(row(i), chunk()), from, there ? width - m : 0, aligned, copies, there ? by.template norm<float>(k).scale : 1.f);
            }
        }
    };

    // Fragments of 16 rows of A, or of 16 columns of B (two of eight), at k of the step.
    template <bool ALONG>
    __device__ static void load_a(unsigned int (&r)[4], Panel &a, int m, int k) {
        int lane = threadIdx.x % 32;
        if constexpr (ALONG)
            load_matrices<false>(r, &a.at(m + lane % 16, k / CHUNK + lane / 16));
        else
            load_matrices<true>(r, &a.at(k + lane % 8 + 8 * (lane / 16), m / CHUNK + lane / 8 % 2));
    }
    template <bool ALONG>
    __device__ static void load_b(unsigned int (&r)[4], Panel &b, int n, int k) {
        int lane = threadIdx.x % 32;
        if constexpr (ALONG)
            load_matrices<false>(r, &b.at(n + lane % 8 + 8 * (lane / 16), k / CHUNK + lane / 8 % 2));
        else
            load_matrices<true>(r, &b.at(k + lane % 8 + 8 * (lane / 8 % 2), n / CHUNK + lane / 16));
    }

    // As Staged::multiply.
    template <bool SQUARES, class A, class B>
    __device__ static void multiply(Sums &acc, A a, B b, i64 depth, Stages &stages, float (*squares)[2][TILE]) {
        constexpr bool A_ALONG = A::ALONG, B_ALONG = B::ALONG;
#pragma unroll
        for (int e = 0; e < 32; e++) acc.at[e] = 0.f;
        int steps = int((depth + STEP - 1) / STEP), warp = threadIdx.x / 32;
        int m0 = 32 * (warp / 2), n0 = 32 * (warp % 2);
        float own_squares = 0.f;
        a.fetch(0, stages.a[0]), b.fetch(0, stages.b[0]);
        commit_copies();
        for (int step = 0; step < steps; step++) {
            Panel &left = stages.a[step % 2], &right = stages.b[step % 2];
            if (step + 1 < steps) a.fetch(i64(step + 1) * STEP, stages.a[(step + 1) % 2]), b.fetch(i64(step + 1) * STEP, stages.b[(step + 1) % 2]);
            commit_copies(); // an empty group at the last step keeps the count
            wait_copies<1>();
            __syncthreads(); // every thread's chunks of this step are there
#pragma unroll
            for (int k = 0; k < STEP; k += 16) {
                unsigned int a_values[2][4], b_values[2][4];
                load_a<A_ALONG>(a_values[0], left, m0, k), load_a<A_ALONG>(a_values[1], left, m0 + 16, k);
                load_b<B_ALONG>(b_values[0], right, n0, k), load_b<B_ALONG>(b_values[1], right, n0 + 16, k);
#pragma unroll
                for (int mn = 0; mn < 8; mn++)
                    multiply_add(acc.at + 4 * mn, a_values[mn / 4], b_values[mn % 4 / 2] + 2 * (mn % 2), E());
            }
            if constexpr (SQUARES) {
                // Threads 0 to 63 a row of A each, the others a row of B.
                Panel &panel = threadIdx.x < TILE ? left : right;
#pragma unroll
                for (int c = 0; c < TILE / CHUNK; c++) {
                    union { uint4 bits; E halves[CHUNK]; } all;
                    all.bits = panel.at(threadIdx.x % TILE, c);
                    float sum = 0.f;
#pragma unroll
                    for (int i = 0; i < CHUNK; i++) sum = fmaf(widen(all.halves[i]), widen(all.halves[i]), sum);
                    own_squares += sum;
                }
            }
            __syncthreads(); // the next turn writes this stage
        }
        if constexpr (SQUARES) {
            squares[threadIdx.x / TILE][0][threadIdx.x % TILE] = own_squares;
            squares[threadIdx.x / TILE][1][threadIdx.x % TILE] = 0.f;
            __syncthreads();
        }
    }
};

} // namespace margin_loss

#endif
