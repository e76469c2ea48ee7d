//! Graphs, events, pinned memory: what the driver keeps beside the devices. A captured stream's work is kept and runs when its graph does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

use ptx_emulator::Memory;

use crate::device::{
    CAPTURE_IMPLICIT, CAPTURE_INVALIDATED, CAPTURE_ISOLATION, CAPTURE_MERGE, CAPTURE_UNJOINED, CAPTURE_UNMATCHED,
    CAPTURE_UNSUPPORTED, CAPTURED_EVENT, Device, FREE, Failure, INVALID_HANDLE, INVALID_VALUE, NOT_READY, Outcome,
    device, devices, lock, owner,
};
use crate::streams::{self, Stream};

/// What can be done again and again.
pub(crate) type Work = Box<dyn Fn(&Device) -> Outcome<()> + Send + Sync>;

/// A piece of a graph's work, and the earlier ones that it comes after.
struct Node {
    after: Vec<usize>,
    work: Work,
}

/// What was captured.
#[derive(Default)]
struct Graph {
    nodes: Vec<Node>,
    /// What it allocates
    memory: Vec<u64>,
    /// Whether a launch frees what the launch before it left (`CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`)
    frees: AtomicBool,
}

impl Graph {
    /// Does the work in an order that the nodes allow.
    fn run(&self, device: &Device) -> Outcome<()> {
        let mut left: Vec<usize> = (0..self.nodes.len()).collect();
        let mut done = HashSet::new();
        while !left.is_empty() {
            let ready: Vec<usize> =
                (0..left.len()).filter(|&at| self.nodes[left[at]].after.iter().all(|n| done.contains(n))).collect();
            let node = left.remove(ready[streams::choose(ready.len())]);
            (self.nodes[node].work)(device)?;
            done.insert(node);
        }
        Ok(())
    }

    /// The nodes that `tips` come after, and these.
    fn before(&self, tips: &[usize]) -> HashSet<usize> {
        let (mut found, mut left) = (HashSet::new(), tips.to_vec());
        while let Some(node) = left.pop() {
            if found.insert(node) {
                left.extend(&self.nodes[node].after);
            }
        }
        found
    }
}

/// A capture: the stream that it began in and those that have come to it by events.
struct Capture {
    origin: Stream,
    graph: Graph,
    /// Of each stream, what its next node comes after
    tips: HashMap<Stream, Vec<usize>>,
    /// Why its capture cannot become a graph
    broken: bool,
}

impl Capture {
    fn add(&mut self, stream: Stream, work: Work) {
        let tips = self.tips.entry(stream).or_default();
        self.graph.nodes.push(Node { after: std::mem::take(tips), work });
        tips.push(self.graph.nodes.len() - 1);
    }

    fn fail(&mut self, code: u32, reason: impl Into<String>) -> Failure {
        self.broken = true;
        Failure::new(code, reason)
    }
}

/// Where an event was recorded last.
#[derive(Clone)]
enum Recorded {
    /// The number of its place in a stream
    At(u64),
    /// In a capture, by its number, after these nodes
    Captured(u64, Vec<usize>),
}

#[derive(Default)]
struct Kept {
    /// By number
    captures: HashMap<u64, Capture>,
    next: u64,
    graphs: HashMap<u64, Arc<Graph>>,
    /// What was allocated and has not been freed, whether a stream has come to it or not
    promised: HashSet<u64>,
    events: HashMap<u64, Recorded>,
    /// When the place of an event was reached, by its number
    times: HashMap<u64, Instant>,
    pinned: BTreeMap<usize, Box<[u64]>>,
}

impl Kept {
    /// The capture that a stream is in, and its number.
    fn of(&mut self, stream: Stream) -> Option<(u64, &mut Capture)> {
        self.captures
            .iter_mut()
            .find(|(_, capture)| capture.tips.contains_key(&stream))
            .map(|(n, capture)| (*n, capture))
    }

    /// Refuses work of the legacy stream, which waits for other streams, while one of those is captured.
    fn check_legacy(&mut self, stream: Stream) -> Outcome<()> {
        if !stream.is_legacy() {
            return Ok(());
        }
        let blocked = |other: &Stream| other.device() == stream.device() && !streams::is_apart(*other);
        let found = self.captures.values_mut().find(|capture| capture.tips.keys().any(blocked));
        let reason = "work of the legacy stream while a stream is captured that it waits for";
        found.map_or(Ok(()), |capture| Err(capture.fail(CAPTURE_IMPLICIT, reason)))
    }
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// A stream of this thread's context.
fn own(device: &Device, handle: u64) -> Outcome<Stream> {
    let stream = Stream::new(handle);
    if stream.device() != device.ordinal {
        let reason =
            format!("{handle:#x} is a stream of device {}, this thread's is {}", stream.device(), device.ordinal);
        return Err(Failure::new(INVALID_HANDLE, reason));
    }
    Ok(stream)
}

/// Work of a library's handle, on the stream that it has been given.
pub(crate) fn put_of(device: &Device, handle: u64, name: &'static str, work: Work) -> Outcome<()> {
    let stream = lock(&device.streams).get(&handle).copied().unwrap_or(0);
    put(device, stream, name, work)
}

/// Puts work into a stream of this thread's context, or keeps it for the graph that the stream is captured into.
pub(crate) fn put(device: &Device, stream: u64, name: &'static str, work: Work) -> Outcome<()> {
    put_at(device, own(device, stream)?, name, work)
}

fn put_at(device: &Device, stream: Stream, name: &'static str, work: Work) -> Outcome<()> {
    let mut kept = lock(&KEPT);
    if let Some((_, capture)) = kept.of(stream) {
        capture.add(stream, work);
        return Ok(());
    }
    kept.check_legacy(stream)?;
    drop(kept);
    streams::put(device, stream, Vec::new(), name, Box::new(move |device| work(device)));
    Ok(())
}

/// Waits for a stream, which cannot be captured.
pub(crate) fn wait(device: &Device, stream: u64, what: &str) -> Outcome<()> {
    let at = Stream::new(stream);
    let mut kept = lock(&KEPT);
    if let Some((_, capture)) = kept.of(at) {
        return Err(capture.fail(CAPTURE_UNSUPPORTED, format!("{what} while the stream is captured")));
    }
    kept.check_legacy(at)?;
    drop(kept);
    streams::wait(device, at)
}

/// Waits for a device, of which no stream can be captured.
pub(crate) fn wait_for_device(device: &Device) -> Outcome<()> {
    let mut kept = lock(&KEPT);
    let of_device = |capture: &&mut Capture| capture.tips.keys().any(|stream| stream.device() == device.ordinal);
    if let Some(capture) = kept.captures.values_mut().find(of_device) {
        return Err(capture.fail(CAPTURE_UNSUPPORTED, "a wait for a device while one of its streams is captured"));
    }
    drop(kept);
    streams::wait_for_device(device)
}

/// Whether a stream has come to its end, which cannot be asked of one that is captured.
pub(crate) fn query(stream: u64) -> Outcome<()> {
    let at = Stream::new(stream);
    if let Some((_, capture)) = lock(&KEPT).of(at) {
        return Err(capture.fail(CAPTURE_UNSUPPORTED, "a query while the stream is captured"));
    }
    if streams::is_idle(at) { Ok(()) } else { Err(Failure::new(NOT_READY, "the stream has work left")) }
}

/// Promises an address; what is there begins when the stream comes to it, of a graph that is being captured at each of its launches.
pub(crate) fn allocate(device: &Device, stream: u64, size: usize) -> Outcome<u64> {
    if size > device.memory.capacity() - device.memory.usage().0 {
        streams::wait_for_all(device)?; // what waits to be freed may make room
    }
    let base = device.memory.promise(size)?;
    let mut kept = lock(&KEPT);
    if let Some((_, capture)) = kept.of(Stream::new(stream)) {
        capture.graph.memory.push(base);
    } else {
        kept.promised.insert(base);
    }
    drop(kept);
    put(device, stream, "cuMemAllocAsync", Box::new(move |device| Ok(device.memory.allocate_again(base)?)))?;
    Ok(base)
}

/// Frees, when the stream comes to it or in each launch of the graph that is being captured. The stream may be another device's than the memory.
pub(crate) fn free(stream: u64, base: u64) -> Outcome<()> {
    let device = devices().get(Memory::number_of(base)).unwrap_or(device());
    let promised = lock(&KEPT).promised.remove(&base);
    if !promised && !is_capturing(stream) && device.memory.range(base).is_none() {
        // It may be a graph's that is still to run; if not, that is told at once.
        streams::wait(device, Stream::new(stream))?;
        if device.memory.range(base).is_none() {
            return Ok(device.memory.free(base)?);
        }
    }
    put_at(device, Stream::new(stream), FREE, Box::new(move |_| Ok(device.memory.free(base)?)))
}

pub(crate) fn is_capturing(stream: u64) -> bool {
    lock(&KEPT).of(Stream::new(stream)).is_some()
}

pub(crate) fn begin(device: &Device, stream: u64) -> Outcome<()> {
    let origin = own(device, stream)?;
    if origin.is_legacy() {
        return Err(Failure::new(CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured"));
    }
    let mut kept = lock(&KEPT);
    if kept.of(origin).is_some() {
        return Err(Failure::new(INVALID_VALUE, "the stream is being captured"));
    }
    kept.next += 1;
    let number = kept.next;
    let tips = HashMap::from([(origin, Vec::new())]);
    kept.captures.insert(number, Capture { origin, graph: Graph::default(), tips, broken: false });
    Ok(())
}

/// Ends a capture, in the stream that it began in, which all others have come back to.
pub(crate) fn end(device: &Device, stream: u64) -> Outcome<u64> {
    let at = Stream::new(stream);
    let mut kept = lock(&KEPT);
    let Some((number, capture)) = kept.of(at) else {
        return Err(Failure::new(INVALID_VALUE, "the stream is not being captured"));
    };
    if capture.origin != at {
        return Err(capture.fail(CAPTURE_UNMATCHED, "the capture began in another stream"));
    }
    let joined = capture.graph.before(&capture.tips[&at]);
    let unjoined = capture.tips.values().flatten().any(|node| !joined.contains(node));
    let Some(capture) = kept.captures.remove(&number) else {
        return Err(Failure::new(INVALID_VALUE, "the stream is not being captured"));
    };
    if capture.broken {
        return Err(Failure::new(CAPTURE_INVALIDATED, "the capture has failed before"));
    }
    if unjoined {
        let reason = "a stream has work in the capture that the stream which it began in does not wait for";
        return Err(Failure::new(CAPTURE_UNJOINED, reason));
    }
    let graph = device.handle();
    kept.graphs.insert(graph, Arc::new(capture.graph));
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
    put(device, stream, "cuGraphLaunch", Box::new(move |device| graph.run(device)))
}

pub(crate) fn destroy(handle: u64) -> Outcome<()> {
    check(handle)?;
    lock(&KEPT).graphs.remove(&handle);
    Ok(())
}

/// An event is what a stream has been given until now, or in a capture what has been captured of it.
pub(crate) fn record_event(device: &Device, event: u64, stream: u64) -> Outcome<()> {
    device.check_handle(event)?;
    let at = Stream::new(stream);
    if owner(event) != Some(at.device()) {
        return Err(Failure::new(INVALID_HANDLE, "an event of one device recorded in a stream of another"));
    }
    let mut kept = lock(&KEPT);
    let captured = kept.of(at).map(|(number, capture)| Recorded::Captured(number, capture.tips[&at].clone()));
    let recorded = match captured {
        Some(recorded) => recorded,
        None => {
            kept.check_legacy(at)?;
            drop(kept);
            let number = streams::put_marked(device, at, "cuEventRecord", |number| {
                lock(&KEPT).times.insert(number, Instant::now());
            });
            kept = lock(&KEPT);
            Recorded::At(number)
        }
    };
    kept.events.insert(event, recorded);
    Ok(())
}

fn recorded(event: u64) -> Outcome<Option<u64>> {
    match lock(&KEPT).events.get(&event) {
        None => Ok(None),
        Some(Recorded::At(number)) => Ok(Some(*number)),
        Some(Recorded::Captured(..)) => {
            Err(Failure::new(CAPTURED_EVENT, "the event was recorded last in a stream that is captured"))
        }
    }
}

/// A stream's further work comes after an event. One that was never recorded has happened. A stream that waits for an event of a capture is of that
/// capture from then on.
pub(crate) fn wait_event(device: &Device, stream: u64, event: u64) -> Outcome<()> {
    device.check_handle(event)?;
    let at = Stream::new(stream);
    let mut kept = lock(&KEPT);
    let Some(recorded) = kept.events.get(&event).cloned() else { return Ok(()) };
    let own = kept.of(at).map(|(number, _)| number);
    match (own, recorded) {
        (Some(own), Recorded::At(_)) => {
            let reason = "a stream that is captured waits for an event that was recorded outside of the capture";
            Err(kept.captures.get_mut(&own).map_or_else(
                || Failure::new(CAPTURE_ISOLATION, reason),
                |capture| capture.fail(CAPTURE_ISOLATION, reason),
            ))
        }
        (own, Recorded::Captured(number, _)) if own.is_some_and(|own| own != number) => {
            let reason = "a stream of one capture waits for an event of another";
            for broken in [own, Some(number)].into_iter().flatten() {
                if let Some(capture) = kept.captures.get_mut(&broken) {
                    capture.broken = true;
                }
            }
            Err(Failure::new(CAPTURE_MERGE, reason))
        }
        (_, Recorded::Captured(number, nodes)) => {
            let Some(capture) = kept.captures.get_mut(&number) else {
                return Err(Failure::new(INVALID_VALUE, "an event of a capture that has ended"));
            };
            if at.is_legacy() {
                return Err(capture.fail(CAPTURE_IMPLICIT, "the legacy stream waits for an event of a capture"));
            }
            let tips = capture.tips.entry(at).or_default();
            for node in nodes {
                if !tips.contains(&node) {
                    tips.push(node);
                }
            }
            Ok(())
        }
        (None, Recorded::At(number)) => {
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
    streams::nudge();
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
