//! Candle's tensors as slices: of any strides, a row at a time, to read; contiguous, to write.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Layout, Tensor};
use half::{bf16, f16};

use super::numeric::{AnySlice, Element};
use crate::error::{Error, Result};
use crate::problem::{Gradients, same_storage};

/// The rows of a strided (rows, cols) tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a, E> {
    data: &'a [E],
    offset: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    /// Which of the tensor's rows they are, where they are not all
    index: Option<&'a [u32]>,
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
            index: None,
        }
    }

    /// Those of them that `index` names.
    pub fn of_index(self, index: Option<&'a [u32]>) -> Self {
        Self { index, ..self }
    }

    /// Widens row `row` into `out`.
    #[inline(always)]
    pub fn widen_row(&self, row: usize, out: &mut [E::Acc]) {
        let row = self.index.map_or(row, |index| index[row] as usize);
        let start = self.offset + row * self.row_stride;
        if self.col_stride == 1 {
            E::widen_slice(&self.data[start..start + self.cols], out);
        } else {
            for (d, out) in out.iter_mut().enumerate() {
                *out = self.data[start + d * self.col_stride].widen();
            }
        }
    }

    /// Rows from `row` on, where their elements lie side by side: (slice, row stride).
    pub fn side_by_side(&self, row: usize) -> Option<(&'a [E], usize)> {
        (self.col_stride == 1 && self.index.is_none())
            .then(|| (&self.data[self.offset + row * self.row_stride..], self.row_stride))
    }

    /// Rows from `row` on, where they can be read as they are: (slice, row stride).
    pub fn borrow(&self, row: usize) -> Option<(&'a [E::Acc], usize)> {
        let (data, row_stride) = self.side_by_side(row)?;
        Some((E::as_acc(data)?, row_stride))
    }
}

/// A new tensor for the gradient of `like`, of `dtype`.
pub(crate) fn new_gradient(like: &Tensor, dtype: DType) -> Result<Tensor> {
    fn zeros<E: Element>(like: &Tensor) -> Result<Tensor> {
        Ok(Tensor::from_vec(E::zeros(like.elem_count()), like.dims(), like.device())?)
    }
    match dtype {
        DType::F64 => zeros::<f64>(like),
        DType::F32 => zeros::<f32>(like),
        DType::F16 => zeros::<f16>(like),
        _ => zeros::<bf16>(like),
    }
}

/// Lends `work` the elements of the gradients to write: of two tensors, or of two places of one storage.
pub(super) fn with_slices<X: Element, W: Element, R>(
    out: Gradients,
    work: impl FnOnce(Option<&mut [X]>, Option<&mut [W]>) -> Result<R>,
) -> Result<R> {
    match (out.features, out.weight) {
        (None, None) => work(None, None),
        (Some(dx), None) => with_storage(dx, |all| work(Some(&mut all[place(dx)]), None)),
        (None, Some(dw)) => with_storage(dw, |all| work(None, Some(&mut all[place(dw)]))),
        (Some(dx), Some(dw)) if !same_storage(dx, dw) => with_storage(dx, |x: &mut [X]| {
            with_storage(dw, |w: &mut [W]| work(Some(&mut x[place(dx)]), Some(&mut w[place(dw)])))
        }),
        (Some(dx), Some(dw)) => with_storage(dx, |all: &mut [X]| {
            // The places do not overlap: what calls has seen to that.
            let (x, w) = (place(dx), place(dw));
            let (dx, dw) = if x.start <= w.start {
                let (low, high) = all.split_at_mut(w.start);
                (&mut low[x], &mut high[..w.len()])
            } else {
                let (low, high) = all.split_at_mut(x.start);
                (&mut high[..x.len()], &mut low[w])
            };
            let dw = W::of_slice(X::any_slice(dw)).ok_or_else(|| Error::Input("dX and dW differ in type".into()))?;
            work(Some(dx), Some(dw))
        }),
    }
}

/// Where a contiguous tensor's elements are in its storage.
fn place(tensor: &Tensor) -> Range<usize> {
    let start = tensor.layout().start_offset();
    start..start + tensor.elem_count()
}

/// Lends `work` all elements of a tensor's storage.
fn with_storage<E: Element, R>(tensor: &Tensor, work: impl FnOnce(&mut [E]) -> Result<R>) -> Result<R> {
    let mut result = None;
    let write = |elements: &mut [E]| result = Some(work(elements));
    tensor.inplace_op1(&Write(RefCell::new(Some(Box::new(write)))))?;
    result.unwrap_or_else(|| Err(Error::Input("a gradient tensor that is not on the CPU".into())))
}

/// Lends `work` the elements of a contiguous f32 tensor, to be written over.
pub(crate) fn with_f32<R>(tensor: &Tensor, work: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    with_storage(tensor, |all: &mut [f32]| Ok(work(&mut all[place(tensor)])))
}

/// Candle's way to a tensor's storage for writing: an in-place op, here with what to do with the elements.
struct Write<'w, E>(RefCell<Option<WriteFn<'w, E>>>);

type WriteFn<'w, E> = Box<dyn FnOnce(&mut [E]) + 'w>;

impl<E: Element> candle_core::InplaceOp1 for Write<'_, E> {
    fn name(&self) -> &'static str {
        "margin-loss-gradient"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let elements = E::of_slice(AnySlice::of(storage)?);
        let elements = elements.ok_or_else(|| candle_core::Error::msg("a gradient tensor of another dtype"))?;
        if let Some(write) = self.0.take() {
            write(elements);
        }
        Ok(())
    }
}
