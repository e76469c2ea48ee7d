//! `kernels/params.h` in Rust, made by bindgen, which also writes tests of every offset; and a loss's options in its terms.
// The `unsafe` is bindgen's: zeroing plain structs.
#![allow(non_upper_case_globals, missing_docs, dead_code, clippy::undocumented_unsafe_blocks, clippy::approx_constant)]

use cudarc::driver::DeviceRepr;

use crate::margin::{AngleRange, InstanceGate, TargetGradient};
use crate::options::{Params, Reduction};
use crate::row_loss::RowLoss;

include!(concat!(env!("OUT_DIR"), "/params.rs"));

// SAFETY: plain C structs of numbers and device addresses, passed by value, whose layout bindgen asserts against the header nvcc reads.
unsafe impl DeviceRepr for MarginLossCall {}
// SAFETY: as above.
unsafe impl DeviceRepr for MarginLossChunk {}

/// What of `params` the kernels take by value; the addresses of its tables are still null.
pub(super) fn options(params: &Params, sin_floor: f64) -> MarginLossOptions {
    let (row_loss, row_loss_parameter) = match params.row_loss {
        RowLoss::CrossEntropy => (MARGIN_LOSS_CROSS_ENTROPY, 0.0),
        RowLoss::Focal { gamma } => (MARGIN_LOSS_FOCAL, gamma),
        RowLoss::Poly1 { epsilon } => (MARGIN_LOSS_POLY_1, epsilon),
        RowLoss::Generalized { q } => (MARGIN_LOSS_GENERALIZED, q),
    };
    let rule = MarginLossRule {
        m1: params.rule.m1,
        instance_strength: params.rule.instance_strength,
        gate: match params.rule.gate {
            InstanceGate::Off => MARGIN_LOSS_GATE_OFF,
            InstanceGate::Positives => MARGIN_LOSS_GATE_POSITIVES,
            InstanceGate::HardPositives => MARGIN_LOSS_GATE_HARD_POSITIVES,
        } as i32,
        angle_range: match params.rule.angle_range {
            AngleRange::Wrap => MARGIN_LOSS_WRAP,
            AngleRange::Monotone => MARGIN_LOSS_MONOTONE,
            AngleRange::Linear => MARGIN_LOSS_LINEAR,
            AngleRange::Easy => MARGIN_LOSS_EASY,
            AngleRange::Clamp => MARGIN_LOSS_CLAMP,
        } as i32,
        gradient: match params.rule.gradient {
            TargetGradient::Exact => MARGIN_LOSS_EXACT,
            TargetGradient::DetachDifficulty => MARGIN_LOSS_DETACH_DIFFICULTY,
            TargetGradient::StraightThrough => MARGIN_LOSS_STRAIGHT_THROUGH,
        } as i32,
        row_loss: row_loss as i32,
        row_loss_parameter,
    };
    MarginLossOptions {
        rule,
        scale: params.scale,
        label_smoothing: params.label_smoothing,
        prior_sum: params.log_prior.iter().sum(),
        sin_floor,
        ignore_index: params.ignore_index.unwrap_or_default(),
        has_ignore_index: params.ignore_index.is_some().into(),
        reduction: match params.reduction {
            Reduction::None => MARGIN_LOSS_REDUCE_NONE,
            Reduction::Sum => MARGIN_LOSS_REDUCE_SUM,
            Reduction::Mean => MARGIN_LOSS_REDUCE_MEAN,
            Reduction::WeightedMean => MARGIN_LOSS_REDUCE_WEIGHTED_MEAN,
        } as i32,
        ..Default::default()
    }
}
