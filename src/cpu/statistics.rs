//! What a row's cosines leave for its loss: the largest logit, the sum of exponentials, the best class; of a tile, and folded over tiles.
//!
//! Sweeps are `inline(always)`, to be compiled for the instruction set that the caller has dispatched to. Classes are outermost, so that rows are
//! vector lanes; a row's target is masked by putting back what was there rather than by a branch.

use std::ops::Range;

use super::call::{Call, Logit};
use super::load::{Block, take_class};
use super::numeric::{Element, Real};

/// Per row, over the non-target classes of one tile: what the tiles of all classes fold into a log-sum. Each (R).
#[derive(Debug)]
pub(super) struct Statistics<'a, T> {
    /// max z
    pub max: &'a mut [T],
    /// Σ exp(z − max)
    pub sum: &'a mut [T],
    /// Σ c
    pub total: &'a mut [T],
    /// max c, the target included
    pub best: &'a mut [T],
    /// its class, the lowest at a tie
    pub best_class: &'a mut [u32],
}

/// A tile's statistics, (R) each.
pub(super) struct Partial<T> {
    /// max, sum, total and best, one after the other
    values: Vec<T>,
    best_class: Vec<u32>,
}

impl<T: Real> Partial<T> {
    fn new(rows: usize) -> Self {
        let mut values = vec![T::NEG_INFINITY; 4 * rows];
        values[rows..3 * rows].fill(T::ZERO);
        Self { values, best_class: vec![0; rows] }
    }

    pub fn view(&mut self, rows: usize) -> Statistics<'_, T> {
        let (max, rest) = self.values.split_at_mut(rows);
        let (sum, rest) = rest.split_at_mut(rows);
        let (total, best) = rest.split_at_mut(rows);
        Statistics { max, sum, total, best, best_class: &mut self.best_class }
    }
}

/// Statistics of a block's rows over the classes seen so far, (R) each.
#[derive(Debug)]
pub(super) struct Accumulated {
    /// max_{j≠y} z
    pub max: Vec<f64>,
    /// Σ_{j≠y} exp(z − max)
    pub sum: Vec<f64>,
    /// Σ_{j≠y} c
    pub total: Vec<f64>,
    best: Vec<f64>,
    pub best_class: Vec<u32>,
    /// c_iy
    pub target: Vec<f64>,
}

impl Accumulated {
    pub fn new(rows: usize) -> Self {
        Self {
            max: vec![f64::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            total: vec![0.0; rows],
            best: vec![f64::NEG_INFINITY; rows],
            best_class: vec![0; rows],
            target: vec![0.0; rows],
        }
    }

    /// Adds the statistics of the next tile; tiles come by rising class.
    pub fn fold<T: Real>(&mut self, tile: &Statistics<T>) {
        for i in 0..self.max.len() {
            let (max, sum) = (tile.max[i].f64(), tile.sum[i].f64());
            if max > self.max[i] {
                self.sum[i] = self.sum[i] * (self.max[i] - max).exp() + sum;
                self.max[i] = max;
            } else if max == f64::NEG_INFINITY {
                // No non-target in the tile (0), or NaN: (−∞) − (−∞) is not to be formed.
                self.sum[i] += sum;
            } else {
                self.sum[i] += sum * (max - self.max[i]).exp();
            }
            self.total[i] += tile.total[i].f64();
            let best = tile.best[i].f64();
            if best > self.best[i] {
                (self.best[i], self.best_class[i]) = (best, tile.best_class[i]);
            }
        }
    }
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// A tile's statistics, from its cosines (classes, R).
    #[inline(always)]
    pub fn statistics(&self, block: &Block<X::Acc>, classes: Range<usize>, cosines: &[X::Acc]) -> Partial<X::Acc> {
        let rows = block.rows.len();
        let mut partial = Partial::new(rows);
        let mut saved = Vec::new();
        let mut out = partial.view(rows);
        let mut targets = block.targets_in(&classes);
        for (row, class) in cosines.chunks_exact(rows).zip(classes.clone()) {
            let of_class = take_class(&mut targets, class as u32);
            maxima(row, class as u32, self.logit(class), of_class, &mut saved, &mut out);
        }
        let mut targets = block.targets_in(&classes);
        for (row, class) in cosines.chunks_exact(rows).zip(classes) {
            let of_class = take_class(&mut targets, class as u32);
            sums(row, self.logit(class), of_class, &mut saved, &mut out);
        }
        partial
    }
}

/// A tile's first pass, one class: maxima and sums. `targets` are the rows whose target is this class.
#[inline(always)]
fn maxima<T: Real>(
    cosines: &[T],
    class: u32,
    logit: Logit<T>,
    targets: &[(u32, u32)],
    saved: &mut Vec<(T, T)>,
    out: &mut Statistics<T>,
) {
    saved.clear();
    saved.extend(targets.iter().map(|&(_, row)| (out.max[row as usize], out.total[row as usize])));
    let rows = cosines.len();
    let (max, total) = (&mut out.max[..rows], &mut out.total[..rows]);
    let (best, best_class) = (&mut out.best[..rows], &mut out.best_class[..rows]);
    for i in 0..rows {
        let c = cosines[i];
        let z = logit.of(c);
        max[i] = if z > max[i] { z } else { max[i] };
        total[i] += c;
        best_class[i] = if c > best[i] { class } else { best_class[i] };
        best[i] = if c > best[i] { c } else { best[i] };
    }
    for (&(_, row), &(max, total)) in targets.iter().zip(saved.iter()) {
        (out.max[row as usize], out.total[row as usize]) = (max, total);
    }
}

/// A tile's second pass, one class: Σ exp(z − max).
#[inline(always)]
fn sums<T: Real>(
    cosines: &[T],
    logit: Logit<T>,
    targets: &[(u32, u32)],
    saved: &mut Vec<(T, T)>,
    out: &mut Statistics<T>,
) {
    saved.clear();
    saved.extend(targets.iter().map(|&(_, row)| (out.sum[row as usize], T::ZERO)));
    let rows = cosines.len();
    let (max, sum) = (&out.max[..rows], &mut out.sum[..rows]);
    for i in 0..rows {
        sum[i] += (logit.of(cosines[i]) - max[i]).exp();
    }
    for (&(_, row), &(sum, _)) in targets.iter().zip(saved.iter()) {
        out.sum[row as usize] = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_tile_changes_nothing() {
        let mut all = Accumulated::new(1);
        let fold = |all: &mut Accumulated, max: f32, sum: f32| {
            let (mut max, mut sum, mut total, mut best) = ([max], [sum], [0f32], [f32::NEG_INFINITY]);
            let mut best_class = [0];
            all.fold(&Statistics {
                max: &mut max,
                sum: &mut sum,
                total: &mut total,
                best: &mut best,
                best_class: &mut best_class,
            });
        };
        fold(&mut all, f32::NEG_INFINITY, 0.0);
        assert_eq!((all.max[0], all.sum[0]), (f64::NEG_INFINITY, 0.0));
        fold(&mut all, 2.0, 1.5);
        fold(&mut all, f32::NEG_INFINITY, 0.0);
        assert_eq!((all.max[0], all.sum[0]), (2.0, 1.5));
        fold(&mut all, 3.0, 1.0);
        assert!((all.sum[0] - (1.0 + 1.5 * (-1f64).exp())).abs() < 1e-12);
    }
}
