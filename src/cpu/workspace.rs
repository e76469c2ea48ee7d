//! The memory a call works in: kept between calls, so that a training step does not pay for fresh pages.

use std::sync::Mutex;

use super::numeric::Real;

/// Buffers that are not in use, one for every call that ever ran at the same time as others.
#[derive(Debug, Default)]
pub(crate) struct WorkspacePool {
    pub(super) f32: Mutex<Vec<Vec<f32>>>,
    pub(super) f64: Mutex<Vec<Vec<f64>>>,
}

impl WorkspacePool {
    /// Lends a buffer of `len` elements of unspecified values to `work`.
    pub(super) fn with<T: Real, R>(&self, len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
        let buffers = T::buffers(self);
        let kept = buffers.lock().ok().and_then(|mut kept| kept.pop());
        let mut buffer = kept.unwrap_or_default();
        if buffer.len() < len {
            drop(buffer);
            buffer = T::zeros(len);
        }
        let result = work(&mut buffer[..len]);
        if let Ok(mut kept) = buffers.lock() {
            kept.push(buffer);
        }
        result
    }
}
