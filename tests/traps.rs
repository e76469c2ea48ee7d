//! The traps that others fell into, as far as a CPU has them: each test fails without its remedy. Numbered as in the list of traps.
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Tensor, Var};
use candle_margin_loss::{ClassCounts, IGNORED, InstanceGate, Margin, MarginLoss, Prior, Reduction};
use common::{IGNORE, Inputs, Result, composed, device, distance, flat, fused, off_tape, size};

/// 1: N·C and N·D beyond 2³², with views so that no memory is needed: X is one row seen many times, and so are the labels.
#[test]
fn offsets_beyond_32_bits() -> Result<()> {
    // A row stride of 1 over a few elements: X[i, d] = data[i + d]; the last row starts far beyond what a 16-bit offset reaches.
    let (n, c, d) = (70_000, 3, 2);
    let data = Tensor::arange(0f32, (n * d) as f32, &device())?.reshape((n, d))?;
    let w = Tensor::new(&[[1f32, 0.0], [0.0, 1.0], [-1.0, -1.0]], &device())?;
    let y = Tensor::zeros(n, DType::U32, &device())?;
    let loss = MarginLoss::builder(c).reduction(Reduction::None).build()?;
    let all = loss.output(&data, &w, &y, None)?;
    let last = loss.output(&data.narrow(0, n - 3, 3)?, &w, &y.narrow(0, 0, 3)?, None)?;
    assert_eq!(flat(&all.per_sample)[n - 3..], flat(&last.per_sample));

    if common::emulated() {
        println!(
            "SKIPPED on an emulated device, which takes hours for N·C = 4.4·10⁹: no other test has offsets beyond 32 bits there"
        );
        return Ok(());
    }
    // N·C = 4.4·10⁹: a class's row of cosines starts beyond 2³² in the whole, and the workspace stays at its budget.
    let (n, c) = (66_000, 66_000);
    let x = Tensor::new(&[[0.6f32, 0.8]], &device())?.broadcast_as((n, 2))?;
    let w = Tensor::new(&[[0.8f32, 0.6]], &device())?.broadcast_as((c, 2))?;
    let y = Tensor::full((c - 1) as u32, n, &device())?;
    let out = MarginLoss::cosine_ce(c, 1.0)?.output(&x, &w, &y, None)?;
    let expected = (c as f64).ln(); // all logits are equal
    assert!((flat(&out.loss)[0] - expected).abs() < 1e-3, "{} {expected}", out.loss);
    Ok(())
}

/// 2: 1 − p formed by subtraction has no digits left at p ≈ 1, least of all in bf16.
#[test]
fn gradient_of_a_confident_target() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let x = Tensor::new(&[[1f32, 0.0]], &device())?.to_dtype(dtype)?;
        let w = Tensor::new(&[[1f32, 1.0], [0.0, 1.0]], &device())?.to_dtype(dtype)?;
        let y = Tensor::new(&[0u32], &device())?;
        let (s, c) = (40.0, 0.5f64.sqrt());
        let (_, dx, _) = MarginLoss::cosine_ce(2, s)?.loss_and_grads(&x, &w, &y, None)?;
        // Orthogonal to x there is −s·(1 − p)·ŵ_0 + s·p_1·ŵ_1, with 1 − p = p_1 = 1 / (1 + e^(s·c)) ≈ 5·10⁻¹³.
        let away = 1.0 / (1.0 + (s * c).exp());
        let expected = s * away * (1.0 - c);
        let actual = flat(&dx)[1];
        assert!((actual / expected - 1.0).abs() < 0.02, "{dtype:?}: {actual:e} {expected:e}");
    }
    Ok(())
}

/// 3: logsumexp − z_y loses the loss under a common offset of the logits.
#[test]
fn a_common_offset_of_the_logits_changes_nothing() -> Result<()> {
    let (n, c, d) = (6, 5, 4);
    let inputs = Inputs::random(n, c, d, false, 1)?.to(DType::F32)?;
    let prior: Vec<f64> = (0..c).map(|j| -(j as f64)).collect();
    let loss = |offset: f64, alpha: f64| {
        let prior = Prior::LogPrior(prior.iter().map(|b| b + offset).collect());
        MarginLoss::builder(c).prior(prior).label_smoothing(alpha).build()
    };
    for alpha in [0.0, 0.2] {
        let expected = off_tape(&loss(0.0, alpha)?, &inputs)?;
        let actual = off_tape(&loss(1e7, alpha)?, &inputs)?;
        common::assert_close("offset", &actual, &expected, 1e-6);
    }
    // And a loss far below one ulp of the logits keeps its digits.
    let x = Tensor::new(&[[1f32, 0.0]], &device())?;
    let w = Tensor::new(&[[1f32, 0.0], [-1.0, 0.0]], &device())?;
    let value = MarginLoss::cosine_ce(2, 40.0)?.forward(&x, &w, &Tensor::new(&[0u32], &device())?)?;
    let expected = (-80f64).exp();
    assert!((flat(&value)[0] / expected - 1.0).abs() < 1e-4, "{value} {expected:e}");
    Ok(())
}

/// 4: a tile with nothing but targets has a maximum of −∞; (−∞) − (−∞) is NaN.
#[test]
fn tiles_without_a_non_target() -> Result<()> {
    // C = 1 has no other class at all; its loss and gradients are 0.
    let inputs = Inputs::random(4, 1, 3, false, 5)?;
    for alpha in [0.0, 0.3] {
        let out = fused(&MarginLoss::builder(1).label_smoothing(alpha).build()?, &inputs, None)?;
        assert_eq!((out.loss, size(&out.dx), size(&out.dw)), (vec![0.0], 0.0, 0.0));
    }
    // With a workspace this small, ranges and tiles of few classes meet rows whose only class there is their target.
    let (n, c, d) = (40, 700, 3000);
    let inputs = Inputs::random(n, c, d, false, 6)?.to(DType::F32)?;
    let small = MarginLoss::builder(c).workspace_bytes(1 << 20).build()?;
    let large = MarginLoss::builder(c).build()?;
    let (small, large) = (fused(&small, &inputs, None)?, fused(&large, &inputs, None)?);
    common::assert_close("workspace", &small, &large, 1e-5);
    Ok(())
}

/// 6: the ignore index is a label like any other: one that is a class, one beyond the classes, one that a narrow type would wrap.
#[test]
fn ignore_indices_of_every_kind() -> Result<()> {
    let (n, c, d) = (6, 4, 3);
    let base = Inputs::random(n, c, d, false, 8)?;
    for index in [0, 3, 4, -1, -100, 255, i64::from(u32::MAX), i64::MIN] {
        let mut y = base.y.to_vec1::<i64>()?;
        y[1] = index;
        y[4] = index;
        let kept: Vec<u32> = (0..n as u32).filter(|&i| y[i as usize] != index).collect();
        let rows = Tensor::new(kept.as_slice(), &device())?;
        let all = Inputs { y: Tensor::new(y.as_slice(), &device())?, ..base.clone() };
        let without = Inputs { x: base.x.index_select(&rows, 0)?, y: all.y.index_select(&rows, 0)?, ..base.clone() };
        let with_index = fused(&MarginLoss::builder(c).ignore_index(index).build()?, &all, None)?;
        let expected = fused(&MarginLoss::builder(c).build()?, &without, None)?;
        // A device leaves ignored rows where they are, and groups its sums by where rows are.
        let tolerance = if common::on_cuda() { 8.0 * f64::EPSILON } else { 0.0 };
        for (a, b) in [(&with_index.loss, &expected.loss), (&with_index.dw, &expected.dw)] {
            assert!(distance(a, b) <= tolerance * size(b), "index {index}");
        }
        assert!(with_index.dx[d..2 * d].iter().all(|&g| g == 0.0));
        assert_eq!(with_index.predicted[1], IGNORED);
        assert_eq!((with_index.hard[1], with_index.per_sample[1], with_index.target_cosine[1]), (0, 0.0, 0.0));
    }
    Ok(())
}

/// 7: no valid row gives 0 and zero gradients; ignored rows are written, and are in no denominator. N = 0 likewise.
#[test]
fn no_valid_row() -> Result<()> {
    let (n, c, d) = (3, 4, 5);
    for reduction in [Reduction::None, Reduction::Sum, Reduction::Mean, Reduction::WeightedMean] {
        let loss = MarginLoss::builder(c).ignore_index(IGNORE).reduction(reduction).build()?;
        // Candle's own ops take no empty tensor on CUDA; ours does: below.
        let sizes = if common::on_cuda() { vec![n] } else { vec![n, 0] };
        for n in sizes {
            let inputs = Inputs {
                x: Tensor::zeros((n, d), DType::F64, &device())?,
                y: Tensor::full(IGNORE, n, &device())?,
                ..Inputs::random(1, c, d, false, 2)?
            };
            for out in [fused(&loss, &inputs, None)?, off_tape(&loss, &inputs)?] {
                assert!(out.loss.iter().all(|&l| l == 0.0), "{reduction:?} {n}: {:?}", out.loss);
                assert_eq!((size(&out.dx), size(&out.dw)), (0.0, 0.0), "{reduction:?} {n}");
                assert_eq!((out.dx.len(), out.dw.len()), (n * d, c * d));
            }
            let out = loss.output(&inputs.x, &inputs.w, &inputs.y, None)?;
            assert_eq!((out.accuracy()?, out.hard_positive_rate()?), (0.0, 0.0));
        }
        // Gradient tensors that held something else are overwritten, ignored rows included.
        let inputs = Inputs { y: Tensor::full(IGNORE, n, &device())?, ..Inputs::random(n, c, d, false, 2)? };
        let (dx, dw) = (inputs.x.ones_like()?, inputs.w.ones_like()?);
        loss.loss_and_grads_into(&inputs.x, &inputs.w, &inputs.y, None, &dx, &dw)?;
        assert_eq!((size(&flat(&dx)), size(&flat(&dw))), (0.0, 0.0));
    }
    for reduction in [Reduction::None, Reduction::Mean] {
        let w = Tensor::ones((c, d), DType::F32, &device())?;
        let (x, y) = (Tensor::zeros((0, d), DType::F32, &device())?, Tensor::zeros(0, DType::U32, &device())?);
        let loss = MarginLoss::builder(c).reduction(reduction).build()?;
        let (out, dx, dw) = loss.loss_and_grads(&x, &w, &y, None)?;
        assert_eq!((out.per_sample.dims(), dx.dims(), size(&flat(&dw))), (&[0][..], &[0, d][..], 0.0));
        assert_eq!((out.accuracy()?, out.hard_positive_rate()?), (0.0, 0.0));
        assert!(reduction == Reduction::None || flat(&out.loss) == [0.0]);
    }
    // Weights that are all 0.
    let inputs = Inputs::random(n, c, d, false, 2)?;
    let inputs = Inputs { sample_weights: Some(Tensor::zeros(n, DType::F64, &device())?), ..inputs };
    let out = fused(&MarginLoss::builder(c).reduction(Reduction::WeightedMean).build()?, &inputs, None)?;
    assert_eq!((out.loss, size(&out.dx), size(&out.dw)), (vec![0.0], 0.0, 0.0));
    Ok(())
}

/// 8: views: transposed, narrowed, broadcast and strided inputs give what their contiguous copies give.
#[test]
fn views() -> Result<()> {
    let (n, c, d) = (6, 5, 8);
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let inputs = Inputs::random(2 * n, 2 * c, 2 * d, false, 4)?.to(dtype)?;
        let y = Tensor::new(&[0i64, 9, 1, 9, 4, 9, 2, 9, 3, 9, 0, 9], &device())?.reshape((n, 2))?;
        let loss = MarginLoss::builder(c).build()?;
        let strided = |t: &Tensor, rows: usize| -> Result<Vec<Tensor>> {
            Ok(vec![
                t.narrow(0, 1, rows)?.narrow(1, 3, d)?,
                t.narrow(1, 0, rows)?.t()?.narrow(1, 1, d)?.narrow(0, 0, rows)?,
                t.narrow(0, 2, 1)?.narrow(1, 2, d)?.broadcast_as((rows, d))?,
                t.reshape((t.dim(0)? / 2, 2, 2 * d))?
                    .narrow(1, 1, 1)?
                    .squeeze(1)?
                    .narrow(0, 0, rows)?
                    .narrow(1, 0, d)?,
            ])
        };
        let w_source = Inputs::random(2 * c, 2 * d, 2 * d, false, 5)?.to(dtype)?.w;
        for x in strided(&inputs.x, n)? {
            for w in strided(&w_source, c)? {
                let y = y.narrow(1, 0, 1)?.squeeze(1)?;
                assert!(!x.is_contiguous() && !y.is_contiguous());
                let plain = Inputs {
                    x: x.contiguous()?,
                    w: w.contiguous()?,
                    y: y.contiguous()?,
                    sample_weights: None,
                    margins: None,
                };
                let (out, dx, dw) = loss.loss_and_grads(&x, &w, &y, None)?;
                let expected = off_tape(&loss, &plain)?;
                assert_eq!(flat(&out.per_sample), expected.per_sample, "{dtype:?}");
                assert_eq!((flat(&dx), flat(&dw)), (expected.dx, expected.dw), "{dtype:?}");
            }
        }
    }
    Ok(())
}

/// 10: the poles: exactly aligned, exactly opposite, and a row beyond π − m, in every type.
#[test]
fn poles_are_finite_in_every_type() -> Result<()> {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let w = Tensor::new(&[[1f32, 2.0, 2.0], [0.5, -1.0, 0.25], [3.0, 0.0, 1.0]], &device())?.to_dtype(dtype)?;
        let x = Tensor::cat(&[&w, &w.neg()?, &(&w * 1.001)?], 0)?;
        let y = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1, 2], &device())?;
        // Of every row an angle, but of the first none.
        let n = x.dim(0)?;
        let margins: Vec<f64> = (0..2 * n).map(|i| if i == 0 { 0.0 } else { 0.4 - 0.1 * (i % 7) as f64 }).collect();
        let margins = Some(Tensor::from_vec(margins, (n, 2), &device())?);
        let inputs = Inputs { x, w, y, sample_weights: None, margins };
        for (name, loss) in common::losses(3) {
            let out = fused(&loss, &inputs, None)?;
            for (part, values) in out.parts() {
                assert!(values.iter().all(|v| v.is_finite()), "{name} {dtype:?}: {part} {values:?}");
            }
        }
    }
    Ok(())
}

/// 11: the lowest index wins a tie, in every type, within a tile and across lanes; a tie with the target is no hard positive for it.
#[test]
fn ties() -> Result<()> {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let (n, c, d) = (64, 2000, 32);
        let mut w = vec![0f32; c * d];
        for (j, row) in w.chunks_mut(d).enumerate() {
            row[if j % 500 == 3 { 0 } else { 1 + j % 31 }] = 1.0; // classes 3, 503, 1003 and 1503 are the same
        }
        let mut x = vec![0f32; n * d];
        x.chunks_mut(d).for_each(|row| row[0] = 2.0);
        let x = Tensor::from_vec(x, (n, d), &device())?.to_dtype(dtype)?;
        let w = Tensor::from_vec(w, (c, d), &device())?.to_dtype(dtype)?;
        let labels: Vec<u32> = (0..n as u32).map(|i| [3, 503, 1503, 7][i as usize % 4]).collect();
        let out = MarginLoss::cosine_ce(c, 30.0)?.output(&x, &w, &Tensor::new(labels, &device())?, None)?;
        assert!(out.predicted.to_vec1::<u32>()?.iter().all(|&class| class == 3), "{dtype:?}");
        let hard = out.hard.to_vec1::<u8>()?;
        assert!(hard.chunks(4).all(|four| four == [0, 1, 1, 1]), "{dtype:?}");
    }
    Ok(())
}

/// NaN or ∞ in a row of X: that row's loss and dX, and the dW it reaches; nothing else. In an ignored row: nothing at all.
#[test]
fn nan_stays_where_it_belongs() -> Result<()> {
    let (n, c, d) = (20, 40, 6);
    let clean = Inputs::random(n, c, d, false, 9)?.to(DType::F32)?;
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = clean.x.to_vec2::<f32>()?;
        rows[7][2] = poison;
        let x = Tensor::new(rows, &device())?;
        for (name, loss) in common::losses(c) {
            if name.contains("ignore") {
                continue;
            }
            let out = fused(&loss, &Inputs { x: x.clone(), ..clean.clone() }, None)?;
            let expected = fused(&loss, &clean, None)?;
            assert!(out.per_sample[7].is_nan(), "{name} {poison}");
            assert!(out.dx[7 * d..8 * d].iter().all(|g| g.is_nan()), "{name} {poison}");
            assert!(out.dw.iter().all(|g| g.is_nan()), "{name} {poison}: every class sees the row");
            for i in (0..n).filter(|&i| i != 7) {
                assert_eq!(out.per_sample[i], expected.per_sample[i], "{name} {poison} row {i}");
                assert_eq!(out.dx[i * d..][..d], expected.dx[i * d..][..d], "{name} {poison} row {i}");
            }
        }
        let mut y = clean.y.to_vec1::<i64>()?;
        y[7] = IGNORE;
        let y = Tensor::new(y, &device())?;
        let loss = MarginLoss::builder(c).ignore_index(IGNORE).build()?;
        let out = fused(&loss, &Inputs { x, y: y.clone(), ..clean.clone() }, None)?;
        let expected = fused(&loss, &Inputs { y, ..clean.clone() }, None)?;
        assert_eq!((out.loss, out.dx, out.dw), (expected.loss, expected.dx, expected.dw), "{poison}, ignored");
    }
    Ok(())
}

/// Every finite input gives finite gradients: norms from subnormal to the largest float, on either side.
#[test]
fn extreme_norms() -> Result<()> {
    let (n, c, d) = (6, 8, 5);
    let inputs = Inputs::random(n, c, d, false, 12)?;
    let loss = MarginLoss::dbm_bs(&common::counts(c), 0.2)?;
    let expected = composed(&loss, &inputs, None)?;
    for (x_scale, w_scale) in [(1e30, 1e30), (1e35, 1.0), (1.0, 1e35), (1e36, 1e-9), (1e-9, 1e36), (1e-11, 1e-11)] {
        let x = (&inputs.x * x_scale)?.to_dtype(DType::F32)?;
        let w = (&inputs.w * w_scale)?.to_dtype(DType::F32)?;
        assert!(flat(&x).iter().chain(&flat(&w)).all(|v| v.is_finite()));
        let out = fused(&loss, &Inputs { x, w, ..inputs.clone() }, None)?;
        let label = format!("{x_scale:e} {w_scale:e}");
        assert!(distance(&out.per_sample, &expected.per_sample) < 1e-4, "{label}: {:?}", out.per_sample);
        // The gradient is that of norm 1 over the norm.
        for (part, actual, expected, scale) in
            [("dX", &out.dx, &expected.dx, x_scale), ("dW", &out.dw, &expected.dw, w_scale)]
        {
            let tiny = size(expected) / scale < 1e-30; // subnormal in f32
            let scaled: Vec<f64> = actual.iter().map(|g| g * scale).collect();
            assert!(actual.iter().all(|g| g.is_finite()), "{label} {part}");
            assert!(tiny || distance(&scaled, expected) < 1e-4 * size(expected), "{label} {part}");
        }
    }
    // Subnormal rows are divided by 1e-12 and have no projection: finite, and the loss near that of cosines 0.
    for scale in [0.0, 1e-40, 1e-30, 1e-20] {
        let x = (&inputs.x * scale)?.to_dtype(DType::F32)?;
        let w = inputs.w.to_dtype(DType::F32)?;
        for out in [
            fused(&loss, &Inputs { x: x.clone(), w: w.clone(), ..inputs.clone() }, None)?,
            fused(&loss, &Inputs { x: w.narrow(0, 0, n)?.contiguous()?, w: (&w * scale)?, ..inputs.clone() }, None)?,
        ] {
            assert!(out.parts().iter().all(|(_, values)| values.iter().all(|v| v.is_finite())), "{scale:e}");
        }
    }
    Ok(())
}

/// The same of bf16, whose products may take rows as they are: powers of two, which change nothing but the gradients' size, row by row.
#[test]
fn extreme_norms_of_bf16() -> Result<()> {
    for (n, c, d) in [(6, 8, 5), (1, 3, 1), (70, 130, 33)] {
        let inputs = Inputs::random(n, c, d, false, 12)?.to(DType::BF16)?;
        let loss = MarginLoss::dbm_bs(&common::counts(c), 0.2)?;
        let expected = off_tape(&loss, &inputs)?;
        let powers = |rows: usize, salt: usize| -> Vec<f64> {
            (0..rows).map(|i| 2f64.powi([0, 40, -30, 110, 17, -17][(i + salt) % 6])).collect()
        };
        let (x_powers, w_powers) = (powers(n, 1), powers(c, 0));
        let scaled = |t: &Tensor, by: &[f64]| -> Result<Tensor> {
            let by = Tensor::new(by, &device())?.reshape((by.len(), 1))?;
            Ok(t.to_dtype(DType::F64)?.broadcast_mul(&by)?.to_dtype(DType::BF16)?)
        };
        let (x, w) = (scaled(&inputs.x, &x_powers)?, scaled(&inputs.w, &w_powers)?);
        let out = off_tape(&loss, &Inputs { x, w, ..inputs.clone() })?;
        assert!(distance(&out.per_sample, &expected.per_sample) < 1e-4, "{n} {c} {d}: {:?}", out.per_sample);
        for (part, found, expected, powers) in
            [("dX", &out.dx, &expected.dx, &x_powers), ("dW", &out.dw, &expected.dw, &w_powers)]
        {
            let found: Vec<f64> = found.iter().enumerate().map(|(i, g)| g * powers[i / d]).collect();
            assert!(found.iter().all(|g| g.is_finite()), "{n} {c} {d} {part}");
            // Subnormal bf16 at 2^110, and two roundings of g.
            let (mut worst, size) = (0f64, size(expected));
            for (i, (a, b)) in found.iter().zip(expected).enumerate() {
                if powers[i / d] < 1e30 {
                    worst = worst.max((a - b).abs());
                }
            }
            assert!(worst <= 0.01 * size, "{n} {c} {d} {part}: {worst:e} of {size:e}");
        }
    }
    Ok(())
}

/// 13: every option changes what it should: no test of the table passes because an option does nothing.
#[test]
fn options_have_effects() -> Result<()> {
    let (n, c, d) = (30, 12, 6);
    let inputs = Inputs::random(n, c, d, true, 21)?;
    let mut seen: Vec<(&str, Vec<f64>)> = Vec::new();
    for (name, builder) in common::builders(c) {
        let out = off_tape(&builder.ignore_index(IGNORE).build()?, &inputs)?;
        let mut fingerprint = out.loss.clone();
        fingerprint.truncate(1);
        fingerprint.extend(&out.dx);
        for (other, values) in &seen {
            let same_by_design = [name, other].iter().all(|n| ["cosine softmax", "per row", "ignore, sum"].contains(n));
            assert!(same_by_design || distance(values, &fingerprint) > 1e-6, "{name} gives what {other} gives");
        }
        seen.push((name, fingerprint));
    }
    Ok(())
}

/// 15: gradients are there, in the argument's own dtype, for tracked arguments and no others.
#[test]
fn gradients_are_present_where_they_are_tracked() -> Result<()> {
    let (n, c, d) = (4, 3, 5);
    for reduction in [Reduction::Mean, Reduction::None] {
        let loss = MarginLoss::builder(c).reduction(reduction).build()?;
        for (x_type, w_type) in
            [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::F16, DType::F32), (DType::BF16, DType::F32)]
        {
            let inputs = Inputs::random(n, c, d, false, 3)?;
            let x = Var::from_tensor(&inputs.x.to_dtype(x_type)?)?;
            let w = Var::from_tensor(&inputs.w.to_dtype(w_type)?)?;
            let both = loss.forward(&x, &w, &inputs.y)?.sum_all()?.backward()?;
            let frozen_w = loss.forward(&x, &w.detach(), &inputs.y)?.sum_all()?.backward()?;
            let frozen_x = loss.forward(&x.detach(), &w, &inputs.y)?.sum_all()?.backward()?;
            assert_eq!(both.get(&x).unwrap().dtype(), x_type);
            assert_eq!(both.get(&w).unwrap().dtype(), w_type);
            assert!(frozen_w.get(&w).is_none() && frozen_x.get(&x).is_none());
            assert_eq!(flat(frozen_w.get(&x).unwrap()), flat(both.get(&x).unwrap()));
            assert_eq!(flat(frozen_x.get(&w).unwrap()), flat(both.get(&w).unwrap()));
            // Through a layer before it.
            let through = loss.forward(&(x.as_tensor() * 2.0)?, &w, &inputs.y)?.sum_all()?.backward()?;
            assert!(size(&flat(through.get(&x).unwrap())) > 0.0);
        }
    }
    Ok(())
}

/// Mixed precision: bf16 features beside f32 centres give f32 gradients to W that no bf16 rounding has touched.
#[test]
fn mixed_precision_keeps_the_centres_gradient() -> Result<()> {
    let (n, c, d) = (16, 10, 24);
    let inputs = Inputs::random(n, c, d, false, 3)?;
    let loss = MarginLoss::dbm_bs(&common::counts(c), 0.1)?;
    for dtype in [DType::BF16, DType::F16] {
        let x = inputs.x.to_dtype(dtype)?;
        let mixed = Inputs { x: x.clone(), w: inputs.w.to_dtype(DType::F32)?, ..inputs.clone() };
        let wide = Inputs { x: x.to_dtype(DType::F32)?, ..mixed.clone() };
        let (mixed, wide) = (off_tape(&loss, &mixed)?, off_tape(&loss, &wide)?);
        assert_eq!(mixed.dw, wide.dw, "the same numbers through the same f32 sums");
        assert!(distance(&mixed.dx, &wide.dx) <= 0.01 * size(&wide.dx));
    }
    Ok(())
}

/// The difficulty's gate: hard positives are decided on raw cosines, not on logits with margin or prior.
#[test]
fn hard_positives_ignore_margin_and_prior() -> Result<()> {
    let counts = ClassCounts::new(vec![10_000, 1])?;
    let x = Tensor::new(&[[1.0f64, 0.1], [0.1, 1.0], [1.0, 0.2]], &device())?;
    let w = Tensor::new(&[[1.0f64, 0.0], [0.0, 1.0]], &device())?;
    let y = Tensor::new(&[0u32, 1, 1], &device())?;
    let loss = MarginLoss::builder(2)
        .counts(&counts)
        .margin(Margin::Dbm { k: 3.0, tau: 1.0 })
        .instance_gate(InstanceGate::HardPositives)
        .prior(Prior::BalancedSoftmax { tau: 5.0 })
        .build()?;
    let out = loss.output(&x, &w, &y, None)?;
    assert_eq!(out.predicted.to_vec1::<u32>()?, [0, 1, 0]);
    assert_eq!(out.hard.to_vec1::<u8>()?, [0, 0, 1]);
    assert!((out.accuracy()? - 2.0 / 3.0).abs() < 1e-12 && (out.hard_positive_rate()? - 1.0 / 3.0).abs() < 1e-12);
    Ok(())
}

/// Cosines of rows of ±2^k are fractions of whole numbers, exact in every type: to the bit those of integer arithmetic, at sizes on both sides of tiles
/// and steps. A wrong index or tail has no tolerance to hide in.
#[test]
fn cosines_of_powers_of_two_are_exact() -> Result<()> {
    // D with 4^k places that are not 0, and some that are: norms are powers of two.
    let dims = [(1, 1), (5, 4), (16, 16), (19, 16), (64, 64), (70, 64), (300, 256)];
    let sizes = [(1, 3), (33, 17), (64, 64), (70, 65), (130, 129)];
    for (d, full) in dims {
        for (n, c) in sizes {
            let sign = |i: usize, k: usize, salt: usize| {
                let mixed = (i * 7919 + k * 104_729 + salt * 31).wrapping_mul(2_654_435_761) >> 7;
                if mixed & 1 == 0 { 1.0 } else { -1.0 }
            };
            let rows = |count: usize, salt: usize| -> Vec<f64> {
                let value =
                    |i: usize, k: usize| if k < full { sign(i, k, salt) * 2f64.powi(i as i32 % 5 - 2) } else { 0.0 };
                (0..count * d).map(|at| value(at / d, at % d)).collect()
            };
            let (x, w) = (rows(n, 1), rows(c, 2));
            let y: Vec<i64> = (0..n as i64).map(|i| i % c as i64).collect();
            let cosine =
                |i: usize, j: usize| (0..full).map(|k| sign(i, k, 1) * sign(j, k, 2)).sum::<f64>() / full as f64;
            let predicted = |i: usize| (1..c).fold(0, |best, j| if cosine(i, j) > cosine(i, best) { j } else { best });
            for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
                let inputs = Inputs {
                    x: Tensor::new(&x[..], &device())?.reshape((n, d))?.to_dtype(dtype)?,
                    w: Tensor::new(&w[..], &device())?.reshape((c, d))?.to_dtype(dtype)?,
                    y: Tensor::new(&y[..], &device())?,
                    sample_weights: None,
                    margins: None,
                };
                let out =
                    off_tape(&MarginLoss::builder(c).scale(16.0).streaming(common::streaming()).build()?, &inputs)?;
                for (i, &target) in y.iter().enumerate() {
                    let label = format!("{n} {c} {d} {dtype:?}: row {i}");
                    assert_eq!(out.target_cosine[i], cosine(i, target as usize), "{label}");
                    assert_eq!(out.predicted[i] as usize, predicted(i), "{label}");
                }
            }
        }
    }
    Ok(())
}

/// At scales where a logit has no digits behind the point in f32, p still sums to 1: two wrong classes with one centre take half of the gradient each.
#[test]
fn gradients_at_the_largest_scales() -> Result<()> {
    let (n, c, d) = (24, 3, 6);
    for scale in [1e6, 1e8, 1e9] {
        let loss = MarginLoss::cosine_ce(c, scale)?;
        let inputs = Inputs::random(n, c, d, false, 5)?.to(DType::F32)?;
        let (own, other) = (inputs.w.narrow(0, 0, 1)?, inputs.w.narrow(0, 1, 1)?);
        let w = Tensor::cat(&[&own, &other, &other], 0)?;
        let x = ((&inputs.x * 0.1)?.broadcast_add(&other))?; // nearer to it than to their own
        let inputs = Inputs { x, w, y: Tensor::zeros(n, DType::U32, &device())?, ..inputs };
        let truth = composed(&loss, &inputs.to(DType::F64)?, None)?;
        let found = off_tape(&loss, &inputs)?;
        assert!(truth.hard.iter().all(|&hard| hard == 1));
        for (part, a, b) in [("dX", &found.dx, &truth.dx), ("dW", &found.dw, &truth.dw)] {
            assert!(distance(a, b) <= 1e-4 * size(b), "scale {scale} {part}: {:e} of {:e}", distance(a, b), size(b));
        }
    }
    Ok(())
}

/// A centre shorter than 1e-12 is divided by that constant: its gradient has no projection.
#[test]
fn short_centres() -> Result<()> {
    let (n, c, d) = (9, 5, 7);
    let loss = MarginLoss::cosine_ce(c, 16.0)?;
    let inputs = Inputs::random(n, c, d, false, 8)?;
    let norms = inputs.w.sqr()?.sum_keepdim(1)?.sqrt()?;
    let lengths = Tensor::new(&[1f64, 5e-13, 2.0, 8e-13, 1.0], &device())?.unsqueeze(1)?;
    let inputs = Inputs { w: inputs.w.broadcast_div(&norms)?.broadcast_mul(&lengths)?, ..inputs };
    for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-4), (DType::BF16, 2e-2)] {
        let rounded = inputs.to(dtype)?;
        let truth = composed(&loss, &rounded.to(DType::F64)?, None)?;
        let found = off_tape(&loss, &rounded)?;
        for (class, (a, b)) in found.dw.chunks(d).zip(truth.dw.chunks(d)).enumerate() {
            assert!(
                distance(a, b) <= tolerance * size(b),
                "{dtype:?} class {class}: {:e} of {:e}",
                distance(a, b),
                size(b)
            );
        }
    }
    Ok(())
}
