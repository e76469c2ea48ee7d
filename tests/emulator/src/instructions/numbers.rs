//! Numbers as PTX has them: NaN, subnormals, halves in f64, and roundings that the host does not have.

use half::{bf16, f16};

/// The bits of an f32, where every NaN is the one that the ISA has for results in single precision.
#[inline(always)]
pub(super) fn canonical(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

/// A direction to round in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Toward {
    Zero,
    Down,
    Up,
}

/// The sign of a sum of doubles, none of which is so large or small that their differences round. Shewchuk's expansions.
fn sign_of_sum(terms: &[f64]) -> f64 {
    let mut expansion: Vec<f64> = Vec::with_capacity(terms.len());
    for &term in terms {
        let mut carry = term;
        for part in &mut expansion {
            let sum = carry + *part;
            let back = sum - carry;
            *part = (carry - (sum - back)) + (*part - back);
            carry = sum;
        }
        expansion.push(carry);
    }
    // Parts do not overlap, and rise: the last that is not zero decides.
    expansion.into_iter().rev().find(|part| *part != 0.0).unwrap_or(0.0)
}

/// a·b + c from its nearest double and the sign of what that is off by.
pub(super) fn fma_toward(a: f64, b: f64, c: f64, toward: Toward) -> f64 {
    let nearest = a.mul_add(b, c);
    let finite = a.is_finite() && b.is_finite() && c.is_finite();
    if nearest.is_nan() || !finite {
        return nearest;
    }
    if nearest == 0.0 {
        let product = a * b;
        // Opposite zeros and exact differences: +0, but −0 when rounding down. What is too small for the type is moved below.
        if sign_of_product_sum(a, b, c, 0.0) == 0.0 {
            let same = product.is_sign_negative() == c.is_sign_negative() && product == 0.0 && c == 0.0;
            return if same {
                c
            } else if toward == Toward::Down {
                -0.0
            } else {
                0.0
            };
        }
    }
    let off = if nearest.is_infinite() { -nearest } else { sign_of_product_sum(a, b, c, nearest) };
    move_toward(nearest, off, toward)
}

/// The sign of a·b + c − r.
fn sign_of_product_sum(a: f64, b: f64, c: f64, r: f64) -> f64 {
    // Where the product's rounding error would be too small or the product too large for the type, all are scaled: the sign stays.
    let (a, b, c, r) = match (a * b).abs().max(c.abs()).max(r.abs()) {
        large if large > 2f64.powi(900) => (a * 2f64.powi(-100), b, c * 2f64.powi(-100), r * 2f64.powi(-100)),
        small if small < 2f64.powi(-800) => {
            let up = 2f64.powi(400);
            // In two steps: a power of two that has its own place in the type.
            let (a, c, r) = (a * up, c * up, r * up);
            (a, b * up, c * up, r * up)
        }
        _ => (a, b, c, r),
    };
    let product = a * b;
    sign_of_sum(&[a.mul_add(b, -product), product, c, -r])
}

/// `nearest`, or its neighbour on the side of zero, below or above; `off` has the sign of exact − nearest.
fn move_toward(nearest: f64, off: f64, toward: Toward) -> f64 {
    let down = toward == Toward::Down || (toward == Toward::Zero && nearest > 0.0);
    let up = toward == Toward::Up || (toward == Toward::Zero && nearest < 0.0);
    if off < 0.0 && down {
        nearest.next_down()
    } else if off > 0.0 && up {
        nearest.next_up()
    } else if nearest == 0.0 && off > 0.0 && toward == Toward::Up {
        f64::from_bits(1)
    } else {
        nearest
    }
}

/// a·b + c in f32, rounded in a direction: of the sum in f64, which is exact but for a rest whose sign is known.
pub(super) fn fma_directed(a: f32, b: f32, c: f32, toward: Toward) -> f32 {
    let sum = odd_sum(f64::from(a) * f64::from(b), f64::from(c), toward == Toward::Down);
    let nearest = sum as f32;
    if nearest.is_nan() || sum.is_infinite() {
        return nearest;
    }
    let over = if nearest.is_infinite() { f64::from(nearest) } else { f64::from(nearest) - sum };
    let down = toward == Toward::Down || (toward == Toward::Zero && sum > 0.0);
    let up = toward == Toward::Up || (toward == Toward::Zero && sum < 0.0);
    if over > 0.0 && down {
        nearest.next_down()
    } else if over < 0.0 && up {
        nearest.next_up()
    } else {
        nearest
    }
}

/// The sum of two doubles, rounded to odd: exact, or between its neighbours with the last bit set, so that one more rounding to fewer bits
/// gives what rounding the exact sum would.
pub(super) fn odd_sum(x: f64, y: f64, down: bool) -> f64 {
    let sum = x + y;
    if sum == 0.0 && x != 0.0 && down {
        return -0.0;
    }
    let back = sum - x;
    let rest = (x - (sum - back)) + (y - back);
    if rest == 0.0 || !sum.is_finite() || sum.to_bits() & 1 == 1 {
        return sum;
    }
    if (rest > 0.0) == (sum > 0.0) { f64::from_bits(sum.to_bits() + 1) } else { f64::from_bits(sum.to_bits() - 1) }
}

/// A product: its zeros have their own signs.
pub(super) fn mul_toward(a: f64, b: f64, toward: Toward) -> f64 {
    if a == 0.0 || b == 0.0 { a * b } else { fma_toward(a, b, if (a < 0.0) == (b < 0.0) { 0.0 } else { -0.0 }, toward) }
}

/// The smaller by PTX: a number against NaN, and −0 below +0.
pub(super) fn min_f64(a: f64, b: f64) -> f64 {
    if a == b { f64::from_bits(a.to_bits() | b.to_bits()) } else { a.min(b) }
}

pub(super) fn max_f64(a: f64, b: f64) -> f64 {
    if a == b { f64::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
}

pub(super) fn min_f32(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() | b.to_bits()) } else { a.min(b) }
}

pub(super) fn max_f32(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
}

pub(super) fn nan_or(a: f64, b: f64, value: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { value }
}

/// An f64 to f32, rounded to odd: rounding that once more, to a half type, is as rounding the f64 itself.
fn odd_f32(value: f64) -> f32 {
    let nearest = value as f32;
    if value.is_nan() || f64::from(nearest) == value {
        return nearest;
    }
    let toward_zero = if f64::from(nearest).abs() > value.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(toward_zero | 1)
}

pub(super) fn half_op(value: f64) -> u32 {
    if value.is_nan() { 0x7fff } else { u32::from(f16::from_f32(odd_f32(value)).to_bits()) }
}

pub(super) fn half(bits: u32) -> f64 {
    f16::from_bits(bits as u16).to_f64()
}

pub(super) fn brain_op(value: f64) -> u32 {
    if value.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(odd_f32(value)).to_bits()) }
}

pub(super) fn brain(bits: u32) -> f64 {
    bf16::from_bits(bits as u16).to_f64()
}

/// A subnormal f32 to a zero of its sign: what `.ftz` does to operands and results.
pub(super) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}
