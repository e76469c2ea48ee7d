//! Conversions.

use half::{bf16, f16};

use super::lanewise::{self, Finish, Op, has};
use super::numbers::{brain, brain_op, flush, half, half_op};
use super::{Decoded, code};
use crate::error::FaultKind;
use crate::lanes::{L64, LANES, Lanes};
use crate::line::Line;
use crate::operand::Src;
use crate::step::{LaneFault, Next};
use crate::syntax::Type;

pub(super) fn decode(line: &Line) -> Decoded {
    if line.name != "cvt" {
        return None;
    }
    let (&to, &from, modifiers) = (line.types.first()?, line.types.get(1)?, &line.modifiers);
    if line.operands.len() == 3 && from == Type::F32 {
        let src = [line.src(1, from)?, line.src(2, from)?, Src::Imm(0)].map(|src| line.in_register(src, false));
        return lanewise::finished(pack(modifiers, to)?, line.dst(0)?, src, Finish::new(modifiers, to));
    }
    if line.types.len() != 2 || line.operands.len() != 2 {
        return None;
    }
    convert(modifiers, to, from, 0)?; // known at all
    let (dst, src) = (line.dst(0)?, line.src(1, from)?);
    if let Some(op) = conversion(modifiers, to, from) {
        return code(move |step| {
            let value = op(&step.warp.get64(src));
            step.warp.put(dst, step.active, &value);
        });
    }
    let modifiers: Vec<String> = modifiers.iter().map(|m| m.to_string()).collect();
    code(move |step| {
        let modifiers: Vec<&str> = modifiers.iter().map(String::as_str).collect();
        let from_value = step.warp.get64(src);
        let mut value = [0; LANES];
        for lane in Lanes(step.active) {
            let converted = convert(&modifiers, to, from, from_value[lane]);
            value[lane] = converted.ok_or(LaneFault::new(FaultKind::Unsupported, lane))?;
        }
        step.warp.put(dst, step.active, &value);
        Ok(Next::On)
    })
}

/// A conversion of all lanes
type Conversion = fn(&L64) -> L64;

/// `cvt` of two f32 to two halves: the first goes to the upper one.
fn pack(modifiers: &[&str], to: Type) -> Option<Op<u32>> {
    if !has(modifiers, "rn") || has(modifiers, "satfinite") {
        return None;
    }
    macro_rules! pack {
        ($half:ident) => {
            op32!(|a, b, c| {
                let one = |bits: u32| u32::from($half::from_f32(f32::from_bits(bits)).to_bits());
                one(a) << 16 | one(b)
            })
        };
    }
    match to {
        Type::F16x2 => Some(pack!(f16)),
        Type::Bf16x2 => Some(pack!(bf16)),
        _ => None,
    }
}

/// `cvt`: one lane's value, both sides as bits in 64. `None` for a pair of types or a rounding that is not known.
fn convert(modifiers: &[&str], to: Type, from: Type, value: u64) -> Option<u64> {
    if (to, from) == (Type::Tf32, Type::F32) {
        // To nearest, ties away from zero, of the 10 bits that a tf32 has.
        let bits = value as u32;
        let finite = bits & 0x7f80_0000 != 0x7f80_0000;
        return has(modifiers, "rna").then(|| u64::from(if finite { (bits + 0x1000) & !0x1fff } else { bits }));
    }
    use Type::{Bf16, F16, F32, F64, Signed, Unsigned};
    let ftz = |bits: u32| {
        if has(modifiers, "ftz") { flush(bits) } else { bits }
    };
    let float = |ty: Type| -> Option<f64> {
        Some(match ty {
            F16 => half(value as u32),
            Bf16 => brain(value as u32),
            F32 => f64::from(f32::from_bits(ftz(value as u32))),
            F64 => f64::from_bits(value),
            _ => return None,
        })
    };
    let whole = |ty: Type| -> Option<i128> {
        Some(match ty {
            Signed(1) => i128::from(value as i8),
            Signed(2) => i128::from(value as i16),
            Signed(4) => i128::from(value as i32),
            Signed(8) => i128::from(value as i64),
            Unsigned(1) => i128::from(value as u8),
            Unsigned(2) => i128::from(value as u16),
            Unsigned(4) => i128::from(value as u32),
            Unsigned(8) => i128::from(value),
            _ => return None,
        })
    };
    let to_integer = |rounded: f64| -> Option<u64> {
        // NaN converts to 0, and the rest saturates.
        Some(match to {
            Signed(1) => rounded as i8 as u64,
            Signed(2) => rounded as i16 as u64,
            Signed(4) => rounded as i32 as u64,
            Signed(8) => rounded as i64 as u64,
            Unsigned(1) => u64::from(rounded as u8),
            Unsigned(2) => u64::from(rounded as u16),
            Unsigned(4) => u64::from(rounded as u32),
            Unsigned(8) => rounded as u64,
            _ => return None,
        })
    };
    let round = |value: f64| {
        if has(modifiers, "rni") {
            value.round_ties_even()
        } else if has(modifiers, "rmi") {
            value.floor()
        } else if has(modifiers, "rpi") {
            value.ceil()
        } else {
            value.trunc()
        }
    };
    let directed = ["rm", "rp", "rz"].into_iter().find(|mode| has(modifiers, mode));
    if to != F32 && matches!(directed, Some("rm" | "rp")) {
        return None;
    }
    // The f32 below or above the nearest one, where the exact value lies on that side of it: by the order of nearest and exact.
    let direct = |nearest: f32, against: std::cmp::Ordering| -> f32 {
        use std::cmp::Ordering::{Greater, Less};
        match (directed, against) {
            (Some("rm"), Greater) => nearest.next_down(),
            (Some("rp"), Less) => nearest.next_up(),
            (Some("rz"), Greater) if nearest > 0.0 => nearest.next_down(),
            (Some("rz"), Less) if nearest < 0.0 => nearest.next_up(),
            _ => nearest,
        }
    };
    let saturate = |value: f64| {
        if has(modifiers, "sat") { value.clamp(0.0, 1.0) } else { value }
    };
    let to_float = |value: f64| -> Option<u64> {
        let value = saturate(value);
        let toward_zero = has(modifiers, "rz");
        Some(match to {
            F64 => value.to_bits(),
            F32 => {
                let nearest = value as f32;
                let order = f64::from(nearest).partial_cmp(&value).unwrap_or(std::cmp::Ordering::Equal);
                u64::from(ftz(direct(nearest, order).to_bits()))
            }
            F16 if !toward_zero => u64::from(half_op(value)),
            Bf16 if !toward_zero => u64::from(brain_op(value)),
            _ => return None,
        })
    };
    if let Some(value) = float(from) {
        if matches!(to, Signed(_) | Unsigned(_)) {
            return to_integer(round(value));
        }
        let integral = ["rni", "rmi", "rpi", "rzi"].iter().any(|mode| has(modifiers, mode));
        return to_float(if integral { round(value) } else { value });
    }
    let value = whole(from)?;
    match to {
        Signed(n) | Unsigned(n) => {
            let value = if has(modifiers, "sat") {
                let bits = 8 * u32::from(n);
                let (low, high) = match to {
                    Signed(_) => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
                    _ => (0, (1i128 << bits) - 1),
                };
                value.clamp(low, high)
            } else {
                value
            };
            // Registers wider than the type hold it extended by its sign.
            Some(match to {
                Signed(1) => value as i8 as u64,
                Signed(2) => value as i16 as u64,
                Signed(4) => value as i32 as u64,
                Unsigned(1) => u64::from(value as u8),
                Unsigned(2) => u64::from(value as u16),
                Unsigned(4) => u64::from(value as u32),
                _ => value as u64,
            })
        }
        // One rounding from the integer, not two by way of f64.
        F32 => {
            let nearest = value as f32;
            Some(u64::from(direct(nearest, (nearest as i128).cmp(&value)).to_bits()))
        }
        F64 if !has(modifiers, "rz") => Some((value as f64).to_bits()),
        _ if value.unsigned_abs() < 1 << 53 => to_float(value as f64),
        _ => None,
    }
}

/// The conversions that kernels are full of; [`convert`] knows the rest.
fn conversion(modifiers: &[&str], to: Type, from: Type) -> Option<Conversion> {
    use Type::{Bf16, F16, F32, Signed, Unsigned};
    if ["sat", "relu", "ftz", "rz", "rm", "rp", "rzi", "rni", "rmi", "rpi"].iter().any(|m| has(modifiers, m)) {
        return None;
    }
    macro_rules! each {
        (|$v:ident| $value:expr) => {{
            fn lanes(from: &L64) -> L64 {
                from.map(|$v| $value)
            }
            lanes as Conversion
        }};
    }
    Some(match (to, from) {
        (Signed(8) | Unsigned(8), Signed(4)) => each!(|v| v as i32 as u64),
        (Signed(8) | Unsigned(8), Unsigned(4)) => each!(|v| u64::from(v as u32)),
        (Signed(4) | Unsigned(4), Signed(4 | 8) | Unsigned(4 | 8)) => each!(|v| u64::from(v as u32)),
        (Signed(4) | Unsigned(4), Unsigned(2)) => each!(|v| u64::from(v as u16)),
        (F32, Signed(4)) => each!(|v| u64::from((v as i32 as f32).to_bits())),
        (F32, Unsigned(4)) => each!(|v| u64::from((v as u32 as f32).to_bits())),
        (F32, F16) => each!(|v| u64::from(f16::from_bits(v as u16).to_f32().to_bits())),
        (F32, Bf16) => each!(|v| v << 16 & 0xffff_0000),
        (F16, F32) => each!(|v| u64::from(f16::from_f32(f32::from_bits(v as u32)).to_bits())),
        (Bf16, F32) => each!(|v| u64::from(bf16::from_f32(f32::from_bits(v as u32)).to_bits())),
        _ => return None,
    })
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::{NAN, b, d, f, h, s};
    vec![
        ("cvt.rni.s32.f32 d32, a32", f(2.5), 0, 0, 2),
        ("cvt.rni.s32.f32 d32, a32", f(-3.5), 0, 0, s(-4)),
        ("cvt.rzi.s32.f32 d32, a32", f(-3.9), 0, 0, s(-3)),
        ("cvt.rmi.s32.f32 d32, a32", f(-3.1), 0, 0, s(-4)),
        ("cvt.rpi.s32.f32 d32, a32", f(3.1), 0, 0, 4),
        ("cvt.rzi.s32.f32 d32, a32", f(3e9), 0, 0, s(i32::MAX)),
        ("cvt.rzi.s32.f32 d32, a32", f(NAN), 0, 0, 0),
        ("cvt.rzi.u32.f32 d32, a32", f(-1.0), 0, 0, 0),
        ("cvt.rzi.u8.f32 d16, a32", f(300.0), 0, 0, 255),
        ("cvt.rzi.s64.f64 d64, a64", d(-1e10), 0, 0, -10_000_000_000i64 as u64),
        ("cvt.rn.f32.s32 d32, a32", s(-5), 0, 0, f(-5.0)),
        ("cvt.rn.f32.u32 d32, a32", 0xffff_ff7f, 0, 0, f(4_294_967_040.0)),
        ("cvt.rz.f32.u32 d32, a32", s(-1), 0, 0, f(4_294_967_040.0)),
        ("cvt.rn.f32.u64 d32, a64", (1 << 24) + 1, 0, 0, f(16_777_216.0)),
        ("cvt.rp.f32.u64 d32, a64", (1 << 24) + 1, 0, 0, f(16_777_218.0)),
        ("cvt.rn.f64.s32 d64, a32", s(-5), 0, 0, d(-5.0)),
        ("cvt.rn.f64.u64 d64, a64", (1 << 53) + 1, 0, 0, d(2f64.powi(53))),
        ("cvt.f64.f32 d64, a32", f(0.1), 0, 0, d(f64::from(0.1f32))),
        ("cvt.rn.f32.f64 d32, a64", d(0.1), 0, 0, f(0.1)),
        ("cvt.rz.f32.f64 d32, a64", d(1.0 + 2f64.powi(-24) * 1.9), 0, 0, f(1.0)),
        ("cvt.rp.f32.f64 d32, a64", d(1.0 + 2f64.powi(-40)), 0, 0, f(1.0f32.next_up())),
        ("cvt.rn.f16.f32 d16, a32", f(1.0 + 2f32.powi(-11)), 0, 0, h(1.0)),
        ("cvt.rn.f16.f32 d16, a32", f(65520.0), 0, 0, h(f64::INFINITY)),
        ("cvt.rn.f16.f32 d16, a32", f(2f32.powi(-24)), 0, 0, 1),
        ("cvt.rn.bf16.f32 d16, a32", f(1.0 + 2f32.powi(-8)), 0, 0, b(1.0)),
        ("cvt.rn.bf16.f32 d16, a32", f(1.0 + 3.0 * 2f32.powi(-8)), 0, 0, b(1.0 + 2f64.powi(-6))),
        ("cvt.f32.f16 d32, a16", 1, 0, 0, f(2f32.powi(-24))),
        ("cvt.f32.bf16 d32, a16", b(-1.5), 0, 0, f(-1.5)),
        ("cvt.rn.f16.f64 d16, a64", d(1.0 + 2f64.powi(-11) + 2f64.powi(-40)), 0, 0, h(1.0 + 2f64.powi(-10))),
        ("cvt.rn.f16x2.f32 d32, a32, b32", f(1.0), f(2.0), 0, h(1.0) << 16 | h(2.0)),
        ("cvt.rn.bf16x2.f32 d32, a32, b32", f(1.0), f(-2.0), 0, b(1.0) << 16 | b(-2.0)),
        ("cvt.rn.relu.bf16x2.f32 d32, a32, b32", f(1.0), f(-2.0), 0, b(1.0) << 16),
        ("cvt.rna.tf32.f32 d32, a32", f(1.0 + 2f32.powi(-11)), 0, 0, f(1.0 + 2f32.powi(-10))),
        ("cvt.s64.s32 d64, a32", s(-1), 0, 0, u64::MAX),
        ("cvt.u64.u32 d64, a32", s(-1), 0, 0, 0xffff_ffff),
        ("cvt.s32.s8 d32, a32", 0x80, 0, 0, s(-128)),
        ("cvt.u32.u8 d32, a32", 0x1ff, 0, 0, 0xff),
        ("cvt.s32.s16 d32, a16", 0x8000, 0, 0, s(-32768)),
        ("cvt.sat.s8.s32 d32, a32", 1000, 0, 0, 127),
        ("cvt.sat.u8.s32 d32, a32", s(-5), 0, 0, 0),
        ("cvt.u16.u32 d16, a32", 0x12345, 0, 0, 0x2345),
        ("cvt.rni.f32.f32 d32, a32", f(2.5), 0, 0, f(2.0)),
        ("cvt.rmi.f64.f64 d64, a64", d(-0.5), 0, 0, d(-1.0)),
        ("cvt.sat.f32.f32 d32, a32", f(7.0), 0, 0, f(1.0)),
    ]
}
