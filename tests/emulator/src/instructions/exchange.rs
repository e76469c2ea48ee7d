//! What lanes of a warp tell each other: shuffles, votes, matches, reductions.

use super::{Decoded, with_poison};
use crate::error::FaultKind;
use crate::lanes::{L32, LANES, Lanes};
use crate::line::Line;
use crate::operand::Src;
use crate::poison::Taint;
use crate::step::{Next, Step};
use crate::syntax::Type;

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "activemask" => {
            let dst = line.dst(0)?;
            with_poison(false, move |step| {
                step.warp.put(dst, step.active, &[step.active; LANES]);
                step.spoil(dst, Taint::default());
            })
        }
        "shfl" | "vote" | "match" | "redux" if !line.has("sync") => None,
        "shfl" => shuffle(line),
        "vote" => {
            let (mode, by) = (*line.modifiers.get(1)?, line.predicate(1)?);
            let members = line.members(2)?;
            if mode == "ballot" {
                let dst = line.dst(0)?;
                return exchange(members, move |step| {
                    let yes = step.warp.predicate(by) & step.active;
                    step.warp.put(dst, step.active, &[yes; LANES]);
                    step.spoil(dst, step.taint_of(by).spread(step.active));
                });
            }
            let p = line.predicate_dst(0)?;
            let holds: fn(u32, u32) -> bool = match mode {
                "all" => |yes, all| yes == all,
                "any" => |yes, _| yes != 0,
                "uni" => |yes, all| yes == all || yes == 0,
                _ => return None,
            };
            exchange(members, move |step| {
                let holds = holds(step.warp.predicate(by) & step.active, step.active);
                step.warp.put_predicate(p, step.active, if holds { u32::MAX } else { 0 });
                step.spoil_predicate(p, step.taint_of(by).spread(step.active));
            })
        }
        "match" => {
            let ((dst, p), src, all) = (line.dst_and_predicate(0)?, line.src(1, line.ty()?)?, line.has("all"));
            exchange(line.members(2)?, move |step| {
                let (active, a) = (step.active, step.warp.get64(src));
                let same = |lane: usize| Lanes(active).where_holds(|l| a[l] == a[lane]);
                let agree = same(step.first()) == active;
                let value: L32 = std::array::from_fn(|lane| match all {
                    false => same(lane),
                    true if agree => active,
                    true => 0,
                });
                let taint = step.taint(src).spread(active);
                step.warp.put(dst, active, &value);
                step.spoil(dst, taint);
                if let Some(p) = p {
                    step.warp.put_predicate(p, active, if agree { u32::MAX } else { 0 });
                    step.spoil_predicate(p, taint);
                }
            })
        }
        "redux" => {
            let (dst, ty) = (line.dst(0)?, line.ty()?);
            let op: fn(u32, u32) -> u32 = match (*line.modifiers.get(1)?, ty) {
                ("add", _) => u32::wrapping_add,
                ("and", _) => |x, y| x & y,
                ("or", _) => |x, y| x | y,
                ("xor", _) => |x, y| x ^ y,
                ("min", Type::Signed(4)) => |x, y| (x as i32).min(y as i32) as u32,
                ("max", Type::Signed(4)) => |x, y| (x as i32).max(y as i32) as u32,
                ("min", Type::Unsigned(4)) => u32::min,
                ("max", Type::Unsigned(4)) => u32::max,
                _ => return None,
            };
            let src = line.src(1, ty)?;
            exchange(line.members(2)?, move |step| {
                let a = step.warp.get32(src);
                let value = Lanes(step.active).map(|lane| a[lane]).reduce(op);
                let taint = step.taint(src).spread(step.active);
                step.warp.put(dst, step.active, &[value.unwrap_or(0); LANES]);
                step.spoil(dst, taint);
            })
        }
        _ => None,
    }
}

/// What the lanes that a mask names do once they are together.
fn exchange(members: Src, act: impl Fn(&mut Step) + Send + Sync + 'static) -> Decoded {
    with_poison(true, move |step| {
        let members = step.warp.get32(members);
        let next = step.together(&members)?;
        if let Next::On = next {
            step.run.counters.exchanges += 1;
            act(step);
        }
        Ok(next)
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Up,
    Down,
    Butterfly,
    Index,
}

fn shuffle(line: &Line) -> Decoded {
    let mode = match *line.modifiers.get(1)? {
        "up" => Mode::Up,
        "down" => Mode::Down,
        "bfly" => Mode::Butterfly,
        "idx" => Mode::Index,
        _ => return None,
    };
    let (dst, valid) = line.dst_and_predicate(0)?;
    let src = [line.src32(1)?, line.src32(2)?, line.src32(3)?];
    exchange(line.members(4)?, move |step| {
        let active = step.active;
        let [a, b, c] = src.map(|src| step.warp.get32(src));
        let [from_a, from_b, from_c] = src.map(|src| step.taint(src));
        let mut value = a;
        let mut in_range = 0;
        // Lanes that get a poisoned value, and those that get what is not there.
        let (mut tainted, mut nowhere) = (from_b.or(from_c).lanes, 0);
        for lane in 0..LANES {
            // The ISA's definition: the segment from the mask's bits, the clamp from its low bits.
            let (shift, clamp, segment) = (b[lane] & 31, c[lane] & 31, c[lane] >> 8 & 31);
            let index = lane as u32;
            let most = (index & segment) | (clamp & !segment);
            let least = index & segment;
            let (from, ok) = match mode {
                Mode::Up => (index.wrapping_sub(shift), index as i32 - shift as i32 >= most as i32),
                Mode::Down => (index + shift, index + shift <= most),
                Mode::Butterfly => (index ^ shift, index ^ shift <= most),
                Mode::Index => (least | (shift & !segment), (least | (shift & !segment)) <= most),
            };
            // What a lane that takes no part would give is not defined.
            let there = active >> (from % LANES as u32) & 1 == 1;
            value[lane] = match (ok, there) {
                (true, true) => a[from as usize % LANES],
                (true, false) => 0xdead_beef,
                (false, _) => a[lane],
            };
            let source = if ok { from as usize % LANES } else { lane };
            tainted |= (from_a.lanes >> source & 1) << lane;
            nowhere |= u32::from(ok && !there) << lane;
            in_range |= u32::from(ok) << lane;
        }
        step.warp.put(dst, active, &value);
        step.spoil(dst, Taint { lanes: tainted, ..from_a.or(from_b).or(from_c) });
        if nowhere & active != 0 {
            let taint = step.missing(nowhere & active, FaultKind::Shuffle);
            step.spoil_more(dst, taint);
        }
        if let Some(p) = valid {
            step.warp.put_predicate(p, active, in_range);
            step.spoil_predicate(p, from_b.or(from_c));
        }
    })
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    vec![
        ("activemask.b32 d32", 0, 0, 0, 1),
        ("shfl.sync.idx.b32 d32|p, a32, 0, 31, 1", 7, 0, 0, 7),
        ("setp.eq.u32 p, a32, 7; vote.sync.ballot.b32 d32, p, 1", 7, 0, 0, 1),
        ("setp.eq.u32 p, a32, 7; vote.sync.any.pred q, !p, 1; selp.b32 d32, 1, 0, q", 7, 0, 0, 0),
        ("match.any.sync.b32 d32, a32, 1", 7, 0, 0, 1),
        ("redux.sync.max.s32 d32, a32, 1", 7, 0, 0, 7),
    ]
}

#[cfg(test)]
mod tests {
    use crate::{Gpu, LaunchConfig};

    /// `shfl.sync` for all lanes: the ISA's definition, by which the clamp and the segments come out of one operand.
    #[test]
    fn shuffles() {
        let text = |mode: &str| {
            format!(
                ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u32 b, .param .u32 c) {{
                    .reg .b32 %r<9>; .reg .b64 %o<4>; .reg .pred %p;
                    ld.param.u64 %o1, [out]; ld.param.u32 %r1, [b]; ld.param.u32 %r2, [c];
                    mov.u32 %r3, %laneid; add.u32 %r4, %r3, 100;
                    shfl.sync.{mode}.b32 %r5|%p, %r4, %r1, %r2, -1;
                    selp.u32 %r6, 1, 0, %p; shl.b32 %r6, %r6, 16; or.b32 %r5, %r5, %r6;
                    mul.wide.u32 %o2, %r3, 4; add.u64 %o3, %o1, %o2; st.global.u32 [%o3], %r5; ret;
                }}"
            )
        };
        for mode in ["up", "down", "bfly", "idx"] {
            for width in [32u32, 16, 8, 2] {
                for offset in [0u32, 1, 3, 9, 31] {
                    let gpu = Gpu::new(&text(mode)).unwrap();
                    let out = gpu.allocate(128);
                    // CUDA's own operand: segments of `width` lanes, clamped to the segment's end, or to its start for `up`.
                    let c = (32 - width) << 8 | if mode == "up" { 0 } else { 31 };
                    let parameters = [&out.to_le_bytes()[..], &offset.to_le_bytes(), &c.to_le_bytes()];
                    gpu.launch("k", LaunchConfig::line(1, 32), &parameters).unwrap();
                    for (lane, found) in gpu.download::<u32>(out, 32).unwrap().into_iter().enumerate() {
                        let (lane, first) = (lane as i64, lane as i64 / i64::from(width) * i64::from(width));
                        let (offset, last) = (i64::from(offset), first + i64::from(width) - 1);
                        let from = match mode {
                            "up" => lane - offset,
                            "down" => lane + offset,
                            "bfly" => lane ^ offset,
                            _ => first + offset % i64::from(width),
                        };
                        let valid = if mode == "up" { from >= first } else { from <= last };
                        let expected = if valid { 100 + from } else { 100 + lane } | i64::from(valid) << 16;
                        assert_eq!(i64::from(found), expected, "{mode} by {offset} of {width}, lane {lane}");
                    }
                }
            }
        }
    }
}
