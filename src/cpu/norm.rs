//! Norms of rows, whatever their size.

use super::numeric::Real;
use super::vector;

/// Rows shorter than this are divided by it, and their gradient has no projection.
const SHORTEST: f64 = 1e-12;

/// A row's norm, as what its elements are multiplied by.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Norm {
    /// 1 / max(‖row‖, 1e-12)
    pub inverse: f64,
    /// Longer than 1e-12: the derivative of the normalisation has its projection.
    pub projects: bool,
    /// Too long for products before the division.
    pub long: bool,
    /// The power of two that the row is multiplied by before anything: 1 but for rows that go into products of halves and are too long or too short.
    pub power: f64,
}

impl Norm {
    /// Of a row that is left as long as it is.
    pub const UNIT: Self = Self { inverse: 1.0, projects: false, long: false, power: 1.0 };

    #[inline(always)]
    pub fn of<T: Real>(row: &[T]) -> Self {
        let squares = vector::sum_of_squares(row).f64();
        let norm = if T::SAFE_SQUARES.contains(&squares) { squares.sqrt() } else { careful_norm(row) };
        let short = norm < SHORTEST; // false for NaN, which stays
        let inverse = 1.0 / if short { SHORTEST } else { norm };
        Self { inverse, projects: !short, long: norm > T::LONGEST, power: 1.0 }
    }

    /// The norm of a row whose products, and whose gradients over its norm, are to be far from a half type's limits: of the row times
    /// [`power`](Self::power).
    #[inline(always)]
    pub fn of_halves(row: &[f32]) -> Self {
        const MIDDLE: std::ops::Range<f64> = 1.0 / 65536.0..65536.0;
        let norm = Self::of(row);
        // No power helps a row of infinities or NaN.
        let power = if MIDDLE.contains(&norm.inverse) || norm.inverse.is_nan() || norm.inverse == 0.0 {
            1.0
        } else {
            norm.inverse.log2().round().exp2()
        };
        Self { inverse: norm.inverse / power, long: false, power, ..norm }
    }
}

/// The norm of a row whose squares overflow or underflow.
#[cold]
fn careful_norm<T: Real>(row: &[T]) -> f64 {
    let largest = row.iter().fold(0.0, |largest: f64, v| if v.f64().abs() > largest { v.f64().abs() } else { largest });
    if largest == 0.0 || largest.is_infinite() {
        // All zero, infinite, or nothing but NaN and zero.
        return if row.iter().any(|v| v.f64().is_nan()) { f64::NAN } else { largest };
    }
    largest * row.iter().map(|v| (v.f64() / largest).powi(2)).sum::<f64>().sqrt()
}

/// Multiplies a row by its inverse norm.
#[inline(always)]
pub(super) fn normalize<T: Real>(row: &mut [T], norm: Norm) {
    if norm.long {
        // 1/‖row‖ may be subnormal in T.
        row.iter_mut().for_each(|v| *v = T::of(v.f64() * norm.inverse));
    } else {
        vector::scale(row, T::of(norm.inverse));
    }
}

/// σ: what a tile's row lacks to be ŵ.
#[inline(always)]
pub(super) fn sigma<T: Real>(norm: Norm) -> T {
    if norm.long { T::ONE } else { T::of(norm.inverse) }
}
