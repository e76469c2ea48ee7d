//! Operations on registers, lane by lane: functions over 32 lanes, chosen once when a kernel is decoded. The compiler vectorises their loops.

use super::numbers::{brain, brain_op, flush, half, half_op};
use super::{Decoded, code};
use crate::lanes::LANES;
use crate::line::Line;
use crate::operand::{Dst, Src};
use crate::syntax::Type;
use crate::warp::Word;

/// Three operands to a result, all of one width
pub(super) type Op<T> = fn(&[T; LANES], &[T; LANES], &[T; LANES]) -> [T; LANES];

/// An operation by its name, its modifiers and its type.
pub(super) type Find<T> = fn(&str, &[&str], Type) -> Option<Op<T>>;

/// An operation on all lanes from what it does to one.
macro_rules! lanewise {
    ($lane:ty, |$a:ident, $b:ident, $c:ident| $value:expr) => {{
        type All = [$lane; crate::lanes::LANES];
        fn lanes(a: &All, b: &All, c: &All) -> All {
            let mut d = [0; crate::lanes::LANES];
            for i in 0..crate::lanes::LANES {
                let ($a, $b, $c) = (a[i], b[i], c[i]);
                let _ = ($a, $b, $c);
                d[i] = $value;
            }
            d
        }
        lanes as crate::instructions::lanewise::Op<$lane>
    }};
}

macro_rules! op32 {
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {
        lanewise!(u32, |$a, $b, $c| $value)
    };
}

macro_rules! op64 {
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {
        lanewise!(u64, |$a, $b, $c| $value)
    };
}

/// A 16-bit result of 16-bit operands.
macro_rules! op16 {
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {
        lanewise!(u32, |$a, $b, $c| u32::from({
            let ($a, $b, $c) = ($a as u16, $b as u16, $c as u16);
            let _ = ($a, $b, $c);
            let value: u16 = $value;
            value
        }))
    };
}

/// Whether a modifier is among an opcode's.
pub(super) fn has(modifiers: &[&str], wanted: &str) -> bool {
    modifiers.contains(&wanted)
}

/// What becomes of operands and results of an operation on floating-point numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Finish {
    ty: Type,
    /// Subnormal f32 are zero
    flush: bool,
    /// Results go to [0, 1], NaN to 0
    saturate: bool,
    /// Negative results go to 0
    relu: bool,
}

impl Finish {
    /// None if there is nothing to do.
    pub fn new(modifiers: &[&str], ty: Type) -> Option<Self> {
        let float = matches!(ty, Type::F32 | Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2);
        let flush = ty == Type::F32 && has(modifiers, "ftz");
        let (saturate, relu) = (float && has(modifiers, "sat"), has(modifiers, "relu"));
        (flush || saturate || relu).then_some(Self { ty, flush, saturate, relu })
    }

    pub fn operand(self, bits: u32) -> u32 {
        if self.flush { flush(bits) } else { bits }
    }

    pub fn result(self, bits: u32) -> u32 {
        let clamp = |value: f64| {
            let value = if self.saturate { if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) } } else { value };
            // −0 is not below 0, and goes to +0 all the same.
            if self.relu && value <= 0.0 { 0.0 } else { value }
        };
        if !self.saturate && !self.relu {
            return self.operand(bits);
        }
        match self.ty {
            Type::F32 => (clamp(f64::from(f32::from_bits(self.operand(bits)))) as f32).to_bits(),
            Type::F16 => half_op(clamp(half(bits))),
            Type::F16x2 => half_op(clamp(half(bits))) | half_op(clamp(half(bits >> 16))) << 16,
            Type::Bf16 => brain_op(clamp(brain(bits))),
            _ => brain_op(clamp(brain(bits))) | brain_op(clamp(brain(bits >> 16))) << 16,
        }
    }
}

/// The modifiers of operations on registers: what each means is known, or the instruction is not.
const KNOWN: [&str; 25] = [
    "rn", "rz", "rm", "rp", "ftz", "sat", "relu", "lo", "hi", "wide", "approx", "full", "l", "r", "wrap", "clamp",
    "NaN", "shiftamt", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16", "noftz",
];

/// Decodes `op.modifiers.type d, a, b, c`, with as many operands as there are.
pub(super) fn decode(line: &Line, op32: Find<u32>, op64: Find<u64>) -> Decoded {
    let (ty, modifiers) = (line.ty()?, &line.modifiers);
    let wide = ty.size() == 8 || (line.has("wide") && ty.size() == 4);
    if wide {
        plain(op64(line.name, modifiers, ty)?, line.dst(0)?, sources(line, ty, true)?)
    } else {
        let op = op32(line.name, modifiers, ty)?;
        finished(op, line.dst(0)?, sources(line, ty, false)?, Finish::new(modifiers, ty))
    }
}

/// For a family that has operations of at most 32 bits only.
pub(super) fn no64(_name: &str, _modifiers: &[&str], _ty: Type) -> Option<Op<u64>> {
    None
}

/// An operation, with what becomes of its operands and its result.
pub(super) fn finished(op: Op<u32>, dst: Dst, src: [Src; 3], finish: Option<Finish>) -> Decoded {
    let Some(finish) = finish else { return plain(op, dst, src) };
    code(move |step| {
        let [a, b, c] = src.map(|src| step.warp.get(src).map(|bits| finish.operand(bits)));
        let value = op(&a, &b, &c).map(|bits| finish.result(bits));
        step.warp.put(dst, step.active, &value);
    })
}

fn plain<T: Word>(op: Op<T>, dst: Dst, src: [Src; 3]) -> Decoded {
    // Mostly its operands are where they can be read without a copy.
    if let [Some(a), Some(b), Some(c)] = src.map(T::register) {
        return code(move |step| {
            let bank = T::bank(step.warp);
            let value = op(&bank[a as usize], &bank[b as usize], &bank[c as usize]);
            step.warp.put(dst, step.active, &value);
        });
    }
    code(move |step| {
        let [a, b, c] = src.map(|src| step.warp.get(src));
        step.warp.put(dst, step.active, &op(&a, &b, &c));
    })
}

fn sources(line: &Line, ty: Type, wide: bool) -> Option<[Src; 3]> {
    let known = |m: &&str| Type::parse(m).is_some() || KNOWN.contains(m);
    if !line.modifiers.iter().all(known) || line.operands.len() > 4 {
        return None;
    }
    let mut src = [Src::Imm(0); 3];
    for (i, src) in src.iter_mut().enumerate().take(line.operands.len() - 1) {
        // Shift counts, and positions and lengths of fields, are 32 bits whatever the type is.
        let count = matches!((line.name, i), ("shl" | "shr", 1) | ("bfe", 1 | 2) | ("shf", 2));
        *src = line.src(i + 1, if count { Type::Unsigned(4) } else { ty })?;
    }
    Some(src.map(|src| line.in_register(src, wide)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturation_and_relu() {
        let finish = |modifiers: &[&str], ty, bits| Finish::new(modifiers, ty).unwrap().result(bits);
        let f = |v: f32| v.to_bits();
        assert_eq!(finish(&["sat"], Type::F32, f(1.5)), f(1.0));
        assert_eq!(finish(&["sat"], Type::F32, f(f32::NAN)), f(0.0));
        assert_eq!(finish(&["sat"], Type::F32, f(-3.0)), f(0.0));
        assert_eq!(finish(&["relu"], Type::F16, 0xc000), 0);
        assert_eq!(finish(&["relu"], Type::Bf16x2, 0xc000_3f80), 0x3f80);
        assert!(Finish::new(&["rn"], Type::F32).is_none());
    }
}
