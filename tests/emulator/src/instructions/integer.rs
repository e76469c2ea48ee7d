//! Arithmetic of integers: 16, 32 and 64 bits, and longer ones by carries.

use super::lanewise::{self, Op, has};
use super::{Decoded, code};
use crate::lanes::{LANES, Lanes};
use crate::line::Line;
use crate::operand::{CARRY, Src};
use crate::syntax::Type;

pub(super) fn decode(line: &Line) -> Decoded {
    if line.has("cc") || matches!(line.name, "addc" | "subc" | "madc") {
        carry(line)
    } else {
        lanewise::decode(line, op32, op64)
    }
}

/// What there is for every width, signed and not. A product of twice the width is of the types of twice the width.
macro_rules! any_width {
    ($op:ident, $name:expr, $modifiers:expr, $signed:expr, $unsigned:ident, $int:ident, $twice:ident, $twice_int:ident) => {
        match ($name, $signed) {
            ("add", _) => $op!(|a, b, c| a.wrapping_add(b)),
            ("sub", _) => $op!(|a, b, c| a.wrapping_sub(b)),
            ("mul", _) if has($modifiers, "lo") => $op!(|a, b, c| a.wrapping_mul(b)),
            ("mul", false) if has($modifiers, "hi") => {
                $op!(|a, b, c| (($twice::from(a) * $twice::from(b)) >> $unsigned::BITS) as $unsigned)
            }
            ("mul", true) if has($modifiers, "hi") => {
                $op!(|a, b, c| (($twice_int::from(a as $int) * $twice_int::from(b as $int)) >> $unsigned::BITS)
                    as $unsigned)
            }
            ("mad", _) if has($modifiers, "lo") => $op!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            ("mad", false) if has($modifiers, "hi") => {
                $op!(|a, b, c| ((($twice::from(a) * $twice::from(b)) >> $unsigned::BITS) as $unsigned).wrapping_add(c))
            }
            ("mad", true) if has($modifiers, "hi") => $op!(|a, b, c| {
                let product = $twice_int::from(a as $int) * $twice_int::from(b as $int);
                ((product >> $unsigned::BITS) as $unsigned).wrapping_add(c)
            }),
            ("div", false) => $op!(|a, b, c| a.checked_div(b).unwrap_or($unsigned::MAX)),
            ("div", true) => {
                $op!(|a, b, c| if b == 0 { $unsigned::MAX } else { (a as $int).wrapping_div(b as $int) as $unsigned })
            }
            ("rem", false) => $op!(|a, b, c| if b == 0 { a } else { a % b }),
            ("rem", true) => $op!(|a, b, c| if b == 0 { a } else { (a as $int).wrapping_rem(b as $int) as $unsigned }),
            ("min", false) => $op!(|a, b, c| a.min(b)),
            ("max", false) => $op!(|a, b, c| a.max(b)),
            ("min", true) => $op!(|a, b, c| (a as $int).min(b as $int) as $unsigned),
            ("max", true) => $op!(|a, b, c| (a as $int).max(b as $int) as $unsigned),
            ("abs", true) => $op!(|a, b, c| (a as $int).unsigned_abs()),
            ("neg", true) => $op!(|a, b, c| a.wrapping_neg()),
            ("sad", false) => $op!(|a, b, c| c.wrapping_add(a.abs_diff(b))),
            ("sad", true) => $op!(|a, b, c| c.wrapping_add((a as $int).abs_diff(b as $int))),
            _ => return None,
        }
    };
}

fn is_signed(ty: Type) -> Option<bool> {
    match ty {
        Type::Signed(_) => Some(true),
        Type::Unsigned(_) => Some(false),
        _ => None,
    }
}

fn op32(name: &str, modifiers: &[&str], ty: Type) -> Option<Op<u32>> {
    let (signed, size) = (is_signed(ty)?, ty.size());
    Some(match (name, signed, size) {
        ("add", true, 4) if has(modifiers, "sat") => op32!(|a, b, c| (a as i32).saturating_add(b as i32) as u32),
        ("sub", true, 4) if has(modifiers, "sat") => op32!(|a, b, c| (a as i32).saturating_sub(b as i32) as u32),
        _ if has(modifiers, "sat") => return None,
        ("mul", false, 2) if has(modifiers, "wide") => op32!(|a, b, c| (a & 0xffff) * (b & 0xffff)),
        ("mul", true, 2) if has(modifiers, "wide") => {
            op32!(|a, b, c| (i32::from(a as i16) * i32::from(b as i16)) as u32)
        }
        ("mad", false, 2) if has(modifiers, "wide") => {
            op32!(|a, b, c| ((a & 0xffff) * (b & 0xffff)).wrapping_add(c))
        }
        ("mad", true, 2) if has(modifiers, "wide") => {
            op32!(|a, b, c| ((i32::from(a as i16) * i32::from(b as i16)) as u32).wrapping_add(c))
        }
        (_, _, 4) => any_width!(op32, name, modifiers, signed, u32, i32, u64, i64),
        (_, _, 2) => any_width!(op16, name, modifiers, signed, u16, i16, u32, i32),
        _ => return None,
    })
}

fn op64(name: &str, modifiers: &[&str], ty: Type) -> Option<Op<u64>> {
    let (signed, size) = (is_signed(ty)?, ty.size());
    Some(match (name, signed, size) {
        ("mul", false, 4) if has(modifiers, "wide") => op64!(|a, b, c| a * b),
        ("mul", true, 4) if has(modifiers, "wide") => {
            op64!(|a, b, c| (i64::from(a as i32) * i64::from(b as i32)) as u64)
        }
        ("mad", false, 4) if has(modifiers, "wide") => op64!(|a, b, c| (a * b).wrapping_add(c)),
        ("mad", true, 4) if has(modifiers, "wide") => {
            op64!(|a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c))
        }
        (_, _, 8) => any_width!(op64, name, modifiers, signed, u64, i64, u128, i128),
        _ => return None,
    })
}

/// What extended-precision arithmetic does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extended {
    Add,
    Sub,
    /// The low half of a product, and a sum
    MadLow,
    /// The high half
    MadHigh,
}

/// Extended-precision arithmetic, with the carry bit of each lane.
fn carry(line: &Line) -> Decoded {
    let ty = line.ty()?;
    let op = match line.name {
        "add" | "addc" => Extended::Add,
        "sub" | "subc" => Extended::Sub,
        "mad" | "madc" if line.has("lo") => Extended::MadLow,
        "mad" | "madc" if line.has("hi") => Extended::MadHigh,
        _ => return None,
    };
    let (bits, signed) = (8 * ty.size() as u32, matches!(ty, Type::Signed(_)));
    let (carry_in, carry_out) = (line.name.ends_with('c'), line.has("cc"));
    line.carries(carry_in, carry_out);
    let third = if line.operands.len() > 3 { line.src(3, ty)? } else { Src::Imm(0) };
    let (dst, src) = (line.dst(0)?, [line.src(1, ty)?, line.src(2, ty)?, third]);
    code(move |step| {
        let (warp, active) = (&mut *step.warp, step.active);
        let [a, b, c] = src.map(|src| warp.get64(src));
        let low = u128::from(u64::MAX >> (64 - bits));
        let (mut value, mut carry) = ([0; LANES], 0);
        for lane in Lanes(active) {
            let one = u128::from(carry_in && warp.predicates[CARRY as usize] >> lane & 1 == 1);
            let [a, b, c] = [a, b, c].map(|v| u128::from(v[lane]) & low);
            let wide = |v: u128| if signed { ((v << (128 - bits)) as i128) >> (128 - bits) } else { v as i128 };
            let sum = match op {
                Extended::Add => a + b + one,
                // A borrow shows in the bit above.
                Extended::Sub => a.wrapping_sub(b).wrapping_sub(one),
                Extended::MadLow => (a.wrapping_mul(b) & low) + c + one,
                Extended::MadHigh => ((wide(a).wrapping_mul(wide(b)) >> bits) as u128 & low) + c + one,
            };
            value[lane] = (sum & low) as u64;
            carry |= ((sum >> bits & 1) as u32) << lane;
        }
        warp.put(dst, active, &value);
        if carry_out {
            warp.put_predicate(CARRY, active, carry);
        }
    })
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::{s, t};
    vec![
        ("add.s32 d32, a32, b32", s(i32::MAX), 1, 0, s(i32::MIN)),
        ("add.sat.s32 d32, a32, b32", s(i32::MAX), 1, 0, s(i32::MAX)),
        ("add.u16 d16, a16, b16", 0xffff, 2, 0, 1),
        ("add.u64 d64, a64, b64", u64::MAX, 2, 0, 1),
        ("sub.s32 d32, a32, b32", 3, 5, 0, s(-2)),
        ("sub.sat.s32 d32, a32, b32", s(i32::MIN), 1, 0, s(i32::MIN)),
        ("sub.s64 d64, a64, b64", 0, 1, 0, u64::MAX),
        ("mul.lo.u32 d32, a32, b32", 0x1_0001, 0x1_0001, 0, 0x2_0001),
        ("mul.hi.u32 d32, a32, b32", 0xffff_ffff, 0xffff_ffff, 0, 0xffff_fffe),
        ("mul.hi.s32 d32, a32, b32", s(-1), s(5), 0, s(-1)),
        ("mul.wide.s32 d64, a32, b32", s(-3), s(7), 0, -21i64 as u64),
        ("mul.wide.u32 d64, a32, b32", s(-1), 2, 0, 0x1_ffff_fffe),
        ("mul.wide.s16 d32, a16, b16", t(-3), t(300), 0, s(-900)),
        ("mul.wide.u16 d32, a16, b16", 0xffff, 0xffff, 0, 0xfffe_0001),
        ("mul.hi.u64 d64, a64, b64", 1 << 63, 6, 0, 3),
        ("mul.hi.s64 d64, a64, b64", -1i64 as u64, 6, 0, u64::MAX),
        ("mul.lo.s16 d16, a16, b16", 300, 300, 0, 90_000 & 0xffff),
        ("mad.lo.s32 d32, a32, b32, c32", 7, s(-3), 1, s(-20)),
        ("mad.hi.u32 d32, a32, b32, c32", 1 << 31, 4, 5, 7),
        ("mad.hi.s32 d32, a32, b32, c32", s(i32::MIN), 4, 5, 3),
        ("mad.wide.u32 d64, a32, b32, c64", s(-1), s(-1), 1, 0xffff_fffe_0000_0002),
        ("mad.wide.s32 d64, a32, b32, c64", s(-1), s(5), 3, -2i64 as u64),
        ("mad.lo.s64 d64, a64, b64, c64", 1 << 40, 1 << 30, 9, 9),
        ("sad.u32 d32, a32, b32, c32", 3, 10, 100, 107),
        ("sad.s32 d32, a32, b32, c32", s(-3), 10, 100, 113),
        ("div.s32 d32, a32, b32", s(-7), 2, 0, s(-3)),
        ("div.s32 d32, a32, b32", s(i32::MIN), s(-1), 0, s(i32::MIN)),
        ("div.u32 d32, a32, b32", 7, 2, 0, 3),
        ("div.u16 d16, a16, b16", 0x1_0007, 2, 0, 3),
        ("div.s64 d64, a64, b64", -7i64 as u64, 2, 0, -3i64 as u64),
        ("rem.s32 d32, a32, b32", s(-7), 3, 0, s(-1)),
        ("rem.u64 d64, a64, b64", 7, 4, 0, 3),
        ("abs.s32 d32, a32", s(-9), 0, 0, 9),
        ("abs.s64 d64, a64", -9i64 as u64, 0, 0, 9),
        ("neg.s32 d32, a32", 9, 0, 0, s(-9)),
        ("neg.s16 d16, a16", 9, 0, 0, t(-9)),
        ("min.s32 d32, a32, b32", s(-1), 1, 0, s(-1)),
        ("min.u32 d32, a32, b32", s(-1), 1, 0, 1),
        ("max.s64 d64, a64, b64", -1i64 as u64, 1, 0, 1),
        ("max.u16 d16, a16, b16", 0xffff, 1, 0, 0xffff),
        ("max.s16 d16, a16, b16", 0xffff, 1, 0, 1),
        ("add.cc.u32 e32, a32, b32; addc.u32 d32, 0, 0", s(-1), 1, 0, 1),
        ("add.cc.u32 e32, a32, b32; addc.cc.u32 e32, a32, 0; addc.u32 d32, 5, 0", s(-1), 1, 0, 6),
        ("sub.cc.u32 e32, a32, b32; subc.u32 d32, 5, 0", 1, 2, 0, 4),
        ("add.cc.u64 i, a64, b64; addc.u64 d64, c64, 0", u64::MAX, 1, 4, 5),
        ("mad.lo.cc.u32 e32, a32, b32, c32; madc.hi.u32 d32, a32, b32, 0", s(-1), s(-1), s(-1), s(-1)),
    ]
}
