// What rows become of their statistics: loss, outputs, state for backward; and the reduction.
#ifndef MARGIN_LOSS_FINISH_CUH
#define MARGIN_LOSS_FINISH_CUH

#include "cosines.cuh"

namespace margin_loss {

// An element of a tensor of any type, `otherwise` where there is none.
__device__ inline double element_of(const void *tensor, int type, i64 at, double otherwise) {
    switch (type) {
    case MARGIN_LOSS_F16: return widen(static_cast<const __half *>(tensor)[at]);
    case MARGIN_LOSS_BF16: return widen(static_cast<const __nv_bfloat16 *>(tensor)[at]);
    case MARGIN_LOSS_F32: return static_cast<const float *>(tensor)[at];
    case MARGIN_LOSS_F64: return static_cast<const double *>(tensor)[at];
    default: return otherwise;
    }
}

// A row's outputs and its state for backward, from its statistics over all classes.
template <class T>
__device__ inline void finish_row(const MarginLossCall &call, RowState<T> *rows, i64 row, int label, const Norm<T> &norm, const Statistics<T> &statistics) {
    const MarginLossOptions &options = call.options;
    T per_sample = T(0), target_cosine = T(0), by_alpha = T(0), by_beta = T(0);
    unsigned int predicted = 0xffffffffu;
    bool hard = false;
    RowState<T> state = {norm, T(0), T(0), T(0), T(0), T(0), label, 0.0};
    if (label >= 0) {
        predicted = static_cast<unsigned int>(statistics.best_class);
        hard = statistics.best_class != label; // eq. (9)
        target_cosine = statistics.target;
        double prior = options.prior != nullptr ? options.prior[label] : 0.0;
        double scale = double(scale2<T>(options)) / LOG2_E;
        i64 own = row * call.row_margin_stride;
        double alpha = element_of(call.row_margins, call.row_margin_type, own, 0.0);
        double beta = element_of(call.row_margins, call.row_margin_type, own + call.row_margin_step, 0.0);
        RowMargin margin = {options.angular[label], alpha, options.additive[label] + beta};
        Finished f = finish(options, statistics, scale, double(call.c), margin, prior, hard);
        double sample_weight = element_of(call.sample_weights, call.sample_weight_type, row * call.sample_weight_stride, 1.0);
        bool margins_fit = fabs(alpha) <= MARGIN_LOSS_MOST_ALPHA && fabs(beta) <= MARGIN_LOSS_MOST_BETA;
        bool weight_fits = sample_weight == 0.0 || (sample_weight >= MARGIN_LOSS_LEAST_WEIGHT && sample_weight <= MARGIN_LOSS_LARGEST);
        if (!weight_fits || !margins_fit) {
            state.label = BAD_INPUT;
        } else {
            state.weight = sample_weight * (options.weights != nullptr ? options.weights[label] : 1.0);
            per_sample = T(state.weight * f.loss);
            by_alpha = T(state.weight * scale * f.by_alpha), by_beta = T(state.weight * scale * f.by_beta);
            state.max = statistics.max;
            state.others = T(f.others), state.target = T(f.target), state.dot = T(f.dot), state.cosine = statistics.target;
        }
    }
    if (state.label == BAD_LABEL || state.label == BAD_INPUT) per_sample = target_cosine = by_alpha = by_beta = T(NAN);
    static_cast<T *>(call.per_sample)[row] = per_sample;
    static_cast<T *>(call.target_cosine)[row] = target_cosine;
    if (call.margin_slopes != nullptr) {
        T *slopes = static_cast<T *>(call.margin_slopes) + 2 * row;
        slopes[0] = by_alpha, slopes[1] = by_beta;
    }
    call.predicted[row] = predicted;
    call.hard[row] = hard;
    rows[row] = state;
}

// Spec step 7, by one block: the sum of the rows' losses, what the reduction multiplies by (given back to every thread), and the first row
// that cannot be. Outputs only if `write`.
template <class T>
__device__ inline double reduce_rows(const MarginLossCall &call, const RowState<T> *rows, bool write) {
    const T *losses = static_cast<const T *>(call.per_sample);
    double loss = 0.0, weight = 0.0;
    bool weighted = call.options.reduction == MARGIN_LOSS_REDUCE_WEIGHTED_MEAN, divides = weighted || call.options.reduction == MARGIN_LOSS_REDUCE_MEAN;
    double first_bad = double(call.n);
    for (i64 i = threadIdx.x; i < call.n; i += THREADS) {
        loss += losses[i];
        if (rows[i].label != IGNORED) weight += weighted ? rows[i].weight : 1.0;
        if (rows[i].label < IGNORED && double(i) < first_bad) first_bad = double(i);
    }
    double denominator = divides ? block_sum(weight) : 1.0;
    // Nothing left: 0, not NaN.
    double factor = denominator == 0.0 ? 0.0 : 1.0 / denominator;
    if (!write) return factor;
    loss = block_sum(loss);
    __shared__ double bad[THREADS];
    bad[threadIdx.x] = first_bad;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int t = 1; t < THREADS; t++) first_bad = bad[t] < first_bad ? bad[t] : first_bad;
        *call.factor = factor;
        if (call.margin_factor != nullptr) *static_cast<T *>(call.margin_factor) = T(factor);
        if (call.loss != nullptr) *static_cast<T *>(call.loss) = T(loss * factor);
        *call.bad_row = first_bad < double(call.n) ? static_cast<unsigned long long>(first_bad) + 1 : 0;
    }
    return factor;
}

// (∂L/∂ℓ)·ω·s of a row: what its q_ij are multiplied by.
template <class T>
__device__ inline double coefficient(const MarginLossCall &call, i64 row, const RowState<T> &state, double factor) {
    double upstream = call.upstream != nullptr ? double(static_cast<const T *>(call.upstream)[row]) : 1.0;
    return upstream * call.gradient_scale * factor * state.weight * call.options.scale;
}

} // namespace margin_loss

#endif
