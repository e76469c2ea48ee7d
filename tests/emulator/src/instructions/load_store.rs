//! Loads and stores, of every space.

use std::sync::Arc;

use super::Decoded;
use crate::error::FaultKind;
use crate::lanes::{L64, LANES, Lanes};
use crate::line::Line;
use crate::operand::{Dst, Order, Place, Src, resolve};
use crate::poison::Pass;
use crate::step::{Access, Done, Execute, LaneFault, Next, Step, at, check_aligned};
use crate::syntax::{Space, Type};
use crate::warp::Doubt;

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "ld" | "ldu" => {
            let (place, ty, order) = (line.place(1, line.space())?, line.ty()?, line.order());
            line.touches(place.space, ty.size(), order);
            Some(Arc::new(Load { place, ty, dst: line.dsts(0)?, order }))
        }
        "st" => {
            let (place, ty, order) = (line.place(0, line.space())?, line.ty()?, line.order());
            line.touches(place.space, ty.size(), order);
            Some(Arc::new(Store { place, size: ty.size(), src: line.srcs(1, ty)?, order }))
        }
        _ => None,
    }
}

/// Where a lane's local bytes are.
fn local(step: &Step, lane: usize, address: u64, size: usize) -> Access<usize> {
    let each = step.run.local;
    if address.saturating_add(size as u64) > each as u64 {
        return Err(FaultKind::OutOfBounds { space: "local", address, size, near: None });
    }
    if !address.is_multiple_of(size as u64) {
        return Err(FaultKind::Misaligned { address, size });
    }
    Ok(lane * each + address as usize)
}

/// The number that bytes are, the first one lowest.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

struct Load {
    place: Place,
    ty: Type,
    dst: Vec<Dst>,
    order: Order,
}

/// What lanes have read, and those for which there was nothing to read, with one of its faults.
type Read = (L64, u32, Option<FaultKind>);

/// What a lane reads at an address of a space, and the fault of it if there is nothing.
#[inline]
fn read(
    step: &mut Step,
    lane: usize,
    space: Option<Space>,
    address: u64,
    size: usize,
    strong: bool,
) -> Access<(u64, Option<FaultKind>)> {
    let (space, address) = resolve(space, address);
    match space {
        Space::Global | Space::Const | Space::Reg => {
            let (value, written) = step.run.memory.load(address, size, strong, &step.warp.clock)?;
            Ok((value, (!written).then_some(FaultKind::Uninitialised { space: "global", address })))
        }
        Space::Param => {
            let at = usize::try_from(address).ok();
            let bytes = at.and_then(|at| step.run.parameters.get(at..at.checked_add(size)?));
            let beyond = FaultKind::OutOfBounds { space: "parameter", address, size, near: None };
            bytes.map(|bytes| (number(bytes), None)).ok_or(beyond)
        }
        Space::Local => {
            let start = local(step, lane, address, size)?;
            let written = step.warp.local_written[start..start + size].iter().all(|&written| written);
            let missing = (!written).then_some(FaultKind::Uninitialised { space: "local", address });
            Ok((number(&step.warp.local[start..start + size]), missing))
        }
        Space::Shared => {
            let thread = step.warp.thread(lane, step.run.tick);
            let (value, missing) = step.run.shared.load(address, size, strong, &thread)?;
            Ok((value, missing.map(|missing| missing.fault("shared", address))))
        }
    }
}

/// What a lane reads where something has to be.
pub(super) fn value(step: &mut Step, lane: usize, space: Option<Space>, address: u64, size: usize) -> Access<u64> {
    step.warp.clock.enter(step.run.phase);
    let (value, missing) = read(step, lane, space, address, size, false)?;
    missing.map_or(Ok(value), Err)
}

/// Puts a value into a lane's own memory.
pub(super) fn put_local(
    step: &mut Step,
    lane: usize,
    address: u64,
    size: usize,
    value: u64,
    poison: bool,
) -> Access<()> {
    let start = local(step, lane, address, size)?;
    step.warp.local[start..start + size].copy_from_slice(&value.to_le_bytes()[..size]);
    step.warp.local_written[start..start + size].fill(!poison);
    Ok(())
}

impl Load {
    /// Reads lane by lane. What may have been changed by atomics is a race to read, unless a compare-and-swap of the same place follows and
    /// makes sure of it: nvcc's own loops begin so.
    fn read_each(&self, step: &mut Step, addresses: &L64, offset: u64) -> Result<Read, LaneFault> {
        let (mut value, mut lanes, mut what) = ([0; LANES], 0, None);
        let strong = self.order != Order::Weak;
        for lane in Lanes(step.active) {
            let address = addresses[lane].wrapping_add(offset);
            let (space, size) = (self.place.space, self.ty.size());
            let (found, missing) = match read(step, lane, space, address, size, strong) {
                Err(
                    race @ (FaultKind::GlobalRace { atomic: true, .. } | FaultKind::SharedRace { atomic: true, .. }),
                ) if !strong && self.is_seen() => {
                    let (pc, doubts) = (step.pc, &mut step.warp.doubts);
                    if !doubts.iter().any(|doubt| (doubt.lane, doubt.address) == (lane, address)) {
                        doubts.push(Doubt { pc, lane, address, race });
                    }
                    read(step, lane, space, address, size, true)
                }
                other => other,
            }
            .map_err(at(lane))?;
            value[lane] = found;
            if missing.is_some() {
                lanes |= 1 << lane;
                what = what.or(missing);
            }
        }
        Ok((value, lanes, what))
    }

    /// What the lanes read at an offset from their addresses.
    #[inline]
    fn read_all(&self, step: &mut Step, addresses: &L64, offset: u64) -> Result<Read, LaneFault> {
        if self.order == Order::Weak && self.place.space == Some(Space::Global) {
            let lanes = Lanes(step.active);
            match step.run.memory.load_lanes(lanes, addresses, offset, self.ty.size(), &step.warp.clock) {
                Ok((value, 0)) => return Ok((value, 0, None)),
                Ok((value, lanes)) => {
                    let address = addresses[lanes.trailing_zeros() as usize].wrapping_add(offset);
                    return Ok((value, lanes, Some(FaultKind::Uninitialised { space: "global", address })));
                }
                Err((_, FaultKind::GlobalRace { atomic: true, .. })) => {}
                Err((lane, kind)) => return Err(LaneFault::new(kind, lane)),
            }
        }
        self.read_each(step, addresses, offset)
    }
}

impl Execute for Load {
    fn execute(&self, step: &mut Step) -> Done {
        let Self { place, ty, dst, order } = self;
        let (addresses, active) = (step.warp.addresses(place), step.active);
        let size = ty.size();
        check_aligned(active, &addresses, size * dst.len())?;
        let global = step.run.counters.access(active, place.space, &addresses, size * dst.len(), false);
        if global {
            step.warp.clock.enter(step.run.phase);
        }
        let first = step.first();
        let mut last = 0;
        for (i, &dst) in dst.iter().enumerate() {
            let (mut value, lanes, missing) = self.read_all(step, &addresses, (i * size) as u64)?;
            if let Type::Signed(bytes @ (1 | 2 | 4)) = *ty {
                let shift = 64 - 8 * u32::from(bytes);
                value = value.map(|raw| ((raw << shift) as i64 >> shift) as u64);
            }
            step.warp.put(dst, active, &value);
            if let Some(missing) = missing {
                let taint = step.missing(lanes, missing);
                step.spoil(dst, taint);
            }
            last = value[first];
        }
        if *order != Order::Weak && global {
            for lane in Lanes(active) {
                let (_, address) = resolve(place.space, addresses[lane]);
                if *order == Order::Acquire {
                    step.warp.clock.acquire(address, &step.world.published);
                } else {
                    step.warp.clock.observe(address, &step.world.published);
                }
            }
            if step.warp.looked(step.pc, addresses[first], last) {
                return Ok(Next::Sleep);
            }
        }
        Ok(if self.is_seen() { Next::Seen } else { Next::On })
    }

    fn is_seen(&self) -> bool {
        !matches!(self.place.space, Some(Space::Param | Space::Local | Space::Const))
    }

    fn only_reads(&self) -> bool {
        true
    }

    fn is_private(&self) -> bool {
        self.place.space == Some(Space::Param) && self.place.base.is_none()
    }
}

struct Store {
    place: Place,
    size: usize,
    src: Vec<Src>,
    order: Order,
}

impl Store {
    #[inline]
    fn write(&self, step: &mut Step, lane: usize, address: u64, value: u64, poison: bool) -> Access<()> {
        let (space, address) = resolve(self.place.space, address);
        let size = self.size;
        match space {
            Space::Local => put_local(step, lane, address, size, value, poison),
            Space::Shared => {
                step.run.shared.store(address, size, value, poison, &step.warp.thread(lane, step.run.tick))
            }
            _ if self.order == Order::Weak => step.run.memory.store(address, size, value, &step.warp.clock),
            _ => step.run.memory.store_strong(address, size, value, &step.warp.clock),
        }
    }
}

impl Execute for Store {
    fn execute(&self, step: &mut Step) -> Done {
        let Self { place, size, src, order } = self;
        let (addresses, active) = (step.warp.addresses(place), step.active);
        check_aligned(active, &addresses, size * src.len())?;
        let global = step.run.counters.access(active, place.space, &addresses, size * src.len(), true);
        if global {
            if *order == Order::Release {
                step.run.phase = step.warp.clock.fence(step.run.phase);
            }
            step.warp.clock.enter(step.run.phase);
        }
        step.warp.last_look = None;
        for (i, &src) in src.iter().enumerate() {
            let (value, taint) = (step.warp.get64(src), step.taint(src));
            if taint.lanes != 0 {
                // A block's own memory may hold poison; what others see may not.
                let own = |lane| matches!(resolve(place.space, addresses[lane]).0, Space::Shared | Space::Local);
                let others = taint.of(!Lanes(taint.lanes).where_holds(own));
                if others.lanes != 0 {
                    return Err(step.reached(others, "global memory"));
                }
            }
            for lane in Lanes(active) {
                let address = addresses[lane].wrapping_add((i * size) as u64);
                let poison = taint.lanes >> lane & 1 == 1;
                self.write(step, lane, address, value[lane], poison).map_err(at(lane))?;
            }
        }
        if global && *order != Order::Weak {
            step.world.version += 1;
            Lanes(active).for_each(|lane| step.warp.clock.publish(addresses[lane], &mut step.world.published));
        }
        Ok(if self.is_seen() { Next::Seen } else { Next::On })
    }

    fn pass(&self) -> Pass {
        Pass::Own
    }

    fn is_seen(&self) -> bool {
        !matches!(self.place.space, Some(Space::Param | Space::Local))
    }
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::s;
    vec![
        ("ld.global.u8 d32, [i]", 0x80, 0, 0, 0x80),
        ("ld.global.s8 d32, [i]", 0x80, 0, 0, s(-128)),
        ("ld.global.s16 d32, [i]", 0x8000, 0, 0, s(-32768)),
        ("ld.global.s32 d64, [i]", s(-5), 0, 0, -5i64 as u64),
        ("ld.global.u32 d64, [i]", s(-5), 0, 0, s(-5)),
        ("ld.global.b16 d16, [i+2]", 0x1234_5678, 0, 0, 0x1234),
        ("ld.global.v2.u32 {e32, d32}, [i]", 7 << 32 | 3, 0, 0, 7),
        ("ld.global.v4.u32 {e32, f32, d32, e32}, [i]", 0, 9, 0, 9),
        ("ld.global.v2.u64 {c64, d64}, [i]", 1, 2, 0, 2),
        ("ld.global.nc.L1::no_allocate.u32 d32, [i]", 77, 0, 0, 77),
        ("ld.u32 d32, [i]", 77, 0, 0, 77),
        ("st.global.v2.u16 [i], {a16, b16}; ld.global.u32 d32, [i]", 0x1111, 0x2222, 0, 0x2222_1111),
        ("st.global.u8 [i+1], b16; ld.global.u16 d16, [i]", 0x1234, 0xab, 0, 0xab34),
    ]
}
