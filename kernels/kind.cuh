// The kinds of kernels: element types, and the engines that make their products.
#ifndef MARGIN_LOSS_KIND_CUH
#define MARGIN_LOSS_KIND_CUH

#include "mma.cuh"

namespace margin_loss {

// A kernel's kinds: the element types of X and W, what they are added up in, and how the products of the logits and of the gradients are made.
template <class X_, class W_>
struct OnFma {
    using X = X_;
    using W = W_;
    using T = typename AccumulatorOf<X>::Type;
    using Logits = Fma<T>;
    using Contract = Fma<T>;
    static constexpr int STEP_SHARED = sizeof(T) == 8 ? MARGIN_LOSS_STEP_SHARED_F64 : MARGIN_LOSS_STEP_SHARED_F32;
};

template <class X_, class W_>
struct OnTf32 {
    using X = X_;
    using W = W_;
    using T = float;
    using Logits = Tf32;
    using Contract = Tf32;
    static constexpr int STEP_SHARED = MARGIN_LOSS_STEP_SHARED_TF32;
};

// f16 has no room for g: its gradients are contracted in TF32, which f16's values fit into.
template <class E, class Contract_>
struct OnTensorCores {
    using X = E;
    using W = E;
    using T = float;
    using Logits = Mma<E>;
    using Contract = Contract_;
    static constexpr int STEP_SHARED = MARGIN_LOSS_STEP_SHARED_TENSOR;
};

// Blocks that a multiprocessor is to have room for in registers.
template <class Kind>
constexpr int BLOCKS = sizeof(typename Kind::T) == 8 ? 2 : 3;

} // namespace margin_loss

#endif
