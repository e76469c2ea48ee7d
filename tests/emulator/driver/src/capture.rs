//! Graphs, events, pinned memory: what the driver keeps beside the device. A captured stream's work is kept and runs when its graph does.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

use crate::device::{
    CAPTURE_INVALIDATED, CAPTURE_ISOLATION, CAPTURE_UNSUPPORTED, CAPTURED_EVENT, Device, FREE, Failure, INVALID_HANDLE,
    INVALID_VALUE, NOT_READY, Outcome, lock,
};
use crate::streams::{self, Stream};

/// What can be done again and again.
pub(crate) type Work = Box<dyn Fn(&Device) -> Outcome<()> + Send + Sync>;

/// What was captured, in order.
#[derive(Default)]
struct Graph {
    work: Vec<Work>,
    /// What it allocates
    memory: Vec<u64>,
    /// Whether a launch frees what the launch before it left (`CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`)
    frees: AtomicBool,
    /// Why its capture cannot become a graph
    broken: bool,
}

/// Where an event was recorded last.
#[derive(Clone, Copy)]
enum Recorded {
    /// The number of its place in a stream
    At(u64),
    /// In a capture of a stream
    Captured(Stream),
}

#[derive(Default)]
struct Kept {
    capturing: HashMap<Stream, Graph>,
    graphs: HashMap<u64, Arc<Graph>>,
    events: HashMap<u64, Recorded>,
    /// When the place of an event was reached, by its number
    times: HashMap<u64, Instant>,
    pinned: BTreeMap<usize, Box<[u64]>>,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// Work of a library's handle, on the stream that it has been given.
pub(crate) fn put_of(device: &Device, handle: u64, name: &'static str, work: Work) -> Outcome<()> {
    let stream = lock(&device.streams).get(&handle).copied().unwrap_or(0);
    put(device, stream, name, work)
}

/// Puts work into a stream, or keeps it for the graph that the stream is captured into.
pub(crate) fn put(device: &Device, stream: u64, name: &'static str, work: Work) -> Outcome<()> {
    let stream = Stream::new(stream);
    if let Some(captured) = lock(&KEPT).capturing.get_mut(&stream) {
        captured.work.push(work);
        return Ok(());
    }
    streams::put(device, stream, Vec::new(), name, Box::new(move |device| work(device)));
    Ok(())
}

/// Waits for a stream, which cannot be captured.
pub(crate) fn wait(device: &Device, stream: u64, what: &str) -> Outcome<()> {
    let mut kept = lock(&KEPT);
    if let Some(captured) = kept.capturing.get_mut(&Stream::new(stream)) {
        captured.broken = true;
        return Err(Failure::new(CAPTURE_UNSUPPORTED, format!("{what} while the stream is captured")));
    }
    drop(kept);
    streams::wait(device, Stream::new(stream))
}

/// Promises an address; what is there begins when the stream comes to it, of a graph that is being captured at each of its launches.
pub(crate) fn allocate(device: &Device, stream: u64, size: usize) -> Outcome<u64> {
    if size > device.memory.capacity() - device.memory.usage().0 {
        streams::wait_for_all(device)?; // what waits to be freed may make room
    }
    let base = device.memory.promise(size)?;
    if let Some(captured) = lock(&KEPT).capturing.get_mut(&Stream::new(stream)) {
        captured.memory.push(base);
    }
    put(device, stream, "cuMemAllocAsync", Box::new(move |device| Ok(device.memory.allocate_again(base)?)))?;
    Ok(base)
}

/// Frees, when the stream comes to it or in each launch of the graph that is being captured.
pub(crate) fn free(device: &Device, stream: u64, base: u64) -> Outcome<()> {
    if !is_capturing(stream) && device.memory.range(base).is_none() {
        // It may be promised; if not, that is told at once.
        streams::wait(device, Stream::new(stream))?;
        if device.memory.range(base).is_none() {
            return Ok(device.memory.free(base)?);
        }
    }
    put(device, stream, FREE, Box::new(move |device| Ok(device.memory.free(base)?)))
}

pub(crate) fn is_capturing(stream: u64) -> bool {
    lock(&KEPT).capturing.contains_key(&Stream::new(stream))
}

pub(crate) fn begin(stream: u64) -> Outcome<()> {
    match lock(&KEPT).capturing.insert(Stream::new(stream), Graph::default()) {
        None => Ok(()),
        Some(_) => Err(Failure::new(INVALID_VALUE, "the stream is being captured")),
    }
}

pub(crate) fn end(device: &Device, stream: u64) -> Outcome<u64> {
    let mut kept = lock(&KEPT);
    let Some(captured) = kept.capturing.remove(&Stream::new(stream)) else {
        return Err(Failure::new(INVALID_VALUE, "the stream is not being captured"));
    };
    if captured.broken {
        return Err(Failure::new(CAPTURE_INVALIDATED, "the capture has failed before"));
    }
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

/// Puts a graph into a stream. Whether what its last launch allocated has been freed shows when all before it in the stream is done.
pub(crate) fn launch(device: &Device, handle: u64, stream: u64) -> Outcome<()> {
    let graph = graph(handle)?;
    wait(device, stream, "a launch of a graph")?;
    for &base in &graph.memory {
        if device.memory.range(base).is_some() {
            if !graph.frees.load(Relaxed) {
                let reason = format!("the graph's allocation {base:#x} was not freed since its last launch");
                return Err(Failure::new(INVALID_VALUE, reason));
            }
            device.memory.free(base)?;
        }
    }
    put(device, stream, "cuGraphLaunch", Box::new(move |device| graph.work.iter().try_for_each(|work| work(device))))
}

pub(crate) fn destroy(handle: u64) -> Outcome<()> {
    check(handle)?;
    lock(&KEPT).graphs.remove(&handle);
    Ok(())
}

/// An event is what a stream has been given until now.
pub(crate) fn record_event(device: &Device, event: u64, stream: u64) -> Outcome<()> {
    device.check_handle(event)?;
    let at = Stream::new(stream);
    let recorded = if is_capturing(stream) {
        Recorded::Captured(at)
    } else {
        Recorded::At(streams::put_marked(device, at, "cuEventRecord", |number| {
            lock(&KEPT).times.insert(number, Instant::now());
        }))
    };
    lock(&KEPT).events.insert(event, recorded);
    Ok(())
}

fn recorded(event: u64) -> Outcome<Option<u64>> {
    match lock(&KEPT).events.get(&event) {
        None => Ok(None),
        Some(Recorded::At(number)) => Ok(Some(*number)),
        Some(Recorded::Captured(_)) => {
            Err(Failure::new(CAPTURED_EVENT, "the event was recorded last in a stream that is captured"))
        }
    }
}

/// A stream's further work comes after an event. One that was never recorded has happened.
pub(crate) fn wait_event(device: &Device, stream: u64, event: u64) -> Outcome<()> {
    device.check_handle(event)?;
    let at = Stream::new(stream);
    let mut kept = lock(&KEPT);
    let recorded = kept.events.get(&event).copied();
    match (kept.capturing.get_mut(&at), recorded) {
        (_, None) => Ok(()),
        (Some(_), Some(Recorded::Captured(other))) if other == at => Ok(()),
        (Some(captured), Some(Recorded::At(_))) => {
            captured.broken = true;
            let reason = "a stream that is captured waits for an event that was recorded outside of the capture";
            Err(Failure::new(CAPTURE_ISOLATION, reason))
        }
        (_, Some(Recorded::Captured(_))) => {
            Err(Failure::new(CAPTURE_UNSUPPORTED, "a capture of several streams, which is not modelled"))
        }
        (None, Some(Recorded::At(number))) => {
            drop(kept);
            streams::put(device, at, vec![number], "cuStreamWaitEvent", Box::new(|_| Ok(())));
            Ok(())
        }
    }
}

/// Waits for an event.
pub(crate) fn wait_for_event(device: &Device, event: u64) -> Outcome<()> {
    device.check_handle(event)?;
    recorded(event)?.map_or(Ok(()), |number| streams::wait_for(device, number))
}

/// Whether an event has happened. Who asks again and again is to get there.
pub(crate) fn query_event(device: &Device, event: u64) -> Outcome<()> {
    device.check_handle(event)?;
    let Some(number) = recorded(event)? else { return Ok(()) };
    streams::nudge(device);
    if streams::is_done(number) { Ok(()) } else { Err(Failure::new(NOT_READY, "the event has not happened yet")) }
}

/// Milliseconds of the host between two events: of the emulator, not of a device.
pub(crate) fn elapsed(start: u64, end: u64) -> Outcome<f32> {
    let time = |event: u64| -> Outcome<Instant> {
        let number = recorded(event)?.ok_or_else(|| Failure::new(INVALID_HANDLE, "an event that was not recorded"))?;
        let found = lock(&KEPT).times.get(&number).copied();
        found.ok_or_else(|| Failure::new(NOT_READY, "an event that has not happened yet"))
    };
    let (start, end) = (time(start)?, time(end)?);
    Ok(end.saturating_duration_since(start).as_secs_f32() * 1e3)
}

/// Memory of the host.
pub(crate) fn pinned(size: usize) -> Outcome<*mut u8> {
    let mut memory = vec![0u64; size.div_ceil(8).max(1)].into_boxed_slice();
    let address = memory.as_mut_ptr().cast::<u8>();
    lock(&KEPT).pinned.insert(address as usize, memory);
    Ok(address)
}

/// Whether memory of the host is pinned: copies read and write it when they are done, not when they are asked for.
pub(crate) fn is_pinned(address: usize, count: usize) -> bool {
    let kept = lock(&KEPT);
    let below = kept.pinned.range(..=address).next_back();
    below.is_some_and(|(base, memory)| address + count <= base + 8 * memory.len())
}

/// Frees memory of the host, which nothing uses any more when all work is done.
pub(crate) fn unpin(device: &Device, address: *mut u8) -> Outcome<()> {
    let _ = streams::wait_for_all(device);
    match lock(&KEPT).pinned.remove(&(address as usize)) {
        Some(_) => Ok(()),
        None => Err(Failure::new(INVALID_VALUE, "memory that was not allocated here")),
    }
}
