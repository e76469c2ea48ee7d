//! Where a thread goes: branches, ends, traps; and hints, which do nothing. Labels, calls and returns are resolved when a kernel is decoded.

use std::sync::Arc;

use super::{Act, Decoded, code};
use crate::error::FaultKind;
use crate::lanes::LANES;
use crate::line::Line;
use crate::poison::Pass;
use crate::step::{Done, Execute, Next, Step};

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "exit" => Some(exit()),
        "trap" => Some(trap()),
        "nanosleep" | "prefetch" | "prefetchu" | "discard" | "applypriority" => code(|_| ()),
        // How long lines stay in a cache has no meaning for values.
        "createpolicy" => {
            let dst = line.dst(0)?;
            code(move |step| step.warp.put(dst, step.active, &[0u64; LANES]))
        }
        _ => None,
    }
}

pub(crate) fn branch(target: u32) -> Arc<dyn Execute> {
    Arc::new(Branch(target))
}

struct Branch(u32);

impl Execute for Branch {
    fn execute(&self, _: &mut Step) -> Done {
        Ok(Next::Jump(self.0))
    }

    fn target(&self) -> Option<u32> {
        Some(self.0)
    }
}

pub(crate) fn exit() -> Arc<dyn Execute> {
    Arc::new(Act { act: |_: &mut Step| Done::Ok(Next::Exit), is_seen: true, is_private: false, pass: Pass::Checked })
}

/// `trap`, or a failed assertion.
pub(crate) fn trap() -> Arc<dyn Execute> {
    Arc::new(Act {
        act: |step: &mut Step| Done::Err(step.fault(FaultKind::Trap)),
        is_seen: false,
        is_private: false,
        pass: Pass::Checked,
    })
}

/// What is not known is a fault of the launch that reaches it, not of the module that contains it.
pub(crate) struct Unknown;

impl Execute for Unknown {
    fn execute(&self, step: &mut Step) -> Done {
        Err(step.fault(FaultKind::Unsupported))
    }

    fn is_known(&self) -> bool {
        false
    }
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    vec![
        ("bra OVER; mov.u32 d32, 1; OVER: add.u32 d32, d32, 2", 0, 0, 0, 2),
        ("setp.eq.u32 p, a32, 5; @p bra OVER; mov.u32 d32, 1; OVER: add.u32 d32, d32, 2", 4, 0, 0, 3),
        ("mov.u32 d32, 7; prefetch.global.L2 [i]", 0, 0, 0, 7),
        (
            "createpolicy.fractional.L2::evict_last.b64 c64, 1.0; ld.global.L1::evict_last.L2::cache_hint.u32 d32, [i], c64",
            9,
            0,
            0,
            9,
        ),
        (
            "createpolicy.cvt.L2.b64 c64, 0x10f0; st.global.L2::cache_hint.u32 [i], b32, c64; ld.global.u32 d32, [i]",
            9,
            4,
            0,
            4,
        ),
        (
            "createpolicy.fractional.L2::evict_first.b64 c64; red.global.add.L2::cache_hint.u32 [i], b32, c64; ld.global.u32 d32, [i]",
            9,
            4,
            0,
            13,
        ),
    ]
}
