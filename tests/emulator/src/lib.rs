//! Executes PTX on the CPU, with checks and counters: the emulated GPU that the CUDA tests run on.
//!
//! A parser of what nvcc writes, a decoder, and an interpreter of warps (32 lanes at a time). Out-of-bounds, misaligned, freed and never-written
//! accesses, races, barriers that only part of a block reaches and deadlocks are reported with kernel, source line, block and thread.
//! `README.md` says what is where and what is missing.

mod block;
mod count;
mod decode;
mod error;
mod gpu;
mod instructions;
mod kernel;
mod lanes;
mod launch;
mod line;
mod memory;
mod names;
pub mod nvcc;
mod operand;
mod order;
mod poison;
mod shared;
mod step;
pub mod syntax;
mod warp;

pub use count::Counters;
pub use error::{Error, Fault, FaultKind, Result};
pub use gpu::{Gpu, Plain};
pub use kernel::Kernel;
pub use launch::{LaunchConfig, Limits, Module};
pub use memory::Memory;
