//! What the names of a kernel stand for, and the registers that it has.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::kernel::Registers;
use crate::operand::{CARRY, Constant, Src};
use crate::syntax::{Space, Type};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Meaning {
    R32(u32),
    R64(u32),
    Predicate(u32),
    /// An address in a space
    Address(Space, u64),
    /// A kernel's parameter, at an offset
    Parameter(usize),
}

/// The names that are known at a place of a kernel, and all its registers.
#[derive(Debug)]
pub(crate) struct Names<'s> {
    /// Addresses of the module's variables
    variables: &'s HashMap<String, (Space, u64)>,
    pub scopes: Vec<HashMap<String, Meaning>>,
    registers: Cell<Registers>,
    constants: RefCell<Vec<(Src, Constant)>>,
}

impl<'s> Names<'s> {
    pub fn new(variables: &'s HashMap<String, (Space, u64)>) -> Self {
        let registers = Registers { predicates: CARRY + 1, ..Registers::default() };
        Self { variables, scopes: vec![HashMap::new()], registers: Cell::new(registers), constants: RefCell::default() }
    }

    pub fn meaning(&self, name: &str) -> Option<Meaning> {
        if let Some(meaning) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            return Some(*meaning);
        }
        self.variables.get(name).map(|&(space, address)| Meaning::Address(space, address))
    }

    /// Gives a name of the innermost scope its meaning.
    pub fn define(&mut self, name: String, meaning: Meaning) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, meaning);
        }
    }

    /// A new register.
    pub fn register(&self, ty: Type) -> Meaning {
        let mut registers = self.registers.get();
        let next = |count: &mut u32| {
            *count += 1;
            *count - 1
        };
        let register = match ty {
            Type::Pred => Meaning::Predicate(next(&mut registers.predicates)),
            _ if ty.size() == 8 => Meaning::R64(next(&mut registers.r64)),
            _ => Meaning::R32(next(&mut registers.r32)),
        };
        self.registers.set(registers);
        register
    }

    /// The register that holds a constant, of 32 bits or of 64.
    pub fn constant(&self, constant: Constant, wide: bool) -> Src {
        let mut constants = self.constants.borrow_mut();
        let is_it = |(src, held): &&(Src, Constant)| *held == constant && matches!(src, Src::R64(_)) == wide;
        if let Some((src, _)) = constants.iter().find(is_it) {
            return *src;
        }
        let src = match self.register(Type::Bits(if wide { 8 } else { 4 })) {
            Meaning::R64(r) => Src::R64(r),
            Meaning::R32(r) => Src::R32(r),
            // Registers of bits are one or the other.
            _ => Src::Imm(0),
        };
        constants.push((src, constant));
        src
    }

    /// All registers, and those that hold constants.
    pub fn into_registers(self) -> (Registers, Vec<(Src, Constant)>) {
        (self.registers.get(), self.constants.into_inner())
    }
}
