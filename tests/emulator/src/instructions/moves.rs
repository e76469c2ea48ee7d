//! Moves between registers, and of addresses between spaces.

use super::lanewise;
use super::{Decoded, code};
use crate::lanes::{LANES, Lanes};
use crate::line::Line;
use crate::operand::{LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, resolve};
use crate::syntax::{Operand, Space, Type};

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "mov" if line.ty()? != Type::Pred => {
            let (ty, whole) = (line.ty()?, 8 * line.ty()?.size());
            match (line.operands.first()?, line.operands.get(1)?) {
                // A whole to its parts, the first one lowest; and parts to a whole.
                (Operand::Vector(parts), _) => {
                    let (bits, dst, src) = (whole / parts.len(), line.dsts(0)?, line.src(1, ty)?);
                    code(move |step| {
                        let value = step.warp.get64(src);
                        for (i, dst) in dst.iter().enumerate() {
                            step.warp.put(*dst, step.active, &value.map(|v| v >> (bits * i) & low(bits)));
                        }
                    })
                }
                (_, Operand::Vector(parts)) => {
                    let bits = whole / parts.len();
                    let (dst, parts) = (line.dst(0)?, line.srcs(1, Type::Bits((bits / 8) as u8))?);
                    code(move |step| {
                        let mut value = [0u64; LANES];
                        for (i, part) in parts.iter().enumerate() {
                            let part = step.warp.get64(*part);
                            (0..LANES).for_each(|lane| value[lane] |= (part[lane] & low(bits)) << (bits * i));
                        }
                        step.warp.put(dst, step.active, &value);
                    })
                }
                _ => lanewise::decode(line, |_, _, _| Some(op32!(|a, b, c| a)), |_, _, _| Some(op64!(|a, b, c| a))),
            }
        }
        // An address of a space to a generic one, or back.
        "cvta" => {
            let (dst, src) = (line.dst(0)?, line.src(1, Type::Bits(8))?);
            let base = match line.space()? {
                Space::Shared => SHARED_WINDOW,
                Space::Local => LOCAL_WINDOW,
                Space::Param => PARAMETER_WINDOW,
                _ => 0,
            };
            let base = if line.has("to") { base.wrapping_neg() } else { base };
            code(move |step| {
                let value = step.warp.get64(src).map(|address| address.wrapping_add(base));
                step.warp.put(dst, step.active, &value);
            })
        }
        // Whether a generic address is in a space.
        "isspacep" => {
            let (space, p, src) = (line.space()?, line.predicate_dst(0)?, line.src(1, Type::Bits(8))?);
            code(move |step| {
                let address = step.warp.get64(src);
                let holds = Lanes(u32::MAX).where_holds(|l| resolve(None, address[l]).0 == space);
                step.warp.put_predicate(p, step.active, holds);
            })
        }
        _ => None,
    }
}

fn low(bits: usize) -> u64 {
    u64::MAX >> (64 - bits)
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    vec![
        ("mov.b64 d64, {a32, b32}", 1, 2, 0, 2 << 32 | 1),
        ("mov.b32 d32, {a16, b16}", 0x1234, 0x5678, 0, 0x5678_1234),
        ("mov.b64 {d32, e32}, a64", 5 << 32 | 9, 0, 0, 9),
        ("mov.b64 {e32, d32}, a64", 5 << 32 | 9, 0, 0, 5),
        ("mov.b32 {e16, d16}, a32", 0x5678_1234, 0, 0, 0x5678),
        ("isspacep.global p, i; selp.b32 d32, 1, 0, p", 0, 0, 0, 1),
        ("isspacep.shared p, i; selp.b32 d32, 1, 0, p", 0, 0, 0, 0),
    ]
}
