//! Step 2: cosines, class-major (classes, R).

use std::ops::Range;

use super::call::{Call, Logit};
use super::engine::Engine;
use super::load::Block;
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real};
use super::statistics::{Accumulated, Partial};

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// Cosines of a block against a range of classes; their statistics, and into `targets` (R) the rows' c_iy, where they are asked for.
    pub fn cosines<P: Engine<X, W>>(
        &self,
        block: &Block<X::Acc>,
        range: Range<usize>,
        cosines: &mut [X::Acc],
        norms: &mut [Option<Norm>],
        accumulated: Option<&mut Accumulated>,
        targets: Option<&mut [f64]>,
    ) {
        struct Lane<'l, T> {
            start: usize,
            cosines: &'l mut [T],
            norms: &'l mut [Option<Norm>],
            partials: Vec<Partial<T>>,
            /// (row of the block, c_iy)
            targets: Vec<(u32, f64)>,
        }
        let (rows, width) = (block.rows.len(), self.plan.lane);
        let cosines = &mut cosines[..rows * range.len()];
        let (want, want_targets) = (accumulated.is_some(), targets.is_some());
        let mut lanes: Vec<Lane<X::Acc>> = cosines
            .chunks_mut(width * rows)
            .zip(norms[range.clone()].chunks_mut(width))
            .enumerate()
            .map(|(l, (cosines, norms))| {
                let start = range.start + l * width;
                Lane { start, cosines, norms, partials: Vec::new(), targets: Vec::new() }
            })
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
                        let targets = want_targets.then_some(&mut lane.targets);
                        P::products(self, block, classes.clone(), norms, &mut scratch, cosines, targets);
                        if want {
                            lane.partials.push(self.statistics(cosines, block, classes.clone(), norms));
                        } else {
                            for ((row, norm), class) in
                                cosines.chunks_exact_mut(rows).zip(norms.iter()).zip(classes.clone())
                            {
                                to_cosines(row, sigma(norm.expect("set with the tile")), self.logit(class));
                            }
                        }
                        if want_targets && X::Acc::IS_F64 {
                            for &(class, row) in block.targets_in(&classes) {
                                let cosine = cosines[(class as usize - start) * rows + row as usize];
                                lane.targets.push((row, cosine.f64()));
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
        }
        if let Some(targets) = targets {
            for &(row, cosine) in lanes.iter().flat_map(|lane| &lane.targets) {
                targets[row as usize] = cosine;
            }
        }
    }
}

/// Products to cosines.
#[inline(always)]
fn to_cosines<T: Real>(row: &mut [T], sigma: T, logit: Logit<T>) {
    for c in row {
        *c = logit.cosine(*c, sigma);
    }
}
