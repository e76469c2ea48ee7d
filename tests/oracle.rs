//! The fused op against the loss composed of Candle ops: in f64 to rounding, in lower precisions at most twice the composed loss's own error.
#![allow(missing_docs)]

mod common;

use candle_core::DType;
use common::{Inputs, Result, composed, distance, fused, losses, off_tape, size};

/// (N, C, D) on both sides of vectors, tiles and lanes.
const SIZES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (1, 2, 3), (3, 1, 5), (5, 7, 2), (15, 33, 16), (16, 16, 17), (17, 100, 64), (70, 260, 96)];

#[test]
fn f64_agrees_with_the_composed_loss() -> Result<()> {
    for (seed, (n, c, d)) in SIZES.into_iter().enumerate() {
        for (name, loss) in losses(c) {
            let inputs = Inputs::random(n, c, d, name.contains("ignore"), seed as u64)?;
            let label = format!("{name} {n} {c} {d}");
            let expected = composed(&loss, &inputs, None)?;
            common::assert_close(&label, &fused(&loss, &inputs, None)?, &expected, 1e-9);
            common::assert_close(&label, &off_tape(&loss, &inputs)?, &expected, 1e-9);
        }
    }
    Ok(())
}
