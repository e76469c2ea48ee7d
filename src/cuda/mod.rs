//! The fused path on a CUDA device.
//!
//! Where loss and gradients are wanted at once and the cosines fit into the shared memory of the whole device: `fused_step`, one launch. Else
//!
//! 1. `stream_forward`: every row's loss and state, the reduced loss.
//! 2. `stream_backward`, dX and dW by one block, for a problem of a few tiles ([`plan::Alone`]). Else for each chunk of the backward pass
//!    ([`plan::Backward`]; at usual sizes there is one): `stream_gradient`, g of the chunk into the workspace; `stream_contract`, dX and dW from
//!    g.
//!
//! Everything is put on the device's stream; nothing waits for it, but the check of labels and sample weights where that is on.

mod call;
mod device;
mod fused_step;
#[cfg(test)]
mod host;
mod kind;
mod memory;
mod outputs;
mod params;
mod plan;
mod scale;
mod states;
mod stream_backward;
mod stream_forward;
mod tables;

use candle_core::{DType, Tensor};
use cudarc::driver::{DevicePtr, DevicePtrMut};

pub(crate) use scale::scale_gradients;
pub(crate) use states::States;
pub(crate) use tables::TablePool;

use crate::error::Result;
use crate::output::LossOutput;
use crate::problem::{Gradients, Problem};
use call::with_call;
use fused_step::fused_step;
use kind::Accumulator;
use memory::pointer;
use outputs::Outputs;
use states::StatesLayout;
use stream_backward::stream_backward;
use stream_forward::stream_forward;

/// A new tensor for the gradient of `like`, of `dtype`. What is in it is unspecified until a pass has written it.
pub(crate) fn new_gradient(like: &Tensor, dtype: DType) -> Result<Tensor> {
    // SAFETY: every element is written by the backward pass before the tensor is handed out.
    Ok(unsafe { Tensor::empty(like.dims(), dtype, like.device())? })
}

/// What a forward pass gives: the output, the row margins' slopes (N, 2) where there are row margins, and the states.
type Passed = (LossOutput, Option<Tensor>, States);

/// The rows' losses and, where `out` wants them, the gradients of their reduction.
pub(crate) fn forward(problem: &Problem, tables: &TablePool, out: Gradients) -> Result<Passed> {
    match problem.accumulation_dtype() {
        DType::F64 => typed_forward::<f64>(problem, tables, out),
        _ => typed_forward::<f32>(problem, tables, out),
    }
}

/// The gradients for `upstream` (N), one a row: ∂L/∂ℓ_i, or where `reduced` what the reduction has still to be applied to.
pub(crate) fn backward(
    problem: &Problem,
    tables: &TablePool,
    states: &States,
    upstream: &Tensor,
    reduced: bool,
    out: Gradients,
) -> Result<()> {
    if problem.n == 0 {
        return zero_gradients(out);
    }
    if !states.complete {
        let (_, _, states) = forward(problem, tables, Gradients::default())?;
        return backward(problem, tables, &states, upstream, reduced, out);
    }
    let upstream = upstream.to_dtype(problem.accumulation_dtype())?.contiguous()?;
    with_call(problem, tables, |call| {
        let layout = StatesLayout::of(problem);
        let (storage, upstream_layout) = upstream.storage_and_layout();
        let (upstream, _upstream) = pointer(&storage, upstream_layout, call.stream)?;
        let (base, _states) = states.memory.device_ptr(call.stream);
        call.arguments.upstream = upstream as _;
        layout.point_at(base, &mut call.arguments);
        if !reduced {
            call.arguments.factor = call.one as _;
        }
        stream_backward(call, out)
    })
}

fn typed_forward<T: Accumulator>(problem: &Problem, tables: &TablePool, out: Gradients) -> Result<Passed> {
    let (n, c) = (problem.n, problem.c);
    let layout = StatesLayout::new::<T>(n, c);
    with_call(problem, tables, |call| {
        let (device, stream) = (call.device, call.stream);
        if n == 0 {
            zero_gradients(out)?;
            let outputs = Outputs::<T>::new(problem, device, true)?;
            let (output, slopes) = outputs.wrap(problem, device);
            return Ok((output, slopes, States { memory: device.alloc_zeros(layout.end)?, complete: true }));
        }
        let mut outputs = Outputs::<T>::new(problem, device, false)?;
        // SAFETY: the forward pass writes every state and norm before anything reads them.
        let mut memory = unsafe { device.alloc::<u8>(layout.end)? };
        let mut complete = true;
        {
            let (base, _memory) = memory.device_ptr_mut(stream);
            let _outputs = outputs.point_at(&mut call.arguments, stream);
            layout.point_at(base, &mut call.arguments);
            if fused_step(call, out)? {
                complete = call.arguments.on_chip == 0;
            } else {
                stream_forward(call)?;
                stream_backward(call, out)?;
            }
        }
        if problem.params().check_labels {
            let bad = device.clone_dtoh(&memory.slice(layout.bad_row..layout.bad_row + 8))?;
            let bad = u64::from_le_bytes(bad.try_into().expect("eight bytes"));
            if bad != 0 {
                return Err(problem.bad_row(bad as usize - 1)?);
            }
        }
        let (output, slopes) = outputs.wrap(problem, device);
        Ok((output, slopes, States { memory, complete }))
    })
}

/// N = 0: no row reaches anything.
fn zero_gradients(out: Gradients) -> Result<()> {
    for gradient in [out.features, out.weight].into_iter().flatten() {
        if gradient.elem_count() > 0 {
            gradient.zero_set()?;
        }
    }
    Ok(())
}
