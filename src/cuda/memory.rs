//! Addresses of tensors, to read and to write.

use std::cell::RefCell;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDType, CudaStorage, CudaStorageSlice};
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Tensor};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::problem::{Gradients, same_storage};

/// A matrix whose elements lie side by side in each row: itself, or a copy.
pub(super) fn by_rows(matrix: &Tensor) -> Result<Tensor> {
    let (columns, step) = (matrix.dims()[1], matrix.stride()[1]);
    Ok(if step == 1 || columns == 1 { matrix.clone() } else { matrix.contiguous()? })
}

/// The address of a tensor's first element, to be read while the guard lives.
pub(super) fn pointer<'a>(
    storage: &'a Storage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(u64, SyncOnDrop<'a>)> {
    fn of<'a, E: CudaDType + 'a>(storage: &'a CudaStorage, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
        Ok(storage.as_cuda_slice::<E>()?.device_ptr(stream))
    }
    let Storage::Cuda(storage) = storage else {
        return Err(Error::Input("the CUDA path was given a tensor of another device".into()));
    };
    let (base, guard) = match storage.dtype() {
        DType::F64 => of::<f64>(storage, stream)?,
        DType::F32 => of::<f32>(storage, stream)?,
        DType::F16 => of::<f16>(storage, stream)?,
        DType::BF16 => of::<bf16>(storage, stream)?,
        DType::I64 => of::<i64>(storage, stream)?,
        DType::U32 => of::<u32>(storage, stream)?,
        DType::U8 => of::<u8>(storage, stream)?,
        other => return Err(Error::Input(format!("the kernels take no tensor of {}", other.as_str()))),
    };
    Ok((base + (layout.start_offset() * storage.dtype().size_in_bytes()) as u64, guard))
}

/// Lends `work` the addresses of the gradients to write, 0 for one that is not wanted: of two tensors, or of two places of one storage.
pub(super) fn with_gradients<R>(
    out: Gradients,
    stream: &CudaStream,
    work: impl FnOnce(u64, u64) -> Result<R>,
) -> Result<R> {
    match (out.features, out.weight) {
        (Some(dx), Some(dw)) if same_storage(dx, dw) => with_pointer(dx, stream, |address| {
            let (x, w) = (dx.layout().start_offset(), dw.layout().start_offset());
            let from_x_to_w = (w as i64 - x as i64) * dx.dtype().size_in_bytes() as i64;
            work(address, address.wrapping_add_signed(from_x_to_w))
        }),
        (dx, dw) => with_optional_pointer(dx, stream, |dx| with_optional_pointer(dw, stream, |dw| work(dx, dw))),
    }
}

fn with_optional_pointer<R>(
    tensor: Option<&Tensor>,
    stream: &CudaStream,
    work: impl FnOnce(u64) -> Result<R>,
) -> Result<R> {
    match tensor {
        None => work(0),
        Some(tensor) => with_pointer(tensor, stream, work),
    }
}

/// Lends `work` the address of a contiguous tensor's first element, to be written.
fn with_pointer<R>(tensor: &Tensor, stream: &CudaStream, work: impl FnOnce(u64) -> Result<R>) -> Result<R> {
    let mut result = None;
    let write = |address: u64| result = Some(work(address));
    tensor.inplace_op1(&Write { stream, work: RefCell::new(Some(Box::new(write))) })?;
    result.unwrap_or_else(|| Err(Error::Input("a gradient tensor that is not on a CUDA device".into())))
}

/// Candle's way to a tensor's storage for writing: an in-place op, here with what to do with its address.
struct Write<'w> {
    stream: &'w CudaStream,
    work: RefCell<Option<WriteFn<'w>>>,
}

type WriteFn<'w> = Box<dyn FnOnce(u64) + 'w>;

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "margin-loss-gradient"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Err(candle_core::Error::msg("a gradient tensor that is not on a CUDA device"))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let size = storage.dtype().size_in_bytes();
        let (base, _guard) = match &mut storage.slice {
            CudaStorageSlice::F64(slice) => slice.device_ptr_mut(self.stream),
            CudaStorageSlice::F32(slice) => slice.device_ptr_mut(self.stream),
            CudaStorageSlice::F16(slice) => slice.device_ptr_mut(self.stream),
            CudaStorageSlice::BF16(slice) => slice.device_ptr_mut(self.stream),
            _ => return Err(candle_core::Error::msg("a gradient tensor of another dtype")),
        };
        if let Some(work) = self.work.take() {
            work(base + (layout.start_offset() * size) as u64);
        }
        Ok(())
    }
}
