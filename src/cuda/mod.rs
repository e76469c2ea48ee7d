//! The fused path on a CUDA device.
//!
//! Where loss and gradients are wanted at once and the cosines fit into the shared memory of the whole device: `fused_step`, one launch. Else
//!
//! 1. `stream_forward`: every row's loss and state, the reduced loss.
//! 2. `stream_backward`, dX and dW by one block, for a problem of a few tiles ([`plan::Alone`]). Else for each chunk of the backward pass
//!    ([`plan::Backward`]; at usual sizes there is one): `stream_gradient`, g of the chunk into the workspace; `stream_contract`, dX and dW from
//!    g.
//!
//! Everything is put on the device's stream; nothing waits for it, but the check of labels and sample weights where that is at once.

mod call;
mod checks;
mod device;
mod fused_step;
#[cfg(test)]
mod host;
mod kind;
mod memory;
mod modules;
mod outputs;
mod params;
mod plan;
#[cfg(test)]
mod predicted;
mod scale;
mod states;
mod stream_backward;
mod stream_forward;
mod tables;
mod workspace;

use candle_core::cuda_backend::WrapErr;
use candle_core::{DType, Tensor};
use cudarc::driver::result;

pub(crate) use scale::scale_gradients;
pub(crate) use states::States;
pub(crate) use tables::TablePool;

use crate::error::Result;
use crate::options::LabelCheck;
use crate::output::{LossOutput, MarginSlopes};
use crate::problem::{Gradients, Problem, bad_row};
use call::with_call;
use device::check_capture;
use fused_step::fused_step;
use kind::Accumulator;
use memory::pointer;
use outputs::Outputs;
use plan::align;
use states::StatesLayout;
use stream_backward::{Way, stream_backward};
use stream_forward::stream_forward;
use workspace::Memory;

/// A new tensor for the gradient of `like`, of `dtype`. What is in it is unspecified until a pass has written it.
pub(crate) fn new_gradient(like: &Tensor, dtype: DType) -> Result<Tensor> {
    // SAFETY: every element is written by the backward pass before the tensor is handed out.
    Ok(unsafe { Tensor::empty(like.dims(), dtype, like.device())? })
}

/// What a forward pass gives: the output, with row margins the losses' slopes by them, and the states.
type Passed = (LossOutput, Option<MarginSlopes>, States);

/// The rows' losses and, where `out` wants them, the gradients of their reduction; with `keep` the states that a backward pass needs.
pub(crate) fn forward(problem: &Problem, tables: &TablePool, out: Gradients, keep: bool) -> Result<Passed> {
    match problem.accumulation_dtype() {
        DType::F64 => typed_forward::<f64>(problem, tables, out, keep),
        _ => typed_forward::<f32>(problem, tables, out, keep),
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
    let made;
    let memory = match &states.0 {
        Some(memory) => memory,
        None => {
            made = forward(problem, tables, Gradients::default(), true)?.2.0;
            made.as_ref().expect("a forward pass without gradients leaves its states")
        }
    };
    let upstream = upstream.to_dtype(problem.accumulation_dtype())?.contiguous()?;
    with_call(problem, tables, |call| {
        let (storage, upstream_layout) = upstream.storage_and_layout();
        let (upstream, _upstream) = pointer(&storage, upstream_layout, call.stream)?;
        call.arguments.upstream = upstream as _;
        StatesLayout::of(problem).point_at(memory.address, &mut call.arguments);
        if !reduced {
            call.arguments.factor = call.one as _;
        }
        let way = Way::of(call, out)?;
        stream_backward(call, &way, out)
    })
}

fn typed_forward<T: Accumulator>(problem: &Problem, tables: &TablePool, out: Gradients, keep: bool) -> Result<Passed> {
    let device = problem.features.device().as_cuda_device()?;
    if problem.n == 0 {
        zero_gradients(out)?;
        let (output, slopes) = Outputs::<T>::new(problem, device, true)?.wrap(device)?;
        return Ok((output, slopes, States(None)));
    }
    let check = problem.params().check_labels;
    check_capture(&device.cuda_stream(), check != LabelCheck::Off)?;
    if check == LabelCheck::Later {
        tables.hear(problem.params(), false)?;
    }
    with_call(problem, tables, |call| {
        let stream = call.stream;
        let layout = StatesLayout::of(problem);
        let mut outputs = Outputs::<T>::new(problem, device, false)?;
        // The forward pass writes every state and norm before anything reads them.
        let states = keep.then(|| Memory::new(stream, layout.end)).transpose()?;
        match &states {
            Some(memory) => layout.point_at(memory.address, &mut call.arguments),
            None => call.states = Some(layout),
        }
        {
            let _outputs = outputs.point_at(&mut call.arguments, stream);
            if !fused_step(call, out)? {
                let way = Way::of(call, out)?;
                let (counters, bytes) = way.workspace();
                call.least_workspace = align(4 * counters) + bytes;
                stream_forward(call)?;
                stream_backward(call, &way, out)?;
            }
        }
        if check == LabelCheck::Later {
            tables.checks.add(problem, &call.arguments, stream)?;
        }
        if check == LabelCheck::AtOnce {
            let mut bad = [0u64];
            // SAFETY: eight bytes of the rows' states; `bad` outlives the wait.
            unsafe { result::memcpy_dtoh_async(&mut bad, call.arguments.bad_row as u64, stream.cu_stream()) }.w()?;
            stream.synchronize().w()?;
            if bad[0] != 0 {
                return Err(bad_row(problem.params(), problem.labels, problem.rows, bad[0] as usize - 1)?);
            }
        }
        // One block that made the whole step kept its states on chip.
        let states = States(states.filter(|_| call.arguments.on_chip == 0));
        let (output, slopes) = outputs.wrap(device)?;
        Ok((output, slopes, states))
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
