//! A loss's tables on the devices that it is used on.

use std::sync::{Arc, Mutex};

use candle_core::CudaDevice;
use candle_core::cuda_backend::DeviceId;
use cudarc::driver::CudaSlice;

use crate::error::Result;
use crate::options::Params;

/// A loss's tables on the devices it has been used on: uploaded once for each.
#[derive(Debug, Default)]
pub(crate) struct TablePool(Mutex<Vec<(DeviceId, Arc<Tables>)>>);

/// (C) each, f64. A prior or weights that are the same for every class are left out.
#[derive(Debug)]
pub(super) struct Tables {
    pub angular: CudaSlice<f64>,
    pub additive: CudaSlice<f64>,
    pub prior: Option<CudaSlice<f64>>,
    pub weights: Option<CudaSlice<f64>>,
}

impl TablePool {
    pub(super) fn on(&self, device: &CudaDevice, params: &Params) -> Result<Arc<Tables>> {
        let mut all = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, tables)) = all.iter().find(|(id, _)| *id == device.id()) {
            return Ok(tables.clone());
        }
        let upload = |values: &[f64]| device.clone_htod(values);
        let unless =
            |values: &[f64], plain: f64| values.iter().any(|&v| v != plain).then(|| upload(values)).transpose();
        let tables = Arc::new(Tables {
            angular: upload(&params.angular)?,
            additive: upload(&params.additive)?,
            prior: unless(&params.log_prior, 0.0)?,
            weights: unless(&params.weights, 1.0)?,
        });
        all.push((device.id(), tables.clone()));
        Ok(tables)
    }
}
