//! What a forward pass leaves for a backward pass.

use cudarc::driver::CudaSlice;

use super::kind::Accumulator;
use super::params::MarginLossCall;
use super::plan::align;

/// What a forward pass leaves for a backward pass of other upstream gradients: the rows' states, the classes' norms, the reduction's factor.
#[derive(Debug)]
pub(crate) struct States {
    pub(super) memory: CudaSlice<u8>,
}

/// Where the parts of [`States`] begin, in bytes.
pub(super) struct StatesLayout {
    class_norms: usize,
    factor: usize,
    pub bad_row: usize,
    pub end: usize,
}

impl StatesLayout {
    pub fn new<T: Accumulator>(n: usize, c: usize) -> Self {
        let class_norms = align(n * T::ROW_STATE);
        let factor = class_norms + align(c * T::NORM);
        Self { class_norms, factor, bad_row: factor + 8, end: factor + 16 }
    }

    /// Sets a call's addresses of states that begin at `base`.
    pub fn point_at(&self, base: u64, arguments: &mut MarginLossCall) {
        arguments.rows = base as _;
        arguments.class_norms = (base + self.class_norms as u64) as _;
        arguments.factor = (base + self.factor as u64) as _;
        arguments.bad_row = (base + self.bad_row as u64) as _;
    }
}
