//! Checkpoints: tensors and a record in JSON, in one safetensors file that is either whole or not there.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The name of the record among the tensors.
const RECORD: &str = "record.json";

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {source}; the checkpoint that was there is as it was", path = path.display())]
    Write { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{path} is no checkpoint of this program: {what}", path = path.display())]
    Read { path: PathBuf, what: String },
}

/// Writes beside `path`, and puts the file in its place once it is on the disk.
pub fn save<R: Serialize>(
    path: &Path,
    mut tensors: HashMap<String, Tensor>,
    record: &R,
) -> Result<(), CheckpointError> {
    let beside = path.with_extension("partial");
    let mut write = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let record = serde_json::to_vec(record)?;
        let length = record.len();
        tensors.insert(RECORD.into(), Tensor::from_vec(record, length, &Device::Cpu)?);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        candle_core::safetensors::save(&tensors, &beside)?;
        File::open(&beside)?.sync_all()?;
        std::fs::rename(&beside, path)?;
        Ok(())
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&beside);
        CheckpointError::Write { path: path.to_path_buf(), source }
    })
}

/// The tensors, on `device`, and the record.
pub fn load<R: DeserializeOwned>(
    path: &Path,
    device: &Device,
) -> Result<(HashMap<String, Tensor>, R), CheckpointError> {
    let failed = |what: String| CheckpointError::Read { path: path.to_path_buf(), what };
    let mut tensors = candle_core::safetensors::load(path, device).map_err(|error| failed(error.to_string()))?;
    let record = tensors.remove(RECORD).ok_or_else(|| failed(format!("it has no {RECORD}")))?;
    let record = record.to_vec1::<u8>().map_err(|error| failed(error.to_string()))?;
    let record = serde_json::from_slice(&record).map_err(|error| failed(error.to_string()))?;
    Ok((tensors, record))
}
