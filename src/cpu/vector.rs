//! Arithmetic on slices, written so that the compiler vectorises it.
//!
//! Everything here is `inline(always)`, to be compiled for the instruction set that the caller has dispatched to.

use super::numeric::Real;

/// Values handled together: a vector, by value so that the compiler keeps it in registers.
pub(super) const LANES: usize = 16;

/// LANES values; where there are fewer, zeros (or what else is the default) beyond them.
#[inline(always)]
pub(super) fn load<T: Copy + Default>(values: &[T]) -> [T; LANES] {
    match values.first_chunk::<LANES>() {
        Some(all) => *all,
        None => {
            let mut out = [T::default(); LANES];
            for (out, &value) in out.iter_mut().zip(values) {
                *out = value;
            }
            out
        }
    }
}

/// As many of the values as there is room for.
#[inline(always)]
pub(super) fn store<T: Copy>(out: &mut [T], values: [T; LANES]) {
    match out.first_chunk_mut::<LANES>() {
        Some(all) => *all = values,
        None => {
            for (out, value) in out.iter_mut().zip(values) {
                *out = value;
            }
        }
    }
}

/// Σ, by halves.
#[inline(always)]
pub(super) fn sum<T: Real>(mut a: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            let other = a[l + width];
            a[l] += other;
        }
        width /= 2;
    }
    a[0]
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
    const FOUR: usize = 4 * LANES;
    let mut sums = [T::ZERO; FOUR];
    let (fours, rest) = values.as_chunks::<FOUR>();
    for v in fours {
        for l in 0..FOUR {
            sums[l] = v[l].mul_add(v[l], sums[l]);
        }
    }
    let (whole, rest) = rest.as_chunks::<LANES>();
    for v in whole {
        for l in 0..LANES {
            sums[l] = v[l].mul_add(v[l], sums[l]);
        }
    }
    let (rest, mut all) = (load(rest), [T::ZERO; LANES]);
    for l in 0..LANES {
        let second = rest[l].mul_add(rest[l], sums[LANES + l]);
        all[l] = (sums[l] + second) + (sums[2 * LANES + l] + sums[3 * LANES + l]);
    }
    sum(all)
}

/// Σ a², Σ b² and Σ a·b, in f64
#[inline(always)]
pub(super) fn dots<T: Real>(a: &[T], b: &[T]) -> (f64, f64, f64) {
    let (mut aa, mut bb, mut ab) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in whole_a.iter().zip(whole_b) {
        dots_of_lanes(a, b, &mut aa, &mut bb, &mut ab);
    }
    if !rest_a.is_empty() {
        dots_of_lanes(&load(rest_a), &load(rest_b), &mut aa, &mut bb, &mut ab);
    }
    (sum(aa), sum(bb), sum(ab))
}

/// [`dots`] of LANES elements, added.
#[inline(always)]
fn dots_of_lanes<T: Real>(
    a: &[T; LANES],
    b: &[T; LANES],
    aa: &mut [f64; LANES],
    bb: &mut [f64; LANES],
    ab: &mut [f64; LANES],
) {
    for l in 0..LANES {
        let (a, b) = (a[l].f64(), b[l].f64());
        aa[l] = a.mul_add(a, aa[l]);
        bb[l] = b.mul_add(b, bb[l]);
        ab[l] = a.mul_add(b, ab[l]);
    }
}
