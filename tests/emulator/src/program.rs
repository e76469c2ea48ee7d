//! The syntax tree of one kernel to its decoded form: dense registers, resolved branches, operations as functions over lanes.
//!
//! Calls are inlined: a call site gets its own copy of the callee with registers of its own, so that a kernel is one flat list of
//! instructions and a warp's divergence is a set of program counters. Recursion and calls through pointers are refused.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::lanes::{self, Compare, Conversion, Finish, Op32, Op64};
use crate::syntax::{Function, Instruction, Operand, Source, Space, Statement, Type, Variable};
use crate::tensor::{Element, Mma};

/// Deepest nesting of calls.
const MOST_CALLS: usize = 64;

/// A special register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    NumWarps,
    LaneMask(LaneMask),
    SmId,
    NumSms,
    GridId,
    Clock,
    DynamicSharedSize,
    TotalSharedSize,
    EnvReg(u32),
}

/// What a register holds from a warp's start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Constant {
    Value(u64),
    Special(Special),
}

/// How an access to memory is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Weak,
    /// Volatile and relaxed
    Strong,
    Acquire,
    Release,
    AcquireRelease,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneMask {
    Eq,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Src {
    R32(u32),
    R64(u32),
    Imm(u64),
    Special(Special),
}

/// Where a value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dst {
    R32(u32),
    R64(u32),
    /// `_`
    None,
}

/// A predicate operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pred {
    pub register: u32,
    pub negated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// A reduction over a warp's lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redux {
    Add,
    And,
    Or,
    Xor,
    MinUnsigned,
    MaxUnsigned,
    MinSigned,
    MaxSigned,
}

/// A vote of all threads of a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BarrierVote {
    pub vote: Reduced,
    pub dst: Dst,
    pub by: Pred,
}

/// What a barrier's vote gives, and the predicate that gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduced {
    Count,
    All(u32),
    Any(u32),
}

/// What extended-precision arithmetic does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carry {
    Add,
    Sub,
    /// The low half of a product, and a sum
    MadLow,
    /// The high half
    MadHigh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// An address: a space, a base and an offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Place {
    /// `None` for a generic address
    pub space: Option<Space>,
    pub base: Option<Src>,
    pub offset: i64,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// `finish`: what becomes of its operands and its result, if anything
    Op32 {
        op: Op32,
        dst: Dst,
        src: [Src; 3],
        finish: Option<Finish>,
    },
    Op64 {
        op: Op64,
        dst: Dst,
        src: [Src; 3],
    },
    ConvertLanes {
        op: Conversion,
        dst: Dst,
        src: Src,
    },
    Convert {
        modifiers: Vec<String>,
        to: Type,
        from: Type,
        dst: Dst,
        src: Src,
    },
    /// Extended-precision arithmetic, with the carry bit of each lane
    Carry {
        op: Carry,
        bits: u32,
        signed: bool,
        carry_in: bool,
        carry_out: bool,
        dst: Dst,
        src: [Src; 3],
    },
    Bfi {
        width: u64,
        dst: Dst,
        src: [Src; 4],
    },
    Lop3 {
        dst: Dst,
        src: [Src; 3],
        table: u32,
    },
    Compare {
        op: Compare,
        flush: bool,
        p: Option<u32>,
        q: Option<u32>,
        src: [Src; 2],
        with: Option<(Logic, Pred)>,
    },
    /// The lanes where it holds get `yes`, the others 0; `paired`: for each half of the operands
    Set {
        op: Compare,
        flush: bool,
        yes: u32,
        paired: bool,
        dst: Dst,
        src: [Src; 2],
    },
    Select {
        wide: bool,
        dst: Dst,
        src: [Src; 2],
        by: Pred,
    },
    Logic {
        op: Option<Logic>,
        dst: u32,
        src: [Option<Pred>; 2],
        invert: bool,
        value: bool,
    },
    Pack {
        dst: Dst,
        parts: Vec<Src>,
        bits: u32,
    },
    Unpack {
        dst: Vec<Dst>,
        src: Src,
        bits: u32,
    },
    Load {
        place: Place,
        ty: Type,
        dst: Vec<Dst>,
        order: Order,
    },
    Store {
        place: Place,
        ty: Type,
        src: Vec<Src>,
        order: Order,
    },
    Atomic {
        op: Atomic,
        place: Place,
        ty: Type,
        dst: Dst,
        src: [Src; 2],
        order: Order,
    },
    /// A predicate: whether a generic address is in a space
    IsSpace {
        space: Space,
        dst: u32,
        src: Src,
    },
    Match {
        all: bool,
        dst: Dst,
        p: Option<u32>,
        src: Src,
        mask: Src,
    },
    Redux {
        op: Redux,
        dst: Dst,
        src: Src,
        mask: Src,
    },
    Mma {
        mma: Mma,
        dst: Vec<Dst>,
        a: Vec<Src>,
        b: Vec<Src>,
        c: Vec<Src>,
    },
    MmaF64 {
        dst: [Dst; 2],
        a: Src,
        b: Src,
        c: [Src; 2],
    },
    LoadMatrix {
        dst: Vec<Dst>,
        place: Place,
        transposed: bool,
    },
    /// `read`: the bytes that are read, if not all
    AsyncCopy {
        to: Place,
        from: Place,
        size: usize,
        read: Option<Src>,
    },
    AsyncCommit,
    /// Waits for all but the last `groups`; for all copies without
    AsyncWait {
        groups: Option<u32>,
    },
    ToGeneric {
        space: Space,
        dst: Dst,
        src: Src,
        back: bool,
    },
    Branch {
        target: u32,
    },
    Exit,
    /// `arrive`: it does not wait
    Barrier {
        id: Src,
        threads: Option<Src>,
        arrive: bool,
        vote: Option<BarrierVote>,
    },
    WarpBarrier {
        mask: Src,
    },
    Shuffle {
        mode: Shuffle,
        dst: Dst,
        valid: Option<u32>,
        src: [Src; 3],
        mask: Src,
    },
    Vote {
        mode: Vote,
        p: Option<u32>,
        dst: Dst,
        by: Pred,
        mask: Src,
    },
    ActiveMask {
        dst: Dst,
    },
    /// `grid`: of a scope beyond the block
    Fence {
        grid: bool,
    },
    Nothing,
    Trap,
    Unsupported,
}

#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub guard: Option<Pred>,
    pub kind: Kind,
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

/// A kernel, decoded.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name
    pub name: String,
    pub(crate) code: Vec<Inst>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) r32: usize,
    pub(crate) r64: usize,
    pub(crate) predicates: usize,
    /// Registers after those, with what they hold
    pub(crate) constants32: Vec<Constant>,
    pub(crate) constants64: Vec<Constant>,
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

impl Kernel {
    /// The instructions that would stop it, were they reached: PTX line and text.
    pub fn unsupported(&self) -> impl Iterator<Item = (u32, &str)> {
        let unknown = self.code.iter().filter(|inst| matches!(inst.kind, Kind::Unsupported));
        unknown.map(|inst| {
            let origin = &self.origins[inst.origin as usize];
            (origin.line, origin.text.as_str())
        })
    }
}

impl Kernel {
    /// Gives constants registers of their own, and finds out what a launch needs to know.
    fn finish(&mut self) {
        let (base32, base64) = (self.r32, self.r64);
        let place = |constants: &mut Vec<Constant>, constant: Constant| -> u32 {
            match constants.iter().position(|c| *c == constant) {
                Some(at) => at as u32,
                None => {
                    constants.push(constant);
                    constants.len() as u32 - 1
                }
            }
        };
        let (mut narrow, mut wide) = (std::mem::take(&mut self.constants32), std::mem::take(&mut self.constants64));
        for inst in &mut self.code {
            let is_wide = matches!(inst.kind, Kind::Op64 { .. });
            let is_op = is_wide || matches!(inst.kind, Kind::Op32 { .. });
            for src in inst.kind.sources() {
                *src = match *src {
                    Src::Special(special) => Src::R32(base32 as u32 + place(&mut narrow, Constant::Special(special))),
                    Src::Imm(value) if is_wide => Src::R64(base64 as u32 + place(&mut wide, Constant::Value(value))),
                    Src::Imm(value) if is_op => {
                        Src::R32(base32 as u32 + place(&mut narrow, Constant::Value(u64::from(value as u32))))
                    }
                    other => other,
                };
            }
            let (space, size, order) = match &inst.kind {
                Kind::Load { place, ty, order, .. } | Kind::Store { place, ty, order, .. } => {
                    (place.space, ty.size(), *order)
                }
                Kind::Atomic { place, ty, .. } => (place.space, ty.size(), Order::Strong),
                Kind::AsyncCopy { size, .. } => (Some(Space::Shared), *size, Order::Weak),
                _ => continue,
            };
            if matches!(space, None | Some(Space::Shared)) {
                self.granule = self.granule.min(size.ilog2());
            }
            if matches!(space, None | Some(Space::Global)) && order != Order::Weak {
                self.sequential = true;
            }
        }
        (self.constants32, self.constants64) = (narrow, wide);
    }
}

impl Kind {
    /// Whether others may see what it does, or it waits for them, or it is the end.
    pub fn is_seen(&self) -> bool {
        match self {
            Kind::Load { place, .. } | Kind::Store { place, .. } => {
                !matches!(place.space, Some(Space::Param | Space::Local | Space::Const))
            }
            Kind::Atomic { .. }
            | Kind::Exit
            | Kind::Barrier { .. }
            | Kind::WarpBarrier { .. }
            | Kind::Shuffle { .. }
            | Kind::Vote { .. }
            | Kind::LoadMatrix { .. }
            | Kind::AsyncCopy { .. }
            | Kind::AsyncWait { .. }
            | Kind::Fence { .. } => true,
            _ => false,
        }
    }

    /// Its source operands.
    fn sources(&mut self) -> Vec<&mut Src> {
        match self {
            Kind::Op32 { src, .. } | Kind::Op64 { src, .. } | Kind::Lop3 { src, .. } => src.iter_mut().collect(),
            Kind::Convert { src, .. }
            | Kind::ConvertLanes { src, .. }
            | Kind::Unpack { src, .. }
            | Kind::ToGeneric { src, .. }
            | Kind::IsSpace { src, .. } => vec![src],
            Kind::Carry { src, .. } => src.iter_mut().collect(),
            Kind::Bfi { src, .. } => src.iter_mut().collect(),
            Kind::Compare { src, .. } | Kind::Set { src, .. } | Kind::Select { src, .. } => src.iter_mut().collect(),
            Kind::Pack { parts, .. } => parts.iter_mut().collect(),
            Kind::Load { place, .. } | Kind::LoadMatrix { place, .. } => place.base.iter_mut().collect(),
            Kind::Store { place, src, .. } => place.base.iter_mut().chain(src).collect(),
            Kind::Atomic { place, src, .. } => place.base.iter_mut().chain(src).collect(),
            Kind::AsyncCopy { to, from, read, .. } => to.base.iter_mut().chain(&mut from.base).chain(read).collect(),
            Kind::Barrier { id, threads, .. } => std::iter::once(id).chain(threads).collect(),
            Kind::WarpBarrier { mask } | Kind::Vote { mask, .. } => vec![mask],
            Kind::Shuffle { src, mask, .. } => src.iter_mut().chain([mask]).collect(),
            Kind::Match { src, mask, .. } | Kind::Redux { src, mask, .. } => vec![src, mask],
            Kind::Mma { a, b, c, .. } => a.iter_mut().chain(b).chain(c).collect(),
            Kind::MmaF64 { a, b, c, .. } => [a, b].into_iter().chain(c).collect(),
            Kind::Logic { .. }
            | Kind::Branch { .. }
            | Kind::Exit
            | Kind::ActiveMask { .. }
            | Kind::AsyncCommit
            | Kind::AsyncWait { .. }
            | Kind::Fence { .. }
            | Kind::Nothing
            | Kind::Trap
            | Kind::Unsupported => Vec::new(),
        }
    }
}

/// Text of an instruction, for messages.
fn text(instruction: &Instruction) -> String {
    fn operand(o: &Operand) -> String {
        let list = |parts: &[Operand]| parts.iter().map(operand).collect::<Vec<_>>().join(", ");
        match o {
            Operand::Name(name) => name.clone(),
            Operand::Not(name) => format!("!{name}"),
            Operand::Integer(value) => value.to_string(),
            Operand::F32(bits) => format!("0f{bits:08X}"),
            Operand::F64(bits) => format!("0d{bits:016X}"),
            Operand::Address(None, offset) => format!("[{offset}]"),
            Operand::Address(Some(base), 0) => format!("[{base}]"),
            Operand::Address(Some(base), offset) => format!("[{base}+{offset}]"),
            Operand::Vector(parts) => format!("{{{}}}", list(parts)),
            Operand::List(parts) => format!("({})", list(parts)),
            Operand::Pair(a, b) => format!("{a}|{b}"),
        }
    }
    let guard = match &instruction.guard {
        Some((p, negated)) => format!("@{}{p} ", if *negated { "!" } else { "" }),
        None => String::new(),
    };
    let operands: Vec<_> = instruction.operands.iter().map(operand).collect();
    format!("{guard}{} {}", instruction.opcode.join("."), operands.join(", ")).trim_end().to_string()
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meaning {
    R32(u32),
    R64(u32),
    Predicate(u32),
    /// An address in a space
    Address(Space, u64),
    /// A kernel's parameter, at an offset
    Parameter(usize),
}

struct Decoder<'s> {
    source: &'s Source,
    /// Addresses of the module's variables
    variables: &'s HashMap<String, (Space, u64)>,
    kernel: Kernel,
    scopes: Vec<HashMap<String, Meaning>>,
    /// Labels of each call's body that is being decoded
    labels: Vec<HashMap<String, u32>>,
    /// Branches to labels not yet seen: instruction and label
    pending: Vec<Vec<(usize, String, u32)>>,
    /// Branches to the end of the inlined body
    returns: Vec<Vec<usize>>,
}

/// Decodes the kernel `name`. `variables` are the addresses of the module's variables in memory.
pub(crate) fn decode(source: &Source, name: &str, variables: &HashMap<String, (Space, u64)>) -> Result<Kernel> {
    let function = source.functions.iter().find(|f| f.entry && f.name == name);
    let Some((function, body)) = function.and_then(|f| f.body.as_ref().map(|body| (f, body))) else {
        return Err(Error::NotFound(format!("no kernel {name} in the module")));
    };
    let limit = |wanted: &str| {
        let numbers = function.directives.iter().find(|(d, _)| d == wanted).map(|(_, numbers)| numbers);
        numbers.map(|numbers| numbers.iter().fold(1u64, |product, &n| product.saturating_mul(n)))
    };
    let kernel = Kernel {
        name: name.into(),
        code: Vec::new(),
        origins: Vec::new(),
        r32: 0,
        r64: 0,
        predicates: 0,
        constants32: Vec::new(),
        constants64: Vec::new(),
        granule: 3,
        sequential: false,
        local: 0,
        shared: 0,
        parameters: Vec::new(),
        most_threads: limit(".reqntid").or(limit(".maxntid")),
    };
    let mut decoder = Decoder {
        source,
        variables,
        kernel,
        scopes: vec![HashMap::new()],
        labels: vec![HashMap::new()],
        pending: vec![Vec::new()],
        returns: Vec::new(),
    };
    // Static shared memory of the module, then that of the body; `.extern` arrays start where both end.
    for variable in source.variables.iter().filter(|v| v.space == Space::Shared && v.size > 0) {
        decoder.declare(variable);
    }
    let mut offset = 0usize;
    for parameter in &function.parameters {
        offset = offset.next_multiple_of(parameter.align.max(1));
        decoder.kernel.parameters.push((offset, parameter.size));
        decoder.scopes[0].insert(parameter.name.clone(), Meaning::Parameter(offset));
        offset += parameter.size;
    }
    decoder.shared_of(body, 0)?;
    decoder.kernel.shared = decoder.kernel.shared.next_multiple_of(16);
    for variable in source.variables.iter().filter(|v| v.space == Space::Shared && v.size == 0) {
        let start = decoder.kernel.shared as u64;
        decoder.scopes[0].insert(variable.name.clone(), Meaning::Address(Space::Shared, start));
    }
    decoder.body(body)?;
    decoder.resolve()?;
    decoder.push(None, Kind::Exit, 0);
    let mut kernel = decoder.kernel;
    kernel.finish();
    Ok(kernel)
}

impl<'s> Decoder<'s> {
    /// Declares the shared variables of a body and of the functions it calls, once each, ahead of the rest.
    fn shared_of(&mut self, body: &'s [Statement], depth: usize) -> Result<()> {
        if depth > MOST_CALLS {
            return Err(Error::NotFound(format!("{} calls itself, or nests calls too deeply", self.kernel.name)));
        }
        for statement in body {
            match statement {
                Statement::Variable(variable) if variable.space == Space::Shared => self.declare(variable),
                Statement::Scope(inner) => self.shared_of(inner, depth)?,
                Statement::Instruction(instruction) if instruction.opcode[0] == "call" => {
                    if let Some(callee) = self.callee(instruction)
                        && let Some(body) = &callee.body
                    {
                        self.shared_of(body, depth + 1)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn callee(&self, instruction: &Instruction) -> Option<&'s Function> {
        instruction.operands.iter().find_map(|operand| match operand {
            // A function may be declared before it is defined.
            Operand::Name(name) => {
                let named = || self.source.functions.iter().filter(|f| f.name == *name);
                named().find(|f| f.body.is_some()).or_else(|| named().next())
            }
            _ => None,
        })
    }

    fn declare(&mut self, variable: &Variable) {
        let place = |end: &mut usize| {
            *end = end.next_multiple_of(variable.align.max(1));
            let start = *end;
            *end += variable.size;
            start as u64
        };
        let meaning = match variable.space {
            Space::Shared => {
                // Functions called from two places share their variable.
                if self.scopes[0].contains_key(&variable.name) {
                    return;
                }
                let start = place(&mut self.kernel.shared);
                self.scopes[0].insert(variable.name.clone(), Meaning::Address(Space::Shared, start));
                return;
            }
            // Parameters of calls lie in the thread's own memory.
            _ => Meaning::Address(Space::Local, place(&mut self.kernel.local)),
        };
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(variable.name.clone(), meaning);
        }
    }

    fn meaning(&self, name: &str) -> Option<Meaning> {
        if let Some(meaning) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            return Some(*meaning);
        }
        self.variables.get(name).map(|&(space, address)| Meaning::Address(space, address))
    }

    fn register(&mut self, ty: Type) -> Meaning {
        let next = |count: &mut usize| {
            *count += 1;
            (*count - 1) as u32
        };
        match ty {
            Type::Pred => Meaning::Predicate(next(&mut self.kernel.predicates)),
            _ if ty.size() == 8 => Meaning::R64(next(&mut self.kernel.r64)),
            _ => Meaning::R32(next(&mut self.kernel.r32)),
        }
    }

    fn push(&mut self, guard: Option<Pred>, kind: Kind, origin: u32) {
        self.kernel.code.push(Inst { guard, kind, origin });
    }

    fn body(&mut self, body: &'s [Statement]) -> Result<()> {
        for statement in body {
            match statement {
                Statement::Label(label) => {
                    let here = self.kernel.code.len() as u32;
                    if let Some(labels) = self.labels.last_mut() {
                        labels.insert(label.clone(), here);
                    }
                }
                Statement::Registers(ty, names) => {
                    for (name, count) in names {
                        let all: Vec<String> = match count {
                            None => vec![name.clone()],
                            Some(count) => (0..*count).map(|i| format!("{name}{i}")).collect(),
                        };
                        for name in all {
                            let register = self.register(*ty);
                            if let Some(scope) = self.scopes.last_mut() {
                                scope.insert(name, register);
                            }
                        }
                    }
                }
                Statement::Variable(variable) => self.declare(variable),
                Statement::Scope(inner) => {
                    self.scopes.push(HashMap::new());
                    self.body(inner)?;
                    self.scopes.pop();
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        Ok(())
    }

    /// Points the pending branches of the innermost body at its labels.
    fn resolve(&mut self) -> Result<()> {
        let (labels, pending) = (self.labels.pop().unwrap_or_default(), self.pending.pop().unwrap_or_default());
        for (at, label, line) in pending {
            let Some(&to) = labels.get(&label) else {
                return Err(Error::syntax(line, format!("no label {label}")));
            };
            if let Kind::Branch { target } = &mut self.kernel.code[at].kind {
                *target = to;
            }
        }
        Ok(())
    }

    fn special(name: &str) -> Option<Special> {
        let axis = |name: &str| ["x", "y", "z"].iter().position(|axis| *axis == name);
        let (base, part) = name.split_once('.').unwrap_or((name, ""));
        Some(match base {
            "%tid" => Special::Tid(axis(part)?),
            "%ntid" => Special::Ntid(axis(part)?),
            "%ctaid" => Special::Ctaid(axis(part)?),
            "%nctaid" => Special::Nctaid(axis(part)?),
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NumWarps,
            "%lanemask_eq" => Special::LaneMask(LaneMask::Eq),
            "%lanemask_lt" => Special::LaneMask(LaneMask::Lt),
            "%lanemask_le" => Special::LaneMask(LaneMask::Le),
            "%lanemask_gt" => Special::LaneMask(LaneMask::Gt),
            "%lanemask_ge" => Special::LaneMask(LaneMask::Ge),
            "%smid" => Special::SmId,
            "%nsmid" => Special::NumSms,
            "%gridid" => Special::GridId,
            "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" => Special::Clock,
            "%dynamic_smem_size" => Special::DynamicSharedSize,
            "%total_smem_size" => Special::TotalSharedSize,
            _ => Special::EnvReg(base.strip_prefix("%envreg")?.parse().ok()?),
        })
    }

    fn src(&self, operand: &Operand, ty: Type) -> Option<Src> {
        Some(match operand {
            Operand::Name(name) if name == "WARP_SZ" => Src::Imm(32),
            Operand::Name(name) => match self.meaning(name) {
                Some(Meaning::R32(r)) => Src::R32(r),
                Some(Meaning::R64(r)) => Src::R64(r),
                Some(Meaning::Address(_, address)) => Src::Imm(address),
                // The address of a `__grid_constant__` parameter, within the parameters.
                Some(Meaning::Parameter(start)) => Src::Imm(start as u64),
                Some(Meaning::Predicate(_)) => return None,
                None => Src::Special(Self::special(name)?),
            },
            Operand::Integer(value) => Src::Imm(match ty.size() {
                4 => u64::from(*value as u32),
                2 => u64::from(*value as u16),
                _ => *value as u64,
            }),
            Operand::F32(bits) if ty == Type::F64 => Src::Imm(f64::from(f32::from_bits(*bits)).to_bits()),
            Operand::F32(bits) => Src::Imm(u64::from(*bits)),
            Operand::F64(bits) if ty == Type::F32 => Src::Imm(u64::from((f64::from_bits(*bits) as f32).to_bits())),
            Operand::F64(bits) => Src::Imm(*bits),
            _ => return None,
        })
    }

    fn dst(&self, operand: &Operand) -> Option<Dst> {
        match operand {
            Operand::Name(name) if name == "_" => Some(Dst::None),
            Operand::Name(name) => match self.meaning(name)? {
                Meaning::R32(r) => Some(Dst::R32(r)),
                Meaning::R64(r) => Some(Dst::R64(r)),
                _ => None,
            },
            _ => None,
        }
    }

    fn predicate(&self, operand: &Operand) -> Option<Pred> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            _ => return None,
        };
        match self.meaning(name)? {
            Meaning::Predicate(register) => Some(Pred { register, negated }),
            _ => None,
        }
    }

    fn place(&self, operand: &Operand, space: Option<Space>) -> Option<Place> {
        let Operand::Address(base, offset) = operand else {
            return None;
        };
        let Some(name) = base else {
            return Some(Place { space, base: None, offset: *offset });
        };
        Some(match self.meaning(name)? {
            Meaning::R32(r) => Place { space, base: Some(Src::R32(r)), offset: *offset },
            Meaning::R64(r) => Place { space, base: Some(Src::R64(r)), offset: *offset },
            Meaning::Parameter(start) => Place { space: Some(Space::Param), base: None, offset: start as i64 + offset },
            Meaning::Address(actual, address) => {
                // `ld.param` of a call's parameter, which lies in local memory.
                let space = if space == Some(Space::Param) { Some(actual) } else { space };
                Place { space, base: None, offset: address as i64 + offset }
            }
            Meaning::Predicate(_) => return None,
        })
    }

    /// `d|p`, or `d` alone.
    fn with_predicate(&self, operand: &Operand) -> Option<(Dst, Option<u32>)> {
        match operand {
            Operand::Pair(d, p) => {
                let p = self.predicate(&Operand::Name(p.clone()))?;
                Some((self.dst(&Operand::Name(d.clone()))?, Some(p.register)))
            }
            d => Some((self.dst(d)?, None)),
        }
    }

    fn mma(&self, modifiers: &[&str], types: &[Type], operands: &[Operand]) -> Option<Kind> {
        let list = |operand: &Operand, ty: Type| -> Option<Vec<Src>> {
            match operand {
                Operand::Vector(parts) => parts.iter().map(|part| self.src(part, ty)).collect(),
                one => Some(vec![self.src(one, ty)?]),
            }
        };
        let dst: Option<Vec<Dst>> = match operands.first()? {
            Operand::Vector(parts) => parts.iter().map(|part| self.dst(part)).collect(),
            one => Some(vec![self.dst(one)?]),
        };
        let dst = dst?;
        if !modifiers.starts_with(&["sync", "aligned"]) || !modifiers.windows(2).any(|w| w == ["row", "col"]) {
            return None;
        }
        let shape = *modifiers.get(2)?;
        let [d, left, right, c] = *types else { return None };
        if left != right || d != c {
            return None;
        }
        if (shape, d, left) == ("m8n8k4", Type::F64, Type::F64) {
            let (a, b, c) =
                (list(operands.get(1)?, left)?, list(operands.get(2)?, left)?, list(operands.get(3)?, left)?);
            let ([a], [b], [c0, c1], [d0, d1]) = (&a[..], &b[..], &c[..], &dst[..]) else { return None };
            return Some(Kind::MmaF64 { dst: [*d0, *d1], a: *a, b: *b, c: [*c0, *c1] });
        }
        let element = match left {
            Type::F16 => Element::F16,
            Type::Bf16 => Element::Bf16,
            Type::Tf32 => Element::Tf32,
            _ => return None,
        };
        let k = match (shape, element) {
            ("m16n8k16", Element::F16 | Element::Bf16) => 16,
            ("m16n8k8", _) => 8,
            ("m16n8k4", Element::Tf32) => 4,
            _ => return None,
        };
        let narrow = match (d, element) {
            (Type::F32, _) => false,
            (Type::F16, Element::F16) => true,
            _ => return None,
        };
        let mma = Mma { element, k, narrow };
        let bits = Type::Bits(4);
        let (a, b, c) = (list(operands.get(1)?, bits)?, list(operands.get(2)?, bits)?, list(operands.get(3)?, d)?);
        let fits = (a.len(), b.len(), c.len()) == mma.registers() && dst.len() == c.len();
        fits.then_some(Kind::Mma { mma, dst, a, b, c })
    }

    fn instruction(&mut self, instruction: &'s Instruction) -> Result<()> {
        let origin = self.kernel.origins.len() as u32;
        self.kernel.origins.push(Origin {
            text: text(instruction),
            line: instruction.line,
            location: instruction.location,
        });
        let guard = match &instruction.guard {
            None => None,
            Some((name, negated)) => match self.meaning(name) {
                Some(Meaning::Predicate(register)) => Some(Pred { register, negated: *negated }),
                _ => {
                    return Err(Error::syntax(instruction.line, format!("{name} is no predicate")));
                }
            },
        };
        match instruction.opcode[0].as_str() {
            "call" => return self.call(instruction, guard, origin),
            "ret" => {
                if let Some(returns) = self.returns.last_mut() {
                    returns.push(self.kernel.code.len());
                    self.push(guard, Kind::Branch { target: 0 }, origin);
                } else {
                    self.push(guard, Kind::Exit, origin);
                }
                return Ok(());
            }
            "bra" => {
                let Some(Operand::Name(label)) = instruction.operands.first() else {
                    return Err(Error::syntax(instruction.line, "a branch without a label"));
                };
                let at = self.kernel.code.len();
                if let Some(pending) = self.pending.last_mut() {
                    pending.push((at, label.clone(), instruction.line));
                }
                self.push(guard, Kind::Branch { target: 0 }, origin);
                return Ok(());
            }
            _ => {}
        }
        // What is not known is a fault of the launch that reaches it, not of the module that contains it.
        let kind = self.kind(instruction).unwrap_or(Kind::Unsupported);
        self.push(guard, kind, origin);
        Ok(())
    }

    /// Inlines a call: `call (results), name, (arguments);`
    fn call(&mut self, instruction: &'s Instruction, guard: Option<Pred>, origin: u32) -> Result<()> {
        let Some(callee) = self.callee(instruction) else {
            self.push(guard, Kind::Unsupported, origin);
            return Ok(());
        };
        let Some(body) = &callee.body else {
            // vprintf, assertions: what a device library would do is not modelled; a failed assertion stops the kernel.
            let kind = if callee.name == "__assertfail" { Kind::Trap } else { Kind::Unsupported };
            self.push(guard, kind, origin);
            return Ok(());
        };
        if self.returns.len() > MOST_CALLS {
            return Err(Error::NotFound(format!("{} calls itself, or nests calls too deeply", callee.name)));
        }
        // The callee sees its parameters and the module, not the caller's names: its scopes start anew.
        let mut names: [Vec<String>; 2] = [Vec::new(), Vec::new()];
        let mut list = 0;
        for operand in &instruction.operands {
            match operand {
                Operand::List(parts) => {
                    for part in parts {
                        let Operand::Name(name) = part else {
                            return Err(Error::Unsupported { line: instruction.line, text: text(instruction) });
                        };
                        names[list].push(name.clone());
                    }
                }
                _ => list = 1,
            }
        }
        let mut scope = HashMap::new();
        for (formals, actuals) in [(&callee.results, &names[0]), (&callee.parameters, &names[1])] {
            for (formal, actual) in formals.iter().zip(actuals) {
                let Some(meaning) = self.meaning(actual) else {
                    return Err(Error::syntax(instruction.line, format!("{actual} is not declared")));
                };
                scope.insert(formal.name.clone(), meaning);
            }
        }
        let skip = self.kernel.code.len();
        if let Some(guard) = guard {
            // Lanes that do not call jump over the body.
            self.push(Some(Pred { negated: !guard.negated, ..guard }), Kind::Branch { target: 0 }, origin);
        }
        let outer = std::mem::take(&mut self.scopes);
        self.scopes = vec![outer[0].clone(), scope];
        self.labels.push(HashMap::new());
        self.pending.push(Vec::new());
        self.returns.push(Vec::new());
        self.body(body)?;
        self.resolve()?;
        let end = self.kernel.code.len() as u32;
        for at in self.returns.pop().unwrap_or_default() {
            self.kernel.code[at].kind = Kind::Branch { target: end };
        }
        if guard.is_some() {
            self.kernel.code[skip].kind = Kind::Branch { target: end };
        }
        self.scopes = outer;
        Ok(())
    }

    fn kind(&self, instruction: &Instruction) -> Option<Kind> {
        let name = instruction.opcode[0].as_str();
        let modifiers: Vec<&str> = instruction.opcode[1..].iter().map(String::as_str).collect();
        let operands = &instruction.operands;
        let types: Vec<Type> = modifiers.iter().filter_map(|m| Type::parse(m)).collect();
        let ty = types.last().copied();
        let has = |wanted: &str| modifiers.contains(&wanted);
        let zero = Src::Imm(0);
        let space = modifiers.iter().find_map(|m| {
            Some(match m.split("::").next()? {
                "global" => Space::Global,
                "shared" => Space::Shared,
                "local" => Space::Local,
                "const" => Space::Const,
                "param" => Space::Param,
                _ => return None,
            })
        });
        let vector = |operand: &Operand| -> Vec<Operand> {
            match operand {
                Operand::Vector(parts) => parts.clone(),
                one => vec![one.clone()],
            }
        };
        Some(match name {
            "mov" | "cvta" if has("to") || name == "cvta" => Kind::ToGeneric {
                // Parameters have no generic addresses here.
                space: space.filter(|&space| space != Space::Param)?,
                dst: self.dst(operands.first()?)?,
                src: self.src(operands.get(1)?, Type::Bits(8))?,
                back: has("to"),
            },
            "mov" if ty? == Type::Pred => {
                let value = matches!(operands.get(1)?, Operand::Integer(v) if *v != 0);
                Kind::Logic {
                    op: None,
                    dst: self.predicate(operands.first()?)?.register,
                    src: [self.predicate(operands.get(1)?), None],
                    invert: false,
                    value,
                }
            }
            "mov" => match (operands.first()?, operands.get(1)?) {
                (Operand::Vector(parts), src) => {
                    let dst: Option<Vec<Dst>> = parts.iter().map(|part| self.dst(part)).collect();
                    Kind::Unpack { bits: (8 * ty?.size() / parts.len()) as u32, dst: dst?, src: self.src(src, ty?)? }
                }
                (dst, Operand::Vector(parts)) => {
                    let bits = (8 * ty?.size() / parts.len()) as u32;
                    let src: Option<Vec<Src>> =
                        parts.iter().map(|part| self.src(part, Type::Bits((bits / 8) as u8))).collect();
                    Kind::Pack { dst: self.dst(dst)?, parts: src?, bits }
                }
                (dst, src) => {
                    let (dst, src) = (self.dst(dst)?, self.src(src, ty?)?);
                    match ty?.size() {
                        8 => Kind::Op64 { op: lanes::op64("mov", &[], ty?)?, dst, src: [src, zero, zero] },
                        _ => {
                            Kind::Op32 { op: lanes::op32("mov", &[], ty?)?, dst, src: [src, zero, zero], finish: None }
                        }
                    }
                }
            },
            "ld" | "ldu" => {
                let place = self.place(operands.get(1)?, space)?;
                let dst: Option<Vec<Dst>> = vector(operands.first()?).iter().map(|part| self.dst(part)).collect();
                Kind::Load { place, ty: ty?, dst: dst?, order: order(&modifiers) }
            }
            "st" => {
                let place = self.place(operands.first()?, space)?;
                let src: Option<Vec<Src>> = vector(operands.get(1)?).iter().map(|part| self.src(part, ty?)).collect();
                Kind::Store { place, ty: ty?, src: src?, order: order(&modifiers) }
            }
            "atom" | "red" => {
                let returns = usize::from(name == "atom");
                let op = modifiers.iter().find_map(|m| {
                    Some(match *m {
                        "add" if !matches!(ty, Some(Type::Signed(_) | Type::Unsigned(_))) => Atomic::FloatAdd,
                        "add" => Atomic::Add,
                        "min" => Atomic::Min,
                        "max" => Atomic::Max,
                        "and" => Atomic::And,
                        "or" => Atomic::Or,
                        "xor" => Atomic::Xor,
                        "exch" => Atomic::Exchange,
                        "cas" => Atomic::CompareAndSwap,
                        "inc" => Atomic::Increment,
                        "dec" => Atomic::Decrement,
                        _ => return None,
                    })
                })?;
                let known = match op {
                    Atomic::FloatAdd => !matches!(ty?, Type::Bits(_)),
                    Atomic::CompareAndSwap => matches!(ty?.size(), 2 | 4 | 8),
                    _ => matches!(ty?, Type::Bits(4 | 8) | Type::Unsigned(4 | 8) | Type::Signed(4 | 8)),
                };
                if !known {
                    return None;
                }
                let order = match order(&modifiers) {
                    Order::Weak => Order::Strong,
                    other => other,
                };
                let place = self.place(operands.get(returns)?, space)?;
                let dst = if returns == 1 { self.dst(operands.first()?)? } else { Dst::None };
                let second = operands.get(returns + 2).and_then(|o| self.src(o, ty?)).unwrap_or(zero);
                Kind::Atomic {
                    op,
                    place,
                    ty: ty?,
                    dst,
                    src: [self.src(operands.get(returns + 1)?, ty?)?, second],
                    order,
                }
            }
            "cvt" => {
                let (&to, &from) = (types.first()?, types.get(1)?);
                if operands.len() == 3 && from == Type::F32 {
                    return Some(Kind::Op32 {
                        op: lanes::pack(&modifiers, to)?,
                        dst: self.dst(operands.first()?)?,
                        src: [self.src(operands.get(1)?, from)?, self.src(operands.get(2)?, from)?, zero],
                        finish: Finish::new(&modifiers, to),
                    });
                }
                if types.len() != 2 || operands.len() != 2 {
                    return None;
                }
                lanes::convert(&modifiers, to, from, 0)?; // known at all
                if let Some(op) = lanes::conversion(&modifiers, to, from) {
                    let (dst, src) = (self.dst(operands.first()?)?, self.src(operands.get(1)?, from)?);
                    return Some(Kind::ConvertLanes { op, dst, src });
                }
                let modifiers = instruction.opcode[1..].to_vec();
                Kind::Convert {
                    modifiers,
                    to,
                    from,
                    dst: self.dst(operands.first()?)?,
                    src: self.src(operands.get(1)?, from)?,
                }
            }
            "setp" => {
                let (p, q) = match operands.first()? {
                    Operand::Pair(p, q) => (p.clone(), Some(q.clone())),
                    Operand::Name(p) => (p.clone(), None),
                    _ => return None,
                };
                let register = |name: &str| match self.meaning(name) {
                    Some(Meaning::Predicate(register)) => Some(register),
                    _ => None,
                };
                let op = lanes::compare(modifiers.first()?, ty?)?;
                let with = match operands.get(3) {
                    None => None,
                    Some(by) => {
                        let logic = modifiers.iter().find_map(|m| logic(m))?;
                        Some((logic, self.predicate(by)?))
                    }
                };
                let src = [self.src(operands.get(1)?, ty?)?, self.src(operands.get(2)?, ty?)?];
                Kind::Compare {
                    op,
                    flush: has("ftz") && ty? == Type::F32,
                    p: register(&p),
                    q: q.and_then(|q| register(&q)),
                    src,
                    with,
                }
            }
            "testp" => Kind::Compare {
                op: lanes::test(modifiers.first()?, ty?)?,
                flush: false,
                p: Some(self.predicate(operands.first()?)?.register),
                q: None,
                src: [self.src(operands.get(1)?, ty?)?, zero],
                with: None,
            },
            "set" if operands.len() == 3 => {
                let to = *types.first()?;
                let half = match ty? {
                    Type::F16x2 => Some(Type::F16),
                    Type::Bf16x2 => Some(Type::Bf16),
                    _ => None,
                };
                let yes = match (to, half) {
                    (Type::F32, None) => 1f32.to_bits(),
                    (Type::F16, None) | (Type::F16x2, Some(_)) => 0x3c00,
                    (Type::Bf16, None) | (Type::Bf16x2, Some(_)) => 0x3f80,
                    (Type::Unsigned(4) | Type::Signed(4), None) => u32::MAX,
                    (Type::Unsigned(2) | Type::Signed(2), None) => 0xffff,
                    _ => return None,
                };
                Kind::Set {
                    op: lanes::compare(modifiers.first()?, half.unwrap_or(ty?))?,
                    flush: has("ftz") && ty? == Type::F32,
                    yes,
                    paired: half.is_some(),
                    dst: self.dst(operands.first()?)?,
                    src: [self.src(operands.get(1)?, ty?)?, self.src(operands.get(2)?, ty?)?],
                }
            }
            "selp" => Kind::Select {
                wide: ty?.size() == 8,
                dst: self.dst(operands.first()?)?,
                src: [self.src(operands.get(1)?, ty?)?, self.src(operands.get(2)?, ty?)?],
                by: self.predicate(operands.get(3)?)?,
            },
            "and" | "or" | "xor" | "not" if ty? == Type::Pred => Kind::Logic {
                op: logic(name),
                dst: self.predicate(operands.first()?)?.register,
                src: [self.predicate(operands.get(1)?), operands.get(2).and_then(|o| self.predicate(o))],
                invert: name == "not",
                value: false,
            },
            "bfi" => {
                let src = |i: usize, ty| self.src(operands.get(i)?, ty);
                let small = Type::Unsigned(4);
                Kind::Bfi {
                    width: 8 * ty?.size() as u64,
                    dst: self.dst(operands.first()?)?,
                    src: [src(1, ty?)?, src(2, ty?)?, src(3, small)?, src(4, small)?],
                }
            }
            "lop3" => {
                let src = |i: usize| self.src(operands.get(i)?, ty?);
                let Operand::Integer(table) = *operands.get(4)? else {
                    return None;
                };
                Kind::Lop3 { dst: self.dst(operands.first()?)?, src: [src(1)?, src(2)?, src(3)?], table: table as u32 }
            }
            "bar" | "barrier" if has("warp") => {
                Kind::WarpBarrier { mask: self.src(operands.first()?, Type::Unsigned(4))? }
            }
            "bar" | "barrier" if has("red") => {
                let (vote, reduced) = match ty? {
                    Type::Unsigned(4) if has("popc") => (Reduced::Count, self.dst(operands.first()?)?),
                    Type::Pred if has("and") => (Reduced::All(self.predicate(operands.first()?)?.register), Dst::None),
                    Type::Pred if has("or") => (Reduced::Any(self.predicate(operands.first()?)?.register), Dst::None),
                    _ => return None,
                };
                let by = self.predicate(operands.last()?)?;
                let threads =
                    if operands.len() == 4 { Some(self.src(operands.get(2)?, Type::Unsigned(4))?) } else { None };
                let vote = Some(BarrierVote { vote, dst: reduced, by });
                Kind::Barrier { id: self.src(operands.get(1)?, Type::Unsigned(4))?, threads, arrive: false, vote }
            }
            "bar" | "barrier" if has("sync") || has("arrive") => {
                let threads = operands.get(1).and_then(|o| self.src(o, Type::Unsigned(4)));
                let id = self.src(operands.first()?, Type::Unsigned(4))?;
                Kind::Barrier { id, threads, arrive: has("arrive"), vote: None }
            }
            "membar" | "fence" => Kind::Fence { grid: !has("cta") && !has("cluster") && !has("proxy") },
            "add" | "sub" | "mad" | "addc" | "subc" | "madc" if has("cc") || name.ends_with('c') => {
                let op = match name {
                    "add" | "addc" => Carry::Add,
                    "sub" | "subc" => Carry::Sub,
                    _ if has("lo") => Carry::MadLow,
                    _ if has("hi") => Carry::MadHigh,
                    _ => return None,
                };
                let third = operands.get(3).map_or(Some(zero), |o| self.src(o, ty.unwrap_or(Type::Bits(4))))?;
                Kind::Carry {
                    op,
                    bits: 8 * ty?.size() as u32,
                    signed: matches!(ty?, Type::Signed(_)),
                    carry_in: name.ends_with('c'),
                    carry_out: has("cc"),
                    dst: self.dst(operands.first()?)?,
                    src: [self.src(operands.get(1)?, ty?)?, self.src(operands.get(2)?, ty?)?, third],
                }
            }
            "isspacep" => Kind::IsSpace {
                space: space?,
                dst: self.predicate(operands.first()?)?.register,
                src: self.src(operands.get(1)?, Type::Bits(8))?,
            },
            "match" if has("sync") => {
                let (dst, p) = self.with_predicate(operands.first()?)?;
                let (src, mask) = (self.src(operands.get(1)?, ty?)?, self.src(operands.get(2)?, Type::Unsigned(4))?);
                Kind::Match { all: has("all"), dst, p, src, mask }
            }
            "redux" if has("sync") => {
                let signed = matches!(ty?, Type::Signed(4));
                let op = match *modifiers.get(1)? {
                    "add" => Redux::Add,
                    "and" => Redux::And,
                    "or" => Redux::Or,
                    "xor" => Redux::Xor,
                    "min" if signed => Redux::MinSigned,
                    "max" if signed => Redux::MaxSigned,
                    "min" if ty? == Type::Unsigned(4) => Redux::MinUnsigned,
                    "max" if ty? == Type::Unsigned(4) => Redux::MaxUnsigned,
                    _ => return None,
                };
                let (src, mask) = (self.src(operands.get(1)?, ty?)?, self.src(operands.get(2)?, Type::Unsigned(4))?);
                Kind::Redux { op, dst: self.dst(operands.first()?)?, src, mask }
            }
            "mma" => self.mma(&modifiers, &types, operands)?,
            "ldmatrix" if has("m8n8") && has("b16") => {
                let dst: Option<Vec<Dst>> = vector(operands.first()?).iter().map(|part| self.dst(part)).collect();
                let place = self.place(operands.get(1)?, space)?;
                Kind::LoadMatrix { dst: dst.filter(|d| matches!(d.len(), 1 | 2 | 4))?, place, transposed: has("trans") }
            }
            "cp" if modifiers == ["async", "commit_group"] => Kind::AsyncCommit,
            "cp" if modifiers == ["async", "wait_all"] => Kind::AsyncWait { groups: None },
            "cp" if modifiers == ["async", "wait_group"] => {
                let Operand::Integer(groups) = *operands.first()? else { return None };
                Kind::AsyncWait { groups: Some(groups as u32) }
            }
            "cp" if has("async") && (has("ca") || has("cg")) && !has("bulk") => {
                let Operand::Integer(size @ (4 | 8 | 16)) = *operands.get(2)? else { return None };
                let read = match operands.get(3) {
                    Some(read) if !has("L2::cache_hint") || operands.len() > 4 => {
                        Some(self.src(read, Type::Unsigned(4))?)
                    }
                    _ => None,
                };
                let to = self.place(operands.first()?, Some(Space::Shared))?;
                let from = self.place(operands.get(1)?, Some(Space::Global))?;
                Kind::AsyncCopy { to, from, size: size as usize, read }
            }
            "shfl" if has("sync") => {
                let (dst, valid) = match operands.first()? {
                    Operand::Pair(d, p) => {
                        let p = self.predicate(&Operand::Name(p.clone()))?;
                        (self.dst(&Operand::Name(d.clone()))?, Some(p.register))
                    }
                    d => (self.dst(d)?, None),
                };
                let mode = match *modifiers.get(1)? {
                    "up" => Shuffle::Up,
                    "down" => Shuffle::Down,
                    "bfly" => Shuffle::Butterfly,
                    "idx" => Shuffle::Index,
                    _ => return None,
                };
                let src = |i: usize| self.src(operands.get(i)?, Type::Unsigned(4));
                Kind::Shuffle { mode, dst, valid, src: [src(1)?, src(2)?, src(3)?], mask: src(4)? }
            }
            "vote" if has("sync") => {
                let mode = match *modifiers.get(1)? {
                    "all" => Vote::All,
                    "any" => Vote::Any,
                    "uni" => Vote::Uniform,
                    "ballot" => Vote::Ballot,
                    _ => return None,
                };
                let (p, dst) = match mode {
                    Vote::Ballot => (None, self.dst(operands.first()?)?),
                    _ => (Some(self.predicate(operands.first()?)?.register), Dst::None),
                };
                Kind::Vote {
                    mode,
                    p,
                    dst,
                    by: self.predicate(operands.get(1)?)?,
                    mask: self.src(operands.get(2)?, Type::Unsigned(4))?,
                }
            }
            "activemask" => Kind::ActiveMask { dst: self.dst(operands.first()?)? },
            "exit" => Kind::Exit,
            "trap" => Kind::Trap,
            "nanosleep" | "prefetch" | "prefetchu" | "discard" | "applypriority" => Kind::Nothing,
            _ => {
                let ty = ty?;
                // What a modifier means is known, or the instruction is not.
                let known = |m: &&str| Type::parse(m).is_some() || KNOWN.contains(m);
                if !modifiers.iter().all(known) || (name == "slct" && types.first()?.size() != 4) {
                    return None;
                }
                let wide_result = ty.size() == 8 || (has("wide") && ty.size() == 4);
                let dst = self.dst(operands.first()?)?;
                let mut src = [zero; 3];
                for (i, operand) in operands.iter().skip(1).enumerate() {
                    // Shift counts, and positions and lengths of fields, are 32 bits whatever the type is.
                    let count = matches!((name, i), ("shl" | "shr", 1) | ("bfe", 1 | 2) | ("shf", 2));
                    *src.get_mut(i)? = self.src(operand, if count { Type::Unsigned(4) } else { ty })?;
                }
                if wide_result {
                    Kind::Op64 { op: lanes::op64(name, &modifiers, ty)?, dst, src }
                } else {
                    Kind::Op32 { op: lanes::op32(name, &modifiers, ty)?, dst, src, finish: Finish::new(&modifiers, ty) }
                }
            }
        })
    }
}

/// How a load or store is ordered.
fn order(modifiers: &[&str]) -> Order {
    let has = |wanted: &str| modifiers.contains(&wanted);
    if has("acq_rel") {
        Order::AcquireRelease
    } else if has("acquire") {
        Order::Acquire
    } else if has("release") {
        Order::Release
    } else if has("relaxed") || has("volatile") || has("mmio") {
        Order::Strong
    } else {
        Order::Weak
    }
}

/// The modifiers of operations on registers.
const KNOWN: [&str; 25] = [
    "rn", "rz", "rm", "rp", "ftz", "sat", "relu", "lo", "hi", "wide", "approx", "full", "l", "r", "wrap", "clamp",
    "NaN", "shiftamt", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16", "noftz",
];

fn logic(name: &str) -> Option<Logic> {
    Some(match name {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return None,
    })
}
