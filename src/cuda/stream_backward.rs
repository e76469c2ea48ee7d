//! `stream_backward`: dX and dW of any size from the rows' states.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::PushKernelArg;

use super::call::{Call, chunk_arguments};
use super::device::Kernel;
use super::memory::with_gradients;
use super::plan::{Alone, Backward, Chunk, align};
use crate::error::Result;
use crate::problem::Gradients;

/// How a backward pass is made: by one block, or chunk by chunk.
pub(super) enum Way {
    Alone(Arc<Kernel>, Alone),
    Chunks(Backward),
}

impl Way {
    pub fn of(call: &Call, out: Gradients) -> Result<Self> {
        let (dx, dw) = (out.features.is_some(), out.weight.is_some());
        if let Some(plan) = Alone::new(&call.sizes, &call.limits, &call.kind.sizes(), dx, dw) {
            let kernel = call.kernels.get("stream_backward", call.kind)?;
            if kernel.allows(plan.shared) {
                return Ok(Self::Alone(kernel, plan));
            }
        }
        Ok(Self::Chunks(Backward::new(&call.sizes, &call.limits, call.budget, dx, dw)))
    }

    /// The workspace's counters and bytes.
    pub fn workspace(&self) -> (usize, usize) {
        match self {
            Self::Alone(..) => (0, 0),
            Self::Chunks(plan) => (plan.chunks.iter().map(|chunk| chunk.arrivals).sum(), plan.bytes()),
        }
    }
}

/// The backward pass, with a call whose states and upstream gradient are set.
pub(super) fn stream_backward(call: &mut Call, way: &Way, out: Gradients) -> Result<()> {
    match way {
        Way::Alone(kernel, plan) => alone(call, kernel, plan, out),
        Way::Chunks(plan) if plan.chunks.is_empty() => Ok(()),
        Way::Chunks(plan) => {
            // Each chunk writes its g, dots and sums before it reads them; the counters are each chunk's own.
            let (counters, bytes) = way.workspace();
            let mut arrivals = call.workspace(counters, bytes)?;
            let base = arrivals + align(4 * counters) as u64;
            with_gradients(out, call.stream, |dx, dw| {
                call.set_gradients(dx, dw, out);
                plan.chunks.iter().try_for_each(|chunk| {
                    launch_chunk(call, chunk, base, arrivals)?;
                    arrivals += 4 * chunk.arrivals as u64;
                    Ok(())
                })
            })
        }
    }
}

/// The whole backward pass in one launch of one block.
fn alone(call: &mut Call, kernel: &Kernel, plan: &Alone, out: Gradients) -> Result<()> {
    let stream = call.stream;
    with_gradients(out, stream, |dx, dw| {
        call.set_gradients(dx, dw, out);
        // g is on chip, and addresses from 0 on; nothing is split.
        let chunk = chunk_arguments(&call.arguments, &call.sizes, &plan.chunk, plan.workspace as u64, 0);
        let mut builder = stream.launch_builder(&kernel.function);
        builder.arg(&call.arguments).arg(&chunk);
        // SAFETY: as for stream_forward; the shared memory is as large as the plan says.
        unsafe { builder.launch(kernel.config(1, plan.shared)?) }.w()?;
        Ok(())
    })
}

/// g of a chunk into the workspace, then what it adds to the gradients.
fn launch_chunk(call: &Call, chunk: &Chunk, workspace: u64, arrivals: u64) -> Result<()> {
    let arguments = chunk_arguments(&call.arguments, &call.sizes, chunk, workspace, arrivals);
    let kind = call.kind.sizes();
    for (name, blocks, shared) in [
        ("stream_gradient", chunk.gradient_blocks(&call.sizes), kind.shared),
        ("stream_contract", chunk.contract_blocks(&call.sizes), kind.contract_shared),
    ] {
        let kernel = call.kernels.get(name, call.kind)?;
        let mut builder = call.stream.launch_builder(&kernel.function);
        builder.arg(&call.arguments).arg(&arguments);
        // SAFETY: the addresses are of live memory of the sizes that params.h states, the workspace being as large as the plan says.
        unsafe { builder.launch(kernel.config(blocks, shared)?) }.w()?;
    }
    Ok(())
}
