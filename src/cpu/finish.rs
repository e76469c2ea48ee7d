//! Step 3: from a row's statistics over all classes to its loss and what its gradient needs, in f64.

use super::call::Call;
use super::numeric::{Element, Real};
use super::statistics::Accumulated;
use crate::margin::RowMargin;
use crate::options::Params;
use crate::problem::TargetRow;

/// What is known of a row that is not ignored: its loss, and enough for its gradient.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowState {
    /// ℓ, weighted
    pub loss: f64,
    /// argmax_j c_ij
    pub predicted: u32,
    /// 1[predicted ≠ y]
    pub hard: bool,
    /// c_iy
    pub cosine: f64,
    /// ψ′
    pub(super) dpsi: f64,
    /// logsumexp_{j≠y} z_ij
    pub(super) log_sum: f64,
    /// F′(δ), δ = log_sum − z_iy
    pub(super) slope: f64,
    /// ∂ℓ/∂α and ∂ℓ/∂β
    pub margin_slopes: [f64; 2],
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// The states of a block's rows from their targets' cosines (R), once all classes are folded.
    pub fn finish(&self, all: &Accumulated, targets: &[f64], rows: &[TargetRow]) -> impl Iterator<Item = RowState> {
        finish(self.params, X::Acc::SIN_FLOOR, all, targets, rows)
    }
}

/// The states of rows from their statistics over all classes and their targets' cosines, (R) each.
pub(super) fn finish(
    params: &Params,
    sin_floor: f64,
    all: &Accumulated,
    targets: &[f64],
    rows: &[TargetRow],
) -> impl Iterator<Item = RowState> {
    let alpha = params.label_smoothing;
    let prior_sum: f64 = if alpha > 0.0 { params.log_prior.iter().sum() } else { 0.0 };
    rows.iter().enumerate().map(move |(i, target)| {
        let y = target.class as usize;
        let (cosine, predicted) = (targets[i], all.best_class[i]);
        let hard = predicted != target.class; // eq. (9)
        let own =
            RowMargin { angular: params.angular[y], alpha: target.alpha, additive: params.additive[y] + target.beta };
        let margin = params.rule.target(cosine, own, hard, sin_floor);
        let scale = params.scale * params.class_scale(y);
        let z_y = scale * margin.psi + params.log_prior[y];
        let log_sum = all.max[i] + all.sum[i].ln(); // −∞ for C = 1
        let (mut loss, slope) = params.row_loss.at(log_sum - z_y); // eqs. (5), (10), (11)
        if alpha > 0.0 {
            let others = params.scale * all.total[i] + (prior_sum - params.log_prior[y]);
            loss += alpha * (z_y - (others + z_y) / params.classes as f64);
        }
        let loss = target.weight * loss;
        // ∂ℓ/∂ψ = ω·s·σ_y·q_y
        let by_psi = target.weight * scale * (alpha * (1.0 - 1.0 / params.classes as f64) - slope);
        let margin_slopes = [by_psi * margin.dalpha, -by_psi];
        RowState { loss, predicted, hard, cosine, dpsi: margin.dpsi, log_sum, slope, margin_slopes }
    })
}
