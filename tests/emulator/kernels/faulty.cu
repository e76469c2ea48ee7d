// Each fault beside its correct twin: `..._ok` must run, the other must be reported.

extern "C" __global__ void bounds_ok(float* x, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] = i; }
extern "C" __global__ void bounds(float* x, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i <= n) x[i] = i; }

extern "C" __global__ void misaligned_ok(float* x) { *(float2*)(x + 2 * threadIdx.x) = make_float2(1, 2); }
extern "C" __global__ void misaligned(float* x) { *(float2*)(x + 2 * threadIdx.x + 1) = make_float2(1, 2); }

extern "C" __global__ void unwritten_ok(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }

extern "C" __global__ void unwritten_shared_ok(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = 1;
    s[threadIdx.x + 32] = 2;
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void unwritten_shared(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}

extern "C" __global__ void race_ok(float* y) {
    __shared__ float s[256];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = s[255 - threadIdx.x];
}
extern "C" __global__ void race(float* y) {
    __shared__ float s[256];
    s[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = s[255 - threadIdx.x];
}

extern "C" __global__ void overwrite_ok(float* y) {
    __shared__ float s[256];
    for (int r = 0; r < 3; ++r) {
        s[threadIdx.x] = threadIdx.x + r;
        __syncthreads();
        y[threadIdx.x] = s[(threadIdx.x + 64) % 256];
        __syncthreads();
    }
}
extern "C" __global__ void overwrite(float* y) {
    __shared__ float s[256];
    for (int r = 0; r < 3; ++r) {
        s[threadIdx.x] = threadIdx.x + r;
        __syncthreads();
        y[threadIdx.x] = s[(threadIdx.x + 64) % 256];
    }
}

extern "C" __global__ void barrier_ok(float* y, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x < n) y[threadIdx.x] = 2;
}
extern "C" __global__ void barrier(float* y, int n) {
    if (threadIdx.x < n) {
        y[threadIdx.x] = 1;
        __syncthreads();
        y[threadIdx.x] = 2;
    } else {
        asm volatile("bar.sync 1;");
    }
}

extern "C" __global__ void lanes_ok(float* y) {
    float v = threadIdx.x;
    unsigned mask = __ballot_sync(~0u, threadIdx.x < 16);
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(mask, v, 1);
}
extern "C" __global__ void lanes(float* y, int k) {
    float v = threadIdx.x;
    if (threadIdx.x < k) y[threadIdx.x] = __shfl_xor_sync(~0u, v, 1);
    else y[threadIdx.x] = __shfl_xor_sync(~0u, v, 2);
}

extern "C" __global__ void trap_ok(int* x) { if (*x == 7) __trap(); }
