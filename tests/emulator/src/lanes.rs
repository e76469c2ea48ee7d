//! A warp's lanes, and values of all of them.

/// Lanes of a warp
pub(crate) const LANES: usize = 32;

/// A 32-bit value of each lane; narrower ones lie in the low bits.
pub(crate) type L32 = [u32; LANES];
/// A 64-bit value of each lane.
pub(crate) type L64 = [u64; LANES];

/// The lanes of a mask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes(pub u32);

impl Iterator for Lanes {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let lane = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(lane)
    }
}

impl Lanes {
    /// The mask of those of them for which something holds.
    #[inline]
    pub fn where_holds(self, holds: impl Fn(usize) -> bool) -> u32 {
        self.fold(0, |mask, lane| mask | u32::from(holds(lane)) << lane)
    }
}
