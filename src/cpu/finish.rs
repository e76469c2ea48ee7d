//! Step 3: from a row's statistics over all classes to its loss and what its gradient needs, in f64.

use super::call::Call;
use super::numeric::{Element, Real};
use super::statistics::Accumulated;
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
    /// 1 − p_iy = sigmoid(δ), δ = log_sum − z_iy: with no subtraction
    pub(super) away: f64,
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// The states of a block's rows from their targets' cosines (R), once all classes are folded.
    pub fn finish(&self, all: &Accumulated, targets: &[f64], rows: &[TargetRow]) -> impl Iterator<Item = RowState> {
        let params = self.params;
        let alpha = params.label_smoothing;
        let prior_sum: f64 = if alpha > 0.0 { params.log_prior.iter().sum() } else { 0.0 };
        rows.iter().enumerate().map(move |(i, target)| {
            let y = target.class as usize;
            let (cosine, predicted) = (targets[i], all.best_class[i]);
            let hard = predicted != target.class; // eq. (9)
            let (angular, additive) = (params.angular[y], params.additive[y]);
            let margin = params.rule.target(cosine, angular, additive, hard, X::Acc::SIN_FLOOR);
            let z_y = params.scale * margin.psi + params.log_prior[y];
            let log_sum = all.max[i] + all.sum[i].ln(); // −∞ for C = 1
            let (mut loss, away) = softplus_and_sigmoid(log_sum - z_y); // of δ: eqs. (5), (10), (11)
            if alpha > 0.0 {
                let others = params.scale * all.total[i] + (prior_sum - params.log_prior[y]);
                loss += alpha * (z_y - (others + z_y) / params.classes as f64);
            }
            let loss = target.weight * loss;
            RowState { loss, predicted, hard, cosine, dpsi: margin.dpsi, log_sum, away }
        })
    }
}

/// ln(1 + e^x), and 1 / (1 + e^−x)
fn softplus_and_sigmoid(x: f64) -> (f64, f64) {
    let e = (-x.abs()).exp();
    let softplus = x.max(0.0) + e.ln_1p();
    (softplus, if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softplus_and_sigmoid_keep_their_tails() {
        let of = softplus_and_sigmoid;
        assert_eq!(of(f64::NEG_INFINITY), (0.0, 0.0));
        let (softplus, sigmoid) = of(-40.0);
        assert!((softplus / (-40f64).exp() - 1.0).abs() < 1e-12);
        assert!((sigmoid / (-40f64).exp() - 1.0).abs() < 1e-12);
        assert_eq!(of(1e4), (1e4, 1.0));
        assert!(of(f64::NAN).0.is_nan() && of(f64::NAN).1.is_nan());
    }
}
