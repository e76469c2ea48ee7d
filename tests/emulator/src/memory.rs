//! Device memory: allocations at addresses that are never used twice, with a shadow bit a byte for "written".
//!
//! Blocks run on several threads at once. Words are atomics, read and written without order: a race of the emulated kernel is then a wrong
//! value of the emulated kernel and nothing worse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use crate::error::{Error, FaultKind, Result};

/// Where device addresses start.
const FIRST: u64 = 0x7_0000_0000;
/// Allocations are aligned to this, as the driver's are, and that far apart at least.
const ALIGN: u64 = 512;
/// What fresh and freed memory is filled with: a NaN as f32, f16 and bf16.
const POISON: u32 = 0xffff_ffff;

/// One allocation.
#[derive(Debug)]
pub struct Allocation {
    base: u64,
    size: usize,
    words: Box<[AtomicU32]>,
    /// A bit a byte: written since it was allocated
    written: Box<[AtomicU32]>,
    freed: AtomicBool,
    /// What it is for: a variable's name, or none
    label: Option<String>,
}

fn zeroed(words: usize, value: u32) -> Box<[AtomicU32]> {
    (0..words).map(|_| AtomicU32::new(value)).collect()
}

impl Allocation {
    /// The bits of `written` for bytes `start..start + size` of one word of it.
    fn mask(start: usize, size: usize) -> u32 {
        (((1u64 << size) - 1) << (start % 32)) as u32
    }

    fn check_written(&self, offset: usize, size: usize) -> bool {
        let mut at = offset;
        while at < offset + size {
            let count = (32 - at % 32).min(offset + size - at);
            let mask = Self::mask(at, count);
            if self.written[at / 32].load(Relaxed) & mask != mask {
                return false;
            }
            at += count;
        }
        true
    }

    fn set_written(&self, offset: usize, size: usize) {
        let mut at = offset;
        while at < offset + size {
            let count = (32 - at % 32).min(offset + size - at);
            let mask = Self::mask(at, count);
            if self.written[at / 32].load(Relaxed) & mask != mask {
                self.written[at / 32].fetch_or(mask, Relaxed);
            }
            at += count;
        }
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
}

/// The device's memory.
#[derive(Debug)]
pub struct Memory {
    allocations: BTreeMap<u64, Arc<Allocation>>,
    next: u64,
    capacity: usize,
    used: usize,
    peak: usize,
}

impl Memory {
    /// An empty memory of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { allocations: BTreeMap::new(), next: FIRST, capacity, used: 0, peak: 0 }
    }

    /// Allocates `size` bytes, poisoned.
    ///
    /// # Errors
    /// Out of memory.
    pub fn allocate(&mut self, size: usize) -> Result<u64> {
        self.allocate_labelled(size, None)
    }

    pub(crate) fn allocate_labelled(&mut self, size: usize, label: Option<String>) -> Result<u64> {
        if size > self.capacity - self.used {
            return Err(Error::OutOfMemory(format!("{size} bytes asked for, {} of {} used", self.used, self.capacity)));
        }
        let base = self.next;
        self.next += (size as u64).next_multiple_of(ALIGN) + ALIGN;
        let allocation = Allocation {
            base,
            size,
            words: zeroed(size.div_ceil(8) * 2, POISON),
            written: zeroed(size.div_ceil(32), 0),
            freed: AtomicBool::new(false),
            label,
        };
        self.allocations.insert(base, Arc::new(allocation));
        self.used += size;
        self.peak = self.peak.max(self.used);
        Ok(base)
    }

    /// Frees an allocation. Its address is not used again.
    ///
    /// # Errors
    /// An address that is not an allocation's, or freed already.
    pub fn free(&mut self, base: u64) -> Result<()> {
        let Some(allocation) = self.allocations.get_mut(&base) else {
            return Err(Error::Host(format!("free of {base:#x}, which is no allocation")));
        };
        if allocation.freed.load(Relaxed) {
            return Err(Error::Host(format!("{base:#x} is freed twice")));
        }
        self.used -= allocation.size;
        // The entry stays, without its memory, so that later uses are told from wild addresses.
        *allocation = Arc::new(Allocation {
            base,
            size: allocation.size,
            words: Box::default(),
            written: Box::default(),
            freed: AtomicBool::new(true),
            label: allocation.label.clone(),
        });
        Ok(())
    }

    /// Bytes allocated, and the most there ever were.
    pub fn usage(&self) -> (usize, usize) {
        (self.used, self.peak)
    }

    /// Allocations that were not freed, variables apart: address and size.
    pub fn leaks(&self) -> Vec<(u64, usize)> {
        let live = self.allocations.values().filter(|a| !a.freed.load(Relaxed) && a.label.is_none());
        live.map(|a| (a.base, a.size)).collect()
    }

    /// The allocation that holds `address`, or the fault of an access there.
    pub(crate) fn find(&self, address: u64, size: usize) -> std::result::Result<Arc<Allocation>, FaultKind> {
        let below = self.allocations.range(..=address).next_back().map(|(_, allocation)| allocation);
        match below {
            Some(a) if address + size as u64 <= a.base + a.size as u64 => {
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
        for (i, &byte) in bytes.iter().enumerate() {
            if (start + i).is_multiple_of(4) && i + 4 <= bytes.len() {
                let word = u32::from_le_bytes([byte, bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
                allocation.words[(start + i) / 4].store(word, Relaxed);
            } else if !in_whole_word(start, i, bytes.len()) {
                allocation.write(start + i, 1, u64::from(byte));
            }
        }
        allocation.set_written(start, bytes.len());
        Ok(())
    }

    /// Copies device bytes to the host.
    ///
    /// # Errors
    /// A range that is not in one live allocation, or holds bytes that nobody has written.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let allocation = self.host(address, bytes.len())?;
        let start = (address - allocation.base) as usize;
        if !allocation.check_written(start, bytes.len()) {
            return Err(Error::Host(FaultKind::Uninitialised { space: "global", address }.to_string()));
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = allocation.read(start + i, 1) as u8;
        }
        Ok(())
    }
}

/// Whether byte `i` of a copy to `start` is one of a whole aligned word that the copy writes at once.
fn in_whole_word(start: usize, i: usize, len: usize) -> bool {
    let word = (start + i) / 4 * 4;
    word >= start && word + 4 <= start + len
}

/// A running block's way to memory: the last allocation is kept, since neighbouring accesses mostly share it.
#[derive(Debug)]
pub(crate) struct View<'m> {
    memory: &'m Memory,
    last: Option<Arc<Allocation>>,
}

impl<'m> View<'m> {
    pub fn new(memory: &'m Memory) -> Self {
        Self { memory, last: None }
    }

    #[inline]
    fn at(&mut self, address: u64, size: usize) -> std::result::Result<(&Allocation, usize), FaultKind> {
        if !address.is_multiple_of(size as u64) {
            return Err(FaultKind::Misaligned { address, size });
        }
        let hit = matches!(&self.last, Some(a) if address >= a.base && address + size as u64 <= a.base + a.size as u64);
        if !hit {
            self.last = Some(self.memory.find(address, size)?);
        }
        match &self.last {
            Some(allocation) => Ok((allocation, (address - allocation.base) as usize)),
            None => Err(FaultKind::OutOfBounds { space: "global", address, size, near: None }),
        }
    }

    /// Reads 1, 2, 4 or 8 bytes.
    #[inline]
    pub fn load(&mut self, address: u64, size: usize) -> std::result::Result<u64, FaultKind> {
        let (allocation, offset) = self.at(address, size)?;
        if !allocation.check_written(offset, size) {
            return Err(FaultKind::Uninitialised { space: "global", address });
        }
        Ok(allocation.read(offset, size))
    }

    /// Writes 1, 2, 4 or 8 bytes.
    #[inline]
    pub fn store(&mut self, address: u64, size: usize, value: u64) -> std::result::Result<(), FaultKind> {
        let (allocation, offset) = self.at(address, size)?;
        allocation.write(offset, size, value);
        allocation.set_written(offset, size);
        Ok(())
    }
}

impl View<'_> {
    /// Replaces 4 or 8 bytes by `next` of them, atomically; gives what was there.
    pub fn update(
        &mut self,
        address: u64,
        size: usize,
        next: impl Fn(u64) -> u64,
    ) -> std::result::Result<u64, FaultKind> {
        let (allocation, offset) = self.at(address, size)?;
        if !allocation.check_written(offset, size) {
            return Err(FaultKind::Uninitialised { space: "global", address });
        }
        let word = &allocation.words[offset / 4];
        if size == 4 {
            let old = word.fetch_update(Relaxed, Relaxed, |now| Some(next(u64::from(now)) as u32));
            return Ok(u64::from(old.unwrap_or_else(|now| now)));
        }
        // Two words cannot be exchanged at once: one lock for all 64-bit atomics stands in.
        let _one_at_a_time = WIDE.lock();
        let old = allocation.read(offset, 8);
        allocation.write(offset, 8, next(old));
        Ok(old)
    }
}

/// Held during a 64-bit atomic.
static WIDE: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_any_alignment() {
        let mut memory = Memory::new(1 << 20);
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
        let mut memory = Memory::new(1 << 10);
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
        let mut memory = Memory::new(1 << 10);
        let (a, b) = (memory.allocate(100).unwrap(), memory.allocate(50).unwrap());
        assert_eq!(memory.usage(), (150, 150));
        memory.free(a).unwrap();
        assert_eq!(memory.usage(), (50, 150));
        assert_eq!(memory.leaks(), [(b, 50)]);
    }
}
