//! Sums over ranks, in their order.

use candle_core::Tensor;

use super::communicator::Communicator;
use super::shard::ClassShard;
use crate::error::Result;

/// The sum of every rank's `tensor`, on every rank: of a backbone's gradients, whose loss is that of all ranks' rows.
///
/// Every rank sums its share of the elements, in the order of ranks, and all gather the sums: 2·(P − 1)/P of the tensor's bytes come to a
/// rank.
///
/// # Errors
/// A rank that has failed, or left; tensors of other shapes or dtypes on other ranks.
pub fn sum_over_ranks(tensor: &Tensor, communicator: &dyn Communicator) -> Result<Tensor> {
    let size = communicator.size();
    let elements = tensor.elem_count();
    let counts: Vec<usize> =
        (0..size).map(|rank| Ok(ClassShard::balanced(elements, rank, size)?.len())).collect::<Result<_>>()?;
    let parts = communicator.all_to_all(&tensor.flatten_all()?, &counts)?;
    Ok(communicator.all_gather(&fold(&parts)?, &counts)?.reshape(tensor.dims())?)
}

/// Ranks' parts (P, …) added in their order, whoever's came first.
pub(super) fn fold(parts: &Tensor) -> Result<Tensor> {
    let mut sum = parts.get(0)?;
    for rank in 1..parts.dims()[0] {
        sum = (sum + parts.get(rank)?)?;
    }
    Ok(sum)
}
