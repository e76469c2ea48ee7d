//! Step 4: g from cosines, in place.

use std::ops::Range;

use super::call::{Call, Logit};
use super::finish::RowState;
use super::load::{Block, take_class};
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real};
use super::vector::{LANES, load, store, sum};

/// What g_ij = factor_i·exp(z_ij − log_sum_i) − uniform_i takes of a row, j ≠ y. Each (R).
#[derive(Debug, Clone)]
pub(super) struct RowConstants<T> {
    pub log_sum: Vec<T>,
    /// (∂L/∂ℓ)·ω·s·F′(δ), and what rounding took off log_sum
    pub factor: Vec<T>,
    /// (∂L/∂ℓ)·ω·s·α/C
    pub uniform: Vec<T>,
    /// g_iy
    pub target: Vec<T>,
    /// c_iy, as exact as it is known
    cosine: Vec<T>,
    /// What factor, uniform and target are divided by: 1, or the rows' norms ([`Block::scales`])
    pub lengths: Vec<T>,
    /// (log_sum, factor, uniform) of the rows whose target is the class at hand
    saved: Vec<(T, T, T)>,
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    /// The constants of a block's rows, from their states and upstream gradients, one a row of the batch; 1 where there are none.
    pub fn constants(
        &self,
        block: &Block<X::Acc>,
        states: &[RowState],
        upstream: Option<&[f64]>,
    ) -> RowConstants<X::Acc> {
        let rows = block.rows;
        let (params, factor) = (self.params, self.targets.gradient_factor());
        let (alpha, classes) = (params.label_smoothing, params.classes as f64);
        let empty = || Vec::with_capacity(rows.len());
        let mut out = RowConstants {
            log_sum: empty(),
            factor: empty(),
            uniform: empty(),
            target: empty(),
            cosine: empty(),
            lengths: empty(),
            saved: Vec::new(),
        };
        for (i, (target, state)) in rows.iter().zip(states).enumerate() {
            let upstream = upstream.map_or(1.0, |upstream| upstream[target.row]);
            let scale = block.scales.get(i).map_or(1.0, |scale| scale.f64());
            let coefficient = upstream * factor * target.weight * params.scale * scale; // (∂L/∂ℓ)·ω·s
            let log_sum = X::Acc::of(state.log_sum);
            out.log_sum.push(log_sum);
            // The rounding made good by e^r: at the largest scale r reaches 32. Where it is more, every other class is out, and F′ is 0. NaN for
            // C = 1, where no class but the target is there to take it.
            let rounding = (log_sum.f64() - state.log_sum).min(80.0).exp();
            out.factor.push(X::Acc::of(coefficient * state.slope * rounding));
            out.uniform.push(X::Acc::of(coefficient * alpha / classes));
            out.cosine.push(X::Acc::of(state.cosine));
            out.target.push(X::Acc::of(coefficient * state.dpsi * (alpha * (1.0 - 1.0 / classes) - state.slope)));
            out.lengths.push(X::Acc::of(1.0 / scale));
        }
        out
    }

    /// A tile's cosines (classes, R) to h_ij = g_ij/‖w_j‖, in place; adds g_ij·c_ij to `row_dots` (R) and gives Σ_i g_ij·c_ij of every class. g is ∂L/∂c:
    /// a class's scale is in it.
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

impl<T: Real> RowConstants<T> {
    /// Makes g of the class at hand 0 in the rows whose target it is, whatever z is: exp(z − ∞) = 0.
    #[inline(always)]
    pub fn hide(&mut self, targets: &[(u32, u32)]) {
        self.saved.clear();
        for &(_, row) in targets {
            let i = row as usize;
            self.saved.push((self.log_sum[i], self.factor[i], self.uniform[i]));
            (self.log_sum[i], self.factor[i], self.uniform[i]) = (T::INFINITY, T::ZERO, T::ZERO);
        }
    }

    /// Puts back what [`hide`](Self::hide) took away; gives each of the rows with its cosine, its g_iy and its length.
    #[inline(always)]
    pub fn show(&mut self, targets: &[(u32, u32)], mut target: impl FnMut(usize, T, T, T)) {
        for (&(_, row), &(log_sum, factor, uniform)) in targets.iter().zip(&self.saved) {
            let i = row as usize;
            (self.log_sum[i], self.factor[i], self.uniform[i]) = (log_sum, factor, uniform);
            target(i, self.cosine[i], self.target[i], self.lengths[i]);
        }
    }
}

/// One class's cosines to h_ij = g_ij/‖w_j‖, in place; adds g_ij·c_ij to `row_dots` (R) and returns Σ_i g_ij·c_ij.
#[inline(always)]
fn gradients<T: Real>(
    cosines: &mut [T],
    logit: Logit<T>,
    sigma: T,
    targets: &[(u32, u32)],
    rows: &mut RowConstants<T>,
    row_dots: &mut [T],
) -> T {
    let sigma = sigma * logit.class_scale;
    rows.hide(targets);
    let n = cosines.len();
    let (log_sum, factor, uniform) = (&rows.log_sum[..n], &rows.factor[..n], &rows.uniform[..n]);
    let row_dots = &mut row_dots[..n];
    let mut dots = [T::ZERO; LANES];
    let (whole, c_rest) = cosines.as_chunks_mut::<LANES>();
    let ((log_sums, log_sum_rest), (factors, factor_rest)) =
        (log_sum.as_chunks::<LANES>(), factor.as_chunks::<LANES>());
    let ((uniforms, uniform_rest), (row_dot, dot_rest)) =
        (uniform.as_chunks::<LANES>(), row_dots.as_chunks_mut::<LANES>());
    for ((((c, log_sum), factor), uniform), row_dots) in
        whole.iter_mut().zip(log_sums).zip(factors).zip(uniforms).zip(row_dot)
    {
        gradients_of_lanes(c, logit, sigma, log_sum, factor, uniform, row_dots, &mut dots);
    }
    if !c_rest.is_empty() {
        let (mut c, mut dot) = (load(c_rest), load(dot_rest));
        let (log_sum, factor, uniform) = (load(log_sum_rest), load(factor_rest), load(uniform_rest));
        gradients_of_lanes(&mut c, logit, sigma, &log_sum, &factor, &uniform, &mut dot, &mut dots);
        store(c_rest, c);
        store(dot_rest, dot);
    }
    let mut class_dot = sum(dots);

    rows.show(targets, |i, c, g, _| {
        row_dots[i] = logit.class_scale.mul_add(g * c, row_dots[i]);
        class_dot += g * c;
        cosines[i] = g * sigma;
    });
    class_dot * logit.class_scale
}

/// [`gradients`] of LANES rows; adds g·c to `row_dots` and to `dots`. One loop: of one a step the compiler makes vectors of two.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn gradients_of_lanes<T: Real>(
    c: &mut [T; LANES],
    logit: Logit<T>,
    sigma: T,
    log_sum: &[T; LANES],
    factor: &[T; LANES],
    uniform: &[T; LANES],
    row_dots: &mut [T; LANES],
    dots: &mut [T; LANES],
) {
    for l in 0..LANES {
        let p = factor[l] * (logit.of(c[l]) - log_sum[l]).exp();
        let g = p - uniform[l];
        let dot = g * c[l];
        row_dots[l] = logit.class_scale.mul_add(dot, row_dots[l]);
        dots[l] += dot;
        c[l] = g * sigma;
    }
}
