// The kinds of kernels: element types, and the engines that make their products.
#ifndef MARGIN_LOSS_KIND_CUH
#define MARGIN_LOSS_KIND_CUH

#include "mma.cuh"

namespace margin_loss {

// A kind's element types of X and W, what they are added up in, and how the products of the logits and of the gradients are made. BLOCKS: that a
// multiprocessor is to have room for in registers.
template <class X_, class W_>
struct OnFma {
    using X = X_;
    using W = W_;
    using T = typename AccumulatorOf<X>::Type;
    using Logits = Fma<T>;
    using Contract = Fma<T>;
    static constexpr int BLOCKS = sizeof(T) == 8 ? 2 : 3;
    static constexpr int STEP_SHARED = sizeof(T) == 8 ? MARGIN_LOSS_STEP_SHARED_F64 : MARGIN_LOSS_STEP_SHARED_F32;
    static constexpr int CONTRACT_SHARED = sizeof(T) == 8 ? MARGIN_LOSS_CONTRACT_SHARED_F64 : MARGIN_LOSS_CONTRACT_SHARED_F32;
};

template <class X_, class W_>
struct OnTf32 {
    using X = X_;
    using W = W_;
    using T = float;
    using Logits = Tf32;
    using Contract = Tf32;
    static constexpr int BLOCKS = 3;
    static constexpr int STEP_SHARED = MARGIN_LOSS_STEP_SHARED_TF32;
    static constexpr int CONTRACT_SHARED = MARGIN_LOSS_CONTRACT_SHARED_TF32;
};

// By tiles of 64 or, where there are enough of them, of 128. f16 has no room for g: its gradients are contracted in TF32, which f16's values
// fit into.
template <class E, int TILE>
struct OnTensorCores {
    static constexpr bool WIDE = TILE == MARGIN_LOSS_WIDE_TILE, IN_TF32 = std::is_same<E, __half>::value;
    using X = E;
    using W = E;
    using T = float;
    using Logits = Mma<E, TILE>;
    using Contract = std::conditional_t<IN_TF32, Tf32, Mma<E, TILE>>;
    static constexpr int BLOCKS = WIDE ? 2 : 3;
    static constexpr int STEP_SHARED = WIDE ? MARGIN_LOSS_STEP_SHARED_WIDE : MARGIN_LOSS_STEP_SHARED_TENSOR;
    static constexpr int CONTRACT_SHARED = IN_TF32 ? MARGIN_LOSS_CONTRACT_SHARED_TF32
                                           : WIDE  ? MARGIN_LOSS_CONTRACT_SHARED_WIDE
                                                   : MARGIN_LOSS_CONTRACT_SHARED_TENSOR;
};

} // namespace margin_loss

#endif
