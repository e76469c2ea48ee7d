//! Arithmetic on slices, written so that the compiler vectorises it.
//!
//! Everything here is `inline(always)`, to be compiled for the instruction set that the caller has dispatched to.

use super::numeric::Real;

/// Values handled together in sums.
pub(super) const LANES: usize = 16;

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
