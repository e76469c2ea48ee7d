// A whole program, as nvcc builds it: driver/tests/runtime.rs runs it on the emulated library.
#include <cstdio>
#include <vector>

__device__ float factor[2] = {3.f, 1.f};

// o = factor·x, backwards, by way of shared memory.
__global__ void reverse(float* o, const float* x, int n) {
    extern __shared__ float s[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) s[n - 1 - i] = factor[0] * x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) o[i] = s[i];
    if (threadIdx.x == 0) printf("%d reversed\n", n);
}
__global__ void outside(float* o) { o[1 << 20] = 1; }

void say(const char* what) { printf("%s: %s\n", what, cudaGetErrorString(cudaGetLastError())); }

int main() {
    const int n = 16384;
    std::vector<float> x(n), y(n);
    for (int i = 0; i < n; i++) x[i] = i;
    float *a, *b, *f, two = 2;
    cudaStream_t stream;
    cudaMalloc(&a, 4 * n), cudaMalloc(&b, 4 * n), cudaStreamCreate(&stream);
    cudaGetSymbolAddress((void**)&f, factor);
    cudaMemcpy(f, &two, 4, cudaMemcpyHostToDevice);
    cudaMemcpyAsync(a, x.data(), 4 * n, cudaMemcpyHostToDevice, stream);
    reverse<<<1, 128, 4 * n, stream>>>(b, a, n);
    say("without asking for shared memory");
    cudaFuncSetAttribute(reverse, cudaFuncAttributeMaxDynamicSharedMemorySize, 4 * n);
    int blocks = 0, device = -1, major = 0;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, reverse, 128, 4 * n);
    cudaGetDevice(&device), cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    printf("%d blocks, device %d, %d.x\n", blocks, device, major);
    reverse<<<1, 128, 4 * n, stream>>>(b, a, n);
    cudaMemcpyAsync(y.data(), b, 4 * n, cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    say("reverse");
    int wrong = 0;
    for (int i = 0; i < n; i++) wrong += y[i] != 2 * x[n - 1 - i];
    printf("%d wrong\n", wrong);
    outside<<<1, 1>>>(b);
    say("launch");
    cudaDeviceSynchronize();
    say("outside");
    fflush(stdout);
    return wrong;
}
