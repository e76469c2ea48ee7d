//! The drop-in: a Candle training loop with the loss in place of `cross_entropy`, the classifier module, the schedule, and the same bits every time.
#![allow(missing_docs)]

mod common;

use approx::assert_abs_diff_eq;
use candle_core::{DType, Tensor, Var};
use candle_margin_loss::{
    ClassCounts, ClassWeights, CosineClassifier, InstanceGate, LossSchedule, Margin, MarginLoss, MarginLossBuilder,
    Path, Reduction, margin_cross_entropy,
};
use candle_nn::{Module, Optimizer, VarBuilder, VarMap};
use common::{Inputs, Outcome, Result, counts, device, flat, fused, losses, off_tape};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};

/// Two blobs a class: what `cross_entropy` on a linear head learns, the margin loss on the same head's weight learns, with one line changed.
#[test]
fn one_line_changes_in_a_training_loop() -> Result<()> {
    let (n, c, d) = (60, 3, 4);
    let mut rng = StdRng::seed_from_u64(1);
    let mut normal = |len: usize| -> Vec<f32> { (0..len).map(|_| StandardNormal.sample(&mut rng)).collect() };
    let labels = Tensor::from_vec((0..n as u32).map(|i| i % c as u32).collect(), n, &device())?;
    let centres = Tensor::from_vec(normal(c * d), (c, d), &device())?;
    let noise = (Tensor::from_vec(normal(n * d), (n, d), &device())? * 0.3)?;
    let x = ((noise + centres.index_select(&labels, 0)?)? * 2.0)?;
    let start = normal(c * d);
    for margin in [false, true] {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &device());
        let head = candle_nn::linear_no_bias(d, c, vb)?;
        vars.all_vars()[0].set(&Tensor::from_slice(&start, (c, d), &device())?)?;
        let mut sgd = candle_nn::SGD::new(vars.all_vars(), 0.05)?;
        let loss = MarginLoss::builder(c).scale(8.0).margin(Margin::ArcFace { m: 0.2 }).build()?;
        let step = || -> candle_core::Result<Tensor> {
            if margin {
                margin_cross_entropy(&x, head.weight(), &labels, &loss)
            } else {
                candle_nn::loss::cross_entropy(&head.forward(&x)?, &labels)
            }
        };
        let first = step()?.to_scalar::<f32>()?;
        for _ in 0..60 {
            sgd.backward_step(&step()?)?;
        }
        let last = step()?.to_scalar::<f32>()?;
        assert!(last < 0.5 * first, "margin {margin}: {first} to {last}");
    }
    Ok(())
}

#[test]
fn classifier_shares_checkpoints_with_a_linear_head() -> Result<()> {
    let (n, c, d) = (5, 7, 4);
    let inputs = Inputs::random(n, c, d, false, 2)?.to(DType::F32)?;
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &device());
    let linear = candle_nn::linear_no_bias(d, c, vb.pp("head"))?;
    let path = std::env::temp_dir().join(format!("margin-loss-{}.safetensors", std::process::id()));
    vars.save(&path)?;
    let mut loaded = VarMap::new();
    let vb = VarBuilder::from_varmap(&loaded, DType::F32, &device());
    let mut head = CosineClassifier::new(d, MarginLoss::cosine_ce(c, 20.0)?, vb.pp("head"))?;
    loaded.load(&path)?;
    std::fs::remove_file(&path)?;
    assert_eq!(flat(head.weight()), flat(linear.weight()));

    // Evaluation: s·cos, whatever margin and prior the training loss has.
    let logits = head.forward(&inputs.x)?;
    assert_eq!(logits.dims(), [n, c]);
    let (x, w) = (inputs.x.to_vec2::<f32>()?, linear.weight().to_vec2::<f32>()?);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    for (i, row) in logits.to_vec2::<f32>()?.into_iter().enumerate() {
        for (j, logit) in row.into_iter().enumerate() {
            let cosine = dot(&x[i], &w[j]) / (dot(&x[i], &x[i]) * dot(&w[j], &w[j])).sqrt();
            assert_abs_diff_eq!(f64::from(logit), 20.0 * cosine, epsilon = 1e-4);
        }
    }
    let out = head.output(&inputs.x, &inputs.y, None)?;
    let predicted = logits.argmax(1)?.to_vec1::<u32>()?;
    assert_eq!(out.predicted.to_vec1::<u32>()?, predicted, "the predicted class is that of evaluation");
    assert_eq!(flat(&head.loss(&inputs.x, &inputs.y)?), flat(&out.loss));

    head.set_loss(MarginLoss::dbm_bs(&counts(c), 0.1)?)?;
    assert_ne!(flat(&head.loss(&inputs.x, &inputs.y)?), flat(&out.loss));
    assert_eq!(head.margin_loss().scale(), 32.0);
    Ok(())
}

#[test]
fn drw_reweights_from_its_epoch_on() -> Result<()> {
    let (n, c, d) = (20, 6, 5);
    let inputs = Inputs::random(n, c, d, false, 3)?;
    let counts = counts(c);
    let value = |loss: &MarginLoss| -> Result<(Vec<f64>, Vec<f64>)> {
        let out = off_tape(loss, &inputs)?;
        Ok((out.per_sample, out.loss))
    };
    let dbm = || {
        let margin = Margin::Dbm { k: 0.2, tau: 1.0 };
        MarginLoss::builder(c).counts(&counts).margin(margin).instance_gate(InstanceGate::HardPositives)
    };
    let weighted = |base: MarginLossBuilder| {
        base.class_weights(ClassWeights::ClassBalancedNormalized { beta: 0.9999 }).reduction(Reduction::WeightedMean)
    };
    let (before, after) = (MarginLoss::dbm_ce(&counts, 0.2)?, weighted(dbm()).build()?);
    let drw = LossSchedule::dbm_drw(&counts, 0.2, 160, 0.9999)?;
    for (epoch, expected) in [(0, &before), (159, &before), (160, &after), (100_000, &after)] {
        assert_eq!(value(drw.at(epoch))?, value(expected)?, "epoch {epoch}");
    }
    assert_ne!(value(&before)?, value(&after)?);
    assert_eq!(value(LossSchedule::dbm_drw(&counts, 0.2, 0, 0.9999)?.at(0))?, value(&after)?);

    // LDAM-DRW, composed of a builder, which keeps its sum; the paper's formula; and a schedule of three stages.
    let ldam = || MarginLoss::builder(c).counts(&counts).margin(Margin::Ldam { max_m: 0.5 }).reduction(Reduction::Sum);
    let drw = LossSchedule::drw(ldam(), &counts, 2, 0.99)?;
    let normalised = ldam().class_weights(ClassWeights::ClassBalancedNormalized { beta: 0.99 }).build()?;
    assert_eq!(value(drw.at(1))?, value(&ldam().build()?)?);
    assert_eq!(value(drw.at(2))?, value(&normalised)?);
    let formula = LossSchedule::drw_by_formula(dbm(), &counts, 2, 0.99)?;
    assert_eq!(value(formula.at(1))?, value(&before)?);
    assert_eq!(value(formula.at(2))?, value(&MarginLoss::dbm_cb(&counts, 0.2, 0.99)?)?);
    let three = LossSchedule::new(vec![(0, before.clone()), (1, normalised.clone()), (5, after.clone())])?;
    assert_eq!(value(three.at(0))?, value(&before)?);
    assert_eq!(value(three.at(4))?, value(&normalised)?);
    assert_eq!(value(three.at(5))?, value(&after)?);
    assert_eq!(value(LossSchedule::constant(after.clone()).at(77))?, value(&after)?);
    Ok(())
}

/// At the switch of DRW a step stays a step: CIFAR-100-LT's counts, a batch drawn from them.
#[test]
fn drw_keeps_the_size_of_a_step() -> Result<()> {
    let counts = ClassCounts::exponential(500, 100, 100.0)?;
    let (n, c, d) = (64, 100, 32);
    let mut inputs = Inputs::random(n, c, d, false, 8)?;
    let drawn: Vec<i64> = (0..n as u64)
        .map(|i| {
            let mut sample = (i * 7919 + 13) * 104_729 % counts.total();
            let class = counts.as_slice().iter().position(|&n| match sample.checked_sub(n) {
                Some(rest) => {
                    sample = rest;
                    false
                }
                None => true,
            });
            class.expect("a sample is of some class") as i64
        })
        .collect();
    inputs.y = Tensor::from_vec(drawn, n, &common::device())?;
    let step = |loss: &MarginLoss| -> Result<(f64, f64)> {
        let out = off_tape(loss, &inputs)?;
        Ok((out.loss[0], out.dw.iter().map(|v| v * v).sum::<f64>().sqrt()))
    };
    let base = MarginLoss::dbm_ce(&counts, 0.1)?;
    let (before, after) = (step(&base)?, step(LossSchedule::dbm_drw(&counts, 0.1, 160, 0.9999)?.at(160))?);
    let ratio = (after.0 / before.0, after.1 / before.1);
    assert!((0.5..2.0).contains(&ratio.0) && (0.5..4.0).contains(&ratio.1), "loss and |dW| change by {ratio:?}");
    // The formula as it is written does not.
    let (literal, _) = step(&MarginLoss::dbm_cb(&counts, 0.1, 0.9999)?)?;
    assert!(literal < 0.05 * before.0, "{literal} {}", before.0);
    Ok(())
}

/// `u8`, `u32` and `i64` labels, on and off the tape, kept and new gradient tensors: all the same bits.
#[test]
fn every_way_to_call_gives_the_same() -> Result<()> {
    let (n, c, d) = (33, 70, 40);
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let inputs = Inputs::random(n, c, d, false, 4)?.with_sample_weights(4)?.to(dtype)?;
        for (name, loss) in losses(c) {
            let tape = fused(&loss, &inputs, None)?;
            let narrow = Inputs { y: inputs.y.to_dtype(DType::U32)?, ..inputs.clone() };
            let off = off_tape(&loss, &narrow)?;
            let bytes = match name.contains("ignore") {
                true => None, // 156, which −100 would be, is another ignore index
                false => Some(off_tape(&loss, &Inputs { y: inputs.y.to_dtype(DType::U8)?, ..inputs.clone() })?),
            };
            let (dx, dw) = (inputs.x.ones_like()?, inputs.w.ones_like()?);
            let rows = inputs.rows(&loss);
            let output = loss.loss_and_grads_into(&inputs.x, &inputs.w, &inputs.y, rows, &dx, &dw)?;
            let into = Outcome::new(&output, &dx, &dw, output.margin_gradient.as_ref());
            let untracked = loss.output(&inputs.x, &inputs.w, &inputs.y, rows)?;
            assert_eq!(flat(&untracked.per_sample), tape.per_sample, "{name} {dtype:?}");
            for other in [Some(&off), Some(&into), bytes.as_ref()].into_iter().flatten() {
                for ((part, a), (_, b)) in tape.parts().into_iter().zip(other.parts()) {
                    assert_eq!(a, b, "{name} {dtype:?} {part}");
                }
                assert_eq!((&tape.predicted, &tape.hard), (&other.predicted, &other.hard));
            }
        }
    }
    Ok(())
}

/// The same bits for any number of threads and from run to run, at sizes with several lanes, tiles, blocks and parts of rows.
#[test]
fn bits_do_not_depend_on_threads() -> Result<()> {
    if common::on_cuda() {
        println!("SKIPPED on CUDA: tests/cuda.rs has the order of warps and blocks instead");
        return Ok(());
    }
    for (n, c, d, budget) in [
        (70, 1100, 40, 64 << 20),
        (300, 600, 33, 1 << 20),
        (1000, 130, 20, 64 << 20),
        (2100, 130, 20, 64 << 20),
        (1500, 20, 150, 1 << 20),
    ] {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let inputs = Inputs::random(n, c, d, false, 5)?.to(dtype)?;
            for reduction in [Reduction::Mean, Reduction::None] {
                let loss = MarginLoss::builder(c)
                    .counts(&counts(c))
                    .margin(Margin::Dbm { k: 0.2, tau: 1.0 })
                    .reduction(reduction)
                    .label_smoothing(0.1)
                    .workspace_bytes(budget)
                    .build()?;
                let run = |threads: usize| -> Outcome {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| fused(&loss, &inputs, None).unwrap())
                };
                let one = run(1);
                for threads in [1, 2, 3, 7] {
                    let other = run(threads);
                    for ((part, a), (_, b)) in one.parts().into_iter().zip(other.parts()) {
                        assert!(a == b, "{n} {c} {d} {dtype:?} {reduction:?}: {part} differs with {threads} threads");
                    }
                }
            }
        }
    }
    Ok(())
}

/// A loss is used from several threads at once, as data-parallel training does.
#[test]
fn concurrent_calls() -> Result<()> {
    let (n, c, d) = (40, 300, 30);
    let loss = MarginLoss::cosine_ce(c, 16.0)?;
    let inputs: Vec<Inputs> = (0..4).map(|seed| Inputs::random(n, c, d, false, seed).unwrap()).collect();
    let expected: Vec<Outcome> = inputs.iter().map(|inputs| off_tape(&loss, inputs).unwrap()).collect();
    std::thread::scope(|scope| {
        for (inputs, expected) in inputs.iter().zip(&expected) {
            let loss = loss.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    let out = off_tape(&loss, inputs).unwrap();
                    assert!(out.dw == expected.dw && out.dx == expected.dx && out.loss == expected.loss);
                }
            });
        }
    });
    Ok(())
}

/// Presets are what their names say in terms of the builder's options.
#[test]
fn presets() -> Result<()> {
    use candle_margin_loss::{InstanceGate, Prior};
    let (n, c, d) = (20, 6, 5);
    let inputs = Inputs::random(n, c, d, false, 6)?;
    let counts = ClassCounts::new(vec![100, 50, 20, 9, 3, 1])?;
    let new = || MarginLoss::builder(c).counts(&counts);
    let dbm = || new().scale(32.0).margin(Margin::Dbm { k: 0.3, tau: 1.0 }).instance_gate(InstanceGate::HardPositives);
    let pairs = [
        (MarginLoss::cosine_ce(c, 20.0)?, new().scale(20.0)),
        (MarginLoss::arc_face(c, 20.0, 0.4)?, new().scale(20.0).margin(Margin::ArcFace { m: 0.4 })),
        (MarginLoss::cos_face(c, 20.0, 0.4)?, new().scale(20.0).margin(Margin::CosFace { m: 0.4 })),
        (MarginLoss::ldam(&counts, 0.5)?, new().scale(30.0).margin(Margin::Ldam { max_m: 0.5 })),
        (MarginLoss::dbm_ce(&counts, 0.3)?, dbm()),
        (MarginLoss::dbm_cb(&counts, 0.3, 0.99)?, dbm().class_weights(ClassWeights::ClassBalanced { beta: 0.99 })),
        (MarginLoss::dbm_bs(&counts, 0.3)?, dbm().prior(Prior::BalancedSoftmax { tau: 1.0 })),
    ];
    for (preset, builder) in pairs {
        assert_eq!(off_tape(&preset, &inputs)?.dw, off_tape(&builder.build()?, &inputs)?.dw);
    }
    // DBM with K = 0 is cosine cross-entropy; the rarest class's margin is K, and its hard row's is K(1 + d_I).
    let none = MarginLoss::dbm_ce(&counts, 0.0)?;
    let (none, plain) = (off_tape(&none, &inputs)?, off_tape(&MarginLoss::cosine_ce(c, 32.0)?, &inputs)?);
    assert_eq!((none.loss, none.dx, none.dw), (plain.loss, plain.dx, plain.dw));
    Ok(())
}

/// The loss keeps working when its arguments' tensors are variables that change, and gradients of a batch do not leak into the next.
#[test]
fn workspace_is_clean_between_calls() -> Result<()> {
    let c = 50;
    let loss = MarginLoss::builder(c).build()?;
    let small = Inputs::random(3, c, 7, false, 7)?;
    let expected = off_tape(&MarginLoss::builder(c).build()?, &small)?;
    for (n, d) in [(90, 60), (1, 1), (200, 9)] {
        let mut poison = Inputs::random(n, c, d, false, 8)?;
        poison.x = (poison.x * f64::NAN)?;
        off_tape(&loss, &poison)?;
        let actual = off_tape(&loss, &small)?;
        assert_eq!((actual.loss, &actual.dx, &actual.dw), (expected.loss.clone(), &expected.dx, &expected.dw));
    }
    let w = Var::from_tensor(&small.w)?;
    let first = flat(&loss.forward(&small.x, &w, &small.y)?);
    w.set(&(w.as_tensor() * -1.0)?)?;
    assert_ne!(first, flat(&loss.forward(&small.x, &w, &small.y)?));
    Ok(())
}

/// Three hundred steps with the fused loss beside three hundred with the composed one, from the same start, through a switch of DRW: the same curve.
#[test]
fn training_is_that_of_the_composed_loss() -> Result<()> {
    if common::emulated() {
        println!("SKIPPED: an emulated device takes minutes");
        return Ok(());
    }
    let (n, c, d) = (32, 8, 16);
    let counts = ClassCounts::new(vec![200, 120, 60, 30, 16, 8, 4, 2])?;
    let schedule = |path| -> Result<LossSchedule> {
        let margin = Margin::Dbm { k: 0.2, tau: 1.0 };
        let base = MarginLoss::builder(c).counts(&counts).scale(16.0).margin(margin).path(path);
        Ok(LossSchedule::drw(base.instance_gate(InstanceGate::HardPositives), &counts, 150, 0.999)?)
    };
    let start = Inputs::random(c, c, d, false, 77)?;
    for (dtype, bound) in [(DType::F32, 2e-3), (DType::BF16, 0.05)] {
        let curve = |path| -> Result<Vec<f64>> {
            let schedule = schedule(path)?;
            let w = Var::from_tensor(&start.w.to_dtype(DType::F32)?)?; // the master copy
            let mix = Var::from_tensor(&Tensor::eye(d, DType::F32, &common::device())?)?;
            let mut losses = Vec::new();
            for step in 0..300 {
                let labels: Vec<u32> = (0..n).map(|i| ((i * i + 3 * step + i) % c) as u32).collect();
                let y = Tensor::new(labels, &common::device())?;
                let noise = Inputs::random(n, c, d, false, 1000 + step as u64)?.x.to_dtype(DType::F32)?;
                let input = (start.x.to_dtype(DType::F32)?.index_select(&y, 0)? + (noise * 0.3)?)?;
                let (x, centres) = (input.matmul(&mix)?.to_dtype(dtype)?, w.to_dtype(dtype)?);
                let loss = schedule.at(step).forward(&x, &centres, &y)?;
                let grads = loss.backward()?;
                for var in [&w, &mix] {
                    let gradient = grads.get(var).ok_or("a gradient")?;
                    var.set(&(var.as_tensor() - (gradient * 0.05)?)?)?;
                }
                losses.push(flat(&loss)[0]);
            }
            Ok(losses)
        };
        let (fused, composed) = (curve(Path::Fused)?, curve(Path::Composed)?);
        // Ten steps together: single ones differ by the rows whose hard flag is a matter of rounding.
        for (block, (a, b)) in fused.chunks(10).zip(composed.chunks(10)).enumerate() {
            let (a, b) = (a.iter().sum::<f64>() / 10.0, b.iter().sum::<f64>() / 10.0);
            assert!((a - b).abs() <= bound * b.max(0.05), "{dtype:?}, steps from {}: {a} {b}", 10 * block);
        }
        assert!(fused[140..150].iter().sum::<f64>() < 0.7 * fused[..10].iter().sum::<f64>(), "it trains");
    }
    Ok(())
}
