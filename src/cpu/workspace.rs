//! The memory a call works in: kept between calls, so that a training step does not pay for fresh pages.

use std::any::Any;
use std::sync::Mutex;

use super::numeric::Real;

/// Buffers (`Vec<f32>`, `Vec<f64>`) that are not in use, one for every call that ever ran at the same time as others.
#[derive(Debug, Default)]
pub(crate) struct WorkspacePool(Mutex<Vec<Box<dyn Any + Send>>>);

impl WorkspacePool {
    /// Lends a buffer of `len` elements of unspecified values to `work`.
    pub(super) fn with<T: Real, R>(&self, len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
        let mut buffer = self.take::<T>().unwrap_or_default();
        if buffer.len() < len {
            drop(buffer);
            buffer = T::zeros(len);
        }
        let result = work(&mut buffer[..len]);
        if let Ok(mut kept) = self.0.lock() {
            kept.push(Box::new(buffer));
        }
        result
    }

    fn take<T: Real>(&self) -> Option<Vec<T>> {
        let mut kept = self.0.lock().ok()?;
        let at = kept.iter().rposition(|buffer| buffer.is::<Vec<T>>())?;
        kept.swap_remove(at).downcast().ok().map(|buffer| *buffer)
    }
}
