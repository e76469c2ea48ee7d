//! A block's shared memory, and for each granule of it who wrote and who read it last, what nobody has written, and what is still on its way.

use crate::error::FaultKind;
use crate::lanes::LANES;

type Access<T> = std::result::Result<T, FaultKind>;

/// A thread at a time: its rank in the block, and the block's count of synchronisations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark(u32);

const RANK_BITS: u32 = 11;
/// Times beyond this start anew.
pub(crate) const MOST_TICKS: u32 = 1 << (32 - RANK_BITS);

impl Mark {
    const NOBODY: Mark = Mark(0);

    fn new(rank: u32, tick: u32) -> Self {
        Self(tick << RANK_BITS | (rank + 1))
    }
    fn rank(self) -> Option<u32> {
        (self.0 & ((1 << RANK_BITS) - 1)).checked_sub(1)
    }
    fn tick(self) -> u32 {
        self.0 >> RANK_BITS
    }
}

#[derive(Debug, Clone, Copy)]
struct Granule {
    writer: Mark,
    reader: Mark,
    written: bool,
    /// The writer was an atomic
    atomic: bool,
    /// The destination of a copy that nobody has waited for
    coming: bool,
}

impl Granule {
    /// Whether there is something to read.
    #[inline]
    fn check(&self, address: u64) -> Access<()> {
        if self.coming {
            Err(FaultKind::InFlight { address })
        } else if !self.written {
            Err(FaultKind::Uninitialised { space: "shared", address })
        } else {
            Ok(())
        }
    }
}

/// A thread that accesses shared memory, and what it knows of the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thread<'k> {
    pub rank: u32,
    pub tick: u32,
    /// For each warp of the block: before which tick its accesses are known to have happened
    pub known: &'k [u32],
}

impl Thread<'_> {
    #[inline]
    fn conflict(&self, mark: Mark) -> Option<u32> {
        let other = mark.rank()?;
        (other != self.rank && mark.tick() >= self.known[other as usize / LANES]).then_some(other)
    }
}

/// A block's shared memory.
#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    granules: Vec<Granule>,
    /// log2 of a granule's bytes: no access of the kernel is smaller
    granule: u32,
}

impl Shared {
    pub fn new(size: usize, granule: u32) -> Self {
        let none = Granule { writer: Mark::NOBODY, reader: Mark::NOBODY, written: false, atomic: false, coming: false };
        Self { bytes: vec![0xff; size], granules: vec![none; size.div_ceil(1 << granule)], granule }
    }

    /// Forgets who touched what.
    pub fn forget(&mut self) {
        for granule in &mut self.granules {
            (granule.writer, granule.reader) = (Mark::NOBODY, Mark::NOBODY);
        }
    }

    #[inline]
    fn at(&self, address: u64, size: usize) -> Access<usize> {
        if address.saturating_add(size as u64) > self.bytes.len() as u64 {
            let near = Some(format!("the block has {} bytes", self.bytes.len()));
            return Err(FaultKind::OutOfBounds { space: "shared", address, size, near });
        }
        if address & (size as u64 - 1) != 0 {
            return Err(FaultKind::Misaligned { address, size });
        }
        Ok(address as usize)
    }

    #[inline]
    fn granules(&mut self, start: usize, size: usize) -> &mut [Granule] {
        &mut self.granules[start >> self.granule..((start + size - 1) >> self.granule) + 1]
    }

    fn value(&self, start: usize, size: usize) -> u64 {
        let bytes = &self.bytes[start..start + size];
        match *bytes {
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b] => u64::from(u16::from_le_bytes([a, b])),
            _ => bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)),
        }
    }

    /// Reads 1, 2, 4 or 8 bytes; `strong`: not a race against atomics.
    #[inline]
    pub fn load(&mut self, address: u64, size: usize, strong: bool, by: &Thread) -> Access<u64> {
        let start = self.at(address, size)?;
        for granule in self.granules(start, size) {
            granule.check(address)?;
            if let Some(other) = by.conflict(granule.writer)
                && !(strong && granule.atomic)
            {
                return Err(FaultKind::SharedRace { address, other, atomic: granule.atomic });
            }
            // Of readers that nothing orders one is remembered, by the address.
            if strong {
                continue;
            }
            if by.conflict(granule.reader).is_none() || (address >> 2 ^ u64::from(by.rank) >> 5) & 1 == 0 {
                granule.reader = Mark::new(by.rank, by.tick);
            }
        }
        Ok(self.value(start, size))
    }

    fn mark(&mut self, address: u64, size: usize, by: &Thread) -> Access<usize> {
        let start = self.at(address, size)?;
        for granule in self.granules(start, size) {
            if granule.coming {
                return Err(FaultKind::InFlight { address });
            }
            if let Some(other) = by.conflict(granule.writer).or(by.conflict(granule.reader)) {
                return Err(FaultKind::SharedRace { address, other, atomic: granule.atomic });
            }
            (granule.writer, granule.atomic) = (Mark::new(by.rank, by.tick), false);
        }
        Ok(start)
    }

    /// Writes 1, 2, 4 or 8 bytes.
    #[inline]
    pub fn store(&mut self, address: u64, size: usize, value: u64, by: &Thread) -> Access<()> {
        let start = self.mark(address, size, by)?;
        self.granules(start, size).iter_mut().for_each(|granule| granule.written = true);
        self.bytes[start..start + size].copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }

    /// Replaces bytes by `next` of them; gives what was there. Atomics do not race with each other, but with plain accesses before them.
    pub fn update(
        &mut self,
        address: u64,
        size: usize,
        swap: bool,
        next: impl Fn(u64) -> u64,
        by: &Thread,
    ) -> Access<u64> {
        let start = self.at(address, size)?;
        for granule in self.granules(start, size) {
            granule.check(address)?;
            let writer = if granule.atomic { None } else { by.conflict(granule.writer) };
            let reader = if swap { None } else { by.conflict(granule.reader) };
            if let Some(other) = writer.or(reader) {
                return Err(FaultKind::SharedRace { address, other, atomic: false });
            }
            (granule.writer, granule.atomic) = (Mark::new(by.rank, by.tick), true);
        }
        let now = self.value(start, size);
        self.bytes[start..start + size].copy_from_slice(&next(now).to_le_bytes()[..size]);
        Ok(now)
    }

    /// A copy to here has begun: its bytes are poison until it lands.
    pub fn expect(&mut self, address: u64, size: usize, by: &Thread) -> Access<()> {
        let start = self.mark(address, size, by)?;
        self.granules(start, size).iter_mut().for_each(|granule| granule.coming = true);
        self.bytes[start..start + size].fill(0xff);
        Ok(())
    }

    /// A copy lands, seen by the thread that waited for it.
    pub fn land(&mut self, address: u64, bytes: &[u8], by: &Thread) {
        let start = address as usize;
        for granule in self.granules(start, bytes.len()) {
            (granule.writer, granule.atomic) = (Mark::new(by.rank, by.tick), false);
            (granule.written, granule.coming) = (true, false);
        }
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }
}
