//! `stream_forward`: every row's loss and state, the reduced loss.

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::PushKernelArg;

use super::call::Call;
use super::plan::{Forward, align};
use crate::error::Result;

/// A block for every row tile and split of the class tiles; the last split of a row tile ends its rows, the last row tile reduces.
pub(super) fn stream_forward(call: &mut Call) -> Result<()> {
    let kind = call.kind.sizes();
    let plan = Forward::new(&call.sizes, &call.limits, &kind);

    // A split's statistics are written before the last one reads them.
    let arrivals = call.workspace(plan.arrivals(), plan.partials(&call.sizes, &kind))?;
    call.arguments.arrivals = arrivals as _;
    call.arguments.partials = (arrivals + align(4 * plan.arrivals()) as u64) as _;
    call.arguments.splits = plan.splits as i64;

    let kernel = call.kernels.get("stream_forward", call.kind)?;
    let config = kernel.config(plan.row_tiles * plan.splits, kind.shared)?;
    let mut builder = call.stream.launch_builder(&kernel.function);
    builder.arg(&call.arguments);
    // SAFETY: the call's addresses are of live memory of the sizes that params.h states; the grid is the plan's.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}
