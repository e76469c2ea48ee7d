//! Streams as queues: work is done when something waits for it, or later, in any order that streams and events allow. The seed decides.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{LazyLock, Mutex};
use std::thread::{self, ThreadId};

use crate::device::{Device, Outcome, Work, device, devices, lock, owner};

/// A stream by its handle, by its thread where it is `CU_STREAM_PER_THREAD`, which is another one in each, and by its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stream {
    handle: u64,
    thread: Option<ThreadId>,
    device: usize,
}

impl Stream {
    /// The stream of a handle, where this thread uses it.
    pub fn new(handle: u64) -> Self {
        const LEGACY: u64 = 1;
        const PER_THREAD: u64 = 2;
        let device = device().ordinal;
        match handle {
            0 | LEGACY => Self { handle: 0, thread: None, device },
            PER_THREAD => Self { handle, thread: Some(thread::current().id()), device },
            _ => Self { handle, thread: None, device: owner(handle).unwrap_or(device) },
        }
    }

    /// The legacy stream, of its device: the one that waits for all others, and they for it.
    fn legacy(self) -> Self {
        Self { handle: 0, thread: None, device: self.device }
    }

    pub fn is_legacy(self) -> bool {
        self.handle == 0
    }

    pub fn device(self) -> usize {
        self.device
    }
}

/// Work in a queue, and the numbers of what is to be done before it.
struct Item {
    number: u64,
    after: Vec<u64>,
    /// The entry point that asked for it
    name: &'static str,
    work: Work,
    device: usize,
}

#[derive(Default)]
struct Queues {
    /// In the order in which they were used first
    queues: Vec<(Stream, VecDeque<Item>)>,
    /// The last that was put into each
    last: HashMap<Stream, u64>,
    /// What has not been done
    pending: HashSet<u64>,
    /// Streams that the legacy stream does not wait for
    apart: HashSet<Stream>,
    next: u64,
    random: u64,
}

/// Most items that wait: beyond, some are done.
const MOST: usize = 1 << 12;

static QUEUES: LazyLock<Mutex<Queues>> = LazyLock::new(Mutex::default);
/// Held by the thread that does work.
static RUNNING: Mutex<()> = Mutex::new(());

impl Queues {
    fn below(&mut self, count: usize) -> usize {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.random >> 33) as usize % count
    }

    /// What work in a stream comes after, if it is put there now.
    fn before(&self, stream: Stream) -> Vec<u64> {
        let mut after: Vec<u64> = if stream.is_legacy() {
            let all = self.last.iter();
            all.filter(|(other, _)| other.device == stream.device && !self.apart.contains(other))
                .map(|(_, &n)| n)
                .collect()
        } else if self.apart.contains(&stream) {
            Vec::new()
        } else {
            self.last.get(&stream.legacy()).copied().into_iter().collect()
        };
        after.retain(|number| self.pending.contains(number));
        after
    }

    fn put(&mut self, stream: Stream, mut after: Vec<u64>, name: &'static str, work: Work) -> u64 {
        after.extend(self.before(stream));
        self.next += 1;
        let item = Item { number: self.next, after, name, work, device: stream.device };
        let found = self.queues.iter().position(|(other, _)| *other == stream);
        let at = found.unwrap_or_else(|| {
            self.queues.push((stream, VecDeque::new()));
            self.queues.len() - 1
        });
        self.queues[at].1.push_back(item);
        self.last.insert(stream, self.next);
        self.pending.insert(self.next);
        self.next
    }

    /// Some work that can be done now.
    fn take(&mut self) -> Option<Item> {
        let is_ready = |item: &Item| !item.after.iter().any(|number| self.pending.contains(number));
        let heads = self.queues.iter().enumerate().filter(|(_, (_, queue))| queue.front().is_some_and(is_ready));
        let ready: Vec<usize> = heads.map(|(i, _)| i).collect();
        if ready.is_empty() {
            return None;
        }
        let chosen = ready[self.below(ready.len())];
        self.queues[chosen].1.pop_front()
    }
}

/// Does work, until something holds, or there is none.
fn advance(mut is_enough: impl FnMut(&mut Queues) -> bool) {
    let _running = lock(&RUNNING);
    loop {
        let item = {
            let mut queues = lock(&QUEUES);
            if is_enough(&mut queues) { None } else { queues.take() }
        };
        let Some(Item { number, name, work, device, .. }) = item else { return };
        devices()[device].do_work(name, work);
        lock(&QUEUES).pending.remove(&number);
    }
}

/// Puts work into a stream, after what is there and after `after`; gives its number.
pub(crate) fn put(device: &Device, stream: Stream, after: Vec<u64>, name: &'static str, work: Work) -> u64 {
    put_numbered(device, stream, after, name, |_| work)
}

/// Puts a mark into a stream: `reached` is told its number when the stream has come to it.
pub(crate) fn put_marked(device: &Device, stream: Stream, name: &'static str, reached: fn(u64)) -> u64 {
    put_numbered(device, stream, Vec::new(), name, |number| {
        Box::new(move |_| {
            reached(number);
            Ok(())
        })
    })
}

fn put_numbered(
    device: &Device,
    stream: Stream,
    after: Vec<u64>,
    name: &'static str,
    work: impl FnOnce(u64) -> Work,
) -> u64 {
    let (number, mut now) = {
        let mut queues = lock(&QUEUES);
        if queues.next == 0 {
            queues.random = device.seed;
            device.finish.get_or_init(|| wait_for_all);
        }
        let work = work(queues.next + 1);
        let number = queues.put(stream, after, name, work);
        // Mostly it waits; now and then some of what waits is done at once.
        (number, if queues.pending.len() > MOST { MOST / 2 } else { usize::from(queues.below(4) == 0) })
    };
    advance(|_| {
        let is_enough = now == 0;
        now = now.saturating_sub(1);
        is_enough
    });
    number
}

pub(crate) fn is_done(number: u64) -> bool {
    !lock(&QUEUES).pending.contains(&number)
}

/// Waits for work, by its number.
pub(crate) fn wait_for(device: &Device, number: u64) -> Outcome<()> {
    advance(|queues| !queues.pending.contains(&number));
    device.check()
}

/// Waits for all that has been put into a stream, and, of the legacy stream, into those that it waits for.
pub(crate) fn wait(device: &Device, stream: Stream) -> Outcome<()> {
    let numbers: Vec<u64> = {
        let queues = lock(&QUEUES);
        queues.before(stream).into_iter().chain(queues.last.get(&stream).copied()).collect()
    };
    numbers.into_iter().try_for_each(|number| wait_for(device, number))
}

/// Whether there is nothing left to do in a stream. Who asks again and again is to get there: some work is done.
pub(crate) fn is_idle(stream: Stream) -> bool {
    nudge();
    let queues = lock(&QUEUES);
    queues.last.get(&stream).is_none_or(|number| !queues.pending.contains(number))
}

/// Does a piece of work.
pub(crate) fn nudge() {
    let mut first = true;
    advance(|_| !std::mem::take(&mut first));
}

/// Waits for everything.
pub(crate) fn wait_for_all(device: &Device) -> Outcome<()> {
    advance(|queues| queues.pending.is_empty());
    device.check()
}

/// Waits for all streams of a device.
pub(crate) fn wait_for_device(device: &Device) -> Outcome<()> {
    let numbers: Vec<u64> = {
        let queues = lock(&QUEUES);
        queues.last.iter().filter(|(stream, _)| stream.device == device.ordinal).map(|(_, &number)| number).collect()
    };
    numbers.into_iter().try_for_each(|number| wait_for(device, number))
}

/// A stream that the legacy stream does not wait for.
pub(crate) fn set_apart(handle: u64) {
    lock(&QUEUES).apart.insert(Stream::new(handle));
}

pub(crate) fn is_apart(stream: Stream) -> bool {
    lock(&QUEUES).apart.contains(&stream)
}

/// A number below `count`, as the seed has it.
pub(crate) fn choose(count: usize) -> usize {
    lock(&QUEUES).below(count)
}
