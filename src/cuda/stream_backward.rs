//! `stream_backward`: dX and dW of any size from the rows' states.

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::{DevicePtrMut, LaunchConfig, PushKernelArg};

use super::call::{Call, chunk_arguments};
use super::device::{Module, allow_shared, config, with_shared};
use super::memory::{counters, with_gradients};
use super::plan::{Alone, Backward, Chunk};
use crate::error::Result;
use crate::problem::Gradients;

const MODULE: Module = Module {
    name: "candle_margin_loss_stream_backward",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/stream_backward.ptx")),
};

/// The backward pass, with a call whose states and upstream gradient are set: by one block, or chunk by chunk.
pub(super) fn stream_backward(call: &mut Call, out: Gradients) -> Result<()> {
    if alone(call, out)? { Ok(()) } else { by_chunks(call, out) }
}

/// The whole backward pass in one launch of one block; false where that is not wanted or does not fit.
fn alone(call: &mut Call, out: Gradients) -> Result<bool> {
    let (dx, dw) = (out.features.is_some(), out.weight.is_some());
    let Some(plan) = Alone::new(&call.sizes, &call.limits, &call.kind.sizes(), dx, dw) else {
        return Ok(false);
    };
    let function = MODULE.function(call.device, "stream_backward", call.kind)?;
    if !allow_shared(&function, &call.limits, plan.shared)? {
        return Ok(false);
    }
    let stream = call.stream;
    with_gradients(out, stream, |dx, dw| {
        call.set_gradients(dx, dw, out);
        // g is on chip, and addresses from 0 on; nothing is split.
        let chunk = chunk_arguments(&call.arguments, &call.sizes, &plan.chunk, plan.workspace as u64, 0);
        let mut builder = call.stream.launch_builder(&function);
        builder.arg(&call.arguments).arg(&chunk);
        let config = LaunchConfig { shared_mem_bytes: plan.shared as u32, ..config(1)? };
        // SAFETY: as for stream_forward; the shared memory is as large as the plan says.
        unsafe { builder.launch(config) }.w()?;
        Ok(true)
    })
}

fn by_chunks(call: &mut Call, out: Gradients) -> Result<()> {
    let (dx, dw) = (out.features.is_some(), out.weight.is_some());
    let plan = Backward::new(&call.sizes, &call.limits, call.budget, dx, dw);
    if plan.chunks.is_empty() {
        return Ok(());
    }
    let stream = call.stream;
    // SAFETY: each chunk writes its g, dots and sums before it reads them.
    let mut workspace = unsafe { call.device.alloc::<u8>(plan.bytes())? };
    let (base, _workspace) = workspace.device_ptr_mut(stream);
    with_gradients(out, stream, |dx, dw| {
        call.set_gradients(dx, dw, out);
        plan.chunks.iter().try_for_each(|chunk| launch_chunk(call, chunk, base))
    })
}

/// g of a chunk into the workspace, then what it adds to the gradients.
fn launch_chunk(call: &Call, chunk: &Chunk, workspace: u64) -> Result<()> {
    let mut arrivals = counters(call.device, chunk.arrivals)?;
    let arrivals = arrivals.as_mut().map(|arrivals| arrivals.device_ptr_mut(call.stream));
    let address = arrivals.as_ref().map_or(0, |(address, _)| *address);
    let arguments = chunk_arguments(&call.arguments, &call.sizes, chunk, workspace, address);
    let kind = call.kind.sizes();
    for (kernel, blocks, shared) in [
        ("stream_gradient", chunk.gradient_blocks(&call.sizes), kind.shared),
        ("stream_contract", chunk.contract_blocks(&call.sizes), kind.contract_shared),
    ] {
        let function = MODULE.function(call.device, kernel, call.kind)?;
        let config = with_shared(&function, &call.limits, config(blocks)?, shared)?;
        let mut builder = call.stream.launch_builder(&function);
        builder.arg(&call.arguments).arg(&arguments);
        // SAFETY: the addresses are of live memory of the sizes that params.h states, the workspace being as large as the plan says.
        unsafe { builder.launch(config) }.w()?;
    }
    Ok(())
}
