//! What a launch did: instructions, bytes, sectors, conflicts.

use serde::Serialize;

use crate::lanes::{L64, LANES, Lanes};
use crate::operand::resolve;
use crate::syntax::Space;

/// What a launch executed and moved. The same kernel, sizes and seed give the same numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Instructions of warps
    pub warp_instructions: u64,
    /// Instructions of threads: those of warps, by their active lanes
    pub thread_instructions: u64,
    /// Instructions of warps that read or write global memory, atomics apart
    pub global_accesses: u64,
    /// Instructions of warps that read or write shared memory
    pub shared_accesses: u64,
    /// Instructions of warps that read or write local memory
    pub local_accesses: u64,
    /// Atomics of warps
    pub atomics: u64,
    /// Shuffles, votes, matches and reductions of warps
    pub exchanges: u64,
    /// Barriers of blocks
    pub barriers: u64,
    /// `mma.sync` instructions of warps
    pub mma: u64,
    /// Floating-point operations of those, 2·m·n·k each
    pub mma_flop: u64,
    /// Bytes read from global memory, as asked for
    pub global_read: u64,
    /// Bytes written to global memory, as asked for
    pub global_written: u64,
    /// Bytes that `cp.async` brought to shared memory
    pub async_copied: u64,
    /// 32-byte sectors of global memory that warps touched, counted once an instruction
    pub global_sectors: u64,
    /// Distinct 32-byte sectors that the launch read, volatile and ordered loads apart
    pub distinct_read: u64,
    /// Distinct 32-byte sectors that the launch wrote
    pub distinct_written: u64,
    /// Global accesses of less than 16 bytes a lane
    pub narrow_accesses: u64,
    /// Bytes read from global memory by such, as asked for
    pub narrow_read: u64,
    /// Cycles that accesses to shared memory take beyond one for each phase, by conflicts of its 32 banks
    pub bank_conflicts: u64,
    /// Those of `ldmatrix`
    pub matrix_conflicts: u64,
}

impl Counters {
    pub(crate) fn add(&mut self, other: &Counters) {
        macro_rules! sum {
            ($($field:ident),*) => { $(self.$field += other.$field;)* };
        }
        sum!(
            warp_instructions,
            thread_instructions,
            global_accesses,
            shared_accesses,
            local_accesses,
            atomics,
            exchanges,
            barriers,
            mma,
            mma_flop,
            global_read,
            global_written,
            async_copied,
            global_sectors,
            distinct_read,
            distinct_written,
            narrow_accesses,
            narrow_read,
            bank_conflicts,
            matrix_conflicts
        );
    }

    /// Counts a warp's access; whether it is to global memory.
    pub(crate) fn access(
        &mut self,
        active: u32,
        space: Option<Space>,
        addresses: &L64,
        size: usize,
        write: bool,
    ) -> bool {
        let first = addresses[active.trailing_zeros() as usize];
        match resolve(space, first).0 {
            Space::Global => {
                let bytes = u64::from(active.count_ones()) * size as u64;
                *(if write { &mut self.global_written } else { &mut self.global_read }) += bytes;
                self.global_accesses += 1;
                self.narrow_accesses += u64::from(size < 16);
                self.narrow_read += if write || size >= 16 { 0 } else { bytes };
                self.global_sectors += sectors(active, addresses, size);
                return true;
            }
            Space::Shared => {
                self.shared_accesses += 1;
                self.bank_conflicts += conflicts(active, addresses, size);
            }
            Space::Local => self.local_accesses += 1,
            Space::Const => return true,
            _ => {}
        }
        false
    }

    /// Counts an `ldmatrix` of the rows at some lanes' addresses.
    pub(crate) fn matrix_access(&mut self, rows: u32, addresses: &L64) {
        let conflicts = conflicts(rows, addresses, 16);
        self.shared_accesses += 1;
        self.bank_conflicts += conflicts;
        self.matrix_conflicts += conflicts;
    }
}

/// Whether each lane's bytes follow on the last one's.
#[inline]
fn in_line(addresses: &L64, size: u64) -> bool {
    let first = addresses[0];
    (0..LANES).fold(0, |off, lane| off | (addresses[lane] ^ first.wrapping_add(lane as u64 * size))) == 0
}

/// Sectors of 32 bytes that a warp's access touches.
fn sectors(active: u32, addresses: &L64, size: usize) -> u64 {
    let size = size as u64;
    let first = addresses[0];
    let in_line = active == u32::MAX && in_line(addresses, size);
    if in_line {
        return (first.wrapping_add(size * LANES as u64 - 1) / 32).wrapping_sub(first / 32) + 1;
    }
    let mut seen = [0u64; 2 * LANES];
    let mut count = 0;
    for lane in Lanes(active) {
        let (from, to) = (addresses[lane] / 32, addresses[lane].wrapping_add(size - 1) / 32);
        for sector in [from, to] {
            if !seen[..count].contains(&sector) {
                seen[count] = sector;
                count += 1;
            }
        }
    }
    count as u64
}

/// Cycles beyond one for each phase of a warp's access to shared memory. 32 lanes go at once with 4 bytes each, 16 with 8 and 8 with 16; lanes
/// that want the same word share it.
fn conflicts(active: u32, addresses: &L64, size: usize) -> u64 {
    if size >= 4 && active == u32::MAX && in_line(addresses, size as u64) {
        return 0;
    }
    let words = size.div_ceil(4);
    let together = LANES / words;
    let mut extra = 0;
    for phase in 0..words {
        let mask = active & ((((1u64 << together) - 1) as u32) << (phase * together));
        let mut used = [0u32; 32];
        let mut seen = [[0u64; 4]; 32];
        let mut most = 0;
        for lane in Lanes(mask) {
            for word in addresses[lane] / 4..addresses[lane] / 4 + words as u64 {
                let bank = (word % 32) as usize;
                let count = used[bank] as usize;
                // Beyond four words of a bank a repeated one may be counted again.
                if !seen[bank][..count.min(4)].contains(&word) {
                    seen[bank][count % 4] = word;
                    used[bank] += 1;
                    most = most.max(used[bank]);
                }
            }
        }
        extra += u64::from(most.saturating_sub(1));
    }
    extra
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: impl Fn(u64) -> u64) -> L64 {
        std::array::from_fn(|lane| address(lane as u64))
    }

    #[test]
    fn sectors_of_patterns() {
        assert_eq!(sectors(u32::MAX, &at(|l| 4 * l), 4), 4);
        assert_eq!(sectors(u32::MAX, &at(|l| 16 * l), 16), 16);
        assert_eq!(sectors(u32::MAX, &at(|l| 4 * l + 4), 4), 5);
        assert_eq!(sectors(u32::MAX, &at(|l| 128 * l), 4), 32);
        assert_eq!(sectors(0xff, &at(|_| 64), 4), 1);
        assert_eq!(sectors(0, &at(|l| l), 4), 0);
    }

    #[test]
    fn conflicts_of_patterns() {
        assert_eq!(conflicts(u32::MAX, &at(|l| 4 * l), 4), 0);
        assert_eq!(conflicts(u32::MAX, &at(|_| 8), 4), 0, "a word for all");
        assert_eq!(conflicts(u32::MAX, &at(|l| 8 * l), 4), 1, "every second bank");
        assert_eq!(conflicts(u32::MAX, &at(|l| 132 * l), 4), 0, "33 words a row");
        assert_eq!(conflicts(u32::MAX, &at(|l| 16 * l), 16), 0);
        assert_eq!(conflicts(u32::MAX, &at(|l| 128 * l), 16), 4 * 7);
        assert_eq!(conflicts(u32::MAX, &at(|l| 2 * l), 2), 0, "two lanes a word");
    }

    #[test]
    fn conflicts_of_one_bank() {
        assert_eq!(conflicts(u32::MAX, &at(|l| 128 * l), 4), 31);
    }
}
