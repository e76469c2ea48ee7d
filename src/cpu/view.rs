//! Tensors of any strides, a row at a time.

use candle_core::Layout;

use super::numeric::Element;

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
