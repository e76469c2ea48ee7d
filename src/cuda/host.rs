//! The kernels' formulas, compiled for the host, against those of the CPU path.

use super::params::{MarginLossOptions, MarginLossRule};
use crate::builder::MarginLossBuilder;
use crate::margin::{AngleRange, InstanceGate, MarginRule, RowMargin, TargetGradient};
use crate::row_loss::RowLoss;

unsafe extern "C" {
    fn margin_loss_host_target(
        rule: *const MarginLossRule,
        cosine: f64,
        margin: *const f64,
        hard: i32,
        sin_floor: f64,
        out: *mut f64,
    );
    fn margin_loss_host_row_loss(rule: *const MarginLossRule, delta: f64, out: *mut f64);
    fn margin_loss_host_merge(a: *const f64, b: *const f64, out: *mut f64);
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * b.abs().max(1.0)
}

#[test]
fn the_margin_is_that_of_the_cpu() {
    let floor = f64::EPSILON.sqrt();
    let gates = [InstanceGate::Off, InstanceGate::Positives, InstanceGate::HardPositives];
    let ranges = [AngleRange::Wrap, AngleRange::Monotone, AngleRange::Linear, AngleRange::Easy, AngleRange::Clamp];
    let gradients = [TargetGradient::Exact, TargetGradient::DetachDifficulty, TargetGradient::StraightThrough];
    for (gate, angle_range, gradient, m1) in each(&gates, &ranges, &gradients, &[1.0, 1.35, 4.0]) {
        let rule = MarginRule { m1, gate, instance_strength: 0.7, angle_range, gradient };
        let mut loss = MarginLossBuilder::new(2).params().unwrap();
        loss.rule = rule;
        let options: MarginLossOptions = super::params::options(&loss, floor);
        let cosines: Vec<f64> = (0..=400).map(|step| -1.0 + f64::from(step) / 200.0).collect();
        for (cosine, angular, alpha, hard) in each(&cosines, &[0.0, 0.3, 2.0, -0.4], &[0.0, 0.6, -0.5], &[false, true])
        {
            let margin = RowMargin { angular, alpha, additive: 0.2 };
            let expected = rule.target(cosine, margin, hard, floor);
            let mut out = [0.0; 3];
            // SAFETY: the function reads the rule and three numbers and writes three.
            unsafe {
                let margin = [angular, alpha, 0.2];
                margin_loss_host_target(&options.rule, cosine, margin.as_ptr(), hard.into(), floor, out.as_mut_ptr())
            };
            assert!(
                close(out[0], expected.psi) && close(out[1], expected.dpsi) && close(out[2], expected.dalpha),
                "{rule:?} {cosine} {margin:?} {hard}: {out:?} {expected:?}"
            );
        }
    }
}

/// Every combination of four lists' values.
fn each<A: Copy, B: Copy, C: Copy, D: Copy>(a: &[A], b: &[B], c: &[C], d: &[D]) -> Vec<(A, B, C, D)> {
    let mut all = Vec::new();
    for &a in a {
        for &b in b {
            for &c in c {
                all.extend(d.iter().map(|&d| (a, b, c, d)));
            }
        }
    }
    all
}

#[test]
fn a_rows_loss_is_that_of_the_cpu() {
    let losses = [
        RowLoss::CrossEntropy,
        RowLoss::Focal { gamma: 0.0 },
        RowLoss::Focal { gamma: 0.5 },
        RowLoss::Focal { gamma: 2.0 },
        RowLoss::Poly1 { epsilon: 2.0 },
        RowLoss::Poly1 { epsilon: -1.0 },
        RowLoss::Generalized { q: 0.7 },
        RowLoss::Generalized { q: 1.0 },
    ];
    for row_loss in losses {
        let mut loss = MarginLossBuilder::new(2).params().unwrap();
        loss.row_loss = row_loss;
        let options = super::params::options(&loss, 1.0);
        let at = |delta: f64| {
            let mut out = [0.0; 2];
            // SAFETY: the function reads the rule and writes two numbers.
            unsafe { margin_loss_host_row_loss(&options.rule, delta, out.as_mut_ptr()) };
            out
        };
        for delta in [f64::NEG_INFINITY, -700.0, -40.0, -3.0, -0.1, 0.0, 0.5, 30.0, 1e4] {
            let (value, slope) = row_loss.at(delta);
            for (actual, expected) in at(delta).into_iter().zip([value, slope]) {
                assert!(
                    (actual - expected).abs() <= 1e-12 * expected.abs(),
                    "{row_loss:?} {delta}: {actual} {expected}"
                );
            }
        }
        assert!(at(f64::NAN).iter().all(|value| value.is_nan()), "{row_loss:?}");
    }
}

#[test]
fn statistics_merge_in_any_grouping() {
    let merge = |a: [f64; 7], b: [f64; 7]| {
        let mut out = [0.0; 7];
        // SAFETY: the function reads seven numbers of each and writes seven.
        unsafe { margin_loss_host_merge(a.as_ptr(), b.as_ptr(), out.as_mut_ptr()) };
        out
    };
    let low = f64::NEG_INFINITY;
    let none = [low, 0.0, 0.0, 0.0, low, 0.0, 0.0];
    let a = [2.0, 1.5, 0.5, 0.3, 0.7, 0.0, 4.0];
    let b = [3.0, 1.0, -0.25, 0.1, 0.7, 0.6, 2.0];
    assert_eq!(merge(none, none), none, "two tiles with nothing but targets");
    assert_eq!((merge(a, none), merge(none, a)), (a, a));
    let both = [3.0, 1.75, 0.0, 0.4, 0.7, 0.6, 2.0]; // the lower class of a tie
    for (i, (x, y)) in merge(a, b).into_iter().zip(both).enumerate() {
        assert!((x - y).abs() < 1e-15, "{i}: {x} {y}");
    }
    assert_eq!(merge(a, b), merge(b, a));
    let nan = [low, f64::NAN, f64::NAN, f64::NAN, low, 0.0, 0.0];
    assert!(merge(a, nan)[1].is_nan() && merge(nan, a)[1].is_nan());
}

#[test]
fn limits_are_those_of_the_builder() {
    use super::params::{
        MARGIN_LOSS_CLAMPED, MARGIN_LOSS_LARGEST, MARGIN_LOSS_LEAST_WEIGHT, MARGIN_LOSS_MOST_ALPHA,
        MARGIN_LOSS_MOST_BETA, MARGIN_LOSS_OUT,
    };
    assert_eq!((MARGIN_LOSS_LARGEST, MARGIN_LOSS_OUT), (crate::options::LARGEST, crate::options::OUT));
    assert_eq!(MARGIN_LOSS_LEAST_WEIGHT, crate::options::LEAST_WEIGHT);
    assert_eq!(MARGIN_LOSS_CLAMPED, crate::margin::CLAMPED);
    assert_eq!((MARGIN_LOSS_MOST_ALPHA, MARGIN_LOSS_MOST_BETA), crate::problem::MOST_ROW_MARGIN);
}
