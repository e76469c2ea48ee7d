//! Margin families, and the margin itself: the target cosine ψ and its derivative, one row at a time.

use std::f64::consts::PI;

/// How the target's cosine is made harder (the paper's Table 1 and eqs. 6–9).
///
/// Every family is an instance of ψ = cos(m1·θ + a) − B with a = A_y · (1 + λ·gate·d_I).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Margin {
    /// No margin: cosine softmax.
    None,
    /// Multiplicative angle, m1 = `m` ≥ 1 (SphereFace).
    SphereFace {
        /// The factor of the angle, at least 1.
        m: f64,
    },
    /// Additive cosine, B = `m` (CosFace, AM-softmax).
    CosFace {
        /// The cosine's margin, 0 to 2.
        m: f64,
    },
    /// Additive angle, A = `m` (ArcFace).
    ArcFace {
        /// The angle's margin in radians, 0 to π.
        m: f64,
    },
    /// Additive cosine by class, B_j = max_m · n_j^−¼ / max_k n_k^−¼ (LDAM). Needs class counts.
    Ldam {
        /// The rarest class's margin, 0 to 2.
        max_m: f64,
    },
    /// Additive angle by class, A_j = m_C = K·ρ_j^−τ (DBM, eq. 6). Needs class counts.
    Dbm {
        /// K: the rarest class's margin in radians, 0 to π. The paper uses 0.1 to 0.3.
        k: f64,
        /// τ: how fast the margin falls with the class's frequency. The paper uses 1.
        tau: f64,
    },
    /// InsightFace's combined margin: cos(m1·θ + m2) − m3.
    Combined {
        /// The factor of the angle, at least 1.
        m1: f64,
        /// The angle's margin in radians, 0 to π.
        m2: f64,
        /// The cosine's margin, 0 to 2.
        m3: f64,
    },
    /// A margin of one's own for every class: cos(m1·θ + A_y) − B_y.
    PerClass {
        /// The factor of the angle, at least 1.
        m1: f64,
        /// A_j in radians, −π to π, one a class.
        angular: Vec<f64>,
        /// B_j, −2 to 2, one a class.
        cosine: Vec<f64>,
    },
}

impl Margin {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Margin::None => "no margin",
            Margin::SphereFace { .. } => "SphereFace",
            Margin::CosFace { .. } => "CosFace",
            Margin::ArcFace { .. } => "ArcFace",
            Margin::Ldam { .. } => "LDAM",
            Margin::Dbm { .. } => "DBM",
            Margin::Combined { .. } => "the combined margin",
            Margin::PerClass { .. } => "the per-class margin",
        }
    }
}

/// Which samples get the instance margin A_y·λ·d_I on top of the class margin (eqs. 8, 9; Table 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceGate {
    /// None: the class margin alone.
    Off,
    /// Every sample (the paper's row 'P').
    Positives,
    /// Samples whose nearest centre is not their own class's (the paper's row 'HP').
    HardPositives,
}

/// What the target's cosine becomes where φ = m1·θ + a leaves [0, π], or a margin does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AngleRange {
    /// cos φ as it is, which rises again beyond π (the paper; ArcFace).
    Wrap,
    /// (−1)^k·cos φ − 2k with k = ⌊φ/π⌋: continuous and decreasing (SphereFace).
    Monotone,
    /// c − a·sin a where φ > π: a line in the cosine (InsightFace's and pytorch-metric-learning's ArcFace, MagFace). Needs m1 = 1.
    Linear,
    /// c, without the margin on the angle, where c ≤ 0 (the "easy margin" of InsightFace and others).
    Easy,
    /// cos of φ clamped to [10⁻³, π − 10⁻³], with no gradient where it is clamped (AdaFace).
    Clamp,
}

/// How near to 0 and π [`AngleRange::Clamp`] lets an angle come.
pub(crate) const CLAMPED: f64 = 1e-3;

/// How the gradient passes through the target's margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetGradient {
    /// The derivative of the loss, through the difficulty d_I as well (the paper).
    Exact,
    /// d_I is a constant.
    DetachDifficulty,
    /// ψ′ = 1, as InsightFace trains.
    StraightThrough,
}

/// What of the margin does not depend on the sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarginRule {
    pub m1: f64,
    pub gate: InstanceGate,
    pub instance_strength: f64,
    pub angle_range: AngleRange,
    pub gradient: TargetGradient,
}

/// The target cosine of one row and its derivative with respect to the raw cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target {
    /// ψ (spec: step 3)
    pub psi: f64,
    /// ψ′ = ∂ψ/∂c
    pub dpsi: f64,
    /// ∂ψ/∂α, with the cosine held
    pub dalpha: f64,
}

/// The margins of one row, its class's and its own.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct RowMargin {
    /// A_y, which the instance gate scales
    pub angular: f64,
    /// α: an angle of the row's own
    pub alpha: f64,
    /// B_y + β
    pub additive: f64,
}

impl MarginRule {
    /// ψ and its derivatives for a raw cosine `cosine` of the target class, the row's margins and its hard flag.
    ///
    /// `sin_floor` = √ε of the accumulation type: 1/sin θ alone grows without bound towards θ = 0 and π, while its
    /// product with the tangent ŵ_y − c·x̂, whose norm is sin θ, does not.
    pub fn target(&self, cosine: f64, margin: RowMargin, hard: bool, sin_floor: f64) -> Target {
        let RowMargin { angular, alpha, additive } = margin;
        let gate = match self.gate {
            InstanceGate::Off => 0.0,
            InstanceGate::Positives => 1.0,
            InstanceGate::HardPositives => f64::from(u8::from(hard)),
        };
        let difficulty = (1.0 - cosine) / 2.0; // d_I, eq. (7)
        let slope = self.instance_strength * gate * angular; // λ·gate·A_y
        let a = angular + slope * difficulty + alpha; // eqs. (8), (9)
        // (1 − c)(1 + c) rather than 1 − c²: one rounding less where it matters, near the poles.
        let sin_theta = ((1.0 - cosine) * (1.0 + cosine)).max(0.0).sqrt();
        let easy = self.angle_range == AngleRange::Easy && cosine <= 0.0;
        if self.m1 == 1.0 && angular == 0.0 && alpha == 0.0 {
            // φ = θ: ψ is the cosine itself. Left to arccos, ψ′ = sin θ / max(sin θ, √ε) would lose it at the poles.
            return Target { psi: cosine - additive, dpsi: 1.0, dalpha: if easy { 0.0 } else { -sin_theta } };
        }
        let phi = self.m1 * cosine.acos() + a;
        // ψ + B, its derivative by c with a held, and by a.
        let (value, by_cosine, by_angle) = if easy {
            (cosine, 1.0, 0.0)
        } else if self.angle_range == AngleRange::Linear && phi > PI {
            (cosine - a * a.sin(), 1.0, -(a.sin() + a * a.cos()))
        } else {
            let (phi, sign, offset) = match self.angle_range {
                AngleRange::Monotone => {
                    let k = (phi / PI).floor();
                    (phi, if k.rem_euclid(2.0) == 0.0 { 1.0 } else { -1.0 }, -2.0 * k)
                }
                AngleRange::Clamp if phi < CLAMPED => (CLAMPED, 0.0, CLAMPED.cos()),
                AngleRange::Clamp if phi > PI - CLAMPED => (PI - CLAMPED, 0.0, -CLAMPED.cos()),
                _ => (phi, 1.0, 0.0),
            };
            let (sin_phi, cos_phi) = phi.sin_cos();
            (sign * cos_phi + offset, sign * sin_phi * (self.m1 / sin_theta.max(sin_floor)), -sign * sin_phi)
        };
        let dpsi = match self.gradient {
            TargetGradient::Exact => by_cosine - by_angle * (slope / 2.0),
            TargetGradient::DetachDifficulty => by_cosine,
            TargetGradient::StraightThrough => 1.0,
        };
        Target { psi: value - additive, dpsi, dalpha: by_angle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: f64 = 1.5e-8;
    const RANGES: [AngleRange; 5] =
        [AngleRange::Wrap, AngleRange::Monotone, AngleRange::Linear, AngleRange::Easy, AngleRange::Clamp];

    fn class(angular: f64, additive: f64) -> RowMargin {
        RowMargin { angular, alpha: 0.0, additive }
    }

    fn rule(m1: f64, gate: InstanceGate, angle_range: AngleRange, gradient: TargetGradient) -> MarginRule {
        MarginRule { m1, gate, instance_strength: 0.7, angle_range, gradient }
    }

    #[test]
    fn derivatives_are_central_differences() {
        for m1 in [1.0, 1.35, 2.0, 4.0] {
            for gate in [InstanceGate::Off, InstanceGate::Positives, InstanceGate::HardPositives] {
                for angle_range in RANGES {
                    let rule = rule(m1, gate, angle_range, TargetGradient::Exact);
                    for (angular, alpha) in [(0.3, 0.0), (0.3, 0.4), (0.0, -0.6), (0.0, 0.0), (1.4, 1.1)] {
                        for step in 1..200 {
                            let c = -1.0 + step as f64 / 100.0 + 0.0013;
                            let h = 1e-6 * (1.0 - c * c);
                            let at = |c: f64, alpha: f64| {
                                rule.target(c, RowMargin { angular, alpha, additive: 0.2 }, true, FLOOR)
                            };
                            let gated = if gate == InstanceGate::Off { 0.0 } else { 0.7 };
                            let phi =
                                |c: f64, alpha: f64| m1 * c.acos() + angular * (1.0 + gated * (1.0 - c) / 2.0) + alpha;
                            // Two sides of a kink: a branch of Monotone, the begin of Linear, the end of Clamp.
                            let branch = |c: f64, alpha: f64| match angle_range {
                                AngleRange::Clamp if phi(c, alpha) < CLAMPED => -1.0,
                                AngleRange::Clamp if phi(c, alpha) > PI - CLAMPED => 1.0,
                                AngleRange::Clamp => 0.0,
                                _ => (phi(c, alpha) / PI).floor(),
                            };
                            if branch(c - h, alpha) == branch(c + h, alpha) {
                                let numeric = (at(c + h, alpha).psi - at(c - h, alpha).psi) / (2.0 * h);
                                let analytic = at(c, alpha).dpsi;
                                assert!(
                                    (numeric - analytic).abs() <= 1e-6 * analytic.abs().max(1.0),
                                    "m1 {m1} {gate:?} {angle_range:?} A {angular} α {alpha} c {c}: {numeric} {analytic}"
                                );
                            }
                            if branch(c, alpha - 1e-6) == branch(c, alpha + 1e-6) {
                                let numeric = (at(c, alpha + 1e-6).psi - at(c, alpha - 1e-6).psi) / 2e-6;
                                let analytic = at(c, alpha).dalpha;
                                assert!(
                                    (numeric - analytic).abs() <= 1e-6 * analytic.abs().max(1.0),
                                    "m1 {m1} {gate:?} {angle_range:?} A {angular} α {alpha} c {c}: dα {numeric} {analytic}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    /// What other libraries print: InsightFace's and pytorch-metric-learning's line, the easy margin, AdaFace's clamp.
    #[test]
    fn ranges_are_those_of_others() {
        let at = |angle_range, theta: f64| {
            let rule = rule(1.0, InstanceGate::Off, angle_range, TargetGradient::Exact);
            rule.target(theta.cos(), class(0.5, 0.0), false, FLOOR)
        };
        assert!((at(AngleRange::Linear, 2.65).psi + 1.1213).abs() < 5e-5);
        assert_eq!(at(AngleRange::Linear, 2.65).dpsi, 1.0);
        assert_eq!(at(AngleRange::Linear, 2.6), at(AngleRange::Wrap, 2.6));
        assert_eq!(at(AngleRange::Easy, 1.6).psi, 1.6f64.cos());
        assert_eq!(at(AngleRange::Easy, 1.5), at(AngleRange::Wrap, 1.5));
        let clamped = at(AngleRange::Clamp, 3.0);
        assert_eq!((clamped.psi, clamped.dpsi, clamped.dalpha), (-CLAMPED.cos(), 0.0, 0.0));
        assert_eq!(at(AngleRange::Clamp, 2.0), at(AngleRange::Wrap, 2.0));
    }

    #[test]
    fn monotone_decreases_and_is_continuous() {
        let rule = rule(4.0, InstanceGate::Off, AngleRange::Monotone, TargetGradient::Exact);
        let psi = |theta: f64| rule.target(theta.cos(), class(0.0, 0.0), false, FLOOR).psi;
        let mut last = psi(0.0);
        for step in 1..=3000 {
            let now = psi(PI * step as f64 / 3000.0);
            assert!(now <= last + 1e-9 && last - now < 0.01, "step {step}: {last} {now}");
            last = now;
        }
        assert!((last - (1.0 - 8.0)).abs() < 1e-9);
    }

    #[test]
    fn poles_are_finite() {
        for gradient in [TargetGradient::Exact, TargetGradient::DetachDifficulty, TargetGradient::StraightThrough] {
            let rule = rule(1.0, InstanceGate::Positives, AngleRange::Wrap, gradient);
            for c in [-1.0, 1.0] {
                let target = rule.target(c, class(0.5, 0.0), true, FLOOR);
                assert!(target.psi.is_finite() && target.dpsi.is_finite());
            }
        }
    }

    #[test]
    fn without_a_margin_the_cosine_stays_to_the_bit() {
        let rule = rule(1.0, InstanceGate::Positives, AngleRange::Wrap, TargetGradient::Exact);
        for c in [-1.0, -0.3, 0.123456789, 1.0] {
            let target = rule.target(c, class(0.0, 0.25), true, FLOOR);
            assert_eq!((target.psi, target.dpsi), (c - 0.25, 1.0));
        }
    }

    #[test]
    fn difficulty_is_zero_at_the_centre_and_one_opposite() {
        let rule = MarginRule {
            instance_strength: 1.0,
            ..rule(1.0, InstanceGate::Positives, AngleRange::Wrap, TargetGradient::Exact)
        };
        assert!((rule.target(1.0, class(0.3, 0.0), true, FLOOR).psi - 0.3f64.cos()).abs() < 1e-15);
        assert!((rule.target(-1.0, class(0.3, 0.0), true, FLOOR).psi - (PI + 0.6).cos()).abs() < 1e-15);
    }

    #[test]
    fn hard_gate_follows_the_flag() {
        let hp = rule(1.0, InstanceGate::HardPositives, AngleRange::Wrap, TargetGradient::Exact);
        let off = rule(1.0, InstanceGate::Off, AngleRange::Wrap, TargetGradient::Exact);
        let all = rule(1.0, InstanceGate::Positives, AngleRange::Wrap, TargetGradient::Exact);
        assert_eq!(hp.target(0.2, class(0.3, 0.0), false, FLOOR), off.target(0.2, class(0.3, 0.0), false, FLOOR));
        assert_eq!(hp.target(0.2, class(0.3, 0.0), true, FLOOR), all.target(0.2, class(0.3, 0.0), true, FLOOR));
        assert_ne!(hp.target(0.2, class(0.3, 0.0), true, FLOOR), hp.target(0.2, class(0.3, 0.0), false, FLOOR));
    }
}
