//! Poison: a value that comes of reading what nobody has written. It goes where values go, register by register and lane by lane, and is a fault
//! when it reaches a result, an address or a branch; a value that nobody uses is none.

use crate::error::FaultKind;
use crate::operand::Register;

/// How poison passes an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// A lane's results are poisoned where one of its operands is
    Lanes,
    /// No operand may be
    Checked,
    /// The instruction sees to it
    Own,
}

/// What an instruction does to registers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flow {
    pub reads: Vec<Register>,
    pub writes: Vec<Register>,
    /// What makes addresses, and masks of lanes
    pub uses: Vec<Register>,
}

/// The lanes in which a register is poisoned, and where one of them has it from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taint {
    pub lanes: u32,
    pub origin: u32,
}

impl Taint {
    pub fn or(self, other: Self) -> Self {
        Self { lanes: self.lanes | other.lanes, origin: if self.lanes == 0 { other.origin } else { self.origin } }
    }

    pub fn of(self, lanes: u32) -> Self {
        Self { lanes: self.lanes & lanes, ..self }
    }

    /// The same in other lanes, if in any.
    pub fn spread(self, lanes: u32) -> Self {
        Self { lanes: if self.lanes == 0 { 0 } else { lanes }, ..self }
    }
}

/// A branch that only chooses what some registers are: all ways on from it meet at `join`, and on none of them is anything else done.
#[derive(Debug)]
pub(crate) struct Choice {
    pub join: u32,
    pub writes: Vec<Register>,
}

/// Lanes that are on their way from a branch that poison has decided to where its ways meet.
#[derive(Debug)]
struct Chosen {
    choice: Choice,
    taint: Taint,
}

/// Which read.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub pc: u32,
    pub what: FaultKind,
}

/// A warp's poisoned registers.
#[derive(Debug, Default)]
pub(crate) struct Poison {
    r32: Vec<Taint>,
    r64: Vec<Taint>,
    predicates: Vec<Taint>,
    /// How many registers are poisoned
    count: usize,
    origins: Vec<Origin>,
    chosen: Vec<Chosen>,
}

impl Poison {
    #[inline]
    pub fn is_any(&self) -> bool {
        self.count > 0 || !self.chosen.is_empty()
    }

    fn bank(&mut self, register: Register) -> (&mut Vec<Taint>, usize) {
        match register {
            Register::R32(r) => (&mut self.r32, r as usize),
            Register::R64(r) => (&mut self.r64, r as usize),
            Register::Predicate(r) => (&mut self.predicates, r as usize),
        }
    }

    pub fn of(&self, register: Register) -> Taint {
        let found = match register {
            Register::R32(r) => self.r32.get(r as usize),
            Register::R64(r) => self.r64.get(r as usize),
            Register::Predicate(r) => self.predicates.get(r as usize),
        };
        found.copied().unwrap_or_default()
    }

    pub fn union<'r>(&self, registers: impl IntoIterator<Item = &'r Register>) -> Taint {
        registers.into_iter().fold(Taint::default(), |all, &register| all.or(self.of(register)))
    }

    /// Some lanes of a register get a value that is poisoned in some of them.
    pub fn put(&mut self, register: Register, active: u32, taint: Taint) {
        let (bank, r) = self.bank(register);
        if bank.len() <= r {
            if taint.lanes & active == 0 {
                return;
            }
            bank.resize(r + 1, Taint::default());
        }
        let before = bank[r];
        let after = before.of(!active).or(taint.of(active));
        // What comes last tells more.
        bank[r] = if taint.lanes & active != 0 { Taint { origin: taint.origin, ..after } } else { after };
        self.count = self.count + usize::from(after.lanes != 0) - usize::from(before.lanes != 0);
    }

    /// Poison has decided for some lanes what registers will be.
    pub fn choose(&mut self, choice: Choice, taint: Taint) {
        self.chosen.push(Chosen { choice, taint });
    }

    /// Lanes are at an instruction: where ways meet, what has been chosen on them is poisoned.
    pub fn arrive(&mut self, pc: u32, lanes: u32) {
        let mut i = 0;
        while i < self.chosen.len() {
            let Chosen { choice, taint } = &mut self.chosen[i];
            let here = taint.of(if choice.join == pc { lanes } else { 0 });
            taint.lanes &= !here.lanes;
            if taint.lanes > 0 {
                i += 1;
            }
            if here.lanes == 0 {
                continue;
            }
            let writes = if taint.lanes > 0 { choice.writes.clone() } else { self.chosen.swap_remove(i).choice.writes };
            writes.into_iter().for_each(|register| self.put(register, here.lanes, here));
        }
    }

    /// A read at an instruction that gave poison: its number as an origin.
    pub fn begin(&mut self, pc: u32, what: FaultKind) -> u32 {
        let known = self.origins.iter().position(|origin| origin.pc == pc);
        let at = known.unwrap_or_else(|| {
            self.origins.push(Origin { pc, what });
            self.origins.len() - 1
        });
        at as u32
    }

    pub fn origin(&self, taint: Taint) -> &Origin {
        &self.origins[taint.origin as usize]
    }
}
