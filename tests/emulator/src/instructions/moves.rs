//! Moves between registers, and of addresses between spaces.

use super::lanewise;
use super::{Decoded, code};
use crate::lanes::{LANES, Lanes};
use crate::line::Line;
use crate::operand::{Dst, LOCAL_WINDOW, SHARED_WINDOW, Src, resolve};
use crate::step::{Done, Execute, Next, Step};
use crate::syntax::{Operand, Space, Type};

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "mov" if line.ty()? != Type::Pred => {
            let bits = 8 * line.ty()?.size();
            match (line.operands.first()?, line.operands.get(1)?) {
                (Operand::Vector(parts), _) => {
                    let bits = (bits / parts.len()) as u32;
                    code(Unpack { bits, dst: line.dsts(0)?, src: line.src(1, line.ty()?)? })
                }
                (_, Operand::Vector(parts)) => {
                    let bits = (bits / parts.len()) as u32;
                    let parts = line.srcs(1, Type::Bits((bits / 8) as u8))?;
                    code(Pack { dst: line.dst(0)?, parts, bits })
                }
                _ => lanewise::decode(line, |_, _, _| Some(op32!(|a, b, c| a)), |_, _, _| Some(op64!(|a, b, c| a))),
            }
        }
        "cvta" => code(Cvta {
            // Parameters have no generic addresses here.
            space: line.space().filter(|&space| space != Space::Param)?,
            dst: line.dst(0)?,
            src: line.src(1, Type::Bits(8))?,
            back: line.has("to"),
        }),
        "isspacep" => {
            code(IsSpace { space: line.space()?, dst: line.predicate(0)?.register, src: line.src(1, Type::Bits(8))? })
        }
        _ => None,
    }
}

fn low(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// Parts of `bits` to a whole, the first one lowest.
#[derive(Debug)]
struct Pack {
    dst: Dst,
    parts: Vec<Src>,
    bits: u32,
}

impl Execute for Pack {
    fn execute(&self, step: &mut Step) -> Done {
        let mut value = [0u64; LANES];
        for (i, part) in self.parts.iter().enumerate() {
            let part = step.warp.get64(*part);
            for lane in 0..LANES {
                value[lane] |= (part[lane] & low(self.bits)) << (self.bits as usize * i);
            }
        }
        step.warp.put(self.dst, step.active, &value);
        Ok(Next::On)
    }
}

#[derive(Debug)]
struct Unpack {
    dst: Vec<Dst>,
    src: Src,
    bits: u32,
}

impl Execute for Unpack {
    fn execute(&self, step: &mut Step) -> Done {
        let value = step.warp.get64(self.src);
        for (i, dst) in self.dst.iter().enumerate() {
            step.warp.put(*dst, step.active, &value.map(|v| v >> (self.bits as usize * i) & low(self.bits)));
        }
        Ok(Next::On)
    }
}

/// An address of a space to a generic one, or back.
#[derive(Debug)]
struct Cvta {
    space: Space,
    dst: Dst,
    src: Src,
    back: bool,
}

impl Execute for Cvta {
    fn execute(&self, step: &mut Step) -> Done {
        let base = match self.space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            _ => 0,
        };
        let address = step.warp.get64(self.src);
        let value = address.map(|v| if self.back { v.wrapping_sub(base) } else { v.wrapping_add(base) });
        step.warp.put(self.dst, step.active, &value);
        Ok(Next::On)
    }
}

/// A predicate: whether a generic address is in a space.
#[derive(Debug)]
struct IsSpace {
    space: Space,
    dst: u32,
    src: Src,
}

impl Execute for IsSpace {
    fn execute(&self, step: &mut Step) -> Done {
        let address = step.warp.get64(self.src);
        let holds = Lanes(u32::MAX).where_holds(|l| resolve(None, address[l]).0 == self.space);
        step.warp.put_predicate(self.dst, step.active, holds);
        Ok(Next::On)
    }
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
