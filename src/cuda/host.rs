//! The kernels' formulas, compiled for the host, against those of the CPU path.

use super::params::{MarginLossOptions, MarginLossRule};
use crate::builder::MarginLossBuilder;
use crate::margin::{AngleRange, InstanceGate, MarginRule, TargetGradient};

unsafe extern "C" {
    fn margin_loss_host_target(
        rule: *const MarginLossRule,
        cosine: f64,
        angular: f64,
        additive: f64,
        hard: i32,
        sin_floor: f64,
        psi: *mut f64,
        dpsi: *mut f64,
    );
    fn margin_loss_host_softplus(x: f64) -> f64;
    fn margin_loss_host_sigmoid(x: f64) -> f64;
    fn margin_loss_host_merge(a: *const f64, b: *const f64, out: *mut f64);
}

#[test]
fn the_margin_is_that_of_the_cpu() {
    let floor = f64::EPSILON.sqrt();
    for gate in [InstanceGate::Off, InstanceGate::Positives, InstanceGate::HardPositives] {
        for angle_range in [AngleRange::Wrap, AngleRange::Monotone] {
            for gradient in [TargetGradient::Exact, TargetGradient::DetachDifficulty, TargetGradient::StraightThrough] {
                for m1 in [1.0, 1.35, 4.0] {
                    let rule = MarginRule { m1, gate, instance_strength: 0.7, angle_range, gradient };
                    let mut loss = MarginLossBuilder::new(2).params().unwrap();
                    loss.rule = rule;
                    let options: MarginLossOptions = super::params::options(&loss, floor);
                    for step in 0..=400 {
                        let cosine = -1.0 + f64::from(step) / 200.0;
                        for angular in [0.0, 0.3, 2.0, -0.4] {
                            for hard in [false, true] {
                                let expected = rule.target(cosine, angular, 0.2, hard, floor);
                                let (mut psi, mut dpsi) = (0.0, 0.0);
                                // SAFETY: the function reads the rule and writes two numbers.
                                unsafe {
                                    margin_loss_host_target(
                                        &options.rule,
                                        cosine,
                                        angular,
                                        0.2,
                                        hard.into(),
                                        floor,
                                        &mut psi,
                                        &mut dpsi,
                                    )
                                };
                                let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs().max(1.0);
                                assert!(
                                    close(psi, expected.psi) && close(dpsi, expected.dpsi),
                                    "{rule:?} {cosine} {angular} {hard}: {psi} {dpsi} {expected:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn softplus_and_sigmoid_keep_their_tails() {
    // SAFETY: pure functions of one number.
    let (softplus, sigmoid) = unsafe { (|x| margin_loss_host_softplus(x), |x| margin_loss_host_sigmoid(x)) };
    assert_eq!((softplus(f64::NEG_INFINITY), sigmoid(f64::NEG_INFINITY)), (0.0, 0.0));
    assert_eq!((softplus(1e4), sigmoid(1e4)), (1e4, 1.0));
    for x in [-40f64, -3.0, 0.0, 0.5, 30.0] {
        assert!((softplus(x) / x.exp().ln_1p() - 1.0).abs() < 1e-12);
        assert!((sigmoid(x) / (1.0 / (1.0 + (-x).exp())) - 1.0).abs() < 1e-12);
    }
    assert!(softplus(f64::NAN).is_nan() && sigmoid(f64::NAN).is_nan());
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
