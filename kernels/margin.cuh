// The margin, and what a row's statistics become: formulas of docs/math.md in double, for one row. Compiled for the device by every kernel
// and for the host by host.cpp, against which `src/cuda/host.rs` holds src/margin.rs.
#ifndef MARGIN_LOSS_MARGIN_CUH
#define MARGIN_LOSS_MARGIN_CUH

#include <math.h>

#include "params.h"

#ifdef __CUDACC__
#define MARGIN_LOSS_BOTH __host__ __device__ inline
#else
#define MARGIN_LOSS_BOTH inline
#endif

namespace margin_loss {

constexpr double PI = 3.14159265358979323846;

struct Target {
    double psi;    // ψ
    double dpsi;   // ψ′ = ∂ψ/∂c
    double dalpha; // ∂ψ/∂α, with the cosine held
};

// The margins of one row, its class's and its own.
struct RowMargin {
    double angular;  // A_y, which the instance gate scales
    double alpha;    // α: an angle of the row's own
    double additive; // B_y + β
};

// sin and cos of an angle of at most some thousands: by π's multiples, which needs no table for huge arguments (and no local memory).
MARGIN_LOSS_BOTH void sin_cos(double angle, double *sine, double *cosine) {
#ifdef __CUDA_ARCH__
    sincospi(angle / PI, sine, cosine);
#else
    *sine = sin(angle);
    *cosine = cos(angle);
#endif
}

// ψ and its derivatives at a raw cosine: eqs. (6) to (9), Table 1.
MARGIN_LOSS_BOTH Target target(const MarginLossRule &rule, double cosine, const RowMargin &margin, bool hard, double sin_floor) {
    double gate = rule.gate == MARGIN_LOSS_GATE_POSITIVES || (rule.gate == MARGIN_LOSS_GATE_HARD_POSITIVES && hard) ? 1.0 : 0.0;
    double difficulty = (1.0 - cosine) / 2.0;                      // d_I, eq. (7)
    double slope = rule.instance_strength * gate * margin.angular; // λ·gate·A_y
    double a = margin.angular + slope * difficulty + margin.alpha; // eqs. (8), (9)
    double squared = (1.0 - cosine) * (1.0 + cosine);
    double sin_theta = squared > 0.0 ? sqrt(squared) : 0.0;
    bool easy = rule.angle_range == MARGIN_LOSS_EASY && cosine <= 0.0;
    if (rule.m1 == 1.0 && margin.angular == 0.0 && margin.alpha == 0.0) {
        // φ = θ: left to arccos, ψ′ = sin θ / max(sin θ, √ε) would lose its 1 at the poles.
        return {cosine - margin.additive, 1.0, easy ? 0.0 : -sin_theta};
    }
    double phi = rule.m1 * acos(cosine) + a;
    // Beyond π by a line: the angle is then a alone.
    bool line = rule.angle_range == MARGIN_LOSS_LINEAR && phi > PI;
    double sign = 1.0, offset = 0.0;
    if (rule.angle_range == MARGIN_LOSS_MONOTONE) {
        double k = floor(phi / PI);
        sign = k - 2.0 * floor(k / 2.0) == 0.0 ? 1.0 : -1.0;
        offset = -2.0 * k;
    } else if (rule.angle_range == MARGIN_LOSS_CLAMP) {
        double inside = phi < MARGIN_LOSS_CLAMPED ? MARGIN_LOSS_CLAMPED : phi > PI - MARGIN_LOSS_CLAMPED ? PI - MARGIN_LOSS_CLAMPED : phi;
        if (inside != phi && phi == phi) sign = 0.0, offset = inside < 1.0 ? cos(MARGIN_LOSS_CLAMPED) : -cos(MARGIN_LOSS_CLAMPED);
    }
    double sine, cosine_of;
    sin_cos(line ? a : phi, &sine, &cosine_of);
    // ψ + B, its derivative by c with a held, and by a.
    double value = sign * cosine_of + offset, by_angle = -sign * sine;
    double by_cosine = sign * sine * (rule.m1 / (sin_theta > sin_floor ? sin_theta : sin_floor));
    if (line) value = cosine - a * sine, by_cosine = 1.0, by_angle = -(sine + a * cosine_of);
    if (easy) value = cosine, by_cosine = 1.0, by_angle = 0.0;
    double dpsi = rule.gradient == MARGIN_LOSS_EXACT              ? by_cosine - by_angle * (slope / 2.0)
                  : rule.gradient == MARGIN_LOSS_DETACH_DIFFICULTY ? by_cosine
                                                                   : 1.0;
    return {value - margin.additive, dpsi, by_angle};
}

// ln(1 + e^x)
MARGIN_LOSS_BOTH double softplus(double x) {
    double positive = x > 0.0 ? x : x == x ? 0.0 : x; // NaN stays
    return positive + log1p(exp(-fabs(x)));
}

// 1 / (1 + e^−x)
MARGIN_LOSS_BOTH double sigmoid(double x) {
    double e = exp(-fabs(x));
    return x >= 0.0 ? 1.0 / (1.0 + e) : e / (1.0 + e);
}

// A row's loss F(δ) and F′(δ): src/row_loss.rs has the formulas.
struct RowLoss {
    double value, slope;
};

MARGIN_LOSS_BOTH RowLoss row_loss(const MarginLossRule &rule, double delta) {
    double nll = softplus(delta), away = sigmoid(delta); // −ln p_y; 1 − p_y, with no subtraction
    double parameter = rule.row_loss_parameter;
    if (rule.row_loss == MARGIN_LOSS_FOCAL) {
        double power = parameter == 0.0 ? 1.0 : exp(-parameter * softplus(-delta)); // (1 − p)^γ
        return {power * nll, power * (parameter * sigmoid(-delta) * nll + away)};
    }
    if (rule.row_loss == MARGIN_LOSS_POLY_1) return {nll + parameter * away, away * (1.0 + parameter - parameter * away)};
    if (rule.row_loss == MARGIN_LOSS_GENERALIZED) return {-expm1(-parameter * nll) / parameter, exp(-parameter * nll) * away};
    return {nll, away};
}

// A row over the classes: maximum and sums over non-targets, the best class of all, the target's cosine.
template <class T>
struct Statistics {
    T max;      // max z·log₂e
    T sum;      // Σ 2^(z·log₂e − max)
    T weighted; // Σ 2^(z·log₂e − max)·c
    T total;    // Σ c
    T best;     // max c, the target included
    T target;   // c_iy, 0 until it is met
    long long best_class;
};

template <class T>
MARGIN_LOSS_BOTH Statistics<T> no_statistics() {
    return {T(-INFINITY), T(0), T(0), T(0), T(-INFINITY), T(0), 0};
}

// Adds the statistics of other classes. A maximum of −∞ means no non-target (sum 0) or NaN: (−∞) − (−∞) is not to be formed.
template <class T>
MARGIN_LOSS_BOTH void merge(Statistics<T> &into, const Statistics<T> &other) {
    if (other.max > into.max) {
        T factor = exp2(into.max - other.max);
        into.sum = into.sum * factor + other.sum;
        into.weighted = into.weighted * factor + other.weighted;
        into.max = other.max;
    } else {
        T factor = other.max == T(-INFINITY) ? T(1) : exp2(other.max - into.max);
        into.sum += other.sum * factor;
        into.weighted += other.weighted * factor;
    }
    into.total += other.total;
    into.target += other.target;
    if (other.best > into.best || (other.best == into.best && other.best_class < into.best_class)) {
        into.best = other.best;
        into.best_class = other.best_class;
    }
}

// A row's loss and what its gradient takes, all before the upstream gradient, the reduction and the scale.
struct Finished {
    double loss;   // ℓ, unweighted
    double others; // what 2^(z·log₂e − max) is multiplied by in q_ij, j ≠ y: F′(δ) / sum
    double target; // q_iy·ψ′
    double dot;    // Σ of q_ij·c_ij over j ≠ y
    double by_alpha, by_beta; // q_iy·∂ψ/∂α and q_iy·∂ψ/∂β
};

// Spec steps 2 to 5 and 8. `scale` is s as the logits had it, in their type.
template <class T>
MARGIN_LOSS_BOTH Finished finish(const MarginLossOptions &options, const Statistics<T> &row, double scale, double classes,
                                 const RowMargin &own, double prior, bool hard) {
    constexpr double LN_2 = 0.693147180559945309417;
    double cosine = row.target, max = row.max, sum = row.sum;
    Target margin = target(options.rule, cosine, own, hard, options.sin_floor);
    double z_y = scale * margin.psi + prior;
    RowLoss loss = row_loss(options.rule, LN_2 * max + log(sum) - z_y); // eqs. (5), (10), (11); of −∞ for C = 1
    double alpha = options.label_smoothing, uniform = alpha / classes;
    Finished out;
    out.loss = loss.value;
    if (alpha > 0.0) {
        double others = scale * double(row.total) + (options.prior_sum - prior);
        out.loss += alpha * (z_y - (others + z_y) / classes);
    }
    out.others = sum == 0.0 ? 0.0 : loss.slope / sum; // C = 1 has no other class
    double q_y = alpha - uniform - loss.slope;
    out.target = margin.dpsi * q_y;
    out.by_alpha = margin.dalpha * q_y, out.by_beta = -q_y;
    out.dot = out.others * double(row.weighted) - uniform * double(row.total);
    return out;
}

} // namespace margin_loss

#endif
