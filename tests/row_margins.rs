//! Margins of rows: through every call and its gradients, and the values of AdaFace, MagFace and ElasticFace by their formulas.
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::row_margins::{AdaFace, ElasticFace, MagFace};
use candle_margin_loss::{MarginLoss, MarginLossBuilder, Path, Reduction, RowInputs, reference};
use common::{Inputs, Result, builders, composed, device, distance, flat, size};

/// Losses of the common table that take row margins.
fn taking(classes: usize) -> Vec<(&'static str, MarginLossBuilder)> {
    let takes = |builder: &MarginLossBuilder| builder.clone().build().unwrap().takes_row_margins();
    let taking: Vec<_> = builders(classes).into_iter().filter(|(_, builder)| takes(builder)).collect();
    assert_eq!(taking.len(), 5);
    taking
}

/// `backward`, `loss_and_grads` and the tape give the same gradients to margins that are computed from something, with an upstream gradient.
#[test]
fn every_call_has_their_gradient() -> Result<()> {
    for (n, c, d) in [(19, 7, 11), (1, 3, 4)] {
        every_call_at(n, c, d)?;
    }
    Ok(())
}

fn every_call_at(n: usize, c: usize, d: usize) -> Result<()> {
    for (name, builder) in taking(c) {
        for path in [Path::Auto, Path::Composed] {
            let loss = builder.clone().path(path).build()?;
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), 5)?.with_sample_weights(3)?;
            let expected = composed(&loss, &inputs, None)?;
            let (x, w) = (Var::from_tensor(&inputs.x)?, Var::from_tensor(&inputs.w)?);
            // Margins of a variable by half.
            let doubled = Var::from_tensor(&(inputs.margins.as_ref().ok_or("margins")? * 2.0)?)?;
            let margins = (doubled.as_tensor() * 0.5)?;
            let rows = inputs.rows_with(&loss, Some(&margins));
            let (output, grads) = loss.backward_scaled(&x, &w, &inputs.y, rows, 3.0)?;
            let expect = |what: &str, actual: &Tensor, expected: &[f64], factor: f64| {
                let scaled: Vec<f64> = expected.iter().map(|v| v * factor).collect();
                let error = distance(&flat(actual), &scaled);
                assert!(error <= 1e-9 * size(&scaled).max(1e-3), "{name} {path:?}: {what} {error:e}");
            };
            expect("dX", grads.get(&x).ok_or("dX")?, &expected.dx, 3.0);
            expect("dW", grads.get(&w).ok_or("dW")?, &expected.dw, 3.0);
            expect("doubled", grads.get(&doubled).ok_or("margins")?, &expected.d_margins, 1.5);
            expect("margin_gradient", output.margin_gradient.as_ref().ok_or("none")?, &expected.d_margins, 3.0);
            // Margins alone on the tape, and their own variable.
            let own = Var::from_tensor(&margins)?;
            let rows = inputs.rows_with(&loss, Some(&own));
            let (_, grads) = loss.backward(&inputs.x, &inputs.w, &inputs.y, rows)?;
            expect("own", grads.get(&own).ok_or("own")?, &expected.d_margins, 1.0);
            assert!(grads.get(&inputs.x).is_none());
            let output = loss.output(&inputs.x, &inputs.w, &inputs.y, rows)?;
            let grads = output.loss.sum_all()?.backward()?;
            expect("the tape's", grads.get(&own).ok_or("own")?, &expected.d_margins, 1.0);
            // Per-sample losses, each with an upstream of its own.
            let upstream: Vec<f64> = (0..n).map(|i| 1.0 - 0.1 * i as f64).collect();
            let upstream = Tensor::new(upstream, &device())?;
            let grads = (output.per_sample * &upstream)?.sum_all()?.backward()?;
            let plain = reference::forward(&loss, &inputs.x, &inputs.w, &inputs.y, rows)?;
            let truth = (plain.per_sample * &upstream)?.sum_all()?.backward()?;
            expect("per sample", grads.get(&own).ok_or("own")?, &flat(truth.get(&own).ok_or("own")?), 1.0);
        }
    }
    Ok(())
}

/// Any float type, any strides, and gradients left to backward.
#[test]
fn margins_of_every_type_and_layout() -> Result<()> {
    let (n, c, d) = (13, 5, 8);
    let inputs = Inputs::random(n, c, d, false, 8)?;
    // What every float type holds.
    let values: Vec<f32> = (0..2 * n).map(|i| (i % 7) as f32 * 0.125 - 0.25).collect();
    let margins = Tensor::from_vec(values, (n, 2), &device())?;
    let loss = MarginLoss::builder(c).row_margins(true).build()?;
    let late = MarginLoss::builder(c).row_margins(true).recompute_gradients(true).build()?;
    for to in [DType::F64, DType::F32, DType::BF16] {
        let inputs = inputs.to(to)?;
        let run = |loss: &MarginLoss, margins: &Tensor| -> Result<_> {
            common::fused(loss, &Inputs { margins: Some(margins.clone()), ..inputs.clone() }, None)
        };
        let expected = run(&loss, &margins)?;
        for dtype in [DType::F64, DType::BF16, DType::F16] {
            let given = margins.to_dtype(dtype)?;
            let wide = Tensor::cat(&[&given, &given.zeros_like()?, &given], 1)?;
            for view in [given.clone(), given.t()?.contiguous()?.t()?, wide.narrow(1, 4, 2)?] {
                let actual = run(&loss, &view)?;
                assert_eq!(
                    (&actual.loss, &actual.dx, &actual.dw),
                    (&expected.loss, &expected.dx, &expected.dw),
                    "{dtype:?}"
                );
            }
        }
        let late = run(&late, &margins)?;
        assert_eq!(late.loss, expected.loss, "{to:?}");
        let error = distance(&late.d_margins, &expected.d_margins);
        assert!(error <= 1e-6 * size(&expected.d_margins), "{to:?}: {error:e}");
    }
    Ok(())
}

/// A margin of the rows is the same margin of their classes.
#[test]
fn a_margin_of_rows_is_one_of_classes() -> Result<()> {
    use candle_margin_loss::Margin;
    let (n, c, d) = (23, 6, 9);
    let inputs = Inputs::random(n, c, d, false, 2)?;
    let angular: Vec<f64> = (0..c).map(|j| 0.1 * j as f64 - 0.2).collect();
    let cosine: Vec<f64> = (0..c).map(|j| 0.3 - 0.1 * j as f64).collect();
    let table: Vec<f64> = angular.iter().zip(&cosine).flat_map(|(&a, &b)| [a, b]).collect();
    let table = Var::from_vec(table, (c, 2), &device())?;
    let by_class = MarginLoss::builder(c).margin(Margin::PerClass { m1: 1.0, angular, cosine }).build()?;
    let by_row = MarginLoss::builder(c).row_margins(true).build()?;
    let margins = table.index_select(&inputs.y.to_dtype(DType::U32)?, 0)?;
    let expected = by_class.output(&inputs.x, &inputs.w, &inputs.y, None)?;
    let actual = by_row.output(&inputs.x, &inputs.w, &inputs.y, RowInputs::default().margins(&margins))?;
    assert!(distance(&flat(&actual.per_sample), &flat(&expected.per_sample)) < 1e-12);
    // The learnt table's gradient: its rows' by class.
    let grads = actual.loss.backward()?;
    let rows = by_row.loss_and_grads(&inputs.x, &inputs.w, &inputs.y, RowInputs::default().margins(&margins))?.0;
    let mut summed = vec![0.0; 2 * c];
    let of_rows = flat(rows.margin_gradient.as_ref().ok_or("gradient")?);
    for (row, label) in inputs.y.to_vec1::<i64>()?.into_iter().enumerate() {
        (0..2).for_each(|k| summed[2 * label as usize + k] += of_rows[2 * row + k]);
    }
    assert!(distance(&flat(grads.get(&table).ok_or("table")?), &summed) < 1e-12);
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> Result<()> {
    let (n, c, d) = (4, 3, 5);
    let inputs = Inputs::random(n, c, d, false, 1)?;
    let plain = MarginLoss::builder(c).build()?;
    let taking = MarginLoss::builder(c).row_margins(true).ignore_index(0).build()?;
    let error = |loss: &MarginLoss, margins: Option<&Tensor>| {
        let rows = margins.map_or(RowInputs::default(), |margins| RowInputs::default().margins(margins));
        loss.output(&inputs.x, &inputs.w, &inputs.y, rows).map(|_| ()).unwrap_err().to_string()
    };
    let zeros = Tensor::zeros((n, 2), DType::F32, &device())?;
    assert!(error(&plain, Some(&zeros)).contains("takes none"));
    assert!(error(&taking, None).contains("brings none"));
    assert!(error(&taking, Some(&zeros.narrow(0, 1, 3)?)).contains("(4, 2)"));
    assert!(error(&taking, Some(&zeros.to_dtype(DType::U32)?)).contains("u32"));
    let taking = MarginLoss::builder(c).row_margins(true).build()?;
    for (row, bad) in [(0, [3.2f32, 0.0]), (1, [0.0, 2.1]), (2, [f32::NAN, 0.0]), (3, [0.0, f32::NEG_INFINITY])] {
        let mut values = vec![0f32; 2 * n];
        values[2 * row..][..2].copy_from_slice(&bad);
        let message = error(&taking, Some(&Tensor::from_vec(values, (n, 2), &device())?));
        assert!(message.contains(&format!("margins of row {row}")), "{message}");
    }
    // Not of a row that is ignored.
    let ignoring = MarginLoss::builder(c).row_margins(true).ignore_index(7).build()?;
    let y = Tensor::new(&[0i64, 7, 1, 2], &device())?;
    let margins = Tensor::new(&[[0f32, 0.0], [f32::NAN, 9.0], [0.5, 0.1], [0.0, 0.0]], &device())?;
    let rows = RowInputs::default().margins(&margins);
    let (output, dx, _) = ignoring.loss_and_grads(&inputs.x, &inputs.w, &y, rows)?;
    let gradient = flat(output.margin_gradient.as_ref().ok_or("gradient")?);
    assert!(flat(&dx).iter().chain(&gradient).all(|v| v.is_finite()) && gradient[2..4] == [0.0, 0.0]);
    Ok(())
}

fn rows_of_norms(norms: &[f64], d: usize) -> Result<Tensor> {
    let unit = 1.0 / (d as f64).sqrt();
    let values: Vec<f64> =
        norms.iter().flat_map(|norm| (0..d).map(move |k| norm * unit * if k % 2 == 0 { 1.0 } else { -1.0 })).collect();
    Ok(Tensor::from_vec(values, (norms.len(), d), &device())?)
}

#[test]
fn ada_face_by_its_formula() -> Result<()> {
    let mut ada_face = AdaFace::default();
    ada_face.momentum = 0.3;
    let (mut mean, mut deviation) = (20.0f64, 100.0f64);
    for norms in [vec![5.0, 30.0, 180.0, 1e-5], vec![12.0, 14.0, 19.0, 11.0], vec![9.0]] {
        let margins = flat(&ada_face.margins(&rows_of_norms(&norms, 6)?)?);
        let clipped: Vec<f64> = norms.iter().map(|norm| norm.clamp(1e-3, 100.0)).collect();
        let n = clipped.len() as f64;
        let batch_mean = clipped.iter().sum::<f64>() / n;
        if n > 1.0 {
            let variance = clipped.iter().map(|norm| (norm - batch_mean).powi(2)).sum::<f64>() / (n - 1.0);
            deviation = 0.3 * variance.sqrt() + 0.7 * deviation;
        }
        mean = 0.3 * batch_mean + 0.7 * mean;
        for (row, norm) in clipped.iter().enumerate() {
            let z = (0.333 * (norm - mean) / (deviation + 1e-3)).clamp(-1.0, 1.0);
            assert!((margins[2 * row] + 0.4 * z).abs() < 1e-9 && (margins[2 * row + 1] - 0.4 - 0.4 * z).abs() < 1e-9);
        }
        let (found_mean, found_deviation) = ada_face.statistics()?;
        assert!((found_mean - mean).abs() < 1e-9 && (found_deviation - deviation).abs() < 1e-9);
    }
    // Taken up again, the next batch is the same.
    let mut resumed = AdaFace::default();
    resumed.momentum = 0.3;
    resumed.set_statistics(mean, deviation);
    let next = rows_of_norms(&[3.0, 40.0], 6)?;
    assert!(distance(&flat(&resumed.margins(&next)?), &flat(&ada_face.margins(&next)?)) < 1e-9);
    // In half precision the norms are not rounded, and the margins fit the loss.
    let x = next.to_dtype(DType::BF16)?;
    let loss = AdaFace::builder(2).build()?;
    let (w, y) =
        (Tensor::randn(0f32, 1., (2, 6), &Device::Cpu)?.to_device(&device())?, Tensor::new(&[0u32, 1], &device())?);
    let margins = ada_face.margins(&x)?;
    let out = loss.output(&x, &w.to_dtype(DType::BF16)?, &y, RowInputs::default().margins(&margins))?;
    assert!(out.loss.to_scalar::<f32>()?.is_finite());
    Ok(())
}

/// The whole gradient of MagFace, the norm's part among it, beside central differences of its loss.
#[test]
fn mag_face_through_the_norm() -> Result<()> {
    let (n, c, d) = (7, 4, 5);
    let mag_face = MagFace { norms: (2.0, 9.0), margins: (0.2, 0.9) };
    let loss = MarginLoss::builder(c)
        .scale(8.0)
        .row_margins(true)
        .angle_range(candle_margin_loss::AngleRange::Linear)
        .build()?;
    let mut inputs = Inputs::random(n, c, d, false, 3)?;
    let norms: Vec<f64> = vec![1.0, 3.0, 4.5, 6.0, 8.0, 12.0, 5.0]; // two of them clamped
    let own = inputs.x.sqr()?.sum_keepdim(1)?.sqrt()?;
    let wanted = Tensor::new(norms.as_slice(), &device())?.unsqueeze(1)?;
    inputs.x = inputs.x.broadcast_div(&own)?.broadcast_mul(&wanted)?;
    let total = |x: &Tensor| -> candle_core::Result<Tensor> {
        let margins = mag_face.margins(x)?;
        let value = loss.output(x, &inputs.w, &inputs.y, RowInputs::default().margins(&margins))?.loss;
        value + (mag_face.regularizer(x)? * 20.0)?
    };
    let margins = flat(&mag_face.margins(&inputs.x)?);
    for (row, norm) in norms.iter().enumerate() {
        let expected = 0.7 / 7.0 * (norm.clamp(2.0, 9.0) - 2.0) + 0.2;
        assert!((margins[2 * row] - expected).abs() < 1e-9 && margins[2 * row + 1] == 0.0);
    }
    let regularizer =
        norms.iter().map(|norm| norm.clamp(2.0, 9.0)).map(|norm| norm / 81.0 + 1.0 / norm).sum::<f64>() / 7.0;
    assert!((flat(&mag_face.regularizer(&inputs.x)?)[0] - regularizer).abs() < 1e-9);
    let x = Var::from_tensor(&inputs.x)?;
    let gradient = flat(total(&x)?.backward()?.get(&x).ok_or("dX")?);
    let values = flat(&inputs.x);
    for i in 0..n * d {
        let at = |step: f64| -> Result<f64> {
            let mut moved = values.clone();
            moved[i] += step;
            Ok(flat(&total(&Tensor::from_vec(moved, (n, d), &device())?)?)[0])
        };
        let numeric = (at(1e-5)? - at(-1e-5)?) / 2e-5;
        assert!((numeric - gradient[i]).abs() < 1e-6, "{i}: {numeric} {}", gradient[i]);
    }
    // The one call gives the same.
    let margins = mag_face.margins(&x)?;
    let (_, grads) = loss.backward(&x, &inputs.w, &inputs.y, RowInputs::default().margins(&margins))?;
    let rest = flat((mag_face.regularizer(&x)? * 20.0)?.backward()?.get(&x).ok_or("dX")?);
    let sum: Vec<f64> = flat(grads.get(&x).ok_or("dX")?).iter().zip(&rest).map(|(a, b)| a + b).collect();
    assert!(distance(&sum, &gradient) < 1e-9);
    Ok(())
}

#[test]
fn elastic_face_draws() -> Result<()> {
    let (n, c, d) = (4000, 5, 6);
    let inputs = Inputs::random(n, c, d, false, 6)?;
    for (mut elastic, at) in [(ElasticFace::arc(11), 0), (ElasticFace::cos(11), 1)] {
        let (mean, deviation) = (elastic.mean, elastic.deviation);
        let first = flat(&elastic.margins(&inputs.x, &inputs.w, &inputs.y)?);
        let second = flat(&elastic.margins(&inputs.x, &inputs.w, &inputs.y)?);
        assert_ne!(first, second);
        let mut again = ElasticFace { batch: 1, ..elastic.clone() };
        assert_eq!(flat(&again.margins(&inputs.x, &inputs.w, &inputs.y)?), second, "the state is the batch's number");
        let drawn: Vec<f64> = first.iter().skip(at).step_by(2).copied().collect();
        assert!(first.iter().skip(1 - at).step_by(2).all(|&v| v == 0.0));
        let found = drawn.iter().sum::<f64>() / n as f64;
        let spread = (drawn.iter().map(|v| (v - found).powi(2)).sum::<f64>() / n as f64).sqrt();
        // Four standard errors.
        assert!((found - mean).abs() < 4.0 * deviation / (n as f64).sqrt(), "{found}");
        assert!((spread / deviation - 1.0).abs() < 4.0 / (2.0 * n as f64).sqrt(), "{spread}");
        let mut sorted = ElasticFace { sorted: true, batch: 0, ..elastic };
        let plus = flat(&sorted.margins(&inputs.x, &inputs.w, &inputs.y)?);
        let cosine = flat(&MarginLoss::cosine_ce(c, 1.0)?.output(&inputs.x, &inputs.w, &inputs.y, None)?.target_cosine);
        let mut rows: Vec<usize> = (0..n).collect();
        rows.sort_by(|&a, &b| cosine[b].total_cmp(&cosine[a]));
        let by_cosine: Vec<f64> = rows.iter().map(|&row| plus[2 * row + at]).collect();
        assert!(
            by_cosine.windows(2).filter(|pair| pair[0] > pair[1]).count() <= 4,
            "the farthest rows get the most, but for ties of rounding"
        );
        let order = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values
        };
        assert_eq!(order(plus), order(first), "the same draws");
    }
    // N = 0, and a batch with an ignored label.
    let empty = (inputs.x.narrow(0, 0, 0)?, inputs.y.narrow(0, 0, 0)?);
    assert_eq!(ElasticFace::arc(1).margins(&empty.0, &inputs.w, &empty.1)?.dims(), [0, 2]);
    let loss = ElasticFace::builder(c).reduction(Reduction::Sum).ignore_index(-1).build()?;
    let y = Tensor::new(&[0i64, -1, 3], &device())?;
    let x = inputs.x.narrow(0, 0, 3)?;
    let margins = ElasticFace { sorted: true, ..ElasticFace::cos(1) }.margins(&x, &inputs.w, &y)?;
    assert!(flat(&loss.output(&x, &inputs.w, &y, RowInputs::default().margins(&margins))?.loss)[0].is_finite());
    Ok(())
}
