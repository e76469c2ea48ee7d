//! An instruction as its decoder sees it: the opcode's parts, and operands resolved.

use std::cell::Cell;

use crate::names::{Meaning, Names};
use crate::operand::{Constant, Dst, Order, Place, Pred, Special, Src};
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
}

impl<'l> Line<'l> {
    pub fn new(instruction: &'l Instruction, names: &'l Names<'l>, touches: &'l Cell<Touches>) -> Self {
        let modifiers: Vec<&str> = instruction.opcode[1..].iter().map(String::as_str).collect();
        let types = modifiers.iter().filter_map(|m| Type::parse(m)).collect();
        Self { name: &instruction.opcode[0], modifiers, types, operands: &instruction.operands, names, touches }
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

    fn source(&self, operand: &Operand, ty: Type) -> Option<Src> {
        Some(match operand {
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
        })
    }

    fn destination(&self, operand: &Operand) -> Option<Dst> {
        match operand {
            Operand::Name(name) if name == "_" => Some(Dst::None),
            Operand::Name(name) => match self.names.meaning(name)? {
                Meaning::R32(r) => Some(Dst::R32(r)),
                Meaning::R64(r) => Some(Dst::R64(r)),
                _ => None,
            },
            _ => None,
        }
    }

    fn predicate_named(&self, name: &str, negated: bool) -> Option<Pred> {
        match self.names.meaning(name)? {
            Meaning::Predicate(register) => Some(Pred { register, negated }),
            _ => None,
        }
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
                let p = self.predicate_named(p, false)?;
                Some((self.destination(&Operand::Name(d.clone()))?, Some(p.register)))
            }
            d => Some((self.destination(d)?, None)),
        }
    }

    pub fn predicate(&self, i: usize) -> Option<Pred> {
        match self.operands.get(i)? {
            Operand::Name(name) => self.predicate_named(name, false),
            Operand::Not(name) => self.predicate_named(name, true),
            _ => None,
        }
    }

    /// `p|q`, or `p` alone, either of which may be `_`.
    pub fn predicates(&self, i: usize) -> Option<[Option<u32>; 2]> {
        let register = |name: &String| self.predicate_named(name, false).map(|p| p.register);
        match self.operands.get(i)? {
            Operand::Pair(p, q) => Some([register(p), register(q)]),
            Operand::Name(p) => Some([register(p), None]),
            _ => None,
        }
    }

    pub fn integer(&self, i: usize) -> Option<i128> {
        match self.operands.get(i)? {
            Operand::Integer(value) => Some(*value),
            _ => None,
        }
    }

    pub fn place(&self, i: usize, space: Option<Space>) -> Option<Place> {
        let Operand::Address(base, offset) = self.operands.get(i)? else {
            return None;
        };
        let Some(name) = base else {
            return Some(Place { space, base: None, offset: *offset });
        };
        Some(match self.names.meaning(name)? {
            Meaning::R32(r) => Place { space, base: Some(Src::R32(r)), offset: *offset },
            Meaning::R64(r) => Place { space, base: Some(Src::R64(r)), offset: *offset },
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
