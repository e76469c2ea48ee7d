//! Steps 4 and 5: g contracted with W to dX, by lanes, and with X̂ to dW, by tiles; and what the normalisations take off.

use std::ops::Range;

use rayon::prelude::*;

use super::call::Call;
use super::gradient::RowConstants;
use super::load::{Block, PIECE, Tile};
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real};
use super::product::{Matrix, product};
use super::vector;

/// Where dX goes: rows of it, from a row of the batch on.
pub(super) struct FeatureSink<'s, E> {
    pub dx: &'s mut [E],
    pub first: usize,
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
    fn split(self, size: usize) -> Box<dyn Iterator<Item = WeightSink<'s, E>> + 's> {
        match self {
            WeightSink::None => Box::new(std::iter::repeat_with(|| WeightSink::None)),
            WeightSink::Write(dw) => Box::new(dw.chunks_mut(size).map(WeightSink::Write)),
            WeightSink::Sum(dw, add) => Box::new(dw.chunks_mut(size).map(move |dw| WeightSink::Sum(dw, add))),
        }
    }
}

/// A lane's share of a range.
struct Lane<'l, T, E: Element> {
    start: usize,
    cosines: &'l mut [T],
    norms: &'l mut [Option<Norm>],
    row_dots: &'l mut [T],
    sum: Option<&'l mut [T]>,
    sink: WeightSink<'l, E>,
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// Cosines of a block against a range of classes to gradients: into the lanes' sums of dX, (lanes, R, D), and into dW.
    #[allow(clippy::too_many_arguments)]
    pub fn contract<E: Element<Acc = X::Acc>>(
        &self,
        sums: Option<&mut [X::Acc]>,
        sink: WeightSink<E>,
        row_dots: &mut [X::Acc],
        cosines: &mut [X::Acc],
        block: &Block<X::Acc>,
        range: Range<usize>,
        norms: &mut [Option<Norm>],
        constants: &RowConstants<X::Acc>,
    ) {
        let (d, rows, width) = (self.d, block.rows.len(), self.plan.lane);
        let first_range = range.start == 0;
        let lanes: Vec<Lane<X::Acc, E>> = cosines[..rows * range.len()]
            .chunks_mut(width * rows)
            .zip(norms[range.clone()].chunks_mut(width))
            .zip(row_dots.chunks_mut(rows))
            .zip(split(sums, self.plan.rows * d))
            .zip(sink.split(width * d))
            .enumerate()
            .map(|(l, ((((cosines, norms), row_dots), sum), sink))| {
                let start = range.start + l * width;
                Lane { start, cosines, norms, row_dots, sum: sum.map(|sum| &mut sum[..rows * d]), sink }
            })
            .collect();
        let unit = Matrix::of_rows(block.unit, rows, d, d); // (R, D)
        self.each(lanes, |mut lane| {
            let mut constants = constants.clone();
            let (mut scratch, mut dw_scratch) = (Vec::new(), Vec::new());
            let tile_classes = self.plan.tile;
            let tiles = lane
                .cosines
                .chunks_mut(tile_classes * rows)
                .zip(lane.norms.chunks_mut(tile_classes))
                .zip(lane.sink.split(tile_classes * d));
            for (t, ((cosines, norms), mut sink)) in tiles.enumerate() {
                let start = lane.start + t * tile_classes;
                let classes = start..start + norms.len();
                self.arch.dispatch(
                    #[inline(always)]
                    || {
                        let class_dots =
                            self.gradient(cosines, lane.row_dots, block, classes.clone(), norms, &mut constants);
                        let tile = self.tile(classes.clone(), norms, &mut scratch);
                        if let Some(sum) = lane.sum.as_deref_mut() {
                            let g = Matrix::of_rows(cosines, norms.len(), rows, rows).transposed(); // (R, classes)
                            product(sum, t > 0 || !first_range, g, tile.rows);
                        }
                        self.write_weight(&mut sink, cosines, &tile, norms, unit, &class_dots, &mut dw_scratch);
                    },
                );
            }
        });
    }

    /// dW of a tile: h·X̂ − (Σ_i g·c)·ŵ, over ‖w‖. `gradients` (classes, R) holds h = σ·g.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn write_weight<E: Element<Acc = X::Acc>>(
        &self,
        sink: &mut WeightSink<E>,
        gradients: &mut [X::Acc],
        tile: &Tile<X::Acc>,
        norms: &[Option<Norm>],
        unit: Matrix<X::Acc>,
        class_dots: &[X::Acc],
        scratch: &mut Vec<X::Acc>,
    ) {
        let d = self.d;
        let rows = gradients.len() / norms.len();
        for (row, norm) in gradients.chunks_exact_mut(rows).zip(norms.iter().flatten()) {
            if norm.long {
                vector::scale(row, X::Acc::of(norm.inverse)); // σ was 1
            }
        }
        let lhs = Matrix::of_rows(gradients, norms.len(), rows, rows);
        match sink {
            WeightSink::None => {}
            WeightSink::Sum(dw, accumulate) => {
                product(dw, *accumulate, lhs, unit);
                self.project(dw, tile, norms, class_dots);
            }
            WeightSink::Write(dw) => match E::as_acc_mut(dw) {
                Some(dw) => {
                    product(dw, false, lhs, unit);
                    self.project(dw, tile, norms, class_dots);
                }
                None => {
                    scratch.resize(norms.len() * d, X::Acc::ZERO);
                    product(scratch, false, lhs, unit);
                    self.project(scratch, tile, norms, class_dots);
                    E::narrow_slice(scratch, dw);
                }
            },
        }
    }

    /// The derivative of W's normalisation: `dw` (classes, D) −= (Σ_i g·c)·ŵ / ‖w‖.
    #[inline(always)]
    fn project(&self, dw: &mut [X::Acc], tile: &Tile<X::Acc>, norms: &[Option<Norm>], class_dots: &[X::Acc]) {
        for (j, dw) in dw.chunks_exact_mut(self.d).enumerate() {
            if let Some(norm) = norms[j]
                && norm.projects
            {
                let factor = class_dots[j] * X::Acc::of(norm.inverse) * sigma(norm);
                vector::subtract_scaled(dw, tile.row(j, self.d), factor);
            }
        }
    }

    /// Step 5: dX of a block from the lanes' sums and dots.
    pub fn write_features<E: Element<Acc = X::Acc>>(
        &self,
        sink: &mut FeatureSink<E>,
        sums: &[X::Acc],
        row_dots: &[X::Acc],
        block: &Block<X::Acc>,
    ) {
        let (d, rows) = (self.d, block.rows.len());
        let lane_len = self.plan.rows * d;
        let (first, last) = (block.rows[0].row, block.rows[rows - 1].row);
        let mut wanted = block.rows.iter().enumerate().peekable();
        let mut outs: Vec<(usize, &mut [E])> = sink.dx[(first - sink.first) * d..(last + 1 - sink.first) * d]
            .chunks_exact_mut(d)
            .zip(first..)
            .filter_map(|(out, n)| wanted.next_if(|(_, target)| target.row == n).map(|(i, _)| (i, out)))
            .collect();
        self.each(outs.chunks_mut(PIECE).collect(), |outs| {
            self.arch.dispatch(
                #[inline(always)]
                || {
                    for (i, out) in outs.iter_mut() {
                        let norm = block.norms[*i];
                        let mut dot = X::Acc::ZERO;
                        if norm.projects {
                            for lane in row_dots.chunks_exact(rows) {
                                dot += lane[*i];
                            }
                        }
                        let inverse = X::Acc::of(norm.inverse);
                        let unit = &block.unit[*i * d..][..d];
                        let mut sum = [X::Acc::ZERO; 256];
                        for start in (0..d).step_by(sum.len()) {
                            let end = (start + sum.len()).min(d);
                            let sum = &mut sum[..end - start];
                            sum.fill(X::Acc::ZERO);
                            for lane in sums.chunks_exact(lane_len) {
                                vector::add(sum, &lane[*i * d + start..*i * d + end]);
                            }
                            vector::subtract_scaled(sum, &unit[start..end], dot);
                            vector::scale(sum, inverse);
                            E::narrow_slice(sum, &mut out[start..end]);
                        }
                    }
                },
            )
        });
    }

    /// dW of parts of the rows, (parts, C, D), added in their order.
    pub fn add_parts<E: Element<Acc = X::Acc>>(&self, weights: &mut [X::Acc], dw: &mut [E]) {
        let (sum, others) = weights.split_at_mut(self.c * self.d);
        let piece = PIECE * self.d;
        sum.par_chunks_mut(piece).zip(dw.par_chunks_mut(piece)).enumerate().for_each(|(i, (sum, dw))| {
            self.arch.dispatch(
                #[inline(always)]
                || {
                    for other in others.chunks_exact(self.c * self.d) {
                        vector::add(sum, &other[i * piece..][..sum.len()]);
                    }
                    E::narrow_slice(sum, dw);
                },
            );
        });
    }
}

/// Chunks of what there may be, or endlessly nothing.
fn split<T>(slice: Option<&mut [T]>, size: usize) -> impl Iterator<Item = Option<&mut [T]>> {
    let nothing = slice.is_none();
    slice
        .into_iter()
        .flat_map(move |slice| slice.chunks_mut(size))
        .map(Some)
        .chain(std::iter::repeat_with(|| None).take_while(move |_| nothing))
}
