//! What an instruction is to the interpreter: something that a group of lanes executes, with what it can reach while it does.

use crate::count::Counters;
use crate::error::FaultKind;
use crate::lanes::{L32, L64, Lanes};
use crate::memory::View;
use crate::operand::{Dst, Place, Pred, Register, Src};
use crate::order::Published;
use crate::poison::{Choice, Flow, Pass, Taint};
use crate::shared::{MOST_TICKS, Shared};
use crate::warp::{Arrival, Warp};

/// A decoded instruction.
pub(crate) trait Execute: Send + Sync {
    /// Executes it for the active lanes, one at least.
    fn execute(&self, step: &mut Step) -> Done;

    /// Whether others may see what it does, or it waits for them, or it is the end.
    fn is_seen(&self) -> bool {
        false
    }

    /// Whether all that it does is to read.
    fn only_reads(&self) -> bool {
        false
    }

    /// The place that it compares and swaps, if it does.
    fn swaps(&self) -> Option<&Place> {
        None
    }

    /// Where it goes, if it is a branch.
    fn target(&self) -> Option<u32> {
        None
    }

    /// Whether all that it does is to give registers values that follow from the same lanes' registers.
    fn is_private(&self) -> bool {
        false
    }

    /// How poison passes it.
    fn pass(&self) -> Pass {
        Pass::Checked
    }

    /// Whether the interpreter knows what it does.
    fn is_known(&self) -> bool {
        true
    }
}

impl std::fmt::Debug for dyn Execute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_known() { "instruction" } else { "unknown instruction" })
    }
}

/// A fault in a warp: what, in which lane.
#[derive(Debug)]
pub(crate) struct LaneFault {
    pub kind: FaultKind,
    pub lane: usize,
    /// Of poison: the instruction that read it, and what it has reached
    pub read: Option<(u32, &'static str)>,
}

impl LaneFault {
    pub fn new(kind: FaultKind, lane: usize) -> Self {
        Self { kind, lane, read: None }
    }
}

/// What an access to memory comes to.
pub(crate) type Access<T> = Result<T, FaultKind>;

pub(crate) type Done = Result<Next, LaneFault>;

/// The fault of a lane.
pub(crate) fn at(lane: usize) -> impl Fn(FaultKind) -> LaneFault {
    move |kind| LaneFault::new(kind, lane)
}

/// How its group goes on after an instruction.
#[derive(Debug)]
pub(crate) enum Next {
    On,
    /// Others may have seen it
    Seen,
    /// The active lanes go on elsewhere
    Jump(u32),
    /// The active lanes end
    Exit,
    /// It waits for lanes that are not here
    Gather,
    /// It looked at memory that has not changed
    Sleep,
    /// Lanes name different masks: these go by themselves
    Split(u32),
    /// The active lanes are at a barrier
    Barrier(Arrival),
    /// They have arrived at a barrier, and do not wait there
    Arrive(Arrival),
}

/// What the blocks of a launch share, where they run in turn.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub published: Published,
    /// Rises when an atomic or a strong store changes memory
    pub version: u64,
}

/// What a block has beside its warps.
#[derive(Debug)]
pub(crate) struct Run<'g> {
    pub parameters: &'g [u8],
    /// Bytes of local memory a thread
    pub local: usize,
    pub shared: Shared,
    pub memory: View<'g>,
    /// Counts what orders accesses to shared memory
    pub tick: u32,
    /// Counts what orders accesses to global memory
    pub phase: u32,
    pub counters: Counters,
}

impl Run<'_> {
    /// Something orders accesses to shared memory; a warp, if given, knows it of itself.
    pub fn advance_tick(&mut self, warp: Option<&mut Warp>) {
        self.tick += 1;
        if self.tick == MOST_TICKS {
            self.shared.forget();
            self.tick = 1;
        }
        if let Some(warp) = warp {
            if self.tick == 1 {
                warp.known.fill(0);
            }
            warp.known[warp.index as usize] = self.tick;
        }
    }
}

/// An instruction's execution by a group of a warp's lanes.
#[derive(Debug)]
pub(crate) struct Step<'s, 'g> {
    pub run: &'s mut Run<'g>,
    pub warp: &'s mut Warp<'g>,
    pub world: &'s mut World,
    pub pc: u32,
    /// Those of the group whose guard holds
    pub active: u32,
    /// The group
    pub mask: u32,
}

impl Step<'_, '_> {
    pub fn first(&self) -> usize {
        self.active.trailing_zeros() as usize
    }

    /// A fault that is all lanes'.
    pub fn fault(&self, kind: FaultKind) -> LaneFault {
        LaneFault::new(kind, self.first())
    }

    /// The poison of a source's active lanes.
    pub fn taint(&self, src: Src) -> Taint {
        src.register().map_or(Taint::default(), |register| self.warp.poison.of(register).of(self.active))
    }

    /// The poison of a predicate's active lanes.
    pub fn taint_of(&self, p: Pred) -> Taint {
        self.warp.poison.of(Register::Predicate(p.register)).of(self.active)
    }

    pub fn spoil_predicate(&mut self, p: u32, taint: Taint) {
        self.warp.poison.put(Register::Predicate(p), self.active, taint);
    }

    /// What a destination's active lanes have been given is poisoned in some of them.
    pub fn spoil(&mut self, dst: Dst, taint: Taint) {
        if let Some(register) = dst.register() {
            self.warp.poison.put(register, self.active, taint);
        }
    }

    /// Lanes of a destination are poisoned, whatever the others are.
    pub fn spoil_more(&mut self, dst: Dst, taint: Taint) {
        if let Some(register) = dst.register() {
            self.warp.poison.put(register, taint.lanes, taint);
        }
    }

    /// What some lanes have read is missing: poison begins.
    pub fn missing(&mut self, lanes: u32, what: FaultKind) -> Taint {
        Taint { lanes, origin: self.warp.poison.begin(self.pc, what) }
    }

    /// The fault of poison that has reached something.
    pub fn reached(&self, taint: Taint, what: &'static str) -> LaneFault {
        let origin = self.warp.poison.origin(taint);
        LaneFault {
            kind: origin.what.clone(),
            lane: taint.lanes.trailing_zeros() as usize,
            read: Some((origin.pc, what)),
        }
    }

    /// Passes the poison of operands on to results; `choice` is what the instruction chooses, if it is a branch that does no more.
    #[cold]
    pub fn pass(
        &mut self,
        pass: Pass,
        flow: &Flow,
        guard: Option<Register>,
        choice: impl FnOnce() -> Option<Choice>,
    ) -> Result<(), LaneFault> {
        self.warp.poison.arrive(self.pc, self.mask);
        let guarded = self.warp.poison.union(&guard).of(self.mask);
        if guarded.lanes != 0 && pass != Pass::Lanes {
            match choice() {
                Some(choice) => self.warp.poison.choose(choice, guarded),
                None => return Err(self.reached(guarded, "a branch")),
            }
        }
        let poison = &self.warp.poison;
        let used = poison.union(&flow.uses).of(self.active);
        if used.lanes != 0 {
            return Err(self.reached(used, "an address, or a mask of lanes"));
        }
        let read = poison.union(&flow.reads).of(self.active);
        match pass {
            Pass::Own => {}
            Pass::Checked if read.lanes != 0 => return Err(self.reached(read, "what others see")),
            Pass::Checked => flow.writes.iter().for_each(|&r| self.warp.poison.put(r, self.active, Taint::default())),
            Pass::Lanes => {
                for &register in &flow.writes {
                    self.warp.poison.put(register, self.active, read);
                    // Whether it was written at all is not known.
                    self.warp.poison.put(register, guarded.lanes, guarded);
                }
            }
        }
        Ok(())
    }

    /// Whether all live lanes that `members` name are here; if not, the group waits for them. If so, they are in step.
    pub fn together(&mut self, members: &L32) -> Done {
        let (active, member) = (self.active, members[self.first()]);
        // Parts of a warp may do the same at the same place, each for itself.
        let same = Lanes(active).where_holds(|l| members[l] == member);
        if same != active {
            return Ok(Next::Split(same));
        }
        if member & active != active {
            let text = format!("lanes {active:#010x} execute it, the mask names {member:#010x}");
            return Err(self.fault(FaultKind::Barrier(text)));
        }
        if member & self.warp.live() & !active != 0 {
            if self.mask & member & !active != 0 {
                let text = format!("lanes {:#010x} of the mask do not execute it", member & !active);
                return Err(self.fault(FaultKind::Deadlock(text)));
            }
            return Ok(Next::Gather);
        }
        self.run.advance_tick(Some(self.warp));
        Ok(Next::On)
    }

    /// Whether the whole warp is here, as instructions on matrices want it; if not, the group waits for the rest.
    pub fn whole_warp(&mut self) -> Done {
        if self.active == u32::MAX {
            return Ok(Next::On);
        }
        if self.mask == self.active && self.warp.live() == u32::MAX {
            return Ok(Next::Gather);
        }
        let text = format!("all 32 lanes must execute it together, {:#010x} do", self.active);
        Err(self.fault(FaultKind::Barrier(text)))
    }
}

/// A vector is aligned as a whole, though its elements are accessed one by one.
#[inline]
pub(crate) fn check_aligned(active: u32, addresses: &L64, size: usize) -> Result<(), LaneFault> {
    // Sizes are powers of two, but for vectors of three, which there are none of.
    let low = size as u64 - 1;
    if active == u32::MAX && addresses.iter().fold(0, |any, address| any | address) & low == 0 {
        return Ok(());
    }
    match Lanes(active).find(|&lane| addresses[lane] & low != 0) {
        Some(lane) => Err(LaneFault::new(FaultKind::Misaligned { address: addresses[lane], size }, lane)),
        None => Ok(()),
    }
}
