//! The element types and what the sweeps need of them: [`Real`] is what is computed in, [`Element`] what tensors hold.

use candle_core::{CpuStorage, WithDType};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

/// f32 or f64: the type of accumulation.
pub(super) trait Real:
    Element<Acc = Self>
    + PartialOrd
    + Default
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    const INFINITY: Self;
    const IS_F64: bool;
    /// e^x is 0 below it.
    const LOWEST: f64;
    /// √ε, the floor of sin θ
    const SIN_FLOOR: f64;
    /// Σ v² in this range has neither overflowed nor lost digits to underflow.
    const SAFE_SQUARES: std::ops::Range<f64>;
    /// Rows of W longer than this are divided by their norm before the products, not after, lest the products overflow.
    const LONGEST: f64;

    fn of(value: f64) -> Self;
    fn f64(self) -> f64;
    /// self · b + c, rounded once
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// e^self for self ≤ 0, to 2 ulp; 0 where the result would be subnormal; NaN stays NaN.
    fn exp(self) -> Self;
}

/// 1/n! from n = 13 down to 0: Taylor's series of e^r, enough for f64 on |r| ≤ ln 2 / 2.
const SERIES: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// ln 2 to 33 bits, and the rest of it: k times the first is exact for any exponent k of an f64.
const LN_2: (f64, f64) = (f64::from_bits(0x3fe6_2e42_fee0_0000), f64::from_bits(0x3dea_39ef_3579_3c76));

macro_rules! real {
    (
        $real:ident, mantissa_bits: $mantissa:literal, bias: $bias:literal, lowest: $lowest:literal, ln_2: $ln_2:expr,
        series: $series:expr, sin_floor: $sin_floor:expr, safe_squares: $safe:expr, longest: $longest:literal
    ) => {
        impl Real for $real {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $real::NEG_INFINITY;
            const INFINITY: Self = $real::INFINITY;
            const IS_F64: bool = size_of::<$real>() == size_of::<f64>();
            const LOWEST: f64 = $lowest;
            const SIN_FLOOR: f64 = $sin_floor;
            const SAFE_SQUARES: std::ops::Range<f64> = $safe;
            const LONGEST: f64 = $longest;

            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $real
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                $real::mul_add(self, b, c)
            }
            /// e^x = 2^k·e^r, |r| ≤ ln 2 / 2. Adding 1.5·2^mantissa_bits to x·log₂e rounds it to k and leaves k in its
            /// low bits, so neither a branch nor a conversion stands in the way of vectorisation.
            #[inline(always)]
            fn exp(self) -> Self {
                const MAGIC: $real = (3u64 << ($mantissa - 1)) as $real;
                let t = $real::mul_add(self, std::f64::consts::LOG2_E as $real, MAGIC);
                let k = t - MAGIC;
                let r = $real::mul_add(k, -$ln_2.0 as $real, self);
                let r = $real::mul_add(k, -$ln_2.1 as $real, r);
                let mut e = $series[0] as $real;
                for &coefficient in &$series[1..] {
                    e = $real::mul_add(e, r, coefficient as $real);
                }
                let scale = $real::from_bits((t.to_bits() << $mantissa).wrapping_add($bias << $mantissa));
                if self < $lowest { 0.0 } else { e * scale }
            }
        }
    };
}

real!(f32, mantissa_bits: 23, bias: 127, lowest: -87.0,
    ln_2: (0.693_145_751_953_125f64, std::f64::consts::LN_2 - 0.693_145_751_953_125f64), // the first to 15 bits
    series: SERIES[6..], sin_floor: 3.452_669_830_012_439e-4, // 2^-11.5
    safe_squares: 1e-22..1e36, longest: 1e15);
real!(f64, mantissa_bits: 52, bias: 1023, lowest: -708.0,
    ln_2: LN_2,
    series: SERIES, sin_floor: f64::EPSILON * 67_108_864.0, // 2^-52 · 2^26
    safe_squares: 1e-280..1e300, longest: 1e150);

/// Elements whose type is known at run time.
pub(super) enum AnySlice<'a> {
    F64(&'a mut [f64]),
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    BF16(&'a mut [bf16]),
}

impl<'a> AnySlice<'a> {
    pub fn of(storage: &'a mut CpuStorage) -> candle_core::Result<Self> {
        match storage {
            CpuStorage::F64(values) => Ok(Self::F64(values)),
            CpuStorage::F32(values) => Ok(Self::F32(values)),
            CpuStorage::F16(values) => Ok(Self::F16(values)),
            CpuStorage::BF16(values) => Ok(Self::BF16(values)),
            _ => Err(candle_core::Error::msg("a gradient tensor that is not of floats")),
        }
    }
}

/// What a tensor holds: f64, f32, f16 or bf16.
pub(super) trait Element: WithDType + Send + Sync {
    /// What it is computed in.
    type Acc: Real;

    fn widen(self) -> Self::Acc;
    fn narrow(value: Self::Acc) -> Self;
    /// `out[i] = values[i]`, widened.
    fn widen_slice(values: &[Self], out: &mut [Self::Acc]);
    /// `out[i] = values[i]`, rounded to nearest.
    fn narrow_slice(values: &[Self::Acc], out: &mut [Self]);
    /// The slice itself where it is of the accumulation type.
    fn as_acc(values: &[Self]) -> Option<&[Self::Acc]>;
    /// The slice itself where it is of the accumulation type.
    fn as_acc_mut(values: &mut [Self]) -> Option<&mut [Self::Acc]>;
    /// Zeros straight from the allocator, whose pages are first touched by the threads that fill them.
    fn zeros(len: usize) -> Vec<Self>;
    fn any_slice(values: &mut [Self]) -> AnySlice<'_>;
    fn of_slice(values: AnySlice<'_>) -> Option<&mut [Self]>;
}

macro_rules! native {
    ($real:ident, $variant:ident) => {
        impl Element for $real {
            type Acc = Self;

            #[inline(always)]
            fn widen(self) -> Self {
                self
            }
            #[inline(always)]
            fn narrow(value: Self) -> Self {
                value
            }
            fn widen_slice(values: &[Self], out: &mut [Self]) {
                out.copy_from_slice(values);
            }
            fn narrow_slice(values: &[Self], out: &mut [Self]) {
                out.copy_from_slice(values);
            }
            fn as_acc(values: &[Self]) -> Option<&[Self]> {
                Some(values)
            }
            fn as_acc_mut(values: &mut [Self]) -> Option<&mut [Self]> {
                Some(values)
            }
            fn zeros(len: usize) -> Vec<Self> {
                vec![0.0; len]
            }
            fn any_slice(values: &mut [Self]) -> AnySlice<'_> {
                AnySlice::$variant(values)
            }
            fn of_slice(values: AnySlice<'_>) -> Option<&mut [Self]> {
                match values {
                    AnySlice::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    };
}

native!(f32, F32);
native!(f64, F64);

/// v rounded to bf16, to nearest and even. NaN stays NaN.
#[inline(always)]
pub(super) fn to_bf16(v: f32) -> f32 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    f32::from_bits((if v.is_nan() { bits | 0x40_0000 } else { rounded }) & 0xffff_0000)
}

/// Of values that are rounded, or are about to be.
trait Halves: Sized {
    fn widen_all(values: &[Self], out: &mut [f32]);
    fn narrow_all(values: &[f32], out: &mut [Self]);
}

impl Halves for f16 {
    #[inline(always)]
    fn widen_all(values: &[Self], out: &mut [f32]) {
        values.convert_to_f32_slice(out);
    }
    #[inline(always)]
    fn narrow_all(values: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(values);
    }
}

/// `half` converts bf16 one by one; these loops are vectors.
impl Halves for bf16 {
    #[inline(always)]
    fn widen_all(values: &[Self], out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
    }
    #[inline(always)]
    fn narrow_all(values: &[f32], out: &mut [Self]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = Self::from_bits((to_bf16(value).to_bits() >> 16) as u16);
        }
    }
}

macro_rules! half {
    ($half:ident, $variant:ident) => {
        impl Element for $half {
            type Acc = f32;

            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn narrow(value: f32) -> Self {
                Self::from_f32(value)
            }
            #[inline(always)]
            fn widen_slice(values: &[Self], out: &mut [f32]) {
                Self::widen_all(values, out);
            }
            #[inline(always)]
            fn narrow_slice(values: &[f32], out: &mut [Self]) {
                Self::narrow_all(values, out);
            }
            fn as_acc(_: &[Self]) -> Option<&[f32]> {
                None
            }
            fn as_acc_mut(_: &mut [Self]) -> Option<&mut [f32]> {
                None
            }
            fn zeros(len: usize) -> Vec<Self> {
                vec![0u16; len].reinterpret_into()
            }
            fn any_slice(values: &mut [Self]) -> AnySlice<'_> {
                AnySlice::$variant(values)
            }
            fn of_slice(values: AnySlice<'_>) -> Option<&mut [Self]> {
                match values {
                    AnySlice::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    };
}

half!(f16, F16);
half!(bf16, BF16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_and_keeps_the_edges() {
        for step in 0..200_000 {
            let x = -86.9 * step as f64 / 200_000.0;
            let (f, exact) = (Real::exp(x as f32), f64::from(x as f32).exp());
            assert!((f64::from(f) - exact).abs() <= 2.5e-7 * exact, "{x}: {f} {exact}");
            let x = x * 8.0;
            let (d, exact) = (Real::exp(x), x.exp());
            assert!((d - exact).abs() <= 5e-16 * exact, "{x}: {d} {exact}");
        }
        assert_eq!((Real::exp(0f32), Real::exp(0f64)), (1.0, 1.0));
        assert_eq!((Real::exp(-90f32), Real::exp(f32::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!((Real::exp(-710f64), Real::exp(f64::NEG_INFINITY)), (0.0, 0.0));
        assert!(Real::exp(f32::NAN).is_nan() && Real::exp(f64::NAN).is_nan());
        assert!((f64::from(Real::exp(5f32)) / 5f64.exp() - 1.0).abs() < 3e-7, "margins can put z above its maximum");
    }

    #[test]
    fn rounds_as_half_does() {
        let mut state = 1u32;
        for _ in 0..1_000_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let v = f32::from_bits(state);
            let expected = bf16::from_f32(v);
            let found = to_bf16(v);
            assert!(found.to_bits() == expected.to_f32().to_bits() || found.is_nan() && v.is_nan(), "{v}");
        }
        for v in [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            assert_eq!(to_bf16(v).to_bits(), bf16::from_f32(v).to_f32().to_bits(), "{v}");
        }
        assert!(to_bf16(f32::from_bits(0x7fff_ffff)).is_nan(), "a NaN whose rounding would carry into the sign");
    }

    #[test]
    fn sin_floor_is_the_root_of_epsilon() {
        assert!((f32::SIN_FLOOR - f64::from(f32::EPSILON).sqrt()).abs() < 1e-15);
        assert_eq!(f64::SIN_FLOOR, f64::EPSILON.sqrt());
    }
}
