//! Step 2: cosines, class-major (classes, R).

use std::ops::Range;

use super::call::Call;
use super::engine::Engine;
use super::load::Block;
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real};
use super::statistics::{Accumulated, Partial, cosine};

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// Cosines of a block against a range of classes, and their statistics where they are asked for.
    pub fn cosines<P: Engine<X, W>>(
        &self,
        block: &Block<X::Acc>,
        range: Range<usize>,
        cosines: &mut [X::Acc],
        norms: &mut [Option<Norm>],
        accumulated: Option<&mut Accumulated>,
    ) {
        struct Lane<'l, T> {
            start: usize,
            cosines: &'l mut [T],
            norms: &'l mut [Option<Norm>],
            partials: Vec<Partial<T>>,
        }
        let (rows, width) = (block.rows.len(), self.plan.lane);
        let cosines = &mut cosines[..rows * range.len()];
        let want = accumulated.is_some();
        let mut lanes: Vec<Lane<X::Acc>> = cosines
            .chunks_mut(width * rows)
            .zip(norms[range.clone()].chunks_mut(width))
            .enumerate()
            .map(|(l, (cosines, norms))| Lane { start: range.start + l * width, cosines, norms, partials: Vec::new() })
            .collect();
        let lanes_mut: Vec<&mut Lane<X::Acc>> = lanes.iter_mut().collect();
        self.each(lanes_mut, |lane| {
            let mut scratch = P::Scratch::default();
            let tile_classes = self.plan.tile;
            let tiles = lane.cosines.chunks_mut(tile_classes * rows).zip(lane.norms.chunks_mut(tile_classes));
            for (t, (cosines, norms)) in tiles.enumerate() {
                let start = lane.start + t * tile_classes;
                let classes = start..start + norms.len();
                self.arch.dispatch(
                    #[inline(always)]
                    || {
                        P::products(self, block, classes.clone(), norms, &mut scratch, cosines);
                        if want {
                            lane.partials.push(self.statistics(cosines, block, classes, norms));
                        } else {
                            for (row, norm) in cosines.chunks_exact_mut(rows).zip(norms.iter()) {
                                to_cosines(row, sigma(norm.expect("set with the tile")));
                            }
                        }
                    },
                );
            }
        });
        if let Some(accumulated) = accumulated {
            for partial in lanes.iter_mut().flat_map(|lane| &mut lane.partials) {
                accumulated.fold(&partial.view(rows));
            }
            for &(class, row) in block.targets_in(&range) {
                let j = class as usize - range.start;
                let cosine = lanes[j / width].cosines[j % width * rows + row as usize];
                accumulated.target[row as usize] = cosine.f64();
            }
        }
    }
}

/// Products to cosines.
#[inline(always)]
fn to_cosines<T: Real>(row: &mut [T], sigma: T) {
    for c in row {
        *c = cosine(*c, sigma);
    }
}
