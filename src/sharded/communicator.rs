//! [`Communicator`]: the few operations that a sharded loss asks of what connects its ranks.

use candle_core::Tensor;

use crate::error::{Error, Result};

/// What connects P ranks: threads of one process, processes by MPI, or what a user brings.
///
/// Every rank calls the same operations in the same order. `counts` says how many rows are each rank's, the same on all of them. Tensors
/// are on the CPU. Nobody hangs: where a rank aborts, panics or is dropped while others wait, their operation is an error, and every one
/// after it.
pub trait Communicator: Send + Sync {
    /// This rank, below [`size`](Self::size)
    fn rank(&self) -> usize;

    /// P
    fn size(&self) -> usize;

    /// The ranks' rows, one rank's after the other: of `rows` (counts\[rank\], …) all (Σ counts, …).
    ///
    /// # Errors
    /// A rank that has failed, or left.
    fn all_gather(&self, rows: &Tensor, counts: &[usize]) -> Result<Tensor>;

    /// This rank's rows of every rank's: of `rows` (Σ counts, …) those of rank q go to q, and (P, counts\[rank\], …) come, by the rank that
    /// sent them.
    ///
    /// # Errors
    /// A rank that has failed, or left.
    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<Tensor>;

    /// Ends the others' operations, and this one's, with an error that says why.
    fn abort(&self, why: &str);

    /// Bytes that came from other ranks so far.
    fn received_bytes(&self) -> u64;
}

/// That a tensor has the rows that `counts` gives it.
pub(super) fn check_rows(rows: &Tensor, expected: usize) -> Result<()> {
    match rows.dims().first() {
        Some(&found) if found == expected => Ok(()),
        _ => Err(Error::Sharded(format!("{expected} rows are to be exchanged, the tensor is {:?}", rows.dims()))),
    }
}

/// A tensor's bytes.
pub(super) fn bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}
