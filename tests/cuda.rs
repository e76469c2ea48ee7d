//! What only a CUDA device has, beside the suites that run on both (`MARGIN_LOSS_DEVICE=cuda`): the kernels against each other and against
//! themselves in another order, every way to cut a problem, labels that are not checked; and the loss composed of Candle's ops, whose own kernels
//! then run under the emulator's checks: `sh tests/emulator/run.sh cargo test --release --features cuda --test cuda`.
#![cfg(feature = "cuda")]
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::{MarginLoss, Reduction};
use common::{
    IGNORE, Inputs, Outcome, Result, builders, composed, composed_where_it_is, device, distance, epsilon, flat, fused,
    losses, off_tape, size,
};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

#[test]
fn the_composed_loss_is_the_same_on_cuda() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    let (n, c, d) = (9, 13, 11);
    // In f64, 50 units in the last place of the larger results; in f32 the same.
    for (dtype, tolerance) in [(DType::F64, 50.0 * f64::EPSILON), (DType::F32, 50.0 * f64::from(f32::EPSILON))] {
        for (name, loss) in losses(c) {
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), 11)?.with_sample_weights(12)?.to(dtype)?;
            let on_gpu = inputs.on(&gpu)?;
            let expected = composed(&loss, &inputs, None)?;
            let found = composed_where_it_is(&loss, &on_gpu, None).map_err(|error| format!("{name}: {error}"))?;
            for ((what, a), (_, b)) in expected.parts().into_iter().zip(found.parts()) {
                let off = distance(a, b);
                assert!(
                    off <= tolerance * size(a).max(1.0),
                    "{name}, {dtype:?}: {what} is off by {off:e} of {:e}",
                    size(a)
                );
            }
            assert_eq!((expected.predicted, expected.hard), (found.predicted, found.hard), "{name}");
        }
    }
    Ok(())
}

const TYPES: [(DType, DType); 6] = [
    (DType::F64, DType::F64),
    (DType::F32, DType::F32),
    (DType::BF16, DType::BF16),
    (DType::F16, DType::F16),
    (DType::BF16, DType::F32),
    (DType::F16, DType::F32),
];

fn loss(c: usize, name: &str, streaming: bool, budget: usize) -> Result<MarginLoss> {
    let (_, builder) = builders(c).into_iter().find(|(other, _)| *other == name).ok_or("no such loss")?;
    Ok(builder.streaming(streaming).workspace_bytes(budget).build()?)
}

fn assert_same(label: &str, a: &Outcome, b: &Outcome) {
    for ((part, a), (_, b)) in a.parts().into_iter().zip(b.parts()) {
        assert_eq!(a, b, "{label}: {part}");
    }
    assert_eq!((&a.predicted, &a.hard), (&b.predicted, &b.hard), "{label}");
}

/// The same bits from run to run. The emulator runs warps and blocks in an order that changes with every launch.
#[test]
fn bits_do_not_depend_on_order() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    // The second has sums of dX split over blocks, and statistics split over blocks in the streaming kernels; the third is one block's.
    for (n, c, d) in [(70, 130, 33), (5, 1500, 20), (40, 100, 20)] {
        for (x, w) in TYPES {
            let inputs = Inputs::random(n, c, d, false, 31)?;
            let inputs = Inputs { x: inputs.x.to_dtype(x)?, w: inputs.w.to_dtype(w)?, ..inputs }.on(&gpu)?;
            for streaming in [false, true] {
                let loss = loss(c, "DBM-BS", streaming, 16 << 20)?;
                let first = off_tape(&loss, &inputs)?;
                for _ in 0..2 {
                    let label = format!("{n} {c} {d} {x:?} {w:?}, streaming {streaming}");
                    assert_same(&label, &off_tape(&loss, &inputs)?, &first);
                }
            }
        }
    }
    Ok(())
}

/// On the tape both gradients are multiplied by the upstream gradient, in every type, of any size, frozen or not. `tests/mutants` runs this test, too.
#[test]
fn gradients_by_their_upstream() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    let few = std::env::var_os("MARGIN_LOSS_MUTANTS").is_some();
    for (x_type, w_type) in TYPES.into_iter().filter(|&(x, w)| !few || (x == w && x != DType::F64)) {
        for (n, c, d) in [(1, 1, 1), (3, 5, 7), (65, 63, 65), (9, 100, 16)] {
            let inputs = Inputs::random(n, c, d, false, 41)?.on(&gpu)?;
            let (x, w) = (inputs.x.to_dtype(x_type)?, inputs.w.to_dtype(w_type)?);
            let loss = loss(c, "DBM-BS", false, 16 << 20)?;
            let (_, dx, dw) = loss.loss_and_grads(&x, &w, &inputs.y, None)?;
            let by = |gradient: &Tensor| -> Result<Vec<f64>> {
                let product = (gradient.to_dtype(DType::F64)? * -2.5)?;
                Ok(flat(&product.to_dtype(gradient.dtype())?))
            };
            let (expected_x, expected_w) = (by(&dx)?, by(&dw)?);
            for (of_x, of_w) in [(true, true), (true, false), (false, true)] {
                let (x, w) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
                let argument =
                    |var: &Var, tracked| if tracked { var.as_tensor().clone() } else { var.as_detached_tensor() };
                let value = loss.forward(&argument(&x, of_x), &argument(&w, of_w), &inputs.y)?;
                let grads = (value * -2.5)?.backward()?;
                let label = format!("{n} {c} {d} {x_type:?} {w_type:?}");
                // dX alone is split otherwise where tiles are few, and so rounded otherwise.
                for (what, var, tracked, expected) in [("dX", &x, of_x, &expected_x), ("dW", &w, of_w, &expected_w)] {
                    assert_eq!(grads.get(var).is_some(), tracked, "{label}: {what}");
                    let Some(found) = grads.get(var) else { continue };
                    assert_eq!(found.dtype(), var.dtype(), "{label}: {what}");
                    // A half type's is multiplied before it is rounded, what is expected after.
                    let wide = matches!(var.dtype(), DType::F32 | DType::F64);
                    let exact = of_x && of_w && wide;
                    let bound = if exact { 0.0 } else { 4.0 * epsilon(var.dtype()) * size(expected) };
                    assert!(distance(&flat(found), expected) <= bound, "{label}: {what} of {of_x} {of_w}");
                    if of_x && of_w && !wide {
                        // Three roundings of half a step each: of what is found, and of what is expected before and after. Below 6·10⁻⁵ f16
                        // steps by 6·10⁻⁸, and −2.5 makes the first of them larger.
                        let near =
                            |(a, b): (&f64, &f64)| (a - b).abs() <= 1.51 * epsilon(var.dtype()) * b.abs() + 2.3 * 6e-8;
                        let found = flat(found);
                        let far = found.iter().zip(expected).find(|&pair| !near(pair));
                        assert!(far.is_none(), "{label}: {what}, an element and what is expected: {far:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// Every kernel against the CPU path on the same rounded inputs, in every type, on both sides of tiles and steps; with ignored rows, weights, every
/// kind of norm (rows that need a scale, short rows, rows of 0) and rows that begin anywhere. `tests/mutants` runs this test on changed kernels.
#[test]
fn kernels_are_the_cpus() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    let few = std::env::var_os("MARGIN_LOSS_MUTANTS").is_some();
    let types = TYPES.into_iter().filter(|&(x, w)| !few || (x == w && x != DType::F64));
    let name = "per class, weights, prior, smoothing, ignore, weighted mean";
    for (x_type, w_type) in types {
        // One block's are (1, 1, 1), (40, 100, 20), (70, 50, 20), and on tensor cores (65, 63, 65), (70, 130, 33).
        for (n, c, d, budget) in [
            (1, 1, 1, 16),
            (65, 63, 65, 16),
            (70, 130, 33, 16),
            (5, 1500, 20, 16),
            (130, 70, 200, 16),
            (130, 1600, 17, 1),
            (70, 130, 72, 16),
            (3, 2200, 5, 16),
            (40, 100, 20, 16),
            (70, 50, 20, 16),
        ] {
            let inputs = Inputs::random(n, c, d, true, 36)?.with_sample_weights(8)?;
            let norms = |rows: usize, step: usize| -> Result<Tensor> {
                let scale = |i: usize| match i % step {
                    3 if x_type != DType::F16 => 1e-40,
                    7 if x_type != DType::F16 => 1e25,
                    11 if x_type != DType::F16 => 1e-14,
                    13 => 0.0,
                    _ => 1.0,
                };
                Ok(Tensor::from_vec((0..rows).map(scale).collect::<Vec<f64>>(), (rows, 1), &device())?)
            };
            // Norms of every kind where they are far from tiles' edges; elsewhere all tiles take the usual way.
            let (mut x, mut w) = (inputs.x.clone(), inputs.w.clone());
            if n == 70 {
                (x, w) = (x.broadcast_mul(&norms(n, 16)?)?, w.broadcast_mul(&norms(c, 67)?)?);
            }
            // What is in an ignored row reaches nothing.
            let ignored = inputs.y.eq(IGNORE)?.to_dtype(DType::F64)?.reshape((n, 1))?;
            let x = (x + ignored.neg()?.sqrt()?.broadcast_as((n, d))?)?;
            let inputs = Inputs { x: x.to_dtype(x_type)?, w: w.to_dtype(w_type)?, ..inputs };
            for streaming in [false, true] {
                let loss = loss(c, name, streaming, budget << 20)?;
                let expected = off_tape(&loss, &inputs.on(&Device::Cpu)?)?;
                let aligned = inputs.on(&gpu)?;
                let ends = |t: &Tensor| -> candle_core::Result<Tensor> {
                    Tensor::cat(&[&t.narrow(1, 0, 1)?, t, &t.narrow(1, 0, 1)?], 1)?.narrow(1, 1, d)
                };
                let unaligned = Inputs { x: ends(&aligned.x)?, w: ends(&aligned.w)?, ..aligned.clone() };
                for (which, inputs) in [("aligned", &aligned), ("unaligned", &unaligned)] {
                    let found = off_tape(&loss, inputs)?;
                    // Without dW the kernels leave its part out, and with it a barrier.
                    let x = Var::from_tensor(&inputs.x)?;
                    let alone = loss.output(&x, &inputs.w, &inputs.y, inputs.rows(&loss))?.loss.backward()?;
                    let alone = flat(alone.get(&x).ok_or("dX")?);
                    // Its sums are split in another way: the rounding of the type, once.
                    let ulp = match x_type {
                        DType::F64 => 1e-13,
                        DType::F32 => 1e-5,
                        DType::F16 => f64::from(half::f16::EPSILON),
                        _ => f64::from(half::bf16::EPSILON),
                    };
                    for (row, (a, b)) in alone.chunks(d).zip(found.dx.chunks(d)).enumerate() {
                        let bound = ulp * size(b).max(0.1 * if n == 70 { 1e-37 } else { size(&found.dx) });
                        assert!(distance(a, b) <= bound, "dX of row {row} with W frozen");
                    }
                    let label = format!("{n} {c} {d} {x_type:?} {w_type:?}, {which}, streaming {streaming}");
                    assert_eq!((&found.predicted, &found.hard), (&expected.predicted, &expected.hard), "{label}");
                    for ((part, a), (_, b)) in found.parts().into_iter().zip(expected.parts()) {
                        // Rows of their own sizes: a gradient is in 1/norm.
                        let width = if matches!(part, "dX" | "dW") { d } else { a.len().max(1) };
                        let dtype = if part == "dW" { w_type } else { x_type };
                        let rounding = match (part, dtype) {
                            ("dX" | "dW", DType::BF16) => 4.0 * f64::from(half::bf16::EPSILON),
                            ("dX" | "dW", DType::F16) => 4.0 * f64::from(half::f16::EPSILON),
                            (_, DType::F64) => 1e-11,
                            _ => 1e-4,
                        };
                        let whole = size(b);
                        for (row, (a, b)) in a.chunks(width).zip(b.chunks(width)).enumerate() {
                            // What is small beside the whole is rounding of what made it, unless norms differ.
                            let least = if n == 70 { 1e-38 } else { (0.1 * whole).max(1e-12) };
                            let error = distance(a, b);
                            let bound = rounding * size(b).max(least);
                            assert!(
                                error <= bound,
                                "{label}: {part} of row {row} is off by {error:e} of {:e}",
                                size(b)
                            );
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// fused_step, the streaming kernels, and each way to cut the backward pass give the same to the rounding of their sums.
#[test]
fn kernels_agree() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    for (n, c, d) in
        [(1, 1, 1), (63, 65, 16), (64, 64, 64), (65, 63, 65), (129, 200, 48), (2, 700, 130), (200, 1100, 500)]
    {
        for (x, w) in TYPES {
            if d == 500 && (x, w) != (DType::BF16, DType::BF16) {
                continue; // minutes of emulation; a half type's sums beside the gradient are what this size is for
            }
            let inputs = Inputs::random(n, c, d, true, 32)?.with_sample_weights(7)?;
            let inputs = Inputs { x: inputs.x.to_dtype(x)?, w: inputs.w.to_dtype(w)?, ..inputs }.on(&gpu)?;
            let name = "per class, weights, prior, smoothing, ignore, weighted mean";
            let expected = off_tape(&loss(c, name, true, 64 << 20)?, &inputs)?;
            for (streaming, budget) in [(false, 64 << 20), (true, 1 << 20)] {
                let found = off_tape(&loss(c, name, streaming, budget)?, &inputs)?;
                for ((part, a), (_, b)) in found.parts().into_iter().zip(expected.parts()) {
                    let rounding = match (part, if part == "dW" { w } else { x }) {
                        ("dX" | "dW", DType::BF16) => f64::from(half::bf16::EPSILON),
                        ("dX" | "dW", DType::F16) => f64::from(half::f16::EPSILON),
                        (_, DType::F64) => 100.0 * f64::EPSILON,
                        _ => 40.0 * f64::from(f32::EPSILON),
                    };
                    let error = distance(a, b);
                    let label = format!("{n} {c} {d} {x:?} {w:?}, streaming {streaming}: {part}");
                    assert!(error <= rounding * size(b).max(1e-3), "{label} is off by {error:e} of {:e}", size(b));
                }
                assert_eq!((&found.predicted, &found.hard), (&expected.predicted, &expected.hard));
            }
        }
    }
    Ok(())
}

/// The backward pass of one block against that of many, which the same problem takes when rows are added that are ignored: at the edges of tiles
/// and of what one block does, through the tape with an upstream gradient for every row, with either argument frozen.
#[test]
fn one_block_is_many() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    for (n, c, d) in [
        (1, 1, 1),
        (64, 64, 64),
        (65, 64, 33),
        (64, 65, 64),
        (63, 64, 65),
        (128, 1, 16),
        (3, 129, 16),
        (130, 65, 24),
        (5, 384, 16),
        (64, 64, 384),
    ] {
        for (x, w) in TYPES {
            // Multiply-adds of so many tiles are another block's.
            let tiles = |count: usize| count.div_ceil(64);
            let on_tensor_cores = x == w && x.size_in_bytes() == 2 && d >= 16;
            if !on_tensor_cores && tiles(n) * tiles(c) * tiles(d) > 2 {
                continue;
            }
            let inputs = Inputs::random(n, c, d, true, 38)?.with_sample_weights(9)?;
            let inputs = Inputs { x: inputs.x.to_dtype(x)?, w: inputs.w.to_dtype(w)?, ..inputs }.on(&gpu)?;
            let more = 6 * 64;
            let nothing = Tensor::full(f64::NAN, (more, d), &gpu)?.to_dtype(x)?;
            let ones = Tensor::ones(more, DType::F64, &gpu)?;
            let many = Inputs {
                x: Tensor::cat(&[&inputs.x, &nothing], 0)?,
                w: inputs.w.clone(),
                y: Tensor::cat(&[&inputs.y, &Tensor::full(IGNORE, more, &gpu)?], 0)?,
                sample_weights: inputs.sample_weights.as_ref().map(|w| Tensor::cat(&[w, &ones], 0)).transpose()?,
                margins: None,
            };
            for name in ["DBM-BS per row, ignore, smoothed", "combined, hard positives, monotone, ignore"] {
                let label = format!("{n} {c} {d} {x:?} {w:?}, {name}");
                let loss = loss(c, name, true, 16 << 20)?;
                let per_row = name.contains("per row");
                let upstream: Vec<f64> = (0..n + more).map(|i| 0.5 - (i % 7) as f64 / 3.0).collect();
                let of = |rows: usize| per_row.then_some(&upstream[..rows]);
                let found = fused(&loss, &inputs, of(n))?;
                let mut expected = fused(&loss, &many, of(n + more))?;
                assert!(expected.dx[n * d..].iter().all(|&g| g == 0.0), "{label}");
                expected.dx.truncate(n * d);
                if !per_row {
                    assert_same(&label, &off_tape(&loss, &inputs)?, &found);
                }
                for (part, a, b, dtype) in [("dX", &found.dx, &expected.dx, x), ("dW", &found.dw, &expected.dw, w)] {
                    let rounding = match dtype {
                        DType::BF16 => f64::from(half::bf16::EPSILON),
                        DType::F16 => f64::from(half::f16::EPSILON),
                        DType::F64 => 100.0 * f64::EPSILON,
                        _ => 40.0 * f64::from(f32::EPSILON),
                    };
                    let error = distance(a, b);
                    assert!(
                        error <= rounding * size(b).max(1e-3),
                        "{label}: {part} is off by {error:e} of {:e}",
                        size(b)
                    );
                    // With one tile of classes the forward's sums are grouped alike, and all is.
                    assert!(c > 64 || a == b, "{label}: {part} is off by {error:e}");
                }
                // What is frozen changes nothing of the other gradient.
                let (xs, ws) = (Var::from_tensor(&inputs.x)?, Var::from_tensor(&inputs.w)?);
                let gradient = |x: &Tensor, w: &Tensor, of_what: &Tensor| -> Result<Vec<f64>> {
                    let output = loss.output(x, w, &inputs.y, inputs.rows(&loss))?.loss;
                    let grads = common::upstream(&output, of(n))?.backward()?;
                    Ok(flat(grads.get(of_what).ok_or("no gradient")?))
                };
                assert_eq!(gradient(&xs, &inputs.w, &xs)?, found.dx, "{label}: dX, W frozen");
                assert_eq!(gradient(&inputs.x, &ws, &ws)?, found.dw, "{label}: dW, X frozen");
            }
        }
    }
    Ok(())
}

/// A label that is no class, or a weight that is none, poisons its row and never reaches memory; checked, it is the CPU's error.
#[test]
fn labels_that_are_not_checked() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    let (n, d) = (70, 20);
    // The first is of many blocks.
    for (c, dtype) in [(67, DType::F32), (60, DType::F32), (67, DType::BF16)] {
        let good = Inputs::random(n, c, d, false, 33)?.to(dtype)?.on(&gpu)?;
        for bad in [c as i64, -1, i64::MAX, i64::MIN, 1 << 32] {
            let mut y = good.y.to_vec1::<i64>()?;
            y[66] = bad;
            let inputs = Inputs { y: Tensor::new(y, &gpu)?, ..good.clone() };
            for (streaming, reduction) in [(false, Reduction::Mean), (true, Reduction::Mean), (true, Reduction::None)] {
                let builder = || MarginLoss::builder(c).streaming(streaming).reduction(reduction);
                let error = builder().build()?.forward(&inputs.x, &inputs.w, &inputs.y).unwrap_err().to_string();
                assert!(error.starts_with(&format!("margin loss: label {bad} of row 66 is not in 0..{c}")), "{error}");
                let unchecked = builder().check_labels(false).build()?;
                let (out, expected) = (fused(&unchecked, &inputs, None)?, fused(&builder().build()?, &good, None)?);
                assert!(out.per_sample[66].is_nan() && out.dx[66 * d..67 * d].iter().all(|g| g.is_nan()));
                assert!(out.dw.iter().all(|g| g.is_nan()), "every class sees the row");
                assert_eq!(out.per_sample[..66], expected.per_sample[..66]);
                assert_eq!(out.dx[..66 * d], expected.dx[..66 * d]);
            }
        }
    }
    // The same for a sample weight that is none.
    let c = 60;
    let good = Inputs::random(n, c, d, false, 33)?.to(DType::F32)?.with_sample_weights(3)?.on(&gpu)?;
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let mut weights = flat(good.sample_weights.as_ref().ok_or("weights")?);
        weights[66] = bad;
        let inputs = Inputs { sample_weights: Some(Tensor::new(weights, &gpu)?), ..good.clone() };
        for streaming in [false, true] {
            let builder = || MarginLoss::builder(c).streaming(streaming);
            let error = off_tape(&builder().build()?, &inputs).unwrap_err().to_string();
            assert!(
                error.starts_with("margin loss: the sample weight of row 66 must be 0 or in 1e-15..=1e9"),
                "{error}"
            );
            let out = off_tape(&builder().check_labels(false).build()?, &inputs)?;
            assert!(out.per_sample[66].is_nan() && out.per_sample[..66].iter().all(|loss| loss.is_finite()));
            assert!(out.dx[66 * d..67 * d].iter().chain(&out.dw).all(|g| g.is_nan()));
        }
    }
    let inputs = Inputs::random(3, 4, 5, false, 34)?.on(&gpu)?;
    let elsewhere = inputs.w.to_device(&Device::Cpu)?;
    let error = MarginLoss::cosine_ce(4, 30.0)?.forward(&inputs.x, &elsewhere, &inputs.y).unwrap_err().to_string();
    assert!(error.starts_with("margin loss: features X are on Cuda { gpu_id: 0 } and weight W on Cpu"), "{error}");
    Ok(())
}

/// A loss is used on several devices, and a clone of it shares its tables.
#[test]
fn one_loss_on_every_device() -> Result<()> {
    let loss = loss(12, "DBM-BS", false, 16 << 20)?;
    let inputs = Inputs::random(9, 12, 7, false, 35)?.on(&Device::Cpu)?;
    let expected = off_tape(&loss, &inputs)?;
    for _ in 0..2 {
        let gpu = Device::new_cuda(0)?;
        let there = inputs.on(&gpu)?;
        let found = off_tape(&loss.clone(), &there)?;
        assert!(distance(&found.dw, &expected.dw) <= 1e-13 * size(&expected.dw));
        assert_eq!(flat(&loss.forward(&there.x, &there.w, &there.y)?), found.loss);
    }
    Ok(())
}

/// A step without the label check is captured into a CUDA graph and replayed on other inputs: nothing in it waits for the device.
#[test]
fn a_step_is_captured_into_a_graph() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    let stream = gpu.as_cuda_device()?.cuda_stream();
    // One block, a cooperative grid, and the streaming kernels with sums that are split and must be counted from 0 in each replay.
    for (n, c, d, streaming) in
        [(9, 12, 7, false), (9, 12, 7, true), (70, 130, 40, false), (5, 1500, 20, false), (5, 1500, 20, true)]
    {
        for dtype in [DType::F32, DType::BF16] {
            let loss = MarginLoss::builder(c).streaming(streaming).check_labels(false).build()?;
            let batches: Vec<_> =
                (0..3).map(|seed| Inputs::random(n, c, d, false, seed)?.to(dtype)?.on(&gpu)).collect::<Result<_>>()?;
            let first = &batches[0];
            let (x, y) = (Var::from_tensor(&first.x)?, Var::from_tensor(&first.y)?);
            let (dx, dw) = (x.zeros_like()?, first.w.zeros_like()?);
            let step = || loss.loss_and_grads_into(&x, &first.w, &y, None, &dx, &dw);
            step()?; // tables and kernels come to the device outside the graph
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
            let out = step()?;
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = stream.end_capture(flags)?.ok_or("an empty graph")?;
            for batch in &batches {
                x.set(&batch.x)?;
                y.set(&batch.y)?;
                graph.launch()?;
                let found = [flat(&out.loss), flat(&out.per_sample), flat(&dx), flat(&dw)];
                let (expected, dx, dw) = loss.loss_and_grads(&batch.x, &first.w, &batch.y, None)?;
                let expected = [flat(&expected.loss), flat(&expected.per_sample), flat(&dx), flat(&dw)];
                assert_eq!(found, expected, "{n} {c} {d} {dtype:?}, streaming {streaming}");
            }
        }
    }
    Ok(())
}

/// Devices that lack what a kernel needs, or have less of it than they say: the kernel that can takes the call, or it is an error that says why.
/// Each in a process of its own, since a process has one kind of emulated device.
#[test]
fn devices_that_lack_something() -> Result<()> {
    let step = |c: usize| -> Result<f64> {
        let (n, d) = if c == FEW { (64, 64) } else { (130, 8) };
        let (gpu, loss) = (Device::new_cuda(0)?, loss(c, "DBM-BS", false, 16 << 20)?);
        let inputs = Inputs::random(n, c, d, false, 37)?.to(DType::F32)?;
        let (found, expected) = (off_tape(&loss, &inputs.on(&gpu)?)?, off_tape(&loss, &inputs.on(&Device::Cpu)?)?);
        Ok(distance(&found.dw, &expected.dw) / size(&expected.dw))
    };
    if let Ok(c) = std::env::var("MARGIN_LOSS_CHILD") {
        match step(c.parse()?) {
            Ok(error) => assert!(error < 1e-4, "{error}"),
            Err(error) => println!("error: {error}"),
        }
        return Ok(());
    }
    let name = Device::new_cuda(0)?.as_cuda_device()?.cuda_stream().context().name()?;
    if !name.starts_with("emulated") {
        println!("SKIPPED: {name} cannot be another device");
        return Ok(());
    }
    // A problem of twelve tiles, and one of two, which is one block's.
    const MANY: usize = 250;
    const FEW: usize = 100;
    const MORE: usize = 350;
    for (c, claims, expected) in [
        (MANY, "", "fused_step_f32"),
        (MANY, "95=0", "stream_gradient_f32"), // no cooperative launches
        (MANY, "97=49152,81=65536", "stream_gradient_f32"), // too little shared memory for the cosines
        (MORE, "81=1048576", "stream_gradient_f32"), // room for two blocks by what it says, but for one in truth
        (FEW, "", "fused_step_f32"),
        (FEW, "95=0", "stream_backward_f32"),
        (FEW, "95=0,97=61440,81=65536", "stream_backward_f32"),
        (FEW, "95=0,97=49152,81=65536", "stream_gradient_f32"), // too little for g beside a tile
        (MANY, "75=7,76=5", "error: margin loss: the device's compute capability is 7.5, the kernels need 8.0"),
    ] {
        let counters = std::env::temp_dir().join(format!("margin-loss-child-{}", std::process::id()));
        let _ = std::fs::remove_file(&counters);
        let child = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", "devices_that_lack_something", "--nocapture"])
            .envs([
                ("MARGIN_LOSS_CHILD", c.to_string().as_str()),
                ("PTX_EMULATOR_ATTRIBUTES", claims),
                ("PTX_EMULATOR_MULTIPROCESSORS", "1"),
            ])
            .env("PTX_EMULATOR_COUNTERS", &counters)
            .output()?;
        let text = String::from_utf8_lossy(&child.stdout).into_owned() + &std::fs::read_to_string(&counters)?;
        assert!(child.status.success(), "{claims}: {text}{}", String::from_utf8_lossy(&child.stderr));
        assert!(text.contains(expected), "{claims}: {text}");
        for other in ["fused_step", "stream_backward", "stream_gradient"] {
            assert!(expected.starts_with(other) || !text.contains(other), "{claims}: {text}");
        }
        let _ = std::fs::remove_file(&counters);
    }
    Ok(())
}
