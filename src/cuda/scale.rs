//! `scale`: gradients on a tape by their upstream gradient.

use candle_core::Tensor;
use candle_core::cuda_backend::WrapErr;
use cudarc::driver::PushKernelArg;

use super::device::{Module, config, limits};
use super::kind::{Kind, Products};
use super::memory::{pointer, with_optional_pointer};
use super::plan::THREADS;
use crate::error::Result;

const MODULE: Module =
    Module { name: "candle_margin_loss_scale", ptx: include_str!(concat!(env!("OUT_DIR"), "/scale.ptx")) };

/// dX and dW, as far as they are there, by `upstream`, a scalar of the loss's dtype that stays on the device.
pub(crate) fn scale_gradients(
    dx: Option<&Tensor>,
    dw: Option<&Tensor>,
    upstream: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (Some(x), Some(w)) = (dx.or(dw), dw.or(dx)) else { return Ok((None, None)) };
    let device = upstream.device().as_cuda_device()?;
    let stream = device.cuda_stream();
    let count = |gradient: Option<&Tensor>| gradient.map_or(0, Tensor::elem_count);
    // SAFETY: the kernel writes every element.
    let new = |gradient: &Tensor| unsafe { Tensor::empty(gradient.dims(), gradient.dtype(), gradient.device()) };
    let (to_dx, to_dw) = (dx.map(new).transpose()?, dw.map(new).transpose()?);
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
    let kind = Kind { x: x.dtype(), w: w.dtype(), by: Products::Fma }; // of one gradient alone, its type twice
    let function = MODULE.function(device, "scale_gradients", kind)?;
    let blocks = x_count.max(w_count).div_ceil(8 * THREADS as usize).min(16 * limits(&stream)?.multiprocessors);
    with_optional_pointer(to_dx.as_ref().filter(|_| x_count > 0), &stream, |to_x| {
        with_optional_pointer(to_dw.as_ref().filter(|_| w_count > 0), &stream, |to_w| {
            let (x_count, w_count) = (x_count as i64, w_count as i64);
            let mut builder = stream.launch_builder(&function);
            builder.arg(&to_x).arg(&from_x).arg(&x_count).arg(&to_w).arg(&from_w).arg(&w_count).arg(&by);
            // SAFETY: `to_x` and `from_x` are `x_count` elements of X's type, `to_w` and `from_w` `w_count` of W's, and `by` is one of their type of
            // accumulation.
            unsafe { builder.launch(config(blocks)?) }.w()?;
            Ok(())
        })
    })?;
    Ok((to_dx, to_dw))
}
