//! Gradients on a tape by their upstream gradient.

use candle_core::DType::{BF16, F16, F32, F64};
use candle_core::{DType, Storage, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

use super::numeric::{Element, Real};
use super::view::{new_gradient, with_slices};
use crate::error::{Error, Result};
use crate::problem::Gradients;

/// Elements that are scaled together: they stay in the first-level cache.
const PIECE: usize = 2048;

/// `gradient`, contiguous and in the type of accumulation, times `upstream`: rounded once, to `dtype`.
pub(crate) fn scale_gradients(gradient: &Tensor, dtype: DType, upstream: f64) -> Result<Tensor> {
    // `loss.backward()` starts from 1: nothing to multiply, and no copy of a C×D tensor.
    if upstream == 1.0 && gradient.dtype() == dtype {
        return Ok(gradient.clone());
    }
    match dtype {
        F64 => typed::<f64>(gradient, dtype, upstream),
        F32 => typed::<f32>(gradient, dtype, upstream),
        F16 => typed::<f16>(gradient, dtype, upstream),
        BF16 => typed::<bf16>(gradient, dtype, upstream),
        other => Err(Error::Input(format!("a gradient of {}", other.as_str()))),
    }
}

fn typed<E: Element>(gradient: &Tensor, dtype: DType, upstream: f64) -> Result<Tensor> {
    let scaled = new_gradient(gradient, dtype)?;
    let (storage, layout) = gradient.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Input("the CPU path was given a tensor of another device".into()));
    };
    let values = &E::Acc::cpu_storage_as_slice(storage)?[layout.start_offset()..][..gradient.elem_count()];
    let upstream = E::Acc::of(upstream);
    with_slices(Gradients { features: Some(&scaled), weight: None }, |out: Option<&mut [E]>, _: Option<&mut [E]>| {
        let pieces = out.unwrap_or_default().par_chunks_mut(PIECE).zip(values.par_chunks(PIECE));
        pieces.for_each(|(out, values)| {
            let mut scaled = [E::Acc::ZERO; PIECE];
            let scaled = &mut scaled[..values.len()];
            for (scaled, &value) in scaled.iter_mut().zip(values) {
                *scaled = value * upstream;
            }
            E::narrow_slice(scaled, out);
        });
        Ok(())
    })?;
    Ok(scaled)
}
