//! What users do beside one plain step: loss scaling, accumulation, several heads, priors of −∞, classes without samples, one call for loss and gradients.
//!
//! Everything runs on the CPU, and with `MARGIN_LOSS_DEVICE=cuda` on a CUDA device.
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Tensor, Var};
use candle_margin_loss::{
    AngleRange, ClassCounts, ClassWeights, CosineClassifier, Margin, MarginLoss, MarginLossBuilder, Path, Prior,
    Reduction,
};
use candle_nn::{VarBuilder, VarMap};
use common::{
    Inputs, Outcome, Result, assert_close, builders, composed, counts, device, distance, epsilon, flat, fused,
    off_tape, on_cuda, size,
};

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖a − b‖ / ‖b‖
fn relative(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(b)
}

fn times(values: &[f64], factor: f64) -> Vec<f64> {
    values.iter().map(|v| v * factor).collect()
}

/// What a half type's gradient is when it is made in f64 of the same inputs, multiplied, and rounded once.
fn once_rounded(loss: &MarginLoss, inputs: &Inputs, upstream: f64) -> Result<(Vec<f64>, Vec<f64>)> {
    let exact = off_tape(loss, &inputs.to(DType::F64)?)?;
    let round = |values: &[f64], dtype| -> Result<Vec<f64>> {
        Ok(flat(&Tensor::new(times(values, upstream), &device())?.to_dtype(dtype)?))
    };
    Ok((round(&exact.dx, inputs.x.dtype())?, round(&exact.dw, inputs.w.dtype())?))
}

#[test]
fn a_half_types_gradient_is_multiplied_before_it_is_rounded() -> Result<()> {
    // f16: at a loss scale of 65536 what overflows after rounding does not before; at 1024 what is subnormal before is not after.
    let inputs = Inputs {
        x: Tensor::new(&[[40f32, 1.0]], &device())?.to_dtype(DType::F16)?,
        w: Tensor::new(&[[1f32, 0.0], [0.2, 1.0]], &device())?.to_dtype(DType::F16)?,
        y: Tensor::new(&[0i64], &device())?,
        sample_weights: None,
        margins: None,
    };
    let loss = MarginLoss::cosine_ce(2, 16.0)?;
    for upstream in [1.0, 0.3, 1024.0, 65536.0] {
        let (dx, _) = once_rounded(&loss, &inputs, upstream)?;
        let found = fused(&loss, &inputs, Some(&[upstream]))?;
        assert!(relative(&found.dx, &dx) < 2e-3, "{upstream}: {:?}, expected {dx:?}", found.dx);
    }
    let found = fused(&loss, &inputs, Some(&[65536.0]))?.dx;
    assert!((found[0] / -0.00252 - 1.0).abs() < 0.02 && (found[1] / 0.10097 - 1.0).abs() < 0.002, "{found:?}");
    Ok(())
}

/// A confident batch: most of its f16 gradients are 0 unless the loss is scaled, and are not where it is.
#[test]
fn loss_scaling_rescues_small_gradients() -> Result<()> {
    let (n, c, d) = if on_cuda() { (64, 20, 64) } else { (256, 100, 512) };
    let mut inputs = Inputs::random(n, c, d, false, 5)?;
    let centres = inputs.w.index_select(&inputs.y.to_dtype(DType::U32)?, 0)?;
    inputs.x = (centres * 4.0)?.add(&(inputs.x.clone() * 0.05)?)?;
    let loss = MarginLoss::cosine_ce(c, 16.0)?;
    for dtype in [DType::F16, DType::BF16] {
        let inputs = inputs.to(dtype)?;
        // On CUDA the products themselves are of halves and TF32: what is expected is the same kernels' gradient where it neither overflows nor is
        // subnormal, by another factor.
        let scaled = fused(&loss, &inputs, Some(&[4096.0]))?;
        for upstream in [0.3, 1.0, 256.0, 4096.0, 65504.0] {
            let round = |values: &[f64]| -> Result<Vec<f64>> {
                Ok(flat(&Tensor::new(times(values, upstream / 4096.0), &device())?.to_dtype(dtype)?))
            };
            let (dx, dw) = match on_cuda() {
                true => (round(&scaled.dx)?, round(&scaled.dw)?),
                false => once_rounded(&loss, &inputs, upstream)?,
            };
            let found = fused(&loss, &inputs, Some(&[upstream]))?;
            for (what, found, expected) in [("dX", &found.dx, &dx), ("dW", &found.dw, &dw)] {
                let error = relative(found, expected);
                let longer = norm(found) / norm(expected) - 1.0;
                let label = format!("{dtype:?} · {upstream}: {what}");
                // Against rounding in itself: two roundings of nearly equal numbers differ by an ulp where they fall on two sides of a tie.
                // What is expected on CUDA has been rounded before: where f16 is subnormal, one in some hundred elements is on the other side of a tie.
                let most = match on_cuda() {
                    true if dtype == DType::F16 && upstream <= 1.0 => 4.0,
                    true => 1.0,
                    false => 0.5,
                };
                assert!(error < most * epsilon(dtype), "{label}: L2 error {error:e}");
                assert!(longer.abs() < 1e-3, "{label}: longer by {longer:e}");
                let zeros = |values: &[f64]| values.iter().filter(|v| **v == 0.0).count();
                assert!(zeros(found) <= zeros(expected) + n * d / 100, "{label}: {} zeros", zeros(found));
            }
        }
    }
    Ok(())
}

/// The same gradients from a loss that leaves them to backward.
#[test]
fn recomputed_gradients() -> Result<()> {
    let (n, c, d) = (33, 70, 40);
    for (name, builder) in builders(c) {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), 12)?.to(dtype)?;
            let (at_once, later) = (builder.clone().build()?, builder.clone().recompute_gradients(true).build()?);
            let upstream: Option<&[f64]> = if name.contains("per row") { None } else { Some(&[-0.3]) };
            let (a, b) = (fused(&at_once, &inputs, upstream)?, fused(&later, &inputs, upstream)?);
            // The upstream gradient comes before the sums of a row's gradient here, after them there.
            assert_close(&format!("{name} {dtype:?}"), &b, &a, 64.0 * epsilon(dtype));
        }
    }
    Ok(())
}

/// `per_sample` is on the tape, whatever the reduction: its gradients are those of [`Reduction::None`].
#[test]
fn per_sample_losses_have_gradients() -> Result<()> {
    let (n, c, d) = (20, 33, 24);
    let weights: Vec<f64> = (0..n).map(|i| 0.1 + (i % 7) as f64 * 0.3).collect();
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let inputs = Inputs::random(n, c, d, true, 6)?.to(dtype)?;
        let build = |reduction| MarginLoss::builder(c).ignore_index(common::IGNORE).reduction(reduction).build();
        let expected = fused(&build(Reduction::None)?, &inputs, Some(&weights))?;
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::WeightedMean] {
            let (x, w) = (Var::from_tensor(&inputs.x)?, Var::from_tensor(&inputs.w)?);
            let out = build(reduction)?.output(&x, &w, &inputs.y, None)?;
            let by = common::upstream(&out.per_sample, Some(&weights))?;
            let grads = by.backward()?;
            let (dx, dw) = (grads.get(&x).ok_or("no dX")?, grads.get(&w).ok_or("no dW")?);
            for (what, found, expected) in [("dX", dx, &expected.dx), ("dW", dw, &expected.dw)] {
                let bound = 8.0 * epsilon(dtype) * size(expected);
                assert!(distance(&flat(found), expected) <= bound, "{reduction:?} {dtype:?} {what}");
            }
        }
    }
    Ok(())
}

/// A prior of −∞, or far below the others, is a loss over the classes that are left.
#[test]
fn a_class_that_is_out_is_not_there() -> Result<()> {
    let (n, d) = (12, 10);
    let tables = [
        vec![0.5, f64::NEG_INFINITY, -0.25, f64::NEG_INFINITY],
        vec![0.5, -1e300, -0.25, -1e300],
        vec![0.5, -1e20, -0.25, -1e25],
    ];
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let all = Inputs::random(n, 4, d, false, 9)?.to(dtype)?;
        let labels: Vec<i64> = (0..n as i64).map(|i| i % 2).collect();
        let left = Inputs {
            w: Tensor::cat(&[&all.w.narrow(0, 0, 1)?, &all.w.narrow(0, 2, 1)?], 0)?,
            y: Tensor::new(labels.clone(), &device())?,
            ..all.clone()
        };
        let all = Inputs { y: Tensor::new(labels.iter().map(|y| 2 * y).collect::<Vec<_>>(), &device())?, ..all };
        let build = |table: &[f64]| MarginLoss::builder(table.len()).prior(Prior::LogPrior(table.to_vec()));
        let expected = off_tape(&build(&[0.5, -0.25]).build()?, &left)?;
        for table in &tables {
            let margin = build(table);
            for margin in [margin.clone().build()?, margin.path(Path::Composed).build()?] {
                let found = off_tape(&margin, &all)?;
                let label = format!("{table:?} {dtype:?} {margin:?}");
                let bound = |of: &[f64]| 16.0 * epsilon(dtype) * size(of).max(1e-3);
                assert!(distance(&found.loss, &expected.loss) <= bound(&expected.loss), "{label}");
                assert!(distance(&found.dx, &expected.dx) <= bound(&expected.dx), "{label}: dX");
                let (rows, expected_rows): (Vec<_>, Vec<_>) =
                    (found.dw.chunks(d).collect(), expected.dw.chunks(d).collect());
                for (class, of) in [(0, 0), (2, 1)] {
                    assert!(distance(rows[class], expected_rows[of]) <= bound(&expected.dw), "{label}: dW of {class}");
                }
                for class in [1, 3] {
                    assert!(rows[class].iter().all(|v| *v == 0.0), "{label}: a class that is out has a gradient");
                }
            }
        }
    }
    // The target's class alone is left: the loss is 0 and so are the gradients, as for C = 1.
    let inputs = Inputs { y: Tensor::new(vec![0i64; n], &device())?, ..Inputs::random(n, 4, d, false, 2)? };
    for dtype in [DType::F64, DType::F32] {
        let prior = Prior::LogPrior(vec![0.0, -1e300, -1e300, -1e300]);
        let found = off_tape(&MarginLoss::builder(4).prior(prior).build()?, &inputs.to(dtype)?)?;
        assert!(
            found.parts().iter().all(|(part, values)| *part == "target cosine" || values.iter().all(|v| *v == 0.0))
        );
    }
    Ok(())
}

/// A class without a training sample leaves the others' margins, priors and weights as they would be without it.
#[test]
fn a_class_without_samples() -> Result<()> {
    let (n, d) = (10, 8);
    let (with, without) = (ClassCounts::new(vec![100, 0, 7, 1])?, ClassCounts::new(vec![100, 7, 1])?);
    let all = Inputs::random(n, 4, d, false, 4)?;
    let labels: Vec<i64> = (0..n as i64).map(|i| i % 3).collect();
    let others = Tensor::new(&[0u32, 2, 3], &device())?;
    let left = Inputs { w: all.w.index_select(&others, 0)?, y: Tensor::new(labels.clone(), &device())?, ..all.clone() };
    let all =
        Inputs { y: Tensor::new(labels.iter().map(|&y| y + i64::from(y > 0)).collect::<Vec<_>>(), &device())?, ..all };
    // No instance gate: what is predicted is a matter of raw cosines, to every centre that there is.
    let build = |counts: &ClassCounts| {
        let margin = Margin::Dbm { k: 0.3, tau: 1.0 };
        let builder = MarginLoss::builder(counts.classes()).counts(counts).margin(margin);
        builder.prior(Prior::BalancedSoftmax { tau: 1.0 }).build()
    };
    let (found, expected) = (off_tape(&build(&with)?, &all)?, off_tape(&build(&without)?, &left)?);
    assert!(distance(&found.loss, &expected.loss) < 1e-12, "{:?} {:?}", found.loss, expected.loss);
    assert!(distance(&found.dx, &expected.dx) < 1e-12 * size(&expected.dx).max(1.0));
    // Without a prior it is a class like any other, with no margin of its own.
    let margin = MarginLoss::dbm_ce(&with, 0.3)?;
    let row = Inputs { y: Tensor::new(vec![1i64; n], &device())?, ..all };
    let plain = MarginLoss::builder(4).build()?;
    assert_eq!(off_tape(&margin, &row)?.loss, off_tape(&plain, &row)?.loss);
    assert!(MarginLoss::builder(4).counts(&with).margin(Margin::Ldam { max_m: 0.5 }).build().is_ok());
    Ok(())
}

/// What the builder takes makes finite numbers in f32.
#[test]
fn the_ends_of_every_range_are_finite() -> Result<()> {
    let c = 5;
    let counts = counts(c);
    let new = || MarginLoss::builder(c).counts(&counts);
    let gated = |lambda| {
        let gate = candle_margin_loss::InstanceGate::Positives;
        new().margin(Margin::Dbm { k: std::f64::consts::PI, tau: 0.0 }).instance_gate(gate).instance_strength(lambda)
    };
    let weights = |value| ClassWeights::PerClass(vec![value; 5]);
    let cases: Vec<(&str, MarginLossBuilder)> = vec![
        ("the largest scale", new().scale(1e9)),
        ("a tiny scale", new().scale(1e-300)),
        ("the largest λ", gated(1e6)),
        ("the largest prior's exponent", new().prior(Prior::BalancedSoftmax { tau: 1e6 })),
        ("τ of DBM", new().margin(Margin::Dbm { k: 0.3, tau: f64::MAX })),
        ("far priors", new().prior(Prior::LogPrior(vec![0.0, -1e17, 1e17, 3.0, -5.0]))),
        ("the largest weights", new().class_weights(weights(1e9))),
        ("the largest weights, weighted mean", new().class_weights(weights(1e9)).reduction(Reduction::WeightedMean)),
        ("weights of 0", new().class_weights(weights(0.0)).reduction(Reduction::WeightedMean)),
        ("everything", gated(1e6).scale(1e9).class_weights(weights(1e9)).reduction(Reduction::Sum)),
        ("no workspace", new().workspace_bytes(0)),
        ("all workspace", new().workspace_bytes(usize::MAX)),
    ];
    for (name, builder) in cases {
        if name == "all workspace" && on_cuda() {
            continue; // the device's memory is its limit
        }
        for dtype in [DType::F32, DType::F64] {
            let mut inputs = Inputs::random(9, c, 6, false, 1)?.to(dtype)?;
            if name == "far priors" {
                inputs.y = Tensor::new(vec![2i64; 9], &device())?;
            }
            let found = fused(&builder.clone().build()?, &inputs, None)?;
            for (part, values) in found.parts() {
                assert!(values.iter().all(|v| v.is_finite()), "{name}, {dtype:?}: {part} {values:?}");
            }
        }
    }
    Ok(())
}

/// No row gives 0, and not −0.
#[test]
fn an_empty_batch_is_a_plain_zero() -> Result<()> {
    let (x, w) = (Tensor::zeros((0, 4), DType::F32, &device())?, Tensor::ones((3, 4), DType::F32, &device())?);
    let y = Tensor::zeros(0, DType::U32, &device())?;
    let value = MarginLoss::cosine_ce(3, 30.0)?.forward(&x, &w, &y)?.to_scalar::<f32>()?;
    assert_eq!(value.to_bits(), 0);
    Ok(())
}

/// dX and dW in one flat buffer, in either order, with a gap or none.
#[test]
fn gradients_in_one_buffer() -> Result<()> {
    let (n, c, d) = (7, 5, 6);
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let inputs = Inputs::random(n, c, d, false, 3)?.to(dtype)?;
        let loss = MarginLoss::arc_face(c, 16.0, 0.3)?;
        let expected = off_tape(&loss, &inputs)?;
        for (x_first, gap) in [(true, 0), (true, 5), (false, 0), (false, 3)] {
            let flat = Tensor::ones((n + c) * d + gap + 2, dtype, &device())?;
            let (x_len, w_len) = (n * d, c * d);
            let (x_at, w_at) = if x_first { (1, 1 + x_len + gap) } else { (1 + w_len + gap, 1) };
            let dx = flat.narrow(0, x_at, x_len)?.reshape((n, d))?;
            let dw = flat.narrow(0, w_at, w_len)?.reshape((c, d))?;
            let output = loss.loss_and_grads_into(&inputs.x, &inputs.w, &inputs.y, None, &dx, &dw)?;
            let found = Outcome::new(&output, &dx, &dw, output.margin_gradient.as_ref());
            assert_eq!((&found.dx, &found.dw), (&expected.dx, &expected.dw), "{dtype:?} {x_first} {gap}");
            let edges = common::flat(&flat);
            assert_eq!((edges[0], edges[edges.len() - 1]), (1.0, 1.0), "what is around them is not written");
        }
    }
    Ok(())
}

#[test]
fn debug_text_is_short() -> Result<()> {
    let (n, c, d) = (16, 500, 64);
    let inputs = Inputs::random(n, c, d, false, 2)?.to(DType::F32)?;
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &device());
    let head = CosineClassifier::new(d, MarginLoss::dbm_bs(&counts(c), 0.2)?, vb)?;
    let out = head.output(&inputs.x, &inputs.y, None)?;
    let texts = [format!("{head:?}"), format!("{:?}", head.margin_loss()), format!("{out:?}")];
    for text in &texts {
        assert!(text.len() < 3000, "{} characters: {}", text.len(), &text[..300]);
    }
    assert!(texts[1].contains("scale: 32"), "{}", texts[1]);
    Ok(())
}

/// The composed path, which a device without a fused one takes, gives the same through every call.
#[test]
fn the_composed_path_through_every_call() -> Result<()> {
    let (n, c, d) = (21, 9, 12);
    for (name, builder) in builders(c) {
        let inputs = Inputs::random(n, c, d, name.contains("ignore"), 17)?;
        let (own, composed) = (builder.clone().build()?, builder.path(Path::Composed).build()?);
        for (a, b) in [
            (off_tape(&own, &inputs)?, off_tape(&composed, &inputs)?),
            (fused(&own, &inputs, None)?, fused(&composed, &inputs, None)?),
        ] {
            assert_close(name, &b, &a, 1e-9);
        }
        let (dx, dw) = (inputs.x.ones_like()?, inputs.w.ones_like()?);
        let output = composed.loss_and_grads_into(&inputs.x, &inputs.w, &inputs.y, inputs.rows(&own), &dx, &dw)?;
        assert_close(
            name,
            &Outcome::new(&output, &dx, &dw, output.margin_gradient.as_ref()),
            &off_tape(&own, &inputs)?,
            1e-9,
        );
    }
    Ok(())
}

/// One call for loss and gradients is what forward and backward give, whatever X and W are computed from.
#[test]
fn backward_in_one_call() -> Result<()> {
    let (n, c, d) = (12, 7, 6);
    let inputs = Inputs::random(n, c, d, false, 21)?;
    let deep = |inputs: &Inputs| -> Result<[Var; 4]> {
        let mix = (Tensor::eye(d, DType::F64, &device())? * 0.8)?;
        Ok([
            Var::from_tensor(&inputs.x)?,
            Var::from_tensor(&inputs.w)?,
            Var::from_tensor(&mix)?,
            Var::from_tensor(&(mix.ones_like()? * 0.1)?)?,
        ])
    };
    type Graph = fn(&[Var; 4]) -> candle_core::Result<(Tensor, Tensor)>;
    let plain: Graph = |v| Ok((v[0].as_tensor().clone(), v[1].as_tensor().clone()));
    let backbone: Graph = |v| Ok((v[0].matmul(&v[2])?, v[1].as_tensor().clone()));
    let both: Graph = |v| Ok((v[0].matmul(&v[2])?.tanh()?, v[1].matmul(&(v[3].as_tensor() + v[2].as_tensor())?)?));
    let shared: Graph = |v| {
        let pull = v[1].mean_keepdim(0)?; // W is used in X's graph as well
        Ok((v[0].matmul(&v[2])?.broadcast_add(&pull)?, v[1].as_tensor().clone()))
    };
    let weight_of_x: Graph = |v| Ok((v[0].as_tensor().clone(), v[1].broadcast_add(&v[0].mean_keepdim(0)?)?));
    let frozen_w: Graph = |v| Ok((v[0].matmul(&v[2])?, v[1].as_detached_tensor()));
    let frozen_x: Graph = |v| Ok((v[0].as_detached_tensor(), v[1].as_tensor().clone()));
    let frozen: Graph = |v| Ok((v[0].as_detached_tensor(), v[1].as_detached_tensor()));
    let graphs = [
        ("leaves", plain),
        ("a backbone", backbone),
        ("both computed", both),
        ("W in X's graph", shared),
        ("X in W's graph", weight_of_x),
        ("W frozen", frozen_w),
        ("X frozen", frozen_x),
        ("nothing to train", frozen),
    ];
    for (name, builder) in builders(c) {
        let loss = builder.build()?;
        for (graph_name, graph) in graphs {
            let vars = deep(&inputs)?;
            let (x, w) = graph(&vars)?;
            let expected = loss.output(&x, &w, &inputs.y, inputs.rows(&loss))?;
            let expected_grads = (expected.loss.sum_all()? * -0.7)?.backward()?;
            let (x, w) = graph(&vars)?;
            let (out, grads) = loss.backward_scaled(&x, &w, &inputs.y, inputs.rows(&loss), -0.7)?;
            assert_eq!(flat(&out.loss), flat(&expected.loss), "{name}, {graph_name}");
            for (i, var) in vars.iter().enumerate() {
                let label = format!("{name}, {graph_name}: variable {i}");
                match (grads.get(var), expected_grads.get(var)) {
                    (Some(a), Some(b)) => {
                        let (a, b) = (flat(a), flat(b));
                        assert!(distance(&a, &b) <= 1e-12 * size(&b).max(1e-3), "{label}: {:e}", distance(&a, &b));
                    }
                    (None, None) => {}
                    (a, b) => panic!("{label}: {} and {}", a.is_some(), b.is_some()),
                }
            }
        }
    }
    // Half types: of their own dtype, and scaled before they are rounded.
    let inputs = inputs.to(DType::F16)?;
    let (x, w) = (Var::from_tensor(&inputs.x)?, Var::from_tensor(&inputs.w)?);
    let loss = MarginLoss::cosine_ce(c, 16.0)?;
    let (_, grads) = loss.backward_scaled(&x, &w, &inputs.y, None, 1000.0)?;
    let (dx, dw) = once_rounded(&loss, &inputs, 1000.0)?;
    for (var, expected) in [(&x, dx), (&w, dw)] {
        let found = grads.get(var).ok_or("a variable has its gradient")?;
        assert_eq!(found.dtype(), DType::F16);
        assert!(relative(&flat(found), &expected) < 2e-3);
    }
    let error = loss.backward_scaled(&x, &w, &inputs.y, None, f64::NAN).unwrap_err().to_string();
    assert!(error.starts_with("margin loss: the upstream gradient must be finite, it is NaN"), "{error}");
    Ok(())
}

/// Rows of f32 near their centres: ψ′ takes an error of their cosine by 1/θ², which is not to be in dX and dW.
#[test]
fn gradients_at_small_angles() -> Result<()> {
    if on_cuda() {
        println!("SKIPPED on CUDA: there a target's cosine is f32's, and the error of a row 1/θ²");
        return Ok(());
    }
    let (n, c, d) = (64, 100, 64);
    for angle in [0.3f64, 0.03, 0.01, 0.003] {
        let random = Inputs::random(n, c, d, false, 31)?;
        let (w, mut x) = (flat(&random.w), flat(&random.x));
        let y: Vec<i64> = (0..n as i64).map(|i| i * 7 % c as i64).collect();
        for (x, &y) in x.chunks_mut(d).zip(&y) {
            let centre = &w[y as usize * d..][..d];
            let along = x.iter().zip(centre).map(|(x, w)| x * w).sum::<f64>() / norm(centre).powi(2);
            x.iter_mut().zip(centre).for_each(|(x, w)| *x -= along * w);
            let (length, size) = (norm(x), norm(centre));
            x.iter_mut().zip(centre).for_each(|(x, w)| *x = *x / length * angle.sin() + w / size * angle.cos());
        }
        let x = Tensor::from_vec(x, (n, d), &device())?;
        let inputs = Inputs { x, y: Tensor::new(y, &device())?, ..random }.to(DType::F32)?;
        let dbm = MarginLoss::builder(c).counts(&counts(c)).margin(Margin::Dbm { k: 0.5, tau: 0.2 });
        for loss in [MarginLoss::arc_face(c, 16.0, 0.5)?, dbm.build()?] {
            let truth = composed(&loss, &inputs.to(DType::F64)?, None)?;
            let found = fused(&loss, &inputs, None)?;
            for (part, found, truth) in [("dX", &found.dx, &truth.dx), ("dW", &found.dw, &truth.dw)] {
                for (row, (found, truth)) in found.chunks(d).zip(truth.chunks(d)).enumerate() {
                    let (error, bound) = (relative(found, truth), 16.0 * epsilon(DType::F32) / angle);
                    assert!(error <= bound, "θ {angle} {part} of row {row}: {error:e}, more than {bound:e}");
                }
            }
        }
    }
    Ok(())
}

/// What is not said: SphereFace's angle range, and the prior of classes without samples at an exponent of 0.
#[test]
fn defaults_are_what_they_are_said_to_be() -> Result<()> {
    let (n, c, d) = (40, 5, 4);
    let inputs = Inputs::random(n, c, d, false, 12)?;
    let sphere = || MarginLoss::builder(c).margin(Margin::SphereFace { m: 4.0 });
    let unsaid = off_tape(&sphere().build()?, &inputs)?;
    let monotone = off_tape(&sphere().angle_range(AngleRange::Monotone).build()?, &inputs)?;
    let wrapped = off_tape(&sphere().angle_range(AngleRange::Wrap).build()?, &inputs)?;
    assert_eq!(unsaid.loss, monotone.loss);
    assert_ne!(unsaid.loss, wrapped.loss);

    let with_gap = ClassCounts::new(vec![9, 0, 4, 2, 1])?;
    let of = |tau: f64| MarginLoss::builder(c).counts(&with_gap).prior(Prior::BalancedSoftmax { tau }).build();
    let plain = off_tape(&MarginLoss::builder(c).build()?, &inputs)?;
    assert_eq!(off_tape(&of(0.0)?, &inputs)?.loss, plain.loss, "at τ = 0 no class is out");
    let y = Tensor::full(1i64, n, &device())?;
    let error = of(1.0)?.forward(&inputs.x, &inputs.w, &y).unwrap_err().to_string();
    assert!(error.contains("takes out"), "{error}");
    Ok(())
}

/// Where every class but the target's is out, p is 1: no loss and no gradient, in every type.
#[test]
fn a_class_alone() -> Result<()> {
    let (n, c, d) = (6, 4, 5);
    let prior = vec![f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY, -1e300];
    let loss = MarginLoss::builder(c).margin(Margin::ArcFace { m: 0.3 }).prior(Prior::LogPrior(prior)).build()?;
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let inputs = Inputs { y: Tensor::full(1i64, n, &device())?, ..Inputs::random(n, c, d, false, 3)?.to(dtype)? };
        let outcome = off_tape(&loss, &inputs)?;
        for (part, values) in outcome.parts() {
            let none = part == "target cosine" || values.iter().all(|&v| v == 0.0);
            assert!(none, "{dtype:?}: {part} {values:?}");
        }
    }
    Ok(())
}
