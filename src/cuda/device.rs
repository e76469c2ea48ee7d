//! What a device can do and its kernels, each found once; and how a kernel is launched on it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute, CUstreamCaptureStatus};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig};

use super::kind::Kind;
use super::modules;
use super::plan::{Limits, THREADS};
use crate::error::{Error, Result};

/// A device as the launchers see it. Of one CUDA context, which Candle's devices of the same ordinal share.
pub(super) struct Kernels {
    pub limits: Limits,
    capability: u32,
    context: Arc<CudaContext>,
    loaded: Mutex<HashMap<(&'static str, Kind), Arc<Kernel>>>,
    /// The fewest multiprocessors that a cooperative launch was refused on; [`usize::MAX`] where none was
    refused: AtomicUsize,
}

/// A kernel on a device, with what of it has been asked of the driver.
pub(super) struct Kernel {
    pub function: CudaFunction,
    /// Bytes of dynamic shared memory that a block may have
    most_shared: usize,
    /// Blocks that a multiprocessor holds, by their dynamic shared memory
    resident: Mutex<HashMap<usize, usize>>,
}

/// Kept as long as the process: a context is its device's only one, and modules are not to be loaded again for the next loss.
static DEVICES: Mutex<Vec<Arc<Kernels>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernels {
    /// Those of a stream's device.
    pub fn of(stream: &CudaStream) -> Result<Arc<Self>> {
        let context = stream.context();
        let mut devices = lock(&DEVICES);
        if let Some(found) = devices.iter().find(|device| device.context.cu_ctx() == context.cu_ctx()) {
            return Ok(found.clone());
        }
        let (capability, limits) = limits(context)?;
        let found = Arc::new(Self {
            limits,
            capability,
            context: context.clone(),
            loaded: Mutex::default(),
            refused: AtomicUsize::new(usize::MAX),
        });
        devices.push(found.clone());
        Ok(found)
    }

    /// `kernel` for a kind. What comes at the same time waits: a module is loaded once.
    pub fn get(&self, kernel: &'static str, kind: Kind) -> Result<Arc<Kernel>> {
        let mut loaded = lock(&self.loaded);
        if let Some(found) = loaded.get(&(kernel, kind)) {
            return Ok(found.clone());
        }
        self.context.bind_to_thread().w()?;
        let function = modules::load(&self.context, self.capability, &format!("{kernel}_{}", kind.suffix()))?;
        let own = function.get_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).w()? as usize;
        let most_shared = self.limits.shared_a_block.saturating_sub(own);
        let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(which, most_shared as i32).w()?;
        let found = Arc::new(Kernel { function, most_shared, resident: Mutex::default() });
        loaded.insert((kernel, kind), found.clone());
        Ok(found)
    }

    /// Whether a cooperative launch on so many multiprocessors is worth asking for: the device has not refused one on as many or fewer, as one does
    /// that others use, too.
    pub fn may_cooperate(&self, multiprocessors: usize) -> bool {
        multiprocessors < self.refused.load(Relaxed)
    }

    /// Remembers that the device has refused a cooperative launch.
    pub fn refused(&self, multiprocessors: usize) {
        self.refused.fetch_min(multiprocessors, Relaxed);
    }
}

impl Kernel {
    /// Whether a block may have so many bytes of dynamic shared memory.
    pub fn allows(&self, shared: usize) -> bool {
        shared <= self.most_shared
    }

    /// Blocks with so many bytes of dynamic shared memory that a multiprocessor holds.
    pub fn resident(&self, shared: usize) -> Result<usize> {
        let mut resident = lock(&self.resident);
        if let Some(&found) = resident.get(&shared) {
            return Ok(found);
        }
        let found = self.function.occupancy_max_active_blocks_per_multiprocessor(THREADS, shared, None).w()? as usize;
        resident.insert(shared, found);
        Ok(found)
    }

    /// A grid of blocks with so many bytes of dynamic shared memory; an error where the device has less for a block.
    pub fn config(&self, blocks: usize, shared: usize) -> Result<LaunchConfig> {
        if !self.allows(shared) {
            let most = self.most_shared;
            return Err(Error::Input(format!(
                "a block of the device has {most} bytes of shared memory, the kernels need {shared}"
            )));
        }
        // A grid has at most 2³¹ − 1 blocks along x.
        let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32);
        let blocks = blocks.ok_or_else(|| Error::Input("a problem of more tiles than a CUDA grid can have".into()))?;
        Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: shared as u32 })
    }
}

/// What a device can do: its compute capability, 80 for 8.0, and what plans depend on.
fn limits(context: &CudaContext) -> Result<(u32, Limits)> {
    let attribute = |which| context.attribute(which).w();
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if major < 8 {
        return Err(Error::Input(format!("the device's compute capability is {major}.{minor}, the kernels need 8.0")));
    }
    let count = |which| attribute(which).map(|value| value as usize);
    let limits = Limits {
        multiprocessors: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_a_block: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_a_multiprocessor: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        cooperative: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
    };
    Ok(((10 * major + minor) as u32, limits))
}

/// Whether what is put into a stream is captured into a graph.
pub(super) fn is_capturing(stream: &CudaStream) -> Result<bool> {
    Ok(stream.capture_status().w()? != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// What of a call cannot be captured is refused before any of it is; `waits` says that the call is to wait for the device.
pub(super) fn check_capture(stream: &CudaStream, waits: bool) -> Result<()> {
    let has_events = stream.context().is_managing_stream_synchronization();
    if !(has_events || waits) || !is_capturing(stream)? {
        return Ok(());
    }
    let why = if has_events {
        "tensors of a device with a stream of its own wait for events from outside of the capture: call CudaDevice::disable_event_tracking before it"
    } else {
        "its labels are checked, which waits for the device: build the loss with check_labels(false)"
    };
    Err(Error::Input(format!("this step cannot be captured into a graph: {why}")))
}
