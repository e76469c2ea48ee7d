//! An instruction as its decoder sees it: the opcode's parts, and operands resolved.

use std::cell::{Cell, RefCell};

use crate::names::{Meaning, Names};
use crate::operand::{CARRY, Constant, Dst, Order, Place, Pred, Register, Special, Src};
use crate::poison::Flow;
use crate::syntax::{Instruction, Operand, Space, Type};

/// What a kernel does to memory, all its instructions together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Touches {
    /// log2 of the bytes of the smallest access to shared memory
    pub granule: u32,
    /// There are ordered accesses to global memory
    pub sequential: bool,
}

/// An instruction to decode.
#[derive(Debug)]
pub(crate) struct Line<'l> {
    /// The opcode's first part
    pub name: &'l str,
    /// The others
    pub modifiers: Vec<&'l str>,
    /// Those that are types
    pub types: Vec<Type>,
    pub operands: &'l [Operand],
    names: &'l Names<'l>,
    touches: &'l Cell<Touches>,
    /// What has been asked for of it
    flow: RefCell<Flow>,
}

impl<'l> Line<'l> {
    pub fn new(instruction: &'l Instruction, names: &'l Names<'l>, touches: &'l Cell<Touches>) -> Self {
        let modifiers: Vec<&str> = instruction.opcode[1..].iter().map(String::as_str).collect();
        let types = modifiers.iter().filter_map(|m| Type::parse(m)).collect();
        Self {
            name: &instruction.opcode[0],
            modifiers,
            types,
            operands: &instruction.operands,
            names,
            touches,
            flow: RefCell::default(),
        }
    }

    pub fn has(&self, wanted: &str) -> bool {
        self.modifiers.contains(&wanted)
    }

    /// The last type.
    pub fn ty(&self) -> Option<Type> {
        self.types.last().copied()
    }

    pub fn space(&self) -> Option<Space> {
        self.modifiers.iter().find_map(|m| {
            Some(match m.split("::").next()? {
                "global" => Space::Global,
                "shared" => Space::Shared,
                "local" => Space::Local,
                "const" => Space::Const,
                "param" => Space::Param,
                _ => return None,
            })
        })
    }

    /// How it is ordered, as an access to memory.
    pub fn order(&self) -> Order {
        if self.has("acq_rel") {
            Order::AcquireRelease
        } else if self.has("acquire") {
            Order::Acquire
        } else if self.has("release") {
            Order::Release
        } else if self.has("relaxed") || self.has("volatile") || self.has("mmio") {
            Order::Strong
        } else {
            Order::Weak
        }
    }

    /// It accesses memory, `size` bytes at a time.
    pub fn touches(&self, space: Option<Space>, size: usize, order: Order) {
        let mut all = self.touches.get();
        if matches!(space, None | Some(Space::Shared)) {
            all.granule = all.granule.min(size.ilog2());
        }
        all.sequential |= matches!(space, None | Some(Space::Global)) && order != Order::Weak;
        self.touches.set(all);
    }

    /// What has been asked for of it since this was asked last.
    pub fn take_flow(&self) -> Flow {
        self.flow.take()
    }

    fn read(&self, src: Src) -> Src {
        self.flow.borrow_mut().reads.extend(src.register());
        src
    }

    fn source(&self, operand: &Operand, ty: Type) -> Option<Src> {
        Some(self.read(match operand {
            Operand::Name(name) if name == "WARP_SZ" => Src::Imm(32),
            Operand::Name(name) => match self.names.meaning(name) {
                Some(Meaning::R32(r)) => Src::R32(r),
                Some(Meaning::R64(r)) => Src::R64(r),
                Some(Meaning::Address(_, address)) => Src::Imm(address),
                // The address of a `__grid_constant__` parameter, within the parameters.
                Some(Meaning::Parameter(start)) => Src::Imm(start as u64),
                Some(Meaning::Predicate(_)) => return None,
                None => self.names.constant(Constant::Special(Special::named(name)?), false),
            },
            Operand::Integer(value) => Src::Imm(match ty.size() {
                4 => u64::from(*value as u32),
                2 => u64::from(*value as u16),
                _ => *value as u64,
            }),
            Operand::F32(bits) if ty == Type::F64 => Src::Imm(f64::from(f32::from_bits(*bits)).to_bits()),
            Operand::F32(bits) => Src::Imm(u64::from(*bits)),
            Operand::F64(bits) if ty == Type::F32 => Src::Imm(u64::from((f64::from_bits(*bits) as f32).to_bits())),
            Operand::F64(bits) => Src::Imm(*bits),
            _ => return None,
        }))
    }

    fn destination(&self, operand: &Operand) -> Option<Dst> {
        let Operand::Name(name) = operand else { return None };
        let dst = match self.names.meaning(name) {
            None if name == "_" => Dst::None,
            Some(Meaning::R32(r)) => Dst::R32(r),
            Some(Meaning::R64(r)) => Dst::R64(r),
            _ => return None,
        };
        self.flow.borrow_mut().writes.extend(dst.register());
        Some(dst)
    }

    fn predicate_named(&self, name: &str) -> Option<u32> {
        match self.names.meaning(name)? {
            Meaning::Predicate(register) => Some(register),
            _ => None,
        }
    }

    fn predicate_written(&self, name: &str) -> Option<u32> {
        let p = self.predicate_named(name)?;
        self.flow.borrow_mut().writes.push(Register::Predicate(p));
        Some(p)
    }

    /// The source that operand `i` is.
    pub fn src(&self, i: usize, ty: Type) -> Option<Src> {
        self.source(self.operands.get(i)?, ty)
    }

    /// The same, in 32 bits.
    pub fn src32(&self, i: usize) -> Option<Src> {
        self.src(i, Type::Unsigned(4))
    }

    /// The sources of operand `i`, a vector or one.
    pub fn srcs(&self, i: usize, ty: Type) -> Option<Vec<Src>> {
        parts(self.operands.get(i)?).iter().map(|part| self.source(part, ty)).collect()
    }

    /// The register that a source is; of an immediate, one that holds it.
    pub fn in_register(&self, src: Src, wide: bool) -> Src {
        match src {
            Src::Imm(value) if wide => self.names.constant(Constant::Value(value), true),
            Src::Imm(value) => self.names.constant(Constant::Value(u64::from(value as u32)), false),
            register => register,
        }
    }

    pub fn dst(&self, i: usize) -> Option<Dst> {
        self.destination(self.operands.get(i)?)
    }

    /// The destinations of operand `i`, a vector or one.
    pub fn dsts(&self, i: usize) -> Option<Vec<Dst>> {
        parts(self.operands.get(i)?).iter().map(|part| self.destination(part)).collect()
    }

    /// `d|p`, or `d` alone.
    pub fn dst_and_predicate(&self, i: usize) -> Option<(Dst, Option<u32>)> {
        match self.operands.get(i)? {
            Operand::Pair(d, p) => {
                Some((self.destination(&Operand::Name(d.clone()))?, Some(self.predicate_written(p)?)))
            }
            d => Some((self.destination(d)?, None)),
        }
    }

    /// A predicate that it reads.
    pub fn predicate(&self, i: usize) -> Option<Pred> {
        let (name, negated) = match self.operands.get(i)? {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            _ => return None,
        };
        let register = self.predicate_named(name)?;
        self.flow.borrow_mut().reads.push(Register::Predicate(register));
        Some(Pred { register, negated })
    }

    /// A predicate that it writes.
    pub fn predicate_dst(&self, i: usize) -> Option<u32> {
        match self.operands.get(i)? {
            Operand::Name(name) => self.predicate_written(name),
            _ => None,
        }
    }

    /// `p|q`, or `p` alone, that it writes, either of which may be `_`.
    pub fn predicate_dsts(&self, i: usize) -> Option<[Option<u32>; 2]> {
        match self.operands.get(i)? {
            Operand::Pair(p, q) => Some([self.predicate_written(p), self.predicate_written(q)]),
            Operand::Name(p) => Some([self.predicate_written(p), None]),
            _ => None,
        }
    }

    /// It reads the carry, and writes it.
    pub fn carries(&self, reads: bool, writes: bool) {
        let mut flow = self.flow.borrow_mut();
        flow.reads.extend(reads.then_some(Register::Predicate(CARRY)));
        flow.writes.extend(writes.then_some(Register::Predicate(CARRY)));
    }

    /// The mask of lanes that operand `i` is.
    pub fn members(&self, i: usize) -> Option<Src> {
        let members = self.src32(i)?;
        self.flow.borrow_mut().uses.extend(members.register());
        Some(members)
    }

    pub fn integer(&self, i: usize) -> Option<i128> {
        match self.operands.get(i)? {
            Operand::Integer(value) => Some(*value),
            _ => None,
        }
    }

    fn based(&self, space: Option<Space>, base: Src, offset: i64) -> Place {
        self.flow.borrow_mut().uses.extend(base.register());
        Place { space, base: Some(base), offset }
    }

    pub fn place(&self, i: usize, space: Option<Space>) -> Option<Place> {
        let Operand::Address(base, offset) = self.operands.get(i)? else {
            return None;
        };
        let Some(name) = base else {
            return Some(Place { space, base: None, offset: *offset });
        };
        Some(match self.names.meaning(name)? {
            Meaning::R32(r) => self.based(space, Src::R32(r), *offset),
            Meaning::R64(r) => self.based(space, Src::R64(r), *offset),
            Meaning::Parameter(start) => Place { space: Some(Space::Param), base: None, offset: start as i64 + offset },
            Meaning::Address(actual, address) => {
                // `ld.param` of a call's parameter, which lies in local memory.
                let space = if space == Some(Space::Param) { Some(actual) } else { space };
                Place { space, base: None, offset: address as i64 + offset }
            }
            Meaning::Predicate(_) => return None,
        })
    }
}

/// The parts of a vector, or the operand itself.
fn parts(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(parts) => parts,
        one => std::slice::from_ref(one),
    }
}
