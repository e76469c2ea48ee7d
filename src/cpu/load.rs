//! Step 1: X̂ of a block of rows; and a tile of W's rows as the products take them.

use std::ops::Range;

use super::call::Call;
use super::norm::{Norm, normalize};
use super::numeric::{Element, Real};
use super::product::Matrix;
use super::vector::{LANES, load, store};
use crate::problem::TargetRow;

/// Rows handed out together where rows are independent.
pub(super) const PIECE: usize = LANES;

/// A block of rows, made ready.
pub(super) struct Block<'b, T> {
    pub rows: &'b [TargetRow],
    /// The right operand of dW, (R, D): X̂, or what an engine makes of X
    pub unit: &'b [T],
    /// The right operand of the cosines, (D, R): X̂ᵀ, or what an engine makes of X
    pub unit_t: &'b [T],
    /// What rows of these operands lack to be x̂, (R); nothing where they lack nothing
    pub scales: Vec<T>,
    pub norms: Vec<Norm>,
    /// (class, row of the block), sorted; of the rows whose target is a row of W
    by_class: Vec<(u32, u32)>,
}

impl<'b, T> Block<'b, T> {
    pub fn new(
        rows: &'b [TargetRow],
        by_class: Vec<(u32, u32)>,
        unit: &'b [T],
        unit_t: &'b [T],
        scales: Vec<T>,
        norms: Vec<Norm>,
    ) -> Self {
        Self { rows, unit, unit_t, scales, norms, by_class }
    }

    /// The rows whose targets are in `classes`, by class.
    pub fn targets_in(&self, classes: &Range<usize>) -> &[(u32, u32)] {
        let start = self.by_class.partition_point(|&(class, _)| (class as usize) < classes.start);
        let end = self.by_class.partition_point(|&(class, _)| (class as usize) < classes.end);
        &self.by_class[start..end]
    }
}

/// Takes the rows of one class off the front of sorted (class, row) pairs.
#[inline(always)]
pub(super) fn take_class<'t>(targets: &mut &'t [(u32, u32)], class: u32) -> &'t [(u32, u32)] {
    let count = targets.iter().take_while(|&&(of, _)| of == class).count();
    let (taken, rest) = targets.split_at(count);
    *targets = rest;
    taken
}

/// (row of W, row of the block) of the rows whose target takes part; sorted. `row_of` is a class's row of W, of `classes`.
fn by_class(rows: &[TargetRow], classes: usize, row_of: impl Fn(u32) -> Option<u32> + Clone) -> Vec<(u32, u32)> {
    let pairs = rows.iter().zip(0..).filter_map(|(target, row)| Some((row_of(target.class)?, row)));
    if classes > rows.len() {
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_unstable();
        return pairs;
    }
    // By counting: the places of a class begin where those of the classes before it end.
    let mut places = vec![0; classes + 1];
    pairs.clone().for_each(|(class, _)| places[class as usize + 1] += 1);
    for class in 0..classes {
        places[class + 1] += places[class];
    }
    let mut sorted = vec![(0, 0); places[classes]];
    for pair in pairs {
        let place = &mut places[pair.0 as usize];
        sorted[*place] = pair;
        *place += 1;
    }
    sorted
}

/// A tile of W as the products take it: Ŵ_j = σ_j · row j.
pub(super) struct Tile<'t, T> {
    pub rows: Matrix<'t, T>,
    data: &'t [T],
    row_stride: usize,
}

impl<'t, T: Real> Tile<'t, T> {
    #[inline(always)]
    pub fn row(&self, j: usize, d: usize) -> &'t [T] {
        &self.data[j * self.row_stride..][..d]
    }
}

impl<'a, X, W> Call<'a, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// (row of W, row of the block) of a block's targets.
    pub fn by_class(&self, rows: &[TargetRow]) -> Vec<(u32, u32)> {
        by_class(rows, self.c, |class| self.row_of(class))
    }

    /// Step 1: X̂ of a block's rows, and X̂ᵀ: `gemm` packs a left operand whose columns are not contiguous, and with X̂ it would pack all
    /// of it for every tile of W (a quarter of the cosines' time at 256 classes a tile).
    pub fn load_unit<'b>(&self, rows: &'b [TargetRow], unit: &'b mut [X::Acc]) -> Block<'b, X::Acc> {
        let (d, count) = (self.d, rows.len());
        let (unit, unit_t) = unit.split_at_mut(self.plan.rows * d);
        let (unit, unit_t) = (&mut unit[..count * d], &mut unit_t[..count * d]);
        let mut norms = vec![Norm::default(); count];
        let pieces = rows.chunks(PIECE).zip(unit.chunks_mut(PIECE * d)).zip(norms.chunks_mut(PIECE));
        self.each(pieces.collect(), |((rows, unit), norms)| {
            self.arch.dispatch(
                #[inline(always)]
                || {
                    for ((target, unit), norm) in rows.iter().zip(unit.chunks_exact_mut(d)).zip(norms.iter_mut()) {
                        self.x.widen_row(target.row, unit);
                        *norm = self.x_norm(unit);
                        normalize(unit, *norm);
                    }
                },
            );
        });
        // By squares: a column's elements are a power of two of bytes apart at many sizes, and would all be in the same few lines of the cache.
        self.each(unit_t.chunks_mut(PIECE * count).enumerate().collect(), |(piece, unit_t)| {
            for (start, rows) in (0..).step_by(PIECE).zip(unit.chunks(PIECE * d)) {
                let mut square = [[X::Acc::ZERO; PIECE]; PIECE];
                for (values, row) in square.iter_mut().zip(rows.chunks_exact(d)) {
                    *values = load(&row[piece * PIECE..]);
                }
                for (k, column) in unit_t.chunks_exact_mut(count).enumerate() {
                    let mut values = [X::Acc::ZERO; PIECE];
                    for (value, row) in values.iter_mut().zip(&square) {
                        *value = row[k];
                    }
                    store(&mut column[start..], values);
                }
            }
        });
        Block::new(rows, self.by_class(rows), unit, unit_t, Vec::new(), norms)
    }

    /// A tile of W: its own rows where they are of the accumulation type and short enough for products, else a copy in `scratch`.
    #[inline(always)]
    pub fn tile<'t>(
        &self,
        classes: Range<usize>,
        norms: &mut [Option<Norm>],
        scratch: &'t mut Vec<X::Acc>,
    ) -> Tile<'t, X::Acc>
    where
        'a: 't,
    {
        let (d, count) = (self.d, classes.len());
        if let Some((data, row_stride)) = self.w.borrow(classes.start) {
            for (j, norm) in norms.iter_mut().enumerate() {
                if norm.is_none() {
                    *norm = Some(self.w_norm(&data[j * row_stride..][..d]));
                }
            }
            if !norms.iter().flatten().any(|norm| norm.long) {
                return Tile { rows: Matrix::of_rows(data, count, d, row_stride), data, row_stride };
            }
        }
        scratch.resize(count * d, X::Acc::ZERO);
        for ((class, row), norm) in classes.zip(scratch.chunks_exact_mut(d)).zip(norms) {
            self.w.widen_row(class, row);
            let known = match *norm {
                Some(known) => known,
                None => self.w_norm(row),
            };
            *norm = Some(known);
            if known.long {
                normalize(row, known);
            }
        }
        Tile { rows: Matrix::of_rows(scratch, count, d, d), data: scratch, row_stride: d }
    }
}
