//! Arithmetic of f32 and f64.

use super::Decoded;
use super::lanewise::{self, Op, has};
use super::numbers::{Toward, canonical, fma_directed, fma_toward, max_f32, max_f64, min_f32, min_f64, mul_toward};
use crate::lanes::{L32, LANES};
use crate::line::Line;
use crate::syntax::Type;

pub(super) fn decode(line: &Line) -> Decoded {
    lanewise::decode(line, op32, op64)
}

macro_rules! f32s {
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {
        op32!(|$a, $b, $c| {
            let ($a, $b, $c) = (f32::from_bits($a), f32::from_bits($b), f32::from_bits($c));
            let _ = ($a, $b, $c);
            let value: f32 = $value;
            canonical(value)
        })
    };
}

macro_rules! f64s {
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {
        op64!(|$a, $b, $c| {
            let ($a, $b, $c) = (f64::from_bits($a), f64::from_bits($b), f64::from_bits($c));
            let _ = ($a, $b, $c);
            let value: f64 = $value;
            value.to_bits()
        })
    };
}

/// Sums and products with a directed rounding.
macro_rules! directed {
    ($op:ident, $name:expr, $modifiers:expr, $fma:expr, $mul:expr) => {{
        macro_rules! mode {
            ($mode:expr) => {
                match $name {
                    "add" => $op!(|a, b, c| $fma(a, 1.0, b, $mode)),
                    "sub" => $op!(|a, b, c| $fma(a, 1.0, -b, $mode)),
                    "mul" => $op!(|a, b, c| $mul(a, b, $mode)),
                    "fma" => $op!(|a, b, c| $fma(a, b, c, $mode)),
                    _ => return None,
                }
            };
        }
        if has($modifiers, "rm") {
            Some(mode!(Toward::Down))
        } else if has($modifiers, "rp") {
            Some(mode!(Toward::Up))
        } else {
            Some(mode!(Toward::Zero))
        }
    }};
}

fn is_directed(modifiers: &[&str]) -> bool {
    ["rz", "rm", "rp"].iter().any(|mode| has(modifiers, mode))
}

fn mul_directed(a: f32, b: f32, toward: Toward) -> f32 {
    fma_directed(a, b, if a.is_sign_negative() == b.is_sign_negative() { 0.0 } else { -0.0 }, toward)
}

/// f32 multiply-adds of all lanes, vectorised for the processor that runs.
struct MultiplyAdds<'l>(&'l L32, &'l L32, &'l L32);

impl pulp::NullaryFnOnce for MultiplyAdds<'_> {
    type Output = L32;

    // A closure's call is not inlined here, and without that the compiler calls a function for each lane.
    #[inline(always)]
    fn call(self) -> L32 {
        let Self(a, b, c) = self;
        let mut d = [0; LANES];
        for i in 0..LANES {
            d[i] = canonical(f32::from_bits(a[i]).mul_add(f32::from_bits(b[i]), f32::from_bits(c[i])));
        }
        d
    }
}

fn fma_f32(a: &L32, b: &L32, c: &L32) -> L32 {
    pulp::Arch::new().dispatch(MultiplyAdds(a, b, c))
}

fn op32(name: &str, modifiers: &[&str], ty: Type) -> Option<Op<u32>> {
    if ty != Type::F32 {
        return None;
    }
    if is_directed(modifiers) {
        return directed!(f32s, name, modifiers, fma_directed, mul_directed);
    }
    Some(match name {
        "add" => f32s!(|a, b, c| a + b),
        "sub" => f32s!(|a, b, c| a - b),
        "mul" => f32s!(|a, b, c| a * b),
        "fma" | "mad" => fma_f32,
        "div" => f32s!(|a, b, c| a / b),
        "min" if has(modifiers, "NaN") => {
            f32s!(|a, b, c| if a.is_nan() || b.is_nan() { f32::NAN } else { min_f32(a, b) })
        }
        "max" if has(modifiers, "NaN") => {
            f32s!(|a, b, c| if a.is_nan() || b.is_nan() { f32::NAN } else { max_f32(a, b) })
        }
        "min" => f32s!(|a, b, c| min_f32(a, b)),
        "max" => f32s!(|a, b, c| max_f32(a, b)),
        "abs" => op32!(|a, b, c| a & 0x7fff_ffff),
        "neg" => op32!(|a, b, c| a ^ 0x8000_0000),
        "copysign" => op32!(|a, b, c| (b & 0x7fff_ffff) | (a & 0x8000_0000)),
        "sqrt" => f32s!(|a, b, c| a.sqrt()),
        "rcp" => f32s!(|a, b, c| 1.0 / a),
        "rsqrt" => f32s!(|a, b, c| (1.0 / f64::from(a).sqrt()) as f32),
        "ex2" => f32s!(|a, b, c| f64::from(a).exp2() as f32),
        "lg2" => f32s!(|a, b, c| f64::from(a).log2() as f32),
        "sin" => f32s!(|a, b, c| f64::from(a).sin() as f32),
        "cos" => f32s!(|a, b, c| f64::from(a).cos() as f32),
        "tanh" => f32s!(|a, b, c| f64::from(a).tanh() as f32),
        _ => return None,
    })
}

fn op64(name: &str, modifiers: &[&str], ty: Type) -> Option<Op<u64>> {
    if ty != Type::F64 {
        return None;
    }
    if is_directed(modifiers) {
        return directed!(f64s, name, modifiers, fma_toward, mul_toward);
    }
    Some(match name {
        "add" => f64s!(|a, b, c| a + b),
        "sub" => f64s!(|a, b, c| a - b),
        "mul" => f64s!(|a, b, c| a * b),
        "fma" | "mad" => f64s!(|a, b, c| a.mul_add(b, c)),
        "div" => f64s!(|a, b, c| a / b),
        "min" => f64s!(|a, b, c| min_f64(a, b)),
        "max" => f64s!(|a, b, c| max_f64(a, b)),
        "sqrt" => f64s!(|a, b, c| a.sqrt()),
        "rcp" => f64s!(|a, b, c| 1.0 / a),
        "rsqrt" => f64s!(|a, b, c| 1.0 / a.sqrt()),
        "abs" => op64!(|a, b, c| a & !(1 << 63)),
        "neg" => op64!(|a, b, c| a ^ 1 << 63),
        "copysign" => op64!(|a, b, c| (b & !(1 << 63)) | (a & 1 << 63)),
        _ => return None,
    })
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::{INF, NAN, d, f};
    let (tiny, sub) = (2f32.powi(-60), f32::from_bits(1));
    let minute = 2f64.powi(-100);
    vec![
        ("add.f32 d32, a32, b32", f(1.0), f(2f32.powi(-24)), 0, f(1.0)),
        ("add.rp.f32 d32, a32, b32", f(1.0), f(tiny), 0, f(1.0f32.next_up())),
        ("add.rm.f32 d32, a32, b32", f(1.0), f(-tiny), 0, f(1.0f32.next_down())),
        ("add.rz.f32 d32, a32, b32", f(-1.0), f(tiny), 0, f((-1.0f32).next_up())),
        ("add.rm.f32 d32, a32, b32", f(1.0), f(-1.0), 0, f(-0.0)),
        ("add.rn.f32 d32, a32, b32", f(1.0), f(-1.0), 0, f(0.0)),
        ("add.rz.f32 d32, a32, b32", f(f32::MAX), f(f32::MAX), 0, f(f32::MAX)),
        ("add.f32 d32, a32, b32", f(f32::MAX), f(f32::MAX), 0, f(INF)),
        ("add.ftz.f32 d32, a32, b32", f(sub), f(sub), 0, f(0.0)),
        ("add.f32 d32, a32, b32", f(sub), f(sub), 0, 2),
        ("add.sat.f32 d32, a32, b32", f(1.5), f(1.0), 0, f(1.0)),
        ("add.sat.f32 d32, a32, b32", f(NAN), f(1.0), 0, f(0.0)),
        ("sub.f32 d32, a32, b32", f(1.0), f(3.0), 0, f(-2.0)),
        ("mul.f32 d32, a32, b32", f(3.0), f(-0.5), 0, f(-1.5)),
        ("mul.rz.f32 d32, a32, b32", f(1.0f32.next_up()), f(1.0f32.next_up()), 0, f(1.0f32.next_up().next_up())),
        (
            "mul.rp.f32 d32, a32, b32",
            f(1.0f32.next_up()),
            f(1.0f32.next_up()),
            0,
            f(1.0f32.next_up().next_up().next_up()),
        ),
        ("mul.ftz.f32 d32, a32, b32", f(2f32.powi(-100)), f(2f32.powi(-40)), 0, f(0.0)),
        ("mul.rm.f32 d32, a32, b32", f(0.0), f(-1.0), 0, f(-0.0)),
        (
            "fma.rn.f32 d32, a32, b32, c32",
            f(1.0f32.next_up()),
            f(1.0f32.next_up()),
            f(-1.0),
            f(2f32.powi(-22) + 2f32.powi(-46)),
        ),
        ("fma.rz.f32 d32, a32, b32, c32", f(1.0), f(1.0), f(-tiny), f(1.0f32.next_down())),
        ("fma.rp.f32 d32, a32, b32, c32", f(1.0), f(1.0), f(tiny), f(1.0f32.next_up())),
        ("fma.rn.f32 d32, a32, b32, c32", f(INF), f(0.0), f(1.0), 0x7fff_ffff),
        ("div.rn.f32 d32, a32, b32", f(1.0), f(3.0), 0, f(1.0 / 3.0)),
        ("div.full.f32 d32, a32, b32", f(6.0), f(3.0), 0, f(2.0)),
        ("div.rn.f32 d32, a32, b32", f(1.0), f(-0.0), 0, f(-INF)),
        ("rcp.rn.f32 d32, a32", f(4.0), 0, 0, f(0.25)),
        ("rcp.approx.ftz.f32 d32, a32", f(sub), 0, 0, f(INF)),
        ("sqrt.rn.f32 d32, a32", f(2.0), 0, 0, f(2f32.sqrt())),
        ("sqrt.rn.f32 d32, a32", f(-0.0), 0, 0, f(-0.0)),
        ("rsqrt.approx.f32 d32, a32", f(0.25), 0, 0, f(2.0)),
        ("rsqrt.approx.f32 d32, a32", f(0.0), 0, 0, f(INF)),
        ("ex2.approx.f32 d32, a32", f(-3.0), 0, 0, f(0.125)),
        ("ex2.approx.f32 d32, a32", f(-INF), 0, 0, f(0.0)),
        ("lg2.approx.f32 d32, a32", f(8.0), 0, 0, f(3.0)),
        ("lg2.approx.f32 d32, a32", f(0.0), 0, 0, f(-INF)),
        ("sin.approx.f32 d32, a32", f(0.0), 0, 0, f(0.0)),
        ("cos.approx.f32 d32, a32", f(0.0), 0, 0, f(1.0)),
        ("tanh.approx.f32 d32, a32", f(INF), 0, 0, f(1.0)),
        ("min.f32 d32, a32, b32", f(NAN), f(2.0), 0, f(2.0)),
        ("min.f32 d32, a32, b32", f(0.0), f(-0.0), 0, f(-0.0)),
        ("max.f32 d32, a32, b32", f(-0.0), f(0.0), 0, f(0.0)),
        ("max.NaN.f32 d32, a32, b32", f(NAN), f(2.0), 0, 0x7fff_ffff),
        ("min.NaN.f32 d32, a32, b32", f(1.0), f(2.0), 0, f(1.0)),
        ("abs.f32 d32, a32", f(-2.5), 0, 0, f(2.5)),
        ("neg.f32 d32, a32", f(0.0), 0, 0, f(-0.0)),
        ("copysign.f32 d32, a32, b32", f(-1.0), f(5.0), 0, f(-5.0)),
        ("add.f64 d64, a64, b64", d(1.0), d(minute), 0, d(1.0)),
        ("add.rp.f64 d64, a64, b64", d(1.0), d(minute), 0, d(1.0f64.next_up())),
        ("add.rm.f64 d64, a64, b64", d(1.0), d(-minute), 0, d(1.0f64.next_down())),
        ("add.rz.f64 d64, a64, b64", d(-1.0), d(minute), 0, d((-1.0f64).next_up())),
        ("sub.rn.f64 d64, a64, b64", d(1.0), d(3.0), 0, d(-2.0)),
        ("mul.rz.f64 d64, a64, b64", d(1.0f64.next_up()), d(1.0f64.next_up()), 0, d(1.0f64.next_up().next_up())),
        (
            "mul.rp.f64 d64, a64, b64",
            d(1.0f64.next_up()),
            d(1.0f64.next_up()),
            0,
            d(1.0f64.next_up().next_up().next_up()),
        ),
        (
            "fma.rn.f64 d64, a64, b64, c64",
            d(1.0f64.next_up()),
            d(1.0f64.next_up()),
            d(-1.0),
            d(2f64.powi(-51) + 2f64.powi(-104)),
        ),
        ("fma.rm.f64 d64, a64, b64, c64", d(1.0), d(1.0), d(-minute), d(1.0f64.next_down())),
        ("div.rn.f64 d64, a64, b64", d(1.0), d(3.0), 0, d(1.0 / 3.0)),
        ("rcp.rn.f64 d64, a64", d(3.0), 0, 0, d(1.0 / 3.0)),
        ("sqrt.rn.f64 d64, a64", d(2.0), 0, 0, d(2f64.sqrt())),
        ("min.f64 d64, a64, b64", d(f64::NAN), d(2.0), 0, d(2.0)),
        ("max.f64 d64, a64, b64", d(-0.0), d(0.0), 0, d(0.0)),
        ("abs.f64 d64, a64", d(-2.5), 0, 0, d(2.5)),
        ("neg.f64 d64, a64", d(0.0), 0, 0, d(-0.0)),
        ("copysign.f64 d64, a64, b64", d(-1.0), d(5.0), 0, d(-5.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directed roundings of f64 against integers of 128 bits, which hold these sums and products exactly.
    #[test]
    fn directed_doubles() {
        let op = |name: &str, mode: &str, a: f64, b: f64, c: f64| {
            let f = op64(name, &[mode, "f64"], Type::F64).unwrap();
            f64::from_bits(f(&[a.to_bits(); LANES], &[b.to_bits(); LANES], &[c.to_bits(); LANES])[3])
        };
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 11) as i64 - (1 << 52)
        };
        for _ in 0..20_000 {
            // 53 bits each; c up to 2^10 times as large.
            let (a, b, c) = (random(), random(), random());
            let scale = 1i64 << (random() & 31);
            for (name, exact) in [
                ("fma", i128::from(a) * i128::from(b) + i128::from(c) * i128::from(scale)),
                ("mul", i128::from(a) * i128::from(b)),
                ("add", i128::from(a) + i128::from(c) * i128::from(scale)),
                ("sub", i128::from(a) - i128::from(c) * i128::from(scale)),
            ] {
                let large = c as f64 * scale as f64;
                let (b, c) = if name == "mul" || name == "fma" { (b as f64, large) } else { (large, 0.0) };
                let (down, up) = (op(name, "rm", a as f64, b, c), op(name, "rp", a as f64, b, c));
                let zero = op(name, "rz", a as f64, b, c);
                assert!(down as i128 <= exact && exact <= up as i128, "{name} {a} {b} {c}: {down} {up}");
                let apart = if down as i128 == exact { down } else { down.next_up() };
                assert_eq!(up, apart, "{name} {a} {b} {c}");
                assert_eq!(zero, if exact > 0 { down } else { up }, "{name} {a} {b} {c}");
            }
        }
        let (max, tiny) = (f64::MAX, f64::from_bits(1));
        assert_eq!(op("add", "rz", max, max, 0.0), max);
        assert_eq!(op("add", "rp", max, max, 0.0), f64::INFINITY);
        assert_eq!(op("mul", "rm", -max, 2.0, 0.0), f64::NEG_INFINITY);
        assert_eq!(op("mul", "rz", -max, 2.0, 0.0), -max);
        assert_eq!(op("mul", "rp", tiny, 0.25, 0.0), tiny);
        assert_eq!(op("mul", "rm", tiny, 0.25, 0.0).to_bits(), 0);
        assert_eq!(op("add", "rm", 1.0, -1.0, 0.0).to_bits(), (-0.0f64).to_bits());
        assert_eq!(op("add", "rz", 1.0, -1.0, 0.0).to_bits(), 0);
        assert_eq!(op("add", "rp", f64::INFINITY, 1.0, 0.0), f64::INFINITY);
        assert!(op("sub", "rz", f64::INFINITY, f64::INFINITY, 0.0).is_nan());
    }

    /// The largest relative (for sine, cosine and tanh absolute) errors that the ISA names, at most 2⁻²⁰ where it names none.
    #[test]
    fn approximations() {
        type Function = (&'static str, f64, fn(f64) -> f64);
        let functions: [Function; 8] = [
            ("ex2.approx.f32 d32, a32", 2f64.powi(-22), f64::exp2),
            ("lg2.approx.f32 d32, a32", 2f64.powi(-20), f64::log2),
            ("rcp.approx.f32 d32, a32", 2f64.powi(-23), f64::recip),
            ("sqrt.approx.f32 d32, a32", 2f64.powi(-23), f64::sqrt),
            ("rsqrt.approx.f32 d32, a32", 2f64.powi(-22), |v| 1.0 / v.sqrt()),
            ("sin.approx.f32 d32, a32", 2f64.powi(-20), f64::sin),
            ("cos.approx.f32 d32, a32", 2f64.powi(-20), f64::cos),
            ("tanh.approx.f32 d32, a32", 2f64.powi(-10), f64::tanh),
        ];
        use super::super::rows::{f, module};
        use crate::{Gpu, LaunchConfig};
        let gpu = Gpu::new(&module(&functions.map(|(instruction, ..)| (instruction, 0, 0, 0, 0)))).unwrap();
        for (k, (instruction, error, exact)) in functions.into_iter().enumerate() {
            for i in 1..60u32 {
                let x = (i as f32 * 0.37).sin().abs() * 3.0 + 0.001 * i as f32;
                let (from, to) = (gpu.upload(&[f(x), 0, 0]), gpu.allocate(24));
                let parameters = [&from.to_le_bytes()[..], &to.to_le_bytes()];
                gpu.launch(&format!("k{k}"), LaunchConfig::default(), &parameters).unwrap();
                let (found, exact) = (f64::from(gpu.download::<f32>(to + 8, 1).unwrap()[0]), exact(f64::from(x)));
                assert!(
                    (found - exact).abs() <= error * exact.abs().max(1.0),
                    "{instruction} of {x}: {found}, not {exact}"
                );
            }
        }
    }
}
