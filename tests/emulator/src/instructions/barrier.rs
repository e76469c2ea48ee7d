//! Barriers of the block and of a warp, and fences.

use super::{Decoded, seen};
use crate::line::Line;
use crate::operand::Src;
use crate::step::Next;
use crate::syntax::Type;
use crate::warp::{Arrival, BarrierVote, Reduced};

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "bar" | "barrier" if line.has("warp") => {
            let members = line.members(0)?;
            seen(move |step| {
                let members = step.warp.get32(members);
                step.together(&members)
            })
        }
        "bar" | "barrier" if line.has("red") => {
            let gives = match line.ty()? {
                Type::Unsigned(4) if line.has("popc") => Reduced::Count(line.dst(0)?),
                Type::Pred if line.has("and") => Reduced::All(line.predicate_dst(0)?),
                Type::Pred if line.has("or") => Reduced::Any(line.predicate_dst(0)?),
                _ => return None,
            };
            let last = line.operands.len() - 1;
            let threads = if last == 3 { Some(line.src32(2)?) } else { None };
            barrier(line.src32(1)?, threads, false, Some(BarrierVote { gives, by: line.predicate(last)? }))
        }
        "bar" | "barrier" if line.has("sync") || line.has("arrive") => {
            barrier(line.src32(0)?, line.src32(1), line.has("arrive"), None)
        }
        "membar" | "fence" => {
            // Of a scope beyond the block.
            let grid = !line.has("cta") && !line.has("cluster") && !line.has("proxy");
            seen(move |step| {
                if grid {
                    step.run.phase = step.warp.clock.fence(step.run.phase);
                }
                Ok(Next::Seen)
            })
        }
        _ => None,
    }
}

/// `arrive`: it does not wait.
fn barrier(id: Src, threads: Option<Src>, arrive: bool, vote: Option<BarrierVote>) -> Decoded {
    seen(move |step| {
        let value = |src: Src| step.warp.get32(src)[step.first()];
        let arrival = Arrival { id: value(id), wanted: threads.map(value), vote };
        Ok(if arrive { Next::Arrive(arrival) } else { Next::Barrier(arrival) })
    })
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    vec![
        ("bar.sync 0; mov.u32 d32, a32", 7, 0, 0, 7),
        ("bar.warp.sync 1; mov.u32 d32, a32", 7, 0, 0, 7),
        ("setp.eq.u32 p, a32, 7; bar.red.popc.u32 d32, 0, p", 7, 0, 0, 1),
        ("setp.eq.u32 p, a32, 7; bar.red.and.pred q, 0, p; selp.b32 d32, 1, 0, q", 6, 0, 0, 0),
        ("setp.eq.u32 p, a32, 7; bar.red.or.pred q, 0, !p; selp.b32 d32, 1, 0, q", 6, 0, 0, 1),
        ("membar.gl; fence.acq_rel.sys; mov.u32 d32, a32", 7, 0, 0, 7),
    ]
}
