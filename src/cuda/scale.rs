//! `scale`: gradients on a tape by their upstream gradient.

use candle_core::cuda_backend::WrapErr;
use candle_core::{DType, Tensor};
use cudarc::driver::PushKernelArg;

use super::device::Kernels;
use super::kind::{Kind, Products};
use super::memory::{pointer, with_gradients};
use super::plan::THREADS;
use crate::error::Result;
use crate::problem::Gradients;

/// dX and dW, as far as they are there, contiguous and in the type of accumulation, by `upstream`, a scalar of that type that stays on the device:
/// rounded once, to the dtypes given beside them.
pub(crate) fn scale_gradients(
    (dx, x): (Option<&Tensor>, DType),
    (dw, w): (Option<&Tensor>, DType),
    upstream: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let device = upstream.device().as_cuda_device()?;
    let stream = device.cuda_stream();
    // SAFETY: the kernel writes every element.
    let new = |like: &Tensor, dtype| unsafe { Tensor::empty(like.dims(), dtype, like.device()) };
    let to_dx = dx.map(|dx| new(dx, x)).transpose()?;
    let to_dw = dw.map(|dw| new(dw, w)).transpose()?;
    let count = |gradient: Option<&Tensor>| gradient.map_or(0, Tensor::elem_count);
    let (x_count, w_count) = (count(dx), count(dw));
    if x_count.max(w_count) == 0 {
        return Ok((to_dx, to_dw));
    }

    let (x_from, w_from) = (dx.map(Tensor::storage_and_layout), dw.map(Tensor::storage_and_layout));
    let (from_x, _x) = x_from.as_ref().map(|(storage, layout)| pointer(storage, layout, &stream)).transpose()?.unzip();
    let (from_w, _w) = w_from.as_ref().map(|(storage, layout)| pointer(storage, layout, &stream)).transpose()?.unzip();
    let (from_x, from_w) = (from_x.unwrap_or(0), from_w.unwrap_or(0));
    let (by, by_layout) = upstream.storage_and_layout();
    let (by, _by) = pointer(&by, by_layout, &stream)?;

    let kernels = Kernels::of(&stream)?;
    let kernel = kernels.get("scale_gradients", Kind { x, w, by: Products::Fma })?;
    let blocks = x_count.max(w_count).div_ceil(8 * THREADS as usize).min(16 * kernels.limits.multiprocessors);
    let out =
        Gradients { features: to_dx.as_ref().filter(|_| x_count > 0), weight: to_dw.as_ref().filter(|_| w_count > 0) };
    with_gradients(out, &stream, |to_x, to_w| {
        let (x_count, w_count) = (x_count as i64, w_count as i64);
        let mut builder = stream.launch_builder(&kernel.function);
        builder.arg(&to_x).arg(&from_x).arg(&x_count).arg(&to_w).arg(&from_w).arg(&w_count).arg(&by);
        // SAFETY: `to_x` is `x_count` elements of X's type, `to_w` `w_count` of W's, and `from_x`, `from_w` and `by`, one element, are of their type
        // of accumulation.
        unsafe { builder.launch(kernel.config(blocks, 0)?) }.w()?;
        Ok(())
    })?;
    Ok((to_dx, to_dw))
}
