//! Graphs, events, pinned memory: what the driver keeps beside the device. A captured stream's work is kept and runs when its graph does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::{self, ThreadId};
use std::time::Instant;

use crate::device::{Device, Failure, INVALID_HANDLE, INVALID_VALUE, Outcome, lock};

type Work = Box<dyn Fn(&Device) -> Outcome<()> + Send + Sync>;

/// What was captured, in order.
#[derive(Default)]
struct Graph {
    work: Vec<Work>,
    /// What it allocates
    memory: Vec<u64>,
    /// Whether a launch frees what the launch before it left (`CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`)
    frees: AtomicBool,
}

/// A stream by its handle, and by its thread where it is `CU_STREAM_PER_THREAD`, which is another one in each.
type Stream = (u64, Option<ThreadId>);

fn own(stream: u64) -> Stream {
    (stream, (stream == 2).then(|| thread::current().id()))
}

#[derive(Default)]
struct Kept {
    capturing: HashMap<Stream, Graph>,
    graphs: HashMap<u64, Arc<Graph>>,
    events: HashMap<u64, Instant>,
    pinned: HashMap<usize, Box<[u64]>>,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// Runs work now, or keeps it for the graph that its stream is captured into.
pub(crate) fn run_or_record(device: &Device, stream: u64, work: Work) -> Outcome<()> {
    if let Some(captured) = lock(&KEPT).capturing.get_mut(&own(stream)) {
        captured.work.push(work);
        return Ok(());
    }
    work(device)
}

/// Allocates now; of a graph that is being captured, at each of its launches, at the same address.
pub(crate) fn allocate(device: &Device, stream: u64, size: usize) -> Outcome<u64> {
    let base = device.memory.allocate(size)?;
    if let Some(captured) = lock(&KEPT).capturing.get_mut(&own(stream)) {
        device.memory.free(base)?;
        captured.memory.push(base);
        captured.work.push(Box::new(move |device| Ok(device.memory.allocate_again(base)?)));
    }
    Ok(base)
}

/// Frees, now or in each launch of the graph that is being captured.
pub(crate) fn free(device: &Device, stream: u64, base: u64) -> Outcome<()> {
    run_or_record(device, stream, Box::new(move |device| Ok(device.memory.free(base)?)))
}

pub(crate) fn is_capturing(stream: u64) -> bool {
    lock(&KEPT).capturing.contains_key(&own(stream))
}

pub(crate) fn begin(stream: u64) -> Outcome<()> {
    match lock(&KEPT).capturing.insert(own(stream), Graph::default()) {
        None => Ok(()),
        Some(_) => Err(Failure::new(INVALID_VALUE, "the stream is being captured")),
    }
}

pub(crate) fn end(device: &Device, stream: u64) -> Outcome<u64> {
    let mut kept = lock(&KEPT);
    let Some(captured) = kept.capturing.remove(&own(stream)) else {
        return Err(Failure::new(INVALID_VALUE, "the stream is not being captured"));
    };
    let graph = device.handle();
    kept.graphs.insert(graph, Arc::new(captured));
    Ok(graph)
}

fn graph(handle: u64) -> Outcome<Arc<Graph>> {
    let found = lock(&KEPT).graphs.get(&handle).cloned();
    found.ok_or_else(|| Failure::new(INVALID_HANDLE, format!("{handle:#x} is no graph")))
}

pub(crate) fn check(handle: u64) -> Outcome<()> {
    graph(handle).map(|_| ())
}

/// What can be launched of a graph: the graph itself, under a handle of its own.
pub(crate) fn instantiate(device: &Device, handle: u64, flags: u64) -> Outcome<u64> {
    const AUTO_FREE_ON_LAUNCH: u64 = 1;
    let graph = graph(handle)?;
    graph.frees.store(flags & AUTO_FREE_ON_LAUNCH != 0, Relaxed);
    let executable = device.handle();
    lock(&KEPT).graphs.insert(executable, graph);
    Ok(executable)
}

pub(crate) fn launch(device: &Device, handle: u64) -> Outcome<()> {
    let graph = graph(handle)?;
    for &base in &graph.memory {
        if device.memory.range(base).is_some() {
            if !graph.frees.load(Relaxed) {
                let reason = format!("the graph's allocation {base:#x} was not freed since its last launch");
                return Err(Failure::new(INVALID_VALUE, reason));
            }
            device.memory.free(base)?;
        }
    }
    graph.work.iter().try_for_each(|work| work(device))
}

pub(crate) fn destroy(handle: u64) -> Outcome<()> {
    check(handle)?;
    lock(&KEPT).graphs.remove(&handle);
    Ok(())
}

pub(crate) fn record_event(event: u64, now: Instant) {
    lock(&KEPT).events.insert(event, now);
}

/// Milliseconds of the host between two events: of the emulator, not of a device.
pub(crate) fn elapsed(start: u64, end: u64) -> Outcome<f32> {
    let kept = lock(&KEPT);
    match (kept.events.get(&start), kept.events.get(&end)) {
        (Some(start), Some(end)) => Ok(end.saturating_duration_since(*start).as_secs_f32() * 1e3),
        _ => Err(Failure::new(INVALID_HANDLE, "an event that was not recorded")),
    }
}

/// Memory of the host.
pub(crate) fn pinned(size: usize) -> Outcome<*mut u8> {
    let mut memory = vec![0u64; size.div_ceil(8).max(1)].into_boxed_slice();
    let address = memory.as_mut_ptr().cast::<u8>();
    lock(&KEPT).pinned.insert(address as usize, memory);
    Ok(address)
}

pub(crate) fn unpin(address: *mut u8) -> Outcome<()> {
    match lock(&KEPT).pinned.remove(&(address as usize)) {
        Some(_) => Ok(()),
        None => Err(Failure::new(INVALID_VALUE, "memory that was not allocated here")),
    }
}
