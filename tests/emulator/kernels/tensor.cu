// Tensor cores: fragments that a reader can compare with the ISA's tables, and a product that uses all of it.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// One mma: each lane's registers are filled and stored by its own place in the tables, with plain accesses.
template <typename T> __device__ unsigned pair(const T* at, int step) {
    T v[2] = {at[0], at[step]};
    return *(unsigned*)v;
}
// A: 16×16 row by row, B: 16×8 row by row, C and D: 16×8 row by row.
#define MMA_16(NAME, T, TYPE)                                                                                                          \
    extern "C" __global__ void NAME(const T* a, const T* b, const float* c, float* d) {                                                \
        int lane = threadIdx.x, group = lane / 4, rank = lane % 4;                                                                     \
        unsigned ra[4], rb[2];                                                                                                         \
        ra[0] = pair(a + group * 16 + 2 * rank, 1);                                                                                    \
        ra[1] = pair(a + (group + 8) * 16 + 2 * rank, 1);                                                                              \
        ra[2] = pair(a + group * 16 + 2 * rank + 8, 1);                                                                                \
        ra[3] = pair(a + (group + 8) * 16 + 2 * rank + 8, 1);                                                                          \
        rb[0] = pair(b + 2 * rank * 8 + group, 8);                                                                                     \
        rb[1] = pair(b + (2 * rank + 8) * 8 + group, 8);                                                                               \
        float r[4];                                                                                                                    \
        for (int i = 0; i < 4; ++i) r[i] = c[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2];                                            \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                     : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])                                                                  \
                     : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));                                        \
        for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2] = r[i];                                            \
    }
MMA_16(mma_f16, __half, "f16")
MMA_16(mma_bf16, __nv_bfloat16, "bf16")

// f16 sums: two a register.
extern "C" __global__ void mma_f16_narrow(const __half* a, const __half* b, const __half* c, __half* d) {
    int lane = threadIdx.x, group = lane / 4, rank = lane % 4;
    unsigned ra[4], rb[2], r[2];
    ra[0] = pair(a + group * 16 + 2 * rank, 1);
    ra[1] = pair(a + (group + 8) * 16 + 2 * rank, 1);
    ra[2] = pair(a + group * 16 + 2 * rank + 8, 1);
    ra[3] = pair(a + (group + 8) * 16 + 2 * rank + 8, 1);
    rb[0] = pair(b + 2 * rank * 8 + group, 8);
    rb[1] = pair(b + (2 * rank + 8) * 8 + group, 8);
    for (int i = 0; i < 2; ++i) r[i] = pair(c + (group + 8 * i) * 8 + 2 * rank, 1);
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
                 : "+r"(r[0]), "+r"(r[1])
                 : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
    for (int i = 0; i < 2; ++i) *(unsigned*)(d + (group + 8 * i) * 8 + 2 * rank) = r[i];
}

// k 8, f16: A 16×8, B 8×8.
extern "C" __global__ void mma_f16_k8(const __half* a, const __half* b, const float* c, float* d) {
    int lane = threadIdx.x, group = lane / 4, rank = lane % 4;
    unsigned a0 = pair(a + group * 8 + 2 * rank, 1), a1 = pair(a + (group + 8) * 8 + 2 * rank, 1), b0 = pair(b + 2 * rank * 8 + group, 8);
    float r[4];
    for (int i = 0; i < 4; ++i) r[i] = c[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2];
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3]) : "r"(a0), "r"(a1), "r"(b0));
    for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2] = r[i];
}

// tf32: A 16×8, B 8×8.
extern "C" __global__ void mma_tf32(const float* a, const float* b, const float* c, float* d) {
    int lane = threadIdx.x, group = lane / 4, rank = lane % 4;
    unsigned ra[4], rb[2];
    ra[0] = __float_as_uint(a[group * 8 + rank]);
    ra[1] = __float_as_uint(a[(group + 8) * 8 + rank]);
    ra[2] = __float_as_uint(a[group * 8 + rank + 4]);
    ra[3] = __float_as_uint(a[(group + 8) * 8 + rank + 4]);
    rb[0] = __float_as_uint(b[rank * 8 + group]);
    rb[1] = __float_as_uint(b[(rank + 4) * 8 + group]);
    float r[4];
    for (int i = 0; i < 4; ++i) r[i] = c[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2];
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
                 : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
    for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2] = r[i];
}

// f64: A 8×4, B 4×8.
extern "C" __global__ void mma_f64(const double* a, const double* b, const double* c, double* d) {
    int lane = threadIdx.x, group = lane / 4, rank = lane % 4;
    double r0 = c[group * 8 + 2 * rank], r1 = c[group * 8 + 2 * rank + 1];
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+d"(r0), "+d"(r1) : "d"(a[group * 4 + rank]), "d"(b[rank * 8 + group]));
    d[group * 8 + 2 * rank] = r0;
    d[group * 8 + 2 * rank + 1] = r1;
}

// Bytes, k 32: A 16×32 row by row, B 32×8 row by row, each lane's registers filled by its place in the tables.
#define MMA_BYTES(NAME, T, S, TYPE, SAT)                                                                                                         \
    extern "C" __global__ void NAME(const T* a, const S* b, const int* c, int* d) {                                                              \
        int lane = threadIdx.x, group = lane / 4, rank = lane % 4;                                                                               \
        unsigned ra[4] = {}, rb[2] = {};                                                                                                         \
        int r[4];                                                                                                                                \
        for (int i = 0; i < 16; ++i) ra[i / 4] |= (a[(group + 8 * (i / 4 % 2)) * 32 + 4 * rank + i % 4 + 16 * (i / 8)] & 0xffu) << (8 * (i % 4)); \
        for (int i = 0; i < 8; ++i) rb[i / 4] |= (b[(4 * rank + i % 4 + 16 * (i / 4)) * 8 + group] & 0xffu) << (8 * (i % 4));                     \
        for (int i = 0; i < 4; ++i) r[i] = c[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2];                                                      \
        asm volatile("mma.sync.aligned.m16n8k32.row.col" SAT ".s32." TYPE ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"            \
                     : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3])                                                                            \
                     : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));                                                  \
        for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2] = r[i];                                                      \
    }
MMA_BYTES(mma_s8, signed char, signed char, "s8.s8", "")
MMA_BYTES(mma_u8_s8, unsigned char, signed char, "u8.s8", "")
MMA_BYTES(mma_s8_saturated, signed char, signed char, "s8.s8", ".satfinite")

// Integers of 4 bits, k 64, each in a byte of A 16×64 and B 64×8; and bytes of 8 rows, k 16.
#define MMA_NIBBLES(NAME, TYPE)                                                                                                                        \
    extern "C" __global__ void NAME(const unsigned char* a, const unsigned char* b, const int* c, int* d) {                                            \
        int lane = threadIdx.x, group = lane / 4, rank = lane % 4;                                                                                     \
        unsigned ra[4] = {}, rb[2] = {};                                                                                                               \
        int r[4];                                                                                                                                      \
        for (int i = 0; i < 32; ++i) ra[i / 8] |= (a[(group + 8 * (i / 8 % 2)) * 64 + 8 * rank + i % 8 + 32 * (i / 16)] & 0xfu) << (4 * (i % 8));       \
        for (int i = 0; i < 16; ++i) rb[i / 8] |= (b[(8 * rank + i % 8 + 32 * (i / 8)) * 8 + group] & 0xfu) << (4 * (i % 8));                           \
        for (int i = 0; i < 4; ++i) r[i] = c[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2];                                                            \
        asm volatile("mma.sync.aligned.m16n8k64.row.col.s32." TYPE ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                         \
                     : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3])                                                                                  \
                     : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));                                                        \
        for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2] = r[i];                                                            \
    }
MMA_NIBBLES(mma_s4, "s4.s4")
MMA_NIBBLES(mma_u4_s4, "u4.s4")
extern "C" __global__ void mma_s8_of_8_rows(const signed char* a, const signed char* b, const int* c, int* d) {
    int lane = threadIdx.x, group = lane / 4, rank = lane % 4, r[2];
    unsigned ra = 0, rb = 0;
    for (int i = 0; i < 4; ++i) ra |= (a[group * 16 + 4 * rank + i] & 0xffu) << (8 * i), rb |= (b[(4 * rank + i) * 8 + group] & 0xffu) << (8 * i);
    for (int i = 0; i < 2; ++i) r[i] = c[group * 8 + 2 * rank + i];
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(r[0]), "+r"(r[1]) : "r"(ra), "r"(rb));
    for (int i = 0; i < 2; ++i) d[group * 8 + 2 * rank + i] = r[i];
}

// Half of A's elements: a has 16×16 of them, which of each four columns they are of stands in `which`, a number for each. The second pair of lanes has
// the metadata.
extern "C" __global__ void mma_sparse(const __half* a, const __half* b, const float* c, float* d, const int* which) {
    int lane = threadIdx.x, group = lane / 4, rank = lane % 4;
    unsigned ra[4], rb[4], e = 0;
    float r[4];
    auto pair = [](__half low, __half high) { return (unsigned)__half_as_ushort(low) | (unsigned)__half_as_ushort(high) << 16; };
    for (int i = 0; i < 4; ++i) {
        const __half* from = a + (group + 8 * (i % 2)) * 16 + 2 * rank + 8 * (i / 2);
        ra[i] = pair(from[0], from[1]);
        rb[i] = pair(b[(2 * rank + 8 * i) * 8 + group], b[(2 * rank + 8 * i + 1) * 8 + group]);
        r[i] = c[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2];
    }
    for (int i = 0; i < 16; ++i)
        if (rank >= 2) e |= which[(group + 8 * (i / 8)) * 16 + 8 * (rank - 2) + i % 8] << (2 * i);
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 1;"
                 : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
                 : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]), "r"(rb[2]), "r"(rb[3]), "r"(e));
    for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * rank + i % 2] = r[i];
}

// Four 8×8 matrices, as they are and transposed: each lane stores what it got. Row r of matrix m is at 8 (8 m + r).
extern "C" __global__ void ldmatrix(const unsigned short* x, unsigned* y) {
    __shared__ __align__(16) unsigned short s[256];
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) s[i] = x[i];
    __syncthreads();
    unsigned at = __cvta_generic_to_shared(s + 8 * lane), r[8];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7]) : "r"(at));
    for (int i = 0; i < 8; ++i) y[32 * i + lane] = r[i];
}

// C = A·B in bf16, sums in f32: A is M×K, B is K×N, row by row. Tiles of 32×32, 16 of K at a time in two stages of cp.async, four warps.
// M, N multiples of 32, K of 16.
extern "C" __global__ void gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
    constexpr int PAD = 8;
    __shared__ __align__(16) __nv_bfloat16 sa[2][32][16 + PAD], sb[2][16][32 + PAD];
    int t = threadIdx.x, warp = t / 32, lane = t % 32;
    int row = blockIdx.y * 32, column = blockIdx.x * 32;
    auto fetch = [&](int stage, int from) {
        const __nv_bfloat16* source;
        unsigned to;
        if (t < 64) {
            source = a + (long)(row + t / 2) * k + from + t % 2 * 8;
            to = __cvta_generic_to_shared(&sa[stage][t / 2][t % 2 * 8]);
        } else {
            source = b + (long)(from + (t - 64) / 4) * n + column + t % 4 * 8;
            to = __cvta_generic_to_shared(&sb[stage][(t - 64) / 4][t % 4 * 8]);
        }
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(source));
        asm volatile("cp.async.commit_group;");
    };
    float sum[2][4] = {};
    int wr = warp / 2 * 16, wc = warp % 2 * 16;
    fetch(0, 0);
#pragma unroll 1
    for (int from = 0, stage = 0; from < k; from += 16, stage ^= 1) {
        if (from + 16 < k) {
            fetch(stage ^ 1, from + 16);
            asm volatile("cp.async.wait_group 1;");
        } else {
            asm volatile("cp.async.wait_group 0;");
        }
        __syncthreads();
        unsigned ra[4], rb[4];
        unsigned at = __cvta_generic_to_shared(&sa[stage][wr + lane % 16][lane / 16 * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3]) : "r"(at));
        at = __cvta_generic_to_shared(&sb[stage][lane % 16][wc + lane / 16 * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(rb[0]), "=r"(rb[1]), "=r"(rb[2]), "=r"(rb[3]) : "r"(at));
        for (int i = 0; i < 2; ++i) {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                         : "+f"(sum[i][0]), "+f"(sum[i][1]), "+f"(sum[i][2]), "+f"(sum[i][3])
                         : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[2 * i]), "r"(rb[2 * i + 1]));
        }
        __syncthreads();
    }
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
            c[(long)(row + wr + lane / 4 + j / 2 * 8) * n + column + wc + 8 * i + 2 * (lane % 4) + j % 2] = sum[i][j];
}
