//! Step 3: from a row's statistics over all classes to its loss and what its gradient needs, in f64.

use super::numeric::Real;
use super::sweep::{RowConstants, Statistics};
use crate::options::Params;
use crate::problem::TargetRow;

/// What is known of a row that is not ignored: its loss, and enough for its gradient.
#[derive(Debug, Clone, Copy)]
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
    dpsi: f64,
    /// max_{j≠y} z_ij
    max: f64,
    /// Σ_{j≠y} exp(z_ij − max)
    sum: f64,
    /// δ = logsumexp_{j≠y} z_ij − z_iy
    delta: f64,
}

/// Statistics of a block's rows over the classes seen so far, (R) each.
#[derive(Debug)]
pub(super) struct Accumulated {
    /// max_{j≠y} z
    max: Vec<f64>,
    /// Σ_{j≠y} exp(z − max)
    sum: Vec<f64>,
    /// Σ_{j≠y} c
    total: Vec<f64>,
    best: Vec<f64>,
    best_class: Vec<u32>,
    /// c_iy
    pub target: Vec<f64>,
}

impl Accumulated {
    pub fn new(rows: usize) -> Self {
        Self {
            max: vec![f64::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            total: vec![0.0; rows],
            best: vec![f64::NEG_INFINITY; rows],
            best_class: vec![0; rows],
            target: vec![0.0; rows],
        }
    }

    /// Adds the statistics of the next tile; tiles come by rising class.
    pub fn fold<T: Real>(&mut self, tile: &Statistics<T>) {
        for i in 0..self.max.len() {
            let (max, sum) = (tile.max[i].f64(), tile.sum[i].f64());
            if max > self.max[i] {
                self.sum[i] = self.sum[i] * (self.max[i] - max).exp() + sum;
                self.max[i] = max;
            } else if max == f64::NEG_INFINITY {
                // No non-target in the tile (0), or NaN: (−∞) − (−∞) is not to be formed.
                self.sum[i] += sum;
            } else {
                self.sum[i] += sum * (max - self.max[i]).exp();
            }
            self.total[i] += tile.total[i].f64();
            let best = tile.best[i].f64();
            if best > self.best[i] {
                (self.best[i], self.best_class[i]) = (best, tile.best_class[i]);
            }
        }
    }

    /// The rows' states once all classes are folded.
    pub fn finish(&self, params: &Params, rows: &[TargetRow], sin_floor: f64) -> impl Iterator<Item = RowState> {
        let prior_sum: f64 = if params.label_smoothing > 0.0 { params.log_prior.iter().sum() } else { 0.0 };
        rows.iter().enumerate().map(move |(i, target)| {
            let y = target.class as usize;
            let cosine = self.target[i];
            let predicted = self.best_class[i];
            let hard = predicted != target.class; // eq. (9)
            let margin = params.rule.target(cosine, params.angular[y], params.additive[y], hard, sin_floor);
            let z_y = params.scale * margin.psi + params.log_prior[y];
            let (max, sum) = (self.max[i], self.sum[i]);
            let delta = max + sum.ln() - z_y; // −∞ for C = 1
            let mut loss = softplus(delta); // eqs. (5), (10), (11)
            let alpha = params.label_smoothing;
            if alpha > 0.0 {
                let others = params.scale * self.total[i] + (prior_sum - params.log_prior[y]);
                let classes = params.classes as f64;
                loss += alpha * (z_y - (others + z_y) / classes);
            }
            let loss = target.weight * loss;
            RowState { loss, predicted, hard, cosine, dpsi: margin.dpsi, max, sum, delta }
        })
    }
}

impl RowState {
    /// The row's constants, with `coefficient` = (∂L/∂ℓ)·ω·s.
    pub(super) fn push_constants<T: Real>(&self, coefficient: f64, params: &Params, out: &mut RowConstants<T>) {
        let alpha = params.label_smoothing;
        let classes = params.classes as f64;
        let away = sigmoid(self.delta); // 1 − p_y, with no subtraction
        out.max.push(T::of(self.max));
        // NaN for C = 1, where no class but the target is there to take it.
        out.factor.push(T::of(coefficient * away / self.sum));
        out.uniform.push(T::of(coefficient * alpha / classes));
        out.target.push(T::of(coefficient * self.dpsi * (alpha * (1.0 - 1.0 / classes) - away)));
    }
}

/// ln(1 + e^x)
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// 1 / (1 + e^−x)
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softplus_and_sigmoid_keep_their_tails() {
        assert_eq!(softplus(f64::NEG_INFINITY), 0.0);
        assert_eq!(sigmoid(f64::NEG_INFINITY), 0.0);
        assert!((softplus(-40.0) / (-40f64).exp() - 1.0).abs() < 1e-12);
        assert!((sigmoid(-40.0) / (-40f64).exp() - 1.0).abs() < 1e-12);
        assert_eq!(softplus(1e4), 1e4);
        assert_eq!(sigmoid(1e4), 1.0);
        assert!(softplus(f64::NAN).is_nan() && sigmoid(f64::NAN).is_nan());
    }

    #[test]
    fn an_empty_tile_changes_nothing() {
        let mut all = Accumulated::new(1);
        let fold = |all: &mut Accumulated, max: f32, sum: f32| {
            let (mut max, mut sum, mut total, mut best) = ([max], [sum], [0f32], [f32::NEG_INFINITY]);
            let mut best_class = [0];
            all.fold(&Statistics {
                max: &mut max,
                sum: &mut sum,
                total: &mut total,
                best: &mut best,
                best_class: &mut best_class,
            });
        };
        fold(&mut all, f32::NEG_INFINITY, 0.0);
        assert_eq!((all.max[0], all.sum[0]), (f64::NEG_INFINITY, 0.0));
        fold(&mut all, 2.0, 1.5);
        fold(&mut all, f32::NEG_INFINITY, 0.0);
        assert_eq!((all.max[0], all.sum[0]), (2.0, 1.5));
        fold(&mut all, 3.0, 1.0);
        assert!((all.sum[0] - (1.0 + 1.5 * (-1f64).exp())).abs() < 1e-12);
    }
}
