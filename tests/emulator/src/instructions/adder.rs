//! How tensor cores add, as public studies have found it by experiment (Fasi, Higham, Mikaitis and Pranesh 2021 for Volta to Ampere; Khattak and
//! Mikaitis 2025 for Hopper): products are exact; a block of them and the sum so far are aligned to the largest exponent, what then stands below the
//! sum's last bit and a few more is cut off, what is left is added up exactly, and its f32 is cut off, too. `PTX_EMULATOR_TENSOR` asks for it: `ampere`
//! or `hopper`. Slow: by the element.

use std::sync::LazyLock;

/// A tensor core's way to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Adder {
    /// Products added at once, of two-byte elements; half as many of tf32
    block: usize,
    /// Bits kept below the last one of the largest term's f32
    extra: i32,
}

impl Adder {
    const AMPERE: Self = Self { block: 8, extra: 1 };
    const HOPPER: Self = Self { block: 16, extra: 2 };

    /// What `PTX_EMULATOR_TENSOR` asks for; None for sums in f32 in the order of k.
    pub fn asked_for() -> Option<Self> {
        static ASKED: LazyLock<Option<Adder>> =
            LazyLock::new(|| match std::env::var("PTX_EMULATOR_TENSOR").as_deref() {
                Err(_) | Ok("") => None,
                Ok("ampere") => Some(Adder::AMPERE),
                Ok("hopper") => Some(Adder::HOPPER),
                Ok(other) => panic!("PTX_EMULATOR_TENSOR is ampere or hopper, not {other}"),
            });
        *ASKED
    }

    /// c + Σ a·b.
    pub fn sum(self, is_tf32: bool, c: f32, products: impl ExactSizeIterator<Item = (f32, f32)>) -> f32 {
        let block = if is_tf32 { self.block / 2 } else { self.block };
        let mut sum = c;
        let mut terms = [(0f64, 0); 17];
        let mut products = products.peekable();
        while products.peek().is_some() {
            terms[0] = (f64::from(sum), exponent(sum));
            let mut count = 1;
            for (a, b) in products.by_ref().take(block) {
                // Exact: 11 bits times 11. Its exponent is that of its factors, whether or not their product carries into another bit.
                terms[count] = (f64::from(a) * f64::from(b), exponent(a) + exponent(b));
                count += 1;
            }
            sum = self.block(&terms[..count]);
        }
        sum
    }

    fn block(self, terms: &[(f64, i32)]) -> f32 {
        // What is not finite is so whatever the order.
        let plain: f64 = terms.iter().map(|(term, _)| term).sum();
        let largest = terms.iter().filter(|(term, _)| *term != 0.0).map(|&(_, exponent)| exponent).max();
        let Some(largest) = largest.filter(|_| plain.is_finite()) else { return plain as f32 };
        let unit = power_of_two(largest - 23 - self.extra);
        let sum: f64 = terms.iter().map(|(term, _)| (term / unit).trunc()).sum();
        toward_zero(sum * unit)
    }
}

/// Of a number's highest bit; far below all others for 0.
fn exponent(value: f32) -> i32 {
    match f64::from(value).abs().to_bits() >> 52 {
        0 => -1000,
        biased => biased as i32 - 1023,
    }
}

/// Of exponents that products of two f32 have.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The f32 next to a number on the side of 0.
fn toward_zero(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest).abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(adder: Adder, c: f32, a: &[f32]) -> f32 {
        adder.sum(false, c, a.iter().map(|&a| (a, 1.0)))
    }

    /// The experiments that tell the chips apart.
    #[test]
    fn bits_that_are_cut_off() {
        let (half, quarter, eighth) = (2f32.powi(-24), 2f32.powi(-25), 2f32.powi(-26));
        // Two halves of 1's last bit: kept by one extra bit, and added up.
        assert_eq!(sum(Adder::AMPERE, 1.0, &[half, half]), 1.0 + 2.0 * half);
        // Four quarters: cut off by one extra bit, each, not by two.
        assert_eq!(sum(Adder::AMPERE, 1.0, &[quarter; 4]), 1.0);
        assert_eq!(sum(Adder::HOPPER, 1.0, &[quarter; 4]), 1.0 + 2.0 * half);
        assert_eq!(sum(Adder::HOPPER, 1.0, &[eighth; 8]), 1.0);
        // Cut off, not rounded: below 1 there is one more bit.
        assert_eq!(sum(Adder::HOPPER, 1.0, &[1.5 * half]), 1.0);
        assert_eq!(sum(Adder::HOPPER, 1.0, &[-quarter]), 1.0 - half);
        // A block at a time: with 8, the second block meets a sum of 1 and is kept or lost by itself.
        let late: Vec<f32> = (0..16).map(|i| if i < 8 { 0.0 } else { half }).collect();
        assert_eq!(sum(Adder::AMPERE, 1.0, &late), 1.0 + 8.0 * half);
        let mut cancels = [0f32; 16];
        (cancels[0], cancels[8], cancels[9]) = (1.0, quarter, -1.0);
        // One block of 16 keeps what the second of two loses.
        assert_eq!(sum(Adder::AMPERE, 0.0, &cancels), 0.0);
        assert_eq!(sum(Adder::HOPPER, 0.0, &cancels), quarter);
    }

    #[test]
    fn numbers_at_the_ends() {
        for adder in [Adder::AMPERE, Adder::HOPPER] {
            assert_eq!(sum(adder, 0.0, &[0.0; 16]).to_bits(), 0);
            assert_eq!(sum(adder, 0.0, &[3.5]), 3.5);
            assert!(sum(adder, f32::NAN, &[1.0]).is_nan());
            assert_eq!(sum(adder, f32::INFINITY, &[1.0]), f32::INFINITY);
            // Subnormal f32 and the smallest of bf16 are numbers like others.
            assert_eq!(sum(adder, f32::from_bits(3), &[f32::from_bits(5)]), f32::from_bits(8));
            assert_eq!(adder.sum(true, 1.0, [(2.0, 3.0); 8].into_iter()), 49.0);
        }
    }
}
