//! Peak memory beyond inputs, outputs and gradients: the workspace's budget, at any size, and nothing that grows with N but O(N + C).
#![allow(missing_docs)]

mod common;

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use candle_margin_loss::sharded::{ClassShard, Sampling, Threads};
use candle_margin_loss::{MarginLoss, Reduction};
use common::{Result, device};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

struct Setup {
    x: Tensor,
    w: Tensor,
    y: Tensor,
}

fn setup(n: usize, c: usize, d: usize, dtype: DType) -> Result<Setup> {
    let w = Tensor::randn(0f32, 1., (c, d), &device())?.to_dtype(dtype)?;
    let x = Tensor::randn(0f32, 1., (n, d), &device())?.to_dtype(dtype)?;
    let y = Tensor::arange(0u32, n as u32, &device())?;
    let y = Tensor::from_vec(y.to_vec1::<u32>()?.into_iter().map(|i| i % c as u32).collect::<Vec<_>>(), n, &device())?;
    Ok(Setup { x, w, y })
}

/// Bytes at the peak of `work` beyond what was there before.
fn peak(work: impl FnOnce() -> Result<()>) -> Result<usize> {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    work()?;
    Ok(ALLOCATOR.peak_usage() - before)
}

/// One test, since the allocator counts for the whole process.
#[test]
fn peak_memory_is_the_budget() -> Result<()> {
    let mut report = Vec::new();
    for (n, c, d, dtype) in [
        (64, 100, 64, DType::F32),
        (256, 8142, 2048, DType::F32),
        (1024, 10_000, 512, DType::F32),
        (1024, 10_000, 512, DType::BF16),
        (4096, 10_000, 512, DType::F32),
        (4096, 10_000, 512, DType::BF16),
        (64, 1_000_000, 4, DType::F32),
        (20_000, 5000, 16, DType::F16),
        (3000, 3000, 300, DType::F64),
        (200_000, 2, 32, DType::F32),
        (200_000, 2, 32, DType::BF16),
        (20_000, 600, 64, DType::F32),
    ] {
        let Setup { x, w, y } = setup(n, c, d, dtype)?;
        for (budget, reduction) in
            [(64 * MIB, Reduction::Mean), (8 * MIB, Reduction::Mean), (64 * MIB, Reduction::None)]
        {
            let loss = MarginLoss::builder(c).reduction(reduction).workspace_bytes(budget).build()?;
            let (dx, dw) = (x.zeros_like()?, w.zeros_like()?);
            let used = if reduction == Reduction::None {
                // On the tape, with the states between forward and backward; gradients are not counted.
                let (x, w) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
                let gradients = x.elem_count() * x.dtype().size_in_bytes() + w.elem_count() * w.dtype().size_in_bytes();
                let all = peak(|| {
                    let per_row = loss.forward(&x, &w, &y)?;
                    per_row.sum_all()?.backward()?;
                    Ok(())
                })?;
                // Candle's own: a zeroed gradient and its sum with ours, beside ours.
                all.saturating_sub(3 * gradients)
            } else {
                peak(|| {
                    loss.loss_and_grads_into(&x, &w, &y, None, &dx, &dw)?;
                    Ok(())
                })?
            };
            // The call's own tables of rows and classes, some 300 bytes a row and 50 a class.
            let tables = 300 * n + 50 * c + 64 * 1024;
            report.push(format!(
                "{n} {c} {d} {dtype:?} {reduction:?}: {:.1} of {} MiB",
                used as f64 / MIB as f64,
                budget / MIB
            ));
            assert!(used <= budget + tables, "{used} bytes: {}", report.last().unwrap());
        }
    }
    // A shard's: statistics, gradients, and a sample whose rows are not copied.
    let (n, c, d) = (1024, 10_000, 512);
    let Setup { x, w, y } = setup(n, c, d, DType::F32)?;
    let loss = MarginLoss::builder(2 * c).workspace_bytes(8 * MIB).build()?;
    let shard = ClassShard::balanced(2 * c, 0, 2)?;
    let tables = 600 * n + 50 * c + 64 * 1024;
    let used = peak(|| loss.partial(&x, &w, &y, None, &shard).map(drop).map_err(Into::into))?;
    assert!(used <= 8 * MIB + tables, "{used} bytes for a shard's statistics");
    let rank = Arc::new(Threads::new(1).remove(0));
    let loss = MarginLoss::builder(c).workspace_bytes(8 * MIB).build()?;
    let sharded = loss.sharded(ClassShard::balanced(c, 0, 1)?, rank)?;
    let sampling = Sampling { rate: 0.5, seed: 1 };
    let used = peak(|| sharded.loss_and_grads_sampled(&x, &w, &y, None, sampling).map(drop).map_err(Into::into))?;
    // X gathered, its part of dX, what comes of it and its sum; dW of half of the classes.
    let given = 4 * (4 * n * d + c / 2 * d);
    assert!(used <= given + 8 * MIB + tables, "{used} bytes for a sampled step, {given} of them what it gives");
    // A frozen argument costs nothing: no gradient of it is ever made.
    let (n, c, d) = (64, 8142, 2048);
    let Setup { x, w, y } = setup(n, c, d, DType::F32)?;
    let x = Var::from_tensor(&x)?;
    for reduction in [Reduction::Mean, Reduction::None] {
        let loss = MarginLoss::builder(c).reduction(reduction).workspace_bytes(8 * MIB).build()?;
        let used = peak(|| {
            loss.forward(&x, &w, &y)?.sum_all()?.backward()?;
            Ok(())
        })?;
        assert!(used < 16 * MIB, "{used} bytes with W frozen, {} of them its gradient's size", 4 * c * d);
    }
    // Several losses before one backward: each holds dX and dW, or where it recomputes them O(N).
    let (n, c, d) = (8, 2000, 500);
    let Setup { x, w, y } = setup(n, c, d, DType::F32)?;
    let w = Var::from_tensor(&w)?;
    for recompute in [true, false] {
        let loss = MarginLoss::builder(c).recompute_gradients(recompute).build()?;
        drop(loss.forward(&x, &w, &y)?); // the workspace is there
        let before = ALLOCATOR.current_usage();
        let losses = (0..8).map(|_| loss.forward(&x, &w, &y)).collect::<candle_core::Result<Vec<_>>>()?;
        let held = ALLOCATOR.current_usage() - before;
        let gradients = 8 * 4 * c * d;
        assert!(if recompute { held < 64 * 1024 } else { held >= gradients }, "{held} bytes, recomputing: {recompute}");
        let sum = losses.iter().skip(1).try_fold(losses[0].clone(), |sum, loss| sum + loss)?;
        assert!(sum.backward()?.get(&w).is_some());
    }
    println!("{}", report.join("\n"));
    Ok(())
}
