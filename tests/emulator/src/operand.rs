//! What instructions name: registers, constants, predicates, places in memory.

use crate::syntax::Space;

/// Generic addresses from here on are shared memory's.
pub(crate) const SHARED_WINDOW: u64 = 0x1000_0000_0000;
/// Generic addresses from here on are local memory's.
pub(crate) const LOCAL_WINDOW: u64 = 0x2000_0000_0000;
/// Generic addresses from here on are parameters'.
pub(crate) const PARAMETER_WINDOW: u64 = 0x3000_0000_0000;
const WINDOW: u64 = 0x1_0000_0000;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneMask {
    Eq,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Special {
    /// The special register of a name.
    pub fn named(name: &str) -> Option<Self> {
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
}

/// What a register holds from a warp's start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Constant {
    Value(u64),
    Special(Special),
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Src {
    R32(u32),
    R64(u32),
    Imm(u64),
}

/// Where a value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dst {
    R32(u32),
    R64(u32),
    /// `_`
    None,
}

/// A register of one kind or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    R32(u32),
    R64(u32),
    Predicate(u32),
}

impl Src {
    pub fn register(self) -> Option<Register> {
        match self {
            Src::R32(r) => Some(Register::R32(r)),
            Src::R64(r) => Some(Register::R64(r)),
            Src::Imm(_) => None,
        }
    }
}

impl Dst {
    pub fn register(self) -> Option<Register> {
        match self {
            Dst::R32(r) => Some(Register::R32(r)),
            Dst::R64(r) => Some(Register::R64(r)),
            Dst::None => None,
        }
    }
}

/// The predicate that is the carry of extended-precision arithmetic.
pub(crate) const CARRY: u32 = 0;

/// A predicate operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pred {
    pub register: u32,
    pub negated: bool,
}

/// An address: a space, a base and an offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Place {
    /// `None` for a generic address
    pub space: Option<Space>,
    pub base: Option<Src>,
    pub offset: i64,
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

/// An address, resolved: the space and the address in it.
#[inline]
pub(crate) fn resolve(space: Option<Space>, address: u64) -> (Space, u64) {
    match space {
        // Addresses in the shared window stand for themselves, as on the device.
        Some(space) => (space, address),
        None if (SHARED_WINDOW..SHARED_WINDOW + WINDOW).contains(&address) => (Space::Shared, address - SHARED_WINDOW),
        None if (LOCAL_WINDOW..LOCAL_WINDOW + WINDOW).contains(&address) => (Space::Local, address - LOCAL_WINDOW),
        None if (PARAMETER_WINDOW..PARAMETER_WINDOW + WINDOW).contains(&address) => {
            (Space::Param, address - PARAMETER_WINDOW)
        }
        None => (Space::Global, address),
    }
}
