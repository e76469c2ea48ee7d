//! Step 4: g from cosines, in place.

use std::ops::Range;

use super::call::{Call, Logit};
use super::finish::{RowState, sigmoid};
use super::load::{Block, take_class};
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real};
use super::vector::LANES;
use crate::problem::TargetRow;

/// What g_ij = factor_i·exp(z_ij − max_i) − uniform_i takes of a row, j ≠ y. Each (R).
#[derive(Debug, Clone)]
pub(super) struct RowConstants<T> {
    pub max: Vec<T>,
    /// (∂L/∂ℓ)·ω·s·sigmoid(δ) / Σ exp(z − max)
    pub factor: Vec<T>,
    /// (∂L/∂ℓ)·ω·s·α/C
    pub uniform: Vec<T>,
    /// g_iy
    pub target: Vec<T>,
    /// (c, max, factor, uniform) of the rows whose target is the class at hand
    saved: Vec<(T, T, T, T)>,
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// The constants of a block's rows, from their states and upstream gradients, one a row of the batch; 1 where there are none.
    pub fn constants(&self, rows: &[TargetRow], states: &[RowState], upstream: Option<&[f64]>) -> RowConstants<X::Acc> {
        let (params, factor) = (self.params, self.targets.reduction_factor());
        let (alpha, classes) = (params.label_smoothing, params.classes as f64);
        let empty = || Vec::with_capacity(rows.len());
        let mut out =
            RowConstants { max: empty(), factor: empty(), uniform: empty(), target: empty(), saved: Vec::new() };
        for (target, state) in rows.iter().zip(states) {
            let upstream = upstream.map_or(1.0, |upstream| upstream[target.row]);
            let coefficient = upstream * factor * target.weight * params.scale; // (∂L/∂ℓ)·ω·s
            let away = sigmoid(state.delta); // 1 − p_y, with no subtraction
            out.max.push(X::Acc::of(state.max));
            // NaN for C = 1, where no class but the target is there to take it.
            out.factor.push(X::Acc::of(coefficient * away / state.sum));
            out.uniform.push(X::Acc::of(coefficient * alpha / classes));
            out.target.push(X::Acc::of(coefficient * state.dpsi * (alpha * (1.0 - 1.0 / classes) - away)));
        }
        out
    }

    /// A tile's cosines (classes, R) to h_ij = σ_j·g_ij, in place; adds g_ij·c_ij to `row_dots` (R) and gives Σ_i g_ij·c_ij of every class.
    #[inline(always)]
    pub fn gradient(
        &self,
        cosines: &mut [X::Acc],
        row_dots: &mut [X::Acc],
        block: &Block<X::Acc>,
        classes: Range<usize>,
        norms: &[Option<Norm>],
        constants: &mut RowConstants<X::Acc>,
    ) -> Vec<X::Acc> {
        let mut class_dots = Vec::with_capacity(norms.len());
        let mut targets = block.targets_in(&classes);
        for ((row, class), norm) in cosines.chunks_exact_mut(block.rows.len()).zip(classes).zip(norms) {
            let sigma = sigma(norm.expect("set with the cosines"));
            let of_class = take_class(&mut targets, class as u32);
            class_dots.push(gradients(row, self.logit(class), sigma, of_class, constants, row_dots));
        }
        class_dots
    }
}

/// One class's cosines to h_ij = σ_j·g_ij, in place; adds g_ij·c_ij to `row_dots` (R) and returns Σ_i g_ij·c_ij.
#[inline(always)]
fn gradients<T: Real>(
    cosines: &mut [T],
    logit: Logit<T>,
    sigma: T,
    targets: &[(u32, u32)],
    rows: &mut RowConstants<T>,
    row_dots: &mut [T],
) -> T {
    rows.saved.clear();
    for &(_, row) in targets {
        // exp(z − ∞) = 0: the target's row of constants gives g = 0, whatever z is; its own g is put in below.
        let i = row as usize;
        rows.saved.push((cosines[i], rows.max[i], rows.factor[i], rows.uniform[i]));
        (rows.max[i], rows.factor[i], rows.uniform[i]) = (T::INFINITY, T::ZERO, T::ZERO);
    }

    let n = cosines.len();
    let (max, factor, uniform) = (&rows.max[..n], &rows.factor[..n], &rows.uniform[..n]);
    let row_dots = &mut row_dots[..n];
    let mut dots = [T::ZERO; LANES];
    let whole = n - n % LANES;
    for start in (0..whole).step_by(LANES) {
        let span = start..start + LANES;
        let c: &mut [T; LANES] = (&mut cosines[span.clone()]).try_into().expect("a span of LANES");
        let max: &[T; LANES] = max[span.clone()].try_into().expect("a span of LANES");
        let factor: &[T; LANES] = factor[span.clone()].try_into().expect("a span of LANES");
        let uniform: &[T; LANES] = uniform[span.clone()].try_into().expect("a span of LANES");
        let row_dots: &mut [T; LANES] = (&mut row_dots[span]).try_into().expect("a span of LANES");
        for l in 0..LANES {
            let g = factor[l] * (logit.of(c[l]) - max[l]).exp() - uniform[l];
            let dot = g * c[l];
            row_dots[l] += dot;
            dots[l] += dot;
            c[l] = g * sigma;
        }
    }
    let mut class_dot = T::ZERO;
    for dot in dots {
        class_dot += dot;
    }
    for i in whole..n {
        let c = cosines[i];
        let g = factor[i] * (logit.of(c) - max[i]).exp() - uniform[i];
        row_dots[i] += g * c;
        class_dot += g * c;
        cosines[i] = g * sigma;
    }

    for (&(_, row), &(c, max, factor, uniform)) in targets.iter().zip(&rows.saved) {
        let i = row as usize;
        (rows.max[i], rows.factor[i], rows.uniform[i]) = (max, factor, uniform);
        let g = rows.target[i];
        row_dots[i] += g * c;
        class_dot += g * c;
        cosines[i] = g * sigma;
    }
    class_dot
}
