//! The tensors that a call gives.

use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, Shape, Storage, Tensor};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits};

use super::kind::Accumulator;
use super::params::MarginLossCall;
use crate::error::Result;
use crate::options::Reduction;
use crate::output::LossOutput;
use crate::problem::Problem;

/// Tensors that a call gives, before they are tensors.
pub(super) struct Outputs<T> {
    /// None where nothing is reduced
    loss: Option<CudaSlice<T>>,
    per_sample: CudaSlice<T>,
    predicted: CudaSlice<u32>,
    hard: CudaSlice<u8>,
    target_cosine: CudaSlice<T>,
    /// None where there are no row margins
    margin_slopes: Option<CudaSlice<T>>,
}

impl<T: Accumulator> Outputs<T> {
    pub fn new(problem: &Problem, device: &CudaDevice, zero: bool) -> Result<Self> {
        fn new<E: DeviceRepr + ValidAsZeroBits>(device: &CudaDevice, count: usize, zero: bool) -> Result<CudaSlice<E>> {
            // SAFETY: the forward pass writes every element before the tensor is handed out.
            Ok(if zero { device.alloc_zeros(count)? } else { unsafe { device.alloc(count)? } })
        }
        let n = problem.n;
        let reduced = problem.params().reduction != Reduction::None;
        Ok(Self {
            loss: reduced.then(|| new(device, 1, zero)).transpose()?,
            per_sample: new(device, n, zero)?,
            predicted: new(device, n, zero)?,
            hard: new(device, n, zero)?,
            target_cosine: new(device, n, zero)?,
            margin_slopes: problem.rows.margins.map(|_| new(device, 2 * n, zero)).transpose()?,
        })
    }

    pub fn point_at<'a>(&'a mut self, call: &mut MarginLossCall, stream: &'a CudaStream) -> Vec<SyncOnDrop<'a>> {
        let mut guards = Vec::new();
        let mut keep = |(address, guard)| {
            guards.push(guard);
            address
        };
        call.loss = self.loss.as_mut().map_or(0, |loss| keep(loss.device_ptr_mut(stream))) as _;
        call.per_sample = keep(self.per_sample.device_ptr_mut(stream)) as _;
        call.predicted = keep(self.predicted.device_ptr_mut(stream)) as _;
        call.hard = keep(self.hard.device_ptr_mut(stream)) as _;
        call.target_cosine = keep(self.target_cosine.device_ptr_mut(stream)) as _;
        call.margin_slopes = self.margin_slopes.as_mut().map_or(0, |slopes| keep(slopes.device_ptr_mut(stream))) as _;
        guards
    }

    /// What the call gives, and the row margins' slopes.
    pub fn wrap(self, problem: &Problem, device: &CudaDevice) -> (LossOutput, Option<Tensor>) {
        fn tensor<E: CudaDType>(slice: CudaSlice<E>, shape: impl Into<Shape>, device: &CudaDevice) -> Tensor {
            let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
            Tensor::from_storage(storage, shape, BackpropOp::none(), false)
        }
        let n = problem.n;
        let per_sample = tensor(self.per_sample, n, device);
        let output = LossOutput {
            loss: self.loss.map_or_else(|| per_sample.clone(), |loss| tensor(loss, (), device)),
            per_sample,
            predicted: tensor(self.predicted, n, device),
            hard: tensor(self.hard, n, device),
            target_cosine: tensor(self.target_cosine, n, device),
            margin_gradient: None,
        };
        (output, self.margin_slopes.map(|slopes| tensor(slopes, (n, 2), device)))
    }
}
