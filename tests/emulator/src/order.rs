//! Who knows of whose accesses to global memory: stamps and vector clocks.
//!
//! A stamp says which warp of which block of which launch touched a word, and in which of its block's phases. A phase ends at barriers and
//! releases. A warp's clock says, for each warp it has heard of, before which phase that warp's accesses are known to have happened. Clocks
//! join at barriers of a block, and through memory: a fence and then an atomic or strong store publishes, an atomic or strong load and then a
//! fence takes what was published (PTX's release and acquire patterns). Warps are the unit: lanes of one warp are taken to be in order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

/// Stamps have this many bits; 0 is "nobody".
pub(crate) const STAMP_BITS: u32 = 24;
/// Stamps start anew before a launch when so many were given out.
const MANY_STAMPS: u32 = 1 << 22;

/// Who.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub launch: u32,
    pub block: u32,
    pub warp: u32,
    pub phase: u32,
}

/// The stamps given out, by number.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    given: RwLock<Vec<Stamp>>,
    launches: AtomicU32,
}

impl Stamps {
    pub fn launch(&self) -> u32 {
        self.launches.fetch_add(1, Relaxed)
    }

    /// A number for a stamp; 0 when there are no more, and its accesses are not checked for races.
    fn give(&self, stamp: Stamp) -> u32 {
        let mut given = self.given.write().unwrap_or_else(PoisonError::into_inner);
        if given.len() + 2 > 1 << STAMP_BITS {
            return 0;
        }
        given.push(stamp);
        given.len() as u32
    }

    pub fn get(&self, number: u32) -> Option<Stamp> {
        let given = self.given.read().unwrap_or_else(PoisonError::into_inner);
        given.get((number as usize).checked_sub(1)?).copied()
    }

    /// The number that the next stamp gets.
    pub fn next(&self) -> u32 {
        self.given.read().unwrap_or_else(PoisonError::into_inner).len() as u32 + 1
    }

    pub fn are_many(&self) -> bool {
        self.next() > MANY_STAMPS
    }

    pub fn clear(&self) {
        self.given.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// For each warp of a block: the first of its phases that is not known to have ended before now.
type Phases = Box<[u32]>;
/// What is known of other blocks.
pub(crate) type Knowledge = Arc<HashMap<u32, Phases>>;

/// What both know.
pub(crate) fn join(into: &mut Knowledge, other: &Knowledge) {
    if Arc::ptr_eq(into, other) || other.is_empty() {
        return;
    }
    if into.is_empty() {
        *into = other.clone();
        return;
    }
    let into = Arc::make_mut(into);
    for (block, phases) in other.iter() {
        match into.get_mut(block) {
            Some(mine) => mine.iter_mut().zip(phases).for_each(|(a, &b)| *a = (*a).max(b)),
            None => {
                into.insert(*block, phases.clone());
            }
        }
    }
}

/// What was published at addresses, in one launch.
#[derive(Debug, Default)]
pub(crate) struct Published {
    at: HashMap<u64, Knowledge>,
}

/// A warp's clock.
#[derive(Debug)]
pub(crate) struct Clock<'m> {
    pub stamps: &'m Stamps,
    launch: u32,
    block: u32,
    warp: u32,
    /// Stamps below are of earlier launches
    pub base: u32,
    /// Its number in this phase, and the phase it is of
    pub stamp: u32,
    stamped: Option<u32>,
    /// The warps of its own block
    own: Phases,
    others: Knowledge,
    /// What its last fence made ready to publish
    fenced: Option<Knowledge>,
    /// What its atomics and strong loads have seen since its last fence
    observed: Vec<(u64, Knowledge)>,
}

impl<'m> Clock<'m> {
    pub fn new(stamps: &'m Stamps, base: u32, launch: u32, block: u32, warp: u32, warps: usize) -> Self {
        Self {
            stamps,
            launch,
            block,
            warp,
            base,
            stamp: 0,
            stamped: None,
            own: vec![0; warps].into(),
            others: Knowledge::default(),
            fenced: None,
            observed: Vec::new(),
        }
    }

    /// Gets a number for the block's phase.
    #[inline]
    pub fn enter(&mut self, phase: u32) {
        if self.stamped != Some(phase) {
            self.stamped = Some(phase);
            let (launch, block, warp) = (self.launch, self.block, self.warp);
            self.stamp = self.stamps.give(Stamp { launch, block, warp, phase });
        }
    }

    /// Whether an access with this number is known to have happened before now. It is of this launch, or another that runs at the same time.
    pub fn knows(&self, number: u32) -> bool {
        let Some(stamp) = self.stamps.get(number) else { return true };
        if stamp.launch != self.launch || (stamp.block == self.block && stamp.warp == self.warp) {
            return true;
        }
        let phases = if stamp.block == self.block { Some(&self.own) } else { self.others.get(&stamp.block) };
        phases.is_some_and(|phases| stamp.phase < phases[stamp.warp as usize])
    }

    /// A fence: takes what was observed, and makes ready what to publish. Gives the phase after it.
    pub fn fence(&mut self, phase: u32) -> u32 {
        for (_, seen) in std::mem::take(&mut self.observed) {
            join(&mut self.others, &seen);
        }
        // What this warp did in this phase is part of it: should it do more, that is another phase.
        let next = if self.stamped == Some(phase) { phase + 1 } else { phase };
        self.own[self.warp as usize] = next;
        let mut ready = self.others.clone();
        Arc::make_mut(&mut ready).insert(self.block, self.own.clone());
        self.fenced = Some(ready);
        next
    }

    /// An atomic or strong store: what the last fence made ready can be taken at the address.
    pub fn publish(&self, address: u64, published: &mut Published) {
        if let Some(ready) = &self.fenced {
            join(published.at.entry(address).or_default(), ready);
        }
    }

    /// An atomic or strong load: a fence takes what was published there.
    pub fn observe(&mut self, address: u64, published: &Published) {
        let Some(there) = published.at.get(&address) else { return };
        match self.observed.iter_mut().find(|(at, _)| *at == address) {
            Some((_, seen)) => *seen = there.clone(),
            None => self.observed.push((address, there.clone())),
        }
    }

    /// An acquiring load has nothing to wait for.
    pub fn acquire(&mut self, address: u64, published: &Published) {
        if let Some(there) = published.at.get(&address) {
            join(&mut self.others, there);
        }
    }

    /// What a barrier brings together.
    pub fn gather(&self, own: &mut [u32], others: &mut Knowledge) {
        own.iter_mut().zip(&self.own).for_each(|(a, &b)| *a = (*a).max(b));
        join(others, &self.others);
    }

    /// What a barrier gives to each: all that its participants did before `phase`.
    pub fn receive(&mut self, own: &[u32], others: &Knowledge) {
        self.own.copy_from_slice(own);
        self.others = others.clone();
    }
}
