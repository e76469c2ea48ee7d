//! Runs a block: warps of 32 lanes with divergence, barriers, shared memory, in a seeded order.
//!
//! A warp is a list of groups: a program counter and the lanes that are at it. The group with the lowest counter runs, so that branches come
//! together again by themselves; a group that waits (for a barrier, for the lanes its mask names, for memory to change) lets the others run.

use half::{bf16, f16};

use crate::count::{self, Counters, Lanes};
use crate::error::{Error, Fault, FaultKind};
use crate::lanes::{self, L32, L64, LANES};
use crate::memory::{Memory, View};
use crate::order::{Clock, Knowledge, Published, join};
use crate::program::{
    Atomic, Carry, Constant, Dst, Inst, Kernel, Kind, LaneMask, Logic, Order, Place, Pred, Reduced, Redux, Shuffle,
    Special, Src, Vote,
};
use crate::shared::{MOST_TICKS, Shared, Thread};
use crate::syntax::{Space, Type};
use crate::tensor;

/// Generic addresses from here on are shared memory's.
pub(crate) const SHARED_WINDOW: u64 = 0x1000_0000_0000;
/// Generic addresses from here on are local memory's.
pub(crate) const LOCAL_WINDOW: u64 = 0x2000_0000_0000;
const WINDOW: u64 = 0x1_0000_0000;

type Access<T> = std::result::Result<T, FaultKind>;

/// What a launch is.
#[derive(Debug, Clone)]
pub(crate) struct Grid<'g> {
    pub kernel: &'g Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: usize,
    pub parameters: &'g [u8],
    pub files: &'g [(u32, String)],
    pub seed: u64,
    pub multiprocessors: u32,
    /// Most instructions of a block's warps
    pub instructions: u64,
    /// Its number, and the first of its stamps
    pub launch: u32,
    pub base: u32,
    /// The barrier of a cooperative grid, or 0
    pub workspace: u64,
}

/// What the blocks of a launch share, where they run in turn.
#[derive(Debug, Default)]
pub(crate) struct World {
    published: Published,
    /// Rises when an atomic or a strong store changes memory
    pub version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    No,
    /// At a barrier of the block
    Barrier(u32),
    /// For other lanes of the warp
    Lanes,
    /// For memory to change: it read the same value twice
    Memory(u64),
}

#[derive(Debug, Clone, Copy)]
struct Group {
    pc: u32,
    mask: u32,
    wait: Wait,
}

/// A `cp.async` that nobody has waited for.
#[derive(Debug, Clone, Copy)]
struct AsyncCopy {
    lane: usize,
    to: u64,
    from: u64,
    /// Bytes written, and how many of them are read; the rest are zeros
    size: usize,
    read: usize,
    /// The lane's commits before it
    group: u32,
}

#[derive(Debug)]
struct Warp<'g> {
    index: u32,
    r32: Vec<L32>,
    r64: Vec<L64>,
    predicates: Vec<u32>,
    /// Local memory, a lane after the other, and which bytes were written
    local: Vec<u8>,
    local_written: Vec<bool>,
    /// By rising program counter
    groups: Vec<Group>,
    clock: Clock<'g>,
    /// For each warp of the block: the tick before which its accesses to shared memory are known to have happened
    known: Vec<u32>,
    copies: Vec<AsyncCopy>,
    commits: [u32; LANES],
    /// A read that is a race, unless a compare-and-swap of the address follows: instruction, lane, address, the race
    doubt: Option<(u32, usize, u64, FaultKind)>,
    /// The carry of extended-precision arithmetic, a bit a lane
    carry: u32,
    /// The last strong load: instruction, address, value
    last_look: Option<(u32, u64, u64)>,
}

impl Warp<'_> {
    #[inline]
    fn get32(&self, src: Src) -> L32 {
        match src {
            Src::R32(r) => self.r32[r as usize],
            Src::R64(r) => self.r64[r as usize].map(|v| v as u32),
            Src::Imm(value) => [value as u32; LANES],
            Src::Special(_) => [0; LANES],
        }
    }

    #[inline]
    fn get64(&self, src: Src) -> L64 {
        match src {
            Src::R64(r) => self.r64[r as usize],
            Src::R32(r) => self.r32[r as usize].map(u64::from),
            Src::Imm(value) => [value; LANES],
            Src::Special(_) => [0; LANES],
        }
    }

    #[inline]
    fn put32(&mut self, dst: Dst, active: u32, value: &L32) {
        match dst {
            Dst::R32(r) => {
                let register = &mut self.r32[r as usize];
                if active == u32::MAX {
                    *register = *value;
                } else {
                    for lane in 0..LANES {
                        register[lane] = if active >> lane & 1 == 1 { value[lane] } else { register[lane] };
                    }
                }
            }
            Dst::R64(_) => self.put64(dst, active, &value.map(u64::from)),
            Dst::None => {}
        }
    }

    #[inline]
    fn put64(&mut self, dst: Dst, active: u32, value: &L64) {
        match dst {
            Dst::R64(r) => {
                let register = &mut self.r64[r as usize];
                if active == u32::MAX {
                    *register = *value;
                } else {
                    for lane in 0..LANES {
                        register[lane] = if active >> lane & 1 == 1 { value[lane] } else { register[lane] };
                    }
                }
            }
            Dst::R32(_) => self.put32(dst, active, &value.map(|v| v as u32)),
            Dst::None => {}
        }
    }

    #[inline]
    fn put_predicate(&mut self, register: u32, active: u32, value: u32) {
        let p = &mut self.predicates[register as usize];
        *p = (*p & !active) | (value & active);
    }

    #[inline]
    fn predicate(&self, pred: Pred) -> u32 {
        let p = self.predicates[pred.register as usize];
        if pred.negated { !p } else { p }
    }

    /// The lanes that have not exited.
    fn live(&self) -> u32 {
        self.groups.iter().fold(0, |live, group| live | group.mask)
    }

    /// Puts lanes at an instruction; groups that meet become one, unless they wait for a barrier.
    fn settle(&mut self, mask: u32, pc: u32, wait: Wait) {
        if mask == 0 {
            return;
        }
        let barrier = matches!(wait, Wait::Barrier(_));
        if !barrier
            && let Some(met) = self.groups.iter_mut().find(|g| g.pc == pc && !matches!(g.wait, Wait::Barrier(_)))
        {
            met.mask |= mask;
            met.wait = Wait::No;
            return;
        }
        let here = self.groups.partition_point(|g| g.pc < pc);
        self.groups.insert(here, Group { pc, mask, wait });
    }

    fn addresses(&self, place: &Place) -> L64 {
        let offset = place.offset as u64;
        match place.base {
            None => [offset; LANES],
            Some(base) => self.get64(base).map(|base| base.wrapping_add(offset)),
        }
    }

    fn thread(&self, lane: usize, tick: u32) -> Thread<'_> {
        Thread { rank: self.index * LANES as u32 + lane as u32, tick, known: &self.known }
    }
}

/// What a block has beside its warps.
struct Run<'g> {
    grid: &'g Grid<'g>,
    index: [u32; 3],
    shared: Shared,
    memory: View<'g>,
    random: u64,
    /// Counts what orders accesses to shared memory
    tick: u32,
    /// Counts what orders accesses to global memory
    phase: u32,
    counters: Counters,
}

/// A block as it runs.
pub(crate) struct Block<'g> {
    warps: Vec<Warp<'g>>,
    run: Run<'g>,
    /// A bit a warp that may have something to run
    ready: u32,
    /// The version of memory that its waiting warps know
    version: u64,
    threads: u32,
    arrivals: Vec<Arrival>,
}

/// A warp that has arrived at a barrier where it does not wait, and what it knew.
struct Arrival {
    id: u32,
    lanes: u32,
    known: Vec<u32>,
    own: Vec<u32>,
    others: Knowledge,
}

/// What a turn of a block came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Ran,
    /// All its warps wait
    Idle,
    Done,
}

/// Why a warp's turn ended.
enum Outcome {
    Seen,
    Blocked,
    Barrier {
        id: u32,
        wanted: Option<u32>,
    },
    /// It has arrived at a barrier, and does not wait there
    Arrival {
        id: u32,
        wanted: Option<u32>,
        lanes: u32,
    },
}

/// A fault in a warp: what, at which instruction, in which lane.
struct LaneFault {
    kind: FaultKind,
    lane: usize,
}

/// What an instruction means for its group.
enum Next {
    On,
    /// Others may have seen it
    Seen,
    /// It waits for lanes that are not here
    Gather,
    /// It looked at memory that has not changed
    Sleep,
    /// Lanes name different masks: these go by themselves
    Split(u32),
}

fn at(lane: usize) -> impl Fn(FaultKind) -> LaneFault {
    move |kind| LaneFault { kind, lane }
}

impl<'g> Block<'g> {
    pub fn new(grid: &'g Grid<'g>, flat: u32, memory: &'g Memory) -> Self {
        let kernel = grid.kernel;
        let threads: u32 = grid.block.iter().product();
        let count = threads.div_ceil(LANES as u32);
        let [gx, gy, _] = grid.grid;
        let index = [flat % gx, flat / gx % gy, flat / gx / gy];
        let shared = kernel.shared + grid.dynamic_shared;
        let run = Run {
            grid,
            index,
            shared: Shared::new(shared, kernel.granule),
            memory: View::new(memory),
            random: (grid.seed ^ u64::from(flat).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1,
            tick: 1,
            phase: 0,
            counters: Counters::default(),
        };
        let warps = (0..count)
            .map(|w| {
                let lanes = (threads - w * LANES as u32).min(LANES as u32);
                let mask = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
                let mut r32 = vec![[0xdead_beef; LANES]; kernel.r32];
                let mut r64 = vec![[0xdead_beef_dead_beef; LANES]; kernel.r64];
                r32.extend(kernel.constants32.iter().map(|c| run.constant(w, *c).map(|v| v as u32)));
                r64.extend(kernel.constants64.iter().map(|c| run.constant(w, *c)));
                Warp {
                    index: w,
                    r32,
                    r64,
                    predicates: vec![0; kernel.predicates],
                    local: vec![0xff; kernel.local * LANES],
                    local_written: vec![false; kernel.local * LANES],
                    groups: vec![Group { pc: 0, mask, wait: Wait::No }],
                    clock: Clock::new(&memory.stamps, grid.base, grid.launch, flat, w, count as usize),
                    known: vec![0; count as usize],
                    copies: Vec::new(),
                    commits: [0; LANES],
                    doubt: None,
                    carry: 0,
                    last_look: None,
                }
            })
            .collect();
        let ready = if count == 32 { u32::MAX } else { (1 << count) - 1 };
        Self { warps, run, ready, version: 0, threads, arrivals: Vec::new() }
    }

    /// What it counted, and the allocations it touched.
    pub fn results(self) -> (Counters, Vec<u64>) {
        (self.run.counters, self.run.memory.touched)
    }

    /// Lets a warp, chosen by the seed, run until others may have seen what it did.
    pub fn turn(&mut self, world: &mut World) -> Result<Turn, Error> {
        if world.version != self.version {
            self.version = world.version;
            for (w, warp) in self.warps.iter_mut().enumerate() {
                for group in &mut warp.groups {
                    if matches!(group.wait, Wait::Memory(_)) {
                        group.wait = Wait::No;
                        self.ready |= 1 << w;
                    }
                }
            }
        }
        if self.ready == 0 {
            let done = self.warps.iter().all(|warp| warp.groups.is_empty());
            return Ok(if done { Turn::Done } else { Turn::Idle });
        }
        let nth = (self.run.next_random() >> 33) as u32 % self.ready.count_ones();
        let mut left = self.ready;
        (0..nth).for_each(|_| left &= left - 1);
        let w = left.trailing_zeros() as usize;
        let warp = &mut self.warps[w];
        let outcome = self.run.warp(warp, world).map_err(|(pc, fault)| self.run.fault(w, pc, fault))?;
        match outcome {
            Outcome::Seen => {}
            Outcome::Blocked => self.ready &= !(1 << w),
            Outcome::Barrier { id, wanted } => self.barrier(id, wanted),
            Outcome::Arrival { id, wanted, lanes } => {
                // What it did until now is what those who wait will know of.
                self.run.phase += 1;
                let warp = &mut self.warps[w];
                self.run.advance_tick(&mut [warp]);
                let (mut own, mut others) = (vec![0; warp.known.len()], Knowledge::default());
                warp.clock.gather(&mut own, &mut others);
                own[w] = self.run.phase;
                self.arrivals.push(Arrival { id, lanes, known: warp.known.clone(), own, others });
                self.barrier(id, wanted);
            }
        }
        Ok(Turn::Ran)
    }

    /// Lets everyone go whom barrier `id` held, if all are there.
    fn barrier(&mut self, id: u32, wanted: Option<u32>) {
        let at_it = |group: &&Group| group.wait == Wait::Barrier(id);
        let waiting: u32 = self.warps.iter().flat_map(|w| &w.groups).filter(at_it).map(|g| g.mask.count_ones()).sum();
        let arrived: u32 = self.arrivals.iter().filter(|a| a.id == id).map(|a| a.lanes).sum();
        if waiting == 0 || waiting + arrived < wanted.unwrap_or(self.threads) {
            return;
        }
        self.vote(id);
        let run = &mut self.run;
        run.counters.barriers += 1;
        run.phase += 1;
        run.advance_tick(&mut []);
        let members: Vec<usize> =
            (0..self.warps.len()).filter(|&w| self.warps[w].groups.iter().any(|g| at_it(&g))).collect();
        if run.tick == 1 {
            self.warps.iter_mut().for_each(|warp| warp.known.fill(0));
        }
        let mut known = vec![0; self.warps.len()];
        let (mut own, mut others) = (vec![0; self.warps.len()], Knowledge::default());
        for &w in &members {
            known.iter_mut().zip(&self.warps[w].known).for_each(|(a, &b)| *a = (*a).max(b));
            self.warps[w].clock.gather(&mut own, &mut others);
        }
        for arrival in self.arrivals.extract_if(.., |arrival| arrival.id == id) {
            known.iter_mut().zip(&arrival.known).for_each(|(a, &b)| *a = (*a).max(b));
            own.iter_mut().zip(&arrival.own).for_each(|(a, &b)| *a = (*a).max(b));
            join(&mut others, &arrival.others);
        }
        for &w in &members {
            (known[w], own[w]) = (run.tick, run.phase);
        }
        for w in members {
            let warp = &mut self.warps[w];
            warp.known.copy_from_slice(&known);
            warp.clock.receive(&own, &others);
            while let Some(i) = warp.groups.iter().position(|g| at_it(&g)) {
                let group = warp.groups.remove(i);
                warp.settle(group.mask, group.pc + 1, Wait::No);
            }
            self.ready |= 1 << w;
        }
    }

    /// What a barrier's threads voted.
    fn vote(&mut self, id: u32) {
        let code = &self.run.grid.kernel.code;
        let ballot = |group: &Group| match code.get(group.pc as usize).map(|inst| &inst.kind) {
            Some(Kind::Barrier { vote: Some(vote), .. }) if group.wait == Wait::Barrier(id) => Some(*vote),
            _ => None,
        };
        let (mut yes, mut all) = (0, 0);
        for warp in &self.warps {
            for (group, vote) in warp.groups.iter().filter_map(|g| Some((g, ballot(g)?))) {
                yes += (warp.predicate(vote.by) & group.mask).count_ones();
                all += group.mask.count_ones();
            }
        }
        for warp in &mut self.warps {
            let votes: Vec<_> = warp.groups.iter().filter_map(|g| Some((g.mask, ballot(g)?))).collect();
            for (mask, vote) in votes {
                let truth = |holds: bool| if holds { u32::MAX } else { 0 };
                match vote.vote {
                    Reduced::Count => warp.put32(vote.dst, mask, &[yes; LANES]),
                    Reduced::All(p) => warp.put_predicate(p, mask, truth(yes == all)),
                    Reduced::Any(p) => warp.put_predicate(p, mask, truth(yes > 0)),
                }
            }
        }
    }

    /// What holds everyone up.
    pub fn stuck(&self) -> Error {
        let waiting = |wanted: fn(&Wait) -> bool| -> Vec<(usize, Group)> {
            let all = self.warps.iter().enumerate();
            all.flat_map(|(w, warp)| warp.groups.iter().map(move |g| (w, *g)))
                .filter(|(_, g)| wanted(&g.wait))
                .collect()
        };
        let (barrier, lanes) = (waiting(|w| matches!(w, Wait::Barrier(_))), waiting(|w| *w == Wait::Lanes));
        let memory = waiting(|w| matches!(w, Wait::Memory(_)));
        let Some(&(w, group)) = lanes.first().or(memory.first()).or(barrier.first()) else {
            return Error::Launch("nothing waits and nothing runs".into());
        };
        let kind = if !lanes.is_empty() {
            FaultKind::Deadlock(format!("lanes {:#010x} of a warp wait for others of their mask", group.mask))
        } else if !memory.is_empty() {
            FaultKind::Deadlock("every thread that is left waits, this one for memory that nobody will change".into())
        } else {
            let there: u32 = barrier.iter().map(|(_, g)| g.mask.count_ones()).sum();
            FaultKind::Barrier(format!(
                "{there} of the block's {} threads have reached it, and no other can",
                self.threads
            ))
        };
        self.run.fault(w, group.pc, LaneFault { kind, lane: group.mask.trailing_zeros() as usize })
    }
}

impl<'g> Run<'g> {
    /// xorshift64*
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn place_of(&self, warp: u32, lane: usize) -> [u32; 3] {
        let rank = warp * LANES as u32 + lane as u32;
        let [x, y, _] = self.grid.block;
        [rank % x, rank / x % y, rank / (x * y)]
    }

    fn fault(&self, w: usize, pc: u32, fault: LaneFault) -> Error {
        let kernel = self.grid.kernel;
        let origin = kernel.code.get(pc as usize).map(|inst| &kernel.origins[inst.origin as usize]);
        let source = origin.and_then(|origin| {
            let (file, line) = origin.location?;
            let name = self.grid.files.iter().find(|(index, _)| *index == file)?;
            Some((name.1.clone(), line))
        });
        Error::Fault(Box::new(Fault {
            kernel: kernel.name.clone(),
            block: self.index,
            thread: self.place_of(w as u32, fault.lane),
            instruction: origin.map_or_else(|| "the end of the code".into(), |origin| origin.text.clone()),
            ptx_line: origin.map_or(0, |origin| origin.line),
            source,
            kind: fault.kind,
        }))
    }

    /// The value that a constant register has in a warp.
    fn constant(&self, warp: u32, constant: Constant) -> L64 {
        let lane_mask = |kind: LaneMask, lane: u32| {
            let eq = 1u32 << lane;
            match kind {
                LaneMask::Eq => eq,
                LaneMask::Lt => eq - 1,
                LaneMask::Le => eq | (eq - 1),
                LaneMask::Gt => !(eq | (eq - 1)),
                LaneMask::Ge => !(eq - 1),
            }
        };
        let special = match constant {
            Constant::Value(value) => return [value; LANES],
            Constant::Special(special) => special,
        };
        let grid = self.grid;
        std::array::from_fn(|lane| {
            u64::from(match special {
                Special::Tid(axis) => self.place_of(warp, lane)[axis],
                Special::Ntid(axis) => grid.block[axis],
                Special::Ctaid(axis) => self.index[axis],
                Special::Nctaid(axis) => grid.grid[axis],
                Special::LaneId => lane as u32,
                Special::WarpId => warp,
                Special::NumWarps => grid.block.iter().product::<u32>().div_ceil(LANES as u32),
                Special::LaneMask(kind) => lane_mask(kind, lane as u32),
                Special::SmId => self.index[0] % grid.multiprocessors,
                Special::NumSms => grid.multiprocessors,
                Special::GridId => 1,
                // Clocks stand still.
                Special::Clock => 0,
                Special::DynamicSharedSize => grid.dynamic_shared as u32,
                Special::TotalSharedSize => self.shared.len() as u32,
                // Where a cooperative grid has its barrier: the high and the low half of its address.
                Special::EnvReg(1) => (grid.workspace >> 32) as u32,
                Special::EnvReg(2) => grid.workspace as u32,
                Special::EnvReg(_) => 0,
            })
        })
    }

    /// Something orders accesses to shared memory; the warps given know it of themselves.
    fn advance_tick(&mut self, warps: &mut [&mut Warp]) {
        self.tick += 1;
        if self.tick == MOST_TICKS {
            self.shared.forget();
            self.tick = 1;
        }
        for warp in warps {
            if self.tick == 1 {
                warp.known.fill(0);
            }
            let index = warp.index as usize;
            warp.known[index] = self.tick;
        }
    }

    /// Runs a warp until it has touched memory that others see, or waits, or ends.
    fn warp(&mut self, warp: &mut Warp<'g>, world: &mut World) -> Result<Outcome, (u32, LaneFault)> {
        let code = &self.grid.kernel.code;
        loop {
            let runnable = |g: &Group| g.wait == Wait::No;
            let Some(mut at) = warp.groups.iter().position(runnable) else {
                return Ok(Outcome::Blocked);
            };
            let alone = warp.groups.len() == 1;
            // Now and then another than the lowest goes first: lanes need not stay together.
            let mut stray = false;
            if !alone && self.next_random() >> 60 == 0 {
                let choices: Vec<usize> = (0..warp.groups.len()).filter(|&i| runnable(&warp.groups[i])).collect();
                at = choices[(self.next_random() >> 33) as usize % choices.len()];
                stray = true;
            }
            let Group { mut pc, mut mask, .. } = warp.groups[at];
            loop {
                let Some(inst) = code.get(pc as usize) else {
                    let kind = FaultKind::Deadlock("the kernel runs past its end".into());
                    return Err((pc, LaneFault { kind, lane: mask.trailing_zeros() as usize }));
                };
                let active = match inst.guard {
                    None => mask,
                    Some(pred) => mask & warp.predicate(pred),
                };
                if warp.doubt.is_some() && inst.kind.is_seen() {
                    resolve_doubt(warp, inst, active)?;
                }
                self.counters.warp_instructions += 1;
                self.counters.thread_instructions += u64::from(active.count_ones());
                match &inst.kind {
                    Kind::Branch { target } => {
                        if self.counters.warp_instructions > self.grid.instructions {
                            let kind = FaultKind::Deadlock(format!(
                                "still running after {} instructions of the block's warps",
                                self.grid.instructions
                            ));
                            return Err((pc, LaneFault { kind, lane: mask.trailing_zeros() as usize }));
                        }
                        if active == mask {
                            pc = *target;
                        } else if active == 0 {
                            pc += 1;
                        } else {
                            warp.groups.remove(at);
                            warp.settle(mask & !active, pc + 1, Wait::No);
                            warp.settle(active, *target, Wait::No);
                            break;
                        }
                    }
                    Kind::Exit => {
                        mask &= !active;
                        warp.groups[at].mask = mask;
                        // Those who waited for the lanes that are gone look again.
                        for group in &mut warp.groups {
                            if group.wait == Wait::Lanes {
                                group.wait = Wait::No;
                            }
                        }
                        if mask == 0 {
                            warp.groups.remove(at);
                            break;
                        }
                        pc += 1;
                    }
                    Kind::Barrier { .. } if active == 0 => pc += 1,
                    Kind::Barrier { id, threads, arrive, .. } => {
                        let first = active.trailing_zeros() as usize;
                        let id = warp.get32(*id)[first];
                        let wanted = threads.map(|threads| warp.get32(threads)[first]);
                        if *arrive {
                            warp.groups.remove(at);
                            warp.settle(mask, pc + 1, Wait::No);
                            return Ok(Outcome::Arrival { id, wanted, lanes: active.count_ones() });
                        }
                        warp.groups.remove(at);
                        // Lanes whose guard is off go on.
                        warp.settle(mask & !active, pc + 1, Wait::No);
                        warp.settle(active, pc, Wait::Barrier(id));
                        return Ok(Outcome::Barrier { id, wanted });
                    }
                    _ => match self.step(warp, inst, pc, active, mask, world).map_err(|fault| (pc, fault))? {
                        Next::On => pc += 1,
                        Next::Seen => {
                            pc += 1;
                            if self.next_random() >> 63 == 0 {
                                warp.groups.remove(at);
                                warp.settle(mask, pc, Wait::No);
                                return Ok(Outcome::Seen);
                            }
                        }
                        Next::Gather => {
                            warp.groups[at].pc = pc;
                            warp.groups[at].wait = Wait::Lanes;
                            break;
                        }
                        Next::Split(lanes) => {
                            let rest = Group { pc, mask: mask & !lanes, wait: Wait::No };
                            warp.groups[at] = Group { pc, mask: lanes, wait: Wait::No };
                            warp.groups.insert(at + 1, rest);
                            break;
                        }
                        Next::Sleep => {
                            warp.groups.remove(at);
                            warp.settle(mask, pc + 1, Wait::Memory(world.version));
                            return Ok(Outcome::Seen);
                        }
                    },
                }
                if alone {
                    continue;
                }
                let others = || warp.groups.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, g)| g);
                let met = others().any(|g| g.pc == pc && !matches!(g.wait, Wait::Barrier(_)));
                if met || (!stray && others().any(|g| g.pc < pc && runnable(g))) {
                    warp.groups.remove(at);
                    warp.settle(mask, pc, Wait::No);
                    break;
                }
            }
        }
    }

    /// Executes an instruction for `active` lanes of a group.
    #[inline]
    fn step(
        &mut self,
        warp: &mut Warp<'g>,
        inst: &Inst,
        pc: u32,
        active: u32,
        mask: u32,
        world: &mut World,
    ) -> Result<Next, LaneFault> {
        match &inst.kind {
            Kind::Op32 { op, dst, src, finish: None } => {
                let value = if let [Src::R32(a), Src::R32(b), Src::R32(c)] = *src {
                    op(&warp.r32[a as usize], &warp.r32[b as usize], &warp.r32[c as usize])
                } else {
                    op(&warp.get32(src[0]), &warp.get32(src[1]), &warp.get32(src[2]))
                };
                warp.put32(*dst, active, &value);
                Ok(Next::On)
            }
            Kind::Op64 { op, dst, src } => {
                let value = if let [Src::R64(a), Src::R64(b), Src::R64(c)] = *src {
                    op(&warp.r64[a as usize], &warp.r64[b as usize], &warp.r64[c as usize])
                } else {
                    op(&warp.get64(src[0]), &warp.get64(src[1]), &warp.get64(src[2]))
                };
                warp.put64(*dst, active, &value);
                Ok(Next::On)
            }
            Kind::ConvertLanes { op, dst, src } => {
                let value = op(&warp.get64(*src));
                warp.put64(*dst, active, &value);
                Ok(Next::On)
            }
            // What nobody does has no effect, on others or on what they know.
            _ if active == 0 => Ok(Next::On),
            Kind::Compare { op, flush, p, q, src, with } => {
                let holds = compare(warp, *op, *flush, *src);
                let combine = |value: u32| match with {
                    None => value,
                    Some((Logic::And, by)) => value & warp.predicate(*by),
                    Some((Logic::Or, by)) => value | warp.predicate(*by),
                    Some((Logic::Xor, by)) => value ^ warp.predicate(*by),
                };
                let (yes, no) = (combine(holds), combine(!holds));
                if let Some(p) = p {
                    warp.put_predicate(*p, active, yes);
                }
                if let Some(q) = q {
                    warp.put_predicate(*q, active, no);
                }
                Ok(Next::On)
            }
            Kind::Load { place, ty, dst, order } => {
                let sleep = self.load(warp, pc, active, place, *ty, dst, *order, world)?;
                let own = matches!(place.space, Some(Space::Param | Space::Local | Space::Const));
                Ok(if sleep {
                    Next::Sleep
                } else if own {
                    Next::On
                } else {
                    Next::Seen
                })
            }
            Kind::Store { place, ty, src, order } => {
                self.store(warp, active, place, *ty, src, *order, world)?;
                Ok(if matches!(place.space, Some(Space::Param | Space::Local)) { Next::On } else { Next::Seen })
            }
            Kind::Atomic { op, place, ty, dst, src, order } => {
                let sleep = self.atomic(warp, pc, active, (*op, *ty, *order), place, *dst, *src, world)?;
                Ok(if sleep { Next::Sleep } else { Next::Seen })
            }
            Kind::WarpBarrier { mask: member } => self.together(warp, active, &warp.get32(*member), mask),
            _ => self.rare(warp, inst, active, mask),
        }
    }

    /// Whether all live lanes that `member` names are here; if not, the group waits for them. If so, they are in step.
    fn together(&mut self, warp: &mut Warp<'g>, active: u32, members: &L32, mask: u32) -> Result<Next, LaneFault> {
        let lane = active.trailing_zeros() as usize;
        let member = members[lane];
        // Parts of a warp may do the same at the same place, each for itself.
        let same = Lanes(active).filter(|&l| members[l] == member).fold(0, |m, l| m | 1u32 << l);
        if same != active {
            return Ok(Next::Split(same));
        }
        if member & active != active {
            let kind = FaultKind::Barrier(format!("lanes {active:#010x} execute it, the mask names {member:#010x}"));
            return Err(LaneFault { kind, lane });
        }
        if member & warp.live() & !active != 0 {
            if mask & member & !active != 0 {
                let kind =
                    FaultKind::Deadlock(format!("lanes {:#010x} of the mask do not execute it", member & !active));
                return Err(LaneFault { kind, lane });
            }
            return Ok(Next::Gather);
        }
        self.advance_tick(&mut [warp]);
        Ok(Next::On)
    }

    /// What needs no haste.
    fn rare(&mut self, warp: &mut Warp<'g>, inst: &Inst, active: u32, mask: u32) -> Result<Next, LaneFault> {
        let first = active.trailing_zeros() as usize % LANES;
        macro_rules! together {
            ($member:expr) => {
                match self.together(warp, active, &warp.get32(*$member), mask)? {
                    Next::On => {}
                    other => return Ok(other),
                }
                self.counters.exchanges += 1;
            };
        }
        match &inst.kind {
            Kind::Op32 { op, dst, src, finish: Some(finish) } => {
                let [a, b, c] = src.map(|src| warp.get32(src).map(|bits| finish.operand(bits)));
                let value = op(&a, &b, &c).map(|bits| finish.result(bits));
                warp.put32(*dst, active, &value);
            }
            Kind::Convert { modifiers, to, from, dst, src } => {
                let modifiers: Vec<&str> = modifiers.iter().map(String::as_str).collect();
                let from_value = warp.get64(*src);
                let mut value = [0; LANES];
                for lane in Lanes(active) {
                    let converted = lanes::convert(&modifiers, *to, *from, from_value[lane]);
                    value[lane] = converted.ok_or(LaneFault { kind: FaultKind::Unsupported, lane })?;
                }
                warp.put64(*dst, active, &value);
            }
            Kind::Carry { op, bits, signed, carry_in, carry_out, dst, src } => {
                let [a, b, c] = src.map(|src| warp.get64(src));
                let low = u128::from(u64::MAX >> (64 - bits));
                let (mut value, mut carry) = ([0; LANES], 0);
                for lane in Lanes(active) {
                    let one = u128::from(*carry_in && warp.carry >> lane & 1 == 1);
                    let [a, b, c] = [a, b, c].map(|v| u128::from(v[lane]) & low);
                    let wide =
                        |v: u128| if *signed { ((v << (128 - bits)) as i128) >> (128 - bits) } else { v as i128 };
                    let sum = match op {
                        Carry::Add => a + b + one,
                        // A borrow shows in the bit above.
                        Carry::Sub => a.wrapping_sub(b).wrapping_sub(one),
                        Carry::MadLow => (a.wrapping_mul(b) & low) + c + one,
                        Carry::MadHigh => ((wide(a).wrapping_mul(wide(b)) >> bits) as u128 & low) + c + one,
                    };
                    value[lane] = (sum & low) as u64;
                    carry |= ((sum >> bits & 1) as u32) << lane;
                }
                warp.put64(*dst, active, &value);
                if *carry_out {
                    warp.carry = warp.carry & !active | carry;
                }
            }
            Kind::Bfi { width, dst, src } => {
                let [a, b, start, count] = src.map(|src| warp.get64(src));
                let value = std::array::from_fn(|l| lanes::bfi(a[l], b[l], start[l], count[l], *width));
                warp.put64(*dst, active, &value);
            }
            Kind::Lop3 { dst, src, table } => {
                let [a, b, c] = src.map(|src| warp.get32(src));
                let value = std::array::from_fn(|l| {
                    (0..8).filter(|i| table >> i & 1 == 1).fold(0, |value, i| {
                        let pick = |v: u32, bit: u32| if bit == 1 { v } else { !v };
                        value | (pick(a[l], i >> 2 & 1) & pick(b[l], i >> 1 & 1) & pick(c[l], i & 1))
                    })
                });
                warp.put32(*dst, active, &value);
            }
            Kind::Set { op, flush, yes, paired, dst, src } => {
                let value = if *paired {
                    let half = |shift: u32| {
                        let [a, b] = src.map(|src| warp.get64(src).map(|v| v >> shift & 0xffff));
                        op(&a, &b)
                    };
                    let (low, high) = (half(0), half(16));
                    let of = |holds: u32, lane: usize| if holds >> lane & 1 == 1 { *yes } else { 0 };
                    std::array::from_fn(|lane| of(low, lane) | of(high, lane) << 16)
                } else {
                    let holds = compare(warp, *op, *flush, *src);
                    std::array::from_fn(|lane| if holds >> lane & 1 == 1 { *yes } else { 0 })
                };
                warp.put32(*dst, active, &value);
            }
            Kind::Select { wide, dst, src, by } => {
                let by = warp.predicate(*by);
                if *wide {
                    let [a, b] = src.map(|src| warp.get64(src));
                    let value = std::array::from_fn(|l| if by >> l & 1 == 1 { a[l] } else { b[l] });
                    warp.put64(*dst, active, &value);
                } else {
                    let [a, b] = src.map(|src| warp.get32(src));
                    let value = std::array::from_fn(|l| if by >> l & 1 == 1 { a[l] } else { b[l] });
                    warp.put32(*dst, active, &value);
                }
            }
            Kind::Logic { op, dst, src, invert, value } => {
                let constant = if *value { u32::MAX } else { 0 };
                let a = src[0].map_or(constant, |p| warp.predicate(p));
                let b = src[1].map_or(0, |p| warp.predicate(p));
                let value = match op {
                    Some(Logic::And) => a & b,
                    Some(Logic::Or) => a | b,
                    Some(Logic::Xor) => a ^ b,
                    None if *invert => !a,
                    None => a,
                };
                warp.put_predicate(*dst, active, value);
            }
            Kind::Pack { dst, parts, bits } => {
                let mut value = [0u64; LANES];
                let mask = if *bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                for (i, part) in parts.iter().enumerate() {
                    let part = warp.get64(*part);
                    for lane in 0..LANES {
                        value[lane] |= (part[lane] & mask) << (*bits as usize * i);
                    }
                }
                warp.put64(*dst, active, &value);
            }
            Kind::Unpack { dst, src, bits } => {
                let value = warp.get64(*src);
                let mask = if *bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                for (i, dst) in dst.iter().enumerate() {
                    warp.put64(*dst, active, &value.map(|v| v >> (*bits as usize * i) & mask));
                }
            }
            Kind::ToGeneric { space, dst, src, back } => {
                let base = match space {
                    Space::Shared => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    _ => 0,
                };
                let value = warp.get64(*src).map(|v| if *back { v.wrapping_sub(base) } else { v.wrapping_add(base) });
                warp.put64(*dst, active, &value);
            }
            Kind::IsSpace { space, dst, src } => {
                let address = warp.get64(*src);
                let holds = (0..LANES).filter(|&l| resolve(None, address[l]).0 == *space).fold(0, |m, l| m | 1u32 << l);
                warp.put_predicate(*dst, active, holds);
            }
            Kind::Shuffle { mode, dst, valid, src, mask: member } => {
                together!(member);
                let [a, b, c] = src.map(|src| warp.get32(src));
                let mut value = a;
                let mut in_range = 0;
                for lane in 0..LANES {
                    // The ISA's definition: the segment from the mask's bits, the clamp from its low bits.
                    let (shift, clamp, segment) = (b[lane] & 31, c[lane] & 31, c[lane] >> 8 & 31);
                    let index = lane as u32;
                    let most = (index & segment) | (clamp & !segment);
                    let least = index & segment;
                    let (from, ok) = match mode {
                        Shuffle::Up => (index.wrapping_sub(shift), index as i32 - shift as i32 >= most as i32),
                        Shuffle::Down => (index + shift, index + shift <= most),
                        Shuffle::Butterfly => (index ^ shift, index ^ shift <= most),
                        Shuffle::Index => (least | (shift & !segment), (least | (shift & !segment)) <= most),
                    };
                    // What a lane that takes no part would give is not defined.
                    let there = active >> (from % LANES as u32) & 1 == 1;
                    value[lane] = match (ok, there) {
                        (true, true) => a[from as usize % LANES],
                        (true, false) => 0xdead_beef,
                        (false, _) => a[lane],
                    };
                    in_range |= u32::from(ok) << lane;
                }
                warp.put32(*dst, active, &value);
                if let Some(p) = valid {
                    warp.put_predicate(*p, active, in_range);
                }
            }
            Kind::Vote { mode, p, dst, by, mask: member } => {
                together!(member);
                let yes = warp.predicate(*by) & active;
                let holds = match mode {
                    Vote::All => yes == active,
                    Vote::Any => yes != 0,
                    Vote::Uniform => yes == active || yes == 0,
                    Vote::Ballot => true,
                };
                match p {
                    Some(p) => warp.put_predicate(*p, active, if holds { u32::MAX } else { 0 }),
                    None => warp.put32(*dst, active, &[yes; LANES]),
                }
            }
            Kind::Match { all, dst, p, src, mask: member } => {
                together!(member);
                let a = warp.get64(*src);
                let same = |lane: usize| Lanes(active).filter(|&l| a[l] == a[lane]).fold(0, |m, l| m | 1u32 << l);
                let agree = same(first) == active;
                let value = std::array::from_fn(|lane| match all {
                    false => same(lane),
                    true if agree => active,
                    true => 0,
                });
                warp.put32(*dst, active, &value);
                if let Some(p) = p {
                    warp.put_predicate(*p, active, if agree { u32::MAX } else { 0 });
                }
            }
            Kind::Redux { op, dst, src, mask: member } => {
                together!(member);
                let a = warp.get32(*src);
                let all = Lanes(active).map(|lane| a[lane]);
                let value = all.reduce(|x, y| match op {
                    Redux::Add => x.wrapping_add(y),
                    Redux::And => x & y,
                    Redux::Or => x | y,
                    Redux::Xor => x ^ y,
                    Redux::MinUnsigned => x.min(y),
                    Redux::MaxUnsigned => x.max(y),
                    Redux::MinSigned => (x as i32).min(y as i32) as u32,
                    Redux::MaxSigned => (x as i32).max(y as i32) as u32,
                });
                warp.put32(*dst, active, &[value.unwrap_or(0); LANES]);
            }
            Kind::ActiveMask { dst } => warp.put32(*dst, active, &[active; LANES]),
            Kind::Mma { mma, dst, a, b, c } => {
                self.whole_warp(active)?;
                let regs = |src: &[Src]| src.iter().map(|&src| warp.get32(src)).collect::<Vec<_>>();
                let d = mma.run(&regs(a), &regs(b), &regs(c));
                for (dst, value) in dst.iter().zip(&d) {
                    warp.put32(*dst, active, value);
                }
                self.counters.mma += 1;
                self.counters.mma_flop += 2 * 16 * 8 * mma.k as u64;
            }
            Kind::MmaF64 { dst, a, b, c } => {
                self.whole_warp(active)?;
                let c = c.map(|src| warp.get64(src));
                let d = tensor::mma_f64(&warp.get64(*a), &warp.get64(*b), [&c[0], &c[1]]);
                for (dst, value) in dst.iter().zip(&d) {
                    warp.put64(*dst, active, value);
                }
                self.counters.mma += 1;
                self.counters.mma_flop += 2 * 8 * 8 * 4;
            }
            Kind::LoadMatrix { dst, place, transposed } => {
                self.whole_warp(active)?;
                self.load_matrix(warp, dst, place, *transposed)?;
                return Ok(Next::Seen);
            }
            Kind::AsyncCopy { to, from, size, read } => {
                self.async_copy(warp, active, to, from, *size, *read)?;
                return Ok(Next::Seen);
            }
            Kind::AsyncCommit => Lanes(active).for_each(|lane| warp.commits[lane] += 1),
            Kind::AsyncWait { groups } => {
                self.async_wait(warp, active, *groups)?;
                return Ok(Next::Seen);
            }
            Kind::Fence { grid } => {
                if *grid {
                    self.phase = warp.clock.fence(self.phase);
                }
                return Ok(Next::Seen);
            }
            Kind::Nothing => {}
            Kind::Trap => return Err(LaneFault { kind: FaultKind::Trap, lane: first }),
            _ => return Err(LaneFault { kind: FaultKind::Unsupported, lane: first }),
        }
        Ok(Next::On)
    }

    /// Instructions on matrices are the whole warp's.
    fn whole_warp(&self, active: u32) -> Result<(), LaneFault> {
        if active == u32::MAX {
            return Ok(());
        }
        let kind = FaultKind::Barrier(format!("all 32 lanes must execute it together, {active:#010x} do"));
        Err(LaneFault { kind, lane: active.trailing_zeros() as usize })
    }

    #[allow(clippy::too_many_arguments)]
    fn load(
        &mut self,
        warp: &mut Warp<'g>,
        pc: u32,
        active: u32,
        place: &Place,
        ty: Type,
        dst: &[Dst],
        order: Order,
        world: &mut World,
    ) -> Result<bool, LaneFault> {
        let addresses = warp.addresses(place);
        let size = ty.size();
        check_aligned(active, &addresses, size * dst.len())?;
        let global = self.count(active, place.space, &addresses, size * dst.len(), false);
        if global {
            warp.clock.enter(self.phase);
        }
        let mut last = 0;
        for (i, &dst) in dst.iter().enumerate() {
            let mut value = [0u64; LANES];
            if place.space == Some(Space::Param) {
                for lane in Lanes(active) {
                    let address = addresses[lane].wrapping_add((i * size) as u64);
                    let at = usize::try_from(address).ok();
                    let found = at.and_then(|at| self.grid.parameters.get(at..at.checked_add(size)?));
                    let Some(bytes) = found else {
                        let kind = FaultKind::OutOfBounds { space: "parameter", address, size, near: None };
                        return Err(LaneFault { kind, lane });
                    };
                    value[lane] = bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
                }
            } else if order == Order::Weak && place.space == Some(Space::Global) {
                match self.memory.load_lanes(Lanes(active), &addresses, (i * size) as u64, size, &warp.clock) {
                    Ok(loaded) => value = loaded,
                    Err((_, FaultKind::GlobalRace { atomic: true, .. })) => {
                        self.load_doubtful(
                            warp,
                            pc,
                            active,
                            place.space,
                            &addresses,
                            (i * size) as u64,
                            size,
                            &mut value,
                        )?;
                    }
                    Err((lane, kind)) => return Err(LaneFault { kind, lane }),
                }
            } else if order == Order::Weak && place.space != Some(Space::Local) {
                self.load_doubtful(warp, pc, active, place.space, &addresses, (i * size) as u64, size, &mut value)?;
            } else {
                for lane in Lanes(active) {
                    let address = addresses[lane].wrapping_add((i * size) as u64);
                    value[lane] = self.read(warp, lane, place.space, address, size, order).map_err(at(lane))?;
                }
            }
            if let Type::Signed(bytes @ (1 | 2 | 4)) = ty {
                let shift = 64 - 8 * u32::from(bytes);
                value = value.map(|raw| ((raw << shift) as i64 >> shift) as u64);
            }
            warp.put64(dst, active, &value);
            last = value[active.trailing_zeros() as usize];
        }
        if order == Order::Weak || !global {
            return Ok(false);
        }
        for lane in Lanes(active) {
            let (_, address) = resolve(place.space, addresses[lane]);
            if order == Order::Acquire {
                warp.clock.acquire(address, &world.published);
            } else {
                warp.clock.observe(address, &world.published);
            }
        }
        Ok(looked(warp, pc, addresses[active.trailing_zeros() as usize], last))
    }

    /// Reads what may have been changed by atomics. That is a race, unless a compare-and-swap of the same place follows and makes sure of it:
    /// nvcc's own loops begin so.
    #[allow(clippy::too_many_arguments)]
    fn load_doubtful(
        &mut self,
        warp: &mut Warp<'g>,
        pc: u32,
        active: u32,
        space: Option<Space>,
        addresses: &L64,
        offset: u64,
        size: usize,
        value: &mut L64,
    ) -> Result<(), LaneFault> {
        for lane in Lanes(active) {
            let address = addresses[lane].wrapping_add(offset);
            value[lane] = match self.read(warp, lane, space, address, size, Order::Weak) {
                Err(
                    kind @ (FaultKind::GlobalRace { atomic: true, .. } | FaultKind::SharedRace { atomic: true, .. }),
                ) => {
                    warp.doubt.get_or_insert((pc, lane, address, kind));
                    self.read(warp, lane, space, address, size, Order::Strong).map_err(at(lane))?
                }
                other => other.map_err(at(lane))?,
            };
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn store(
        &mut self,
        warp: &mut Warp<'g>,
        active: u32,
        place: &Place,
        ty: Type,
        src: &[Src],
        order: Order,
        world: &mut World,
    ) -> Result<(), LaneFault> {
        let addresses = warp.addresses(place);
        let size = ty.size();
        check_aligned(active, &addresses, size * src.len())?;
        let global = self.count(active, place.space, &addresses, size * src.len(), true);
        if global {
            if order == Order::Release {
                self.phase = warp.clock.fence(self.phase);
            }
            warp.clock.enter(self.phase);
        }
        warp.last_look = None;
        for (i, &src) in src.iter().enumerate() {
            let value = warp.get64(src);
            for lane in Lanes(active) {
                let address = addresses[lane].wrapping_add((i * size) as u64);
                self.write(warp, lane, place.space, address, size, value[lane], order).map_err(at(lane))?;
            }
        }
        if global && order != Order::Weak {
            world.version += 1;
            Lanes(active).for_each(|lane| warp.clock.publish(addresses[lane], &mut world.published));
        }
        Ok(())
    }

    #[inline]
    fn read(
        &mut self,
        warp: &mut Warp<'g>,
        lane: usize,
        space: Option<Space>,
        address: u64,
        size: usize,
        order: Order,
    ) -> Access<u64> {
        let (space, address) = resolve(space, address);
        match space {
            Space::Global | Space::Const | Space::Reg | Space::Param => {
                self.memory.load(address, size, order != Order::Weak, &warp.clock)
            }
            Space::Local => {
                let start = self.local(lane, address, size)?;
                if warp.local_written[start..start + size].iter().any(|written| !written) {
                    return Err(FaultKind::Uninitialised { space: "local", address });
                }
                let bytes = &warp.local[start..start + size];
                Ok(bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte)))
            }
            Space::Shared => self.shared.load(address, size, order != Order::Weak, &warp.thread(lane, self.tick)),
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn write(
        &mut self,
        warp: &mut Warp<'g>,
        lane: usize,
        space: Option<Space>,
        address: u64,
        size: usize,
        value: u64,
        order: Order,
    ) -> Access<()> {
        let (space, address) = resolve(space, address);
        match space {
            Space::Local => {
                let start = self.local(lane, address, size)?;
                warp.local[start..start + size].copy_from_slice(&value.to_le_bytes()[..size]);
                warp.local_written[start..start + size].fill(true);
                Ok(())
            }
            Space::Shared => self.shared.store(address, size, value, &warp.thread(lane, self.tick)),
            _ if order == Order::Weak => self.memory.store(address, size, value, &warp.clock),
            _ => self.memory.store_strong(address, size, value, &warp.clock),
        }
    }

    /// Where a lane's local bytes are.
    fn local(&self, lane: usize, address: u64, size: usize) -> Access<usize> {
        let each = self.grid.kernel.local;
        if address.saturating_add(size as u64) > each as u64 {
            return Err(FaultKind::OutOfBounds { space: "local", address, size, near: None });
        }
        if !address.is_multiple_of(size as u64) {
            return Err(FaultKind::Misaligned { address, size });
        }
        Ok(lane * each + address as usize)
    }

    /// Counts a warp's access; whether it is to global memory.
    fn count(&mut self, active: u32, space: Option<Space>, addresses: &L64, size: usize, write: bool) -> bool {
        let first = addresses[active.trailing_zeros() as usize];
        match resolve(space, first).0 {
            Space::Global => {
                let bytes = u64::from(active.count_ones()) * size as u64;
                *(if write { &mut self.counters.global_written } else { &mut self.counters.global_read }) += bytes;
                self.counters.global_accesses += 1;
                self.counters.narrow_accesses += u64::from(size < 16);
                self.counters.narrow_read += if write || size >= 16 { 0 } else { bytes };
                self.counters.global_sectors += count::sectors(active, addresses, size);
                return true;
            }
            Space::Shared => {
                self.counters.shared_accesses += 1;
                self.counters.bank_conflicts += count::conflicts(active, addresses, size);
            }
            Space::Local => self.counters.local_accesses += 1,
            Space::Const => return true,
            _ => {}
        }
        false
    }

    #[allow(clippy::too_many_arguments)]
    fn atomic(
        &mut self,
        warp: &mut Warp<'g>,
        pc: u32,
        active: u32,
        (op, ty, order): (Atomic, Type, Order),
        place: &Place,
        dst: Dst,
        src: [Src; 2],
        world: &mut World,
    ) -> Result<bool, LaneFault> {
        let addresses = warp.addresses(place);
        let size = ty.size();
        let [a, b] = src.map(|src| warp.get64(src));
        let mut old = [0; LANES];
        let mut changed = false;
        self.counters.atomics += 1;
        if matches!(order, Order::Release | Order::AcquireRelease) {
            self.phase = warp.clock.fence(self.phase);
        }
        warp.clock.enter(self.phase);
        let mut global = false;
        for lane in Lanes(active) {
            let (space, address) = resolve(place.space, addresses[lane]);
            // A sum of f32 in global memory flushes subnormals; one in shared memory does not.
            let flush = op == Atomic::FloatAdd && ty == Type::F32 && space == Space::Global;
            let zero = |value: u64| if flush { u64::from(lanes::flush(value as u32)) } else { value };
            let update = |now: u64| zero(atomic_result(op, ty, zero(now), zero(a[lane]), b[lane]));
            old[lane] = match space {
                Space::Shared => {
                    let thread = warp.thread(lane, self.tick);
                    self.shared
                        .update(address, size, op == Atomic::CompareAndSwap, update, &thread)
                        .map_err(at(lane))?
                }
                Space::Global => {
                    global = true;
                    let swap = op == Atomic::CompareAndSwap;
                    let now = self.memory.update(address, size, swap, update, &warp.clock).map_err(at(lane))?;
                    changed |= update(now) != now;
                    warp.clock.publish(address, &mut world.published);
                    match order {
                        Order::Acquire | Order::AcquireRelease => warp.clock.acquire(address, &world.published),
                        _ => warp.clock.observe(address, &world.published),
                    }
                    now
                }
                _ => return Err(LaneFault { kind: FaultKind::Unsupported, lane }),
            };
        }
        warp.put64(dst, active, &old);
        if changed {
            world.version += 1;
            warp.last_look = None;
            return Ok(false);
        }
        let first = active.trailing_zeros() as usize;
        Ok(global && looked(warp, pc, addresses[first], old[first]))
    }

    fn load_matrix(
        &mut self,
        warp: &mut Warp<'g>,
        dst: &[Dst],
        place: &Place,
        transposed: bool,
    ) -> Result<(), LaneFault> {
        let addresses: L64 = warp.addresses(place).map(|address| resolve(place.space, address).1);
        let rows = if dst.len() == 4 { u32::MAX } else { (1 << (8 * dst.len())) - 1 };
        self.counters.shared_accesses += 1;
        let conflicts = count::conflicts(rows, &addresses, 16);
        self.counters.bank_conflicts += conflicts;
        self.counters.matrix_conflicts += conflicts;
        check_aligned(rows, &addresses, 16)?;
        for (i, &dst) in dst.iter().enumerate() {
            let mut matrix = [[0; 16]; 8];
            for (row, bytes) in matrix.iter_mut().enumerate() {
                let lane = 8 * i + row;
                for half in 0..2 {
                    let thread = warp.thread(lane, self.tick);
                    let part = self.shared.load(addresses[lane] + 8 * half, 8, false, &thread).map_err(at(lane))?;
                    bytes[8 * half as usize..][..8].copy_from_slice(&part.to_le_bytes());
                }
            }
            let value = std::array::from_fn(|lane| tensor::matrix_part(&matrix, lane, transposed));
            warp.put32(dst, u32::MAX, &value);
        }
        Ok(())
    }

    fn async_copy(
        &mut self,
        warp: &mut Warp<'g>,
        active: u32,
        to: &Place,
        from: &Place,
        size: usize,
        read: Option<Src>,
    ) -> Result<(), LaneFault> {
        let (to, from) = (warp.addresses(to), warp.addresses(from));
        check_aligned(active, &to, size)?;
        check_aligned(active, &from, size)?;
        let read = read.map_or([size as u32; LANES], |src| warp.get32(src));
        let reading = Lanes(active).filter(|&lane| read[lane] > 0).fold(0, |m, lane| m | 1u32 << lane);
        if reading != 0 {
            self.count(reading, Some(Space::Global), &from, size, false);
        }
        self.counters.shared_accesses += 1;
        self.counters.bank_conflicts += count::conflicts(active, &to, size);
        self.counters.async_copied += u64::from(active.count_ones()) * size as u64;
        warp.clock.enter(self.phase);
        for lane in Lanes(active) {
            let read = (read[lane] as usize).min(size);
            let (_, source) = resolve(None, from[lane]);
            // Its source must be readable now; what it brings is what is there when it lands.
            self.fetch(warp, source, read).map_err(at(lane))?;
            let (_, address) = resolve(Some(Space::Shared), to[lane]);
            let thread = warp.thread(lane, self.tick);
            self.shared.expect(address, size, &thread).map_err(at(lane))?;
            warp.copies.push(AsyncCopy { lane, to: address, from: source, size, read, group: warp.commits[lane] });
        }
        Ok(())
    }

    fn fetch(&mut self, warp: &Warp<'g>, address: u64, count: usize) -> Access<[u8; 16]> {
        let mut bytes = [0; 16];
        let step = [8, 4, 2, 1].into_iter().find(|step| count.is_multiple_of(*step)).unwrap_or(1);
        for i in (0..count).step_by(step) {
            let part = self.memory.load(address + i as u64, step, false, &warp.clock)?;
            bytes[i..i + step].copy_from_slice(&part.to_le_bytes()[..step]);
        }
        Ok(bytes)
    }

    /// Lands all but the last `groups` of the lanes' committed groups; without a number, all there are.
    fn async_wait(&mut self, warp: &mut Warp<'g>, active: u32, groups: Option<u32>) -> Result<(), LaneFault> {
        let copies = std::mem::take(&mut warp.copies);
        let commits = warp.commits;
        let (land, keep): (Vec<_>, Vec<_>) = copies.into_iter().partition(|copy| {
            active >> copy.lane & 1 == 1
                && groups.is_none_or(|groups| u64::from(copy.group) + u64::from(groups) < u64::from(commits[copy.lane]))
        });
        warp.copies = keep;
        warp.clock.enter(self.phase);
        for copy in land {
            let bytes = self.fetch(warp, copy.from, copy.read).map_err(at(copy.lane))?;
            let thread = warp.thread(copy.lane, self.tick);
            self.shared.land(copy.to, &bytes[..copy.size], &thread);
        }
        Ok(())
    }
}

/// A compare-and-swap of the address that a doubtful read was of settles it; whatever else others may see confirms the race.
fn resolve_doubt(warp: &mut Warp, inst: &Inst, active: u32) -> Result<(), (u32, LaneFault)> {
    let Some((pc, lane, address, kind)) = warp.doubt.take() else { return Ok(()) };
    if active >> lane & 1 == 0 {
        warp.doubt = Some((pc, lane, address, kind));
        return Ok(());
    }
    match &inst.kind {
        Kind::Atomic { op: Atomic::CompareAndSwap, place, .. } if warp.addresses(place)[lane] == address => Ok(()),
        _ => Err((pc, LaneFault { kind, lane })),
    }
}

/// Whether a warp looks at memory that has not changed since it looked there last, with the same instruction: it spins.
fn looked(warp: &mut Warp, pc: u32, address: u64, value: u64) -> bool {
    let look = Some((pc, address, value));
    let same = warp.last_look == look;
    warp.last_look = look;
    same
}

/// A lane's address, resolved: the space and the address in it.
#[inline]
fn resolve(space: Option<Space>, address: u64) -> (Space, u64) {
    match space {
        // Addresses in the shared window stand for themselves, as on the device.
        Some(space) => (space, address),
        None if (SHARED_WINDOW..SHARED_WINDOW + WINDOW).contains(&address) => (Space::Shared, address - SHARED_WINDOW),
        None if (LOCAL_WINDOW..LOCAL_WINDOW + WINDOW).contains(&address) => (Space::Local, address - LOCAL_WINDOW),
        None => (Space::Global, address),
    }
}

fn compare(warp: &Warp, op: lanes::Compare, flush: bool, src: [Src; 2]) -> u32 {
    let [mut a, mut b] = src.map(|src| warp.get64(src));
    if flush {
        for v in a.iter_mut().chain(&mut b) {
            *v = u64::from(lanes::flush(*v as u32));
        }
    }
    op(&a, &b)
}

/// A vector is aligned as a whole, though its elements are accessed one by one.
#[inline]
fn check_aligned(active: u32, addresses: &L64, size: usize) -> Result<(), LaneFault> {
    // Sizes are powers of two, but for vectors of three, which there are none of.
    let low = size as u64 - 1;
    if active == u32::MAX && addresses.iter().fold(0, |any, address| any | address) & low == 0 {
        return Ok(());
    }
    for lane in Lanes(active) {
        let address = addresses[lane];
        if address & low != 0 {
            return Err(LaneFault { kind: FaultKind::Misaligned { address, size }, lane });
        }
    }
    Ok(())
}

/// A sum, rounded once.
fn float_add(ty: Type, a: u64, b: u64) -> u64 {
    let f16 = |a: u64, b: u64| {
        u64::from(f16::from_f64(f16::from_bits(a as u16).to_f64() + f16::from_bits(b as u16).to_f64()).to_bits())
    };
    let bf16 = |a: u64, b: u64| {
        u64::from(bf16::from_f64(bf16::from_bits(a as u16).to_f64() + bf16::from_bits(b as u16).to_f64()).to_bits())
    };
    match ty {
        Type::F64 => (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        Type::F16 => f16(a, b),
        Type::F16x2 => f16(a, b) | f16(a >> 16, b >> 16) << 16,
        Type::Bf16 => bf16(a, b),
        Type::Bf16x2 => bf16(a, b) | bf16(a >> 16, b >> 16) << 16,
        _ => u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits()),
    }
}

fn atomic_result(op: Atomic, ty: Type, now: u64, a: u64, b: u64) -> u64 {
    let bits = 8 * ty.size() as u32;
    let clip = |value: u64| value & (u64::MAX >> (64 - bits));
    let signed = |value: u64| (value << (64 - bits)) as i64 >> (64 - bits);
    clip(match op {
        Atomic::Add => now.wrapping_add(a),
        Atomic::FloatAdd => float_add(ty, now, a),
        Atomic::Min if matches!(ty, Type::Signed(_)) => signed(now).min(signed(a)) as u64,
        Atomic::Max if matches!(ty, Type::Signed(_)) => signed(now).max(signed(a)) as u64,
        Atomic::Min => clip(now).min(clip(a)),
        Atomic::Max => clip(now).max(clip(a)),
        Atomic::And => now & a,
        Atomic::Or => now | a,
        Atomic::Xor => now ^ a,
        Atomic::Exchange => a,
        Atomic::CompareAndSwap => {
            if clip(now) == clip(a) {
                b
            } else {
                now
            }
        }
        Atomic::Increment => {
            if clip(now) >= clip(a) {
                0
            } else {
                now + 1
            }
        }
        Atomic::Decrement => {
            if now == 0 || clip(now) > clip(a) {
                a
            } else {
                now - 1
            }
        }
    })
}
