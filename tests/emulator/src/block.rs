//! Runs a block: its warps in a seeded order, divergence, barriers.
//!
//! A warp is a list of groups: a program counter and the lanes that are at it. The group with the lowest counter runs, so that branches come
//! together again by themselves; a group that waits (for a barrier, for the lanes its mask names, for memory to change) lets the others run.

use crate::count::Counters;
use crate::error::{Error, Fault, FaultKind};
use crate::kernel::Kernel;
use crate::lanes::{L64, LANES};
use crate::memory::{Memory, View};
use crate::operand::{Constant, LaneMask, Register, Special, Src};
use crate::order::{Clock, Knowledge, join};
use crate::poison::Poison;
use crate::shared::Shared;
use crate::step::{Execute, LaneFault, Next, Run, Step, World};
use crate::warp::{Arrival, BarrierVote, Doubt, Group, Reduced, Wait, Warp};

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

/// A block as it runs.
pub(crate) struct Block<'g> {
    grid: &'g Grid<'g>,
    index: [u32; 3],
    warps: Vec<Warp<'g>>,
    run: Run<'g>,
    random: Random,
    /// A bit a warp that may have something to run
    ready: u32,
    /// The version of memory that its waiting warps know
    version: u64,
    /// Threads that have not exited
    live: u32,
    arrived: Vec<Arrived>,
}

/// A warp that has arrived at a barrier where it does not wait, and what it knew.
struct Arrived {
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
    Barrier(Arrival),
    /// So many lanes have arrived at a barrier, and do not wait there
    Arrived(Arrival, u32),
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One of `count`.
    fn below(&mut self, count: usize) -> usize {
        (self.next() >> 33) as usize % count
    }
}

/// The lowest bits, `count` of them.
fn everyone(count: u32) -> u32 {
    if count == 32 { u32::MAX } else { (1 << count) - 1 }
}

fn truth(holds: bool) -> u32 {
    if holds { u32::MAX } else { 0 }
}

impl<'g> Grid<'g> {
    /// Where a thread of a block is.
    fn thread(&self, warp: u32, lane: usize) -> [u32; 3] {
        let rank = warp * LANES as u32 + lane as u32;
        let [x, y, _] = self.block;
        [rank % x, rank / x % y, rank / (x * y)]
    }

    /// The value that a constant register has in a warp.
    fn constant(&self, index: [u32; 3], warp: u32, constant: Constant) -> L64 {
        let special = match constant {
            Constant::Value(value) => return [value; LANES],
            Constant::Special(special) => special,
        };
        std::array::from_fn(|lane| {
            let bit = 1u32 << lane;
            u64::from(match special {
                Special::Tid(axis) => self.thread(warp, lane)[axis],
                Special::Ntid(axis) => self.block[axis],
                Special::Ctaid(axis) => index[axis],
                Special::Nctaid(axis) => self.grid[axis],
                Special::LaneId => lane as u32,
                Special::WarpId => warp,
                Special::NumWarps => self.block.iter().product::<u32>().div_ceil(LANES as u32),
                Special::LaneMask(LaneMask::Eq) => bit,
                Special::LaneMask(LaneMask::Lt) => bit - 1,
                Special::LaneMask(LaneMask::Le) => bit | (bit - 1),
                Special::LaneMask(LaneMask::Gt) => !(bit | (bit - 1)),
                Special::LaneMask(LaneMask::Ge) => !(bit - 1),
                Special::SmId => index[0] % self.multiprocessors,
                Special::NumSms => self.multiprocessors,
                Special::GridId => 1,
                // Clocks stand still.
                Special::Clock => 0,
                Special::DynamicSharedSize => self.dynamic_shared as u32,
                Special::TotalSharedSize => (self.kernel.shared + self.dynamic_shared) as u32,
                // Where a cooperative grid has its barrier: the high and the low half of its address.
                Special::EnvReg(1) => (self.workspace >> 32) as u32,
                Special::EnvReg(2) => self.workspace as u32,
                Special::EnvReg(_) => 0,
            })
        })
    }

    /// An instruction's text and lines.
    fn place(&self, pc: u32) -> (String, u32, Option<(String, u32)>) {
        let kernel = self.kernel;
        let Some(origin) = kernel.code.get(pc as usize).map(|inst| &kernel.origins[inst.origin as usize]) else {
            return ("the end of the code".into(), 0, None);
        };
        let source = origin.location.and_then(|(file, line)| {
            let name = self.files.iter().find(|(index, _)| *index == file)?;
            Some((name.1.clone(), line))
        });
        (origin.text.clone(), origin.line, source)
    }

    fn fault(&self, block: [u32; 3], warp: u32, pc: u32, fault: LaneFault) -> Error {
        // Of poison the read is what a reader looks for; where it led to is told beside it.
        let reaches = fault.read.map(|(_, what)| {
            let (text, line, source) = self.place(pc);
            let source = source.map_or(String::new(), |(file, line)| format!("{file}:{line}, "));
            format!("{what} at {source}PTX line {line}: {text}")
        });
        let (instruction, ptx_line, source) = self.place(fault.read.map_or(pc, |(read, _)| read));
        let thread = self.thread(warp, fault.lane);
        let kernel = self.kernel.name.clone();
        Error::Fault(Box::new(Fault {
            kernel,
            block,
            thread,
            instruction,
            ptx_line,
            source,
            kind: fault.kind,
            reaches,
        }))
    }
}

impl<'g> Block<'g> {
    pub fn new(grid: &'g Grid<'g>, flat: u32, memory: &'g Memory) -> Self {
        let kernel = grid.kernel;
        let threads: u32 = grid.block.iter().product();
        let count = threads.div_ceil(LANES as u32);
        let [gx, gy, _] = grid.grid;
        let index = [flat % gx, flat / gx % gy, flat / gx / gy];
        let run = Run {
            parameters: grid.parameters,
            local: kernel.local,
            shared: Shared::new(kernel.shared + grid.dynamic_shared, kernel.granule),
            memory: View::new(memory),
            tick: 1,
            phase: 0,
            counters: Counters::default(),
        };
        let warp = |w: u32| {
            let mut r32 = vec![[0xdead_beef; LANES]; kernel.registers.r32 as usize];
            let mut r64 = vec![[0xdead_beef_dead_beef; LANES]; kernel.registers.r64 as usize];
            for &(register, constant) in &kernel.constants {
                let value = grid.constant(index, w, constant);
                match register {
                    Src::R32(r) => r32[r as usize] = value.map(|v| v as u32),
                    Src::R64(r) => r64[r as usize] = value,
                    Src::Imm(_) => {}
                }
            }
            let mask = everyone((threads - w * LANES as u32).min(LANES as u32));
            Warp {
                index: w,
                r32,
                r64,
                predicates: vec![0; kernel.registers.predicates as usize],
                poison: Poison::default(),
                local: vec![0xff; kernel.local * LANES],
                local_written: vec![false; kernel.local * LANES],
                groups: vec![Group { pc: 0, mask, wait: Wait::No }],
                clock: Clock::new(&memory.stamps, grid.base, grid.launch, flat, w, count as usize),
                known: vec![0; count as usize],
                copies: Vec::new(),
                commits: [0; LANES],
                doubts: Vec::new(),
                last_look: None,
            }
        };
        Self {
            grid,
            index,
            warps: (0..count).map(warp).collect(),
            run,
            random: Random((grid.seed ^ u64::from(flat).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1),
            ready: everyone(count),
            version: 0,
            live: threads,
            arrived: Vec::new(),
        }
    }

    /// What it counted, and the allocations it touched.
    pub fn results(self) -> (Counters, Vec<u64>) {
        (self.run.counters, self.run.memory.touched)
    }

    fn fault(&self, w: usize, pc: u32, fault: LaneFault) -> Error {
        self.grid.fault(self.index, w as u32, pc, fault)
    }

    /// Lets a warp, chosen by the seed, run until others may have seen what it did.
    pub fn turn(&mut self, world: &mut World) -> Result<Turn, Error> {
        if world.version != self.version {
            self.version = world.version;
            for (w, warp) in self.warps.iter_mut().enumerate() {
                for group in &mut warp.groups {
                    if group.wait == Wait::Memory {
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
        let nth = self.random.below(self.ready.count_ones() as usize);
        let mut left = self.ready;
        (0..nth).for_each(|_| left &= left - 1);
        let w = left.trailing_zeros() as usize;
        let live = self.live;
        match self.run_warp(w, world).map_err(|(pc, fault)| self.fault(w, pc, fault))? {
            Outcome::Seen => {}
            Outcome::Blocked => self.ready &= !(1 << w),
            Outcome::Barrier(arrival) => self.barrier(arrival),
            Outcome::Arrived(arrival, lanes) => {
                // What it did until now is what those who wait will know of.
                self.run.phase += 1;
                let warp = &mut self.warps[w];
                self.run.advance_tick(Some(warp));
                let (mut own, mut others) = (vec![0; warp.known.len()], Knowledge::default());
                warp.clock.gather(&mut own, &mut others);
                own[w] = self.run.phase;
                self.arrived.push(Arrived { id: arrival.id, lanes, known: warp.known.clone(), own, others });
                self.barrier(arrival);
            }
        }
        if self.live < live {
            // Those who are gone may be all that a barrier of all threads was waiting for.
            let waits = self.warps.iter().flat_map(|warp| &warp.groups).map(|group| group.wait);
            let held = |wait| if let Wait::Barrier(at @ Arrival { wanted: None, .. }) = wait { Some(at) } else { None };
            let held: Vec<Arrival> = waits.filter_map(held).collect();
            held.into_iter().for_each(|arrival| self.barrier(arrival));
        }
        Ok(Turn::Ran)
    }

    /// Lets everyone go whom a barrier held, if all are there.
    fn barrier(&mut self, Arrival { id, wanted, .. }: Arrival) {
        let at_it = |group: &&Group| matches!(group.wait, Wait::Barrier(at) if at.id == id);
        let waiting: u32 = self.warps.iter().flat_map(|w| &w.groups).filter(at_it).map(|g| g.mask.count_ones()).sum();
        let arrived: u32 = self.arrived.iter().filter(|a| a.id == id).map(|a| a.lanes).sum();
        if waiting == 0 || waiting + arrived < wanted.unwrap_or(self.live) {
            return;
        }
        self.vote(id);
        let run = &mut self.run;
        run.counters.barriers += 1;
        run.phase += 1;
        run.advance_tick(None);
        let members: Vec<usize> =
            (0..self.warps.len()).filter(|&w| self.warps[w].groups.iter().any(|g| at_it(&g))).collect();
        if run.tick == 1 {
            self.warps.iter_mut().for_each(|warp| warp.known.fill(0));
        }
        let most = |a: &mut [u32], b: &[u32]| a.iter_mut().zip(b).for_each(|(a, &b)| *a = (*a).max(b));
        let mut known = vec![0; self.warps.len()];
        let (mut own, mut others) = (vec![0; self.warps.len()], Knowledge::default());
        for &w in &members {
            most(&mut known, &self.warps[w].known);
            self.warps[w].clock.gather(&mut own, &mut others);
        }
        for arrived in self.arrived.extract_if(.., |arrived| arrived.id == id) {
            most(&mut known, &arrived.known);
            most(&mut own, &arrived.own);
            join(&mut others, &arrived.others);
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
        let votes = |warp: &Warp| -> Vec<(u32, BarrierVote)> {
            let vote = |group: &Group| match group.wait {
                Wait::Barrier(Arrival { id: at, vote, .. }) if at == id => Some((group.mask, vote?)),
                _ => None,
            };
            warp.groups.iter().filter_map(vote).collect()
        };
        let (mut yes, mut all) = (0, 0);
        for warp in &self.warps {
            for (mask, vote) in votes(warp) {
                yes += (warp.predicate(vote.by) & mask).count_ones();
                all += mask.count_ones();
            }
        }
        for warp in &mut self.warps {
            for (mask, vote) in votes(warp) {
                match vote.gives {
                    Reduced::Count(dst) => warp.put(dst, mask, &[yes; LANES]),
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
        let (barrier, lanes) = (waiting(|w| matches!(w, Wait::Barrier(..))), waiting(|w| *w == Wait::Lanes));
        let memory = waiting(|w| *w == Wait::Memory);
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
                "{there} of the block's {} threads that are left have reached it, and no other can",
                self.live
            ))
        };
        self.fault(w, group.pc, LaneFault::new(kind, group.mask.trailing_zeros() as usize))
    }

    /// Runs a warp until it has touched memory that others see, or waits, or ends.
    fn run_warp(&mut self, w: usize, world: &mut World) -> Result<Outcome, (u32, LaneFault)> {
        let Self { grid, warps, run, random, live, .. } = self;
        let (code, warp) = (&grid.kernel.code, &mut warps[w]);
        let runnable = |g: &Group| g.wait == Wait::No;
        loop {
            let Some(mut at) = warp.groups.iter().position(runnable) else {
                return Ok(Outcome::Blocked);
            };
            let alone = warp.groups.len() == 1;
            // Now and then another than the lowest goes first: lanes need not stay together.
            let mut stray = false;
            if !alone && random.next() >> 60 == 0 {
                let choices: Vec<usize> = (0..warp.groups.len()).filter(|&i| runnable(&warp.groups[i])).collect();
                at = choices[random.below(choices.len())];
                stray = true;
            }
            let Group { mut pc, mut mask, .. } = warp.groups[at];
            loop {
                let deadlock =
                    |text: String| (pc, LaneFault::new(FaultKind::Deadlock(text), mask.trailing_zeros() as usize));
                let Some(inst) = code.get(pc as usize) else {
                    return Err(deadlock("the kernel runs past its end".into()));
                };
                let active = match inst.guard {
                    None => mask,
                    Some(pred) => mask & warp.predicate(pred),
                };
                if !warp.doubts.is_empty() {
                    resolve_doubts(warp, &*inst.code, active)?;
                }
                run.counters.warp_instructions += 1;
                run.counters.thread_instructions += u64::from(active.count_ones());
                let mut step = Step { run, warp, world, pc, active, mask };
                if step.warp.poison.is_any() {
                    let guard = inst.guard.map(|guard| Register::Predicate(guard.register));
                    let flow = &grid.kernel.flows[pc as usize];
                    step.pass(inst.code.pass(), flow, guard, || grid.kernel.choice(pc)).map_err(|fault| (pc, fault))?;
                }
                // What nobody does has no effect, on others or on what they know.
                let next =
                    if active == 0 { Next::On } else { inst.code.execute(&mut step).map_err(|fault| (pc, fault))? };
                match next {
                    Next::On => pc += 1,
                    Next::Jump(target) => {
                        if run.counters.warp_instructions > grid.instructions {
                            let most = grid.instructions;
                            return Err(deadlock(format!(
                                "still running after {most} instructions of the block's warps"
                            )));
                        }
                        if active != mask {
                            warp.groups.remove(at);
                            warp.settle(mask & !active, pc + 1, Wait::No);
                            warp.settle(active, target, Wait::No);
                            break;
                        }
                        pc = target;
                    }
                    Next::Seen => {
                        pc += 1;
                        if random.next() >> 63 == 0 {
                            warp.groups.remove(at);
                            warp.settle(mask, pc, Wait::No);
                            return Ok(Outcome::Seen);
                        }
                    }
                    Next::Exit => {
                        mask &= !active;
                        warp.groups[at].mask = mask;
                        *live -= active.count_ones();
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
                    Next::Gather => {
                        warp.groups[at] = Group { pc, mask, wait: Wait::Lanes };
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
                        warp.settle(mask, pc + 1, Wait::Memory);
                        return Ok(Outcome::Seen);
                    }
                    Next::Arrive(arrival) => {
                        warp.groups.remove(at);
                        warp.settle(mask, pc + 1, Wait::No);
                        return Ok(Outcome::Arrived(arrival, active.count_ones()));
                    }
                    Next::Barrier(arrival) => {
                        warp.groups.remove(at);
                        // Lanes whose guard is off go on.
                        warp.settle(mask & !active, pc + 1, Wait::No);
                        warp.settle(active, pc, Wait::Barrier(arrival));
                        return Ok(Outcome::Barrier(arrival));
                    }
                }
                if alone {
                    continue;
                }
                let others = || warp.groups.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, g)| g);
                let met = others().any(|g| g.pc == pc && !g.is_at_barrier());
                if met || (!stray && others().any(|g| g.pc < pc && runnable(g))) {
                    warp.groups.remove(at);
                    warp.settle(mask, pc, Wait::No);
                    break;
                }
            }
        }
    }
}

/// A compare-and-swap of the address that a doubtful read was of settles it, and other reads leave it open; whatever else others may see confirms
/// the race.
fn resolve_doubts(warp: &mut Warp, code: &dyn Execute, active: u32) -> Result<(), (u32, LaneFault)> {
    if let Some(place) = code.swaps() {
        let swapped = warp.addresses(place);
        warp.doubts.retain(|doubt| active >> doubt.lane & 1 == 0 || swapped[doubt.lane] != doubt.address);
    } else if code.is_seen() && !code.only_reads() {
        let confirmed = warp.doubts.iter().position(|doubt| active >> doubt.lane & 1 == 1);
        if let Some(Doubt { pc, lane, race, .. }) = confirmed.map(|i| warp.doubts.swap_remove(i)) {
            return Err((pc, LaneFault::new(race, lane)));
        }
    }
    Ok(())
}
