//! Atomics.

use std::sync::Arc;

use half::{bf16, f16};

use super::Decoded;
use super::numbers::flush;
use crate::error::FaultKind;
use crate::lanes::{LANES, Lanes};
use crate::line::Line;
use crate::operand::{Dst, Order, Place, Src, resolve};
use crate::step::{Done, Execute, LaneFault, Next, Step, at};
use crate::syntax::{Space, Type};

pub(super) fn decode(line: &Line) -> Decoded {
    let returns = match line.name {
        "atom" => 1,
        "red" => 0,
        _ => return None,
    };
    let ty = line.ty()?;
    let op = line.modifiers.iter().find_map(|m| {
        Some(match *m {
            "add" if !matches!(ty, Type::Signed(_) | Type::Unsigned(_)) => Op::FloatAdd,
            "add" => Op::Add,
            "min" => Op::Min,
            "max" => Op::Max,
            "and" => Op::And,
            "or" => Op::Or,
            "xor" => Op::Xor,
            "exch" => Op::Exchange,
            "cas" => Op::CompareAndSwap,
            "inc" => Op::Increment,
            "dec" => Op::Decrement,
            _ => return None,
        })
    })?;
    let known = match op {
        Op::FloatAdd => !matches!(ty, Type::Bits(_)),
        Op::CompareAndSwap => matches!(ty.size(), 2 | 4 | 8),
        _ => matches!(ty, Type::Bits(4 | 8) | Type::Unsigned(4 | 8) | Type::Signed(4 | 8)),
    };
    if !known {
        return None;
    }
    let order = match line.order() {
        Order::Weak => Order::Strong,
        other => other,
    };
    let place = line.place(returns, line.space())?;
    line.touches(place.space, ty.size(), order);
    let dst = if returns == 1 { line.dst(0)? } else { Dst::None };
    let src = [line.src(returns + 1, ty)?, line.src(returns + 2, ty).unwrap_or(Src::Imm(0))];
    Some(Arc::new(Atomic { op, place, ty, dst, src, order }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    FloatAdd,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Increment,
    Decrement,
}

struct Atomic {
    op: Op,
    place: Place,
    ty: Type,
    dst: Dst,
    src: [Src; 2],
    order: Order,
}

impl Execute for Atomic {
    fn execute(&self, step: &mut Step) -> Done {
        let Self { op, place, ty, dst, src, order } = *self;
        let (addresses, active, swap) = (step.warp.addresses(&place), step.active, op == Op::CompareAndSwap);
        let size = ty.size();
        let [a, b] = src.map(|src| step.warp.get64(src));
        let mut old = [0; LANES];
        let mut changed = false;
        step.run.counters.atomics += 1;
        if matches!(order, Order::Release | Order::AcquireRelease) {
            step.run.phase = step.warp.clock.fence(step.run.phase);
        }
        step.warp.clock.enter(step.run.phase);
        let mut global = false;
        for lane in Lanes(active) {
            let (space, address) = resolve(place.space, addresses[lane]);
            // A sum of f32 in global memory flushes subnormals; one in shared memory does not.
            let flushes = op == Op::FloatAdd && ty == Type::F32 && space == Space::Global;
            let zero = |value: u64| if flushes { u64::from(flush(value as u32)) } else { value };
            let update = |now: u64| zero(op.result(ty, zero(now), zero(a[lane]), b[lane]));
            old[lane] = match space {
                Space::Shared => {
                    let thread = step.warp.thread(lane, step.run.tick);
                    step.run.shared.update(address, size, swap, update, &thread).map_err(at(lane))?
                }
                Space::Global => {
                    global = true;
                    let (clock, published) = (&mut step.warp.clock, &mut step.world.published);
                    let now = step.run.memory.update(address, size, swap, update, clock).map_err(at(lane))?;
                    changed |= update(now) != now;
                    clock.publish(address, published);
                    match order {
                        Order::Acquire | Order::AcquireRelease => clock.acquire(address, published),
                        _ => clock.observe(address, published),
                    }
                    now
                }
                _ => return Err(LaneFault::new(FaultKind::Unsupported, lane)),
            };
        }
        step.warp.put(dst, active, &old);
        let first = step.first();
        if changed {
            step.world.version += 1;
            step.warp.last_look = None;
        } else if global && step.warp.looked(step.pc, addresses[first], old[first]) {
            return Ok(Next::Sleep);
        }
        Ok(Next::Seen)
    }

    fn is_seen(&self) -> bool {
        true
    }

    fn swaps(&self) -> Option<&Place> {
        (self.op == Op::CompareAndSwap).then_some(&self.place)
    }
}

/// A sum, rounded once.
fn float_add(ty: Type, a: u64, b: u64) -> u64 {
    let f16 = |a: u64, b: u64| {
        u64::from(f16::from_f64(f16::from_bits(a as u16).to_f64() + f16::from_bits(b as u16).to_f64()).to_bits())
    };
    let bf16 = |a: u64, b: u64| {
        u64::from(bf16::from_f64(bf16::from_bits(a as u16).to_f64() + bf16::from_bits(b as u16).to_f64()).to_bits())
    };
    match ty {
        Type::F64 => (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        Type::F16 => f16(a, b),
        Type::F16x2 => f16(a, b) | f16(a >> 16, b >> 16) << 16,
        Type::Bf16 => bf16(a, b),
        Type::Bf16x2 => bf16(a, b) | bf16(a >> 16, b >> 16) << 16,
        _ => u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits()),
    }
}

impl Op {
    /// What is there after it, where `now` was before.
    fn result(self, ty: Type, now: u64, a: u64, b: u64) -> u64 {
        let bits = 8 * ty.size() as u32;
        let clip = |value: u64| value & (u64::MAX >> (64 - bits));
        let signed = |value: u64| (value << (64 - bits)) as i64 >> (64 - bits);
        clip(match self {
            Op::Add => now.wrapping_add(a),
            Op::FloatAdd => float_add(ty, now, a),
            Op::Min if matches!(ty, Type::Signed(_)) => signed(now).min(signed(a)) as u64,
            Op::Max if matches!(ty, Type::Signed(_)) => signed(now).max(signed(a)) as u64,
            Op::Min => clip(now).min(clip(a)),
            Op::Max => clip(now).max(clip(a)),
            Op::And => now & a,
            Op::Or => now | a,
            Op::Xor => now ^ a,
            Op::Exchange => a,
            Op::CompareAndSwap => {
                if clip(now) == clip(a) {
                    b
                } else {
                    now
                }
            }
            Op::Increment => {
                if clip(now) >= clip(a) {
                    0
                } else {
                    now + 1
                }
            }
            Op::Decrement => {
                if now == 0 || clip(now) > clip(a) {
                    a
                } else {
                    now - 1
                }
            }
        })
    }
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::f;
    vec![
        ("atom.global.add.u32 e32, [i], b32; ld.global.u32 d32, [i]", 5, 6, 0, 11),
        ("atom.global.add.u32 d32, [i], b32", 5, 6, 0, 5),
        ("atom.global.max.s64 c64, [i], b64; ld.global.u64 d64, [i]", -1i64 as u64, 6, 0, 6),
        ("atom.global.cas.b64 c64, [i], a64, b64; ld.global.u64 d64, [i]", 5, 6, 0, 6),
        ("atom.global.exch.b32 d32, [i], b32", 5, 6, 0, 5),
        ("red.global.add.f32 [i], b32; ld.global.u32 d32, [i]", f(1.5), f(2.0), 0, f(3.5)),
        ("atom.global.inc.u32 d32, [i], b32; ld.global.u32 d32, [i]", 5, 5, 0, 0),
        ("atom.global.dec.u32 d32, [i], b32; ld.global.u32 d32, [i]", 0, 5, 0, 5),
    ]
}
