//! Where a thread goes: branches, ends, traps; and hints, which do nothing. Labels, calls and returns are resolved when a kernel is decoded.

use super::{Decoded, code};
use crate::error::FaultKind;
use crate::line::Line;
use crate::step::{Done, Execute, Next, Step};

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "exit" => code(Exit),
        "trap" => code(Trap),
        "nanosleep" | "prefetch" | "prefetchu" | "discard" | "applypriority" => code(Nothing),
        _ => None,
    }
}

#[derive(Debug)]
pub(crate) struct Branch {
    pub target: u32,
}

impl Execute for Branch {
    fn execute(&self, _step: &mut Step) -> Done {
        Ok(Next::Jump(self.target))
    }
}

#[derive(Debug)]
pub(crate) struct Exit;

impl Execute for Exit {
    fn execute(&self, _step: &mut Step) -> Done {
        Ok(Next::Exit)
    }

    fn is_seen(&self) -> bool {
        true
    }
}

/// `trap`, or a failed assertion.
#[derive(Debug)]
pub(crate) struct Trap;

impl Execute for Trap {
    fn execute(&self, step: &mut Step) -> Done {
        Err(step.fault(FaultKind::Trap))
    }
}

#[derive(Debug)]
struct Nothing;

impl Execute for Nothing {
    fn execute(&self, _step: &mut Step) -> Done {
        Ok(Next::On)
    }
}

/// What is not known is a fault of the launch that reaches it, not of the module that contains it.
#[derive(Debug)]
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
    ]
}
