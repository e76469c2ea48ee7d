//! A loss's tables on the devices that it is used on.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use candle_core::CudaDevice;
use candle_core::cuda_backend::{DeviceId, WrapErr};
use cudarc::driver::result;

use super::checks::Checks;
use super::device::{Kernels, is_capturing};
use super::workspace::{Memory, WorkspacePool, settle};
use crate::error::{Error, Result};
use crate::options::Params;
use crate::problem::bad_row;

/// What a loss keeps on the devices it has been used on: its tables, uploaded once for each, and its workspaces where it keeps them.
#[derive(Default)]
pub(crate) struct TablePool {
    tables: Mutex<Vec<(DeviceId, Arc<Tables>)>>,
    pub(super) workspaces: WorkspacePool,
    pub(super) checks: Checks,
}

/// Addresses of tables (C) of f64, which do not change. A prior or weights that are the same for every class are left out.
pub(super) struct Tables {
    pub angular: u64,
    pub additive: u64,
    pub prior: Option<u64>,
    pub weights: Option<u64>,
    /// 1: the factor of a reduction that is not applied
    pub one: u64,
    /// The device's
    pub kernels: Arc<Kernels>,
    memory: Memory,
    /// The thread that made them, and whether others have used them
    owner: ThreadId,
    shared: AtomicBool,
}

impl TablePool {
    /// The error of the first call that the device has answered with one; with `wait` it answers all calls first.
    pub fn hear(&self, params: &Params, wait: bool) -> Result<()> {
        self.checks.hear(wait, |labels, rows, row| bad_row(params, labels, rows, row))
    }

    pub(super) fn on(&self, device: &CudaDevice, params: &Params) -> Result<Arc<Tables>> {
        let mut all = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, tables)) = all.iter().find(|(id, _)| *id == device.id()) {
            if std::thread::current().id() != tables.owner {
                tables.shared.store(true, Relaxed);
            }
            return Ok(tables.clone());
        }
        let tables = Arc::new(Tables::new(device, params)?);
        all.push((device.id(), tables.clone()));
        Ok(tables)
    }
}

impl Tables {
    fn new(device: &CudaDevice, params: &Params) -> Result<Self> {
        let stream = device.cuda_stream();
        if is_capturing(&stream)? {
            let text = "a loss's first step on a device cannot be captured into a graph: make one before the capture";
            return Err(Error::Input(text.into()));
        }
        let kernels = Kernels::of(&stream)?;
        let mut values = vec![1.0];
        let mut add = |table: &[f64]| {
            values.extend_from_slice(table);
            values.len() - table.len()
        };
        let unless = |table: &[f64], plain: f64| table.iter().any(|&v| v != plain);
        let (angular, additive) = (add(&params.angular), add(&params.additive));
        let prior = unless(&params.log_prior, 0.0).then(|| add(&params.log_prior));
        let weights = unless(&params.weights, 1.0).then(|| add(&params.weights));
        let memory = Memory::new(&stream, 8 * values.len())?;
        // SAFETY: as many bytes, of an allocation in the same stream; `values` outlives the wait below.
        unsafe { result::memcpy_htod_async(memory.address, &values, stream.cu_stream()) }.w()?;
        // Calls on other threads take the tables as they are, on streams of their own. An event would have each of those streams wait for it, one call of
        // the driver in every step; this is one wait for a loss and a device.
        stream.synchronize().w()?;
        let at = |place: usize| memory.address + 8 * place as u64;
        let (prior, weights) = (prior.map(at), weights.map(at));
        Ok(Self {
            angular: at(angular),
            additive: at(additive),
            prior,
            weights,
            one: at(0),
            kernels,
            memory,
            owner: std::thread::current().id(),
            shared: AtomicBool::new(false),
        })
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        if self.shared.load(Relaxed) || std::thread::current().id() != self.owner {
            settle(self.memory.stream());
        }
    }
}
