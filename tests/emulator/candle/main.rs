//! Candle's own CUDA kernels on the emulated GPU: their results are those of Candle on the CPU.
//!
//! Values are equal to the CPU's within a few units in the last place of the type: the two differ by the order of sums, and by functions
//! that each computes in its own way. Integers and what only moves values are equal to the bit; NaN is equal to NaN, and to nothing else.
#![allow(missing_docs)]

mod both;
mod faults;
mod layers;
mod movement;
mod pointwise;
mod sums;

use both::{ALL, close, gpu, numbers};

#[test]
fn up_and_back() {
    for dtype in ALL {
        for count in [1, 31, 1000, 4097] {
            let x = numbers(count, count, dtype).unwrap();
            let y = x.to_device(&gpu()).unwrap();
            assert!(y.device().is_cuda());
            close(&x, &y, 0.0, "there and back");
            close(&x, &y.copy().unwrap(), 0.0, "a copy on the device");
        }
    }
}
