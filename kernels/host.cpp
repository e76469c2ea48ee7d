// The formulas of margin.cuh for the host: what src/cuda/host.rs compares with src/margin.rs and src/row_loss.rs.
#include "margin.cuh"

extern "C" {

// ψ, ∂ψ/∂c and ∂ψ/∂α into `out`, of A, α and B in `margin`.
void margin_loss_host_target(const MarginLossRule *rule, double cosine, const double *margin, int hard, double sin_floor, double *out) {
    margin_loss::RowMargin own = {margin[0], margin[1], margin[2]};
    margin_loss::Target target = margin_loss::target(*rule, cosine, own, hard != 0, sin_floor);
    out[0] = target.psi, out[1] = target.dpsi, out[2] = target.dalpha;
}

// F(δ) and F′(δ) into `out`.
void margin_loss_host_row_loss(const MarginLossRule *rule, double delta, double *out) {
    margin_loss::RowLoss loss = margin_loss::row_loss(*rule, delta);
    out[0] = loss.value, out[1] = loss.slope;
}

// The sum, maximum (both in base 2) and best class of two parts.
void margin_loss_host_merge(const double *a, const double *b, double *out) {
    auto read = [](const double *v) {
        return margin_loss::Statistics<double>{v[0], v[1], v[2], v[3], v[4], v[5], static_cast<long long>(v[6])};
    };
    auto into = read(a);
    margin_loss::merge(into, read(b));
    double values[7] = {into.max, into.sum, into.weighted, into.total, into.best, into.target, double(into.best_class)};
    for (int i = 0; i < 7; i++) out[i] = values[i];
}
}
