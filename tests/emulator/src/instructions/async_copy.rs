//! `cp.async`: copies to shared memory that land when they are waited for, not before, with what is there then.

use super::{Decoded, seen, with_poison};
use crate::lanes::Lanes;
use crate::line::Line;
use crate::operand::{Order, Place, Src, resolve};
use crate::step::{Access, Done, Next, Step, at, check_aligned};
use crate::syntax::Space;
use crate::warp::AsyncCopy;

pub(super) fn decode(line: &Line) -> Decoded {
    if line.name != "cp" || !line.has("async") || line.has("bulk") {
        return None;
    }
    match line.modifiers[..] {
        ["async", "commit_group"] => {
            with_poison(false, |step| Lanes(step.active).for_each(|lane| step.warp.commits[lane] += 1))
        }
        ["async", "wait_all"] => seen(|step| wait(step, None)),
        ["async", "wait_group"] => {
            let groups = line.integer(0)? as u32;
            seen(move |step| wait(step, Some(groups)))
        }
        _ if line.has("ca") || line.has("cg") => {
            let size = line.integer(2).filter(|size| matches!(size, 4 | 8 | 16))? as usize;
            // Behind the size: how many bytes are read, and a cache policy.
            let read = line.operands.len() > 3 + usize::from(line.has("L2::cache_hint"));
            let read = if read { line.src32(3)? } else { Src::Imm(size as u64) };
            let (to, from) = (line.place(0, Some(Space::Shared))?, line.place(1, Some(Space::Global))?);
            line.touches(Some(Space::Shared), size, Order::Weak);
            seen(move |step| copy(step, &to, &from, size, read))
        }
        _ => None,
    }
}

fn copy(step: &mut Step, to: &Place, from: &Place, size: usize, read: Src) -> Done {
    let active = step.active;
    let (to, from, read) = (step.warp.addresses(to), step.warp.addresses(from), step.warp.get32(read));
    check_aligned(active, &to, size)?;
    check_aligned(active, &from, size)?;
    let reading = Lanes(active).where_holds(|lane| read[lane] > 0);
    let counters = &mut step.run.counters;
    if reading != 0 {
        counters.access(reading, Some(Space::Global), &from, size, false);
    }
    counters.access(active, Some(Space::Shared), &to, size, true);
    counters.async_copied += u64::from(active.count_ones()) * size as u64;
    step.warp.clock.enter(step.run.phase);
    for lane in Lanes(active) {
        let read = (read[lane] as usize).min(size);
        let (_, source) = resolve(None, from[lane]);
        // Its source must be readable now; what it brings is what is there when it lands.
        fetch(step, source, read).map_err(at(lane))?;
        let thread = step.warp.thread(lane, step.run.tick);
        step.run.shared.expect(to[lane], size, &thread).map_err(at(lane))?;
        let group = step.warp.commits[lane];
        step.warp.copies.push(AsyncCopy { lane, to: to[lane], from: source, size, read, group });
    }
    Ok(Next::Seen)
}

/// The first `count` bytes at an address, and zeros; and a bit for each that nobody has written.
fn fetch(step: &mut Step, address: u64, count: usize) -> Access<([u8; 16], u32)> {
    let (mut bytes, mut missing) = ([0; 16], 0);
    let width = [8, 4, 2, 1].into_iter().find(|width| count.is_multiple_of(*width)).unwrap_or(1);
    for i in (0..count).step_by(width) {
        let (part, written) = step.run.memory.load(address + i as u64, width, false, &step.warp.clock)?;
        bytes[i..i + width].copy_from_slice(&part.to_le_bytes()[..width]);
        missing |= if written { 0 } else { ((1 << width) - 1) << i };
    }
    Ok((bytes, missing))
}

/// Lands all but the last `groups` of the lanes' committed groups; without a number, all there are.
fn wait(step: &mut Step, groups: Option<u32>) -> Done {
    let (active, commits) = (step.active, step.warp.commits);
    let lands = |copy: &mut AsyncCopy| {
        let waited = |groups: u32| u64::from(copy.group) + u64::from(groups) < u64::from(commits[copy.lane]);
        active >> copy.lane & 1 == 1 && groups.is_none_or(waited)
    };
    let landing: Vec<AsyncCopy> = step.warp.copies.extract_if(.., lands).collect();
    step.warp.clock.enter(step.run.phase);
    for copy in landing {
        let (bytes, missing) = fetch(step, copy.from, copy.read).map_err(at(copy.lane))?;
        let thread = step.warp.thread(copy.lane, step.run.tick);
        step.run.shared.land(copy.to, &bytes[..copy.size], missing, &thread);
    }
    Ok(Next::Seen)
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    const COPY: &str = "{ .shared .align 4 .b32 s; .reg .b32 x; mov.u32 x, s; cp.async.ca.shared.global [x], [i], 4; \
        cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 d32, [x]; }";
    vec![(COPY, 7, 0, 0, 7)]
}
