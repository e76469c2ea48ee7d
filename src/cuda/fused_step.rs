//! `fused_step`: loss and gradients in one launch.

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::{DevicePtrMut, LaunchConfig, PushKernelArg};

use super::call::{Call, chunk_arguments};
use super::device::{Module, allow_shared, config};
use super::memory::{counters, with_optional_pointer};
use super::plan::{Fused, THREADS};
use crate::error::Result;
use crate::problem::Gradients;

const MODULE: Module =
    Module { name: "candle_margin_loss_fused_step", ptx: include_str!(concat!(env!("OUT_DIR"), "/fused_step.ptx")) };

/// A cooperative grid that keeps the cosines on chip; false where that is not wanted or does not fit.
pub(super) fn fused_step(call: &mut Call, out: Gradients) -> Result<bool> {
    if call.problem.params().streaming {
        return Ok(false);
    }
    let (dx, dw) = (out.features.is_some(), out.weight.is_some());
    let Some(plan) = Fused::new(&call.sizes, &call.limits, &call.kind.sizes(), call.budget, dx, dw) else {
        return Ok(false);
    };
    let function = MODULE.function(call.device, "fused_step", call.kind)?;
    if !allow_shared(&function, &call.limits, plan.shared)? {
        return Ok(false);
    }
    let resident = function.occupancy_max_active_blocks_per_multiprocessor(THREADS, plan.shared, None).w()? as usize;
    if resident < plan.blocks_a_multiprocessor {
        return Ok(false);
    }

    let stream = call.stream;
    // SAFETY: statistics, g, dots and sums are written before they are read.
    let mut workspace = (plan.bytes > 0).then(|| unsafe { call.device.alloc::<u8>(plan.bytes) }).transpose()?;
    let workspace = workspace.as_mut().map(|workspace| workspace.device_ptr_mut(stream));
    let mut arrivals = counters(call.device, plan.chunk.arrivals)?;
    let arrivals = arrivals.as_mut().map(|arrivals| arrivals.device_ptr_mut(stream));
    let arrivals = arrivals.as_ref().map_or(0, |(address, _)| *address);

    // One block has its workspace on chip, and addresses from 0 on.
    let base = workspace.as_ref().map_or(0, |(address, _)| *address);
    call.arguments.partials = (base + plan.partials as u64) as _;
    if let Some((rows, class_norms)) = plan.states {
        call.arguments.on_chip = 1;
        (call.arguments.rows, call.arguments.class_norms) = (rows as _, class_norms as _);
    }
    with_optional_pointer(out.features, stream, |dx| {
        with_optional_pointer(out.weight, stream, |dw| {
            (call.arguments.dx, call.arguments.dw) = (dx as _, dw as _);
            let workspace = base + plan.workspace as u64;
            let chunk = chunk_arguments(&call.arguments, &call.sizes, &plan.chunk, workspace, arrivals);
            let mut builder = call.stream.launch_builder(&function);
            builder.arg(&call.arguments).arg(&chunk);
            let config = LaunchConfig { shared_mem_bytes: plan.shared as u32, ..config(plan.blocks)? };
            // SAFETY: as for stream_forward; the whole grid is resident, as its barriers need.
            unsafe { builder.launch_cooperative(config) }.w()?;
            Ok(true)
        })
    })
}
