//! What a device can do, its modules of kernels, and how a kernel is launched on it.

use candle_core::CudaDevice;
use candle_core::cuda_backend::WrapErr;
use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{CudaFunction, CudaStream, LaunchConfig};

use super::kind::Kind;
use super::plan::{Limits, THREADS};
use crate::error::{Error, Result};

/// Kernels compiled together. Candle keeps modules by name, whoever brought them: the name is ours alone.
pub(super) struct Module {
    pub name: &'static str,
    pub ptx: &'static str,
}

impl Module {
    /// `kernel` for a kind.
    pub fn function(&self, device: &CudaDevice, kernel: &str, kind: Kind) -> Result<CudaFunction> {
        let function = device.get_or_load_custom_func(&format!("{kernel}_{}", kind.suffix()), self.name, self.ptx)?;
        Ok(CudaFunction::clone(&function))
    }
}

pub(super) fn limits(stream: &CudaStream) -> Result<Limits> {
    let attribute = |which| stream.context().attribute(which).w();
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    if major < 8 {
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        return Err(Error::Input(format!("the device's compute capability is {major}.{minor}, the kernels need 8.0")));
    }
    let count = |which| attribute(which).map(|value| value as usize);
    Ok(Limits {
        multiprocessors: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_a_block: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_a_multiprocessor: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        cooperative: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
    })
}

pub(super) fn config(blocks: usize) -> Result<LaunchConfig> {
    // A grid has at most 2³¹ − 1 blocks along x.
    let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32);
    let blocks = blocks.ok_or_else(|| Error::Input("a problem of more tiles than a CUDA grid can have".into()))?;
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 })
}

/// Lets a function have as much dynamic shared memory as the device has for a block; false where that is less than `wanted` bytes.
pub(super) fn allow_shared(function: &CudaFunction, limits: &Limits, wanted: usize) -> Result<bool> {
    // The same in every call: the attribute is the function's, and calls on other threads set it, too.
    let own = function.get_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).w()? as usize;
    let most = limits.shared_a_block.saturating_sub(own);
    if wanted > most {
        return Ok(false);
    }
    function.set_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most as i32).w()?;
    Ok(true)
}

/// `config` with `shared` bytes of dynamic shared memory, which the function is allowed; an error where the device has less for a block.
pub(super) fn with_shared(
    function: &CudaFunction,
    limits: &Limits,
    config: LaunchConfig,
    shared: usize,
) -> Result<LaunchConfig> {
    // What every block may have takes no leave.
    const USUAL: usize = 40 << 10;
    if shared > USUAL && !allow_shared(function, limits, shared)? {
        let most = limits.shared_a_block;
        return Err(Error::Input(format!(
            "a block of the device has {most} bytes of shared memory, the kernels need {shared}"
        )));
    }
    Ok(LaunchConfig { shared_mem_bytes: shared as u32, ..config })
}
