// The formulas of margin.cuh for the host: what src/cuda/host.rs compares with src/margin.rs and src/cpu/finish.rs.
#include "margin.cuh"

extern "C" {

void margin_loss_host_target(const MarginLossRule *rule, double cosine, double angular, double additive, int hard, double sin_floor,
                             double *psi, double *dpsi) {
    margin_loss::Target out = margin_loss::target(*rule, cosine, angular, additive, hard != 0, sin_floor);
    *psi = out.psi, *dpsi = out.dpsi;
}

double margin_loss_host_softplus(double x) { return margin_loss::softplus(x); }

double margin_loss_host_sigmoid(double x) { return margin_loss::sigmoid(x); }

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
