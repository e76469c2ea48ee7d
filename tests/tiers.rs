//! Every instruction set that the CPU path's sweeps are compiled for gives the same bits: each fused multiply-add is one, by hardware or by `libm`, and
//! no sum depends on the width of a vector. `gemm` chooses its own kernels, which stay those of the machine. Where bf16 has products of its own, under
//! v4, it rounds elsewhere: tests/oracle.rs and users.rs hold its errors.
#![allow(missing_docs)]

mod common;

use std::process::Command;

use candle_core::DType;
use common::{Inputs, Result, assert_close, composed, fused, losses, on_cuda};

const LINE: &str = "bits of ";

/// What a process prints under one instruction set: a hash of everything that every loss gives, once it is held against the composed loss in f64.
#[test]
fn of_this_process() -> Result<()> {
    if on_cuda() {
        return Ok(());
    }
    // A last vector that is not full, and one that is.
    for (n, c, d) in [(19, 35, 37), (48, 16, 32)] {
        for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
            let mut hash = 0xcbf2_9ce4_8422_2325u64;
            for (name, loss) in losses(c) {
                let inputs = Inputs::random(n, c, d, name.contains("ignore"), 77)?.to(dtype)?;
                let outcome = fused(&loss, &inputs, None)?;
                if dtype == DType::F64 {
                    assert_close(name, &outcome, &composed(&loss, &inputs, None)?, 1e-9);
                }
                for value in outcome.parts().iter().flat_map(|(_, values)| values.iter()) {
                    hash = (hash ^ value.to_bits()).wrapping_mul(0x0000_0100_0000_01b3);
                }
            }
            println!("{LINE}{n} {c} {d} {dtype:?}: {hash:016x}");
        }
    }
    Ok(())
}

fn has_products_of_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[test]
fn every_instruction_set_gives_the_same_bits() -> Result<()> {
    if on_cuda() {
        println!("SKIPPED on CUDA: of the CPU path");
        return Ok(());
    }
    let under = |tier: &str| -> Result<Option<Vec<String>>> {
        let mut test = Command::new(std::env::current_exe()?);
        let output = test.args(["of_this_process", "--exact", "--nocapture"]).env("MARGIN_LOSS_SIMD", tier).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if text.contains("is not to be had here") {
            return Ok(None);
        }
        assert!(output.status.success(), "{tier}: {text}");
        Ok(Some(text.lines().filter_map(|line| line.find(LINE).map(|at| line[at..].to_string())).collect()))
    };
    let scalar = under("scalar")?.ok_or("scalar is everywhere")?;
    assert_eq!(scalar.len(), 8, "{scalar:?}");
    for tier in ["v3", "v4"] {
        match under(tier)? {
            Some(lines) => {
                for (line, scalar) in lines.iter().zip(&scalar) {
                    let own_products = tier == "v4" && has_products_of_bf16() && line.contains("BF16");
                    assert_eq!(line != scalar, own_products, "{tier}: {line}, scalar {scalar}");
                }
            }
            None => println!("SKIPPED {tier}: this machine has not got it"),
        }
    }
    Ok(())
}
