//! Ranks that are processes, connected by MPI.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::mpi::Threading;
use ::mpi::datatype::{Partition, PartitionMut};
use ::mpi::environment::Universe;
use ::mpi::traits::{Communicator as _, CommunicatorCollectives as _, Root as _};
use candle_core::Tensor;

use super::bytes::{from_bytes, with_bytes};
use super::communicator::{Communicator, check_rows};
use crate::error::{Error, Result};

/// A process of an MPI job, of `MPI_COMM_WORLD`: started by `mpirun -n P`, one of it a process.
///
/// Before every exchange the ranks tell each other, in 24 bytes, what they are about to exchange: so a rank that aborts, panics or is
/// dropped is known to the others, which get an error, and so are messages that do not fit each other. The last rank to drop it ends MPI. A
/// process that is killed ends the job, as `mpirun` has it.
pub struct Mpi {
    rank: usize,
    size: usize,
    largest_message: usize,
    state: Mutex<State>,
    received: AtomicU64,
}

struct State {
    universe: Universe,
    /// Why there is no further exchange
    failed: Option<String>,
}

/// What a rank is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    Gather = 1,
    Scatter = 2,
    Leave = 3,
    Abort = 4,
}

impl Mpi {
    /// Starts MPI: once in a process.
    ///
    /// # Errors
    /// MPI has been started before, or lets one thread alone call it.
    pub fn new() -> Result<Self> {
        let Some((universe, threading)) = ::mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Sharded("MPI has been started in this process before".into()));
        };
        if threading < Threading::Serialized {
            return Err(Error::Sharded("this MPI was built for one thread, calls from any are needed".into()));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let state = Mutex::new(State { universe, failed: None });
        Ok(Self { rank, size, largest_message: i32::MAX as usize, state, received: AtomicU64::new(0) })
    }

    /// With messages of at most so many bytes on each rank's side of an exchange, and of a row a rank at least: longer ones go in pieces.
    /// Default 2³¹ − 1, which MPI's counts end at. The same on every rank.
    pub fn largest_message(mut self, bytes: usize) -> Self {
        self.largest_message = bytes.min(i32::MAX as usize);
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All ranks say what they are about to do; an error where they do not go on together.
    fn meet(&self, state: &mut State, intent: Intent, shape: [u64; 2], why: &str) -> Result<()> {
        if let Some(why) = &state.failed {
            return Err(Error::Sharded(why.clone()));
        }
        let world = state.universe.world();
        let own = [intent as u64, shape[0], shape[1]];
        let mut all = vec![0u64; 3 * self.size];
        world.all_gather_into(&own[..], &mut all[..]);
        let intents = || all.chunks_exact(3);
        let by = |intent: Intent| intents().position(|words| words[0] == intent as u64);
        let why = if let Some(rank) = by(Intent::Abort) {
            let root = world.process_at_rank(rank as i32);
            let mut length = if rank == self.rank { why.len() as u64 } else { 0 };
            root.broadcast_into(&mut length);
            let mut text = if rank == self.rank { why.as_bytes().to_vec() } else { vec![0; length as usize] };
            root.broadcast_into(&mut text[..]);
            format!("rank {rank} {}", String::from_utf8_lossy(&text))
        } else if intents().all(|words| words[0] == Intent::Leave as u64) {
            "every rank has left".into()
        } else if let Some(rank) = by(Intent::Leave) {
            format!("rank {rank} has left")
        } else if let Some(rank) = intents().position(|words| *words != all[..3]) {
            format!("rank {rank} and rank 0 exchange something else, or other rows")
        } else {
            return Ok(());
        };
        state.failed = Some(why.clone());
        Err(Error::Sharded(why))
    }

    /// Exchanges rows of `row` bytes, of which `counts` are each rank's: this rank's `bytes` for what comes, by rank, into `out`.
    fn exchange(&self, intent: Intent, bytes: &[u8], counts: &[usize], row: usize, out: &mut [u8]) -> Result<()> {
        let mut state = self.lock();
        let shape = counts
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, &count| (hash ^ count as u64).wrapping_mul(0x0100_0000_01b3));
        self.meet(&mut state, intent, [row as u64, shape], "")?;
        let world = state.universe.world();
        let own = counts[self.rank];
        let sent = |rank: usize| if intent == Intent::Gather { own } else { counts[rank] };
        let came = |rank: usize| if intent == Intent::Gather { counts[rank] } else { own };
        let (send_starts, receive_starts) = (starts(self.size, sent), starts(self.size, came));
        let most = counts.iter().copied().max().unwrap_or(0);
        let step = (self.largest_message / row.max(1) / self.size).clamp(1, most.max(1));
        // An empty Vec of bytes is at the address 1, which Open MPI takes for MPI_IN_PLACE.
        let (mut outgoing, mut incoming) = (Vec::with_capacity(1), Vec::with_capacity(1));
        for first in (0..most).step_by(step) {
            let piece = |rows: usize| rows.saturating_sub(first).min(step) * row;
            let (from, to) =
                ((0..self.size).map(|rank| piece(sent(rank))), (0..self.size).map(|rank| piece(came(rank))));
            let (from, to): (Vec<usize>, Vec<usize>) = (from.collect(), to.collect());
            incoming.resize(to.iter().sum(), 0u8);
            let to_displacements = displacements(&to);
            let mut into = PartitionMut::new(&mut incoming[..], as_counts(&to), &to_displacements[..]);
            if intent == Intent::Gather {
                let start = (first * row).min(bytes.len());
                let part = &bytes[start..start + piece(own)];
                let part = if part.is_empty() { &[0][..0] } else { part };
                world.all_gather_varcount_into(part, &mut into);
            } else {
                outgoing.clear();
                for (rank, &length) in from.iter().enumerate() {
                    let start = send_starts[rank] * row + (first * row).min(sent(rank) * row);
                    outgoing.extend_from_slice(&bytes[start..start + length]);
                }
                let from_displacements = displacements(&from);
                let parts = Partition::new(&outgoing[..], as_counts(&from), &from_displacements[..]);
                world.all_to_all_varcount_into(&parts, &mut into);
            }
            let mut start = 0;
            for (rank, &length) in to.iter().enumerate() {
                let at = receive_starts[rank] * row + (first * row).min(came(rank) * row);
                out[at..at + length].copy_from_slice(&incoming[start..start + length]);
                start += length;
            }
            let others = incoming.len() - to[self.rank];
            self.received.fetch_add(others as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn of_type(&self, intent: Intent, rows: &Tensor, counts: &[usize]) -> Result<Tensor> {
        let dims = &rows.dims()[1..];
        let row = dims.iter().product::<usize>() * rows.dtype().size_in_bytes();
        let shape = match intent {
            Intent::Gather => [&[counts.iter().sum()], dims].concat(),
            _ => [&[self.size, counts[self.rank]], dims].concat(),
        };
        with_bytes(rows, |bytes| from_bytes(rows.dtype(), &shape, |out| self.exchange(intent, bytes, counts, row, out)))
    }
}

/// Where each rank's rows begin.
fn starts(size: usize, count: impl Fn(usize) -> usize) -> Vec<usize> {
    (0..size)
        .scan(0, |start, rank| {
            let own = *start;
            *start += count(rank);
            Some(own)
        })
        .collect()
}

fn as_counts(lengths: &[usize]) -> Vec<i32> {
    lengths.iter().map(|&length| i32::try_from(length).expect("pieces are cut to fit")).collect()
}

fn displacements(lengths: &[usize]) -> Vec<i32> {
    as_counts(&starts(lengths.len(), |rank| lengths[rank]))
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, rows: &Tensor, counts: &[usize]) -> Result<Tensor> {
        check_rows(rows, counts[self.rank])?;
        self.of_type(Intent::Gather, rows, counts)
    }

    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<Tensor> {
        check_rows(rows, counts.iter().sum())?;
        self.of_type(Intent::Scatter, rows, counts)
    }

    fn abort(&self, why: &str) {
        // An error: this one, or one before it.
        drop(self.meet(&mut self.lock(), Intent::Abort, [0; 2], &format!("failed: {why}")));
    }

    fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// The others are not to wait for a rank that is gone. MPI ends with the universe, right after.
impl Drop for Mpi {
    fn drop(&mut self) {
        let (intent, why) =
            if std::thread::panicking() { (Intent::Abort, "panicked") } else { (Intent::Leave, "has left") };
        drop(self.meet(&mut self.lock(), intent, [0; 2], why));
    }
}
