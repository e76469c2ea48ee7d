//! `stream_forward`: every row's loss and state, the reduced loss.

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::{DevicePtrMut, PushKernelArg};

use super::call::Call;
use super::device::{Module, config, with_shared};
use super::memory::counters;
use super::plan::Forward;
use crate::error::Result;

const MODULE: Module = Module {
    name: "candle_margin_loss_stream_forward",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/stream_forward.ptx")),
};

/// A block for every row tile and split of the class tiles; the last split of a row tile ends its rows, the last row tile reduces.
pub(super) fn stream_forward(call: &mut Call) -> Result<()> {
    let (stream, kind) = (call.stream, call.kind.sizes());
    let plan = Forward::new(&call.sizes, &call.limits, &kind);

    let mut arrivals = counters(call.device, plan.arrivals())?;
    let partials = plan.partials(&call.sizes, &kind);
    // SAFETY: a split's statistics are written before the last one reads them.
    let mut partials = (partials > 0).then(|| unsafe { call.device.alloc::<u8>(partials) }).transpose()?;
    let arrivals = arrivals.as_mut().map(|arrivals| arrivals.device_ptr_mut(stream));
    let partials = partials.as_mut().map(|partials| partials.device_ptr_mut(stream));

    call.arguments.arrivals = arrivals.as_ref().map_or(0, |(address, _)| *address) as _;
    call.arguments.partials = partials.as_ref().map_or(0, |(address, _)| *address) as _;
    call.arguments.splits = plan.splits as i64;

    let function = MODULE.function(call.device, "stream_forward", call.kind)?;
    let config = with_shared(&function, &call.limits, config(plan.row_tiles * plan.splits)?, kind.shared)?;
    let mut builder = call.stream.launch_builder(&function);
    builder.arg(&call.arguments);
    // SAFETY: the call's addresses are of live memory of the sizes that params.h states; the grid is the plan's.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}
