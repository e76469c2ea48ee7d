//! A row's loss F(δ), of δ = log Σ_{j≠y} e^{z_j} − z_y alone, and F′.
//!
//! p_y = σ(−δ), so every loss of the target's probability is one of δ; 1 − p_y = σ(δ) then needs no subtraction, and a loss of 10⁻³⁰ keeps its digits.

/// What a row loses at the probability p of its class.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RowLoss {
    /// −ln p: softmax cross-entropy.
    CrossEntropy,
    /// −(1 − p)^γ·ln p, the focal loss (Lin et al. 2017).
    Focal {
        /// γ, 0 to 100. The paper uses 2.
        gamma: f64,
    },
    /// −ln p + ε·(1 − p), Poly-1 (Leng et al. 2022).
    Poly1 {
        /// ε, −1 to 10⁶. The paper uses 2 on ImageNet.
        epsilon: f64,
    },
    /// (1 − p^q)/q, generalised cross-entropy (Zhang and Sabuncu 2018): cross-entropy as q → 0, the mean absolute error at 1.
    Generalized {
        /// q, 10⁻⁶ ≤ q ≤ 1. The paper uses 0.7.
        q: f64,
    },
}

impl RowLoss {
    /// F and F′ at δ.
    pub(crate) fn at(self, delta: f64) -> (f64, f64) {
        let (nll, away) = softplus_and_sigmoid(delta); // −ln p, 1 − p
        match self {
            RowLoss::CrossEntropy => (nll, away),
            RowLoss::Focal { gamma } => {
                let (nll_away, p) = softplus_and_sigmoid(-delta); // −ln(1 − p), p
                let power = if gamma == 0.0 { 1.0 } else { (-gamma * nll_away).exp() }; // (1 − p)^γ, 0 at −∞
                (power * nll, power * (gamma * p * nll + away))
            }
            RowLoss::Poly1 { epsilon } => (nll + epsilon * away, away * (1.0 + epsilon - epsilon * away)),
            RowLoss::Generalized { q } => {
                let power = (-q * nll).exp(); // p^q
                (-(-q * nll).exp_m1() / q, power * away)
            }
        }
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

    const LOSSES: [RowLoss; 9] = [
        RowLoss::CrossEntropy,
        RowLoss::Focal { gamma: 0.0 },
        RowLoss::Focal { gamma: 0.5 },
        RowLoss::Focal { gamma: 2.0 },
        RowLoss::Focal { gamma: 5.0 },
        RowLoss::Poly1 { epsilon: 2.0 },
        RowLoss::Poly1 { epsilon: -1.0 },
        RowLoss::Generalized { q: 0.7 },
        RowLoss::Generalized { q: 1.0 },
    ];

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

    /// The formulas as their papers write them, of p.
    #[test]
    fn values_are_those_of_the_probability() {
        for delta in [-3.0f64, -0.2, 0.0, 0.7, 4.0] {
            let p = 1.0 / (1.0 + delta.exp());
            for loss in LOSSES {
                let expected = match loss {
                    RowLoss::CrossEntropy => -p.ln(),
                    RowLoss::Focal { gamma } => -(1.0 - p).powf(gamma) * p.ln(),
                    RowLoss::Poly1 { epsilon } => -p.ln() + epsilon * (1.0 - p),
                    RowLoss::Generalized { q } => (1.0 - p.powf(q)) / q,
                };
                assert!((loss.at(delta).0 - expected).abs() < 1e-14, "{loss:?} {delta}");
            }
        }
    }

    #[test]
    fn slopes_are_central_differences_and_keep_their_tails() {
        for loss in LOSSES {
            for step in -300..300 {
                let (delta, h) = (f64::from(step) / 10.0, 1e-5);
                let numeric = (loss.at(delta + h).0 - loss.at(delta - h).0) / (2.0 * h);
                let (value, slope) = loss.at(delta);
                let mut size = slope.abs().max(value.abs());
                if matches!(loss, RowLoss::Poly1 { .. }) {
                    size = size.max(softplus_and_sigmoid(delta).1); // its two terms, which at ε = −1 all but cancel
                }
                assert!((numeric - slope).abs() <= 1e-8 * size.max(1e-300), "{loss:?} {delta}: {numeric} {slope}");
            }
            assert_eq!(loss.at(f64::NEG_INFINITY), (0.0, 0.0), "{loss:?}: a row without another class");
            assert!(loss.at(1e4).0.is_finite() && loss.at(1e4).1.is_finite(), "{loss:?}");
            assert!(loss.at(f64::NAN).0.is_nan() && loss.at(f64::NAN).1.is_nan(), "{loss:?}");
        }
    }
}
