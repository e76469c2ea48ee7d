//! Memory of the device that no tensor owns: of a call, and where it is asked for kept for the next.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::{CudaStream, result};

use crate::error::Result;

/// Memory of a stream: what comes after in the stream finds it there, and it goes when the stream has come to its end. No event tells of its uses, so
/// that none crosses a capture and none costs a call: all of them are on the stream.
#[derive(Debug)]
pub(super) struct Memory {
    pub address: u64,
    pub bytes: usize,
    stream: Arc<CudaStream>,
}

impl Memory {
    /// What is in it is unspecified.
    pub fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self> {
        let context = stream.context();
        context.bind_to_thread().w()?;
        let bytes = bytes.max(1);
        // SAFETY: the stream is this context's, which is this thread's now.
        let address = unsafe {
            if context.has_async_alloc() {
                result::malloc_async(stream.cu_stream(), bytes)
            } else {
                result::malloc_sync(bytes)
            }
        };
        Ok(Self { address: address.w()?, bytes, stream: stream.clone() })
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        // SAFETY: nobody else frees it; all work with it was put into the stream before.
        let freed = unsafe {
            if context.has_async_alloc() {
                result::free_async(self.address, self.stream.cu_stream())
            } else {
                context.record_err(self.stream.synchronize());
                result::free_sync(self.address)
            }
        };
        context.record_err(freed);
    }
}

/// Whether each thread has a stream of its own under this handle, as on `Device::new_cuda`.
pub(super) fn is_per_thread(stream: &CudaStream) -> bool {
    stream.cu_stream() as usize == 2
}

/// Whose memory: a stream's, and of a stream that each thread has, a thread's.
type Owner = (Arc<CudaStream>, Option<ThreadId>);

/// The workspaces of a loss that keeps them, where no call has them. Calls on one stream follow each other and take the same one, but for what several
/// threads put there at once; a graph's replays follow, too.
#[derive(Debug, Default)]
pub(crate) struct WorkspacePool(Mutex<Vec<(Owner, Vec<Memory>)>>);

impl WorkspacePool {
    /// At least `bytes`, until they are given back: nothing of another call comes between the launches of this one.
    pub(super) fn lend(&self, stream: &Arc<CudaStream>, bytes: usize) -> Result<Memory> {
        let free = self.of(stream, |free| {
            let at = free.iter().position(|memory| memory.bytes >= bytes)?;
            Some(free.remove(at))
        });
        // Smaller ones stay, since a graph may have them: by powers of two, all of them together are no larger than the largest.
        free.map_or_else(|| Memory::new(stream, bytes.next_power_of_two()), Ok)
    }

    /// What is put into the stream from now on may have it.
    pub(super) fn give_back(&self, memory: Memory) {
        let stream = memory.stream.clone();
        self.of(&stream, |free| {
            let at = free.partition_point(|other| other.bytes < memory.bytes);
            free.insert(at, memory);
        });
    }

    fn of<R>(&self, stream: &Arc<CudaStream>, work: impl FnOnce(&mut Vec<Memory>) -> R) -> R {
        let thread = is_per_thread(stream).then(|| std::thread::current().id());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().position(|((of, by), _)| of == stream && *by == thread);
        let at = found.unwrap_or_else(|| {
            all.push(((stream.clone(), thread), Vec::new()));
            all.len() - 1
        });
        work(&mut all[at].1)
    }
}

impl Drop for WorkspacePool {
    fn drop(&mut self) {
        let all = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        for ((stream, thread), memory) in all {
            if thread.is_some_and(|thread| thread != std::thread::current().id()) {
                settle(&stream);
            }
            drop(memory);
        }
    }
}

/// Waits for what other threads have put into their streams, before what they may use is freed in this one's. It would break a capture of theirs: only
/// where several threads have used a loss.
pub(super) fn settle(stream: &CudaStream) {
    if is_per_thread(stream) {
        stream.context().record_err(stream.context().synchronize());
    }
}
