// Products of tiles on tensor cores: sums in f32 over four warps of a quarter of the tile each, by mma.sync.m16n8k16 on f16 or bf16. The names
// are those of tile.cuh.
//
// A step is 64 k. Both operands lie in shared memory as rows of 128 bytes: rows of m for `AlongK`, of k and 64 m for `AcrossK`, which `ldmatrix`
// transposes. Sixteen-byte chunk c of row r stands at c ^ (r mod 8): the eight rows that one `ldmatrix` phase reads, and the eight chunks that a
// copy of one row writes, lie in different banks.
//
// Chunks come by `cp.async`, two steps ahead, with one barrier a step. What a copy's bounds are is found once a tile: pointers advance, and a
// chunk beyond the tile's edge is a copy of 0 bytes. The last k of a depth that is no multiple of 64 come first, so that the loop has whole steps
// alone. A tile whose rows are not aligned, or of which a row needs a scale or does not count, takes another loop.
#ifndef MARGIN_LOSS_MMA_CUH
#define MARGIN_LOSS_MMA_CUH

#include "tile.cuh"

namespace margin_loss {

__device__ inline unsigned int shared_address(const void *p) { return static_cast<unsigned int>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes to shared memory, the first `bytes` of them from `from` and zeros after. They are there after wait_copies and a barrier.
__device__ inline void copy16(unsigned int to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last LATER groups have landed.
template <int LATER>
__device__ inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

template <bool TRANSPOSE>
__device__ inline void load_matrices(unsigned int (&r)[4], unsigned int row) {
    if constexpr (TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

__device__ inline void multiply_add(float *d, const unsigned int (&a)[4], const unsigned int *b, __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void multiply_add(float *d, const unsigned int (&a)[4], const unsigned int *b, __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class E, int TILE_>
struct Mma {
    using T = float;
    static constexpr int TILE = TILE_, STEP = 64, STAGES = 3;
    static constexpr int SQUARE_PARTS = 1;
    static constexpr int CHUNK = 8;           // elements of 16 bytes
    static constexpr int PIECES = TILE / 16;  // of a panel that a thread copies: a chunk of every sixteenth row
    static constexpr int ROW = 128;           // bytes of a panel's row
    using Sums = MmaSums<TILE>;
    using Place = MmaPlace<TILE>;
    static constexpr int SIDE = Sums::SIDE;
    using G = E;
    static constexpr bool NORMS_IN_G = true;
    __device__ static G to_g(float v) { return Narrow<E, float>::of(v); }
    __device__ static void to_g(float (&v)[2], G (&g)[2]) {
        union { unsigned int word; E halves[2]; } pair;
        pair.word = narrow_pair<E>(v[0], v[1]);
        widen_pair<E>(pair.word, v[0], v[1]);
        g[0] = pair.halves[0], g[1] = pair.halves[1];
    }

    // TILE rows of 64 elements, or TILE / 64 times 64 rows, their chunks swizzled.
    struct Panel {
        uint4 chunks[TILE * STEP / CHUNK];

        __device__ uint4 &at(int row, int chunk) { return chunks[row * (ROW / 16) + (chunk ^ (row % 8))]; }
    };

    // Their addresses' lowest bits are chunks: aligned to a row.
    struct alignas(ROW) Stages {
        struct {
            Panel a, b;
        } at[STAGES];
    };

    // One chunk, from `count` elements at `from`; `copies` where they are aligned and in global memory, as cp.async takes them.
    __device__ static void fetch_chunk(uint4 &to, const E *from, int count, bool aligned, bool copies, float scale) {
        int elements = count >= CHUNK ? CHUNK : count > 0 ? count : 0;
        if (scale == 1.f && copies) {
            copy16(shared_address(&to), from, elements * int(sizeof(E)));
            return;
        }
        float v[CHUNK];
        load_some(from, count, aligned, v);
        union { uint4 bits; E halves[CHUNK]; } all;
#pragma unroll
        for (int i = 0; i < CHUNK; i++) all.halves[i] = Narrow<E, float>::of(v[i] * scale);
        to = all.bits;
    }

    // Eight neighbouring threads copy 128 bytes side by side.
    struct Share {
        int thread = margin_loss::thread();

        __device__ int chunk() const { return thread % 8; }
        __device__ int row(int i) const { return thread / 8 + 16 * i; }
    };

    // A thread's copies of a whole step.
    template <bool ALONG>
    struct Copies {
        const char *from;
        i64 rows, step;  // bytes to the sixteenth next row, to the next step
        unsigned int to; // in a panel
        int bytes[ALONG ? PIECES : TILE / STEP];

        __device__ void start(const Share &share, const E *base, i64 stride, i64 to_next) {
            from = reinterpret_cast<const char *>(base + share.row(0) * stride + CHUNK * share.chunk());
            rows = 16 * stride * i64(sizeof(E)), step = to_next * i64(sizeof(E));
            to = share.row(0) * ROW + 16 * (share.chunk() ^ (share.row(0) % 8));
        }

        __device__ void copy(unsigned int panel) {
            unsigned int to = panel + this->to;
            constexpr int BESIDE = ALONG ? 1 : TILE / STEP;
            const char *row = from; // walks: products of i and `rows` would be made anew in each step
#pragma unroll
            for (int i = 0; i < PIECES / BESIDE; i++) {
#pragma unroll
                for (int s = 0; s < BESIDE; s++) copy16(to + (STEP * s + 16 * i) * ROW, row + s * ROW, bytes[ALONG ? i : s]);
                row += rows;
            }
            from += step;
        }
    };

    template <class>
    struct AlongK {
        static constexpr bool ALONG = true;
        const E *base;
        i64 stride;
        int rows, depth;
        bool aligned, copies;
        const int *mask;
        const Norm<float> *norms;

        __device__ AlongK(const E *base, i64 stride, i64 rows, i64 depth, const int *mask, const Norm<float> *norms,
                          bool on_chip = false)
            : base(base), stride(stride), rows(rows < TILE ? int(rows) : TILE), depth(int(depth)), aligned(rows_aligned(base, stride)), copies(aligned && !on_chip), mask(mask),
              norms(norms) {}

        __device__ bool counts(int r) const { return r < rows && (mask == nullptr || mask[r] >= 0); }

        // Whether copies do, as far as this thread's share of the rows says.
        __device__ bool is_plain() const {
            bool plain = copies;
            if (norms != nullptr)
                for (int r = threadIdx.x; r < TILE; r += THREADS) plain = plain && (!counts(r) || norms[r].scale == 1.f);
            return plain;
        }

        // Whether all of this thread's rows count.
        __device__ bool is_whole() const {
            Share share;
            bool whole = true;
            for (int i = 0; i < PIECES; i++) whole = whole && counts(share.row(i));
            return whole;
        }

        // `whole`: all rows count, as far as the compiler is to know.
        __device__ Copies<true> whole_steps(const Share &share, bool whole) const {
            Copies<true> of;
            of.start(share, base, stride, STEP);
#pragma unroll
            for (int i = 0; i < PIECES; i++) of.bytes[i] = whole || counts(share.row(i)) ? 16 : 0;
            return of;
        }

        __device__ void fetch(int k0, Panel &to) const {
            Share share;
            int k = k0 + CHUNK * share.chunk();
#pragma unroll 1
            for (int i = 0; i < PIECES; i++) {
                int r = share.row(i);
                bool there = k < depth && counts(r);
                const E *from = there ? base + r * stride + k : base;
                fetch_chunk(to.at(r, share.chunk()), from, there ? depth - k : 0, aligned, copies, norms != nullptr && there ? norms[r].scale : 1.f);
            }
        }
    };

    template <class, class By>
    struct AcrossK {
        static constexpr bool ALONG = false;
        const E *base;
        i64 stride;
        int width, depth;
        bool aligned, copies;
        By by;

        __device__ AcrossK(const E *base, i64 stride, i64 width, i64 depth, By by, bool on_chip = false)
            : base(base), stride(stride), width(width < TILE ? int(width) : TILE), depth(int(depth)), aligned(rows_aligned(base, stride)), copies(aligned && !on_chip), by(by) {}

        __device__ bool is_plain() const {
            bool plain = copies;
            if constexpr (By::SCALES)
                for (int k = threadIdx.x; k < depth; k += THREADS) plain = plain && by.counts(k) && by.template norm<float>(k).scale == 1.f;
            return plain;
        }

        __device__ Copies<false> whole_steps(const Share &share, bool) const {
            Copies<false> of;
            of.start(share, base, stride, STEP * stride);
#pragma unroll
            for (int i = 0; i < TILE / STEP; i++) {
                int left = width - STEP * i - CHUNK * share.chunk();
                of.bytes[i] = left >= CHUNK ? 16 : left > 0 ? left * int(sizeof(E)) : 0;
            }
            return of;
        }

        __device__ void fetch(int k0, Panel &to) const {
            Share share;
#pragma unroll 1
            for (int i = 0; i < PIECES; i++) {
                int k = k0 + share.row(i % 4), m = STEP * (i / 4) + CHUNK * share.chunk();
                bool there = k < depth && m < width && by.counts(k);
                const E *from = there ? base + k * stride + m : base;
                fetch_chunk(to.at(share.row(i), share.chunk()), from, there ? width - m : 0, aligned, copies, there ? by.template norm<float>(k).scale : 1.f);
            }
        }
    };

    // Where a lane's row of a fragment lies in a panel, in bytes: of 16 rows at m as operand A has them, of 16 columns (two of eight) as B. What
    // is 16 m or 16 k further on is a number of rows added or of chunks turned: `further`.
    template <bool ALONG>
    __device__ static unsigned int place_a(int m, int lane) {
        if constexpr (ALONG) return (m + lane % 16) * ROW + 16 * (lane / 16 ^ lane % 8);
        int row = STEP * (m / STEP) + lane % 8 + 8 * (lane / 16);
        return row * ROW + 16 * ((m % STEP / CHUNK + lane / 8 % 2) ^ lane % 8);
    }
    template <bool ALONG>
    __device__ static unsigned int place_b(int n, int lane) {
        if constexpr (ALONG) return (n + lane % 8 + 8 * (lane / 16)) * ROW + 16 * (lane / 8 % 2 ^ lane % 8);
        int row = STEP * (n / STEP) + lane % 8 + 8 * (lane / 8 % 2);
        return row * ROW + 16 * ((n % STEP / CHUNK + lane / 16) ^ lane % 8);
    }
    template <bool ALONG>
    __device__ static unsigned int further(unsigned int address, int m16, int k16) {
        return (address ^ (32 * (ALONG ? k16 : m16))) + 16 * ROW * (ALONG ? m16 : k16);
    }

    // Sums of squares of the first half of a warp's rows of A and of B, on the diagonals of products of 16 rows with themselves: two products a
    // fragment, of which only the diagonals count.
    template <bool WANTED>
    struct Squares {
        static constexpr int COUNT = WANTED ? SIDE / 32 : 0; // fragments of A and of B each
        float at[2][SIDE / 32][2][4];
    };

    __device__ static void add_squares(float (&d)[2][4], const unsigned int (&as_a)[4], const unsigned int (&as_b)[4]) {
        multiply_add(d[0], as_a, as_b, E()), multiply_add(d[1], as_a, as_b + 2, E());
    }

    // Adds all steps to `acc`. Begins where the stages are free, and so ends.
    template <bool PLAIN, bool WHOLE, bool SQUARES, class A, class B>
    __device__ static void run(Sums &acc, Squares<SQUARES> &squares, const A &a, const B &b, int depth, Stages &stages) {
        constexpr unsigned int PANEL = sizeof(Panel), STAGE = 2 * PANEL;
        int steps = (depth + STEP - 1) / STEP;
        bool partial = PLAIN && depth % STEP != 0;
        Share share;
        auto copies_a = a.whole_steps(share, WHOLE);
        auto copies_b = b.whole_steps(share, WHOLE);
        unsigned int base = shared_address(&stages);
        auto fetch = [&](int step, int stage) {
            if constexpr (PLAIN)
                copies_a.copy(base + stage * STAGE), copies_b.copy(base + stage * STAGE + PANEL);
            else
                a.fetch(step * STEP, stages.at[stage].a), b.fetch(step * STEP, stages.at[stage].b);
        };
        if (partial) {
            int k0 = (steps - 1) * STEP;
            a.fetch(k0, stages.at[0].a), b.fetch(k0, stages.at[0].b);
        }
#pragma unroll
        for (int step = 0; step < STAGES - 1; step++) {
            if (step < steps && !(step == 0 && partial)) fetch(step, step);
            commit_copies(); // an empty group keeps the count, here and below
        }
        Place place;
        int lane = place.thread % 32;
        unsigned int from_a[2], from_b[2]; // halves
#pragma unroll
        for (int half = 0; half < 2; half++) {
            from_a[half] = base + place_a<A::ALONG>(place.rows_of(half), lane);
            from_b[half] = base + PANEL + place_b<B::ALONG>(place.columns_of(half), lane);
        }
        // The rows that this warp adds up squares of, as the other operand has its own.
        unsigned int a_as_b = base + place_b<true>(place.rows_of(0), lane), b_as_a = base + PANEL + place_a<true>(place.columns_of(0), lane);
        int stage = 0;
        for (int step = 0; step < steps; step++) {
            wait_copies<STAGES - 2>();
            __syncthreads(); // every thread's chunks of this step are there; and the step before, whose stage is written next, is read
            if (step + STAGES - 1 < steps) fetch(step + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
            commit_copies();
            if constexpr (!PLAIN) __syncwarp(); // lanes part where they fetch an edge; ldmatrix and mma.sync take them together
            unsigned int at = stage * STAGE;
            constexpr int FRAGMENTS = SIDE / 16, HALF = FRAGMENTS / 2;
#pragma unroll(PLAIN ? STEP / 16 : 1)
            for (int k = 0; k < STEP / 16; k++) {
                unsigned int a_values[FRAGMENTS][4];
#pragma unroll
                for (int i = 0; i < FRAGMENTS; i++)
                    load_matrices<!A::ALONG>(a_values[i], further<A::ALONG>(from_a[i / HALF] + at, i % HALF, k));
#pragma unroll
                for (int n = 0; n < FRAGMENTS; n++) {
                    // One of B at a time: all at once would be more registers than there are.
                    unsigned int b_values[4], other[4];
                    load_matrices<!B::ALONG>(b_values, further<B::ALONG>(from_b[n / HALF] + at, n % HALF, k));
#pragma unroll
                    for (int m = 0; m < FRAGMENTS; m++) {
                        float *d = acc.at + 4 * (2 * FRAGMENTS * m + 2 * n);
                        multiply_add(d, a_values[m], b_values, E()), multiply_add(d + 4, a_values[m], b_values + 2, E());
                    }
                    if (n < Squares<SQUARES>::COUNT) {
                        load_matrices<false>(other, further<true>(a_as_b + at, n, k));
                        add_squares(squares.at[0][n], a_values[n], other);
                        load_matrices<false>(other, further<true>(b_as_a + at, n, k));
                        add_squares(squares.at[1][n], other, b_values);
                    }
                }
            }
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        __syncthreads();
    }

    // As Staged::multiply.
    template <bool SQUARES, class A, class B>
    __device__ static void multiply(Sums &acc, const A &a, const B &b, i64 depth, Stages &stages, float (*squares)[SQUARE_PARTS][TILE]) {
#pragma unroll
        for (int e = 0; e < Sums::ROWS * Sums::COLUMNS; e++) acc.at[e] = 0.f;
        Squares<SQUARES> own = {};
        // Tiles of rows that all count have a loop without the copies' bounds, where these would be a tenth of it.
        constexpr bool BY_ROWS = A::ALONG && B::ALONG && !SQUARES;
        bool whole = false;
        if constexpr (BY_ROWS) whole = __syncthreads_and(a.is_whole() && b.is_whole());
        if (!__syncthreads_and(a.is_plain() && b.is_plain()))
            run<false, false, SQUARES>(acc, own, a, b, int(depth), stages);
        else if (BY_ROWS && whole)
            run<true, BY_ROWS, SQUARES>(acc, own, a, b, int(depth), stages);
        else
            run<true, false, SQUARES>(acc, own, a, b, int(depth), stages);
        if constexpr (SQUARES) {
            Place place;
            int lane = place.thread % 32;
#pragma unroll
            for (int of = 0; of < 2; of++) {
                int first = of == 0 ? place.rows_of(0) : place.columns_of(0);
#pragma unroll
                for (int i = 0; i < 2 * Squares<true>::COUNT; i++) {
                    // Rows 0 to 7 of sixteen are in the first product's upper half, the others in the second's lower half.
                    const float *d = own.at[of][i / 2][i % 2] + 2 * (i % 2);
                    if (lane % 4 == lane / 8) squares[of][0][first + 8 * i + lane / 4] = lane / 4 % 2 == 0 ? d[0] : d[1];
                }
            }
            __syncthreads();
        }
    }
};

} // namespace margin_loss

#endif
