//! What multiplies: the steps of a call that take X and W into products, for an [`Engine`] to do in its way.

use std::ops::Range;

use super::call::Call;
use super::gradient::RowConstants;
use super::load::Block;
use super::norm::Norm;
use super::numeric::Element;
use super::plan::Operands;
use crate::problem::TargetRow;

/// Products of X's and W's rows and of g with them, and so also how they are laid out. What is between the products is nobody's own.
///
/// `products`, `contract` and `feature_row` are `inline(always)`, to be compiled for the instruction set that the caller has dispatched to.
pub(super) trait Engine<X: Element, W: Element<Acc = X::Acc>> {
    /// What a lane has for its tiles.
    type Scratch: Default;

    fn operands() -> Operands;

    /// Step 1: a block's rows as right operands, in `memory`, of what [`operands`](Self::operands) says; that of dW where gradients are wanted.
    fn load<'b>(
        call: &Call<X, W>,
        rows: &'b [TargetRow],
        memory: &'b mut [X::Acc],
        gradients: bool,
    ) -> Block<'b, X::Acc>;

    /// Step 2: a tile's products, W·X̂ᵀ (classes, R), which σ makes cosines; its norms; and, but for f64, the (row of the block, c_iy) of its
    /// targets where they are asked for.
    fn products(
        call: &Call<X, W>,
        block: &Block<X::Acc>,
        classes: Range<usize>,
        norms: &mut [Option<Norm>],
        scratch: &mut Self::Scratch,
        out: &mut [X::Acc],
        targets: Option<&mut Vec<(u32, f64)>>,
    );

    /// Step 4, of a tile: cosines to g, g with W into dX, g with X into dW.
    fn contract<E: Element<Acc = X::Acc>>(
        call: &Call<X, W>,
        block: &Block<X::Acc>,
        tile: &mut LaneTile<X::Acc, E>,
        constants: &mut RowConstants<X::Acc>,
        scratch: &mut Self::Scratch,
    );

    /// Step 5, of row i of the block: dX is outer·(Σ − dot·factor·row), of the lanes' sums and dots; (row, factor, outer).
    fn feature_row<'r>(
        call: &Call<X, W>,
        block: &'r Block<X::Acc>,
        i: usize,
        scratch: &'r mut Vec<X::Acc>,
    ) -> (&'r [X::Acc], X::Acc, X::Acc);
}

/// A tile of a lane, its cosines made.
pub(super) struct LaneTile<'l, T, E: Element> {
    pub classes: Range<usize>,
    /// (classes, R), to be written over
    pub cosines: &'l mut [T],
    /// Known since the cosines
    pub norms: &'l mut [Option<Norm>],
    /// (R): takes Σ_j g·c as `feature_row` wants it
    pub row_dots: &'l mut [T],
    /// dX of the lane (R, D), where it is wanted; added to where true, else written over
    pub sum: Option<&'l mut [T]>,
    pub accumulate: bool,
    pub sink: WeightSink<'l, E>,
}

/// Where a range's or tile's dW goes.
pub(super) enum WeightSink<'s, E: Element> {
    /// Nowhere.
    None,
    /// Over what is there, rounded to E.
    Write(&'s mut [E]),
    /// Into sums of the accumulation type: added where true, else over what is there.
    Sum(&'s mut [E::Acc], bool),
}

impl<'s, E: Element> WeightSink<'s, E> {
    /// What is there, and nothing instead.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, WeightSink::None)
    }

    pub fn split(self, size: usize) -> Box<dyn Iterator<Item = WeightSink<'s, E>> + 's> {
        match self {
            WeightSink::None => Box::new(std::iter::repeat_with(|| WeightSink::None)),
            WeightSink::Write(dw) => Box::new(dw.chunks_mut(size).map(WeightSink::Write)),
            WeightSink::Sum(dw, add) => Box::new(dw.chunks_mut(size).map(move |dw| WeightSink::Sum(dw, add))),
        }
    }
}
