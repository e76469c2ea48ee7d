//! Arithmetic of f16 and bf16, one or two in a register: worked out in f64 and rounded once.

use super::Decoded;
use super::lanewise::{self, Op, has, no64};
use super::numbers::{brain, brain_op, half, half_op, max_f64, min_f64, nan_or, odd_sum};
use crate::line::Line;
use crate::syntax::Type;

pub(super) fn decode(line: &Line) -> Decoded {
    lanewise::decode(line, op32, no64)
}

/// An operation on one half or on two, by how a half becomes an f64 and back.
macro_rules! halves {
    ($from:ident, $to:ident, $packed:expr, |$a:ident, $b:ident, $c:ident| $value:expr) => {
        if $packed {
            op32!(|$a, $b, $c| {
                let part = |shift: u32| {
                    let ($a, $b, $c) = ($from($a >> shift), $from($b >> shift), $from($c >> shift));
                    let _ = ($a, $b, $c);
                    $to($value) << shift
                };
                part(0) | part(16)
            })
        } else {
            op32!(|$a, $b, $c| {
                let ($a, $b, $c) = ($from($a), $from($b), $from($c));
                let _ = ($a, $b, $c);
                $to($value)
            })
        }
    };
}

macro_rules! either {
    ($from:ident, $to:ident, $packed:expr, $name:expr, $modifiers:expr) => {
        match $name {
            // Sums are rounded to odd, since bf16's exponents reach beyond an f64's digits.
            "add" => halves!($from, $to, $packed, |a, b, c| odd_sum(a, b, false)),
            "sub" => halves!($from, $to, $packed, |a, b, c| odd_sum(a, -b, false)),
            "mul" => halves!($from, $to, $packed, |a, b, c| a * b),
            "fma" => halves!($from, $to, $packed, |a, b, c| odd_sum(a * b, c, false)),
            "min" if has($modifiers, "NaN") => halves!($from, $to, $packed, |a, b, c| nan_or(a, b, min_f64(a, b))),
            "max" if has($modifiers, "NaN") => halves!($from, $to, $packed, |a, b, c| nan_or(a, b, max_f64(a, b))),
            "min" => halves!($from, $to, $packed, |a, b, c| min_f64(a, b)),
            "max" => halves!($from, $to, $packed, |a, b, c| max_f64(a, b)),
            "tanh" => halves!($from, $to, $packed, |a, b, c| a.tanh()),
            "ex2" => halves!($from, $to, $packed, |a, b, c| a.exp2()),
            _ => return None,
        }
    };
}

fn op32(name: &str, modifiers: &[&str], ty: Type) -> Option<Op<u32>> {
    use Type::{Bf16, Bf16x2, F16, F16x2};
    Some(match (name, ty) {
        ("neg", F16 | Bf16) => op16!(|a, b, c| a ^ 0x8000),
        ("neg", F16x2 | Bf16x2) => op32!(|a, b, c| a ^ 0x8000_8000),
        ("abs", F16 | Bf16) => op16!(|a, b, c| a & 0x7fff),
        ("abs", F16x2 | Bf16x2) => op32!(|a, b, c| a & 0x7fff_7fff),
        (_, F16 | F16x2) => either!(half, half_op, ty == F16x2, name, modifiers),
        (_, Bf16 | Bf16x2) => either!(brain, brain_op, ty == Bf16x2, name, modifiers),
        _ => return None,
    })
}

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::{b, h, two};
    vec![
        ("add.f16 d16, a16, b16", h(2048.0), h(1.0), 0, h(2048.0)),
        ("add.f16 d16, a16, b16", h(2048.0), h(3.0), 0, h(2052.0)),
        ("add.rn.f16 d16, a16, b16", h(65504.0), h(16.0), 0, h(f64::INFINITY)),
        ("add.f16x2 d32, a32, b32", two(h(1.0), h(2.0)), two(h(0.5), h(-1.0)), 0, two(h(1.5), h(1.0))),
        ("add.sat.f16 d16, a16, b16", h(0.75), h(0.5), 0, h(1.0)),
        ("sub.f16 d16, a16, b16", h(1.0), h(3.0), 0, h(-2.0)),
        ("mul.f16x2 d32, a32, b32", two(h(3.0), h(-2.0)), two(h(0.5), h(4.0)), 0, two(h(1.5), h(-8.0))),
        ("fma.rn.f16 d16, a16, b16, c16", h(256.0), h(256.0), h(-65504.0), h(32.0)),
        ("fma.rn.relu.f16 d16, a16, b16, c16", h(1.0), h(1.0), h(-3.0), 0),
        (
            "fma.rn.f16x2 d32, a32, b32, c32",
            two(h(2.0), h(3.0)),
            two(h(2.0), h(3.0)),
            two(h(1.0), h(1.0)),
            two(h(5.0), h(10.0)),
        ),
        ("fma.rn.bf16 d16, a16, b16, c16", b(256.0), b(2.0), b(1.0), b(512.0)),
        (
            "fma.rn.bf16x2 d32, a32, b32, c32",
            two(b(2.0), b(3.0)),
            two(b(2.0), b(3.0)),
            two(b(1.0), b(1.0)),
            two(b(5.0), b(10.0)),
        ),
        ("add.bf16 d16, a16, b16", b(256.0), b(1.0), 0, b(256.0)),
        ("mul.bf16 d16, a16, b16", b(3.0), b(0.5), 0, b(1.5)),
        ("sub.bf16x2 d32, a32, b32", two(b(3.0), b(1.0)), two(b(1.0), b(3.0)), 0, two(b(2.0), b(-2.0))),
        ("min.f16 d16, a16, b16", 0x7e00, h(2.0), 0, h(2.0)),
        ("max.NaN.f16 d16, a16, b16", 0x7e00, h(2.0), 0, 0x7fff),
        ("max.bf16 d16, a16, b16", b(-0.0), b(0.0), 0, b(0.0)),
        ("neg.f16 d16, a16", h(1.0), 0, 0, h(-1.0)),
        ("abs.bf16x2 d32, a32", two(b(-1.0), b(-2.0)), 0, 0, two(b(1.0), b(2.0))),
        ("neg.f16x2 d32, a32", two(h(1.0), h(-2.0)), 0, 0, two(h(-1.0), h(2.0))),
        ("ex2.approx.f16 d16, a16", h(3.0), 0, 0, h(8.0)),
        ("tanh.approx.bf16 d16, a16", b(0.0), 0, 0, b(0.0)),
        // 1 + 2⁻¹¹ is a tie of f16; a little more or less decides, though it is far below an f64's last bit of it.
        ("fma.rn.f16 d16, a16, b16, c16", h(2f64.powi(-24)), h(2f64.powi(-24)), h(1.0), h(1.0)),
        ("fma.rn.f16 d16, a16, b16, c16", h(1.0 + 2f64.powi(-10)), h(0.5), h(0.5 - 2f64.powi(-11)), h(1.0)),
        // 1.5 + 1.5·2⁻⁷ is a tie of bf16, and a little decides again.
        ("fma.rn.bf16 d16, a16, b16, c16", b(1.0 + 2f64.powi(-7)), b(1.5), b(2f64.powi(-60)), b(1.5 + 2f64.powi(-6))),
        ("fma.rn.bf16 d16, a16, b16, c16", b(1.0 + 2f64.powi(-7)), b(1.5), b(-2f64.powi(-60)), b(1.5 + 2f64.powi(-7))),
    ]
}
