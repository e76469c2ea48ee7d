//! Runs a block: warps of 32 lanes with divergence, barriers, shared memory with its shadow, in a seeded order.
//!
//! A warp is a list of groups: a program counter and the lanes that are at it. The group with the lowest counter runs, so that branches come
//! together again by themselves; a group that waits (for a barrier, or for the lanes its mask names) lets the others run.

use crate::error::{Error, Fault, FaultKind};
use crate::lanes::{self, L32, L64, LANES};
use crate::memory::{Memory, View};
use crate::program::{Atomic, Dst, Inst, Kernel, Kind, LaneMask, Logic, Place, Pred, Shuffle, Special, Src, Vote};
use crate::syntax::{Space, Type};

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
}

/// Executed instructions, by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instructions of warps
    pub warp_instructions: u64,
    /// Instructions of threads: those of warps, by their active lanes
    pub thread_instructions: u64,
    /// Bytes read from global memory, as asked for
    pub global_read: u64,
    /// Bytes written to global memory
    pub global_written: u64,
    /// 32-byte sectors of global memory that warps touched, counted once an instruction
    pub global_sectors: u64,
    /// Cycles that warps' accesses to shared memory take beyond one, by conflicts of its 32 banks
    pub bank_conflicts: u64,
    /// Barriers of blocks
    pub barriers: u64,
}

impl Counters {
    pub(crate) fn add(&mut self, other: &Counters) {
        self.warp_instructions += other.warp_instructions;
        self.thread_instructions += other.thread_instructions;
        self.global_read += other.global_read;
        self.global_written += other.global_written;
        self.global_sectors += other.global_sectors;
        self.bank_conflicts += other.bank_conflicts;
        self.barriers += other.barriers;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    No,
    /// At a barrier of the block
    Barrier(u32),
    /// For other lanes of the warp
    Lanes,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    pc: u32,
    mask: u32,
    wait: Wait,
}

#[derive(Debug)]
struct Warp {
    index: u32,
    r32: Vec<L32>,
    r64: Vec<L64>,
    predicates: Vec<u32>,
    /// Local memory, a lane after the other, and which bytes were written
    local: Vec<u8>,
    local_written: Vec<bool>,
    /// By rising program counter
    groups: Vec<Group>,
    /// Rises where the warp's lanes are known to be in step
    epoch: u32,
}

/// Who touched a byte of shared memory since the last barrier.
#[derive(Debug, Clone, Copy, Default)]
struct Touch {
    /// Rank + 1, and the warp's epoch
    writer: (u32, u32),
    reader: (u32, u32),
    written: bool,
}

/// A block as it runs.
pub(crate) struct Block<'g> {
    grid: &'g Grid<'g>,
    index: [u32; 3],
    warps: Vec<Warp>,
    threads: u32,
    shared: Vec<u8>,
    touches: Vec<Touch>,
    memory: View<'g>,
    random: u64,
    pub counters: Counters,
}

/// A fault in a warp: what, at which instruction, in which lane.
struct LaneFault {
    kind: FaultKind,
    lane: usize,
}

fn bits(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 == 1)
}

impl<'g> Block<'g> {
    pub fn new(grid: &'g Grid<'g>, index: [u32; 3], memory: &'g Memory) -> Self {
        let kernel = grid.kernel;
        let threads: u32 = grid.block.iter().product();
        let warps = (0..threads.div_ceil(LANES as u32))
            .map(|w| {
                let lanes = (threads - w * LANES as u32).min(LANES as u32);
                let mask = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
                Warp {
                    index: w,
                    r32: vec![[0xdead_beef; LANES]; kernel.r32],
                    r64: vec![[0xdead_beef_dead_beef; LANES]; kernel.r64],
                    predicates: vec![0; kernel.predicates],
                    local: vec![0xff; kernel.local * LANES],
                    local_written: vec![false; kernel.local * LANES],
                    groups: vec![Group { pc: 0, mask, wait: Wait::No }],
                    epoch: 1,
                }
            })
            .collect();
        let shared = kernel.shared + grid.dynamic_shared;
        let flat = index[0] as u64 + 0x1_0000 * (index[1] as u64 + 0x1_0000 * index[2] as u64);
        Self {
            grid,
            index,
            warps,
            threads,
            shared: vec![0xff; shared],
            touches: vec![Touch::default(); shared],
            memory: View::new(memory),
            random: (grid.seed ^ flat.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1,
            counters: Counters::default(),
        }
    }

    /// xorshift64*
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Result<(), Error> {
        loop {
            let ready: Vec<usize> = (0..self.warps.len())
                .filter(|&w| self.warps[w].groups.iter().any(|group| group.wait == Wait::No))
                .collect();
            if ready.is_empty() {
                if self.warps.iter().all(|warp| warp.groups.is_empty()) {
                    return Ok(());
                }
                return Err(self.stuck());
            }
            let chosen = ready[(self.random() >> 33) as usize % ready.len()];
            self.turn(chosen)?;
        }
    }

    /// Runs a warp until it has touched memory that others see, or waits, or ends.
    fn turn(&mut self, w: usize) -> Result<(), Error> {
        loop {
            let Some(at) = self.warps[w].groups.iter().position(|group| group.wait == Wait::No) else {
                return Ok(());
            };
            let group = self.warps[w].groups[at];
            let kernel = self.grid.kernel;
            let Some(inst) = kernel.code.get(group.pc as usize) else {
                return Err(Error::Launch(format!("kernel {} runs past its end", kernel.name)));
            };
            let active = match inst.guard {
                None => group.mask,
                Some(Pred { register, negated }) => {
                    let p = self.warps[w].predicates[register as usize];
                    group.mask & if negated { !p } else { p }
                }
            };
            self.counters.warp_instructions += 1;
            self.counters.thread_instructions += u64::from(active.count_ones());
            let seen = self.step(w, at, inst, active).map_err(|fault| self.fault(w, inst, fault))?;
            if seen {
                return Ok(());
            }
        }
    }

    fn place_of(&self, w: usize, lane: usize) -> [u32; 3] {
        let rank = w as u32 * LANES as u32 + lane as u32;
        let [x, y, _] = self.grid.block;
        [rank % x, rank / x % y, rank / (x * y)]
    }

    fn fault(&self, w: usize, inst: &Inst, fault: LaneFault) -> Error {
        let kernel = self.grid.kernel;
        let origin = &kernel.origins[inst.origin as usize];
        let source = origin.location.and_then(|(file, line)| {
            let name = self.grid.files.iter().find(|(index, _)| *index == file)?;
            Some((name.1.clone(), line))
        });
        Error::Fault(Box::new(Fault {
            kernel: kernel.name.clone(),
            block: self.index,
            thread: self.place_of(w, fault.lane),
            instruction: origin.text.clone(),
            ptx_line: origin.line,
            source,
            kind: fault.kind,
        }))
    }

    /// What holds everyone up.
    fn stuck(&self) -> Error {
        let waiting = |wanted: fn(&Wait) -> bool| -> Vec<(usize, Group)> {
            let all = self.warps.iter().enumerate();
            all.flat_map(|(w, warp)| warp.groups.iter().map(move |g| (w, *g)))
                .filter(|(_, g)| wanted(&g.wait))
                .collect()
        };
        let (barrier, lanes) = (waiting(|w| matches!(w, Wait::Barrier(_))), waiting(|w| *w == Wait::Lanes));
        let at = lanes.first().or(barrier.first()).copied();
        let Some((w, group)) = at else {
            return Error::Launch("nothing waits and nothing runs".into());
        };
        let kind = if lanes.is_empty() {
            let there: u32 = barrier.iter().map(|(_, g)| g.mask.count_ones()).sum();
            FaultKind::Barrier(format!(
                "{there} of the block's {} threads have reached it, and no other can",
                self.threads
            ))
        } else {
            FaultKind::Deadlock(format!("lanes {:#010x} of a warp wait for others of their mask", group.mask))
        };
        let inst = &self.grid.kernel.code[group.pc as usize];
        self.fault(w, inst, LaneFault { kind, lane: group.mask.trailing_zeros() as usize })
    }

    fn special(&self, w: usize, special: Special) -> L64 {
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
        std::array::from_fn(|lane| {
            u64::from(match special {
                Special::Tid(axis) => self.place_of(w, lane)[axis],
                Special::Ntid(axis) => self.grid.block[axis],
                Special::Ctaid(axis) => self.index[axis],
                Special::Nctaid(axis) => self.grid.grid[axis],
                Special::LaneId => lane as u32,
                Special::WarpId => self.warps[w].index,
                Special::NumWarps => self.warps.len() as u32,
                Special::LaneMask(kind) => lane_mask(kind, lane as u32),
                Special::SmId => self.index[0] % self.grid.multiprocessors,
                Special::NumSms => self.grid.multiprocessors,
                Special::GridId => 1,
                Special::Clock => self.counters.warp_instructions as u32,
                Special::DynamicSharedSize => self.grid.dynamic_shared as u32,
                Special::TotalSharedSize => self.shared.len() as u32,
            })
        })
    }

    #[inline]
    fn get32(&self, w: usize, src: Src) -> L32 {
        match src {
            Src::R32(r) => self.warps[w].r32[r as usize],
            Src::Imm(value) => [value as u32; LANES],
            Src::R64(r) => self.warps[w].r64[r as usize].map(|v| v as u32),
            Src::Special(special) => self.special(w, special).map(|v| v as u32),
        }
    }

    #[inline]
    fn get64(&self, w: usize, src: Src) -> L64 {
        match src {
            Src::R64(r) => self.warps[w].r64[r as usize],
            Src::Imm(value) => [value; LANES],
            Src::R32(r) => self.warps[w].r32[r as usize].map(u64::from),
            Src::Special(special) => self.special(w, special),
        }
    }

    #[inline]
    fn put32(&mut self, w: usize, dst: Dst, active: u32, value: &L32) {
        match dst {
            Dst::R32(r) => {
                let register = &mut self.warps[w].r32[r as usize];
                if active == u32::MAX {
                    *register = *value;
                } else {
                    for lane in 0..LANES {
                        register[lane] = if active >> lane & 1 == 1 { value[lane] } else { register[lane] };
                    }
                }
            }
            Dst::R64(_) => self.put64(w, dst, active, &value.map(u64::from)),
            Dst::None => {}
        }
    }

    #[inline]
    fn put64(&mut self, w: usize, dst: Dst, active: u32, value: &L64) {
        match dst {
            Dst::R64(r) => {
                let register = &mut self.warps[w].r64[r as usize];
                if active == u32::MAX {
                    *register = *value;
                } else {
                    for lane in 0..LANES {
                        register[lane] = if active >> lane & 1 == 1 { value[lane] } else { register[lane] };
                    }
                }
            }
            Dst::R32(_) => self.put32(w, dst, active, &value.map(|v| v as u32)),
            Dst::None => {}
        }
    }

    fn put_predicate(&mut self, w: usize, register: u32, active: u32, value: u32) {
        let p = &mut self.warps[w].predicates[register as usize];
        *p = (*p & !active) | (value & active);
    }

    fn predicate(&self, w: usize, pred: Pred) -> u32 {
        let p = self.warps[w].predicates[pred.register as usize];
        if pred.negated { !p } else { p }
    }

    /// Moves a group's lanes on: `to` for those in `moved`, the next instruction for the others; groups that meet become one.
    fn advance(&mut self, w: usize, at: usize, moved: u32, to: u32) {
        let groups = &mut self.warps[w].groups;
        // Nearly always all lanes move together, and nobody is ahead of them to be met.
        if groups.len() == 1 {
            let group = &mut groups[0];
            if moved == 0 || moved == group.mask {
                group.pc = if moved == 0 { group.pc + 1 } else { to };
                return;
            }
        }
        let group = groups.remove(at);
        let stay = group.mask & !moved;
        for (mask, pc) in [(stay, group.pc + 1), (group.mask & moved, to)] {
            if mask == 0 {
                continue;
            }
            match groups.iter_mut().find(|g| g.pc == pc && !matches!(g.wait, Wait::Barrier(_))) {
                Some(met) => {
                    met.mask |= mask;
                    met.wait = Wait::No;
                }
                None => {
                    let here = groups.partition_point(|g| g.pc < pc);
                    groups.insert(here, Group { pc, mask, wait: Wait::No });
                }
            }
        }
    }

    /// Whether all live lanes that `mask` names are here; if not, the group waits for them.
    fn gather(&mut self, w: usize, at: usize, active: u32, mask: u32) -> bool {
        let warp = &mut self.warps[w];
        let live = warp.groups.iter().fold(0, |live, group| live | group.mask);
        if mask & live & !active == 0 {
            return true;
        }
        warp.groups[at].wait = Wait::Lanes;
        false
    }

    /// Executes an instruction for `active` lanes of a group; whether others may have seen it.
    fn step(&mut self, w: usize, at: usize, inst: &Inst, active: u32) -> Result<bool, LaneFault> {
        let first = active.trailing_zeros() as usize % LANES;
        let mut seen = false;
        match &inst.kind {
            Kind::Op32 { op, dst, src, flush: false } => {
                let value = op(&self.get32(w, src[0]), &self.get32(w, src[1]), &self.get32(w, src[2]));
                self.put32(w, *dst, active, &value);
            }
            Kind::Op32 { op, dst, src, flush: true } => {
                let [a, b, c] = src.map(|src| self.get32(w, src).map(lanes::flush));
                let value = op(&a, &b, &c).map(lanes::flush);
                self.put32(w, *dst, active, &value);
            }
            Kind::Op64 { op, dst, src } => {
                let value = op(&self.get64(w, src[0]), &self.get64(w, src[1]), &self.get64(w, src[2]));
                self.put64(w, *dst, active, &value);
            }
            Kind::Convert { modifiers, to, from, dst, src } => {
                let modifiers: Vec<&str> = modifiers.iter().map(String::as_str).collect();
                let from_value = self.get64(w, *src);
                let mut value = [0; LANES];
                for lane in bits(active) {
                    let converted = lanes::convert(&modifiers, *to, *from, from_value[lane]);
                    value[lane] = converted.ok_or(LaneFault { kind: FaultKind::Unsupported, lane })?;
                }
                self.put64(w, *dst, active, &value);
            }
            Kind::Bfi { width, dst, src } => {
                let [a, b, start, count] = src.map(|src| self.get64(w, src));
                let value = std::array::from_fn(|l| lanes::bfi(a[l], b[l], start[l], count[l], *width));
                self.put64(w, *dst, active, &value);
            }
            Kind::Lop3 { dst, src, table } => {
                let [a, b, c] = src.map(|src| self.get32(w, src));
                let value = std::array::from_fn(|l| {
                    (0..8).filter(|i| table >> i & 1 == 1).fold(0, |value, i| {
                        let pick = |v: u32, bit: u32| if bit == 1 { v } else { !v };
                        value | (pick(a[l], i >> 2 & 1) & pick(b[l], i >> 1 & 1) & pick(c[l], i & 1))
                    })
                });
                self.put32(w, *dst, active, &value);
            }
            Kind::Compare { op, flush, p, q, src, with } => {
                let holds = self.compare(w, *op, *flush, *src);
                let combine = |value: u32, this: &Self| match with {
                    None => value,
                    Some((Logic::And, by)) => value & this.predicate(w, *by),
                    Some((Logic::Or, by)) => value | this.predicate(w, *by),
                    Some((Logic::Xor, by)) => value ^ this.predicate(w, *by),
                };
                let (yes, no) = (combine(holds, self), combine(!holds, self));
                if let Some(p) = p {
                    self.put_predicate(w, *p, active, yes);
                }
                if let Some(q) = q {
                    self.put_predicate(w, *q, active, no);
                }
            }
            Kind::Set { op, flush, float, dst, src } => {
                let holds = self.compare(w, *op, *flush, *src);
                let yes = if *float { 1f32.to_bits() } else { u32::MAX };
                self.put32(w, *dst, active, &std::array::from_fn(|l| if holds >> l & 1 == 1 { yes } else { 0 }));
            }
            Kind::Select { wide, dst, src, by } => {
                let by = self.predicate(w, *by);
                if *wide {
                    let [a, b] = src.map(|src| self.get64(w, src));
                    let value = std::array::from_fn(|l| if by >> l & 1 == 1 { a[l] } else { b[l] });
                    self.put64(w, *dst, active, &value);
                } else {
                    let [a, b] = src.map(|src| self.get32(w, src));
                    let value = std::array::from_fn(|l| if by >> l & 1 == 1 { a[l] } else { b[l] });
                    self.put32(w, *dst, active, &value);
                }
            }
            Kind::Logic { op, dst, src, invert, value } => {
                let constant = if *value { u32::MAX } else { 0 };
                let a = src[0].map_or(constant, |p| self.predicate(w, p));
                let b = src[1].map_or(0, |p| self.predicate(w, p));
                let value = match op {
                    Some(Logic::And) => a & b,
                    Some(Logic::Or) => a | b,
                    Some(Logic::Xor) => a ^ b,
                    None if *invert => !a,
                    None => a,
                };
                self.put_predicate(w, *dst, active, value);
            }
            Kind::Pack { dst, parts, bits } => {
                let mut value = [0u64; LANES];
                let mask = if *bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                for (i, part) in parts.iter().enumerate() {
                    let part = self.get64(w, *part);
                    for lane in 0..LANES {
                        value[lane] |= (part[lane] & mask) << (*bits as usize * i);
                    }
                }
                self.put64(w, *dst, active, &value);
            }
            Kind::Unpack { dst, src, bits } => {
                let value = self.get64(w, *src);
                let mask = if *bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                for (i, dst) in dst.iter().enumerate() {
                    self.put64(w, *dst, active, &value.map(|v| v >> (*bits as usize * i) & mask));
                }
            }
            Kind::ToGeneric { space, dst, src, back } => {
                let base = match space {
                    Space::Shared => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    _ => 0,
                };
                let value =
                    self.get64(w, *src).map(|v| if *back { v.wrapping_sub(base) } else { v.wrapping_add(base) });
                self.put64(w, *dst, active, &value);
            }
            Kind::Load { place, ty, dst } => {
                self.load(w, active, place, *ty, dst)?;
                seen = !matches!(place.space, Some(Space::Param | Space::Local | Space::Const));
            }
            Kind::Store { place, ty, src } => {
                self.store(w, active, place, *ty, src)?;
                seen = !matches!(place.space, Some(Space::Param | Space::Local));
            }
            Kind::Atomic { op, place, ty, dst, src } => {
                self.atomic(w, active, *op, place, *ty, *dst, *src)?;
                seen = true;
            }
            Kind::Branch { target } => {
                self.advance(w, at, active, *target);
                return Ok(false);
            }
            Kind::Exit => {
                let group = &mut self.warps[w].groups[at];
                group.mask &= !active;
                if group.mask == 0 {
                    self.warps[w].groups.remove(at);
                } else {
                    self.advance(w, at, 0, 0);
                }
                // Those who waited for the lanes that are gone look again.
                for group in &mut self.warps[w].groups {
                    if group.wait == Wait::Lanes {
                        group.wait = Wait::No;
                    }
                }
                return Ok(true);
            }
            Kind::Barrier { id, threads } => {
                if active == 0 {
                    self.advance(w, at, 0, 0);
                    return Ok(false);
                }
                let id = self.get32(w, *id)[first];
                let wanted = threads.map(|threads| self.get32(w, threads)[first]);
                self.barrier(w, at, active, id, wanted);
                return Ok(true);
            }
            Kind::WarpBarrier { mask } => {
                let mask = self.get32(w, *mask)[first];
                if !self.gather(w, at, active, mask) {
                    return Ok(false);
                }
                self.warps[w].epoch += 1;
            }
            Kind::Shuffle { mode, dst, valid, src, mask } => {
                let member = self.get32(w, *mask)[first];
                if !self.gather(w, at, active, member) {
                    return Ok(false);
                }
                let [a, b, c] = src.map(|src| self.get32(w, src));
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
                    value[lane] = if ok { a[from as usize % LANES] } else { a[lane] };
                    in_range |= u32::from(ok) << lane;
                }
                self.put32(w, *dst, active, &value);
                if let Some(p) = valid {
                    self.put_predicate(w, *p, active, in_range);
                }
                self.warps[w].epoch += 1;
            }
            Kind::Vote { mode, p, dst, by, mask } => {
                let member = self.get32(w, *mask)[first];
                if !self.gather(w, at, active, member) {
                    return Ok(false);
                }
                let among = active & member;
                let yes = self.predicate(w, *by) & among;
                let holds = match mode {
                    Vote::All => yes == among,
                    Vote::Any => yes != 0,
                    Vote::Uniform => yes == among || yes == 0,
                    Vote::Ballot => true,
                };
                match p {
                    Some(p) => self.put_predicate(w, *p, active, if holds { u32::MAX } else { 0 }),
                    None => self.put32(w, *dst, active, &[yes; LANES]),
                }
                self.warps[w].epoch += 1;
            }
            Kind::ActiveMask { dst } => self.put32(w, *dst, active, &[active; LANES]),
            Kind::Fence => seen = true,
            Kind::Nothing => {}
            Kind::Trap if active != 0 => {
                return Err(LaneFault { kind: FaultKind::Trap, lane: first });
            }
            Kind::Unsupported if active != 0 => {
                return Err(LaneFault { kind: FaultKind::Unsupported, lane: first });
            }
            Kind::Trap | Kind::Unsupported => {}
        }
        self.advance(w, at, 0, 0);
        Ok(seen)
    }

    fn compare(&self, w: usize, op: lanes::Compare, flush: bool, src: [Src; 2]) -> u32 {
        let [mut a, mut b] = src.map(|src| self.get64(w, src));
        if flush {
            for v in a.iter_mut().chain(&mut b) {
                *v = u64::from(lanes::flush(*v as u32));
            }
        }
        op(&a, &b)
    }

    fn barrier(&mut self, w: usize, at: usize, active: u32, id: u32, wanted: Option<u32>) {
        let group = self.warps[w].groups[at];
        if group.mask != active {
            // Lanes whose guard is off go on.
            self.warps[w].groups[at].mask = active;
            let rest = Group { pc: group.pc + 1, mask: group.mask & !active, wait: Wait::No };
            self.warps[w].groups.insert(at + 1, rest);
        }
        self.warps[w].groups[at].wait = Wait::Barrier(id);
        let wanted = wanted.unwrap_or(self.threads);
        let there = self.warps.iter().flat_map(|warp| &warp.groups);
        let there: u32 = there.filter(|g| g.wait == Wait::Barrier(id)).map(|g| g.mask.count_ones()).sum();
        if there < wanted {
            return;
        }
        self.counters.barriers += 1;
        if wanted == self.threads {
            for touch in &mut self.touches {
                (touch.writer, touch.reader) = Default::default();
            }
        }
        for w in 0..self.warps.len() {
            self.warps[w].epoch += 1;
            while let Some(at) = self.warps[w].groups.iter().position(|g| g.wait == Wait::Barrier(id)) {
                self.warps[w].groups[at].wait = Wait::No;
                self.advance(w, at, 0, 0);
            }
        }
    }

    /// A lane's addresses, resolved: the space and the address in it.
    fn resolve(space: Option<Space>, address: u64) -> (Space, u64) {
        match space {
            Some(space) => (space, address),
            None if (SHARED_WINDOW..SHARED_WINDOW + WINDOW).contains(&address) => {
                (Space::Shared, address - SHARED_WINDOW)
            }
            None if (LOCAL_WINDOW..LOCAL_WINDOW + WINDOW).contains(&address) => (Space::Local, address - LOCAL_WINDOW),
            None => (Space::Global, address),
        }
    }

    fn addresses(&self, w: usize, place: &Place) -> L64 {
        let base = place.base.map_or([0; LANES], |base| self.get64(w, base));
        base.map(|base| base.wrapping_add(place.offset as u64))
    }

    fn load(&mut self, w: usize, active: u32, place: &Place, ty: Type, dst: &[Dst]) -> Result<(), LaneFault> {
        let addresses = self.addresses(w, place);
        let size = ty.size();
        check_aligned(active, &addresses, size * dst.len())?;
        self.count(active, place.space, &addresses, size * dst.len(), false);
        for (i, &dst) in dst.iter().enumerate() {
            let mut value = [0u64; LANES];
            for lane in bits(active) {
                let address = addresses[lane].wrapping_add((i * size) as u64);
                let raw = self.read(w, lane, place.space, address, size).map_err(|kind| LaneFault { kind, lane })?;
                value[lane] = match ty {
                    Type::Signed(1) => raw as i8 as u64,
                    Type::Signed(2) => raw as i16 as u64,
                    Type::Signed(4) => raw as i32 as u64,
                    _ => raw,
                };
            }
            self.put64(w, dst, active, &value);
        }
        Ok(())
    }

    fn store(&mut self, w: usize, active: u32, place: &Place, ty: Type, src: &[Src]) -> Result<(), LaneFault> {
        let addresses = self.addresses(w, place);
        let size = ty.size();
        check_aligned(active, &addresses, size * src.len())?;
        self.count(active, place.space, &addresses, size * src.len(), true);
        for (i, &src) in src.iter().enumerate() {
            let value = self.get64(w, src);
            for lane in bits(active) {
                let address = addresses[lane].wrapping_add((i * size) as u64);
                let written = self.write(w, lane, place.space, address, size, value[lane]);
                written.map_err(|kind| LaneFault { kind, lane })?;
            }
        }
        Ok(())
    }

    fn read(&mut self, w: usize, lane: usize, space: Option<Space>, address: u64, size: usize) -> Access<u64> {
        let (space, address) = Self::resolve(space, address);
        let bytes = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        match space {
            Space::Global | Space::Const | Space::Reg => self.memory.load(address, size),
            Space::Param => {
                let at = address as usize;
                let found = self.grid.parameters.get(at..at + size);
                found.map(bytes).ok_or(FaultKind::OutOfBounds { space: "parameter", address, size, near: None })
            }
            Space::Local => {
                let start = self.local(lane, address, size)?;
                let warp = &self.warps[w];
                if warp.local_written[start..start + size].iter().any(|written| !written) {
                    return Err(FaultKind::Uninitialised { space: "local", address });
                }
                Ok(bytes(&warp.local[start..start + size]))
            }
            Space::Shared => {
                let start = self.shared_at(address, size)?;
                let me = (w as u32 * LANES as u32 + lane as u32 + 1, self.warps[w].epoch);
                for touch in &mut self.touches[start..start + size] {
                    if !touch.written {
                        return Err(FaultKind::Uninitialised { space: "shared", address });
                    }
                    if let Some(other) = conflict(touch.writer, me) {
                        return Err(FaultKind::SharedRace { address, other });
                    }
                    touch.reader = me;
                }
                Ok(bytes(&self.shared[start..start + size]))
            }
        }
    }

    fn write(
        &mut self,
        w: usize,
        lane: usize,
        space: Option<Space>,
        address: u64,
        size: usize,
        value: u64,
    ) -> Access<()> {
        let (space, address) = Self::resolve(space, address);
        match space {
            Space::Local => {
                let start = self.local(lane, address, size)?;
                let warp = &mut self.warps[w];
                warp.local[start..start + size].copy_from_slice(&value.to_le_bytes()[..size]);
                warp.local_written[start..start + size].fill(true);
                Ok(())
            }
            Space::Shared => {
                let start = self.shared_at(address, size)?;
                let me = (w as u32 * LANES as u32 + lane as u32 + 1, self.warps[w].epoch);
                for touch in &mut self.touches[start..start + size] {
                    if let Some(other) = conflict(touch.writer, me).or(conflict(touch.reader, me)) {
                        return Err(FaultKind::SharedRace { address, other });
                    }
                    touch.writer = me;
                    touch.written = true;
                }
                self.shared[start..start + size].copy_from_slice(&value.to_le_bytes()[..size]);
                Ok(())
            }
            _ => self.memory.store(address, size, value),
        }
    }

    /// Where a lane's local bytes are.
    fn local(&self, lane: usize, address: u64, size: usize) -> Access<usize> {
        let each = self.grid.kernel.local;
        if address as usize + size > each {
            return Err(FaultKind::OutOfBounds { space: "local", address, size, near: None });
        }
        if !address.is_multiple_of(size as u64) {
            return Err(FaultKind::Misaligned { address, size });
        }
        Ok(lane * each + address as usize)
    }

    fn shared_at(&self, address: u64, size: usize) -> Access<usize> {
        if address.saturating_add(size as u64) > self.shared.len() as u64 {
            let near = Some(format!("the block has {} bytes", self.shared.len()));
            return Err(FaultKind::OutOfBounds { space: "shared", address, size, near });
        }
        if !address.is_multiple_of(size as u64) {
            return Err(FaultKind::Misaligned { address, size });
        }
        Ok(address as usize)
    }

    /// Sectors and bank conflicts of a warp's access.
    fn count(&mut self, active: u32, space: Option<Space>, addresses: &L64, size: usize, write: bool) {
        let Some(lane) = bits(active).next() else {
            return;
        };
        match Self::resolve(space, addresses[lane]).0 {
            Space::Global => {
                let bytes = u64::from(active.count_ones()) * size as u64;
                *(if write { &mut self.counters.global_written } else { &mut self.counters.global_read }) += bytes;
                let mut sectors = [0u64; 4 * LANES];
                let mut count = 0;
                for lane in bits(active) {
                    let (from, to) = (addresses[lane] / 32, (addresses[lane] + size as u64 - 1) / 32);
                    for sector in from..=to {
                        if count < sectors.len() && !sectors[..count].contains(&sector) {
                            sectors[count] = sector;
                            count += 1;
                        }
                    }
                }
                self.counters.global_sectors += count as u64;
            }
            Space::Shared => {
                // Words of a bank beyond the first cost a cycle each; lanes that read the same word share it.
                let mut words: Vec<u64> = Vec::with_capacity(LANES);
                for lane in bits(active) {
                    let word = addresses[lane] / 4;
                    for word in word..word + (size as u64).div_ceil(4) {
                        if !words.contains(&word) {
                            words.push(word);
                        }
                    }
                }
                let mut banks = [0u64; 32];
                words.iter().for_each(|word| banks[(word % 32) as usize] += 1);
                let cycles = banks.iter().copied().max().unwrap_or(0);
                let least = (words.len() as u64).div_ceil(32);
                self.counters.bank_conflicts += cycles.saturating_sub(least.max(1));
            }
            _ => {}
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn atomic(
        &mut self,
        w: usize,
        active: u32,
        op: Atomic,
        place: &Place,
        ty: Type,
        dst: Dst,
        src: [Src; 2],
    ) -> Result<(), LaneFault> {
        let addresses = self.addresses(w, place);
        let size = ty.size();
        let [a, b] = src.map(|src| self.get64(w, src));
        let mut old = [0; LANES];
        for lane in bits(active) {
            let failed = |kind| LaneFault { kind, lane };
            let (space, address) = Self::resolve(place.space, addresses[lane]);
            let update = |now: u64| atomic_result(op, ty, now, a[lane], b[lane]);
            old[lane] = match space {
                Space::Shared => {
                    // Atomics do not race with each other; the bytes they touch count as written by all.
                    let start = self.shared_at(address, size).map_err(failed)?;
                    if self.touches[start..start + size].iter().any(|touch| !touch.written) {
                        return Err(failed(FaultKind::Uninitialised { space: "shared", address }));
                    }
                    let bytes = &mut self.shared[start..start + size];
                    let now = bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
                    bytes.copy_from_slice(&update(now).to_le_bytes()[..size]);
                    now
                }
                Space::Global => self.memory.update(address, size, update).map_err(failed)?,
                _ => return Err(failed(FaultKind::Unsupported)),
            };
        }
        self.put64(w, dst, active, &old);
        Ok(())
    }
}

/// A vector is aligned as a whole, though its elements are accessed one by one.
fn check_aligned(active: u32, addresses: &L64, size: usize) -> Result<(), LaneFault> {
    for lane in bits(active) {
        let address = addresses[lane];
        if !address.is_multiple_of(size as u64) {
            return Err(LaneFault { kind: FaultKind::Misaligned { address, size }, lane });
        }
    }
    Ok(())
}

/// The other thread of a race, if `mine` and `theirs` are of different threads that nothing orders.
fn conflict(theirs: (u32, u32), mine: (u32, u32)) -> Option<u32> {
    if theirs.0 == 0 || theirs.0 == mine.0 {
        return None;
    }
    let same_warp = (theirs.0 - 1) / LANES as u32 == (mine.0 - 1) / LANES as u32;
    if same_warp && theirs.1 != mine.1 { None } else { Some(theirs.0 - 1) }
}

fn atomic_result(op: Atomic, ty: Type, now: u64, a: u64, b: u64) -> u64 {
    let wide = ty.size() == 8;
    let clip = |value: u64| if wide { value } else { u64::from(value as u32) };
    let signed = |value: u64| {
        if wide { value as i64 } else { i64::from(value as i32) }
    };
    clip(match op {
        Atomic::Add => now.wrapping_add(a),
        Atomic::FloatAdd if wide => (f64::from_bits(now) + f64::from_bits(a)).to_bits(),
        Atomic::FloatAdd => u64::from((f32::from_bits(now as u32) + f32::from_bits(a as u32)).to_bits()),
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
