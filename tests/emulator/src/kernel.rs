//! A kernel, decoded: one flat list of instructions, and what a launch needs to know of it.

use std::sync::Arc;

use crate::operand::{Constant, Pred, Src};
use crate::poison::{Choice, Flow};
use crate::step::Execute;

#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub guard: Option<Pred>,
    pub code: Arc<dyn Execute>,
    /// Index into [`Kernel::origins`]
    pub origin: u32,
}

/// What an instruction was.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub text: String,
    pub line: u32,
    pub location: Option<(u32, u32)>,
}

/// How many registers there are of each kind.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Registers {
    pub r32: u32,
    pub r64: u32,
    pub predicates: u32,
}

/// A kernel, decoded.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name
    pub name: String,
    pub(crate) code: Vec<Inst>,
    /// What each does to registers
    pub(crate) flows: Vec<Flow>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) registers: Registers,
    /// The registers that hold constants
    pub(crate) constants: Vec<(Src, Constant)>,
    /// log2 of the bytes of its smallest access to shared memory
    pub(crate) granule: u32,
    /// Its blocks speak to each other through memory
    pub(crate) sequential: bool,
    /// Bytes a thread
    pub(crate) local: usize,
    /// Bytes of static shared memory; dynamic shared memory starts after it
    pub(crate) shared: usize,
    /// Offset and size of each parameter
    pub parameters: Vec<(usize, usize)>,
    /// Most threads a block, from `.maxntid` or `.reqntid`
    pub most_threads: Option<u64>,
}

/// Instructions beyond which a branch is not looked at: those of a chain of choices between values.
const MOST_CHOSEN: usize = 4096;

impl Kernel {
    /// What a branch forward chooses, if all that is on its ways is branches forward and values of registers.
    pub(crate) fn choice(&self, branch: u32) -> Option<Choice> {
        let at = branch as usize;
        let mut join = self.code[at].code.target()?;
        let (mut writes, mut i) = (Vec::new(), at + 1);
        while i < join as usize {
            let code = &self.code[i].code;
            match code.target() {
                Some(target) if target as usize > i => join = join.max(target),
                None if code.is_private() => writes.extend_from_slice(&self.flows[i].writes),
                _ => return None,
            }
            i += 1;
            if i - at > MOST_CHOSEN {
                return None;
            }
        }
        // A branch backward, or to itself, has its target before it.
        (join > branch).then_some(Choice { join, writes })
    }

    /// The instructions that would stop it, were they reached: PTX line and text.
    pub fn unsupported(&self) -> impl Iterator<Item = (u32, &str)> {
        let unknown = self.code.iter().filter(|inst| !inst.code.is_known());
        unknown.map(|inst| {
            let origin = &self.origins[inst.origin as usize];
            (origin.line, origin.text.as_str())
        })
    }
}
