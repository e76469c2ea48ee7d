//! Classes over ranks against the loss of one: by threads, P = 1 to 7, every option of the table; ties, NaN, ignored rows, ranks without
//! rows or classes; ranks that disagree, fail, panic or leave.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::sharded::{
    ClassShard, Communicator, Partial, SampledGradients, Sampling, SparseAdamW, SparseSgd, Threads, load_sharded,
    round_rows, save_sharded, sum_over_ranks,
};
use candle_margin_loss::{Margin, MarginLoss, Prior, Reduction, RowInputs};
use common::{
    IGNORE, Inputs, Outcome, Result, assert_close, builders, composed, distance, flat, fused, losses, off_tape,
};

/// The rows of rank `rank` of `size`: uneven, and of some rank none.
fn rows_of(n: usize, rank: usize, size: usize) -> (usize, usize) {
    let bound = |rank: usize| (n * rank * rank).div_ceil(size * size);
    let bound = |rank: usize| if size > 2 && rank == size - 1 { bound(size) } else { bound(rank) };
    (bound(rank), bound(rank + 1).max(bound(rank)) - bound(rank))
}

/// What rank `rank` of `size` has of `inputs`.
fn own(inputs: &Inputs, rank: usize, size: usize) -> (Inputs, ClassShard) {
    let (n, c, _) = inputs.dims();
    let (start, count) = rows_of(n, rank, size);
    let shard = ClassShard::balanced(c, rank, size).unwrap();
    let rows = |tensor: &Tensor| tensor.narrow(0, start, count).unwrap();
    let own = Inputs {
        x: rows(&inputs.x),
        w: inputs.w.narrow(0, shard.range().start, shard.len()).unwrap(),
        y: rows(&inputs.y),
        sample_weights: inputs.sample_weights.as_ref().map(rows),
        margins: inputs.margins.as_ref().map(rows),
    };
    (own, shard)
}

/// The ranks' outcomes as one.
fn joined(outcomes: Vec<Outcome>, reduced: bool) -> Outcome {
    let mut all = outcomes[0].clone();
    for next in &outcomes[1..] {
        if reduced {
            assert_eq!(all.loss[0].to_bits(), next.loss[0].to_bits(), "every rank has the same loss");
        } else {
            all.loss.extend(&next.loss);
        }
        all.per_sample.extend(&next.per_sample);
        all.predicted.extend(&next.predicted);
        all.hard.extend(&next.hard);
        all.target_cosine.extend(&next.target_cosine);
        all.dx.extend(&next.dx);
        all.dw.extend(&next.dw);
        all.d_margins.extend(&next.d_margins);
    }
    all
}

fn is_reduced(loss: &MarginLoss, inputs: &Inputs) -> bool {
    loss.output(&inputs.x, &inputs.w, &inputs.y, inputs.rows(loss)).unwrap().loss.rank() == 0
}

/// `loss` on `size` ranks: on the tape, with `upstream` (one, or one a row of all), or off it.
fn sharded(loss: &MarginLoss, inputs: &Inputs, size: usize, tape: bool, upstream: Option<&[f64]>) -> Outcome {
    let reduced = is_reduced(loss, inputs);
    let n = inputs.dims().0;
    let outcomes = Threads::run(size, |rank| {
        let (own, shard) = own(inputs, rank.rank(), size);
        let (start, count) = rows_of(n, rank.rank(), size);
        let sharded = loss.sharded(shard, Arc::new(rank)).unwrap();
        if !tape {
            let (output, dx, dw) = sharded.loss_and_grads(&own.x, &own.w, &own.y, own.rows(loss)).unwrap();
            return Outcome::new(&output, &dx, &dw, output.margin_gradient.as_ref());
        }
        let (x, w) = (Var::from_tensor(&own.x).unwrap(), Var::from_tensor(&own.w).unwrap());
        let margins = own.margins.as_ref().map(|margins| Var::from_tensor(margins).unwrap());
        let output = sharded.output(&x, &w, &own.y, own.rows_with(loss, margins.as_deref())).unwrap();
        let upstream = upstream.map(|values| if reduced { values } else { &values[start..start + count] });
        let grads = common::upstream(&output.loss, upstream).unwrap().backward().unwrap();
        let gradient = |var: &Var| grads.get(var).cloned().unwrap_or_else(|| var.zeros_like().unwrap());
        assert_eq!(gradient(&w).dtype(), w.dtype());
        let d_margins = margins.filter(|_| loss.takes_row_margins()).map(|margins| gradient(&margins));
        Outcome::new(&output, &gradient(&x), &gradient(&w), d_margins.as_ref())
    });
    joined(outcomes.into_iter().map(|outcome| outcome.unwrap()).collect(), reduced)
}

/// (N, C, D): fewer classes than ranks, fewer rows than ranks, several lanes and tiles.
const SIZES: [(usize, usize, usize); 6] = [(1, 1, 1), (3, 2, 5), (5, 4, 3), (17, 33, 16), (33, 65, 31), (40, 530, 24)];

#[test]
fn every_option_on_every_number_of_ranks_is_the_loss_of_one() -> Result<()> {
    for (seed, (n, c, d)) in SIZES.into_iter().enumerate() {
        for (index, (name, loss)) in losses(c).into_iter().enumerate() {
            let mut inputs = Inputs::random(n, c, d, name.contains("ignore"), 70 + seed as u64)?;
            if index % 2 == 0 {
                inputs = inputs.with_sample_weights(3)?;
            }
            let upstream: Vec<f64> = match is_reduced(&loss, &inputs) {
                true => vec![-1.7],
                false => (0..n).map(|i| 0.3 * i as f64 - 1.1).collect(),
            };
            let expected = composed(&loss, &inputs, None)?;
            let scaled = composed(&loss, &inputs, Some(&upstream))?;
            let one = off_tape(&loss, &inputs)?;
            for size in [1 + index % 7, 1 + (index + 3) % 7] {
                let label = format!("{name} {n} {c} {d} over {size}");
                assert_close(&label, &sharded(&loss, &inputs, size, false, None), &expected, 1e-9);
                assert_close(&label, &sharded(&loss, &inputs, size, false, None), &one, 1e-12);
                assert_close(&label, &sharded(&loss, &inputs, size, true, Some(&upstream)), &scaled, 1e-9);
            }
        }
    }
    Ok(())
}

/// Every part's error to the f64 truth of the same numbers is no more than twice the error of the loss on one rank, and rounding.
#[test]
fn lower_precision_is_no_worse_than_on_one_rank() -> Result<()> {
    for (n, c, d) in [(17, 33, 16), (40, 530, 24)] {
        for (index, (name, loss)) in losses(c).into_iter().enumerate() {
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), 11)?;
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let rounded = inputs.to(dtype)?;
                let size = 2 + index % 6;
                let truth = composed(&loss, &rounded.to(DType::F64)?, None)?;
                let one = fused(&loss, &rounded, None)?;
                for tape in [true, false] {
                    let many = sharded(&loss, &rounded, size, tape, None);
                    let label = format!("{name} {n} {c} {d} {dtype:?} over {size}");
                    assert_eq!((&many.predicted, &many.hard), (&one.predicted, &one.hard), "{label}");
                    for (((part, t), (_, a)), (_, o)) in truth.parts().into_iter().zip(many.parts()).zip(one.parts()) {
                        let rounding = match part {
                            "dX" | "dW" => common::epsilon(dtype),
                            _ => f64::from(f32::EPSILON),
                        };
                        let gap = truth.target_cosine.iter().map(|c| 1.0 - c.abs()).fold(1.0, f64::min);
                        let floor = rounding + f64::from(f32::EPSILON) * (64.0 + 1.0 / gap);
                        let bound = 2.0 * distance(o, t) + floor * common::size(t).max(1e-2);
                        assert!(distance(a, t) <= bound, "{label}: {part} {:e}, bound {bound:e}", distance(a, t));
                    }
                }
            }
        }
    }
    Ok(())
}

/// f32 centres beside half features, gradients that are recomputed, workspaces of blocks and ranges, parts of many rows.
#[test]
fn other_types_and_plans() -> Result<()> {
    for (n, c, d, budget) in [(33, 65, 31, 1), (300, 600, 33, 1), (1500, 40, 16, 64 << 20), (1200, 70, 24, 64 << 20)] {
        for (name, builder) in builders(c).into_iter().filter(|(name, _)| name.starts_with("DBM-BS")) {
            let loss = builder.clone().workspace_bytes(budget).build()?;
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), 21)?;
            let label = format!("{name} {n} {c} {d}");
            assert_close(&label, &sharded(&loss, &inputs, 3, false, None), &off_tape(&loss, &inputs)?, 1e-11);
            let recomputing = builder.recompute_gradients(true).build()?;
            assert_close(&label, &sharded(&recomputing, &inputs, 3, true, None), &fused(&loss, &inputs, None)?, 1e-11);
            let mixed = Inputs { x: inputs.x.to_dtype(DType::F16)?, w: inputs.w.to_dtype(DType::F32)?, ..inputs };
            assert_close(&label, &sharded(&loss, &mixed, 2, false, None), &off_tape(&loss, &mixed)?, 2e-3);
        }
    }
    Ok(())
}

#[test]
fn the_same_bits_every_time() -> Result<()> {
    let (n, c, d) = (40, 530, 24);
    for (name, loss) in losses(c).into_iter().filter(|(name, _)| name.starts_with("DBM")) {
        let inputs = Inputs::random(n, c, d, false, 5)?.to(DType::F32)?;
        for size in [2, 5] {
            let first = sharded(&loss, &inputs, size, false, None);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
            for again in [
                sharded(&loss, &inputs, size, false, None),
                pool.install(|| sharded(&loss, &inputs, size, false, None)),
            ] {
                for ((part, a), (_, b)) in first.parts().into_iter().zip(again.parts()) {
                    assert_eq!(a, b, "{name} over {size}: {part}");
                }
            }
        }
    }
    Ok(())
}

/// Equal centres on several shards: the lowest class of all is predicted; a row that is near it is hard unless that is its label.
#[test]
fn ties_across_shards_go_to_the_lowest_class() -> Result<()> {
    let (c, d) = (9, 4);
    let loss = MarginLoss::builder(c).margin(Margin::ArcFace { m: 0.3 }).build()?;
    let w: Vec<f64> =
        (0..c).flat_map(|j| if j % 3 == 2 { [1.0, 2.0, -1.0, 0.5] } else { [-1.0, 0.1, j as f64, 0.0] }).collect();
    let inputs = Inputs {
        x: Tensor::new(&[[1.0, 2.0, -1.0, 0.5], [2.0, 4.0, -2.0, 1.0], [1.0, 2.0, -1.0, 0.5]], &Device::Cpu)?,
        w: Tensor::from_vec(w, (c, d), &Device::Cpu)?,
        y: Tensor::new(&[2i64, 5, 8], &Device::Cpu)?,
        sample_weights: None,
        margins: None,
    };
    for size in 1..=7 {
        let outcome = sharded(&loss, &inputs, size, false, None);
        assert_eq!((outcome.predicted, outcome.hard), (vec![2, 2, 2], vec![0, 1, 1]), "over {size}");
    }
    Ok(())
}

#[test]
fn a_row_of_nan_is_its_own_and_an_ignored_one_is_nothing() -> Result<()> {
    let (n, c, d) = (6, 5, 3);
    let loss = MarginLoss::builder(c).ignore_index(IGNORE).reduction(Reduction::None).build()?;
    let plain = Inputs::random(n, c, d, false, 8)?;
    let mut x = plain.x.to_vec2::<f64>()?;
    x[1][0] = f64::NAN;
    let nan = Inputs { x: Tensor::new(x, &Device::Cpu)?, ..plain.clone() };
    let mut y = plain.y.to_vec1::<i64>()?;
    y[1] = IGNORE;
    let ignored = Inputs { y: Tensor::new(y, &Device::Cpu)?, ..nan.clone() };
    for size in [1, 2, 3, 7] {
        let (with, without) = (sharded(&loss, &nan, size, false, None), off_tape(&loss, &plain)?);
        for row in 0..n {
            assert_eq!(with.loss[row].is_nan(), row == 1, "over {size}");
            assert_eq!(with.dx[row * d..][..d].iter().all(|v| v.is_nan()), row == 1, "over {size}");
            assert!(row == 1 || (with.loss[row] - without.loss[row]).abs() < 1e-12);
        }
        assert!(with.dw.iter().all(|v| v.is_nan()), "over {size}");
        assert_close("ignored", &sharded(&loss, &ignored, size, false, None), &off_tape(&loss, &ignored)?, 1e-12);
    }
    Ok(())
}

/// No row, or none that counts: 0 and zeros.
#[test]
fn nothing_left_is_zero() -> Result<()> {
    let loss = MarginLoss::builder(5).ignore_index(IGNORE).build()?;
    for n in [0usize, 4] {
        let inputs = Inputs {
            x: Tensor::ones((n, 3), DType::F64, &Device::Cpu)?,
            w: Tensor::ones((5, 3), DType::F64, &Device::Cpu)?,
            y: Tensor::full(IGNORE, n, &Device::Cpu)?,
            sample_weights: None,
            margins: None,
        };
        for size in [1, 3, 7] {
            let outcome = sharded(&loss, &inputs, size, false, None);
            assert_eq!(outcome.loss, [0.0]);
            assert!(outcome.dx.iter().chain(&outcome.dw).all(|&v| v == 0.0), "{n} over {size}");
        }
    }
    Ok(())
}

/// The core alone, by hand: parts in any number of merges have the same bits; a dropped part, swapped ones and another batch's are errors.
#[test]
fn parts_merge_in_their_order_and_no_other() -> Result<()> {
    let (n, c, d) = (12, 11, 6);
    let loss = MarginLoss::builder(c).margin(Margin::CosFace { m: 0.2 }).label_smoothing(0.1).build()?;
    let Inputs { x, w, y, .. } = Inputs::random(n, c, d, false, 2)?;
    let shards: Vec<ClassShard> =
        (0..4).map(|rank| ClassShard::balanced(c, rank, 4)).collect::<std::result::Result<_, _>>()?;
    let of = |shard: &ClassShard| w.narrow(0, shard.range().start, shard.len());
    let parts = |x: &Tensor| -> Result<Vec<Partial>> {
        shards.iter().map(|shard| Ok(loss.partial(x, &of(shard)?, &y, None, shard)?)).collect()
    };
    let all = parts(&x)?;
    let merged = Partial::merge(&all)?;
    assert_eq!((merged.classes(), merged.rows()), (0..c, n));
    let through = Partial::from_tensor(merged.classes(), &merged.to_tensor()?)?;
    let expected =
        off_tape(&loss, &Inputs { x: x.clone(), w: w.clone(), y: y.clone(), sample_weights: None, margins: None })?;
    let (mut dx, mut dw, mut checked) = (x.zeros_like()?, Vec::new(), 0);
    for shard in &shards {
        let finish = |parts: &[Partial]| loss.finish(parts, &x, &of(shard)?, &y, None, shard);
        let one = finish(&all)?;
        let other = finish(std::slice::from_ref(&through))?;
        assert_eq!(flat(&one.output.loss), flat(&other.output.loss));
        assert_eq!((flat(&one.dx_part), flat(&one.dw)), (flat(&other.dx_part), flat(&other.dw)));
        assert!(distance(&flat(&one.output.loss), &expected.loss) < 1e-13);
        dx = (dx + one.dx_part)?;
        dw.extend(flat(&one.dw));
        let error = |parts: &[Partial]| first_line(&finish(parts).unwrap_err());
        assert_eq!(error(&all[..3]), "sharded loss: the parts have classes 0..9 of 11");
        assert_eq!(error(&all[1..]), "sharded loss: the parts have classes 3..11 of 11");
        let swapped = [all[0].clone(), all[2].clone(), all[1].clone(), all[3].clone()];
        assert_eq!(error(&swapped), "sharded loss: parts come in the order of their classes: 0..3 is followed by 6..9");
        assert_eq!(error(&[]), "sharded loss: at least one part is needed, there is none");
        // Another batch's parts show where they meet the shard's own targets.
        let own = y.to_vec1::<i64>()?.iter().any(|&label| shard.range().contains(&(label as usize)));
        if own {
            let error = error(&parts(&(&x + 1.0)?)?);
            assert!(error.starts_with("margin loss: X or W changed between forward and backward"), "{error}");
            checked += 1;
        }
    }
    assert!(checked > 1);
    assert!(distance(&flat(&dx), &expected.dx) < 1e-13 && distance(&dw, &expected.dw) < 1e-13);
    Ok(())
}

/// An error without its backtrace.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

/// Runs `work` on three ranks and gives the ranks' errors; fails if they take longer than any should.
fn errors_of(
    work: impl Fn(Threads) -> candle_core::Result<()> + Sync + Send + 'static,
) -> Vec<std::thread::Result<String>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let results = Threads::run(3, |rank| work(rank).map_or_else(|error| first_line(&error), |()| "none".into()));
        sender.send(results).unwrap();
    });
    receiver.recv_timeout(Duration::from_secs(60)).expect("a rank hangs")
}

fn call(loss: &MarginLoss, rank: Threads, x: &Tensor, w: &Tensor, y: &Tensor) -> candle_core::Result<()> {
    let shard = ClassShard::balanced(loss.classes(), rank.rank(), rank.size())?;
    loss.sharded(shard, Arc::new(rank))?.loss_and_grads(x, w, y, None).map(drop)
}

fn plain(n: usize, c: usize, d: usize, dtype: DType) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
    let x = Tensor::ones((n, d), dtype, &Device::Cpu)?;
    Ok((x, Tensor::ones((c, d), dtype, &Device::Cpu)?, Tensor::zeros(n, DType::U32, &Device::Cpu)?))
}

fn assert_all(results: Vec<std::thread::Result<String>>, expected: &str) {
    for result in results {
        assert_eq!(result.unwrap(), expected);
    }
}

#[test]
fn ranks_that_disagree_are_all_told_of_what() {
    let loss = |c: usize| MarginLoss::builder(c);
    // (what is disagreed on, the loss of rank 1, its D and dtype)
    let cases: Vec<(&str, MarginLoss, usize, DType)> = vec![
        ("the number of classes C: rank 0 has 6, rank 1 has 7", loss(7).build().unwrap(), 4, DType::F32),
        ("the scale s: rank 0 has 32, rank 1 has 31.5", loss(6).scale(31.5).build().unwrap(), 4, DType::F32),
        ("the cosine margins B: rank 1's is not rank 0's", MarginLoss::cos_face(6, 32.0, 0.1).unwrap(), 4, DType::F32),
        ("the reduction: rank 1's is not rank 0's", loss(6).reduction(Reduction::Sum).build().unwrap(), 4, DType::F32),
        ("the ignore index: rank 1's is not rank 0's", loss(6).ignore_index(3).build().unwrap(), 4, DType::F32),
        (
            "the label smoothing: rank 0 has 0, rank 1 has 0.1",
            loss(6).label_smoothing(0.1).build().unwrap(),
            4,
            DType::F32,
        ),
        ("the number of dimensions D: rank 0 has 4, rank 1 has 5", loss(6).build().unwrap(), 5, DType::F32),
        ("the dtype of X: rank 0 has f32, rank 1 has bf16", loss(6).build().unwrap(), 4, DType::BF16),
    ];
    for (what, other, d, dtype) in cases {
        let results = errors_of(move |rank| {
            let odd = rank.rank() == 1;
            let loss = if odd { other.clone() } else { MarginLoss::builder(6).build()? };
            let shard = ClassShard::balanced(loss.classes(), rank.rank(), 3)?;
            let (d, dtype) = if odd { (d, dtype) } else { (4, DType::F32) };
            let (x, w, y) = plain(2, shard.len(), d, dtype)?;
            call(&loss, rank, &x, &w, &y)
        });
        assert_all(results, &format!("sharded loss: ranks disagree on {what}"));
    }
}

#[test]
fn an_error_of_one_rank_is_everyone_s() {
    let results = errors_of(|rank| {
        let (x, w, mut y) = plain(2, 2, 4, DType::F32)?;
        if rank.rank() == 2 {
            y = Tensor::new(&[1u32, 77], &Device::Cpu)?;
        }
        call(&MarginLoss::builder(6).build()?, rank, &x, &w, &y)
    });
    assert_all(results, "sharded loss: rank 2: margin loss: label 77 of row 1 is not in 0..6");
    let results = errors_of(|rank| {
        let (x, w, y) = plain(2, if rank.rank() == 0 { 3 } else { 2 }, 4, DType::F32)?;
        call(&MarginLoss::builder(6).build()?, rank, &x, &w, &y)
    });
    assert_all(results, "sharded loss: rank 0: margin loss: weight W has 3 rows, the shard has classes 0 to 2 of 6");
    let results = errors_of(|rank| {
        let (x, w, y) = plain(2, 2, 4, DType::F32)?;
        let loss = MarginLoss::builder(6).build()?;
        let sharded = loss.sharded(ClassShard::balanced(6, rank.rank(), 3)?, Arc::new(rank))?;
        for step in 0..2 {
            // Rank 1 takes the other call at the second step.
            if step == 1 && sharded.shard().rank() == 1 {
                sharded.forward(&x, &w, &y)?;
            } else {
                sharded.loss_and_grads(&x, &w, &y, None)?;
            }
        }
        Ok(())
    });
    assert_all(results, "sharded loss: ranks disagree on what is called: rank 1's is not rank 0's");
}

#[test]
fn shards_that_do_not_fit_are_errors() -> Result<()> {
    let loss = MarginLoss::builder(6).build()?;
    let error = |loss: &MarginLoss, shard: ClassShard| {
        let alone: Arc<dyn Communicator> = Arc::new(Threads::new(1).remove(0));
        loss.sharded(shard, alone).map(drop).unwrap_err().to_string()
    };
    let text = error(&loss, ClassShard::balanced(5, 0, 1)?);
    assert_eq!(text, "sharded loss: the shard is of 5 classes, the loss is over 6");
    let text = error(&loss, ClassShard::balanced(6, 1, 2)?);
    assert_eq!(text, "sharded loss: the shard is rank 1's of 2, the communicator's rank is 0 of 1");
    let text = ClassShard::balanced(6, 2, 2).unwrap_err().to_string();
    assert_eq!(text, "sharded loss: a rank is below the number of ranks: rank 2 of 2");
    let composed = MarginLoss::builder(6).path(candle_margin_loss::Path::Composed).build()?;
    let (x, w, y) = plain(2, 6, 4, DType::F32)?;
    let text = first_line(&composed.partial(&x, &w, &y, None, &ClassShard::balanced(6, 0, 1)?).unwrap_err());
    assert_eq!(text, "sharded loss: shards have the fused path alone, and the composed one is asked for");
    let text = Partial::from_tensor(0..6, &x).unwrap_err().to_string();
    assert_eq!(text, "sharded loss: a part is f64 (N, 6), it is f32 [2, 4]");
    Ok(())
}

/// A rank that says less rows than it brings, or than another expects.
#[test]
fn messages_that_do_not_fit_are_errors() {
    let results = errors_of(|rank| {
        let counts = if rank.rank() == 1 { [1, 2, 1] } else { [1, 1, 1] };
        let own = Tensor::zeros((counts[rank.rank()], 2), DType::F32, &Device::Cpu)?;
        Ok(rank.all_gather(&own, &counts).map(drop)?)
    });
    assert_eq!(
        results.into_iter().next().unwrap().unwrap(),
        "sharded loss: 1 rows are to be exchanged, the tensor is [2, 2]"
    );
}

#[test]
fn who_panics_or_leaves_ends_the_others() {
    let results = errors_of(|rank| {
        assert!(rank.rank() != 1, "on purpose");
        let (x, w, y) = plain(2, 2, 4, DType::F32)?;
        call(&MarginLoss::builder(6).build()?, rank, &x, &w, &y)
    });
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(error) => assert_eq!(error, "sharded loss: rank 1 panicked"),
            Err(_) => assert_eq!(rank, 1),
        }
    }
    let results = errors_of(|rank| {
        if rank.rank() == 2 {
            return Ok(());
        }
        let (x, w, y) = plain(2, 2, 4, DType::F32)?;
        call(&MarginLoss::builder(6).build()?, rank, &x, &w, &y)
    });
    let of = |rank: usize| results[rank].as_ref().unwrap().as_str();
    assert_eq!([of(0), of(1), of(2)], ["sharded loss: rank 2 has left", "sharded loss: rank 2 has left", "none"]);
    let results = errors_of(|rank| {
        if rank.rank() == 0 {
            rank.abort("out of memory");
        }
        let (x, w, y) = plain(2, 2, 4, DType::F32)?;
        call(&MarginLoss::builder(6).build()?, rank, &x, &w, &y)
    });
    assert_all(results, "sharded loss: rank 0 failed: out of memory");
}

fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Written by four ranks, read by any number, and by Candle as a whole; a rank that cannot write leaves the file as it was.
#[test]
fn checkpoints_are_one_file_whatever_the_ranks() -> Result<()> {
    let folder = folder("sharded-checkpoint");
    let path = folder.join("head.safetensors");
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        let (c, d) = (11, 3);
        let w = Tensor::randn(0f64, 1.0, (c, d), &Device::Cpu)?.to_dtype(dtype)?;
        let steps = Tensor::randn(0f32, 1.0, c, &Device::Cpu)?;
        let write = |size: usize, bad: Option<usize>| {
            Threads::run(size, |rank| {
                let shard = ClassShard::balanced(c, rank.rank(), size).unwrap();
                let of = |tensor: &Tensor| tensor.narrow(0, shard.range().start, shard.len()).unwrap();
                let momentum = if bad == Some(rank.rank()) { steps.clone() } else { of(&steps) };
                save_sharded(&path, &[("weight", &of(&w)), ("steps \"n\"", &momentum)], &shard, &rank)
                    .map_err(|error| error.to_string())
            })
        };
        assert!(write(4, None).into_iter().all(|result| result.unwrap().is_ok()));
        for size in [1, 2, 5, 13] {
            for rank in 0..size {
                let shard = ClassShard::balanced(c, rank, size)?;
                let rows = load_sharded(&path, "weight", &shard, &Device::Cpu)?;
                assert_eq!((rows.dtype(), rows.dims()), (dtype, &[shard.len(), d][..]));
                assert_eq!(flat(&rows), flat(&w.narrow(0, shard.range().start, shard.len())?));
                let rows = load_sharded(&path, "steps \"n\"", &shard, &Device::Cpu)?;
                assert_eq!(flat(&rows), flat(&steps.narrow(0, shard.range().start, shard.len())?));
            }
        }
        let whole = candle_core::safetensors::load(&path, &Device::Cpu)?;
        assert_eq!((flat(&whole["weight"]), flat(&whole["steps \"n\""])), (flat(&w), flat(&steps)));
        let before = std::fs::read(&path)?;
        for result in write(3, Some(1)) {
            let expected = "sharded loss: rank 1: \"steps \\\"n\\\"\" is of shape [11], the shard has 4 rows";
            assert_eq!(result.unwrap().unwrap_err(), expected);
        }
        assert_eq!(std::fs::read(&path)?, before);
        let shard = ClassShard::balanced(c, 0, 2)?;
        let error =
            |name: &str, shard: &ClassShard| load_sharded(&path, name, shard, &Device::Cpu).unwrap_err().to_string();
        assert!(error("bias", &shard).ends_with("there is no tensor \"bias\""));
        let other = ClassShard::balanced(12, 0, 2)?;
        assert!(error("weight", &other).ends_with("\"weight\" is of shape [11, 3], the shard is of 12 classes"));
        std::fs::write(&path, &before[..40])?;
        assert!(error("weight", &shard).contains("no file of safetensors"));
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// On `size` ranks with a sample of the classes: the outcome, dW's rows put where they belong, and which classes took part.
fn sampled(loss: &MarginLoss, inputs: &Inputs, size: usize, sampling: Sampling) -> (Outcome, Vec<usize>) {
    let outcomes = Threads::run(size, |rank| {
        let (own, shard) = own(inputs, rank.rank(), size);
        let start = shard.range().start;
        let sharded = loss.sharded(shard, Arc::new(rank)).unwrap();
        let SampledGradients { output, dx, dw, rows } =
            sharded.loss_and_grads_sampled(&own.x, &own.w, &own.y, own.rows(loss), sampling).unwrap();
        assert_eq!((dw.dtype(), dw.dims()[0]), (own.w.dtype(), rows.len()));
        let whole = own.w.zeros_like().unwrap();
        for (i, &row) in rows.iter().enumerate() {
            whole.slice_set(&dw.narrow(0, i, 1).unwrap(), 0, row as usize).unwrap();
        }
        let classes: Vec<usize> = rows.iter().map(|&row| start + row as usize).collect();
        (Outcome::new(&output, &dx, &whole, output.margin_gradient.as_ref()), classes)
    });
    let (outcomes, classes): (Vec<_>, Vec<_>) = outcomes.into_iter().map(|outcome| outcome.unwrap()).unzip();
    (joined(outcomes, is_reduced(loss, inputs)), classes.concat())
}

/// The loss over a sample is the loss whose prior takes the other classes out.
#[test]
fn a_sample_is_the_loss_of_its_classes() -> Result<()> {
    for (n, c, d) in [(3, 2, 5), (17, 200, 16), (40, 1530, 24)] {
        let plain = || MarginLoss::builder(c).scale(16.0).ignore_index(IGNORE);
        let builders = [
            plain(),
            plain().margin(Margin::ArcFace { m: 0.4 }).reduction(Reduction::None),
            plain().row_margins(true).reduction(Reduction::WeightedMean),
        ];
        for (index, builder) in builders.into_iter().enumerate() {
            let loss = builder.clone().build()?;
            let inputs = Inputs::random(n, c, d, true, 61)?.with_sample_weights(7)?;
            for (size, rate) in [(1, 0.1), (3, 0.25), (4, 1.0), (7, 0.02)] {
                let label = format!("{index}: {n} {c} {d} over {size}, {rate}");
                let (outcome, classes) = sampled(&loss, &inputs, size, Sampling { rate, seed: 5 });
                let mut prior = vec![f64::NEG_INFINITY; c];
                classes.iter().for_each(|&class| prior[class] = 0.0);
                let mut expected = composed(&builder.clone().prior(Prior::LogPrior(prior)).build()?, &inputs, None)?;
                if rate < 1.0 {
                    // Predictions are of the classes that take part; those of the other loss are of all.
                    (expected.predicted, expected.hard) = (outcome.predicted.clone(), outcome.hard.clone());
                    let counted = outcome.predicted.iter().filter(|&&class| class != candle_margin_loss::IGNORED);
                    counted.for_each(|&class| assert!(classes.contains(&(class as usize)), "{label}"));
                }
                assert_close(&label, &outcome, &expected, 1e-9);
                for dtype in [DType::F32, DType::BF16, DType::F16] {
                    let (low, same) = sampled(&loss, &inputs.to(dtype)?, size, Sampling { rate, seed: 5 });
                    assert_eq!(same, classes, "{label}");
                    let bound = 60.0 * common::epsilon(dtype) * common::size(&outcome.loss).max(1.0);
                    assert!(distance(&low.loss, &outcome.loss) < bound, "{label} {dtype:?}");
                }
            }
        }
    }
    let smoothed = MarginLoss::builder(6).label_smoothing(0.1).build()?;
    let fails = |loss: MarginLoss, rate: f64, expected: &str| {
        let results = errors_of(move |rank| {
            let (x, w, y) = plain(2, 2, 4, DType::F32)?;
            let sharded = loss.sharded(ClassShard::balanced(6, rank.rank(), 3)?, Arc::new(rank))?;
            sharded.loss_and_grads_sampled(&x, &w, &y, None, Sampling { rate, seed: 0 }).map(drop)
        });
        assert_all(results, &format!("sharded loss: rank 0: {expected}"));
    };
    fails(smoothed, 0.5, "label smoothing gives every class a share of the target, and a sample leaves classes out");
    let loss = MarginLoss::builder(6).build()?;
    fails(loss, 1.5, "the rate of sampled classes must be in 0 < rate ≤ 1, it is 1.5");
    Ok(())
}

#[test]
fn sums_over_ranks_are_in_their_order() -> Result<()> {
    for size in [1, 2, 5] {
        for elements in [1, 3, 40] {
            let of = |rank: usize| -> Vec<f32> {
                (0..elements).map(|i| (1.0 + (i * 7 + rank * 3) as f32).recip()).collect()
            };
            let expected: Vec<f32> =
                (0..elements).map(|i| (1..size).fold(of(0)[i], |sum, rank| sum + of(rank)[i])).collect();
            for sum in Threads::run(size, |rank| {
                let own = Tensor::from_vec(of(rank.rank()), (1, elements), &Device::Cpu).unwrap();
                sum_over_ranks(&own, &rank).unwrap().to_vec2::<f32>().unwrap()
            }) {
                assert_eq!(sum.unwrap().concat(), expected, "{elements} over {size}");
            }
        }
    }
    Ok(())
}

/// Steps of some rows are the dense ones there, and nothing elsewhere.
#[test]
fn sparse_steps_touch_their_rows_alone() -> Result<()> {
    let (c, d, rows) = (9, 5, vec![0u32, 3, 4, 8]);
    let random = |rows: usize| Tensor::randn(0f32, 1.0, (rows, d), &Device::Cpu);
    let (w, v, m, s) = (random(c)?, random(c)?, random(c)?, random(c)?.sqr()?);
    let gradient = random(rows.len())?;
    let index = Tensor::new(rows.as_slice(), &Device::Cpu)?;
    let before = [&w, &v, &m, &s].map(|tensor| tensor.copy().unwrap());
    let at = |tensor: &Tensor| tensor.index_select(&index, 0);
    let close = |a: &Tensor, b: &Tensor| distance(&flat(a), &flat(b)) < 2e-6;
    let untouched = |a: &Tensor, b: &Tensor| {
        (0..c as u32).filter(|row| !rows.contains(row)).all(|row| {
            let row = |tensor: &Tensor| flat(&tensor.get(row as usize).unwrap());
            row(a) == row(b)
        })
    };
    let sgd = SparseSgd { lr: 0.1, momentum: 0.9, weight_decay: 0.01 };
    sgd.step(&w, &v, &gradient, &rows)?;
    let velocity = ((at(&before[1])? * 0.9)? + (&gradient + (at(&before[0])? * 0.01)?)?)?;
    assert!(close(&at(&v)?, &velocity) && close(&at(&w)?, &(at(&before[0])? - (velocity * 0.1)?)?));
    assert!(untouched(&w, &before[0]) && untouched(&v, &before[1]));

    let w = before[0].copy()?;
    let adam = SparseAdamW { lr: 0.1, betas: (0.9, 0.99), epsilon: 1e-8, weight_decay: 0.01 };
    adam.step(3, &w, (&m, &s), &gradient, &rows)?;
    let first = ((at(&before[2])? * 0.9)? + (&gradient * (1.0 - 0.9))?)?;
    let second = ((at(&before[3])? * 0.99)? + (gradient.sqr()? * (1.0 - 0.99))?)?;
    let root = ((&second / (1.0 - 0.99f64.powi(3)))?.sqrt()? + 1e-8)?;
    let change = ((&first / (1.0 - 0.9f64.powi(3)))? / root)?;
    assert!(close(&at(&m)?, &first) && close(&at(&s)?, &second));
    assert!(close(&at(&w)?, &((at(&before[0])? * (1.0 - 0.1 * 0.01))? - (change * 0.1)?)?));
    assert!(untouched(&w, &before[0]) && untouched(&m, &before[2]) && untouched(&s, &before[3]));

    let copy = before[0].to_dtype(DType::BF16)?;
    round_rows(&w, &copy, &rows)?;
    assert_eq!(flat(&at(&copy)?), flat(&at(&w.to_dtype(DType::BF16)?)?));
    assert!(untouched(&copy, &before[0].to_dtype(DType::BF16)?));

    let error = |result: candle_margin_loss::Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        error(sgd.step(&w, &w, &gradient, &rows)),
        "sharded loss: the velocity shares its storage with weight W"
    );
    assert_eq!(error(sgd.step(&w, &v, &gradient, &[0, 1, 2, 9])), "sharded loss: there is no row 9 of 9");
    let text = error(sgd.step(&w, &v, &gradient, &rows[1..]));
    assert_eq!(text, "sharded loss: the gradient must be of shape (3, 5), its shape is [4, 5]");
    let text = error(sgd.step(&w, &v.to_dtype(DType::F64)?, &gradient, &rows));
    assert_eq!(text, "sharded loss: the velocity must be f32, contiguous and (C, D), it is f64 [9, 5]");
    Ok(())
}

/// The bytes that ranks receive are those of docs/sharded.md.
#[test]
fn a_step_moves_the_bytes_that_the_documentation_says() -> Result<()> {
    let (c, d, size, each) = (50, 24, 4, 6);
    let n = each * size;
    let loss = MarginLoss::builder(c).build()?;
    let costs = Threads::run(size, |rank| {
        let shard = ClassShard::balanced(c, rank.rank(), size).unwrap();
        let (x, w, y) = plain(each, shard.len(), d, DType::F32).unwrap();
        let sharded = loss.sharded(shard, Arc::new(rank)).unwrap();
        sharded.loss_and_grads(&x, &w, &y, RowInputs::default()).unwrap();
        sharded.costs()
    });
    for costs in costs {
        let costs = costs.unwrap();
        let of = |phase: &str| costs.iter().find(|cost| cost.phase == phase).unwrap().received_bytes as usize;
        let others = n - each;
        assert_eq!(of("agree"), (size - 1) * 23 * 8);
        assert_eq!(of("gather X and y"), others * (4 * d + 8));
        assert_eq!(of("merge statistics"), 2 * others * 48);
        assert_eq!(of("scatter dX"), others * 4 * d);
        assert_eq!(of("statistics") + of("gradients"), 0);
    }
    Ok(())
}
