//! Classes over many ranks: each owns some rows of W, their gradient and their optimizer's state, and of every row of the batch a few
//! numbers are exchanged.
//!
//! - [`ClassShard`] says which classes are a rank's.
//! - [`MarginLoss::partial`](crate::MarginLoss::partial) and [`MarginLoss::finish`](crate::MarginLoss::finish) are the core, which
//!   communicates with nobody: bring any transport.
//! - [`MarginLoss::sharded`](crate::MarginLoss::sharded) is the loss over ranks that a [`Communicator`] connects: [`Threads`] of one
//!   process, processes by MPI (`Mpi`, feature `mpi`), or what implements it.
//! - [`save_sharded`] and [`load_sharded`] write and read checkpoints that any number of ranks takes up; [`sum_over_ranks`] is for a
//!   backbone's gradients.
//!
//! `docs/sharded.md` has the messages, their sizes and what fails how.

mod agreement;
mod bytes;
mod checkpoint;
mod communicator;
mod loss;
#[cfg(feature = "mpi")]
mod mpi;
mod partial;
mod reduce;
mod sample;
mod shard;
mod sparse;
mod threads;

pub use checkpoint::{load_sharded, save_sharded};
pub use communicator::Communicator;
pub use loss::{PhaseCost, SampledGradients, ShardedLoss};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use partial::{Partial, ShardOutput};
pub use reduce::sum_over_ranks;
pub use sample::Sampling;
pub use shard::ClassShard;
pub use sparse::{SparseAdamW, SparseSgd, round_rows};
pub use threads::Threads;
