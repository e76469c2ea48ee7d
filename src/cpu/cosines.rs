//! Step 2: cosines, class-major (classes, R).

use std::ops::Range;

use super::call::Call;
use super::load::{Block, Tile};
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real};
use super::product::{Matrix, product};
use super::statistics::{Accumulated, Partial, cosine};
use super::vector;

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// Cosines of a block against a range of classes; their statistics, and into `targets` (R) the rows' c_iy, where they are asked for.
    pub fn cosines(
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
        let (d, rows, width) = (self.d, block.rows.len(), self.plan.lane);
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
        let unit = Matrix::of_rows(block.unit_t, d, rows, rows); // (D, R)
        let lanes_mut: Vec<&mut Lane<X::Acc>> = lanes.iter_mut().collect();
        self.each(lanes_mut, |lane| {
            let mut scratch = Vec::new();
            let tile_classes = self.plan.tile;
            let tiles = lane.cosines.chunks_mut(tile_classes * rows).zip(lane.norms.chunks_mut(tile_classes));
            for (t, (cosines, norms)) in tiles.enumerate() {
                let start = lane.start + t * tile_classes;
                let classes = start..start + norms.len();
                self.arch.dispatch(
                    #[inline(always)]
                    || {
                        let tile = self.tile(classes.clone(), norms, &mut scratch);
                        product(cosines, false, tile.rows, unit);
                        if want {
                            lane.partials.push(self.statistics(cosines, block, classes.clone(), norms));
                        } else {
                            for (row, norm) in cosines.chunks_exact_mut(rows).zip(norms.iter()) {
                                to_cosines(row, sigma(norm.expect("set with the tile")));
                            }
                        }
                        if want_targets {
                            self.targets(cosines, block, classes.clone(), &tile, norms, &mut lane.targets);
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

    /// The cosines of a tile's targets, (row of the block, c_iy).
    #[inline(always)]
    fn targets(
        &self,
        cosines: &[X::Acc],
        block: &Block<X::Acc>,
        classes: Range<usize>,
        tile: &Tile<X::Acc>,
        norms: &[Option<Norm>],
        out: &mut Vec<(u32, f64)>,
    ) {
        let (d, rows) = (self.d, block.rows.len());
        for &(class, row) in block.targets_in(&classes) {
            let (class, i) = (class as usize - classes.start, row as usize);
            let cosine = if X::Acc::IS_F64 {
                cosines[class * rows + i].f64()
            } else {
                let norm = norms[class].expect("set with the tile");
                target(&block.unit[i * d..][..d], block.norms[i], tile.row(class, d), norm)
            };
            out.push((row, cosine));
        }
    }
}

/// A target's cosine in f64, from x̂ and its row of a tile of W: ψ′ takes an error of it by 1/θ², so that f32's is all of dX at small angles.
#[inline(always)]
fn target<T: Real>(x: &[T], x_norm: Norm, w: &[T], w_norm: Norm) -> f64 {
    let (xx, ww, xw) = vector::dots(x, w);
    // Rows shorter than 1e-12 are divided by that.
    let x_inverse = if x_norm.projects { 1.0 / xx.sqrt() } else { 1.0 };
    let w_inverse = if w_norm.projects { 1.0 / ww.sqrt() } else { w_norm.inverse };
    cosine(xw * x_inverse, w_inverse)
}

/// Products to cosines.
#[inline(always)]
fn to_cosines<T: Real>(row: &mut [T], sigma: T) {
    for c in row {
        *c = cosine(*c, sigma);
    }
}
