// Element types, small loads and block-wide helpers.
#ifndef MARGIN_LOSS_COMMON_CUH
#define MARGIN_LOSS_COMMON_CUH

#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "margin.cuh"

namespace margin_loss {

using i64 = long long;

constexpr int TILE = MARGIN_LOSS_TILE;
constexpr int THREADS = MARGIN_LOSS_THREADS;

// threadIdx.x, read where it is asked for: what one phase makes of it is not to stay in registers through the others.
__device__ inline int thread() {
    int t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

// The type that elements of type E are added up in.
template <class E> struct AccumulatorOf { using Type = float; };
template <> struct AccumulatorOf<double> { using Type = double; };

__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }

// 2^x; in f32 as the special function unit has it, 0 below 2^-126.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ inline double power_of_two(double x) { return exp2(x); }

// To [least, most]; NaN stays.
__device__ inline float clamped(float c, float least, float most) {
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(c) : "f"(most));
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(c) : "f"(least));
    return c;
}
__device__ inline double clamped(double c, double least, double most) { return c > most ? most : c < least ? least : c; }

template <class E, class T> struct Narrow { __device__ static E of(T v) { return E(v); } };
template <> struct Narrow<__half, float> { __device__ static __half of(float v) { return __float2half_rn(v); } };
template <> struct Narrow<__nv_bfloat16, float> { __device__ static __nv_bfloat16 of(float v) { return __float2bfloat16_rn(v); } };

// Two halves in a word, the first one below: rounded together, and widened.
template <class E>
__device__ inline unsigned int narrow_pair(float low, float high) {
    unsigned int word;
    if constexpr (std::is_same<E, __half>::value) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

template <class E>
__device__ inline void widen_pair(unsigned int word, float &low, float &high) {
    if constexpr (std::is_same<E, __half>::value) {
        asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(low), "=f"(high) : "r"(word));
    } else {
        asm("shl.b32 %0, %1, 16;" : "=f"(low) : "r"(word));
        asm("and.b32 %0, %1, 0xffff0000;" : "=f"(high) : "r"(word));
    }
}

// Four, or eight, consecutive elements from a 16-byte aligned address.
__device__ inline void load4(const float *from, float *v) {
    float4 a = *reinterpret_cast<const float4 *>(from);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
}

__device__ inline void load4(const double *from, double *v) {
    double2 a = reinterpret_cast<const double2 *>(from)[0], b = reinterpret_cast<const double2 *>(from)[1];
    v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
}

__device__ inline void load8(const float *from, float (&v)[8]) {
    float4 a = *reinterpret_cast<const float4 *>(from), b = *reinterpret_cast<const float4 *>(from + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ inline void load8(const double *from, double (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        double2 a = *reinterpret_cast<const double2 *>(from + 2 * i);
        v[2 * i] = a.x, v[2 * i + 1] = a.y;
    }
}

template <class E>
__device__ inline void load8(const E *from, float (&v)[8]) {
    static_assert(sizeof(E) == 2, "a half type");
    uint4 all = *reinterpret_cast<const uint4 *>(from);
    widen_pair<E>(all.x, v[0], v[1]), widen_pair<E>(all.y, v[2], v[3]), widen_pair<E>(all.z, v[4], v[5]), widen_pair<E>(all.w, v[6], v[7]);
}

// Eight consecutive values to a 16-byte aligned address of shared memory; the second half first where the upper ones of eight lanes side by side
// say so: four of them would meet the others' banks.
__device__ inline void store8(float *to, const float (&v)[8], bool swap) {
    float4 low = {v[0], v[1], v[2], v[3]}, high = {v[4], v[5], v[6], v[7]};
    *reinterpret_cast<float4 *>(to + (swap ? 4 : 0)) = swap ? high : low;
    *reinterpret_cast<float4 *>(to + (swap ? 0 : 4)) = swap ? low : high;
}

__device__ inline void store8(double *to, const double (&v)[8], bool) {
#pragma unroll
    for (int i = 0; i < 4; i++) *reinterpret_cast<double2 *>(to + 2 * i) = {v[2 * i], v[2 * i + 1]};
}

// Up to eight consecutive elements, `count` of them there; the others are 0. `aligned`: the address is a multiple of 16 bytes.
template <class E, class T>
__device__ inline void load_some(const E *from, i64 count, bool aligned, T (&v)[8]) {
    if (aligned && count >= 8) {
        load8(from, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < count ? T(widen(from[i])) : T(0);
}

// Writes what load_some reads, rounded.
template <class E, class T>
__device__ inline void store_some(E *to, i64 count, bool aligned, const T (&v)[8]) {
    union { uint4 bits[8 * sizeof(E) / 16]; unsigned int words[8 * sizeof(E) / 4]; E elements[8]; } all;
    if constexpr (sizeof(E) == 2 && sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < 4; i++) all.words[i] = narrow_pair<E>(v[2 * i], v[2 * i + 1]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) all.elements[i] = Narrow<E, T>::of(v[i]);
    }
    if (count >= 8 && aligned) {
#pragma unroll
        for (int i = 0; i < int(8 * sizeof(E) / 16); i++) reinterpret_cast<uint4 *>(to)[i] = all.bits[i];
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < count) to[i] = all.elements[i];
}

// Whether every row of a matrix begins at a multiple of 16 bytes.
template <class E>
__device__ inline bool rows_aligned(const E *base, i64 stride) {
    return (reinterpret_cast<unsigned long long>(base) | static_cast<unsigned long long>(stride) * sizeof(E)) % 16 == 0;
}

// Counts this block in; true in the last of `expected` blocks to come, which then sees what the others wrote; one block has no counter. The
// first barrier gathers the block's own writes for thread 0's fence; without the second fence and barrier other blocks' writes need not be seen.
__device__ inline bool is_last(unsigned int *arrivals, unsigned int expected) {
    __shared__ bool last;
    __syncthreads();
    if (expected == 1) return true;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(arrivals, 1u) == expected - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// Σ over the block of one value a thread, in a fixed order, in every thread.
__device__ inline double block_sum(double value) {
    __shared__ double warps[THREADS / 32];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(~0u, value, offset);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0.0;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += warps[warp];
    __syncthreads(); // `warps` is written again by the next call
    return sum;
}

} // namespace margin_loss

#endif
