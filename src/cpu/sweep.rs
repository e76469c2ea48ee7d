//! The passes over cosines, written so that the compiler vectorises them: rows are contiguous, classes outermost, and a row's
//! target is masked by its constants rather than by a branch.
//!
//! Everything here is `inline(always)`, to be compiled for the instruction set that the caller has dispatched to.

use super::numeric::Real;

/// Rows handled together in the sums across rows.
const LANES: usize = 16;

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

/// A class's part in the logits: z = s·c + b.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logit<T> {
    /// s
    pub scale: T,
    /// b_j
    pub prior: T,
}

impl<T: Real> Logit<T> {
    #[inline(always)]
    fn of(self, cosine: T) -> T {
        self.scale.mul_add(cosine, self.prior)
    }
}

/// Products to cosines: times what W's rows still lack, clamped to [−1, 1]; NaN stays.
#[inline(always)]
pub(super) fn to_cosines<T: Real>(row: &mut [T], class_scale: T) {
    let (low, high) = (T::ZERO - T::ONE, T::ONE);
    for c in row {
        let mut cosine = *c * class_scale;
        cosine = if cosine > high { high } else { cosine };
        *c = if cosine < low { low } else { cosine };
    }
}

/// A tile's first pass, one class: maxima and sums. `targets` are the rows whose target is this class.
#[inline(always)]
pub(super) fn maxima<T: Real>(
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
pub(super) fn sums<T: Real>(
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
}

impl<T: Real> RowConstants<T> {
    pub fn with_capacity(rows: usize) -> Self {
        let empty = || Vec::with_capacity(rows);
        Self { max: empty(), factor: empty(), uniform: empty(), target: empty() }
    }
}

/// One class's cosines to h_ij = σ_j·g_ij, in place; adds g_ij·c_ij to `row_dots` (R) and returns Σ_i g_ij·c_ij.
#[inline(always)]
pub(super) fn gradients<T: Real>(
    cosines: &mut [T],
    logit: Logit<T>,
    sigma: T,
    targets: &[(u32, u32)],
    saved: &mut Vec<(T, T, T, T)>,
    rows: &mut RowConstants<T>,
    row_dots: &mut [T],
) -> T {
    saved.clear();
    for &(_, row) in targets {
        // exp(z − ∞) = 0: the target's row of constants gives g = 0, whatever z is; its own g is put in below.
        let i = row as usize;
        saved.push((cosines[i], rows.max[i], rows.factor[i], rows.uniform[i]));
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

    for (&(_, row), &(c, max, factor, uniform)) in targets.iter().zip(saved.iter()) {
        let i = row as usize;
        (rows.max[i], rows.factor[i], rows.uniform[i]) = (max, factor, uniform);
        let g = rows.target[i];
        row_dots[i] += g * c;
        class_dot += g * c;
        cosines[i] = g * sigma;
    }
    class_dot
}

/// `out -= factor · values`
#[inline(always)]
pub(super) fn subtract_scaled<T: Real>(out: &mut [T], values: &[T], factor: T) {
    let factor = T::ZERO - factor;
    for (out, &value) in out.iter_mut().zip(values) {
        *out = factor.mul_add(value, *out);
    }
}

/// `out += values`
#[inline(always)]
pub(super) fn add<T: Real>(out: &mut [T], values: &[T]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out += value;
    }
}

/// `out *= factor`
#[inline(always)]
pub(super) fn scale<T: Real>(out: &mut [T], factor: T) {
    for out in out {
        *out *= factor;
    }
}

/// Σ v²
#[inline(always)]
pub(super) fn sum_of_squares<T: Real>(values: &[T]) -> T {
    let mut sums = [T::ZERO; 4 * LANES];
    let mut chunks = values.chunks_exact(4 * LANES);
    for chunk in &mut chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum = value.mul_add(value, *sum);
        }
    }
    let mut sum = T::ZERO;
    for &value in chunks.remainder() {
        sum = value.mul_add(value, sum);
    }
    for part in sums {
        sum += part;
    }
    sum
}
