// Both gradients of a loss on a tape by their upstream gradient, a scalar on the device.
#include "common.cuh"

namespace margin_loss {

// out = in·upstream, eight of `count` elements a thread at a time, by all of the grid.
template <class E, class T>
__device__ void scale(E *out, const E *in, i64 count, T upstream) {
    bool aligned = rows_aligned(out, 0) && rows_aligned(in, 0);
    for (i64 at = 8 * (i64(blockIdx.x) * THREADS + threadIdx.x); at < count; at += 8 * i64(gridDim.x) * THREADS) {
        T v[8];
        load_some(in + at, count - at, aligned, v);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= upstream;
        store_some(out + at, count - at, aligned, v);
    }
}

// Both gradients of a loss on a tape by their upstream gradient, a scalar on the device: dX (x_count), dW (w_count), either count 0 where it is not
// wanted.
template <class X, class W>
__device__ void scale_gradients(X *dx, const X *from_x, i64 x_count, W *dw, const W *from_w, i64 w_count, const typename AccumulatorOf<X>::Type *upstream) {
    scale(dx, from_x, x_count, *upstream);
    scale(dw, from_w, w_count, *upstream);
}

} // namespace margin_loss

#define SCALE(NAME, X, W)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(MARGIN_LOSS_THREADS)                                                                   \
        scale_gradients_##NAME(X *dx, const X *from_x, long long x_count, W *dw, const W *from_w, long long w_count,                    \
                               const margin_loss::AccumulatorOf<X>::Type *upstream) {                                                   \
        margin_loss::scale_gradients<X, W>(dx, from_x, x_count, dw, from_w, w_count, upstream);                                         \
    }
SCALE(f64, double, double)
SCALE(f32, float, float)
SCALE(f16, __half, __half)
SCALE(bf16, __nv_bfloat16, __nv_bfloat16)
SCALE(f16_f32, __half, float)
SCALE(bf16_f32, __nv_bfloat16, float)
