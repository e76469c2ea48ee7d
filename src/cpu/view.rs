//! Candle's tensors as slices: of any strides, a row at a time, to read; contiguous, to write.

use std::cell::RefCell;

use candle_core::{CpuStorage, Layout, Tensor};

use super::numeric::Element;
use crate::error::{Error, Result};

/// The rows of a strided (rows, cols) tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a, E> {
    data: &'a [E],
    offset: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, E: Element> Rows<'a, E> {
    pub fn new(data: &'a [E], layout: &Layout) -> Self {
        let stride = layout.stride();
        Self {
            data,
            offset: layout.start_offset(),
            cols: layout.dims()[1],
            row_stride: stride[0],
            col_stride: stride[1],
        }
    }

    /// Widens row `row` into `out`.
    pub fn widen_row(&self, row: usize, out: &mut [E::Acc]) {
        let start = self.offset + row * self.row_stride;
        if self.col_stride == 1 {
            E::widen_slice(&self.data[start..start + self.cols], out);
        } else {
            for (d, out) in out.iter_mut().enumerate() {
                *out = self.data[start + d * self.col_stride].widen();
            }
        }
    }

    /// Rows from `row` on, where they can be read as they are: (slice, row stride).
    pub fn borrow(&self, row: usize) -> Option<(&'a [E::Acc], usize)> {
        if self.col_stride != 1 {
            return None;
        }
        Some((E::as_acc(&self.data[self.offset + row * self.row_stride..])?, self.row_stride))
    }
}

/// Lends `work` the elements of a contiguous tensor to write.
pub(super) fn with_slice<E: Element, R>(
    tensor: Option<&Tensor>,
    work: impl FnOnce(Option<&mut [E]>) -> Result<R>,
) -> Result<R> {
    let Some(tensor) = tensor else { return work(None) };
    let mut result = None;
    let write = |elements: &mut [E]| result = Some(work(Some(elements)));
    tensor.inplace_op1(&Write(RefCell::new(Some(Box::new(write)))))?;
    result.unwrap_or_else(|| Err(Error::Input("a gradient tensor that is not on the CPU".into())))
}

/// Candle's way to a tensor's storage for writing: an in-place op, here with what to do with the elements.
struct Write<'w, E>(RefCell<Option<WriteFn<'w, E>>>);

type WriteFn<'w, E> = Box<dyn FnOnce(&mut [E]) + 'w>;

impl<E: Element> candle_core::InplaceOp1 for Write<'_, E> {
    fn name(&self) -> &'static str {
        "margin-loss-gradient"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let start = layout.start_offset();
        let elements = E::storage_mut(storage)
            .and_then(|all| all.get_mut(start..start + layout.shape().elem_count()))
            .ok_or_else(|| candle_core::Error::msg("a gradient tensor of another dtype or size"))?;
        if let Some(write) = self.0.take() {
            write(elements);
        }
        Ok(())
    }
}
