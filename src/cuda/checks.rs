//! What labels and sample weights are none, where no call waits to hear of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use candle_core::cuda_backend::WrapErr;
use cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};

use super::params::MarginLossCall;
use crate::error::{Error, Result};
use crate::problem::{OwnRowInputs, Problem, RowInputs};

/// The calls of a loss whose labels nobody has heard of yet, in order, and room for more of them.
#[derive(Default)]
pub(super) struct Checks(Mutex<Pending>);

#[derive(Default)]
struct Pending {
    calls: VecDeque<Unheard>,
    free: Vec<Answer>,
}

/// Calls that may wait; beyond, the first is waited for.
const MOST: usize = 64;

/// A call, and what says what its error is.
struct Unheard {
    answer: Answer,
    labels: Tensor,
    rows: OwnRowInputs,
}

/// Where a device puts a call's first bad row, counted from 1, or 0; and when it has.
struct Answer {
    row: PinnedHostSlice<u64>,
    at: *mut u64,
    done: CudaEvent,
}

// SAFETY: the pointer is to `row`'s memory, which goes where it goes.
unsafe impl Send for Answer {}

impl Answer {
    fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        // SAFETY: it is written below before anything reads it.
        let mut row = unsafe { context.alloc_pinned_with_flags(1, 0) }.w()?;
        let at = row.as_mut_ptr().w()?;
        Ok(Self { row, at, done: context.new_event(None).w()? })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // The device may still be to write it.
        self.row.context().record_err(self.done.synchronize());
    }
}

impl Checks {
    /// Remembers a call that has been launched.
    pub fn add(&self, problem: &Problem, call: &MarginLossCall, stream: &Arc<CudaStream>) -> Result<()> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = pending.free.iter().position(|answer| answer.row.context() == stream.context());
        let answer = match free {
            Some(at) => pending.free.swap_remove(at),
            None => Answer::new(stream)?,
        };
        // SAFETY: eight bytes of the host that stay where they are until the copy is done.
        let to = unsafe { std::slice::from_raw_parts_mut(answer.at, 1) };
        // SAFETY: eight bytes of the call's states, and as many of the host.
        unsafe { result::memcpy_dtoh_async(to, call.bad_row as u64, stream.cu_stream()) }.w()?;
        answer.done.record(stream).w()?;
        let rows = OwnRowInputs::of(problem.rows);
        pending.calls.push_back(Unheard { answer, labels: problem.labels.detach(), rows });
        Ok(())
    }

    /// The error of the first call that the device has answered with one; with `wait` it answers all of them first.
    pub fn hear(&self, wait: bool, bad_row: impl Fn(&Tensor, RowInputs, usize) -> Result<Error>) -> Result<()> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(call) = pending.calls.front() {
            let done = &call.answer.done;
            if wait || pending.calls.len() > MOST {
                done.synchronize().w()?;
            } else if !done.try_is_complete().w()? {
                break;
            }
            // SAFETY: the copy to it is done.
            let row = unsafe { call.answer.at.read_volatile() };
            let Some(Unheard { answer, labels, rows }) = pending.calls.pop_front() else { break };
            pending.free.push(answer);
            if row != 0 {
                return Err(bad_row(&labels, rows.borrow(), row as usize - 1)?);
            }
        }
        Ok(())
    }
}
