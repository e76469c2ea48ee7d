//! Device memory: allocations at addresses that are never used twice, with a shadow of eight bytes a word: which bytes were written, and who
//! touched the word in the launches that run.
//!
//! Blocks may run on several threads at once. Words and shadows are atomics, read and written without order: a race of the emulated kernel is
//! then a wrong value of the emulated kernel, mostly reported, and nothing worse.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::error::{Error, FaultKind, Result};
use crate::lanes::{L64, LANES, Lanes};
use crate::order::{Clock, Stamps};

/// Where device addresses start.
const FIRST: u64 = 0x7_0000_0000;
/// Allocations are aligned to this, as the driver's are, and that far apart at least.
const ALIGN: u64 = 512;
/// What fresh memory is filled with: a NaN as f32, f16 and bf16.
const POISON: u32 = 0xffff_ffff;

type Access<T> = std::result::Result<T, FaultKind>;

/// The shadow of a word. From its low bit: which bytes were written since the allocation; which bytes its writer wrote, which its reader read;
/// whether the writer was an atomic; whether its bytes have several writers, who are then in a table; two bits of nothing; the writer's stamp,
/// the reader's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shadow(u64);

const STAMP: u64 = (1 << crate::order::STAMP_BITS) - 1;

impl Shadow {
    fn written(self) -> u64 {
        self.0 & 15
    }
    fn writer_bytes(self) -> u64 {
        self.0 >> 4 & 15
    }
    fn reader_bytes(self) -> u64 {
        self.0 >> 8 & 15
    }
    fn atomic(self) -> bool {
        self.0 >> 12 & 1 == 1
    }
    fn mixed(self) -> bool {
        self.0 >> 13 & 1 == 1
    }
    fn with_mixed(self, mixed: bool) -> Self {
        Self(self.0 & !(1 << 13) | u64::from(mixed) << 13)
    }
    fn writer(self) -> u32 {
        (self.0 >> 16 & STAMP) as u32
    }
    fn reader(self) -> u32 {
        (self.0 >> 40) as u32
    }
    fn with_writer(self, stamp: u32, bytes: u64, atomic: bool) -> Self {
        let bytes = if self.writer() == stamp { self.writer_bytes() | bytes } else { bytes };
        Self(self.0 & !(STAMP << 16 | 0x10f0) | u64::from(stamp) << 16 | bytes << 4 | u64::from(atomic) << 12)
    }
    fn with_reader(self, stamp: u32, bytes: u64) -> Self {
        let bytes = if self.reader() == stamp { self.reader_bytes() | bytes } else { bytes };
        Self(self.0 & !(STAMP << 40 | 0xf00) | u64::from(stamp) << 40 | bytes << 8)
    }
    fn with_written(self, bytes: u64) -> Self {
        Self(self.0 | bytes)
    }
}

/// How a kernel touches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    /// Volatile, relaxed, acquiring: not a race against atomics
    StrongRead,
    /// Atomics and strong stores
    Strong,
    /// Compare-and-swap, before which others may have read plainly: it makes sure of what they read
    Swap,
}

/// One allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    base: u64,
    size: usize,
    words: Box<[AtomicU32]>,
    shadow: Box<[AtomicU64]>,
    freed: AtomicBool,
    /// What it is for: a variable's name, or none
    label: Option<String>,
    /// The writers of each byte of the words that have several
    mixed: Mutex<HashMap<usize, [u32; 4]>>,
}

impl Allocation {
    /// One that was freed, or is to come.
    fn without_memory(base: u64, size: usize, label: Option<String>) -> Self {
        let (words, shadow) = (Box::default(), Box::default());
        Self { base, size, words, shadow, freed: AtomicBool::new(true), label, mixed: Mutex::default() }
    }

    /// The bytes of its words from `offset` on: word, shift, and a bit a byte. A word at most, unless `size` is 8.
    fn bytes(offset: usize, size: usize) -> u64 {
        ((1u64 << size.min(4)) - 1) << (offset % 4)
    }

    fn read(&self, offset: usize, size: usize) -> u64 {
        let word = u64::from(self.words[offset / 4].load(Relaxed));
        match size {
            8 => word | u64::from(self.words[offset / 4 + 1].load(Relaxed)) << 32,
            4 => word,
            2 => word >> (8 * (offset % 4)) & 0xffff,
            _ => word >> (8 * (offset % 4)) & 0xff,
        }
    }

    fn write(&self, offset: usize, size: usize, value: u64) {
        match size {
            8 => {
                self.words[offset / 4].store(value as u32, Relaxed);
                self.words[offset / 4 + 1].store((value >> 32) as u32, Relaxed);
            }
            4 => self.words[offset / 4].store(value as u32, Relaxed),
            _ => {
                // Other threads may write the word's other bytes at the same time.
                let shift = 8 * (offset % 4);
                let mask = ((1u64 << (8 * size)) - 1) as u32;
                let update = |word: u32| Some(word & !(mask << shift) | (value as u32 & mask) << shift);
                let _ = self.words[offset / 4].fetch_update(Relaxed, Relaxed, update);
            }
        }
    }

    /// Checks an access against a word's shadow and leaves its mark there; gives whether all its bytes have been written.
    #[inline]
    fn touch(&self, word: usize, bytes: u64, how: Touch, by: &Clock) -> Access<bool> {
        // Nothing new: its reader reads it again, and whoever had written it since would have been told.
        if how == Touch::Read {
            let now = self.shadow[word].load(Relaxed);
            let same = u64::from(by.stamp) << 40 | bytes << 8 | bytes;
            if now & (STAMP << 40 | bytes << 8 | bytes) == same && by.stamp != 0 {
                return Ok(true);
            }
        }
        self.touch_anew(word, bytes, how, by)
    }

    /// Checks an access to a word whose bytes have several writers, and keeps its own mark.
    fn touch_mixed(&self, word: usize, bytes: u64, how: Touch, now: Shadow, by: &Clock) -> Access<()> {
        let mut mixed = self.mixed.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |byte: u64| if now.writer_bytes() >> byte & 1 == 1 { now.writer() } else { 0 };
        if !now.mixed() {
            // What is left of an earlier launch.
            mixed.remove(&word);
        }
        let writers = mixed.entry(word).or_insert_with(|| std::array::from_fn(|byte| one(byte as u64)));
        for byte in (0..4).filter(|byte| bytes >> byte & 1 == 1) {
            let other = writers[byte];
            let known = other < by.base || other == by.stamp || by.stamp == 0 || by.knows(other);
            if !known && (!now.atomic() || matches!(how, Touch::Read | Touch::Write)) {
                return Err(race(self.base + 4 * word as u64, other, now.atomic(), by));
            }
            if !matches!(how, Touch::Read | Touch::StrongRead) {
                writers[byte] = by.stamp;
            }
        }
        Ok(())
    }

    fn touch_anew(&self, word: usize, bytes: u64, how: Touch, by: &Clock) -> Access<bool> {
        let shadow = &self.shadow[word];
        let mut now = Shadow(shadow.load(Relaxed));
        let address = || self.base + 4 * word as u64;
        loop {
            let (writer, reader) = (now.writer(), now.reader());
            let written = now.written() & bytes == bytes;
            if !written && matches!(how, Touch::Strong | Touch::Swap) {
                return Err(FaultKind::Uninitialised { space: "global", address: address() });
            }
            if now.mixed() && now.writer() >= by.base {
                self.touch_mixed(word, bytes, how, now, by)?;
            }
            let strong = matches!(how, Touch::Strong | Touch::StrongRead | Touch::Swap);
            let stranger = |other: u32, touched: u64| {
                other >= by.base && other != by.stamp && touched & bytes != 0 && by.stamp != 0 && !by.knows(other)
            };
            if !(strong && now.atomic()) && stranger(writer, now.writer_bytes()) {
                return Err(race(address(), writer, now.atomic(), by));
            }
            if matches!(how, Touch::Write | Touch::Strong) && stranger(reader, now.reader_bytes()) {
                return Err(race(address(), reader, false, by));
            }
            let next = match how {
                Touch::StrongRead => return Ok(written),
                Touch::Read => {
                    if reader == by.stamp && now.reader_bytes() & bytes == bytes {
                        return Ok(written);
                    }
                    // Of a word's readers one is remembered: which is a matter of its address.
                    let mixed = (word as u32 ^ by.stamp.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
                    if reader >= by.base && reader != by.stamp && mixed >> 31 == 0 {
                        return Ok(written);
                    }
                    now.with_reader(by.stamp, bytes)
                }
                Touch::Write | Touch::Strong | Touch::Swap => {
                    // Another warp of this launch wrote other bytes of the word.
                    let others = writer >= by.base && writer != by.stamp && now.writer_bytes() & !bytes != 0;
                    if others && !now.mixed() {
                        self.touch_mixed(word, bytes, how, now, by)?;
                    }
                    let mixed = others || (now.mixed() && writer >= by.base);
                    now.with_writer(by.stamp, bytes, how != Touch::Write).with_written(bytes).with_mixed(mixed)
                }
            };
            if next == now {
                return Ok(written);
            }
            match shadow.compare_exchange_weak(now.0, next.0, Relaxed, Relaxed) {
                Ok(_) => return Ok(written),
                Err(other) => now = Shadow(other),
            }
        }
    }

    #[inline]
    fn touch_all(&self, offset: usize, size: usize, how: Touch, by: &Clock) -> Access<bool> {
        let low = self.touch(offset / 4, Self::bytes(offset, size), how, by)?;
        Ok(if size == 8 { self.touch(offset / 4 + 1, 15, how, by)? && low } else { low })
    }

    fn check_written(&self, offset: usize, size: usize) -> Option<usize> {
        (offset..offset + size).find(|at| self.shadow[at / 4].load(Relaxed) >> (at % 4) & 1 == 0)
    }

    fn set_written(&self, offset: usize, size: usize) {
        let mut at = offset;
        while at < offset + size {
            let count = (4 - at % 4).min(offset + size - at);
            self.shadow[at / 4].fetch_or(Self::bytes(at, count), Relaxed);
            at += count;
        }
    }

    /// Sectors of 32 bytes that were read, and written, since stamp `base`.
    fn sectors(&self, base: u32) -> (u64, u64) {
        let of = |sector: &[AtomicU64]| {
            let shadows = sector.iter().map(|shadow| Shadow(shadow.load(Relaxed)));
            shadows.fold((false, false), |(r, w), s| (r || s.reader() >= base, w || s.writer() >= base))
        };
        self.shadow
            .chunks(8)
            .map(of)
            .fold((0, 0), |(r, w), (read, written)| (r + u64::from(read), w + u64::from(written)))
    }
}

fn race(address: u64, other: u32, atomic: bool, by: &Clock) -> FaultKind {
    let (block, warp) = by.stamps.get(other).map_or((0, 0), |stamp| (stamp.block, stamp.warp));
    FaultKind::GlobalRace { address, block, warp, atomic }
}

/// The device's memory.
#[derive(Debug)]
pub struct Memory {
    allocations: RwLock<BTreeMap<u64, Arc<Allocation>>>,
    counts: Mutex<Counts>,
    capacity: usize,
    pub(crate) stamps: Stamps,
    /// Held by launches; alone, stamps may start anew
    launches: RwLock<()>,
    /// What kernels have printed
    printed: Mutex<String>,
}

#[derive(Debug)]
struct Counts {
    next: u64,
    used: usize,
    peak: usize,
}

impl Counts {
    /// An address that was never used.
    fn place(&mut self, size: usize) -> u64 {
        let base = self.next;
        self.next += (size as u64).next_multiple_of(ALIGN) + ALIGN;
        base
    }
}

/// Bits of an address within one of several memories.
const APART: u32 = 44;

impl Memory {
    /// An empty memory of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self {
            allocations: RwLock::default(),
            counts: Mutex::new(Counts { next: FIRST, used: 0, peak: 0 }),
            capacity,
            stamps: Stamps::default(),
            launches: RwLock::new(()),
            printed: Mutex::default(),
        }
    }

    /// An empty memory whose addresses no other one has, by its number: of one of several devices.
    pub fn numbered(number: usize, capacity: usize) -> Self {
        let memory = Self::new(capacity);
        memory.counts.lock().unwrap_or_else(PoisonError::into_inner).next += (number as u64) << APART;
        memory
    }

    /// The number of the memory that an address is of, if it is one's.
    pub fn number_of(address: u64) -> usize {
        (address >> APART) as usize
    }

    /// What kernels have printed since this was asked last.
    pub fn take_printed(&self) -> String {
        std::mem::take(&mut self.printed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Allocates `size` bytes, poisoned.
    ///
    /// # Errors
    /// Out of memory.
    pub fn allocate(&self, size: usize) -> Result<u64> {
        self.allocate_labelled(size, None)
    }

    pub(crate) fn allocate_labelled(&self, size: usize, label: Option<String>) -> Result<u64> {
        let base = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            self.reserve(&mut counts, size)?;
            counts.place(size)
        };
        self.put(base, size, label);
        Ok(base)
    }

    /// An address at which `size` bytes can be allocated later, by [`Memory::allocate_again`].
    ///
    /// # Errors
    /// More than there is room for now.
    pub fn promise(&self, size: usize) -> Result<u64> {
        let base = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            Self::has_room(&counts, size, self.capacity)?;
            counts.place(size)
        };
        let promised = Allocation::without_memory(base, size, None);
        self.allocations.write().unwrap_or_else(PoisonError::into_inner).insert(base, Arc::new(promised));
        Ok(base)
    }

    /// Allocates what was freed at `base` once more, poisoned, as a launch of a captured graph does.
    ///
    /// # Errors
    /// An address that is not an allocation's, or not freed; out of memory.
    pub fn allocate_again(&self, base: u64) -> Result<()> {
        let size = match self.read_allocations().get(&base) {
            Some(allocation) if allocation.freed.load(Relaxed) => allocation.size,
            _ => return Err(Error::Host(format!("{base:#x} is no freed allocation"))),
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.reserve(&mut counts, size)?;
        drop(counts);
        self.put(base, size, None);
        Ok(())
    }

    fn has_room(counts: &Counts, size: usize, capacity: usize) -> Result<()> {
        if size > capacity - counts.used {
            let used = counts.used;
            return Err(Error::OutOfMemory(format!("{size} bytes asked for, {used} of {capacity} used")));
        }
        Ok(())
    }

    fn reserve(&self, counts: &mut Counts, size: usize) -> Result<()> {
        Self::has_room(counts, size, self.capacity)?;
        counts.used += size;
        counts.peak = counts.peak.max(counts.used);
        Ok(())
    }

    fn put(&self, base: u64, size: usize, label: Option<String>) {
        let words = size.div_ceil(8) * 2;
        let allocation = Allocation {
            base,
            size,
            words: (0..words).map(|_| AtomicU32::new(POISON)).collect(),
            shadow: (0..words).map(|_| AtomicU64::new(0)).collect(),
            freed: AtomicBool::new(false),
            label,
            mixed: Mutex::default(),
        };
        self.allocations.write().unwrap_or_else(PoisonError::into_inner).insert(base, Arc::new(allocation));
    }

    /// Frees an allocation. Its address is not used again.
    ///
    /// # Errors
    /// An address that is not an allocation's, or freed already.
    pub fn free(&self, base: u64) -> Result<()> {
        let mut allocations = self.allocations.write().unwrap_or_else(PoisonError::into_inner);
        let Some(allocation) = allocations.get_mut(&base) else {
            return Err(Error::Host(format!("free of {base:#x}, which is no allocation")));
        };
        if allocation.freed.swap(true, Relaxed) {
            return Err(Error::Host(format!("{base:#x} is freed twice")));
        }
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).used -= allocation.size;
        // The entry stays, without its memory, so that later uses are told from wild addresses.
        *allocation = Arc::new(Allocation::without_memory(base, allocation.size, allocation.label.clone()));
        Ok(())
    }

    /// Bytes allocated, and the most there ever were.
    pub fn usage(&self) -> (usize, usize) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        (counts.used, counts.peak)
    }

    fn read_allocations(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Arc<Allocation>>> {
        self.allocations.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocations that were not freed, variables apart: address and size.
    pub fn leaks(&self) -> Vec<(u64, usize)> {
        let allocations = self.read_allocations();
        let live = allocations.values().filter(|a| !a.freed.load(Relaxed) && a.label.is_none());
        live.map(|a| (a.base, a.size)).collect()
    }

    /// The live allocation that holds `address`: its base and size.
    pub fn range(&self, address: u64) -> Option<(u64, usize)> {
        self.find(address, 1).ok().map(|a| (a.base, a.size))
    }

    /// The allocation that holds `address`, or the fault of an access there.
    fn find(&self, address: u64, size: usize) -> Access<Arc<Allocation>> {
        let allocations = self.read_allocations();
        let below = allocations.range(..=address).next_back().map(|(_, allocation)| allocation);
        match below {
            Some(a) if address - a.base + size as u64 <= a.size as u64 => {
                if a.freed.load(Relaxed) {
                    Err(FaultKind::UseAfterFree { address })
                } else {
                    Ok(a.clone())
                }
            }
            _ => {
                let near = below.map(|a| {
                    let what = a.label.clone().unwrap_or_else(|| "allocation".into());
                    format!("{} bytes past the start of {what} at {:#x}, {} bytes", address - a.base, a.base, a.size)
                });
                Err(FaultKind::OutOfBounds { space: "global", address, size, near })
            }
        }
    }

    fn host(&self, address: u64, size: usize) -> Result<Arc<Allocation>> {
        self.find(address, size).map_err(|kind| Error::Host(kind.to_string()))
    }

    /// Copies host bytes to the device.
    ///
    /// # Errors
    /// A range that is not in one live allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let allocation = self.host(address, bytes.len())?;
        let start = (address - allocation.base) as usize;
        let head = bytes.len().min(start.next_multiple_of(4) - start);
        let (head, rest) = bytes.split_at(head);
        let (words, tail) = rest.as_chunks::<4>();
        let odd = |from: usize, bytes: &[u8]| {
            bytes.iter().enumerate().for_each(|(i, &byte)| allocation.write(from + i, 1, u64::from(byte)));
        };
        odd(start, head);
        let from = start + head.len();
        for (i, word) in words.iter().enumerate() {
            allocation.words[from / 4 + i].store(u32::from_le_bytes(*word), Relaxed);
        }
        odd(from + 4 * words.len(), tail);
        allocation.set_written(start, bytes.len());
        Ok(())
    }

    /// Copies device bytes to the host.
    ///
    /// # Errors
    /// A range that is not in one live allocation, or holds bytes that nobody has written.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        match self.read_as_it_is(address, bytes)? {
            None => Ok(()),
            Some(address) => Err(Error::Host(FaultKind::Uninitialised { space: "global", address }.to_string())),
        }
    }

    /// The same, whether written or not; gives the first address that nobody has written.
    ///
    /// # Errors
    /// A range that is not in one live allocation.
    pub fn read_as_it_is(&self, address: u64, bytes: &mut [u8]) -> Result<Option<u64>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let allocation = self.host(address, bytes.len())?;
        let start = (address - allocation.base) as usize;
        let missing = allocation.check_written(start, bytes.len()).map(|at| allocation.base + at as u64);
        for (i, byte) in bytes.iter_mut().enumerate() {
            let at = start + i;
            *byte = (allocation.words[at / 4].load(Relaxed) >> (8 * (at % 4))) as u8;
        }
        Ok(missing)
    }

    /// The bytes that all allocations together may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets `count` bytes.
    ///
    /// # Errors
    /// A range that is not in one live allocation.
    pub fn fill(&self, address: u64, value: u8, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let allocation = self.host(address, count)?;
        let start = (address - allocation.base) as usize;
        let mut at = start;
        while at < start + count {
            if at.is_multiple_of(4) && at + 4 <= start + count {
                allocation.words[at / 4].store(u32::from_ne_bytes([value; 4]), Relaxed);
                at += 4;
            } else {
                allocation.write(at, 1, u64::from(value));
                at += 1;
            }
        }
        allocation.set_written(start, count);
        Ok(())
    }

    /// Copies `count` bytes on the device. Bytes that nobody has written stay such.
    ///
    /// # Errors
    /// Ranges that are not each in one live allocation.
    pub fn copy(&self, to: u64, from: u64, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let (target, source) = (self.host(to, count)?, self.host(from, count)?);
        let (to, from) = ((to - target.base) as usize, (from - source.base) as usize);
        let bytes: Vec<u8> = (from..from + count).map(|at| source.read(at, 1) as u8).collect();
        for (i, &byte) in bytes.iter().enumerate() {
            target.write(to + i, 1, u64::from(byte));
            let written = source.shadow[(from + i) / 4].load(Relaxed) >> ((from + i) % 4) & 1;
            let at = (to + i) % 4;
            if written == 1 {
                target.shadow[(to + i) / 4].fetch_or(1 << at, Relaxed);
            } else {
                target.shadow[(to + i) / 4].fetch_and(!(1 << at), Relaxed);
            }
        }
        Ok(())
    }

    /// Begins a launch: its number, the stamps that will be its own, and what keeps them so.
    pub(crate) fn begin(&self) -> (u32, u32, RwLockReadGuard<'_, ()>) {
        if self.stamps.are_many() {
            let _alone = self.launches.write().unwrap_or_else(PoisonError::into_inner);
            for allocation in self.read_allocations().values() {
                allocation.shadow.iter().for_each(|shadow| {
                    shadow.fetch_and(15, Relaxed);
                });
                allocation.mixed.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            self.stamps.clear();
        }
        let guard = self.launches.read().unwrap_or_else(PoisonError::into_inner);
        (self.stamps.launch(), self.stamps.next(), guard)
    }

    /// Distinct sectors of 32 bytes that a launch read and wrote, in the allocations it touched.
    pub(crate) fn sectors(&self, touched: &[u64], base: u32) -> (u64, u64) {
        let allocations = self.read_allocations();
        let of = |at: &u64| allocations.get(at).map_or((0, 0), |a| a.sectors(base));
        touched.iter().map(of).fold((0, 0), |(r, w), (read, written)| (r + read, w + written))
    }
}

/// A running block's way to memory: the last allocations are kept, since accesses mostly go to a few.
#[derive(Debug)]
pub(crate) struct View<'m> {
    memory: &'m Memory,
    recent: [Option<Arc<Allocation>>; 4],
    turn: usize,
    /// Bases of all allocations it came to
    pub touched: Vec<u64>,
}

impl<'m> View<'m> {
    pub fn new(memory: &'m Memory) -> Self {
        Self { memory, recent: [const { None }; 4], turn: 0, touched: Vec::new() }
    }

    /// A kernel prints.
    pub fn print(&self, text: &str) {
        self.memory.printed.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }

    #[cold]
    fn fetch(&mut self, address: u64, size: usize) -> Access<usize> {
        let found = self.memory.find(address, size)?;
        if !self.touched.contains(&found.base) {
            self.touched.push(found.base);
        }
        self.turn = (self.turn + 1) % self.recent.len();
        self.recent[self.turn] = Some(found);
        Ok(self.turn)
    }

    #[inline]
    fn at(&mut self, address: u64, size: usize) -> Access<(&Allocation, usize)> {
        if address & (size as u64 - 1) != 0 {
            return Err(FaultKind::Misaligned { address, size });
        }
        let holds = |a: &Option<Arc<Allocation>>| {
            a.as_ref().is_some_and(|a| address >= a.base && address - a.base + size as u64 <= a.size as u64)
        };
        let slot = match self.recent.iter().position(holds) {
            Some(slot) => slot,
            None => self.fetch(address, size)?,
        };
        match &self.recent[slot] {
            Some(allocation) => Ok((allocation, (address - allocation.base) as usize)),
            None => Err(FaultKind::OutOfBounds { space: "global", address, size, near: None }),
        }
    }

    /// Reads 1, 2, 4 or 8 bytes; gives whether all of them have been written, too.
    #[inline]
    pub fn load(&mut self, address: u64, size: usize, strong: bool, by: &Clock) -> Access<(u64, bool)> {
        let (allocation, offset) = self.at(address, size)?;
        let how = if strong { Touch::StrongRead } else { Touch::Read };
        let written = allocation.touch_all(offset, size, how, by)?;
        Ok((allocation.read(offset, size), written))
    }

    /// Reads for several lanes, at an offset from each one's address; gives the lanes that read what nobody has written, too.
    #[inline]
    pub fn load_lanes(
        &mut self,
        lanes: Lanes,
        addresses: &L64,
        offset: u64,
        size: usize,
        by: &Clock,
    ) -> std::result::Result<(L64, u32), (usize, FaultKind)> {
        let (mut value, mut missing) = ([0; LANES], 0);
        let Some(first) = lanes.clone().next() else { return Ok((value, 0)) };
        let start = addresses[first].wrapping_add(offset);
        let (allocation, _) = self.at(start, size).map_err(|kind| (first, kind))?;
        let (base, most) = (allocation.base, allocation.size as u64 - size as u64);
        // Mostly one allocation holds them all, well aligned.
        let wrong =
            |address: u64| address.wrapping_add(offset).wrapping_sub(base) > most || address & (size as u64 - 1) != 0;
        if lanes.0 == u32::MAX && !addresses.iter().fold(offset & (size as u64 - 1) != 0, |any, &a| any | wrong(a)) {
            for lane in 0..LANES {
                let at = (addresses[lane].wrapping_add(offset) - base) as usize;
                let written = allocation.touch_all(at, size, Touch::Read, by).map_err(|kind| (lane, kind))?;
                missing |= u32::from(!written) << lane;
                value[lane] = allocation.read(at, size);
            }
            return Ok((value, missing));
        }
        for lane in lanes {
            let address = addresses[lane].wrapping_add(offset);
            let (read, written) = self.load(address, size, false, by).map_err(|kind| (lane, kind))?;
            missing |= u32::from(!written) << lane;
            value[lane] = read;
        }
        Ok((value, missing))
    }

    /// Writes 1, 2, 4 or 8 bytes.
    #[inline]
    pub fn store(&mut self, address: u64, size: usize, value: u64, by: &Clock) -> Access<()> {
        let (allocation, offset) = self.at(address, size)?;
        allocation.touch_all(offset, size, Touch::Write, by)?;
        allocation.write(offset, size, value);
        Ok(())
    }

    /// A strong store: as an atomic that needs nothing to be there.
    pub fn store_strong(&mut self, address: u64, size: usize, value: u64, by: &Clock) -> Access<()> {
        let (allocation, offset) = self.at(address, size)?;
        allocation.set_written(offset, size);
        allocation.touch_all(offset, size, Touch::Strong, by)?;
        allocation.write(offset, size, value);
        Ok(())
    }

    /// Replaces 2, 4 or 8 bytes by `next` of them; gives what was there. Blocks of a kernel with atomics run on one thread, in turn.
    pub fn update(
        &mut self,
        address: u64,
        size: usize,
        swap: bool,
        next: impl Fn(u64) -> u64,
        by: &Clock,
    ) -> Access<u64> {
        let (allocation, offset) = self.at(address, size)?;
        allocation.touch_all(offset, size, if swap { Touch::Swap } else { Touch::Strong }, by)?;
        let old = allocation.read(offset, size);
        allocation.write(offset, size, next(old));
        Ok(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_any_alignment() {
        let memory = Memory::new(1 << 20);
        let base = memory.allocate(40).unwrap();
        for start in 0..9u64 {
            for len in 1..20usize {
                let bytes: Vec<u8> = (0..len).map(|i| (i as u8) ^ (start as u8) << 4).collect();
                memory.write(base + start, &bytes).unwrap();
                let mut back = vec![0; len];
                memory.read(base + start, &mut back).unwrap();
                assert_eq!(back, bytes, "{start} {len}");
            }
        }
    }

    #[test]
    fn host_mistakes_are_told_apart() {
        let memory = Memory::new(1 << 10);
        let base = memory.allocate(16).unwrap();
        let text = |result: Result<()>| result.unwrap_err().to_string();
        assert!(text(memory.read(base, &mut [0; 4])).contains("never written"));
        assert!(text(memory.write(base + 14, &[0; 4])).contains("out of bounds"));
        memory.free(base).unwrap();
        assert!(text(memory.write(base, &[0; 4])).contains("freed memory"));
        assert!(text(memory.free(base)).contains("freed twice"));
        assert!(text(memory.free(base + 1)).contains("no allocation"));
        assert!(memory.allocate(2000).unwrap_err().to_string().contains("out of memory"));
    }

    #[test]
    fn usage_and_leaks() {
        let memory = Memory::new(1 << 10);
        let (a, b) = (memory.allocate(100).unwrap(), memory.allocate(50).unwrap());
        assert_eq!(memory.usage(), (150, 150));
        memory.free(a).unwrap();
        assert_eq!(memory.usage(), (50, 150));
        assert_eq!(memory.leaks(), [(b, 50)]);
    }
}
