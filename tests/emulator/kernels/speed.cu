// What the speed is measured on.

extern "C" __global__ void fma_loop(const float* x, float* y, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float a = x[i & 1023], b = a;
    for (int r = 0; r < rounds; ++r) {
        float v = x[(i + r) & 1023];
        a = fmaf(a, 0.999f, v);
        b = fmaf(b, 0.998f, a);
        a = fmaf(b, 0.001f, a);
    }
    y[i] = a + b;
}

extern "C" __global__ void mma_loop(const unsigned* x, float* y, int rounds) {
    unsigned a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = x[threadIdx.x + 32 * i];
    for (int i = 0; i < 2; ++i) b[i] = x[threadIdx.x + 32 * i];
    float c[4] = {};
    for (int r = 0; r < rounds; ++r) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}
