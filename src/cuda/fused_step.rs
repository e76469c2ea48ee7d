//! `fused_step`: loss and gradients in one launch.

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::sys::CUresult;
use cudarc::driver::{DriverError, PushKernelArg};

use super::call::{Call, chunk_arguments};
use super::memory::with_gradients;
use super::plan::{Fused, align};
use crate::error::Result;
use crate::problem::Gradients;

/// A cooperative grid that keeps the cosines on chip; false where that is not wanted, does not fit, or the device will not have it, and then nothing
/// was launched.
pub(super) fn fused_step(call: &mut Call, out: Gradients) -> Result<bool> {
    if call.problem.params().streaming {
        return Ok(false);
    }
    let (dx, dw) = (out.features.is_some(), out.weight.is_some());
    let Some(plan) = Fused::new(&call.sizes, &call.limits, &call.kind.sizes(), call.budget, dx, dw) else {
        return Ok(false);
    };
    // One block's barriers are its own.
    let alone = plan.states.is_some();
    let multiprocessors = plan.blocks.div_ceil(plan.blocks_a_multiprocessor);
    if !alone && !call.kernels.may_cooperate(multiprocessors) {
        return Ok(false);
    }
    let kernel = call.kernels.get("fused_step", call.kind)?;
    if !kernel.allows(plan.shared) || kernel.resident(plan.shared)? < plan.blocks_a_multiprocessor {
        return Ok(false);
    }

    // Statistics, g, dots and sums are written before they are read. One block has its workspace on chip, and addresses from 0 on.
    let counters = plan.chunk.arrivals;
    let arrivals = call.workspace(counters, plan.bytes)?;
    let base = if plan.bytes > 0 { arrivals + align(4 * counters) as u64 } else { 0 };
    let stream = call.stream;
    let before = call.arguments;
    call.arguments.partials = (base + plan.partials as u64) as _;
    if let Some((rows, class_norms)) = plan.states {
        call.arguments.on_chip = 1;
        (call.arguments.rows, call.arguments.class_norms) = (rows as _, class_norms as _);
    }
    let launched = with_gradients(out, stream, |dx, dw| {
        call.set_gradients(dx, dw, out);
        let workspace = base + plan.workspace as u64;
        let chunk = chunk_arguments(&call.arguments, &call.sizes, &plan.chunk, workspace, arrivals);
        let mut builder = stream.launch_builder(&kernel.function);
        builder.arg(&call.arguments).arg(&chunk);
        let config = kernel.config(plan.blocks, plan.shared)?;
        // SAFETY: as for stream_forward; the whole grid is resident, as its barriers need.
        let launched = unsafe { if alone { builder.launch(config) } else { builder.launch_cooperative(config) } };
        match launched {
            Err(DriverError(CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE)) => Ok(false),
            done => Ok(done.w().map(|_| true)?),
        }
    })?;
    if !launched {
        // Others have a share of the device, whose size it does not say: the streaming kernels need no grid at once.
        call.kernels.refused(multiprocessors);
        call.arguments = before;
    }
    Ok(launched)
}
