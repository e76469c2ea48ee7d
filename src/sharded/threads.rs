//! Ranks that are threads of one process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

use super::communicator::{Communicator, bytes, check_rows};
use crate::error::{Error, Result};

/// A rank among threads of one process: for tests, and for machines with memory of several sockets.
///
/// Each belongs to a thread of its own, which waits for the others inside its calls. Threads of a rayon pool will not do: one that waits
/// may be the one that the others wait for.
pub struct Threads {
    rank: usize,
    meeting: Arc<Meeting>,
    received: AtomicU64,
}

/// Where the ranks of one communicator meet.
struct Meeting {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// One exchange after the other: every rank puts in what it has for the others, and when all have, takes what is its own.
#[derive(Default)]
struct State {
    /// By rank
    given: Vec<Option<Arc<Vec<Tensor>>>>,
    arrived: usize,
    taken: usize,
    /// How many exchanges are over
    round: u64,
    /// Why there is no further exchange
    failed: Option<String>,
}

impl Threads {
    /// `size` ranks, in their order.
    pub fn new(size: usize) -> Vec<Self> {
        let state = State { given: vec![None; size], ..State::default() };
        let meeting = Arc::new(Meeting { size, state: Mutex::new(state), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, meeting: meeting.clone(), received: AtomicU64::new(0) }).collect()
    }

    /// Runs `work` on `size` ranks, each a thread, and gives what each gave, in the order of ranks.
    pub fn run<T: Send>(size: usize, work: impl Fn(Self) -> T + Sync) -> Vec<std::thread::Result<T>> {
        std::thread::scope(|scope| {
            let ranks: Vec<_> = Self::new(size).into_iter().map(|rank| scope.spawn(|| work(rank))).collect();
            ranks.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        })
    }

    /// Gives the others what is theirs, and makes `take`'s of what every rank gave, by rank. Over when all have taken: what was given may
    /// change then.
    fn exchange<T>(&self, given: Vec<Tensor>, take: impl FnOnce(&[Arc<Vec<Tensor>>]) -> Result<T>) -> Result<T> {
        let meeting = &*self.meeting;
        let mut state = meeting.lock();
        state.check()?;
        let round = state.round;
        state.given[self.rank] = Some(Arc::new(given));
        state.arrived += 1;
        meeting.changed.notify_all();
        while state.arrived < meeting.size {
            state.check()?;
            state = meeting.wait(state);
        }
        let all: Vec<_> = state.given.iter().flatten().cloned().collect();
        drop(state);
        let taken = take(&all);
        let mut state = meeting.lock();
        state.taken += 1;
        if state.taken == meeting.size {
            (state.arrived, state.taken, state.round) = (0, 0, round + 1);
            state.given.fill(None);
            meeting.changed.notify_all();
        }
        while state.round == round && state.failed.is_none() {
            state = meeting.wait(state);
        }
        taken
    }

    fn count(&self, received: &[Tensor]) {
        let others = received.iter().enumerate().filter(|(rank, _)| *rank != self.rank);
        self.received.fetch_add(others.map(|(_, tensor)| bytes(tensor)).sum(), Ordering::Relaxed);
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<()> {
        self.failed.as_ref().map_or(Ok(()), |why| Err(Error::Sharded(why.clone())))
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.size
    }

    fn all_gather(&self, rows: &Tensor, counts: &[usize]) -> Result<Tensor> {
        check_rows(rows, counts[self.rank])?;
        self.exchange(vec![rows.detach()], |all| {
            let parts: Vec<Tensor> = all.iter().map(|given| given[0].clone()).collect();
            self.count(&parts);
            parts.iter().zip(counts).try_for_each(|(part, &count)| check_rows(part, count))?;
            let some: Vec<&Tensor> = parts.iter().filter(|part| part.dims()[0] > 0).collect();
            Ok(if some.is_empty() { parts[0].copy()? } else { Tensor::cat(&some, 0)?.force_contiguous()? })
        })
    }

    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<Tensor> {
        check_rows(rows, counts.iter().sum())?;
        let mut start = 0;
        let mut given = Vec::with_capacity(counts.len());
        for &count in counts {
            given.push(rows.narrow(0, start, count)?.detach());
            start += count;
        }
        self.exchange(given, |all| {
            let parts: Vec<Tensor> = all.iter().map(|given| given[self.rank].clone()).collect();
            self.count(&parts);
            parts.iter().try_for_each(|part| check_rows(part, counts[self.rank]))?;
            if counts[self.rank] == 0 {
                let dims = [&[counts.len()], parts[0].dims()].concat();
                return Ok(Tensor::zeros(dims, rows.dtype(), rows.device())?);
            }
            Ok(Tensor::stack(&parts, 0)?)
        })
    }

    fn abort(&self, why: &str) {
        let mut state = self.meeting.lock();
        state.failed.get_or_insert_with(|| format!("rank {} failed: {why}", self.rank));
        self.meeting.changed.notify_all();
    }

    fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// A rank that is gone will come to no exchange.
impl Drop for Threads {
    fn drop(&mut self) {
        let mut state = self.meeting.lock();
        let why = if std::thread::panicking() { "panicked" } else { "has left" };
        state.failed.get_or_insert_with(|| format!("rank {} {why}", self.rank));
        self.meeting.changed.notify_all();
    }
}
