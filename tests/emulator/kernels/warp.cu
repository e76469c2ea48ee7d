// What lanes of a warp tell each other, and atomics of every type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void matches(const int* x, unsigned* any, unsigned* all, int* agree) {
    int p;
    any[threadIdx.x] = __match_any_sync(~0u, x[threadIdx.x]);
    all[threadIdx.x] = __match_all_sync(~0u, x[threadIdx.x] / 100, &p);
    agree[threadIdx.x] = p;
}

extern "C" __global__ void reductions(const int* x, int* y) {
    int v = x[threadIdx.x];
    unsigned u = v;
    int r[8] = {(int)__reduce_add_sync(~0u, u), (int)__reduce_and_sync(~0u, u), (int)__reduce_or_sync(~0u, u), (int)__reduce_xor_sync(~0u, u),
                (int)__reduce_min_sync(~0u, u), (int)__reduce_max_sync(~0u, u), __reduce_min_sync(~0u, v), __reduce_max_sync(~0u, v)};
    if (threadIdx.x == 0) for (int i = 0; i < 8; ++i) y[i] = r[i];
}

// 256 threads add 1 to each.
extern "C" __global__ void sums(float* f, double* d, __half* h, __half2* h2, __nv_bfloat16* b, __nv_bfloat162* b2, unsigned long long* u) {
    atomicAdd(f, 1.f);
    atomicAdd(d, 1.0);
    atomicAdd(h, __float2half(1.f));
    atomicAdd(h2, __floats2half2_rn(1.f, 2.f));
    atomicAdd(b, __float2bfloat16(1.f));
    atomicAdd(b2, __floats2bfloat162_rn(1.f, 0.5f));
    atomicAdd(u, 1ull << 33);
}

extern "C" __global__ void integers(int* x, unsigned* w, unsigned short* s) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicMin(x, -i);
    atomicMax(x + 1, i);
    atomicMin(w, (unsigned)-i - 1);
    atomicMax(w + 1, (unsigned)-i - 1);
    atomicAnd(w + 2, ~(1u << (i % 32)));
    atomicOr(w + 3, 1u << (i % 32));
    atomicXor(w + 4, 1u << (i % 32));
    atomicInc(w + 5, 6);
    atomicDec(w + 6, 6);
    atomicExch(w + 7, 9);
    unsigned short old = *(volatile unsigned short*)s, seen;
    while ((seen = atomicCAS(s, old, (unsigned short)(old + 1))) != old) old = seen;
}

// Votes of a block, and warps that arrive without waiting: half of them fill a buffer that the others read, in turn.
extern "C" __global__ void block_votes(const int* x, int* y) {
    int v = x[threadIdx.x];
    y[3 * threadIdx.x] = __syncthreads_count(v > 0);
    y[3 * threadIdx.x + 1] = __syncthreads_and(v > -100);
    y[3 * threadIdx.x + 2] = __syncthreads_or(v > 100);
}
template <bool WAIT> __device__ void producers(int* y, int rounds) {
    __shared__ int s[64];
    int t = threadIdx.x;
    if (t < 64) {
        for (int r = 0; r < rounds; ++r) {
            if (r > 0 && WAIT) asm volatile("bar.sync 2, 128;" ::: "memory");
            s[t] = 100 * r + t;
            asm volatile("bar.arrive 1, 128;" ::: "memory");
        }
    } else {
        for (int r = 0; r < rounds; ++r) {
            asm volatile("bar.sync 1, 128;" ::: "memory");
            y[64 * r + t - 64] = s[127 - t];
            if (r + 1 < rounds && WAIT) asm volatile("bar.arrive 2, 128;" ::: "memory");
        }
    }
}
extern "C" __global__ void producers_ok(int* y, int rounds) { producers<true>(y, rounds); }
extern "C" __global__ void producers_hasty(int* y, int rounds) { producers<false>(y, rounds); }

// 128-bit sums, differences and products of 64-bit parts, as the compiler makes them with carries.
extern "C" __global__ void wide(const unsigned __int128* a, const unsigned __int128* b, unsigned __int128* c) {
    int i = threadIdx.x;
    c[3 * i] = a[i] + b[i];
    c[3 * i + 1] = a[i] - b[i];
    c[3 * i + 2] = a[i] * b[i];
}
extern "C" __global__ void carries(const unsigned* a, unsigned* c) {
    unsigned x = a[0], y = a[1], z = a[2], w = a[3], lo, hi;
    asm("add.cc.u32 %0, %2, %4; addc.u32 %1, %3, %5;" : "=r"(lo), "=r"(hi) : "r"(x), "r"(y), "r"(z), "r"(w));
    c[0] = lo, c[1] = hi;
    asm("sub.cc.u32 %0, %2, %4; subc.u32 %1, %3, %5;" : "=r"(lo), "=r"(hi) : "r"(x), "r"(y), "r"(z), "r"(w));
    c[2] = lo, c[3] = hi;
    asm("mad.lo.cc.u32 %0, %2, %4, %3; madc.hi.u32 %1, %2, %4, %5;" : "=r"(lo), "=r"(hi) : "r"(x), "r"(y), "r"(z), "r"(w));
    c[4] = lo, c[5] = hi;
    asm("mad.lo.cc.s32 %0, %2, %4, %3; madc.hi.s32 %1, %2, %4, %5;" : "=r"(lo), "=r"(hi) : "r"(x), "r"(y), "r"(z), "r"(w));
    c[6] = lo, c[7] = hi;
}

// Each quarter of a warp adds up by itself, at the same place in the code and with a mask of its own.
extern "C" __global__ void quarters(const int* x, int* y) {
    unsigned mask = 0xffu << (threadIdx.x & 24);
    int v = x[threadIdx.x];
    for (int o = 4; o; o >>= 1) v += __shfl_xor_sync(mask, v, o);
    y[threadIdx.x] = v + 1000 * __popc(__ballot_sync(mask, v > 50));
}
