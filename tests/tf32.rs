//! Products in TF32 where the user sets Candle's own switch for them (`set_gemm_reduced_precision_f32`), which is of the whole process: a test binary
//! of its own.
#![cfg(feature = "cuda")]
#![allow(missing_docs)]

mod common;

use candle_core::cuda::set_gemm_reduced_precision_f32;
use candle_core::{DType, Device};
use common::{Inputs, Result, builders, distance, off_tape, size};

/// f32 operands have 11 significant bits in TF32: near the CPU path to that, and not nearer, for all that f32 would.
#[test]
fn tf32_on_request() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    let name = "per class, weights, prior, smoothing, ignore, weighted mean";
    for (n, c, d) in [(64, 100, 64), (65, 63, 65), (70, 130, 33), (5, 1500, 20), (130, 70, 200)] {
        let (_, builder) = builders(c).into_iter().find(|(other, _)| *other == name).ok_or("no such loss")?;
        for x in [DType::F32, DType::BF16, DType::F16] {
            let inputs = Inputs::random(n, c, d, true, 41)?.with_sample_weights(5)?;
            let inputs = Inputs { x: inputs.x.to_dtype(x)?, w: inputs.w.to_dtype(DType::F32)?, ..inputs };
            for streaming in [false, true] {
                let loss = builder.clone().streaming(streaming).build()?;
                let (there, expected) = (inputs.on(&gpu)?, off_tape(&loss, &inputs.on(&Device::Cpu)?)?);
                set_gemm_reduced_precision_f32(false);
                let exact = off_tape(&loss, &there)?;
                set_gemm_reduced_precision_f32(true);
                let found = off_tape(&loss, &there)?;
                let label = format!("{n} {c} {d} {x:?}, streaming {streaming}");
                for (((part, found), (_, exact)), (_, expected)) in
                    found.parts().into_iter().zip(exact.parts()).zip(expected.parts())
                {
                    if expected.is_empty() {
                        continue; // the loss takes no row margins
                    }
                    let (error, size) = (distance(found, expected), size(expected));
                    assert!(error <= BOUND * size, "{label}: {part} is off by {error:e} of {size:e}");
                    let rounded = part == "dX" && x != DType::F32; // by more than TF32 rounds
                    assert!(
                        rounded || error > 4.0 * distance(exact, expected),
                        "{label}: {part} is no TF32: {error:e}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// Both operands of a cosine are rounded by 2^-11 at most, an exponent is off by s = 30 times as much; half of the worst case, which random
/// signs stay far from.
const BOUND: f64 = 30.0 / 2048.0;
