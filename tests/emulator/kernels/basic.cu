// Correct kernels, each with what it exercises.

// Guards, multiply-adds.
extern "C" __global__ void saxpy(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

// A grid-stride loop, shuffles, shared memory, barriers, an atomic.
extern "C" __global__ void reduce(const float* x, float* out, long n) {
    __shared__ float partial[32];
    float v = 0;
    for (long i = blockIdx.x * (long)blockDim.x + threadIdx.x; i < n; i += (long)blockDim.x * gridDim.x) v += x[i];
    for (int o = 16; o; o >>= 1) v += __shfl_down_sync(~0u, v, o);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
        for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
        if (threadIdx.x == 0) atomicAdd(out, v);
    }
}

// Divergent loops of different lengths, integer division, 64-bit arithmetic.
extern "C" __global__ void collatz(const unsigned* start, unsigned* steps, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long v = start[i];
    unsigned count = 0;
    while (v != 1) {
        v = v % 2 ? 3 * v + 1 : v / 2;
        ++count;
    }
    steps[i] = count;
}

// Dynamic shared memory, a transposition, vector accesses.
extern "C" __global__ void transpose(const float* in, float* out, int rows, int cols) {
    extern __shared__ float tile[];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    if (x < cols && y < rows) tile[threadIdx.y * 33 + threadIdx.x] = in[(long)y * cols + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x;
    y = blockIdx.x * 32 + threadIdx.y;
    if (x < rows && y < cols) out[(long)y * rows + x] = tile[threadIdx.x * 33 + threadIdx.y];
}

// Accurate functions of the device library: local memory (sine's argument reduction), constants, calls.
__constant__ float table[4] = {1.f, 2.f, 3.f, 4.f};
__device__ __noinline__ float helper(float x, int k) { return expf(x) * table[k & 3] + sinf(x * 1e6f); }
extern "C" __global__ void functions(const float* x, float* y, double* z, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = helper(x[i], i) + logf(fabsf(x[i]) + 1.f);
    z[i] = sin((double)x[i]) / (1.0 + exp((double)x[i]));
}

// Votes, ballots, lane masks.
extern "C" __global__ void compact(const int* in, int* out, int* count, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    bool keep = i < n && in[i] > 0;
    unsigned ballot = __ballot_sync(~0u, keep);
    int lane = threadIdx.x % 32, base = 0;
    if (lane == 0) base = atomicAdd(count, __popc(ballot));
    base = __shfl_sync(~0u, base, 0);
    if (keep) out[base + __popc(ballot & ((1u << lane) - 1))] = in[i];
}

// Parameters by address: a struct that stays where it is, read at an offset of each thread's own, and by a function that knows only where.
struct Coefficients {
    float at[8];
    int count;
};
__device__ __forceinline__ float coefficient(const Coefficients& c, int i) { return c.at[i % c.count]; }
__device__ __noinline__ float elsewhere(const Coefficients& c, int i) { return c.at[i]; }
extern "C" __global__ void by_address(float* out, __grid_constant__ const Coefficients c) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = coefficient(c, i) + 10.f * elsewhere(c, 7);
}

// Text, a thread after the other.
#include <cstdio>
extern "C" __global__ void says(const float* x, int n) {
    int i = threadIdx.x;
    if (i < n) printf("%d: %5.2f %s %c %lld%%, %-4u|%*d\n", i, x[i], i % 2 ? "odd" : "even", 'a' + i, -(1ll << 40), 7u, 4, i);
    if (i == n) printf("no arguments\n");
}
