//! The golden cases of `python-ref/make_golden.py`, made in float64 by PyTorch: every option beside every other, hard and easy rows, poles, ties,
//! ignored rows, extreme norms and scales. In f64 the op must give them to rounding; in lower precision as well as the composed loss does.
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Tensor};
use candle_margin_loss::{
    AngleRange, ClassCounts, ClassWeights, InstanceGate, Margin, MarginLoss, Prior, Reduction, RowLoss, TargetGradient,
};
use common::{Inputs, Outcome, Result, composed, device, distance, epsilon, fused, size};
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    made_by: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    n: usize,
    c: usize,
    d: usize,
    config: Config,
    counts: Vec<u64>,
    x: Vec<f64>,
    w: Vec<f64>,
    y: Vec<i64>,
    sample_weights: Option<Vec<f64>>,
    row_margins: Option<Vec<f64>>,
    upstream: OneOrMany,
    expected: Expected,
}

#[derive(Deserialize)]
struct Config {
    scale: f64,
    margin: MarginConfig,
    gate: String,
    instance_strength: f64,
    prior: PriorConfig,
    class_weights: WeightsConfig,
    angle: String,
    target_gradient: String,
    row_loss: RowLossConfig,
    reduction: String,
    ignore_index: Option<i64>,
    label_smoothing: f64,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum MarginConfig {
    None,
    SphereFace { m: f64 },
    CosFace { m: f64 },
    ArcFace { m: f64 },
    Ldam { max_m: f64 },
    Dbm { k: f64, tau: f64 },
    Combined { m1: f64, m2: f64, m3: f64 },
    PerClass { m1: f64, angular: Vec<f64>, cosine: Vec<f64> },
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum PriorConfig {
    None,
    BalancedSoftmax { tau: f64 },
    LogPrior { values: Vec<f64> },
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum WeightsConfig {
    None,
    ClassBalanced { beta: f64 },
    ClassBalancedNormalized { beta: f64 },
    PerClass { weights: Vec<f64> },
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum RowLossConfig {
    CrossEntropy,
    Focal {
        gamma: f64,
    },
    #[serde(rename = "poly_1")]
    Poly1 {
        epsilon: f64,
    },
    Generalized {
        q: f64,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(f64),
    Many(Vec<f64>),
}

impl OneOrMany {
    fn values(&self) -> Vec<f64> {
        match self {
            OneOrMany::One(value) => vec![*value],
            OneOrMany::Many(values) => values.clone(),
        }
    }
}

#[derive(Deserialize)]
struct Expected {
    loss: OneOrMany,
    per_sample: Vec<f64>,
    predicted: Vec<u32>,
    hard: Vec<u8>,
    target_cosine: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    d_margins: Option<Vec<f64>>,
}

impl Case {
    fn loss(&self) -> Result<MarginLoss> {
        let config = &self.config;
        let counts = ClassCounts::new(self.counts.clone())?;
        let angular =
            !matches!(config.margin, MarginConfig::None | MarginConfig::CosFace { .. } | MarginConfig::Ldam { .. });
        let margin = match &config.margin {
            MarginConfig::None => Margin::None,
            MarginConfig::SphereFace { m } => Margin::SphereFace { m: *m },
            MarginConfig::CosFace { m } => Margin::CosFace { m: *m },
            MarginConfig::ArcFace { m } => Margin::ArcFace { m: *m },
            MarginConfig::Ldam { max_m } => Margin::Ldam { max_m: *max_m },
            MarginConfig::Dbm { k, tau } => Margin::Dbm { k: *k, tau: *tau },
            MarginConfig::Combined { m1, m2, m3 } => Margin::Combined { m1: *m1, m2: *m2, m3: *m3 },
            MarginConfig::PerClass { m1, angular, cosine } => {
                Margin::PerClass { m1: *m1, angular: angular.clone(), cosine: cosine.clone() }
            }
        };
        let gate = match config.gate.as_str() {
            "off" => InstanceGate::Off,
            "positives" => InstanceGate::Positives,
            "hard_positives" => InstanceGate::HardPositives,
            other => return Err(format!("gate {other}").into()),
        };
        let mut builder = MarginLoss::builder(self.c)
            .counts(&counts)
            .scale(config.scale)
            .margin(margin)
            .instance_gate(gate)
            .target_gradient(match config.target_gradient.as_str() {
                "exact" => TargetGradient::Exact,
                "detach_difficulty" => TargetGradient::DetachDifficulty,
                "straight_through" => TargetGradient::StraightThrough,
                other => return Err(format!("target_gradient {other}").into()),
            })
            .prior(match &config.prior {
                PriorConfig::None => Prior::None,
                PriorConfig::BalancedSoftmax { tau } => Prior::BalancedSoftmax { tau: *tau },
                PriorConfig::LogPrior { values } => Prior::LogPrior(values.clone()),
            })
            .class_weights(match &config.class_weights {
                WeightsConfig::None => ClassWeights::None,
                WeightsConfig::ClassBalanced { beta } => ClassWeights::ClassBalanced { beta: *beta },
                WeightsConfig::ClassBalancedNormalized { beta } => {
                    ClassWeights::ClassBalancedNormalized { beta: *beta }
                }
                WeightsConfig::PerClass { weights } => ClassWeights::PerClass(weights.clone()),
            })
            .reduction(match config.reduction.as_str() {
                "none" => Reduction::None,
                "sum" => Reduction::Sum,
                "mean" => Reduction::Mean,
                "weighted_mean" => Reduction::WeightedMean,
                other => return Err(format!("reduction {other}").into()),
            })
            .label_smoothing(config.label_smoothing)
            .row_margins(self.row_margins.is_some())
            .row_loss(match config.row_loss {
                RowLossConfig::CrossEntropy => RowLoss::CrossEntropy,
                RowLossConfig::Focal { gamma } => RowLoss::Focal { gamma },
                RowLossConfig::Poly1 { epsilon } => RowLoss::Poly1 { epsilon },
                RowLossConfig::Generalized { q } => RowLoss::Generalized { q },
            })
            .streaming(common::streaming());
        if gate != InstanceGate::Off {
            builder = builder.instance_strength(config.instance_strength);
        }
        if angular || self.row_margins.is_some() {
            builder = builder.angle_range(match config.angle.as_str() {
                "wrap" => AngleRange::Wrap,
                "monotone" => AngleRange::Monotone,
                "linear" => AngleRange::Linear,
                "easy" => AngleRange::Easy,
                "clamp" => AngleRange::Clamp,
                other => return Err(format!("angle {other}").into()),
            });
        }
        if let Some(index) = config.ignore_index {
            builder = builder.ignore_index(index);
        }
        Ok(builder.build()?)
    }

    fn inputs(&self) -> Result<Inputs> {
        let device = device();
        Ok(Inputs {
            x: Tensor::from_slice(&self.x, (self.n, self.d), &device)?,
            w: Tensor::from_slice(&self.w, (self.c, self.d), &device)?,
            y: Tensor::from_slice(&self.y, self.n, &device)?,
            sample_weights: match &self.sample_weights {
                None => None,
                Some(weights) => Some(Tensor::from_slice(weights, self.n, &device)?),
            },
            margins: match &self.row_margins {
                None => None,
                Some(margins) => Some(Tensor::from_slice(margins, (self.n, 2), &device)?),
            },
        })
    }

    fn expected(&self) -> Outcome {
        let expected = &self.expected;
        Outcome {
            loss: expected.loss.values(),
            per_sample: expected.per_sample.clone(),
            predicted: expected.predicted.clone(),
            d_margins: expected.d_margins.clone().unwrap_or_default(),
            hard: expected.hard.clone(),
            target_cosine: expected.target_cosine.clone(),
            dx: expected.dx.clone(),
            dw: expected.dw.clone(),
        }
    }

    /// What a case near a pole can be known to, in a type of this ε: one rounding of c moves ψ′ by ε/θ², and ψ′·(ŵ − c·x̂), with the
    /// floor of sin θ reached, is what is left of two terms of 1/√ε.
    fn conditioning(&self, epsilon: f64) -> f64 {
        let gaps = self.expected.target_cosine.iter().map(|c| 1.0 - c.abs());
        gaps.map(|gap| if gap < epsilon { 32.0 * epsilon.sqrt() } else { 8.0 * epsilon / gap }).fold(0.0, f64::max)
    }
}

fn goldens() -> Result<Goldens> {
    Ok(serde_json::from_str(include_str!("golden/cases.json"))?)
}

/// The largest error of a row, relative to that row's largest value: rows near the floor of 1e-12 have gradients of 1e12.
fn row_error(actual: &[f64], expected: &[f64], row: usize, least: f64) -> f64 {
    let rows = actual.chunks(row).zip(expected.chunks(row));
    rows.map(|(a, e)| distance(a, e) / size(e).max(least)).fold(0.0, f64::max)
}

#[test]
fn f64_gives_every_golden_case() -> Result<()> {
    let goldens = goldens()?;
    assert!(goldens.cases.len() >= 150, "{} cases by {}", goldens.cases.len(), goldens.made_by);
    for case in &goldens.cases {
        let (loss, inputs, expected) = (case.loss()?, case.inputs()?, case.expected());
        let actual = fused(&loss, &inputs, Some(&case.upstream.values()))?;
        let tolerance = case.conditioning(f64::EPSILON).clamp(1e-11, 2e-5);
        for ((part, a), (_, e)) in actual.parts().into_iter().zip(expected.parts()) {
            let row = if matches!(part, "dX" | "dW") { case.d } else { e.len().max(1) };
            // At a pole the gradient is 0 = ψ′·0, which terms of 1/√ε leave a rest of.
            let least = if tolerance < 1e-7 { 1e-3 } else { 1.0 };
            let error = row_error(a, e, row, least);
            assert!(error <= tolerance, "{}: {part} off by {error:e} of its row, more than {tolerance:e}", case.name);
        }
        assert_eq!(actual.predicted, expected.predicted, "{}", case.name);
        assert_eq!(actual.hard, expected.hard, "{}", case.name);
    }
    Ok(())
}

/// Goldens that a type cannot be held to, with the reason.
fn beyond(case: &Case, dtype: DType) -> Option<&'static str> {
    let short = ["norm_zero", "norm_below_floor", "norm_both_1e-6"].iter().any(|prefix| case.name.starts_with(prefix));
    (dtype == DType::F16 && short).then_some("gradients of rows this short are beyond f16")
}

#[test]
fn lower_precision_is_no_worse_than_composed() -> Result<()> {
    let mut skipped = Vec::new();
    for case in &goldens()?.cases {
        let (loss, inputs) = (case.loss()?, case.inputs()?);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            if let Some(reason) = beyond(case, dtype) {
                skipped.push(format!("{} {dtype:?}: {reason}", case.name));
                continue;
            }
            let rounded = inputs.to(dtype)?;
            let upstream = case.upstream.values();
            // The truth for what the type can hold of X and W.
            let truth = composed(&loss, &rounded.to(DType::F64)?, Some(&upstream))
                .map_err(|e| format!("{}: {e}", case.name))?;
            let actual = fused(&loss, &rounded, Some(&upstream))?;
            let plain = composed(&loss, &rounded, Some(&upstream))?;
            for (((part, t), (_, a)), (_, p)) in truth.parts().into_iter().zip(actual.parts()).zip(plain.parts()) {
                let (own, theirs) = (distance(a, t), distance(p, t));
                // Rounding of the result itself, and of c in f32 where the case is ill-conditioned.
                let epsilon = if matches!(part, "dX" | "dW") { epsilon(dtype) } else { f64::from(f32::EPSILON) };
                let floor = (epsilon + case.conditioning(f64::from(f32::EPSILON)).clamp(4e-6, 0.3)) * size(t).max(1e-3);
                assert!(own <= 2.0 * theirs + floor, "{} {dtype:?}: {part} {own:e} {theirs:e} {floor:e}", case.name);
            }
        }
    }
    println!("skipped {}: {skipped:?}", skipped.len());
    Ok(())
}
