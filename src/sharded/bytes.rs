//! Tensors on the CPU as bytes, in the machine's order: what ranks exchange and what files hold.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::bytemuck::{cast_slice, cast_slice_mut};

use crate::error::{Error, Result};

/// Lends `work` a tensor's bytes.
pub(super) fn with_bytes<T>(tensor: &Tensor, work: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    let tensor = tensor.detach().contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Sharded("tensors are exchanged and written from the CPU, this one is elsewhere".into()));
    };
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    work(match storage {
        CpuStorage::U8(values) => &values[range],
        CpuStorage::I64(values) => cast_slice(&values[range]),
        CpuStorage::F32(values) => cast_slice(&values[range]),
        CpuStorage::F64(values) => cast_slice(&values[range]),
        CpuStorage::F16(values) => cast_slice::<u16, u8>(values[range].reinterpret_cast()),
        CpuStorage::BF16(values) => cast_slice::<u16, u8>(values[range].reinterpret_cast()),
        _ => return Err(other_type(tensor.dtype())),
    })
}

/// A new tensor on the CPU, of bytes that `fill` writes over zeros.
pub(super) fn from_bytes(dtype: DType, shape: &[usize], fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Tensor> {
    let elements = shape.iter().product();
    let device = &Device::Cpu;
    Ok(match dtype {
        DType::U8 => {
            let mut values = vec![0u8; elements];
            fill(&mut values)?;
            Tensor::from_vec(values, shape, device)?
        }
        DType::I64 => {
            let mut values = vec![0i64; elements];
            fill(cast_slice_mut(&mut values))?;
            Tensor::from_vec(values, shape, device)?
        }
        DType::F32 => {
            let mut values = vec![0f32; elements];
            fill(cast_slice_mut(&mut values))?;
            Tensor::from_vec(values, shape, device)?
        }
        DType::F64 => {
            let mut values = vec![0f64; elements];
            fill(cast_slice_mut(&mut values))?;
            Tensor::from_vec(values, shape, device)?
        }
        DType::F16 => {
            let mut values = vec![f16::ZERO; elements];
            fill(cast_slice_mut::<u16, u8>(values.reinterpret_cast_mut()))?;
            Tensor::from_vec(values, shape, device)?
        }
        DType::BF16 => {
            let mut values = vec![bf16::ZERO; elements];
            fill(cast_slice_mut::<u16, u8>(values.reinterpret_cast_mut()))?;
            Tensor::from_vec(values, shape, device)?
        }
        _ => return Err(other_type(dtype)),
    })
}

fn other_type(dtype: DType) -> Error {
    Error::Sharded(format!("tensors that are exchanged or written are u8, i64 or floats, not {}", dtype.as_str()))
}
