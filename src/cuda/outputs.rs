//! The tensors that a call gives.

use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, Storage, Tensor};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits};

use super::kind::Accumulator;
use super::params::MarginLossCall;
use crate::error::Result;
use crate::options::Reduction;
use crate::output::{LossOutput, MarginSlopes};
use crate::problem::Problem;

/// Tensors that a call gives, before they are tensors: one allocation a type, which is as few as tensors can have.
pub(super) struct Outputs<T> {
    /// ℓ (N), c_iy (N), with row margins their slopes (N, 2) and the reduction's factor, and where the losses are reduced, the loss
    values: CudaSlice<T>,
    predicted: CudaSlice<u32>,
    hard: CudaSlice<u8>,
    n: usize,
    reduced: bool,
    row_margins: bool,
}

impl<T: Accumulator> Outputs<T> {
    pub fn new(problem: &Problem, device: &CudaDevice, zero: bool) -> Result<Self> {
        fn new<E: DeviceRepr + ValidAsZeroBits>(device: &CudaDevice, count: usize, zero: bool) -> Result<CudaSlice<E>> {
            // An allocation of nothing is an error of the driver's.
            let count = count.max(1);
            // SAFETY: the forward pass writes every element before the tensor is handed out.
            Ok(if zero { device.alloc_zeros(count)? } else { unsafe { device.alloc(count)? } })
        }
        let n = problem.n;
        let reduced = problem.params().reduction != Reduction::None;
        let row_margins = problem.rows.margins.is_some();
        let slopes = if row_margins { 2 * n + 1 } else { 0 };
        Ok(Self {
            values: new(device, 2 * n + slopes + usize::from(reduced), zero)?,
            predicted: new(device, n, zero)?,
            hard: new(device, n, zero)?,
            n,
            reduced,
            row_margins,
        })
    }

    pub fn point_at<'a>(&'a mut self, call: &mut MarginLossCall, stream: &'a CudaStream) -> [SyncOnDrop<'a>; 3] {
        let len = self.len();
        let ((values, a), (predicted, b)) = (self.values.device_ptr_mut(stream), self.predicted.device_ptr_mut(stream));
        let (hard, c) = self.hard.device_ptr_mut(stream);
        let at = |place: usize| values + (place * size_of::<T>()) as u64;
        call.per_sample = values as _;
        call.target_cosine = at(self.n) as _;
        if self.row_margins {
            call.margin_slopes = at(2 * self.n) as _;
            call.margin_factor = at(4 * self.n) as _;
        }
        call.loss = if self.reduced { at(len - 1) } else { 0 } as _;
        (call.predicted, call.hard) = (predicted as _, hard as _);
        [a, b, c]
    }

    fn len(&self) -> usize {
        let slopes = if self.row_margins { 2 * self.n + 1 } else { 0 };
        2 * self.n + slopes + usize::from(self.reduced)
    }

    /// What the call gives and, with row margins, the losses' slopes by them.
    pub fn wrap(self, device: &CudaDevice) -> Result<(LossOutput, Option<MarginSlopes>)> {
        fn tensor<E: CudaDType>(slice: CudaSlice<E>, count: usize, device: &CudaDevice) -> Tensor {
            let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
            Tensor::from_storage(storage, count, BackpropOp::none(), false)
        }
        let (n, len) = (self.n, self.len());
        let values = tensor(self.values, len, device);
        let per_sample = values.narrow(0, 0, n)?;
        let output = LossOutput {
            loss: if self.reduced { values.narrow(0, len - 1, 1)?.reshape(())? } else { per_sample.clone() },
            per_sample,
            predicted: tensor(self.predicted, n, device),
            hard: tensor(self.hard, n, device),
            target_cosine: values.narrow(0, n, n)?,
            margin_gradient: None,
            bias_gradient: None,
        };
        let slopes = || -> Result<MarginSlopes> {
            let rows = values.narrow(0, 2 * n, 2 * n)?.reshape((n, 2))?;
            Ok(MarginSlopes { rows, factor: values.narrow(0, 4 * n, 1)?.reshape(())? })
        };
        Ok((output, self.row_margins.then(slopes).transpose()?))
    }
}
