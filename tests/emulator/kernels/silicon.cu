// What a device allows, though it looks odd, each beside a faulty twin: `..._ok` must run, the others must be reported.

// Lanes part for a while, a loop of their own length, and all come to one ldmatrix, one mma: these wait for all lanes of the warp.
__device__ unsigned wander(const float* a, int rounds) {
    unsigned x = rounds;
    for (int i = 0; i < (int)(threadIdx.x + rounds) % 5; ++i) x = x * 1664525u + __float_as_uint(a[x % 64]);
    return x;
}
template <bool APART> __device__ void matrices(float* o, const float* a, int rounds) {
    __shared__ __align__(16) unsigned s[128];
    for (int i = threadIdx.x; i < 128; i += 32) s[i] = i;
    __syncthreads();
    unsigned sum = 0;
    for (int r = 0; r < rounds; ++r) {
        unsigned x = wander(a, r), v;
        unsigned at = (unsigned)__cvta_generic_to_shared(s) + threadIdx.x % 8 * 16;
        if (APART && threadIdx.x < 16) asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 %0, [%1];" : "=r"(v) : "r"(at));
        else asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 %0, [%1];" : "=r"(v) : "r"(at));
        sum += v + (x & 1);
    }
    o[threadIdx.x] = sum % 1000;
}
extern "C" __global__ void matrices_ok(float* o, const float* a, int rounds) { matrices<false>(o, a, rounds); }
extern "C" __global__ void matrices_apart(float* o, const float* a, int rounds) { matrices<true>(o, a, rounds); }
template <int LANES> __device__ void products(float* o, const float* a, int rounds) {
    float d[4] = {0, 0, 0, 0};
    unsigned ones = 0x3f803f80;
    if (threadIdx.x >= LANES) return;
    for (int r = 0; r < rounds; ++r) {
        unsigned x = wander(a, r);
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%4,%4}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(ones));
        if (x == 77) d[0] += 1;
    }
    o[threadIdx.x] = d[0];
}
extern "C" __global__ void products_ok(float* o, const float* a, int rounds) { products<32>(o, a, rounds); }
extern "C" __global__ void products_of_few(float* o, const float* a, int rounds) { products<20>(o, a, rounds); }

// Threads that exit release a barrier of all threads; they order nothing, and a barrier of a number waits for that number.
template <bool FIRST, bool COUNTED> __device__ void exited(float* o, const float* a) {
    __shared__ float s[64];
    s[threadIdx.x] = a[threadIdx.x];
    if (FIRST) __syncthreads();
    if (threadIdx.x >= 32) return;
    if (COUNTED) asm volatile("bar.sync 0, 64;" ::: "memory");
    else __syncthreads();
    o[threadIdx.x] = s[threadIdx.x + 32];
}
extern "C" __global__ void exited_ok(float* o, const float* a) { exited<true, false>(o, a); }
extern "C" __global__ void exited_unordered(float* o, const float* a) { exited<false, false>(o, a); }
extern "C" __global__ void exited_counted(float* o, const float* a) { exited<true, true>(o, a); }

// Lanes of a warp, or warps, store the same value to one word: no race. Other values, or a reader that nothing orders after any of them, are one.
template <bool SAME, bool WAIT> __device__ void same_lanes(float* o, const float* a) {
    __shared__ float s[2];
    float v = a[threadIdx.x];
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    s[threadIdx.x / 32] = v + (SAME ? 0 : threadIdx.x % 2);
    if (WAIT) __syncthreads();
    o[threadIdx.x] = s[0] + s[1];
}
extern "C" __global__ void same_lanes_ok(float* o, const float* a) { same_lanes<true, true>(o, a); }
extern "C" __global__ void same_lanes_differ(float* o, const float* a) { same_lanes<false, true>(o, a); }
extern "C" __global__ void same_lanes_hasty(float* o, const float* a) { same_lanes<true, false>(o, a); }
template <bool SAME, bool WAIT, bool AGAIN> __device__ void same_warps(float* o, const float* a) {
    __shared__ float s[32];
    s[threadIdx.x % 32] = a[SAME ? threadIdx.x % 32 : threadIdx.x];
    float own = s[threadIdx.x % 32]; // what it wrote itself, whoever else did
    if (WAIT) __syncthreads();
    if (AGAIN && threadIdx.x < 32) s[threadIdx.x] = 0;
    o[threadIdx.x] = s[(threadIdx.x + 1) % 32] + own;
}
extern "C" __global__ void same_warps_ok(float* o, const float* a) { same_warps<true, true, false>(o, a); }
extern "C" __global__ void same_warps_differ(float* o, const float* a) { same_warps<false, true, false>(o, a); }
extern "C" __global__ void same_warps_hasty(float* o, const float* a) { same_warps<true, false, false>(o, a); }
extern "C" __global__ void same_warps_again(float* o, const float* a) { same_warps<true, true, true>(o, a); }

// A grid that fits the device waits for all its blocks, though it was not launched as cooperative; in the second way nothing tells that a block waits.
extern "C" __global__ void all_wait(float* o, unsigned* flag) {
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(flag, 1u);
        while (*(volatile unsigned*)flag < gridDim.x) {}
        __threadfence();
    }
    __syncthreads();
    o[blockIdx.x] = 1;
}
extern "C" __global__ void all_wait_busily(float* o, unsigned* flag) {
    if (threadIdx.x == 0) {
        atomicAdd(flag, 1u);
        for (unsigned i = 0; *(volatile unsigned*)flag < gridDim.x; ++i) atomicExch(flag + 1, i);
    }
    __syncthreads();
    o[blockIdx.x] = 1;
}

// The last step reads a stage that nobody has filled, and does not use it. What is used in a sum, an address or a branch is a fault, however it got there.
enum Use { NONE, SUM, ADDRESS, BRANCH, SHUFFLED, CHOSEN, KEPT };
template <Use USE> __device__ void prefetch(float* o, const float* a, int steps) {
    __shared__ float s[3][32];
    __shared__ float kept[32];
    int t = threadIdx.x;
    s[0][t] = a[t];
    __syncthreads();
    float next = s[0][t], sum = 0;
    for (int i = 0; i < steps; ++i) {
        float now = next;
        if (i + 1 < steps) s[i + 1][t] = a[t];
        __syncthreads();
        next = ((volatile float*)s[i + 1])[t];
        sum += now;
    }
    if (USE == SUM) sum += next;
    if (USE == ADDRESS) sum = a[(int)next & 31];
    if (USE == BRANCH) { if (next > 3) sum = *(volatile float*)(o + t); }
    if (USE == SHUFFLED) sum += __shfl_down_sync(~0u, next, 1);
    if (USE == CHOSEN) sum = t < steps ? sum : next;
    if (USE == KEPT) {
        ((volatile float*)kept)[t] = next * 2;
        __syncthreads();
        sum += kept[31 - t];
    }
    o[t] = sum;
}
extern "C" __global__ void prefetch_ok(float* o, const float* a, int steps) { prefetch<NONE>(o, a, steps); }
extern "C" __global__ void prefetch_added(float* o, const float* a, int steps) { prefetch<SUM>(o, a, steps); }
extern "C" __global__ void prefetch_address(float* o, const float* a, int steps) { prefetch<ADDRESS>(o, a, steps); }
extern "C" __global__ void prefetch_branch(float* o, const float* a, int steps) { prefetch<BRANCH>(o, a, steps); }
extern "C" __global__ void prefetch_shuffled(float* o, const float* a, int steps) { prefetch<SHUFFLED>(o, a, steps); }
extern "C" __global__ void prefetch_chosen(float* o, const float* a, int steps) { prefetch<CHOSEN>(o, a, steps); }
extern "C" __global__ void prefetch_kept(float* o, const float* a, int steps) { prefetch<KEPT>(o, a, steps); }

// Half of the lanes decide by what nobody has written which of two constants a register gets: that is a value of theirs like any other. It is a
// fault where it is stored, and so is a way on which more happens than registers show: a store, a group of copies, another round of a loop.
enum Way { UNUSED, USED, STORING, COPYING, LOOPING };
template <Way WAY> __device__ void choice(float* o, const float* a) {
    __shared__ float s[64];
    int t = threadIdx.x;
    if (t < 16) s[t] = a[t];
    __syncwarp();
    float x = ((volatile float*)s)[t], y = 0;
    unsigned to = (unsigned)__cvta_generic_to_shared(s + 32 + t);
    if (WAY == STORING)
        asm volatile("{ .reg .pred p; setp.gt.f32 p, %1, 0f40A00000; @p bra A%=; mov.f32 %0, 0f3F800000; st.shared.f32 [%2], %0; bra.uni B%=;\n"
                     "A%=: mov.f32 %0, 0f40000000;\n B%=: }" : "+f"(y) : "f"(x), "r"(to) : "memory");
    else if (WAY == COPYING)
        asm volatile("{ .reg .pred p; setp.gt.f32 p, %1, 0f40A00000; mov.f32 %0, 0f3F800000; @p bra A%=; cp.async.commit_group;\n A%=: }" : "+f"(y) : "f"(x) : "memory");
    else if (WAY == LOOPING)
        asm volatile("{ .reg .pred p;\n A%=: add.f32 %0, %0, 0f3F800000; setp.lt.f32 p, %0, %1; @p bra A%=; }" : "+f"(y) : "f"(x));
    else
        asm volatile("{ .reg .pred p, q; setp.gt.f32 p, %1, 0f40A00000; setp.gt.f32 q, %1, 0f41200000; @p bra A%=; mov.f32 %0, 0f3F800000; bra.uni C%=;\n"
                     "A%=: mov.f32 %0, 0f40000000; @!q bra C%=; mov.f32 %0, 0f40400000;\n C%=: }" : "+f"(y) : "f"(x));
    o[t] = WAY == USED || t < 16 ? y : 0;
}
extern "C" __global__ void choice_ok(float* o, const float* a) { choice<UNUSED>(o, a); }
extern "C" __global__ void choice_used(float* o, const float* a) { choice<USED>(o, a); }
extern "C" __global__ void choice_storing(float* o, const float* a) { choice<STORING>(o, a); }
extern "C" __global__ void choice_copying(float* o, const float* a) { choice<COPYING>(o, a); }
extern "C" __global__ void choice_looping(float* o, const float* a) { choice<LOOPING>(o, a); }

// Fragments of a stage that is still on its way, multiplied into sums that nobody stores; or of which one row is stored.
template <int ROWS> __device__ void fragments(float* o, const float* a) {
    __shared__ __align__(16) unsigned s[128];
    unsigned lane = threadIdx.x, to = (unsigned)__cvta_generic_to_shared(s + 4 * lane), r;
    if (lane < 16) s[lane] = 0x3f803f80;
    if (lane >= 4 && lane < 8) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(a + 4 * lane));
    __syncwarp();
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 %0, [%1];" : "=r"(r) : "r"((unsigned)__cvta_generic_to_shared(s) + lane % 8 * 16));
    float d[4] = {0, 0, 0, 0};
    unsigned one = 0x3f803f80;
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%5}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(r), "r"(one));
    asm volatile("cp.async.wait_all;");
    if (lane / 4 < ROWS) o[lane] = d[0];
}
extern "C" __global__ void fragments_ok(float* o, const float* a) { fragments<4>(o, a); }
extern "C" __global__ void fragments_used(float* o, const float* a) { fragments<5>(o, a); }

// A shuffle from a lane that has exited gives what nobody knows: unused, or stored.
template <bool USED> __device__ void shuffle_from_the_gone(float* o) {
    if (threadIdx.x == 31) return;
    float v = threadIdx.x;
    v = __shfl_down_sync(~0u, v, 1);
    if (USED || threadIdx.x < 30) o[threadIdx.x] = v;
}
extern "C" __global__ void shuffle_ok(float* o) { shuffle_from_the_gone<false>(o); }
extern "C" __global__ void shuffle_from_the_gone(float* o) { shuffle_from_the_gone<true>(o); }

// A buffer of which the kernel writes a part.
extern "C" __global__ void half_written(float* o) { if (threadIdx.x < 32) o[threadIdx.x] = 1; }

// Words that are read plainly and swapped then, which makes sure of them; or of which one is not.
template <int WORDS, int SWAPPED> __device__ void swaps(unsigned* x) {
    unsigned old[WORDS], was[WORDS];
    for (int k = 0; k < WORDS; ++k) old[k] = __ldcg(x + k);
    for (int k = 0; k < SWAPPED; ++k) was[k] = atomicCAS(x + k, old[k], old[k] + 1);
    for (int k = 0; k < SWAPPED; ++k)
        while (was[k] != old[k]) {
            old[k] = was[k];
            was[k] = atomicCAS(x + k, old[k], old[k] + 1);
        }
    for (int k = SWAPPED; k < WORDS; ++k) atomicExch(x + k, old[k] + 1);
}
extern "C" __global__ void swap_ok(unsigned* x) { swaps<1, 1>(x); }
extern "C" __global__ void swap_two_ok(unsigned* x) { swaps<2, 2>(x); }
extern "C" __global__ void swap_four_ok(unsigned* x) { swaps<4, 4>(x); }
extern "C" __global__ void swap_one_of_two(unsigned* x) { swaps<2, 1>(x); }
