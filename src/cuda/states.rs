//! What a forward pass leaves for a backward pass.

use candle_core::cuda_backend::CudaStorage;
use candle_core::op::BackpropOp;
use candle_core::{DType, Storage, Tensor};
use cudarc::driver::CudaSlice;

use super::kind::Accumulator;
use super::params::MarginLossCall;
use super::plan::align;
use crate::error::Result;
use crate::problem::Problem;

/// What a forward pass leaves for a backward pass of other upstream gradients: the rows' states, the classes' norms, the reduction's factor.
#[derive(Debug)]
pub(crate) struct States {
    pub(super) memory: CudaSlice<u8>,
    /// Whether the rows' states and the norms are in it: one block that made a whole step kept them on chip.
    pub(super) complete: bool,
}

impl States {
    /// What the reduction multiplies by, a scalar of f64.
    pub fn factor(&self, problem: &Problem) -> Result<Tensor> {
        let device = problem.features.device().as_cuda_device()?;
        let layout = StatesLayout::of(problem);
        let mut factor = device.alloc_zeros::<f64>(1)?;
        // SAFETY: eight bytes that the forward pass writes as one f64, at a multiple of eight.
        let of_states = unsafe { self.memory.slice(layout.factor..layout.factor + 8).transmute::<f64>(1) };
        device.memcpy_dtod(&of_states.expect("eight bytes are an f64"), &mut factor)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(factor, device.clone()));
        Ok(Tensor::from_storage(storage, (), BackpropOp::none(), false))
    }
}

/// Where the parts of [`States`] begin, in bytes.
pub(super) struct StatesLayout {
    class_norms: usize,
    factor: usize,
    pub bad_row: usize,
    pub end: usize,
}

impl StatesLayout {
    pub fn of(problem: &Problem) -> Self {
        match problem.accumulation_dtype() {
            DType::F64 => Self::new::<f64>(problem.n, problem.c),
            _ => Self::new::<f32>(problem.n, problem.c),
        }
    }

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
