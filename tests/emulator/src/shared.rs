//! A block's shared memory, and for each granule of it who wrote and who read it last, what nobody has written, and what is still on its way.

use std::collections::HashMap;

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
    /// There are more writers, who wrote the same: see [`Shared::agreed`]
    agreed: bool,
}

impl Granule {
    /// What is missing where it is read.
    #[inline]
    fn missing(&self) -> Option<Missing> {
        if self.coming {
            Some(Missing::Coming)
        } else if !self.written {
            Some(Missing::Unwritten)
        } else {
            None
        }
    }
}

/// Why there is nothing to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Unwritten,
    /// A copy that nobody has waited for is to bring it
    Coming,
}

impl Missing {
    /// The fault of reading it.
    pub fn fault(self, space: &'static str, address: u64) -> FaultKind {
        match self {
            Missing::Unwritten => FaultKind::Uninitialised { space, address },
            Missing::Coming => FaultKind::InFlight { address },
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
    /// By granule, who else wrote what is there
    agreed: HashMap<usize, Vec<Mark>>,
}

impl Shared {
    pub fn new(size: usize, granule: u32) -> Self {
        let none = Granule {
            writer: Mark::NOBODY,
            reader: Mark::NOBODY,
            written: false,
            atomic: false,
            coming: false,
            agreed: false,
        };
        Self {
            bytes: vec![0xff; size],
            granules: vec![none; size.div_ceil(1 << granule)],
            granule,
            agreed: HashMap::new(),
        }
    }

    /// Forgets who touched what.
    pub fn forget(&mut self) {
        for granule in &mut self.granules {
            (granule.writer, granule.reader, granule.agreed) = (Mark::NOBODY, Mark::NOBODY, false);
        }
        self.agreed.clear();
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

    /// Reads 1, 2, 4 or 8 bytes, or finds that there is nothing to read; `strong`: not a race against atomics.
    #[inline]
    pub fn load(&mut self, address: u64, size: usize, strong: bool, by: &Thread) -> Access<(u64, Option<Missing>)> {
        let start = self.at(address, size)?;
        let first = start >> self.granule;
        let agreed = &self.agreed;
        let mut missing = None;
        for (i, granule) in self.granules[first..((start + size - 1) >> self.granule) + 1].iter_mut().enumerate() {
            missing = missing.or(granule.missing());
            // Whoever waits for the copy sees that what was there is gone.
            if granule.coming {
                continue;
            }
            if let Some(other) = by.conflict(granule.writer)
                && !(strong && granule.atomic)
                // Of several that wrote the same, one that it knows of will do.
                && !(granule.agreed && agreed[&(first + i)].iter().any(|&mark| by.conflict(mark).is_none()))
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
        Ok((self.value(start, size), missing))
    }

    /// The thread that keeps another from replacing what is in a granule: one whose access nothing orders before it.
    fn stranger(&self, index: usize, by: &Thread) -> Option<u32> {
        let granule = &self.granules[index];
        let others =
            || if granule.agreed { self.agreed[&index].iter().find_map(|&mark| by.conflict(mark)) } else { None };
        by.conflict(granule.writer).or_else(others).or_else(|| by.conflict(granule.reader))
    }

    /// A thread is to write here; `value`, if it is known what.
    #[inline]
    fn mark(&mut self, address: u64, size: usize, value: Option<[u8; 8]>, by: &Thread) -> Access<usize> {
        let start = self.at(address, size)?;
        let width = 1 << self.granule;
        for index in start >> self.granule..((start + size - 1) >> self.granule) + 1 {
            let granule = self.granules[index];
            if granule.coming {
                return Err(FaultKind::InFlight { address });
            }
            let mark = Mark::new(by.rank, by.tick);
            if let Some(other) = self.stranger(index, by) {
                // Threads that write the same are no race with each other, be they of one warp or of several.
                let at = index << self.granule;
                let same = value.is_some_and(|value| self.bytes[at..at + width] == value[at - start..][..width]);
                if !same || !granule.written || granule.atomic || by.conflict(granule.reader).is_some() {
                    return Err(FaultKind::SharedRace { address, other, atomic: granule.atomic });
                }
                self.agreed.entry(index).or_default().push(mark);
                self.granules[index].agreed = true;
                continue;
            }
            if granule.agreed {
                self.agreed.remove(&index);
            }
            let granule = &mut self.granules[index];
            (granule.writer, granule.atomic, granule.agreed) = (mark, false, false);
        }
        Ok(start)
    }

    /// Writes 1, 2, 4 or 8 bytes; of poison the place is as if nobody had written it.
    #[inline]
    pub fn store(&mut self, address: u64, size: usize, value: u64, poison: bool, by: &Thread) -> Access<()> {
        let start = self.mark(address, size, Some(value.to_le_bytes()), by)?;
        self.granules(start, size).iter_mut().for_each(|granule| granule.written = !poison);
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
        let first = start >> self.granule;
        let agreed = &mut self.agreed;
        for (i, granule) in self.granules[first..((start + size - 1) >> self.granule) + 1].iter_mut().enumerate() {
            if let Some(missing) = granule.missing() {
                return Err(missing.fault("shared", address));
            }
            let others = if granule.agreed { agreed.remove(&(first + i)).unwrap_or_default() } else { Vec::new() };
            let writer = || others.iter().chain([&granule.writer]).find_map(|&mark| by.conflict(mark));
            let writer = if granule.atomic { None } else { writer() };
            let reader = if swap { None } else { by.conflict(granule.reader) };
            if let Some(other) = writer.or(reader) {
                return Err(FaultKind::SharedRace { address, other, atomic: false });
            }
            (granule.writer, granule.atomic, granule.agreed) = (Mark::new(by.rank, by.tick), true, false);
        }
        let now = self.value(start, size);
        self.bytes[start..start + size].copy_from_slice(&next(now).to_le_bytes()[..size]);
        Ok(now)
    }

    /// A copy to here has begun: its bytes are poison until it lands.
    pub fn expect(&mut self, address: u64, size: usize, by: &Thread) -> Access<()> {
        let start = self.mark(address, size, None, by)?;
        self.granules(start, size).iter_mut().for_each(|granule| granule.coming = true);
        self.bytes[start..start + size].fill(0xff);
        Ok(())
    }

    /// A copy lands, seen by the thread that waited for it; `missing`: a bit for each byte that nobody has written where it came from.
    pub fn land(&mut self, address: u64, bytes: &[u8], missing: u32, by: &Thread) {
        let start = address as usize;
        let width = 1 << self.granule;
        for (i, granule) in self.granules(start, bytes.len()).iter_mut().enumerate() {
            (granule.writer, granule.atomic) = (Mark::new(by.rank, by.tick), false);
            (granule.written, granule.coming) = (missing >> (i * width) & ((1 << width) - 1) == 0, false);
        }
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }
}
