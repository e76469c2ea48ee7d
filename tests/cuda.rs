//! The loss composed of Candle's ops on a CUDA device, against the CPU. Runs on the emulated GPU, whose checks then hold for every kernel of
//! Candle's that it launches: `sh tests/emulator/run.sh cargo test --release --features cuda --test cuda`.
#![cfg(feature = "cuda")]
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Device};
use common::{Inputs, Result, composed, composed_where_it_is, distance, losses, size};

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
