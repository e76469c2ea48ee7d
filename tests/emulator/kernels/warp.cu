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
