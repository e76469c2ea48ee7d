// Blocks that speak to each other, and how they must not. Each fault beside its correct twin.
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

// Each thread writes, all wait, each reads what a thread of another block wrote.
extern "C" __global__ void exchange_ok(int* x, int* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = 3 * i;
    cg::this_grid().sync();
    if (i < n) y[i] = x[n - 1 - i];
    cg::this_grid().sync();
    if (i < n) x[i] = y[(i + 7) % n];
}
extern "C" __global__ void exchange(int* x, int* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = 3 * i;
    cg::this_grid().sync();
    if (i < n) y[i] = x[n - 1 - i];
    if (i < n) x[i] = y[i]; // others may still read it
}

// The last block to arrive adds up what all have written.
template <bool RELEASE, bool ACQUIRE> __device__ void last_block(const float* x, float* part, float* out, unsigned* count) {
    __shared__ int last;
    part[blockIdx.x * blockDim.x + threadIdx.x] = 2 * x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        if (RELEASE) __threadfence();
        last = atomicAdd(count, 1u) == gridDim.x - 1;
        if (ACQUIRE) __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < gridDim.x * blockDim.x; ++i) sum += part[i];
        *out = sum;
    }
}
extern "C" __global__ void last_ok(const float* x, float* part, float* out, unsigned* count) { last_block<true, true>(x, part, out, count); }
extern "C" __global__ void last_unreleased(const float* x, float* part, float* out, unsigned* count) { last_block<false, true>(x, part, out, count); }
extern "C" __global__ void last_unacquired(const float* x, float* part, float* out, unsigned* count) { last_block<true, false>(x, part, out, count); }

// Two blocks write the same bytes; or neighbouring ones of the same word.
extern "C" __global__ void overlap(unsigned char* x) { x[blockIdx.x * 15 + threadIdx.x] = threadIdx.x; }
extern "C" __global__ void overlap_ok(unsigned char* x) { x[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x; }

// A block reads what another writes.
extern "C" __global__ void peek(int* x) { x[2 * blockIdx.x] = x[2 * ((blockIdx.x + 1) % gridDim.x)] + 1; }
extern "C" __global__ void peek_ok(int* x) { x[2 * blockIdx.x] = x[2 * ((blockIdx.x + 1) % gridDim.x) + 1] + 1; }

// Warps of a block speak through global memory.
extern "C" __global__ void inside(int* x) {
    x[threadIdx.x] = threadIdx.x;
    x[threadIdx.x + blockDim.x] = x[(threadIdx.x + 32) % blockDim.x];
}
extern "C" __global__ void inside_ok(int* x) {
    x[threadIdx.x] = threadIdx.x;
    __syncthreads();
    x[threadIdx.x + blockDim.x] = x[(threadIdx.x + 32) % blockDim.x];
}

// An atomic and a plain access.
extern "C" __global__ void mixed(int* x) {
    if (blockIdx.x == 0) *x = 5;
    else atomicAdd(x, 1);
}
extern "C" __global__ void mixed_ok(int* x) { atomicAdd(x, blockIdx.x == 0 ? 5 : 1); }

// Waits for a flag that another block sets; or that nobody sets.
extern "C" __global__ void flag_ok(volatile int* flag, int* x) {
    if (blockIdx.x == 0) {
        *x = 41;
        __threadfence();
        *flag = 1;
    } else {
        while (*flag == 0) {}
        __threadfence();
        *x += 1;
    }
}
extern "C" __global__ void flag(volatile int* flag, int* x) {
    if (blockIdx.x == 0) *x = 41;
    else {
        while (*flag == 0) {}
        *x += 1;
    }
}

// A copy that nobody waited for; one that is read by a thread that did not wait for the block.
extern "C" __global__ void copy_ok(const int* x, int* y) {
    __shared__ int s[64];
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(s + threadIdx.x)), "l"(x + threadIdx.x));
    asm volatile("cp.async.wait_all;");
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void copy(const int* x, int* y) {
    __shared__ int s[64];
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(s + threadIdx.x)), "l"(x + threadIdx.x));
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void copy_early(const int* x, int* y) {
    __shared__ int s[64];
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(s + threadIdx.x)), "l"(x + threadIdx.x));
    asm volatile("cp.async.wait_all;");
    y[threadIdx.x] = s[63 - threadIdx.x];
}

// A copy of a part, the rest zeros: `count` of 16 bytes.
extern "C" __global__ void copy_part(const int4* x, int4* y, int count) {
    __shared__ int4 s[32];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(s + threadIdx.x)), "l"(x + threadIdx.x), "r"(count));
    asm volatile("cp.async.wait_all;");
    y[threadIdx.x] = s[threadIdx.x];
}
