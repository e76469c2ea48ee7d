//! A warp: the registers of 32 lanes, and where its lanes are.

use crate::error::FaultKind;
use crate::lanes::{L32, L64, LANES};
use crate::operand::{Dst, Place, Pred, Src};
use crate::order::Clock;
use crate::poison::Poison;
use crate::shared::Thread;

/// A lane's part of a register: 32 or 64 bits.
pub(crate) trait Word: Copy + Default + 'static {
    /// The low bits, or all
    fn of(bits: u64) -> Self;
    /// All its bits, and zeros above
    fn bits(self) -> u64;
    /// The registers of this width
    fn bank<'w>(warp: &'w Warp) -> &'w [[Self; LANES]];
    /// The register of this width that a source is
    fn register(src: Src) -> Option<u32>;
}

impl Word for u32 {
    #[inline(always)]
    fn of(bits: u64) -> Self {
        bits as u32
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn bank<'w>(warp: &'w Warp) -> &'w [L32] {
        &warp.r32
    }
    #[inline(always)]
    fn register(src: Src) -> Option<u32> {
        if let Src::R32(r) = src { Some(r) } else { None }
    }
}

impl Word for u64 {
    #[inline(always)]
    fn of(bits: u64) -> Self {
        bits
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        self
    }
    #[inline(always)]
    fn bank<'w>(warp: &'w Warp) -> &'w [L64] {
        &warp.r64
    }
    #[inline(always)]
    fn register(src: Src) -> Option<u32> {
        if let Src::R64(r) = src { Some(r) } else { None }
    }
}

/// What a group of lanes waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    No,
    /// At a barrier of the block
    Barrier(Arrival),
    /// For other lanes of the warp
    Lanes,
    /// For memory to change: it read the same value twice
    Memory,
}

/// How a barrier is waited for: by its number, for so many threads, or for all, with a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub id: u32,
    pub wanted: Option<u32>,
    pub vote: Option<BarrierVote>,
}

/// A vote of all threads of a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BarrierVote {
    pub gives: Reduced,
    pub by: Pred,
}

/// What a barrier's vote gives, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduced {
    Count(Dst),
    All(u32),
    Any(u32),
}

/// Lanes that are at one instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
}

impl Group {
    pub fn is_at_barrier(&self) -> bool {
        matches!(self.wait, Wait::Barrier(..))
    }
}

/// A `cp.async` that nobody has waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AsyncCopy {
    pub lane: usize,
    pub to: u64,
    pub from: u64,
    /// Bytes written, and how many of them are read; the rest are zeros
    pub size: usize,
    pub read: usize,
    /// The lane's commits before it
    pub group: u32,
}

/// A read that is a race, unless a compare-and-swap of the address follows.
#[derive(Debug, Clone)]
pub(crate) struct Doubt {
    pub pc: u32,
    pub lane: usize,
    pub address: u64,
    pub race: FaultKind,
}

#[derive(Debug)]
pub(crate) struct Warp<'g> {
    pub index: u32,
    pub r32: Vec<L32>,
    pub r64: Vec<L64>,
    pub predicates: Vec<u32>,
    pub poison: Poison,
    /// Local memory, a lane after the other, and which bytes were written
    pub local: Vec<u8>,
    pub local_written: Vec<bool>,
    /// By rising program counter
    pub groups: Vec<Group>,
    pub clock: Clock<'g>,
    /// For each warp of the block: the tick before which its accesses to shared memory are known to have happened
    pub known: Vec<u32>,
    pub copies: Vec<AsyncCopy>,
    pub commits: [u32; LANES],
    pub doubts: Vec<Doubt>,
    /// The last strong load: instruction, address, value
    pub last_look: Option<(u32, u64, u64)>,
}

#[inline]
fn blend<R: Word, T: Word>(register: &mut [R; LANES], active: u32, value: &[T; LANES]) {
    if active == u32::MAX {
        for lane in 0..LANES {
            register[lane] = R::of(value[lane].bits());
        }
    } else {
        for lane in 0..LANES {
            register[lane] = if active >> lane & 1 == 1 { R::of(value[lane].bits()) } else { register[lane] };
        }
    }
}

impl<'g> Warp<'g> {
    /// A source's value in each lane: its low bits, or with zeros above.
    #[inline]
    pub fn get<T: Word>(&self, src: Src) -> [T; LANES] {
        match src {
            Src::R32(r) => self.r32[r as usize].map(|v| T::of(v.bits())),
            Src::R64(r) => self.r64[r as usize].map(|v| T::of(v.bits())),
            Src::Imm(value) => [T::of(value); LANES],
        }
    }

    #[inline]
    pub fn get32(&self, src: Src) -> L32 {
        self.get(src)
    }

    #[inline]
    pub fn get64(&self, src: Src) -> L64 {
        self.get(src)
    }

    /// Puts the active lanes' values into a register.
    #[inline]
    pub fn put<T: Word>(&mut self, dst: Dst, active: u32, value: &[T; LANES]) {
        match dst {
            Dst::R32(r) => blend(&mut self.r32[r as usize], active, value),
            Dst::R64(r) => blend(&mut self.r64[r as usize], active, value),
            Dst::None => {}
        }
    }

    #[inline]
    pub fn put_predicate(&mut self, register: u32, active: u32, value: u32) {
        let p = &mut self.predicates[register as usize];
        *p = (*p & !active) | (value & active);
    }

    #[inline]
    pub fn predicate(&self, pred: Pred) -> u32 {
        let p = self.predicates[pred.register as usize];
        if pred.negated { !p } else { p }
    }

    /// The lanes that have not exited.
    pub fn live(&self) -> u32 {
        self.groups.iter().fold(0, |live, group| live | group.mask)
    }

    /// Puts lanes at an instruction; groups that meet become one, unless they wait for a barrier.
    pub fn settle(&mut self, mask: u32, pc: u32, wait: Wait) {
        if mask == 0 {
            return;
        }
        let arrived = Group { pc, mask, wait };
        if !arrived.is_at_barrier()
            && let Some(met) = self.groups.iter_mut().find(|g| g.pc == pc && !g.is_at_barrier())
        {
            met.mask |= mask;
            met.wait = Wait::No;
            return;
        }
        let here = self.groups.partition_point(|g| g.pc < pc);
        self.groups.insert(here, arrived);
    }

    pub fn addresses(&self, place: &Place) -> L64 {
        let offset = place.offset as u64;
        match place.base {
            None => [offset; LANES],
            Some(base) => self.get64(base).map(|base| base.wrapping_add(offset)),
        }
    }

    pub fn thread(&self, lane: usize, tick: u32) -> Thread<'_> {
        Thread { rank: self.index * LANES as u32 + lane as u32, tick, known: &self.known }
    }

    /// Whether it looks at memory that has not changed since it looked there last, with the same instruction: it spins.
    pub fn looked(&mut self, pc: u32, address: u64, value: u64) -> bool {
        let look = Some((pc, address, value));
        let same = self.last_look == look;
        self.last_look = look;
        same
    }
}
