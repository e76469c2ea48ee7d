//! What a step costs the CPU, counted: instructions of a call of `loss_and_grads_into`, by `valgrind --tool=callgrind`, which knows AVX2 and not AVX-512, so
//! that bf16 goes by `gemm`. The figures stand here, ±2 %; they are those of one compiler's code, and a newer one that moves them changes them here.
#![cfg(all(target_arch = "x86_64", target_os = "linux", not(debug_assertions)))]
#![allow(missing_docs)]

mod common;

use std::process::Command;

use candle_core::{DType, Tensor};
use candle_margin_loss::MarginLoss;
use common::{Inputs, Result, counts, on_cuda};

/// (N, C, D), type, thousands of instructions a call
const FIGURES: [((usize, usize, usize), DType, u64); 4] = [
    ((64, 100, 64), DType::F32, 796),
    ((64, 100, 64), DType::BF16, 913),
    ((96, 600, 96), DType::F32, 6948),
    ((96, 600, 96), DType::BF16, 7874),
];
/// What the calls that are counted have in their environment: an index of [`FIGURES`].
const COUNTED: &str = "MARGIN_LOSS_COUNTED";
const CALLS: u64 = 4;

/// Callgrind counts what is below this function.
#[inline(never)]
fn counted_calls(loss: &MarginLoss, inputs: &Inputs, dx: &Tensor, dw: &Tensor) -> Result<()> {
    for _ in 0..CALLS {
        std::hint::black_box(loss.loss_and_grads_into(&inputs.x, &inputs.w, &inputs.y, None, dx, dw)?);
    }
    Ok(())
}

/// Does the calls that are to be counted, after one that pays for memory.
#[test]
fn of_this_process() -> Result<()> {
    let Some(index) = std::env::var(COUNTED).ok().and_then(|index| index.parse::<usize>().ok()) else {
        return Ok(());
    };
    let ((n, c, d), dtype, _) = FIGURES[index];
    let loss = MarginLoss::dbm_bs(&counts(c), 0.1)?;
    let inputs = Inputs::random(n, c, d, false, 7)?.to(dtype)?;
    let (dx, dw) = (inputs.x.zeros_like()?, inputs.w.zeros_like()?);
    loss.loss_and_grads_into(&inputs.x, &inputs.w, &inputs.y, None, &dx, &dw)?;
    // On one thread that is the pool's own: callgrind turns counting on for a thread.
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()?
        .install(|| counted_calls(&loss, &inputs, &dx, &dw).map_err(|e| e.to_string()))?;
    Ok(())
}

#[test]
fn a_step_takes_no_more_than_it_did() -> Result<()> {
    if on_cuda() {
        println!("SKIPPED on CUDA: of the CPU path");
        return Ok(());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: no valgrind here");
        return Ok(());
    }
    let mut wrong = Vec::new();
    for (index, (size, dtype, figure)) in FIGURES.into_iter().enumerate() {
        let out = std::env::temp_dir().join(format!("margin-loss-{}-{index}", std::process::id()));
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--toggle-collect=*counted_calls*"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(std::env::current_exe()?)
            .args(["of_this_process", "--exact", "--test-threads=1"])
            .env(COUNTED, index.to_string())
            .env("RAYON_NUM_THREADS", "1")
            .env("MARGIN_LOSS_SIMD", "v3")
            .output()?;
        let _ = std::fs::remove_file(&out);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stdout));
        let collected = text.lines().find_map(|line| line.split_once("Collected : ")).ok_or("no count")?.1;
        let count = collected.trim().parse::<u64>()? / CALLS / 1000;
        println!("{size:?} {dtype:?}: {count} thousand instructions, {figure} before");
        if count.abs_diff(figure) * 50 > figure {
            wrong.push(format!("{size:?} {dtype:?}: {count} thousand instructions, not {figure} ± 2 %"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
