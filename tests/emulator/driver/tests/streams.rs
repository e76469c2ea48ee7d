//! Streams are queues: what they and events order happens in order, and what they do not may happen in any. In a process of its own.
#![allow(missing_docs)]

use std::ffi::c_void;
use std::sync::Mutex;

use ptx_emulator_driver::cuda::*;

/// Tests wait for all work of the device: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

const PER_THREAD: u64 = 2;
const TRIALS: usize = 60;

fn allocate(bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: room for the result
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, bytes) }, 0);
    address
}

fn stream(flags: u32) -> u64 {
    let mut stream = 0;
    // SAFETY: room for the result
    assert_eq!(unsafe { cuStreamCreate(&mut stream, flags) }, 0);
    stream
}

fn event() -> u64 {
    let mut event = 0;
    // SAFETY: room for the result
    assert_eq!(unsafe { cuEventCreate(&mut event, 0) }, 0);
    event
}

/// Sets 8 bytes of the device, on a stream.
fn set(to: u64, value: u8, stream: u64) {
    // SAFETY: an address of the device is a number
    assert_eq!(unsafe { cuMemsetD8Async(to, value, 8, stream) }, 0);
}

fn copy(to: u64, from: u64, stream: u64) {
    // SAFETY: as above
    assert_eq!(unsafe { cuMemcpyDtoDAsync_v2(to, from, 8, stream) }, 0);
}

/// What is there when all that `stream` has been given is done.
fn get(from: u64, stream: u64) -> u8 {
    let mut bytes = [0u8; 8];
    // SAFETY: room for the result
    assert_eq!(unsafe { cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from, 8, stream) }, 0);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How often a copy on one stream finds what another stream has put there.
fn found(ordered: bool) -> usize {
    let (producer, consumer, done) = (stream(0), stream(0), event());
    let trial = |i: usize| {
        let (x, y) = (allocate(8), allocate(8));
        set(x, i as u8 + 1, producer);
        if ordered {
            // SAFETY: handles of this driver
            unsafe {
                assert_eq!(cuEventRecord(done, producer), 0);
                assert_eq!(cuStreamWaitEvent(consumer, done, 0), 0);
            }
        }
        copy(y, x, consumer);
        get(y, consumer) == i as u8 + 1
    };
    (0..TRIALS).filter(|&i| trial(i)).count()
}

#[test]
fn events_order_streams_and_nothing_else_does() {
    let _alone = alone();
    assert_eq!(found(true), TRIALS);
    let by_chance = found(false);
    assert!(0 < by_chance && by_chance < TRIALS, "{by_chance}: before and after both happen");
}

#[test]
fn work_waits() {
    let _alone = alone();
    let (own, done, x) = (stream(0), event(), allocate(8));
    let mut later = 0;
    for _ in 0..TRIALS {
        set(x, 1, own);
        // SAFETY: handles of this driver
        unsafe {
            assert_eq!(cuEventRecord(done, own), 0);
            later += usize::from(cuEventQuery(done) == 600);
            // Who asks again and again gets there.
            while cuStreamQuery(own) == 600 {}
            assert_eq!(cuEventQuery(done), 0);
        }
    }
    assert!(later > TRIALS / 4, "{later}");
}

#[test]
fn every_thread_has_its_own_stream() {
    let _alone = alone();
    let trial = |i: usize| {
        let (x, y) = (allocate(8), allocate(8));
        set(x, i as u8 + 1, PER_THREAD);
        let seen = std::thread::spawn(move || {
            copy(y, x, PER_THREAD);
            get(y, PER_THREAD)
        });
        let seen = seen.join().unwrap() == i as u8 + 1;
        // SAFETY: no pointers
        assert_eq!(unsafe { cuStreamSynchronize(PER_THREAD) }, 0);
        assert_eq!(get(x, PER_THREAD), i as u8 + 1);
        seen
    };
    let by_chance = (0..TRIALS).filter(|&i| trial(i)).count();
    assert!(by_chance < TRIALS, "another thread's work is not waited for");
}

#[test]
fn the_legacy_stream_waits_for_streams_and_they_for_it() {
    let _alone = alone();
    let found = |flags: u32| {
        let other = stream(flags);
        let trial = |i: usize| {
            let (x, y) = (allocate(8), allocate(8));
            set(x, i as u8 + 1, other);
            copy(y, x, 0);
            set(x, 99, other);
            get(y, 0) == i as u8 + 1
        };
        (0..TRIALS).filter(|&i| trial(i)).count()
    };
    assert_eq!(found(0), TRIALS);
    assert!(found(1) < TRIALS, "CU_STREAM_NON_BLOCKING");
}

/// A copy from or to memory of the host that is pinned happens when its stream comes to it.
#[test]
fn pinned_memory_is_read_and_written_later() {
    let _alone = alone();
    let (own, x, mut pinned) = (stream(0), allocate(8), std::ptr::null_mut::<u8>());
    let (mut read_late, mut written_late) = (0, 0);
    // SAFETY: eight bytes of the host, pinned; work on them is waited for before they are freed
    unsafe {
        assert_eq!(cuMemHostAlloc(&mut pinned, 8, 0), 0);
        for _ in 0..TRIALS {
            pinned.write_bytes(1, 8);
            assert_eq!(cuMemcpyHtoDAsync_v2(x, pinned.cast::<c_void>(), 8, own), 0);
            pinned.write_bytes(2, 8); // too soon
            read_late += usize::from(get(x, own) == 2);
            set(x, 3, own);
            pinned.write_bytes(0, 8);
            assert_eq!(cuMemcpyDtoHAsync_v2(pinned.cast::<c_void>(), x, 8, own), 0);
            written_late += usize::from(pinned.read_volatile() == 0);
            assert_eq!(cuStreamSynchronize(own), 0);
            assert_eq!(pinned.read_volatile(), 3);
        }
        assert_eq!(cuMemFreeHost(pinned), 0);
    }
    assert!(read_late > 0 && written_late > 0, "{read_late} {written_late}");
}

#[test]
fn captures_refuse_what_is_outside() {
    let _alone = alone();
    let (own, other, outside, never, inside, x) = (stream(0), stream(0), event(), event(), event(), allocate(8));
    let mut graph = 0;
    // SAFETY: handles of this driver, and room for the result
    unsafe {
        assert_eq!(cuEventRecord(outside, other), 0);
        assert_eq!(cuStreamBeginCapture_v2(own, 0), 0);
        assert_eq!(cuStreamWaitEvent(own, never, 0), 0, "what was never recorded has happened");
        set(x, 5, own);
        assert_eq!(cuEventRecord(inside, own), 0);
        assert_eq!(cuStreamWaitEvent(own, inside, 0), 0);
        assert_eq!(cuEventQuery(inside), 907);
        assert_eq!(cuEventSynchronize(inside), 907);
        assert_eq!(cuStreamEndCapture(own, &mut graph), 0);
        assert_eq!(cuStreamBeginCapture_v2(own, 0), 0);
        assert_eq!(cuStreamWaitEvent(own, outside, 0), 905);
        assert_eq!(cuStreamEndCapture(own, &mut graph), 901);
        assert_eq!(cuStreamSynchronize(own), 0, "the stream is as it was");
        assert_eq!(cuStreamWaitEvent(own, 77, 0), 400);
    }
}

unsafe extern "C" fn add_one(data: *mut c_void) {
    let mut status = 0;
    // SAFETY: the test's counter and result, which outlive the stream's work; a stream of the driver's
    unsafe {
        *data.cast::<u64>() += 1;
        // A callback may not call the driver.
        status += cuStreamQuery(0);
        *data.cast::<u64>() += if status == 800 { 100 } else { 0 };
    }
}

#[test]
fn host_functions_are_called_in_order() {
    let _alone = alone();
    let (own, x, mut counter) = (stream(0), allocate(8), 0u64);
    let data = (&raw mut counter).cast::<c_void>();
    let mut later = 0;
    // SAFETY: a counter that outlives the work that is waited for below
    unsafe {
        for i in 1..=TRIALS as u64 {
            set(x, i as u8, own);
            assert_eq!(cuLaunchHostFunc(own, Some(add_one), data), 0);
            later += usize::from(data.cast::<u64>().read_volatile() != 101 * i);
            assert_eq!(cuStreamSynchronize(own), 0);
            assert_eq!(data.cast::<u64>().read_volatile(), 101 * i);
        }
        assert_eq!(cuLaunchHostFunc(own, None, data), 1);
    }
    assert!(later > TRIALS / 4, "{later}");
}

/// A capture goes to other streams by events and comes back by events; what it does not order happens in any order.
#[test]
fn captures_fork_and_join() {
    let _alone = alone();
    let (own, other) = (stream(1), stream(1));
    let (forked, joined) = (event(), event());
    let (x, y, z) = (allocate(8), allocate(8), allocate(8));
    let (mut graph, mut executable) = (0, 0);
    let capture = |join: bool, order: bool| {
        let mut graph = 0;
        // SAFETY: handles of this driver, and room for the result
        unsafe {
            assert_eq!(cuStreamBeginCapture_v2(own, 0), 0);
            set(x, 1, own);
            assert_eq!(cuEventRecord(forked, own), 0);
            assert_eq!(cuStreamWaitEvent(other, forked, 0), 0);
            copy(y, x, other);
            if order {
                assert_eq!(cuEventRecord(joined, other), 0);
                assert_eq!(cuStreamWaitEvent(own, joined, 0), 0);
            }
            set(x, 2, own);
            if join {
                assert_eq!(cuEventRecord(joined, other), 0);
                assert_eq!(cuStreamWaitEvent(own, joined, 0), 0);
            }
            assert_eq!(cuStreamEndCapture(own, &mut graph), if join { 0 } else { 904 });
        }
        graph
    };
    for order in [true, false] {
        graph = capture(true, order);
        // SAFETY: handles of this driver, and room for the result
        unsafe {
            assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), 0);
            let mut found = 0;
            for _ in 0..TRIALS {
                assert_eq!(cuGraphLaunch(executable, own), 0);
                found += usize::from(get(y, own) == 1);
                assert_eq!(get(x, own), 2);
            }
            assert!(if order { found == TRIALS } else { 0 < found && found < TRIALS }, "{order}: {found}");
        }
    }
    capture(false, false);

    let alone = stream(1);
    // SAFETY: handles of this driver, and room for the results
    unsafe {
        // The forked stream is itself again, and a capture ends where it began.
        assert_eq!(cuStreamSynchronize(other), 0);
        assert_eq!(cuStreamBeginCapture_v2(own, 0), 0);
        set(z, 1, own);
        assert_eq!(cuEventRecord(forked, own), 0);
        assert_eq!(cuStreamWaitEvent(other, forked, 0), 0);
        assert_eq!(cuStreamEndCapture(other, &mut graph), 903);
        assert_eq!(cuStreamEndCapture(own, &mut graph), 901);
        // Two captures do not mix.
        assert_eq!(cuStreamBeginCapture_v2(own, 0), 0);
        assert_eq!(cuStreamBeginCapture_v2(alone, 0), 0);
        assert_eq!(cuEventRecord(forked, own), 0);
        assert_eq!(cuStreamWaitEvent(alone, forked, 0), 902);
        assert_eq!(cuStreamEndCapture(own, &mut graph), 901);
        assert_eq!(cuStreamEndCapture(alone, &mut graph), 901);
        assert_eq!(cuStreamWaitEvent(own, forked, 0), 1, "its capture has ended");
    }
}

/// The legacy stream waits for streams that were not made otherwise, and so cannot be used while one of them is captured; nor can anything wait for the
/// device.
#[test]
fn the_legacy_stream_is_not_used_beside_a_capture() {
    let _alone = alone();
    let (blocking, apart, x, mut graph) = (stream(0), stream(1), allocate(8), 0);
    let captured = |own: u64, status: u32, work: &dyn Fn() -> u32| {
        let mut graph = 0;
        // SAFETY: handles of this driver, and room for the result
        unsafe {
            assert_eq!(cuStreamBeginCapture_v2(own, 0), 0);
            assert_eq!(work(), status);
            assert_eq!(cuStreamEndCapture(own, &mut graph), if status == 0 { 0 } else { 901 });
        }
    };
    // SAFETY: an address of the device is a number
    let fill = || unsafe { cuMemsetD8Async(x, 1, 8, 0) };
    captured(blocking, 906, &fill);
    captured(PER_THREAD, 906, &fill);
    captured(apart, 0, &fill);
    // SAFETY: as above; no pointers
    unsafe {
        captured(blocking, 906, &|| cuMemsetD8_v2(x, 1, 8));
        captured(apart, 900, &|| cuCtxSynchronize());
        captured(apart, 900, &|| cuStreamQuery(apart));
        assert_eq!(cuStreamBeginCapture_v2(0, 0), 900);
        assert_eq!(cuStreamEndCapture(0, &mut graph), 1);
        assert_eq!(cuCtxSynchronize(), 0);
    }
}
