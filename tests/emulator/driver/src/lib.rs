//! A stand-in for `libcuda.so.1` and the libraries that Candle's device links (cuBLAS, cuBLASLt, cuRAND, NVRTC, cudart): one shared object
//! under all their names. Kernels run on [`ptx_emulator`], when something waits for them or later: `streams.rs` has the queues. `device.rs` is the device and its errors, the other files are the C interfaces.
//!
//! What is not here fails with "not supported" and its name on the standard error. No panic leaves the library.

pub mod blas;
mod capture;
pub mod cuda;
mod device;
pub mod random;
pub mod runtime;
mod streams;
mod stubs;

pub use device::last_message;
