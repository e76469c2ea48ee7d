//! Executes PTX on the CPU, with checks and counters: the beginning of the emulated GPU that the CUDA tests are to run on.
//!
//! What is here: a parser of what nvcc writes, a decoder, and an interpreter of warps (32 lanes at a time) with divergence, barriers,
//! shuffles, votes, atomics and every space of memory; out-of-bounds, misaligned, freed and never-written accesses, races in shared memory,
//! barriers that only part of a block reaches and deadlocks are reported with kernel, source line, block and thread. `README.md` says what
//! is missing.

mod count;
mod error;
mod exec;
mod gpu;
mod lanes;
mod launch;
mod memory;
pub mod nvcc;
mod order;
mod program;
mod shared;
pub mod syntax;
mod tensor;

pub use count::Counters;
pub use error::{Error, Fault, FaultKind, Result};
pub use gpu::{Gpu, Plain};
pub use launch::{LaunchConfig, Limits, Module};
pub use memory::Memory;
pub use program::Kernel;
