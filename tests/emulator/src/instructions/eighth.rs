//! Numbers of 8 bits, e4m3 and e5m2: conversions, two at a time.

use super::numbers::{half, half_op};
use super::{Decoded, code};
use crate::lanes::{L32, LANES};
use crate::line::Line;
use crate::syntax::Type;

pub(super) fn decode(line: &Line) -> Decoded {
    let (&[to, from], "cvt") = (&line.types[..], line.name) else { return None };
    let (rounds, saturates, relu) = (line.has("rn"), line.has("satfinite"), line.has("relu"));
    if let (Some(format), Type::F16x2, true) = (Format::of(from), to, rounds) {
        let (dst, src) = (line.dst(0)?, line.src(1, Type::Bits(2))?);
        return code(move |step| {
            let value: L32 = step.warp.get32(src).map(|bits| {
                let part = |shift: u32| {
                    let value = format.value((bits >> shift) as u8);
                    half_op(if relu && value <= 0.0 { 0.0 } else { value })
                };
                part(0) | part(8) << 16
            });
            step.warp.put(dst, step.active, &value);
        });
    }
    let (Some(format), true, true) = (Format::of(to), rounds, saturates) else { return None };
    let bits = move |value: f64| format.bits(if relu && value <= 0.0 { 0.0 } else { value });
    let dst = line.dst(0)?;
    match from {
        // The first goes to the upper byte.
        Type::F32 => {
            let src = [line.src(1, from)?, line.src(2, from)?];
            code(move |step| {
                let [upper, lower] = src.map(|src| step.warp.get32(src));
                let float = |bits: u32| f64::from(f32::from_bits(bits));
                let value: L32 = std::array::from_fn(|l| bits(float(upper[l])) << 8 | bits(float(lower[l])));
                step.warp.put(dst, step.active, &value);
            })
        }
        Type::F16x2 => {
            let src = line.src(1, from)?;
            code(move |step| {
                let halves = step.warp.get32(src);
                let value: [u32; LANES] = halves.map(|pair| bits(half(pair >> 16)) << 8 | bits(half(pair & 0xffff)));
                step.warp.put(dst, step.active, &value);
            })
        }
        _ => None,
    }
}

/// A format of 8 bits: a sign, an exponent, a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    fraction: i32,
    bias: i32,
    /// The bits of the largest finite number
    most: u32,
}

/// e4m3 has no infinities: of its largest exponent one fraction alone is NaN.
const E4M3: Format = Format { fraction: 3, bias: 7, most: 0x7e };
const E5M2: Format = Format { fraction: 2, bias: 15, most: 0x7b };
const NAN: u32 = 0x7f;

impl Format {
    fn of(ty: Type) -> Option<Self> {
        match ty {
            Type::E4m3x2 => Some(E4M3),
            Type::E5m2x2 => Some(E5M2),
            _ => None,
        }
    }

    /// What bits mean.
    fn value(self, bits: u8) -> f64 {
        let (sign, rest) = (if bits >> 7 == 1 { -1.0 } else { 1.0 }, u32::from(bits & 0x7f));
        if rest > self.most {
            return if self == E5M2 && rest == 0x7c { sign * f64::INFINITY } else { f64::NAN };
        }
        let (exponent, fraction) = ((rest >> self.fraction) as i32, f64::from(rest & ((1 << self.fraction) - 1)));
        let unit = 2f64.powi(exponent.max(1) - self.bias - self.fraction);
        sign * unit * (fraction + if exponent > 0 { 2f64.powi(self.fraction) } else { 0.0 })
    }

    /// The bits of the nearest number, ties to even; beyond the largest one that.
    fn bits(self, value: f64) -> u32 {
        if value.is_nan() {
            return NAN;
        }
        let (sign, size) = (u32::from(value.is_sign_negative()) << 7, value.abs());
        let largest = self.value(self.most as u8);
        if size >= largest {
            return sign | self.most;
        }
        // The exponent of an f64, or that of the subnormals.
        let exponent = ((size.to_bits() >> 52) as i32 - 1023).max(1 - self.bias);
        let units = (size / 2f64.powi(exponent - self.fraction)).round_ties_even() as u32;
        // One more exponent is one more bit above the fraction: a carry is right by itself.
        sign | (units + (((exponent + self.bias - 1) as u32) << self.fraction))
    }
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::{INF, NAN, f, h, two};
    vec![
        ("cvt.rn.satfinite.e4m3x2.f32 d16, a32, b32", f(1.0), f(-2.0), 0, 0x38c0),
        ("cvt.rn.satfinite.e4m3x2.f32 d16, a32, b32", f(500.0), f(-INF), 0, 0x7efe),
        ("cvt.rn.satfinite.e4m3x2.f32 d16, a32, b32", f(NAN), f(2f32.powi(-9)), 0, 0x7f01),
        // Ties: half of the smallest, and one and a half; between 1 and 1.125.
        ("cvt.rn.satfinite.e4m3x2.f32 d16, a32, b32", f(2f32.powi(-10)), f(3.0 * 2f32.powi(-10)), 0, 0x0002),
        ("cvt.rn.satfinite.e4m3x2.f32 d16, a32, b32", f(1.0625), f(1.1875), 0, 0x383a),
        ("cvt.rn.satfinite.e4m3x2.f32 d16, a32, b32", f(1.96), f(-0.0), 0, 0x4080),
        ("cvt.rn.satfinite.relu.e4m3x2.f32 d16, a32, b32", f(-1.0), f(1.0), 0, 0x0038),
        ("cvt.rn.satfinite.e5m2x2.f32 d16, a32, b32", f(1.0), f(60000.0), 0, 0x3c7b),
        ("cvt.rn.satfinite.e5m2x2.f32 d16, a32, b32", f(INF), f(2f32.powi(-17)), 0, 0x7b00),
        ("cvt.rn.satfinite.e5m2x2.f32 d16, a32, b32", f(1.125), f(1.375), 0, 0x3c3e),
        ("cvt.rn.satfinite.e4m3x2.f16x2 d16, a32", two(h(1.0), h(-448.0)), 0, 0, 0xfe38),
        ("cvt.rn.satfinite.e5m2x2.f16x2 d16, a32", two(h(-1.0), h(0.0)), 0, 0, 0x00bc),
        ("cvt.rn.f16x2.e4m3x2 d32, a16", 0x7e01, 0, 0, two(h(2f64.powi(-9)), h(448.0))),
        ("cvt.rn.f16x2.e4m3x2 d32, a16", 0x7f80, 0, 0, two(h(-0.0), 0x7fff)),
        ("cvt.rn.f16x2.e5m2x2 d32, a16", 0x7cfc, 0, 0, two(h(f64::NEG_INFINITY), h(f64::INFINITY))),
        ("cvt.rn.relu.f16x2.e5m2x2 d32, a16", 0xbc3c, 0, 0, two(h(1.0), 0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for format in [E4M3, E5M2] {
            for bits in (0..=255u8).filter(|bits| u32::from(bits & 0x7f) <= format.most) {
                assert_eq!(format.bits(format.value(bits)), u32::from(bits), "{format:?}");
            }
            let (a, b) = (format.value(0x3a), format.value(0x3b));
            assert_eq!(format.bits(a + (b - a) * 0.5), 0x3a, "the even one");
            assert_eq!(format.bits(a + (b - a) * 0.51), 0x3b);
        }
    }
}
