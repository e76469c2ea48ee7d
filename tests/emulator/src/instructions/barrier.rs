//! Barriers of the block and of a warp, and fences.

use super::{Decoded, code};
use crate::line::Line;
use crate::operand::Src;
use crate::step::{Done, Execute, Next, Step};
use crate::syntax::Type;
use crate::warp::{BarrierVote, Reduced};

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "bar" | "barrier" if line.has("warp") => code(WarpBarrier { members: line.src32(0)? }),
        "bar" | "barrier" if line.has("red") => {
            let gives = match line.ty()? {
                Type::Unsigned(4) if line.has("popc") => Reduced::Count(line.dst(0)?),
                Type::Pred if line.has("and") => Reduced::All(line.predicate(0)?.register),
                Type::Pred if line.has("or") => Reduced::Any(line.predicate(0)?.register),
                _ => return None,
            };
            let count = line.operands.len();
            let threads = if count == 4 { Some(line.src32(2)?) } else { None };
            let vote = Some(BarrierVote { gives, by: line.predicate(count - 1)? });
            code(Barrier { id: line.src32(1)?, threads, arrive: false, vote })
        }
        "bar" | "barrier" if line.has("sync") || line.has("arrive") => {
            code(Barrier { id: line.src32(0)?, threads: line.src32(1), arrive: line.has("arrive"), vote: None })
        }
        "membar" | "fence" => {
            let grid = !line.has("cta") && !line.has("cluster") && !line.has("proxy");
            code(Fence { grid })
        }
        _ => None,
    }
}

/// `arrive`: it does not wait
#[derive(Debug)]
struct Barrier {
    id: Src,
    threads: Option<Src>,
    arrive: bool,
    vote: Option<BarrierVote>,
}

impl Execute for Barrier {
    fn execute(&self, step: &mut Step) -> Done {
        let value = |src: Src| step.warp.get32(src)[step.first()];
        let (id, wanted) = (value(self.id), self.threads.map(value));
        Ok(Next::Barrier { id, wanted, arrive: self.arrive, vote: self.vote })
    }

    fn is_seen(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct WarpBarrier {
    members: Src,
}

impl Execute for WarpBarrier {
    fn execute(&self, step: &mut Step) -> Done {
        let members = step.warp.get32(self.members);
        step.together(&members)
    }

    fn is_seen(&self) -> bool {
        true
    }
}

/// `grid`: of a scope beyond the block
#[derive(Debug)]
struct Fence {
    grid: bool,
}

impl Execute for Fence {
    fn execute(&self, step: &mut Step) -> Done {
        if self.grid {
            step.run.phase = step.warp.clock.fence(step.run.phase);
        }
        Ok(Next::Seen)
    }

    fn is_seen(&self) -> bool {
        true
    }
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
