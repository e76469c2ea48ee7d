//! Steps 4 and 5: g contracted with W to dX, by lanes, and with X̂ to dW, by tiles; and what the normalisations take off.

use std::ops::Range;

use rayon::prelude::*;

use super::call::Call;
use super::engine::{Engine, LaneTile, WeightSink};
use super::gradient::RowConstants;
use super::load::{Block, PIECE};
use super::norm::Norm;
use super::numeric::{Element, Real};
use super::vector;

/// Where dX goes: rows of it, from a row of the batch on.
pub(super) struct FeatureSink<'s, E> {
    pub dx: &'s mut [E],
    pub first: usize,
}

/// A lane's share of a range.
struct Lane<'l, T, E: Element> {
    start: usize,
    cosines: &'l mut [T],
    norms: &'l mut [Option<Norm>],
    row_dots: &'l mut [T],
    sum: Option<&'l mut [T]>,
    bias: Option<&'l mut [f64]>,
    sink: WeightSink<'l, E>,
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// Cosines of a block against a range of classes to gradients: into the lanes' sums of dX, (lanes, R, D), into dW, and added to the bias's,
    /// dB (classes), where it is wanted.
    #[allow(clippy::too_many_arguments)]
    pub fn contract<P: Engine<X, W>, E: Element<Acc = X::Acc>>(
        &self,
        sums: Option<&mut [X::Acc]>,
        sink: WeightSink<E>,
        row_dots: &mut [X::Acc],
        cosines: &mut [X::Acc],
        block: &Block<X::Acc>,
        range: Range<usize>,
        norms: &mut [Option<Norm>],
        constants: &RowConstants<X::Acc>,
        bias: Option<&mut [f64]>,
    ) {
        let (d, rows, width) = (self.d, block.rows.len(), self.plan.lane);
        let first_range = range.start == 0;
        let lanes: Vec<Lane<X::Acc, E>> = cosines[..rows * range.len()]
            .chunks_mut(width * rows)
            .zip(norms[range.clone()].chunks_mut(width))
            .zip(row_dots.chunks_mut(rows))
            .zip(split(sums, self.plan.rows * d))
            .zip(sink.split(width * d))
            .zip(split(bias, width))
            .enumerate()
            .map(|(l, (((((cosines, norms), row_dots), sum), sink), bias))| {
                let start = range.start + l * width;
                Lane { start, cosines, norms, row_dots, sum: sum.map(|sum| &mut sum[..rows * d]), bias, sink }
            })
            .collect();
        self.each(lanes, |mut lane| {
            let mut constants = constants.clone();
            let mut scratch = P::Scratch::default();
            let tile_classes = self.plan.tile;
            let tiles = lane
                .cosines
                .chunks_mut(tile_classes * rows)
                .zip(lane.norms.chunks_mut(tile_classes))
                .zip(lane.sink.split(tile_classes * d));
            for (t, ((cosines, norms), sink)) in tiles.enumerate() {
                let start = lane.start + t * tile_classes;
                let mut tile = LaneTile {
                    classes: start..start + norms.len(),
                    cosines,
                    norms,
                    row_dots: &mut *lane.row_dots,
                    sum: lane.sum.as_deref_mut(),
                    accumulate: t > 0 || !first_range,
                    sink,
                };
                self.arch.dispatch(
                    #[inline(always)]
                    || P::contract(self, block, &mut tile, &mut constants, &mut scratch),
                );
            }
            // Of a head with a bias no row is divided by its norm: the cosines have become ∂L/∂(x·w + b).
            if let Some(bias) = lane.bias {
                for (bias, g) in bias.iter_mut().zip(lane.cosines.chunks_exact(rows)) {
                    *bias += g.iter().map(|g| g.f64()).sum::<f64>();
                }
            }
        });
    }

    /// Step 5: dX of a block from the lanes' sums and dots.
    pub fn write_features<P: Engine<X, W>, E: Element<Acc = X::Acc>>(
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
                    let mut scratch = Vec::new();
                    for (i, out) in outs.iter_mut() {
                        let norm = block.norms[*i];
                        let mut dot = X::Acc::ZERO;
                        if norm.projects {
                            for lane in row_dots.chunks_exact(rows) {
                                dot += lane[*i];
                            }
                        }
                        let (row, scale, outer) = P::feature_row(self, block, *i, &mut scratch);
                        let mut sum = [X::Acc::ZERO; 256];
                        for start in (0..d).step_by(sum.len()) {
                            let end = (start + sum.len()).min(d);
                            let sum = &mut sum[..end - start];
                            sum.fill(X::Acc::ZERO);
                            for lane in sums.chunks_exact(lane_len) {
                                vector::add(sum, &lane[*i * d + start..*i * d + end]);
                            }
                            vector::subtract_scaled(sum, &row[start..end], dot * scale);
                            vector::scale(sum, outer);
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
