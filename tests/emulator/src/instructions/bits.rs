//! Bits and bytes: logic, shifts, fields, permutations, counts.

use super::lanewise::{self, Op, has};
use super::{Decoded, code};
use crate::lanes::{L32, L64};
use crate::line::Line;
use crate::syntax::Type;

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "bfi" => {
            let (ty, dst) = (line.ty()?, line.dst(0)?);
            let src = [line.src(1, ty)?, line.src(2, ty)?, line.src32(3)?, line.src32(4)?];
            let width = 8 * ty.size() as u64;
            code(move |step| {
                let [a, b, start, count] = src.map(|src| step.warp.get64(src));
                let value: L64 = std::array::from_fn(|l| insert(a[l], b[l], start[l], count[l], width));
                step.warp.put(dst, step.active, &value);
            })
        }
        // Any function of three bits: bit i of the table is the result where a, b and c have the bits of i, a's the highest.
        "lop3" => {
            let (dst, table) = (line.dst(0)?, line.integer(4)? as u32);
            let src = [line.src32(1)?, line.src32(2)?, line.src32(3)?];
            code(move |step| {
                let [a, b, c] = src.map(|src| step.warp.get32(src));
                let value: L32 = std::array::from_fn(|l| {
                    (0..8).filter(|i| table >> i & 1 == 1).fold(0, |value, i| {
                        let pick = |v: u32, bit: u32| if bit == 1 { v } else { !v };
                        value | (pick(a[l], i >> 2 & 1) & pick(b[l], i >> 1 & 1) & pick(c[l], i & 1))
                    })
                });
                step.warp.put(dst, step.active, &value);
            })
        }
        _ => lanewise::decode(line, op32, op64),
    }
}

/// What there is for 32 and for 64 bits.
macro_rules! both_widths {
    ($op:ident, $name:expr, $modifiers:expr, $ty:expr, $unsigned:ident, $int:ident) => {
        match ($name, $ty) {
            ("and", Type::Bits(_)) => $op!(|a, b, c| a & b),
            ("or", Type::Bits(_)) => $op!(|a, b, c| a | b),
            ("xor", Type::Bits(_)) => $op!(|a, b, c| a ^ b),
            ("not", Type::Bits(_)) => $op!(|a, b, c| !a),
            ("cnot", Type::Bits(_)) => $op!(|a, b, c| $unsigned::from(a == 0)),
            ("shl", Type::Bits(_)) => $op!(|a, b, c| a.checked_shl(b as u32).unwrap_or(0)),
            ("shr", Type::Bits(_) | Type::Unsigned(_)) => $op!(|a, b, c| a.checked_shr(b as u32).unwrap_or(0)),
            ("shr", Type::Signed(_)) => {
                $op!(|a, b, c| ((a as $int) >> b.min($unsigned::from($unsigned::BITS - 1))) as $unsigned)
            }
            ("popc", Type::Bits(_)) => $op!(|a, b, c| $unsigned::from(a.count_ones())),
            ("clz", Type::Bits(_)) => $op!(|a, b, c| $unsigned::from(a.leading_zeros())),
            ("brev", Type::Bits(_)) => $op!(|a, b, c| a.reverse_bits()),
            ("bfind", Type::Unsigned(_)) if has($modifiers, "shiftamt") => {
                $op!(|a, b, c| if a == 0 { $unsigned::MAX } else { $unsigned::from(a.leading_zeros()) })
            }
            ("bfind", Type::Unsigned(_)) => $op!(|a, b, c| highest(u64::from(a)) as $unsigned),
            ("bfind", Type::Signed(_)) if !has($modifiers, "shiftamt") => {
                $op!(|a, b, c| highest(u64::from(if (a as $int) < 0 { !a } else { a })) as $unsigned)
            }
            ("bfe", Type::Unsigned(_)) => {
                $op!(|a, b, c| field(u64::from(a), b as u32, c as u32, $unsigned::BITS, false) as $unsigned)
            }
            ("bfe", Type::Signed(_)) => {
                $op!(|a, b, c| field(u64::from(a), b as u32, c as u32, $unsigned::BITS, true) as $unsigned)
            }
            _ => return None,
        }
    };
}

fn op32(name: &str, modifiers: &[&str], ty: Type) -> Option<Op<u32>> {
    use Type::{Bits, Signed, Unsigned};
    Some(match (name, ty) {
        ("and", Bits(2)) => op16!(|a, b, c| a & b),
        ("or", Bits(2)) => op16!(|a, b, c| a | b),
        ("xor", Bits(2)) => op16!(|a, b, c| a ^ b),
        ("not", Bits(2)) => op16!(|a, b, c| !a),
        ("cnot", Bits(2)) => op16!(|a, b, c| u16::from(a == 0)),
        // Counts have 32 bits.
        ("shl", Bits(2)) => op32!(|a, b, c| a.checked_shl(b).unwrap_or(0) & 0xffff),
        ("shr", Bits(2) | Unsigned(2)) => op32!(|a, b, c| (a & 0xffff).checked_shr(b).unwrap_or(0)),
        ("shr", Signed(2)) => op32!(|a, b, c| u32::from((i32::from(a as i16) >> b.min(15)) as u16)),
        ("prmt", Bits(4)) => {
            if has(modifiers, "f4e") {
                op32!(|a, b, c| permute(a, b, [0x3210, 0x4321, 0x5432, 0x6543][c as usize & 3]))
            } else if has(modifiers, "b4e") {
                op32!(|a, b, c| permute(a, b, [0x5670, 0x6701, 0x7012, 0x0123][c as usize & 3]))
            } else if has(modifiers, "rc8") {
                op32!(|a, b, c| permute(a, b, 0x1111 * (c & 3)))
            } else if has(modifiers, "ecl") {
                op32!(|a, b, c| permute(a, b, [0x3210, 0x3211, 0x3222, 0x3333][c as usize & 3]))
            } else if has(modifiers, "ecr") {
                op32!(|a, b, c| permute(a, b, [0x0000, 0x1110, 0x2210, 0x3210][c as usize & 3]))
            } else if has(modifiers, "rc16") {
                op32!(|a, b, c| permute(a, b, [0x1010, 0x3232, 0x1010, 0x3232][c as usize & 3]))
            } else {
                op32!(|a, b, c| permute(a, b, c))
            }
        }
        ("shf", Bits(4)) => match (has(modifiers, "l"), has(modifiers, "wrap")) {
            (true, true) => op32!(|a, b, c| (funnel(a, b) << (c & 31) >> 32) as u32),
            (true, false) => op32!(|a, b, c| (funnel(a, b) << c.min(32) >> 32) as u32),
            (false, true) => op32!(|a, b, c| (funnel(a, b) >> (c & 31)) as u32),
            (false, false) => op32!(|a, b, c| (funnel(a, b) >> c.min(32)) as u32),
        },
        (_, Bits(4) | Unsigned(4) | Signed(4)) => both_widths!(op32, name, modifiers, ty, u32, i32),
        _ => return None,
    })
}

fn op64(name: &str, modifiers: &[&str], ty: Type) -> Option<Op<u64>> {
    if ty.size() != 8 {
        return None;
    }
    Some(both_widths!(op64, name, modifiers, ty, u64, i64))
}

/// Where the highest bit is that is set, or all ones.
fn highest(a: u64) -> u64 {
    if a == 0 { u64::MAX } else { u64::from(63 - a.leading_zeros()) }
}

fn funnel(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// `bfi`: bits of a into b at `start`, `count` of them
fn insert(a: u64, b: u64, start: u64, count: u64, width: u64) -> u64 {
    let (start, count) = (start & 0xff, count & 0xff);
    if start >= width || count == 0 {
        return b;
    }
    let count = count.min(width - start);
    let mask = if count == 64 { u64::MAX } else { (1 << count) - 1 };
    (b & !(mask << start)) | (a & mask) << start
}

/// `bfe`: `count` bits of a from `start` on, extended by their sign
fn field(a: u64, start: u32, count: u32, width: u32, signed: bool) -> u64 {
    let (start, count) = (start & 0xff, count & 0xff);
    let sign_at = (start + count).saturating_sub(1).min(width - 1);
    let sign = signed && count > 0 && a >> sign_at & 1 == 1;
    let mut value = 0;
    for i in 0..count.min(width) {
        let from = start + i;
        let bit = if from < width { a >> from & 1 } else { u64::from(sign) };
        value |= bit << i;
    }
    if sign && count < width { value | u64::MAX << count } else { value }
}

/// `prmt`: four of the eight bytes of b and a, by the nibbles of a selector
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |value, i| {
        let select = selector >> (4 * i);
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        value | u32::from(byte) << (8 * i)
    })
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::s;
    vec![
        ("and.b32 d32, a32, b32", 0xff00, 0x0ff0, 0, 0x0f00),
        ("or.b64 d64, a64, b64", 1 << 63, 1, 0, 1 << 63 | 1),
        ("xor.b16 d16, a16, b16", 0xffff, 0x00ff, 0, 0xff00),
        ("not.b32 d32, a32", 0xf0f0_f0f0, 0, 0, 0x0f0f_0f0f),
        ("not.b16 d16, a16", 0xf0f0, 0, 0, 0x0f0f),
        ("cnot.b32 d32, a32", 0, 0, 0, 1),
        ("shl.b32 d32, a32, b32", 1, 31, 0, 1 << 31),
        ("shl.b32 d32, a32, b32", 1, 32, 0, 0),
        ("shl.b64 d64, a64, b32", 1, 63, 0, 1 << 63),
        ("shl.b16 d16, a16, b32", 0x8001, 1, 0, 2),
        ("shr.u32 d32, a32, b32", s(-1), 31, 0, 1),
        ("shr.s32 d32, a32, b32", s(i32::MIN), 40, 0, s(-1)),
        ("shr.u64 d64, a64, b32", u64::MAX, 64, 0, 0),
        ("shr.s64 d64, a64, b32", 1 << 63, 63, 0, u64::MAX),
        ("shr.s16 d16, a16, b32", 0x8000, 15, 0, 0xffff),
        ("shf.l.wrap.b32 d32, a32, b32, c32", 0x8000_0001, 0xff, 4, 0xff8),
        ("shf.r.wrap.b32 d32, a32, b32, c32", 0x8000_0001, 0xff, 36, 0xf800_0000),
        ("shf.l.clamp.b32 d32, a32, b32, c32", 0x8000_0001, 0xff, 40, 0x8000_0001),
        ("shf.r.clamp.b32 d32, a32, b32, c32", 1, 0xff, 40, 0xff),
        ("popc.b32 d32, a32", 0xf0f0_0001, 0, 0, 9),
        ("popc.b64 d32, a64", u64::MAX, 0, 0, 64),
        ("clz.b32 d32, a32", 1, 0, 0, 31),
        ("clz.b32 d32, a32", 0, 0, 0, 32),
        ("clz.b64 d32, a64", 1 << 40, 0, 0, 23),
        ("brev.b32 d32, a32", 1, 0, 0, 1 << 31),
        ("brev.b64 d64, a64", 3, 0, 0, 3 << 62),
        ("bfind.u32 d32, a32", 0x80, 0, 0, 7),
        ("bfind.u32 d32, a32", 0, 0, 0, s(-1)),
        ("bfind.s32 d32, a32", s(-1), 0, 0, s(-1)),
        ("bfind.s32 d32, a32", s(-5), 0, 0, 2),
        ("bfind.shiftamt.u32 d32, a32", 0x80, 0, 0, 24),
        ("bfind.u64 d32, a64", 1 << 40, 0, 0, 40),
        ("bfe.u32 d32, a32, b32, c32", 0x0000_0f00, 8, 4, 0xf),
        ("bfe.s32 d32, a32, b32, c32", 0x0000_0f00, 8, 4, s(-1)),
        ("bfe.s32 d32, a32, b32, c32", 0x8000_0000, 28, 8, s(-8)),
        ("bfe.u64 d64, a64, b32, c32", u64::MAX, 60, 8, 0xf),
        ("bfi.b32 d32, a32, b32, 8, 4", 0xfff, 0, 0, 0xf00),
        ("bfi.b32 d32, a32, b32, 32, 8", 0xff, 0x1234, 0, 0x1234),
        ("bfi.b64 d64, a64, b64, 32, 32", 5, 7, 0, 5 << 32 | 7),
        ("prmt.b32 d32, a32, b32, c32", 0x3322_1100, 0x7766_5544, 0x7531, 0x7755_3311),
        ("prmt.b32 d32, a32, b32, c32", 0x80, 0x7f00, 0xd888, 0x00ff_ffff),
        ("prmt.b32 d32, a32, b32, c32", 0x80, 0, 0x8888, s(-1)),
        ("prmt.b32.f4e d32, a32, b32, c32", 0x3322_1100, 0x7766_5544, 1, 0x4433_2211),
        ("prmt.b32.b4e d32, a32, b32, c32", 0x3322_1100, 0x7766_5544, 1, 0x6677_0011),
        ("prmt.b32.rc8 d32, a32, b32, c32", 0x3322_1100, 0, 2, 0x2222_2222),
        ("prmt.b32.ecl d32, a32, b32, c32", 0x3322_1100, 0, 1, 0x3322_1111),
        ("prmt.b32.ecr d32, a32, b32, c32", 0x3322_1100, 0, 2, 0x2222_1100),
        ("prmt.b32.rc16 d32, a32, b32, c32", 0x3322_1100, 0, 1, 0x3322_3322),
        // Bit i of the table is the result where a, b and c have the bits of i, a's the highest.
        ("lop3.b32 d32, a32, b32, c32, 0x80", 0xf0, 0xcc, 0xaa, 0x80),
        ("lop3.b32 d32, a32, b32, c32, 0x96", 0xf0, 0xcc, 0xaa, 0x96),
        ("lop3.b32 d32, a32, b32, c32, 0xca", 0xf0, 0xcc, 0xaa, 0xca),
    ]
}
