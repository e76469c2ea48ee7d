//! What a forward pass leaves for a backward pass.

use candle_core::DType;

use super::kind::Accumulator;
use super::params::MarginLossCall;
use super::plan::align;
use super::workspace::Memory;
use crate::problem::Problem;

/// What a forward pass leaves for a backward pass of other upstream gradients: the rows' states, the classes' norms, the reduction's factor.
/// None where they were not to be kept, or one block that made a whole step kept them on chip.
#[derive(Debug)]
pub(crate) struct States(pub(super) Option<Memory>);

/// Where the parts of [`States`] begin, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct StatesLayout {
    class_norms: usize,
    factor: usize,
    bad_row: usize,
    pub end: usize,
}

impl StatesLayout {
    fn new<T: Accumulator>(n: usize, c: usize) -> Self {
        let class_norms = align(n * T::ROW_STATE);
        let factor = class_norms + align(c * T::NORM);
        Self { class_norms, factor, bad_row: factor + 8, end: factor + 16 }
    }

    /// By a problem's type of accumulation.
    pub fn of(problem: &Problem) -> Self {
        match problem.accumulation_dtype() {
            DType::F64 => Self::new::<f64>(problem.n, problem.c),
            _ => Self::new::<f32>(problem.n, problem.c),
        }
    }

    /// Sets a call's addresses of states that begin at `base`.
    pub fn point_at(&self, base: u64, arguments: &mut MarginLossCall) {
        arguments.rows = base as _;
        arguments.class_norms = (base + self.class_norms as u64) as _;
        arguments.factor = (base + self.factor as u64) as _;
        arguments.bad_row = (base + self.bad_row as u64) as _;
    }
}
