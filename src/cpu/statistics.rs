//! What a row's cosines leave for its loss: the largest logit, the sum of exponentials, the best class; of a tile, and folded over tiles.
//!
//! Sweeps are `inline(always)`, to be compiled for the instruction set that the caller has dispatched to. Classes are outermost, so that rows are
//! vector lanes; a row's target is masked by putting back what was there rather than by a branch.

use std::ops::Range;

use super::call::{Call, Logit};
use super::load::{Block, take_class};
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real};
use super::vector::{self, LANES, load, store};

/// Per row, over the non-target classes of one tile: what the tiles of all classes fold into a log-sum. Each (R).
#[derive(Debug)]
pub(super) struct Statistics<'a, T> {
    /// max z, or 0 where no maximum is needed
    pub max: &'a mut [T],
    /// Σ exp(z − max)
    pub sum: &'a mut [T],
    /// Σ σ_j·c, where labels are smoothed
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
    fn new(rows: usize, max: T) -> Self {
        let mut values = vec![T::ZERO; 4 * rows];
        values[..rows].fill(max);
        values[3 * rows..].fill(T::NEG_INFINITY);
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
    /// max_{j≠y} z, or 0 where no maximum is needed
    pub max: Vec<f64>,
    /// Σ_{j≠y} exp(z − max)
    pub sum: Vec<f64>,
    /// Σ_{j≠y} σ_j·c, where labels are smoothed
    pub total: Vec<f64>,
    best: Vec<f64>,
    pub best_class: Vec<u32>,
}

impl Accumulated {
    pub fn new(rows: usize) -> Self {
        Self {
            max: vec![f64::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            total: vec![0.0; rows],
            best: vec![f64::NEG_INFINITY; rows],
            best_class: vec![0; rows],
        }
    }

    /// Of rows that are folded already.
    pub fn of(rows: &[RowStatistics]) -> Self {
        Self {
            max: rows.iter().map(|row| row.max).collect(),
            sum: rows.iter().map(|row| row.sum).collect(),
            total: rows.iter().map(|row| row.total).collect(),
            best: rows.iter().map(|row| row.best).collect(),
            best_class: rows.iter().map(|row| row.best_class).collect(),
        }
    }

    /// A row's, with its best class of all, and its target's cosine.
    pub fn row(&self, i: usize, class_of: impl Fn(usize) -> usize, target: f64) -> RowStatistics {
        RowStatistics {
            max: self.max[i],
            sum: self.sum[i],
            total: self.total[i],
            best: self.best[i],
            best_class: class_of(self.best_class[i] as usize) as u32,
            target,
        }
    }

    /// Adds the statistics of the next tile; tiles come by rising class.
    pub fn fold<T: Real>(&mut self, tile: &Statistics<T>) {
        for i in 0..self.max.len() {
            let next = (tile.max[i].f64(), tile.sum[i].f64());
            (self.max[i], self.sum[i]) = add_exponentials((self.max[i], self.sum[i]), next);
            self.total[i] += tile.total[i].f64();
            let best = tile.best[i].f64();
            if best > self.best[i] {
                (self.best[i], self.best_class[i]) = (best, tile.best_class[i]);
            }
        }
    }
}

/// A row's statistics over some of the classes: [`Accumulated`], with classes counted from the first of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RowStatistics {
    /// max_{j≠y} z, or 0 where no maximum is needed
    pub max: f64,
    /// Σ_{j≠y} exp(z − max)
    pub sum: f64,
    /// Σ_{j≠y} σ_j·c, where labels are smoothed
    pub total: f64,
    /// max c, the target included
    pub best: f64,
    /// its class, the lowest at a tie
    pub best_class: u32,
    /// c_iy, where y is among them, else ∞
    pub target: f64,
}

impl RowStatistics {
    /// Those of no class.
    pub const EMPTY: Self = Self {
        max: f64::NEG_INFINITY,
        sum: 0.0,
        total: 0.0,
        best: f64::NEG_INFINITY,
        best_class: 0,
        target: f64::INFINITY,
    };

    /// Adds the statistics of the next classes.
    pub fn fold(&mut self, next: &Self) {
        (self.max, self.sum) = add_exponentials((self.max, self.sum), (next.max, next.sum));
        self.total += next.total;
        if next.best > self.best {
            (self.best, self.best_class) = (next.best, next.best_class);
        }
        if next.target != f64::INFINITY {
            self.target = next.target;
        }
    }
}

/// Two sums of exponentials, each over e^max, as one: (max, Σ).
pub(super) fn add_exponentials((max, sum): (f64, f64), (next_max, next_sum): (f64, f64)) -> (f64, f64) {
    if next_max == max || next_max == f64::NEG_INFINITY {
        // −∞: no non-target there (0), or NaN: (−∞) − (−∞) is not to be formed.
        (max, sum + next_sum)
    } else if next_max > max {
        (next_max, sum * (max - next_max).exp() + next_sum)
    } else {
        (max, sum + next_sum * (next_max - max).exp())
    }
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// A tile's products of W and X̂ᵀ (classes, R) to cosines, in place, and their statistics.
    ///
    /// Where the logits' range is safe ([`Call::bounded`]) the sums take no maximum off: one sweep instead of two.
    #[inline(always)]
    pub fn statistics(
        &self,
        products: &mut [X::Acc],
        block: &Block<X::Acc>,
        classes: Range<usize>,
        norms: &[Option<Norm>],
    ) -> Partial<X::Acc> {
        let rows = block.rows.len();
        let mut partial = Partial::new(rows, if self.bounded { X::Acc::ZERO } else { X::Acc::NEG_INFINITY });
        let mut saved = Vec::new();
        let mut out = partial.view(rows);
        if !self.bounded {
            let mut targets = block.targets_in(&classes);
            for ((row, class), norm) in products.chunks_exact(rows).zip(classes.clone()).zip(norms) {
                let of_class = take_class(&mut targets, class as u32);
                let sigma = sigma(norm.expect("set with the tile"));
                maxima(row, sigma, self.logit(class), of_class, &mut saved, out.max);
            }
        }
        let mut targets = block.targets_in(&classes);
        for ((row, class), norm) in products.chunks_exact_mut(rows).zip(classes).zip(norms) {
            let of_class = take_class(&mut targets, class as u32);
            let sigma = sigma(norm.expect("set with the tile"));
            sums(row, sigma, class as u32, self.logit(class), of_class, &mut saved, &mut out);
            if self.params.label_smoothing > 0.0 {
                saved.clear();
                saved.extend(of_class.iter().map(|&(_, row)| out.total[row as usize]));
                vector::subtract_scaled(out.total, row, X::Acc::ZERO - self.logit(class).class_scale);
                of_class.iter().zip(&saved).for_each(|(&(_, row), &before)| out.total[row as usize] = before);
            }
        }
        partial
    }
}

/// A target's cosine in f64: ψ′ takes an error of it by 1/θ², so that f32's is all of dX at small angles. Of each side the row, whether it is divided by
/// its own length, and what it is multiplied by if not; `limit` is the largest, 1 of a cosine.
#[inline(always)]
pub(super) fn exact_cosine<T: Real>(x: (&[T], bool, f64), w: (&[T], bool, f64), limit: f64) -> f64 {
    let (xx, ww, xw) = vector::dots(x.0, w.0);
    let x_inverse = if x.1 { 1.0 / xx.sqrt() } else { x.2 };
    let w_inverse = if w.1 { 1.0 / ww.sqrt() } else { w.2 };
    (xw * x_inverse * w_inverse).clamp(-limit, limit)
}

/// Of one class, into `max` (R). `targets` are the rows whose target is this class.
#[inline(always)]
fn maxima<T: Real>(
    products: &[T],
    sigma: T,
    logit: Logit<T>,
    targets: &[(u32, u32)],
    saved: &mut Vec<T>,
    max: &mut [T],
) {
    saved.clear();
    saved.extend(targets.iter().map(|&(_, row)| max[row as usize]));
    for (max, &product) in max.iter_mut().zip(products) {
        let z = logit.of(logit.cosine(product, sigma));
        *max = if z > *max { z } else { *max };
    }
    for (&(_, row), &before) in targets.iter().zip(saved.iter()) {
        max[row as usize] = before;
    }
}

/// One class: products to cosines, their sum of exponentials and their best.
#[inline(always)]
fn sums<T: Real>(
    products: &mut [T],
    sigma: T,
    class: u32,
    logit: Logit<T>,
    targets: &[(u32, u32)],
    saved: &mut Vec<T>,
    out: &mut Statistics<T>,
) {
    saved.clear();
    saved.extend(targets.iter().map(|&(_, row)| out.sum[row as usize]));
    let rows = products.len();
    let (max, sum) = (&out.max[..rows], &mut out.sum[..rows]);
    let (best, best_class) = (&mut out.best[..rows], &mut out.best_class[..rows]);
    let (whole, c_rest) = products.as_chunks_mut::<LANES>();
    let ((max, max_rest), (sum, sum_rest)) = (max.as_chunks::<LANES>(), sum.as_chunks_mut::<LANES>());
    let ((best, best_rest), (classes, classes_rest)) =
        (best.as_chunks_mut::<LANES>(), best_class.as_chunks_mut::<LANES>());
    for ((((c, max), sum), best), best_class) in whole.iter_mut().zip(max).zip(sum).zip(best).zip(classes) {
        sums_of_lanes(c, sigma, class, logit, max, sum, best, best_class);
    }
    if !c_rest.is_empty() {
        let (mut c, mut sum, mut best) = (load(c_rest), load(sum_rest), load(best_rest));
        let mut best_class = load(classes_rest);
        sums_of_lanes(&mut c, sigma, class, logit, &load(max_rest), &mut sum, &mut best, &mut best_class);
        store(c_rest, c);
        store(sum_rest, sum);
        store(best_rest, best);
        store(classes_rest, best_class);
    }
    for (&(_, row), &before) in targets.iter().zip(saved.iter()) {
        out.sum[row as usize] = before;
    }
}

/// [`sums`] of LANES rows. One loop, from copies to new values: of one a step the compiler makes vectors of two, of one in place branches.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn sums_of_lanes<T: Real>(
    c: &mut [T; LANES],
    sigma: T,
    class: u32,
    logit: Logit<T>,
    max: &[T; LANES],
    sum: &mut [T; LANES],
    best: &mut [T; LANES],
    best_class: &mut [u32; LANES],
) {
    let (products, max, sums, bests, classes) = (*c, *max, *sum, *best, *best_class);
    let (mut new_c, mut new_sum, mut new_best) = ([T::ZERO; LANES], [T::ZERO; LANES], [T::ZERO; LANES]);
    let mut new_class = [0; LANES];
    for l in 0..LANES {
        let cosine = logit.cosine(products[l], sigma);
        let better = cosine > bests[l];
        new_c[l] = cosine;
        new_sum[l] = sums[l] + (logit.of(cosine) - max[l]).exp();
        new_best[l] = if better { cosine } else { bests[l] };
        new_class[l] = if better { class } else { classes[l] };
    }
    (*c, *sum, *best, *best_class) = (new_c, new_sum, new_best, new_class);
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
