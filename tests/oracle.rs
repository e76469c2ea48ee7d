//! The fused op against the loss composed of Candle ops: in f64 to rounding; in lower precisions, against the f64 truth of the same rounded
//! inputs, at most twice the error of the loss composed in that precision, plus a stated floor.
#![allow(missing_docs)]

mod common;

use candle_core::DType;
use candle_margin_loss::{DEFAULT_WORKSPACE_BYTES, MarginLoss};
use common::{Inputs, Outcome, Result, builders, composed, distance, fused, losses, off_tape, size};
use proptest::prelude::*;

/// (N, C, D) on both sides of vectors, tiles and lanes.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 2, 3),
    (3, 1, 5),
    (5, 7, 2),
    (15, 33, 16),
    (16, 16, 17),
    (17, 100, 64),
    (33, 65, 31),
    (70, 260, 96),
];

#[test]
fn f64_agrees_with_the_composed_loss() -> Result<()> {
    for (seed, (n, c, d)) in SIZES.into_iter().enumerate() {
        for (name, loss) in losses(c) {
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), seed as u64)?.with_sample_weights(9)?;
            let label = format!("{name} {n} {c} {d}");
            let expected = composed(&loss, &inputs, None)?;
            common::assert_close(&label, &fused(&loss, &inputs, None)?, &expected, 1e-9);
            common::assert_close(&label, &off_tape(&loss, &inputs)?, &expected, 1e-9);
        }
    }
    Ok(())
}

/// Several blocks of rows, ranges of classes, lanes and tiles: forced by a small workspace, and by size.
#[test]
fn every_way_to_cut_a_problem() -> Result<()> {
    let sizes = if common::on_cuda() {
        // On one chip, split; chunks of classes; chunks of rows and of classes.
        vec![(70, 1100, 40, DEFAULT_WORKSPACE_BYTES), (130, 1700, 20, 1), (3300, 130, 8, 1)]
    } else {
        vec![
            (70, 1100, 40, DEFAULT_WORKSPACE_BYTES),
            (300, 600, 33, 1),
            (1100, 70, 24, DEFAULT_WORKSPACE_BYTES),
            (90, 4000, 150, 1),
            // Parts of the rows, of one block and of several; and as many rows as one part has.
            (3000, 33, 24, DEFAULT_WORKSPACE_BYTES),
            (1500, 20, 150, 1),
            (1030, 3, 400, 1),
        ]
    };
    for (n, c, d, budget) in sizes {
        for (name, builder) in builders(c) {
            if !["DBM-BS", "per class, weights", "DBM-BS per row", "cosine softmax"]
                .iter()
                .any(|part| name.starts_with(part))
            {
                continue;
            }
            let loss = builder.workspace_bytes(budget).build()?;
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), 5)?;
            let expected = composed(&loss, &inputs, None)?;
            common::assert_close(&format!("{name} {n} {c} {d}"), &fused(&loss, &inputs, None)?, &expected, 1e-9);
            for dtype in [DType::F32, DType::BF16] {
                assert_no_worse(&format!("{name} {n} {c} {d} {dtype:?}"), &loss, &inputs.to(dtype)?)?;
            }
        }
    }
    Ok(())
}

/// The floor of the comparison, relative to a part's largest value: the type's rounding of a result; what f32 sums leave; and what four
/// roundings of a cosine become in a logit, whose slope is s times that of cos(m1·θ), at most m1².
fn floor(part: &str, dtype: DType, label: &str, loss: &MarginLoss) -> f64 {
    let result = match (part, dtype) {
        ("dX" | "dW", DType::F16) => f64::from(half::f16::EPSILON),
        ("dX" | "dW", DType::BF16) => f64::from(half::bf16::EPSILON),
        _ => 0.0,
    };
    let m1: f64 = match label {
        label if label.starts_with("SphereFace 4") => 4.0,
        label if label.starts_with("SphereFace 3") => 3.0,
        label if label.starts_with("SphereFace") || label.starts_with("combined") => 2.0,
        _ => 1.2,
    };
    result + (64.0 + 4.0 * loss.scale() * m1 * m1) * f64::from(f32::EPSILON)
}

/// Error at most twice the composed loss's in the same type, plus the floor. Rows whose hard flag rounding has flipped are compared by nobody.
fn assert_no_worse(label: &str, loss: &MarginLoss, rounded: &Inputs) -> Result<()> {
    let dtype = rounded.x.dtype();
    let truth = composed(loss, &rounded.to(DType::F64)?, None)?;
    let actual = fused(loss, rounded, None)?;
    let plain = composed(loss, rounded, None)?;
    assert_eq!(actual.hard, truth.hard, "{label}: hard flags");
    for (((part, t), (_, a)), (_, p)) in truth.parts().into_iter().zip(actual.parts()).zip(plain.parts()) {
        let (own, theirs) = (distance(a, t), distance(p, t));
        // One rounding of c moves ψ′ by ε/θ² ≈ ε/(2(1 − |c|)): near a pole no f32 cosine gives more.
        let gap = truth.target_cosine.iter().map(|c| 1.0 - c.abs()).fold(1.0, f64::min);
        let pole = if matches!(part, "dX" | "dW") { f64::from(f32::EPSILON) / gap } else { 0.0 };
        let bound = 2.0 * theirs + (floor(part, dtype, label, loss) + pole) * size(t).max(1e-2);
        assert!(own <= bound, "{label}: {part} {own:e}, composed {theirs:e}, bound {bound:e}");
    }
    Ok(())
}

#[test]
fn lower_precision_is_no_worse_than_composed() -> Result<()> {
    for (seed, (n, c, d)) in SIZES.into_iter().enumerate() {
        for (name, loss) in losses(c) {
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), 40 + seed as u64)?;
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                assert_no_worse(&format!("{name} {n} {c} {d} {dtype:?}"), &loss, &inputs.to(dtype)?)?;
            }
        }
    }
    Ok(())
}

fn property(n: usize, c: usize, d: usize, index: usize, seed: u64, weighted: bool, budget: usize) -> Result<()> {
    let mut all = builders(c);
    let (name, builder) = all.swap_remove(index % all.len());
    let loss = builder.workspace_bytes(budget).build()?;
    let mut inputs = Inputs::random(n, c, d, name.contains("ignore"), seed)?;
    if weighted {
        inputs = inputs.with_sample_weights(seed)?;
    }
    let label = format!("{name} {n} {c} {d} seed {seed}");
    // D = 1 has nothing but poles, where the composed arccos differs by its floor's rounding: the golden cases have those.
    let poles = composed(&loss, &inputs, None)?.target_cosine.iter().any(|c| 1.0 - c.abs() < 1e-6);
    if !poles {
        let expected: Outcome = composed(&loss, &inputs, None)?;
        common::assert_close(&label, &fused(&loss, &inputs, None)?, &expected, 1e-8);
        // A transposed view of the same numbers.
        let view =
            Inputs { x: inputs.x.t()?.contiguous()?.t()?, w: inputs.w.t()?.contiguous()?.t()?, ..inputs.clone() };
        common::assert_close(&label, &off_tape(&loss, &view)?, &expected, 1e-8);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            assert_no_worse(&format!("{label} {dtype:?}"), &loss, &inputs.to(dtype)?)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if common::emulated() { 100 } else { 400 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_option_and_type(
        n in 1usize..40, c in 1usize..60, d in 1usize..50, index in 0usize..1000, seed in any::<u64>(), weighted in any::<bool>(),
    ) {
        property(n, c, d, index, seed, weighted, DEFAULT_WORKSPACE_BYTES).map_err(|e| TestCaseError::fail(e.to_string()))?;
    }
}
