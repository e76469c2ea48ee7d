//! Memory that a call takes: the system's allocator, counting while it is asked to.
//!
//! Not the crate `peak_alloc`, because that turns `alloc_zeroed` into an allocation and a sweep that writes zeros, and times are taken under this
//! allocator too: it would touch every page of a fresh gradient twice.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed};

use gemm::Parallelism;

use crate::floor::product;

/// The system's allocator, counted.
pub struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
/// Bytes since counting began: allocated less freed, and the most there were.
static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    if COUNTS.load(Relaxed) {
        let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
        PEAK.fetch_max(live, Relaxed);
    }
}

/// A layout's size: at most `isize::MAX`, as every layout's is.
fn size(bytes: usize) -> isize {
    bytes as isize
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches atomics only and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller's promise is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(size(new_size)); // both may be there for a moment
        // SAFETY: as above; `ptr` is of `System`, since all allocations here are.
        let new = unsafe { System.realloc(ptr, layout, new_size) };
        count(-size(layout.size()));
        new
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-size(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Bytes on top of what was there: the most while `work` ran, and what its result still holds.
pub fn measure<R>(work: impl FnOnce() -> R) -> (R, isize, isize) {
    LIVE.store(0, Relaxed);
    PEAK.store(0, Relaxed);
    COUNTS.store(true, Relaxed);
    let result = work();
    COUNTS.store(false, Relaxed);
    (result, PEAK.load(Relaxed), LIVE.load(Relaxed))
}

/// Makes every thread allocate the buffer that `gemm` packs into and keeps, so that no later peak has it by chance; gives the bytes of those of
/// rayon's threads, where the large products run.
pub fn gemm_slabs() -> isize {
    fn use_slab() {
        let (m, n, k) = (2048, 16, 512);
        let (lhs, rhs, mut dst) = (vec![1.0; m * k], vec![1.0; k * n], vec![0.0; m * n]);
        product(&mut dst, (m, n, k), (&lhs, [k, 1]), (&rhs, [n, 1]), Parallelism::None);
    }
    static BYTES: OnceLock<isize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        use_slab();
        rayon::broadcast(|_| {}); // the threads themselves are not counted
        let (_, _, kept) = measure(|| drop(rayon::broadcast(|_| use_slab())));
        kept
    })
}
