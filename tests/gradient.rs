//! Gradients against central differences, in f64, for every loss of the table, on and off the tape.
#![allow(missing_docs)]

mod common;

use candle_core::{Tensor, Var};
use candle_margin_loss::{MarginLoss, Reduction, TargetGradient};
use common::{IGNORE, Inputs, Result, builders, device, flat, fused, off_tape};

/// (N, C, D): several tiles would need sizes too slow for differences; `oracle.rs` has them.
const SIZES: [(usize, usize, usize); 4] = [(4, 3, 2), (7, 5, 6), (3, 18, 4), (17, 6, 9)];

/// Inputs without a pole, a tie or a jump of the hard flag or the monotone branch within the difference's step.
fn smooth(loss: &MarginLoss, inputs: &Inputs) -> Result<bool> {
    let (x, w) = (&inputs.x, &inputs.w);
    let cosines = (loss.logits(x, w)? / loss.scale())?.to_vec2::<f64>()?;
    Ok(cosines.iter().all(|row| {
        let mut sorted = row.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        row.iter().all(|c| c.abs() < 0.97) && sorted.windows(2).take(1).all(|pair| pair[0] - pair[1] > 1e-3)
    }))
}

/// The loss at other X, W and row margins.
fn value(loss: &MarginLoss, at: [&[f64]; 3], inputs: &Inputs, upstream: &[f64]) -> Result<f64> {
    let x = Tensor::from_slice(at[0], inputs.x.dims(), &device())?;
    let w = Tensor::from_slice(at[1], inputs.w.dims(), &device())?;
    let margins = Tensor::from_slice(at[2], (inputs.x.dim(0)?, 2), &device())?;
    let output = loss.output(&x, &w, &inputs.y, inputs.rows_with(loss, Some(&margins)))?;
    Ok(flat(&output.loss).iter().zip(upstream).map(|(loss, upstream)| loss * upstream).sum())
}

#[test]
fn exact_gradients_are_central_differences() -> Result<()> {
    let (mut checked, mut skipped) = (0, Vec::new());
    // Two of the sizes where they are emulated: differences take thousands of launches.
    let sizes = if common::emulated() { &SIZES[..2] } else { &SIZES[..] };
    for &(n, c, d) in sizes {
        for (name, builder) in builders(c) {
            if name.contains("detached") || name.contains("straight through") {
                continue; // not the derivative of the loss, by definition: see `surrogate_gradients`
            }
            let loss = builder.build()?;
            let found = (0..100_000).find_map(|seed| {
                let inputs =
                    Inputs::random(n, c, d, name.contains("ignore"), seed).ok()?.with_sample_weights(seed).ok()?;
                smooth(&loss, &inputs).ok()?.then_some(inputs)
            });
            let Some(inputs) = found else {
                skipped.push(format!("{name} {n} {c} {d}"));
                continue;
            };
            let count = if name.contains("per row") { n } else { 1 };
            let upstream: Vec<f64> = (0..count).map(|i| 1.5 - 0.4 * i as f64).collect();
            let (x, w) = (flat(&inputs.x), flat(&inputs.w));
            let margins = flat(inputs.margins.as_ref().ok_or("row margins")?);
            let analytic = fused(&loss, &inputs, Some(&upstream))?;
            let all = [("X", &x, &analytic.dx), ("W", &w, &analytic.dw), ("(α, β)", &margins, &analytic.d_margins)];
            for (which, (name_of, values, gradient)) in all.into_iter().enumerate() {
                let scale = common::size(gradient);
                for i in 0..gradient.len() {
                    let h = 1e-5 * values[i].abs().max(0.1);
                    let at = |offset: f64| -> Result<f64> {
                        let mut moved = values.clone();
                        moved[i] += offset;
                        let mut at: [&[f64]; 3] = [&x, &w, &margins];
                        at[which] = &moved;
                        value(&loss, at, &inputs, &upstream)
                    };
                    // Fourth order, so that the step can be wide enough for rounding not to show.
                    let numeric = (8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * h);
                    let error = (numeric - gradient[i]).abs();
                    assert!(
                        error <= 1e-6 * scale.max(1e-3),
                        "{name} {n} {c} {d} d{name_of}[{i}]: {numeric} {}",
                        gradient[i]
                    );
                }
            }
            checked += 1;
        }
    }
    println!("{checked} cases; no inputs without a jump for {skipped:?}");
    assert!(skipped.is_empty() && checked >= 20 * sizes.len(), "{checked} cases; left out: {skipped:?}");
    Ok(())
}

/// Straight-through and detached gradients are the exact gradients of surrogates: the row's margin, or its difficulty, held fixed.
#[test]
fn surrogate_gradients() -> Result<()> {
    use candle_margin_loss::{AngleRange, InstanceGate, Margin};
    let (n, c, d) = (6, 5, 4);
    for seed in 0..5 {
        let inputs = Inputs::random(n, c, d, false, seed)?;
        let base = || {
            MarginLoss::builder(c)
                .scale(8.0)
                .margin(Margin::ArcFace { m: 0.4 })
                .instance_gate(InstanceGate::Positives)
                .angle_range(AngleRange::Wrap)
        };
        let targets = |gradient| base().target_gradient(gradient).build();
        let exact = fused(&targets(TargetGradient::Exact)?, &inputs, None)?;
        let detached = fused(&targets(TargetGradient::DetachDifficulty)?, &inputs, None)?;
        let straight = fused(&targets(TargetGradient::StraightThrough)?, &inputs, None)?;
        assert_eq!((&exact.loss, &exact.loss), (&detached.loss, &straight.loss), "the loss itself is the same");

        // Detached: each row with its own angular margin a_i, as a per-class margin of a batch of that row alone.
        // Straight through: each row with its own cosine margin B = c − ψ.
        let (mut dx_detached, mut dx_straight) = (Vec::new(), Vec::new());
        for i in 0..n {
            let cosine = exact.target_cosine[i];
            let a = 0.4 * (1.0 + (1.0 - cosine) / 2.0);
            let row = Inputs { x: inputs.x.narrow(0, i, 1)?, y: inputs.y.narrow(0, i, 1)?, ..inputs.clone() };
            let single = |angular: f64, additive: f64| -> Result<Vec<f64>> {
                let margin = Margin::PerClass { m1: 1.0, angular: vec![angular; c], cosine: vec![additive; c] };
                Ok(off_tape(&MarginLoss::builder(c).scale(8.0).margin(margin).build()?, &row)?.dx)
            };
            dx_detached.extend(single(a, 0.0)?.iter().map(|v| v / n as f64));
            dx_straight.extend(single(0.0, cosine - (cosine.acos() + a).cos())?.iter().map(|v| v / n as f64));
        }
        for (name, actual, expected) in
            [("detached", &detached.dx, &dx_detached), ("straight", &straight.dx, &dx_straight)]
        {
            let error = common::distance(actual, expected);
            assert!(error <= 1e-9 * common::size(expected).max(1e-3), "{name}: {error}");
            assert!(common::distance(actual, &exact.dx) > 1e-6, "{name} differs from exact");
        }
    }
    Ok(())
}

/// A gradient that one pass made for a mean must not serve per-row upstreams: rows of different upstream, 0 among them, and stride 0.
#[test]
fn per_row_upstreams() -> Result<()> {
    let (n, c, d) = (9, 7, 5);
    let inputs = Inputs::random(n, c, d, true, 3)?;
    let per_row = MarginLoss::builder(c).reduction(Reduction::None).ignore_index(IGNORE).build()?;
    let sum = MarginLoss::builder(c).reduction(Reduction::Sum).ignore_index(IGNORE).build()?;
    let upstream: Vec<f64> = (0..n).map(|i| if i % 4 == 1 { 0.0 } else { i as f64 - 3.3 }).collect();

    // The same through sample weights, for those that are not negative.
    let positive: Vec<f64> = upstream.iter().map(|u| u.abs()).collect();
    let weighted = Inputs { sample_weights: Some(Tensor::new(positive.as_slice(), &device())?), ..inputs.clone() };
    let expected = off_tape(&sum, &weighted)?;
    let actual = fused(&per_row, &inputs, Some(&positive))?;
    assert!(common::distance(&actual.dx, &expected.dx) < 1e-12 && common::distance(&actual.dw, &expected.dw) < 1e-12);

    // `sum_all` sends an upstream of stride 0.
    let (x, w) = (Var::from_tensor(&inputs.x)?, Var::from_tensor(&inputs.w)?);
    let grads = per_row.forward(&x, &w, &inputs.y)?.sum_all()?.backward()?;
    let expected = off_tape(&sum, &inputs)?;
    assert!(common::distance(&flat(grads.get(&x).unwrap()), &expected.dx) < 1e-12);
    assert!(common::distance(&flat(grads.get(&w).unwrap()), &expected.dw) < 1e-12);
    Ok(())
}

/// The upstream of a scalar loss reaches the gradients: scaled losses, sums of losses, repeated backward.
#[test]
fn scalar_upstreams_and_repeated_backward() -> Result<()> {
    let (n, c, d) = (5, 4, 3);
    let inputs = Inputs::random(n, c, d, false, 11)?;
    let loss = MarginLoss::cosine_ce(c, 10.0)?;
    let (x, w) = (Var::from_tensor(&inputs.x)?, Var::from_tensor(&inputs.w)?);
    let value = loss.forward(&x, &w, &inputs.y)?;
    let once = flat(value.backward()?.get(&x).unwrap());
    assert_eq!(once, flat(value.backward()?.get(&x).unwrap()), "a second backward");
    let scaled = ((&value * -2.5)? + &value)?.backward()?;
    let expected: Vec<f64> = once.iter().map(|g| -1.5 * g).collect();
    assert!(common::distance(&flat(scaled.get(&x).unwrap()), &expected) < 1e-14);
    Ok(())
}
