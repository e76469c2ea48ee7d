//! Arithmetic of a warp: each operation a function over 32 lanes, chosen once when a kernel is decoded. The compiler vectorises the loops.

use half::{bf16, f16};

use crate::syntax::Type;

/// Lanes of a warp
pub(crate) const LANES: usize = 32;

/// A 32-bit register of all lanes; narrower values lie in the low bits.
pub(crate) type L32 = [u32; LANES];
/// A 64-bit register of all lanes.
pub(crate) type L64 = [u64; LANES];

/// 32-bit operands to a 32-bit result
pub(crate) type Op32 = fn(&L32, &L32, &L32) -> L32;
/// 64-bit operands to a 64-bit result; narrower operands are zero-extended
pub(crate) type Op64 = fn(&L64, &L64, &L64) -> L64;
/// A comparison, of operands zero-extended to 64 bits: a bit a lane
pub(crate) type Compare = fn(&L64, &L64) -> u32;

macro_rules! op32 {
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {{
        fn lanes(a: &L32, b: &L32, c: &L32) -> L32 {
            let mut d = [0; LANES];
            for i in 0..LANES {
                let ($a, $b, $c) = (a[i], b[i], c[i]);
                let _ = ($a, $b, $c);
                d[i] = $value;
            }
            d
        }
        lanes as Op32
    }};
}

macro_rules! op64 {
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {{
        fn lanes(a: &L64, b: &L64, c: &L64) -> L64 {
            let mut d = [0; LANES];
            for i in 0..LANES {
                let ($a, $b, $c) = (a[i], b[i], c[i]);
                let _ = ($a, $b, $c);
                d[i] = $value;
            }
            d
        }
        lanes as Op64
    }};
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

/// The bits of an f32, where every NaN is the one that the ISA has for results in single precision.
#[inline(always)]
fn canonical(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

/// A direction to round in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Toward {
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
fn fma_toward(a: f64, b: f64, c: f64, toward: Toward) -> f64 {
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
fn fma_directed(a: f32, b: f32, c: f32, toward: Toward) -> f32 {
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
fn odd_sum(x: f64, y: f64, down: bool) -> f64 {
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

/// Sums and products in f32 with a directed rounding.
fn directed(name: &str, modifiers: &[&str]) -> Option<Op32> {
    macro_rules! mode {
        ($mode:expr) => {
            match name {
                "add" => f32s!(|a, b, c| fma_directed(a, 1.0, b, $mode)),
                "sub" => f32s!(|a, b, c| fma_directed(a, 1.0, -b, $mode)),
                "mul" => f32s!(|a, b, c| fma_directed(
                    a,
                    b,
                    if a.is_sign_negative() == b.is_sign_negative() { 0.0 } else { -0.0 },
                    $mode
                )),
                "fma" => f32s!(|a, b, c| fma_directed(a, b, c, $mode)),
                _ => return None,
            }
        };
    }
    Some(if has(modifiers, "rm") {
        mode!(Toward::Down)
    } else if has(modifiers, "rp") {
        mode!(Toward::Up)
    } else {
        mode!(Toward::Zero)
    })
}

/// The same in f64.
fn directed64(name: &str, modifiers: &[&str]) -> Option<Op64> {
    macro_rules! mode {
        ($mode:expr) => {
            match name {
                "add" => f64s!(|a, b, c| fma_toward(a, 1.0, b, $mode)),
                "sub" => f64s!(|a, b, c| fma_toward(a, 1.0, -b, $mode)),
                "mul" => f64s!(|a, b, c| mul_toward(a, b, $mode)),
                "fma" => f64s!(|a, b, c| fma_toward(a, b, c, $mode)),
                _ => return None,
            }
        };
    }
    Some(if has(modifiers, "rm") {
        mode!(Toward::Down)
    } else if has(modifiers, "rp") {
        mode!(Toward::Up)
    } else {
        mode!(Toward::Zero)
    })
}

/// A product: its zeros have their own signs.
fn mul_toward(a: f64, b: f64, toward: Toward) -> f64 {
    if a == 0.0 || b == 0.0 { a * b } else { fma_toward(a, b, if (a < 0.0) == (b < 0.0) { 0.0 } else { -0.0 }, toward) }
}

/// The smaller by PTX: a number against NaN, and −0 below +0.
fn min_f64(a: f64, b: f64) -> f64 {
    if a == b { f64::from_bits(a.to_bits() | b.to_bits()) } else { a.min(b) }
}

fn max_f64(a: f64, b: f64) -> f64 {
    if a == b { f64::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
}

fn min_f32(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() | b.to_bits()) } else { a.min(b) }
}

fn max_f32(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
}

fn nan_or(a: f64, b: f64, value: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { value }
}

/// What becomes of operands and results of an operation on floating-point numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finish {
    pub ty: Type,
    /// Subnormal f32 are zero
    pub flush: bool,
    /// Results go to [0, 1], NaN to 0
    pub saturate: bool,
    /// Negative results go to 0
    pub relu: bool,
}

impl Finish {
    /// None if there is nothing to do.
    pub fn new(modifiers: &[&str], ty: Type) -> Option<Self> {
        let float = matches!(ty, Type::F32 | Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2);
        let flush = ty == Type::F32 && has(modifiers, "ftz");
        let (saturate, relu) = (float && has(modifiers, "sat"), has(modifiers, "relu"));
        (flush || saturate || relu).then_some(Self { ty, flush, saturate, relu })
    }

    pub fn operand(self, bits: u32) -> u32 {
        if self.flush { flush(bits) } else { bits }
    }

    pub fn result(self, bits: u32) -> u32 {
        let clamp = |value: f64| {
            let value = if self.saturate { if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) } } else { value };
            // −0 is not below 0, and goes to +0 all the same.
            if self.relu && value <= 0.0 { 0.0 } else { value }
        };
        if !self.saturate && !self.relu {
            return self.operand(bits);
        }
        match self.ty {
            Type::F32 => (clamp(f64::from(f32::from_bits(self.operand(bits)))) as f32).to_bits(),
            Type::F16 => half_op(clamp(half(bits))),
            Type::F16x2 => half_op(clamp(half(bits))) | half_op(clamp(half(bits >> 16))) << 16,
            Type::Bf16 => brain_op(clamp(brain(bits))),
            _ => brain_op(clamp(brain(bits))) | brain_op(clamp(brain(bits >> 16))) << 16,
        }
    }
}

/// `cvt` of two f32 to two halves: the first goes to the upper one.
pub(crate) fn pack(modifiers: &[&str], to: Type) -> Option<Op32> {
    if !has(modifiers, "rn") || has(modifiers, "satfinite") {
        return None;
    }
    macro_rules! pack {
        ($half:ident) => {
            op32!(|a, b, c| {
                let one = |bits: u32| u32::from($half::from_f32(f32::from_bits(bits)).to_bits());
                one(a) << 16 | one(b)
            })
        };
    }
    match to {
        Type::F16x2 => Some(pack!(f16)),
        Type::Bf16x2 => Some(pack!(bf16)),
        _ => None,
    }
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

fn half_op(value: f64) -> u32 {
    if value.is_nan() { 0x7fff } else { u32::from(f16::from_f32(odd_f32(value)).to_bits()) }
}

fn half(bits: u32) -> f64 {
    f16::from_bits(bits as u16).to_f64()
}

fn brain_op(value: f64) -> u32 {
    if value.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(odd_f32(value)).to_bits()) }
}

fn brain(bits: u32) -> f64 {
    bf16::from_bits(bits as u16).to_f64()
}

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

/// A 16-bit result of 16-bit operands.
macro_rules! short {
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {
        op32!(|$a, $b, $c| u32::from({
            let ($a, $b, $c) = ($a as u16, $b as u16, $c as u16);
            let _ = ($a, $b, $c);
            let value: u16 = $value;
            value
        }))
    };
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

/// Whether a modifier is among an opcode's.
fn has(modifiers: &[&str], wanted: &str) -> bool {
    modifiers.contains(&wanted)
}

/// An operation on operands of at most 32 bits, by its name, its modifiers and its type.
pub(crate) fn op32(name: &str, modifiers: &[&str], ty: Type) -> Option<Op32> {
    use Type::{Bf16, Bf16x2, Bits, F16, F16x2, F32, Pred, Signed, Unsigned};
    if ty == F32 && ["rz", "rm", "rp"].iter().any(|mode| has(modifiers, mode)) {
        return directed(name, modifiers);
    }
    Some(match (name, ty) {
        ("mov", _) => op32!(|a, b, c| a),
        ("add", F32) => f32s!(|a, b, c| a + b),
        ("sub", F32) => f32s!(|a, b, c| a - b),
        ("mul", F32) => f32s!(|a, b, c| a * b),
        ("fma" | "mad", F32) => fma_f32,
        ("div", F32) => f32s!(|a, b, c| a / b),
        ("min", F32) if has(modifiers, "NaN") => {
            f32s!(|a, b, c| if a.is_nan() || b.is_nan() { f32::from_bits(0x7fff_ffff) } else { min_f32(a, b) })
        }
        ("max", F32) if has(modifiers, "NaN") => {
            f32s!(|a, b, c| if a.is_nan() || b.is_nan() { f32::from_bits(0x7fff_ffff) } else { max_f32(a, b) })
        }
        ("min", F16 | F16x2 | Bf16 | Bf16x2) if has(modifiers, "NaN") => match ty {
            F16 | F16x2 => halves!(half, half_op, ty == F16x2, |a, b, c| nan_or(a, b, min_f64(a, b))),
            _ => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| nan_or(a, b, min_f64(a, b))),
        },
        ("max", F16 | F16x2 | Bf16 | Bf16x2) if has(modifiers, "NaN") => match ty {
            F16 | F16x2 => halves!(half, half_op, ty == F16x2, |a, b, c| nan_or(a, b, max_f64(a, b))),
            _ => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| nan_or(a, b, max_f64(a, b))),
        },
        ("min", F32) => f32s!(|a, b, c| min_f32(a, b)),
        ("max", F32) => f32s!(|a, b, c| max_f32(a, b)),
        ("abs", F32) => op32!(|a, b, c| a & 0x7fff_ffff),
        ("neg", F32) => op32!(|a, b, c| a ^ 0x8000_0000),
        ("copysign", F32) => op32!(|a, b, c| (b & 0x7fff_ffff) | (a & 0x8000_0000)),
        ("sqrt", F32) => f32s!(|a, b, c| a.sqrt()),
        ("rcp", F32) => f32s!(|a, b, c| 1.0 / a),
        ("rsqrt", F32) => f32s!(|a, b, c| (1.0 / f64::from(a).sqrt()) as f32),
        ("ex2", F32) => f32s!(|a, b, c| f64::from(a).exp2() as f32),
        ("lg2", F32) => f32s!(|a, b, c| f64::from(a).log2() as f32),
        ("sin", F32) => f32s!(|a, b, c| f64::from(a).sin() as f32),
        ("cos", F32) => f32s!(|a, b, c| f64::from(a).cos() as f32),
        ("tanh", F32) => f32s!(|a, b, c| f64::from(a).tanh() as f32),
        ("add", F16 | F16x2) => halves!(half, half_op, ty == F16x2, |a, b, c| a + b),
        ("sub", F16 | F16x2) => halves!(half, half_op, ty == F16x2, |a, b, c| a - b),
        ("mul", F16 | F16x2) => halves!(half, half_op, ty == F16x2, |a, b, c| a * b),
        ("fma", F16 | F16x2) => halves!(half, half_op, ty == F16x2, |a, b, c| odd_sum(a * b, c, false)),
        ("min", F16 | F16x2) => halves!(half, half_op, ty == F16x2, |a, b, c| min_f64(a, b)),
        ("max", F16 | F16x2) => halves!(half, half_op, ty == F16x2, |a, b, c| max_f64(a, b)),
        ("fma", Bf16 | Bf16x2) => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| odd_sum(a * b, c, false)),
        ("add", Bf16 | Bf16x2) => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| odd_sum(a, b, false)),
        ("sub", Bf16 | Bf16x2) => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| odd_sum(a, -b, false)),
        ("mul", Bf16 | Bf16x2) => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| a * b),
        ("tanh", F16 | F16x2) => halves!(half, half_op, ty == F16x2, |a, b, c| a.tanh()),
        ("tanh", Bf16 | Bf16x2) => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| a.tanh()),
        ("ex2", F16 | F16x2) => halves!(half, half_op, ty == F16x2, |a, b, c| a.exp2()),
        ("ex2", Bf16 | Bf16x2) => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| a.exp2()),
        ("min", Bf16 | Bf16x2) => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| min_f64(a, b)),
        ("max", Bf16 | Bf16x2) => halves!(brain, brain_op, ty == Bf16x2, |a, b, c| max_f64(a, b)),
        ("neg", F16 | Bf16) => short!(|a, b, c| a ^ 0x8000),
        ("neg", F16x2 | Bf16x2) => op32!(|a, b, c| a ^ 0x8000_8000),
        ("abs", F16 | Bf16) => short!(|a, b, c| a & 0x7fff),
        ("abs", F16x2 | Bf16x2) => op32!(|a, b, c| a & 0x7fff_7fff),
        ("add", Signed(4)) if has(modifiers, "sat") => op32!(|a, b, c| (a as i32).saturating_add(b as i32) as u32),
        ("sub", Signed(4)) if has(modifiers, "sat") => op32!(|a, b, c| (a as i32).saturating_sub(b as i32) as u32),
        ("mad", Unsigned(4)) if has(modifiers, "hi") => {
            op32!(|a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c))
        }
        ("mad", Signed(4)) if has(modifiers, "hi") && !has(modifiers, "sat") => {
            op32!(|a, b, c| (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).wrapping_add(c))
        }
        ("mad", Unsigned(2)) if has(modifiers, "wide") => {
            op32!(|a, b, c| ((a & 0xffff) * (b & 0xffff)).wrapping_add(c))
        }
        ("mad", Signed(2)) if has(modifiers, "wide") => {
            op32!(|a, b, c| ((i32::from(a as i16) * i32::from(b as i16)) as u32).wrapping_add(c))
        }
        ("mul", Unsigned(2)) if has(modifiers, "hi") => short!(|a, b, c| ((u32::from(a) * u32::from(b)) >> 16) as u16),
        ("mul", Signed(2)) if has(modifiers, "hi") => {
            short!(|a, b, c| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16)
        }
        ("sad", Unsigned(4)) => op32!(|a, b, c| c.wrapping_add(a.abs_diff(b))),
        ("sad", Signed(4)) => op32!(|a, b, c| c.wrapping_add((a as i32).abs_diff(b as i32))),
        ("slct", Signed(4)) => op32!(|a, b, c| if c as i32 >= 0 { a } else { b }),
        ("slct", F32) => op32!(|a, b, c| if f32::from_bits(c) >= 0.0 { a } else { b }),
        ("bfind", Unsigned(4)) if has(modifiers, "shiftamt") => {
            op32!(|a, b, c| if a == 0 { u32::MAX } else { a.leading_zeros() })
        }
        ("bfind", Unsigned(4)) => op32!(|a, b, c| if a == 0 { u32::MAX } else { 31 - a.leading_zeros() }),
        ("bfind", Signed(4)) if !has(modifiers, "shiftamt") => op32!(|a, b, c| {
            let a = if (a as i32) < 0 { !a } else { a };
            if a == 0 { u32::MAX } else { 31 - a.leading_zeros() }
        }),
        ("add", Signed(4) | Unsigned(4)) => op32!(|a, b, c| a.wrapping_add(b)),
        ("sub", Signed(4) | Unsigned(4)) => op32!(|a, b, c| a.wrapping_sub(b)),
        ("mul", Signed(4) | Unsigned(4)) if has(modifiers, "lo") => {
            op32!(|a, b, c| a.wrapping_mul(b))
        }
        ("mul", Unsigned(4)) if has(modifiers, "hi") => {
            op32!(|a, b, c| ((u64::from(a) * u64::from(b)) >> 32) as u32)
        }
        ("mul", Signed(4)) if has(modifiers, "hi") => {
            op32!(|a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32)
        }
        ("mad", Signed(4) | Unsigned(4)) if has(modifiers, "lo") => {
            op32!(|a, b, c| a.wrapping_mul(b).wrapping_add(c))
        }
        ("mul", Unsigned(2)) if has(modifiers, "wide") => {
            op32!(|a, b, c| (a & 0xffff) * (b & 0xffff))
        }
        ("mul", Signed(2)) if has(modifiers, "wide") => {
            op32!(|a, b, c| (i32::from(a as i16) * i32::from(b as i16)) as u32)
        }
        ("div", Unsigned(4)) => op32!(|a, b, c| a.checked_div(b).unwrap_or(u32::MAX)),
        ("div", Signed(4)) => {
            op32!(|a, b, c| if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 })
        }
        ("rem", Unsigned(4)) => op32!(|a, b, c| if b == 0 { a } else { a % b }),
        ("rem", Signed(4)) => op32!(|a, b, c| if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }),
        ("min", Unsigned(4)) => op32!(|a, b, c| a.min(b)),
        ("max", Unsigned(4)) => op32!(|a, b, c| a.max(b)),
        ("min", Signed(4)) => op32!(|a, b, c| (a as i32).min(b as i32) as u32),
        ("max", Signed(4)) => op32!(|a, b, c| (a as i32).max(b as i32) as u32),
        ("abs", Signed(4)) => op32!(|a, b, c| (a as i32).unsigned_abs()),
        ("neg", Signed(4)) => op32!(|a, b, c| a.wrapping_neg()),
        ("add", Signed(2) | Unsigned(2)) => short!(|a, b, c| a.wrapping_add(b)),
        ("sub", Signed(2) | Unsigned(2)) => short!(|a, b, c| a.wrapping_sub(b)),
        ("mul", Signed(2) | Unsigned(2)) if has(modifiers, "lo") => {
            short!(|a, b, c| a.wrapping_mul(b))
        }
        ("mad", Signed(2) | Unsigned(2)) if has(modifiers, "lo") => {
            short!(|a, b, c| a.wrapping_mul(b).wrapping_add(c))
        }
        ("div", Unsigned(2)) => short!(|a, b, c| a.checked_div(b).unwrap_or(u16::MAX)),
        ("rem", Unsigned(2)) => short!(|a, b, c| if b == 0 { a } else { a % b }),
        ("div", Signed(2)) => {
            short!(|a, b, c| if b == 0 { u16::MAX } else { (a as i16).wrapping_div(b as i16) as u16 })
        }
        ("rem", Signed(2)) => short!(|a, b, c| if b == 0 { a } else { (a as i16).wrapping_rem(b as i16) as u16 }),
        ("neg", Signed(2)) => short!(|a, b, c| a.wrapping_neg()),
        ("abs", Signed(2)) => short!(|a, b, c| (a as i16).unsigned_abs()),
        ("min", Unsigned(2)) => short!(|a, b, c| a.min(b)),
        ("max", Unsigned(2)) => short!(|a, b, c| a.max(b)),
        ("min", Signed(2)) => short!(|a, b, c| (a as i16).min(b as i16) as u16),
        ("max", Signed(2)) => short!(|a, b, c| (a as i16).max(b as i16) as u16),
        ("and", Bits(2 | 4)) => op32!(|a, b, c| a & b),
        ("or", Bits(2 | 4)) => op32!(|a, b, c| a | b),
        ("xor", Bits(2 | 4)) => op32!(|a, b, c| a ^ b),
        ("cnot", Bits(4)) => op32!(|a, b, c| u32::from(a == 0)),
        ("cnot", Bits(2)) => short!(|a, b, c| u16::from(a == 0)),
        ("not", Bits(4)) => op32!(|a, b, c| !a),
        ("not", Bits(2)) => short!(|a, b, c| !a),
        ("shl", Bits(4)) => op32!(|a, b, c| a.checked_shl(b).unwrap_or(0)),
        ("shl", Bits(2)) => op32!(|a, b, c| a.checked_shl(b).unwrap_or(0) & 0xffff),
        ("shr", Bits(4) | Unsigned(4)) => op32!(|a, b, c| a.checked_shr(b).unwrap_or(0)),
        ("shr", Bits(2) | Unsigned(2)) => op32!(|a, b, c| (a & 0xffff).checked_shr(b).unwrap_or(0)),
        ("shr", Signed(4)) => op32!(|a, b, c| ((a as i32) >> b.min(31)) as u32),
        ("shr", Signed(2)) => short!(|a, b, c| ((a as i16) >> b.min(15)) as u16),
        ("popc", Bits(4)) => op32!(|a, b, c| a.count_ones()),
        ("clz", Bits(4)) => op32!(|a, b, c| a.leading_zeros()),
        ("brev", Bits(4)) => op32!(|a, b, c| a.reverse_bits()),
        ("prmt", Bits(4)) if has(modifiers, "f4e") => {
            op32!(|a, b, c| prmt(a, b, [0x3210, 0x4321, 0x5432, 0x6543][c as usize & 3]))
        }
        ("prmt", Bits(4)) if has(modifiers, "b4e") => {
            op32!(|a, b, c| prmt(a, b, [0x5670, 0x6701, 0x7012, 0x0123][c as usize & 3]))
        }
        ("prmt", Bits(4)) if has(modifiers, "rc8") => op32!(|a, b, c| prmt(a, b, 0x1111 * (c & 3))),
        ("prmt", Bits(4)) if has(modifiers, "ecl") => {
            op32!(|a, b, c| prmt(a, b, [0x3210, 0x3211, 0x3222, 0x3333][c as usize & 3]))
        }
        ("prmt", Bits(4)) if has(modifiers, "ecr") => {
            op32!(|a, b, c| prmt(a, b, [0x0000, 0x1110, 0x2210, 0x3210][c as usize & 3]))
        }
        ("prmt", Bits(4)) if has(modifiers, "rc16") => {
            op32!(|a, b, c| prmt(a, b, [0x1010, 0x3232, 0x1010, 0x3232][c as usize & 3]))
        }
        ("prmt", Bits(4)) => op32!(|a, b, c| prmt(a, b, c)),
        ("bfe", Unsigned(4)) => op32!(|a, b, c| bfe(u64::from(a), b, c, 32, false) as u32),
        ("bfe", Signed(4)) => op32!(|a, b, c| bfe(u64::from(a), b, c, 32, true) as u32),
        ("shf", Bits(4)) => match (has(modifiers, "l"), has(modifiers, "wrap")) {
            (true, true) => {
                op32!(|a, b, c| ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32)
            }
            (true, false) => {
                op32!(|a, b, c| ((u64::from(b) << 32 | u64::from(a)) << c.min(32) >> 32) as u32)
            }
            (false, true) => {
                op32!(|a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32)
            }
            (false, false) => {
                op32!(|a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32)
            }
        },
        ("lop3", Bits(4)) | (_, Pred) => return None,
        _ => return None,
    })
}

/// An operation on 64-bit operands.
pub(crate) fn op64(name: &str, modifiers: &[&str], ty: Type) -> Option<Op64> {
    use Type::{Bits, F64, Signed, Unsigned};
    if ty == F64 && ["rz", "rm", "rp"].iter().any(|mode| has(modifiers, mode)) {
        return directed64(name, modifiers);
    }
    Some(match (name, ty) {
        ("mov", _) => op64!(|a, b, c| a),
        ("add", F64) => f64s!(|a, b, c| a + b),
        ("sub", F64) => f64s!(|a, b, c| a - b),
        ("mul", F64) => f64s!(|a, b, c| a * b),
        ("fma" | "mad", F64) => f64s!(|a, b, c| a.mul_add(b, c)),
        ("div", F64) => f64s!(|a, b, c| a / b),
        ("min", F64) => f64s!(|a, b, c| min_f64(a, b)),
        ("max", F64) => f64s!(|a, b, c| max_f64(a, b)),
        ("sqrt", F64) => f64s!(|a, b, c| a.sqrt()),
        ("rcp", F64) => f64s!(|a, b, c| 1.0 / a),
        ("rsqrt", F64) => f64s!(|a, b, c| 1.0 / a.sqrt()),
        ("abs", F64) => op64!(|a, b, c| a & !(1 << 63)),
        ("neg", F64) => op64!(|a, b, c| a ^ 1 << 63),
        ("copysign", F64) => op64!(|a, b, c| (b & !(1 << 63)) | (a & 1 << 63)),
        ("add", Signed(8) | Unsigned(8)) => op64!(|a, b, c| a.wrapping_add(b)),
        ("sub", Signed(8) | Unsigned(8)) => op64!(|a, b, c| a.wrapping_sub(b)),
        ("mul", Signed(8) | Unsigned(8)) if has(modifiers, "lo") => {
            op64!(|a, b, c| a.wrapping_mul(b))
        }
        ("mul", Unsigned(8)) if has(modifiers, "hi") => {
            op64!(|a, b, c| ((u128::from(a) * u128::from(b)) >> 64) as u64)
        }
        ("mul", Signed(8)) if has(modifiers, "hi") => {
            op64!(|a, b, c| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64)
        }
        ("mad", Signed(8) | Unsigned(8)) if has(modifiers, "lo") => {
            op64!(|a, b, c| a.wrapping_mul(b).wrapping_add(c))
        }
        ("mul", Unsigned(4)) if has(modifiers, "wide") => op64!(|a, b, c| a * b),
        ("mul", Signed(4)) if has(modifiers, "wide") => {
            op64!(|a, b, c| (i64::from(a as i32) * i64::from(b as i32)) as u64)
        }
        ("mad", Unsigned(4)) if has(modifiers, "wide") => op64!(|a, b, c| (a * b).wrapping_add(c)),
        ("mad", Signed(4)) if has(modifiers, "wide") => {
            op64!(|a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c))
        }
        ("div", Unsigned(8)) => op64!(|a, b, c| a.checked_div(b).unwrap_or(u64::MAX)),
        ("div", Signed(8)) => {
            op64!(|a, b, c| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 })
        }
        ("rem", Unsigned(8)) => op64!(|a, b, c| if b == 0 { a } else { a % b }),
        ("rem", Signed(8)) => op64!(|a, b, c| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }),
        ("min", Unsigned(8)) => op64!(|a, b, c| a.min(b)),
        ("max", Unsigned(8)) => op64!(|a, b, c| a.max(b)),
        ("min", Signed(8)) => op64!(|a, b, c| (a as i64).min(b as i64) as u64),
        ("max", Signed(8)) => op64!(|a, b, c| (a as i64).max(b as i64) as u64),
        ("abs", Signed(8)) => op64!(|a, b, c| (a as i64).unsigned_abs()),
        ("neg", Signed(8)) => op64!(|a, b, c| a.wrapping_neg()),
        ("and", Bits(8)) => op64!(|a, b, c| a & b),
        ("or", Bits(8)) => op64!(|a, b, c| a | b),
        ("xor", Bits(8)) => op64!(|a, b, c| a ^ b),
        ("not", Bits(8)) => op64!(|a, b, c| !a),
        ("shl", Bits(8)) => op64!(|a, b, c| a.checked_shl(b as u32).unwrap_or(0)),
        ("shr", Bits(8) | Unsigned(8)) => op64!(|a, b, c| a.checked_shr(b as u32).unwrap_or(0)),
        ("shr", Signed(8)) => op64!(|a, b, c| ((a as i64) >> b.min(63)) as u64),
        ("mad", Unsigned(8)) if has(modifiers, "hi") => {
            op64!(|a, b, c| (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c))
        }
        ("mad", Signed(8)) if has(modifiers, "hi") => {
            op64!(|a, b, c| (((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64).wrapping_add(c))
        }
        ("bfind", Unsigned(8)) if !has(modifiers, "shiftamt") => {
            op64!(|a, b, c| if a == 0 { u64::MAX } else { u64::from(63 - a.leading_zeros()) })
        }
        ("popc", Bits(8)) => op64!(|a, b, c| u64::from(a.count_ones())),
        ("clz", Bits(8)) => op64!(|a, b, c| u64::from(a.leading_zeros())),
        ("brev", Bits(8)) => op64!(|a, b, c| a.reverse_bits()),
        ("bfe", Unsigned(8)) => op64!(|a, b, c| bfe(a, b as u32, c as u32, 64, false)),
        ("bfe", Signed(8)) => op64!(|a, b, c| bfe(a, b as u32, c as u32, 64, true)),
        _ => return None,
    })
}

/// `testp` of a kind of number: a comparison that looks at its first operand only.
pub(crate) fn test(name: &str, ty: Type) -> Option<Compare> {
    macro_rules! test {
        ($from:expr, |$v:ident| $holds:expr) => {{
            fn lanes(a: &L64, _: &L64) -> u32 {
                (0..LANES).fold(0, |mask, lane| {
                    let $v = $from(a[lane]);
                    mask | u32::from($holds) << lane
                })
            }
            lanes as Compare
        }};
    }
    macro_rules! of {
        ($from:expr) => {
            match name {
                "finite" => test!($from, |v| v.is_finite()),
                "infinite" => test!($from, |v| v.is_infinite()),
                "number" => test!($from, |v| !v.is_nan()),
                "notanumber" => test!($from, |v| v.is_nan()),
                "normal" => test!($from, |v| v.is_normal()),
                "subnormal" => test!($from, |v| v.is_subnormal()),
                _ => return None,
            }
        };
    }
    Some(match ty {
        Type::F32 => of!(|v: u64| f32::from_bits(v as u32)),
        Type::F64 => of!(f64::from_bits),
        _ => return None,
    })
}

/// A subnormal f32 to a zero of its sign: what `.ftz` does to operands and results.
pub(crate) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// `bfi`: bits of a into b at `start`, `count` of them
pub(crate) fn bfi(a: u64, b: u64, start: u64, count: u64, width: u64) -> u64 {
    let (start, count) = (start & 0xff, count & 0xff);
    if start >= width || count == 0 {
        return b;
    }
    let count = count.min(width - start);
    let mask = if count == 64 { u64::MAX } else { (1 << count) - 1 };
    (b & !(mask << start)) | (a & mask) << start
}

fn bfe(a: u64, start: u32, count: u32, width: u32, signed: bool) -> u64 {
    let (start, count) = (start & 0xff, count & 0xff);
    let sign_at = (start + count).saturating_sub(1).min(width - 1);
    let sign = signed && count > 0 && a >> sign_at & 1 == 1;
    let mut value = 0;
    for i in 0..count.min(width) {
        let from = start + i;
        let bit = if from < width { a >> from & 1 } else { u64::from(sign) };
        value |= bit << i;
    }
    if sign && count < width { value | u64::MAX << count } else { value }
}

fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |value, i| {
        let select = selector >> (4 * i);
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        value | u32::from(byte) << (8 * i)
    })
}

/// A comparison by its name and type, of operands zero-extended to 64 bits.
pub(crate) fn compare(name: &str, ty: Type) -> Option<Compare> {
    macro_rules! by {
        (|$v:ident| $from:expr) => {{
            macro_rules! test {
                (|$a:ident, $b:ident| $holds:expr) => {{
                    fn lanes(a: &L64, b: &L64) -> u32 {
                        let mut mask = 0;
                        for i in 0..LANES {
                            let $a = {
                                let $v = a[i];
                                $from
                            };
                            let $b = {
                                let $v = b[i];
                                $from
                            };
                            mask |= u32::from($holds) << i;
                        }
                        mask
                    }
                    lanes as Compare
                }};
            }
            #[allow(clippy::eq_op, clippy::neg_cmp_op_on_partial_ord, clippy::double_comparisons)]
            match name {
                "eq" => test!(|a, b| a == b),
                "ne" => test!(|a, b| a < b || a > b),
                "lt" | "lo" => test!(|a, b| a < b),
                "le" | "ls" => test!(|a, b| a <= b),
                "gt" | "hi" => test!(|a, b| a > b),
                "ge" | "hs" => test!(|a, b| a >= b),
                "equ" => test!(|a, b| !(a < b || a > b)),
                "neu" => test!(|a, b| a != b),
                "ltu" => test!(|a, b| !(a >= b)),
                "leu" => test!(|a, b| !(a > b)),
                "gtu" => test!(|a, b| !(a <= b)),
                "geu" => test!(|a, b| !(a < b)),
                "num" => test!(|a, b| a == a && b == b),
                "nan" => test!(|a, b| a != a || b != b),
                _ => return None,
            }
        }};
    }
    Some(match ty {
        Type::F32 => by!(|v| f32::from_bits(v as u32)),
        Type::F64 => by!(|v| f64::from_bits(v)),
        Type::F16 => by!(|v| half(v as u32)),
        Type::Bf16 => by!(|v| brain(v as u32)),
        Type::Signed(2) => by!(|v| v as i16),
        Type::Signed(4) => by!(|v| v as i32),
        Type::Signed(8) => by!(|v| v as i64),
        Type::Unsigned(2) | Type::Bits(2) => by!(|v| v as u16),
        Type::Unsigned(4) | Type::Bits(4) => by!(|v| v as u32),
        Type::Unsigned(8) | Type::Bits(8) => by!(|v| v),
        _ => return None,
    })
}

/// `cvt`: one lane's value, both sides as bits in 64. `None` for a pair of types or a rounding that is not known.
pub(crate) fn convert(modifiers: &[&str], to: Type, from: Type, value: u64) -> Option<u64> {
    if (to, from) == (Type::Tf32, Type::F32) {
        // To nearest, ties away from zero, of the 10 bits that a tf32 has.
        let bits = value as u32;
        let finite = bits & 0x7f80_0000 != 0x7f80_0000;
        return has(modifiers, "rna").then(|| u64::from(if finite { (bits + 0x1000) & !0x1fff } else { bits }));
    }
    use Type::{Bf16, F16, F32, F64, Signed, Unsigned};
    let ftz = |bits: u32| {
        if has(modifiers, "ftz") { flush(bits) } else { bits }
    };
    let float = |ty: Type| -> Option<f64> {
        Some(match ty {
            F16 => half(value as u32),
            Bf16 => brain(value as u32),
            F32 => f64::from(f32::from_bits(ftz(value as u32))),
            F64 => f64::from_bits(value),
            _ => return None,
        })
    };
    let whole = |ty: Type| -> Option<i128> {
        Some(match ty {
            Signed(1) => i128::from(value as i8),
            Signed(2) => i128::from(value as i16),
            Signed(4) => i128::from(value as i32),
            Signed(8) => i128::from(value as i64),
            Unsigned(1) => i128::from(value as u8),
            Unsigned(2) => i128::from(value as u16),
            Unsigned(4) => i128::from(value as u32),
            Unsigned(8) => i128::from(value),
            _ => return None,
        })
    };
    let to_integer = |rounded: f64| -> Option<u64> {
        // NaN converts to 0, and the rest saturates.
        Some(match to {
            Signed(1) => rounded as i8 as u64,
            Signed(2) => rounded as i16 as u64,
            Signed(4) => rounded as i32 as u64,
            Signed(8) => rounded as i64 as u64,
            Unsigned(1) => u64::from(rounded as u8),
            Unsigned(2) => u64::from(rounded as u16),
            Unsigned(4) => u64::from(rounded as u32),
            Unsigned(8) => rounded as u64,
            _ => return None,
        })
    };
    let round = |value: f64| {
        if has(modifiers, "rni") {
            value.round_ties_even()
        } else if has(modifiers, "rmi") {
            value.floor()
        } else if has(modifiers, "rpi") {
            value.ceil()
        } else {
            value.trunc()
        }
    };
    let directed = ["rm", "rp", "rz"].into_iter().find(|mode| has(modifiers, mode));
    if to != F32 && matches!(directed, Some("rm" | "rp")) {
        return None;
    }
    // The f32 below or above the nearest one, where the exact value lies on that side of it: by the order of nearest and exact.
    let direct = |nearest: f32, against: std::cmp::Ordering| -> f32 {
        use std::cmp::Ordering::{Greater, Less};
        match (directed, against) {
            (Some("rm"), Greater) => nearest.next_down(),
            (Some("rp"), Less) => nearest.next_up(),
            (Some("rz"), Greater) if nearest > 0.0 => nearest.next_down(),
            (Some("rz"), Less) if nearest < 0.0 => nearest.next_up(),
            _ => nearest,
        }
    };
    let saturate = |value: f64| {
        if has(modifiers, "sat") { value.clamp(0.0, 1.0) } else { value }
    };
    let to_float = |value: f64| -> Option<u64> {
        let value = saturate(value);
        let toward_zero = has(modifiers, "rz");
        Some(match to {
            F64 => value.to_bits(),
            F32 => {
                let nearest = value as f32;
                let order = f64::from(nearest).partial_cmp(&value).unwrap_or(std::cmp::Ordering::Equal);
                u64::from(ftz(direct(nearest, order).to_bits()))
            }
            F16 if !toward_zero => u64::from(half_op(value)),
            Bf16 if !toward_zero => u64::from(brain_op(value)),
            _ => return None,
        })
    };
    if let Some(value) = float(from) {
        if matches!(to, Signed(_) | Unsigned(_)) {
            return to_integer(round(value));
        }
        let integral = ["rni", "rmi", "rpi", "rzi"].iter().any(|mode| has(modifiers, mode));
        return to_float(if integral { round(value) } else { value });
    }
    let value = whole(from)?;
    match to {
        Signed(n) | Unsigned(n) => {
            let value = if has(modifiers, "sat") {
                let bits = 8 * u32::from(n);
                let (low, high) = match to {
                    Signed(_) => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
                    _ => (0, (1i128 << bits) - 1),
                };
                value.clamp(low, high)
            } else {
                value
            };
            // Registers wider than the type hold it extended by its sign.
            Some(match to {
                Signed(1) => value as i8 as u64,
                Signed(2) => value as i16 as u64,
                Signed(4) => value as i32 as u64,
                Unsigned(1) => u64::from(value as u8),
                Unsigned(2) => u64::from(value as u16),
                Unsigned(4) => u64::from(value as u32),
                _ => value as u64,
            })
        }
        // One rounding from the integer, not two by way of f64.
        F32 => {
            let nearest = value as f32;
            Some(u64::from(direct(nearest, (nearest as i128).cmp(&value)).to_bits()))
        }
        F64 if !has(modifiers, "rz") => Some((value as f64).to_bits()),
        _ if value.unsigned_abs() < 1 << 53 => to_float(value as f64),
        _ => None,
    }
}

/// A conversion of all lanes
pub(crate) type Conversion = fn(&L64) -> L64;

/// The conversions that kernels are full of; [`convert`] knows the rest.
pub(crate) fn conversion(modifiers: &[&str], to: Type, from: Type) -> Option<Conversion> {
    use Type::{Bf16, F16, F32, Signed, Unsigned};
    if ["sat", "relu", "ftz", "rz", "rm", "rp", "rzi", "rni", "rmi", "rpi"].iter().any(|m| has(modifiers, m)) {
        return None;
    }
    macro_rules! each {
        (|$v:ident| $value:expr) => {{
            fn lanes(from: &L64) -> L64 {
                from.map(|$v| $value)
            }
            lanes as Conversion
        }};
    }
    Some(match (to, from) {
        (Signed(8) | Unsigned(8), Signed(4)) => each!(|v| v as i32 as u64),
        (Signed(8) | Unsigned(8), Unsigned(4)) => each!(|v| u64::from(v as u32)),
        (Signed(4) | Unsigned(4), Signed(4 | 8) | Unsigned(4 | 8)) => each!(|v| u64::from(v as u32)),
        (Signed(4) | Unsigned(4), Unsigned(2)) => each!(|v| u64::from(v as u16)),
        (F32, Signed(4)) => each!(|v| u64::from((v as i32 as f32).to_bits())),
        (F32, Unsigned(4)) => each!(|v| u64::from((v as u32 as f32).to_bits())),
        (F32, F16) => each!(|v| u64::from(f16::from_bits(v as u16).to_f32().to_bits())),
        (F32, Bf16) => each!(|v| v << 16 & 0xffff_0000),
        (F16, F32) => each!(|v| u64::from(f16::from_f32(f32::from_bits(v as u32)).to_bits())),
        (Bf16, F32) => each!(|v| u64::from(bf16::from_f32(f32::from_bits(v as u32)).to_bits())),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run32(name: &str, modifiers: &[&str], ty: Type, a: u32, b: u32, c: u32) -> u32 {
        op32(name, modifiers, ty).unwrap()(&[a; LANES], &[b; LANES], &[c; LANES])[7]
    }

    /// Expected values by the ISA's text.
    #[test]
    fn bits_and_bytes() {
        assert_eq!(run32("prmt", &["b32"], Type::Bits(4), 0x3322_1100, 0x7766_5544, 0x5410), 0x5544_1100);
        assert_eq!(run32("prmt", &["b32"], Type::Bits(4), 0x0000_0080, 0, 0x8888), 0xffff_ffff, "the sign, replicated");
        assert_eq!(run32("shf", &["l", "wrap", "b32"], Type::Bits(4), 0x8000_0001, 0x0000_00ff, 4), 0x0000_0ff8);
        assert_eq!(run32("shf", &["r", "clamp", "b32"], Type::Bits(4), 0x1234_5678, 0x9abc_def0, 40), 0x9abc_def0);
        assert_eq!(run32("bfe", &["s32"], Type::Signed(4), 0x0000_0f00, 8, 4), u32::MAX);
        assert_eq!(run32("bfe", &["u32"], Type::Unsigned(4), 0x0000_0f00, 8, 4), 0xf);
        assert_eq!(bfi(0xff, 0, 4, 8, 32), 0xff0);
        assert_eq!(bfi(0xff, 0x1234, 32, 8, 32), 0x1234);
        assert_eq!(run32("shl", &["b32"], Type::Bits(4), 1, 32, 0), 0, "shifts beyond the width give 0");
        assert_eq!(run32("shr", &["s32"], Type::Signed(4), 0x8000_0000, 99, 0), u32::MAX);
        assert_eq!(run32("mul", &["hi", "s32"], Type::Signed(4), u32::MAX, 5, 0), u32::MAX);
        assert_eq!(run32("div", &["s32"], Type::Signed(4), 0x8000_0000, u32::MAX, 0), 0x8000_0000);
    }

    #[test]
    fn floats_at_their_edges() {
        let (nan, zero, minus) = (f32::NAN.to_bits(), 0f32.to_bits(), (-0f32).to_bits());
        assert_eq!(run32("min", &["f32"], Type::F32, nan, 1f32.to_bits(), 0), 1f32.to_bits(), "a number against NaN");
        assert_eq!(run32("min", &["f32"], Type::F32, zero, minus, 0), minus);
        assert_eq!(run32("max", &["f32"], Type::F32, minus, zero, 0), zero);
        let fma = |mode, a: f32, b: f32, c: f32| {
            f32::from_bits(run32("fma", &[mode, "f32"], Type::F32, a.to_bits(), b.to_bits(), c.to_bits()))
        };
        let tiny = 2f32.powi(-60);
        assert_eq!(fma("rn", 1.0, 1.0, tiny), 1.0);
        assert_eq!(fma("rp", 1.0, 1.0, tiny), 1.0f32.next_up());
        assert_eq!(fma("rm", 1.0, 1.0, -tiny), 1.0f32.next_down());
        assert_eq!(fma("rz", -1.0, 1.0, tiny), (-1.0f32).next_up());
        assert_eq!(fma("rm", 1.0, 1.0, tiny), 1.0);
        let bits = |f: f64| u32::from(f16::from_f64(f).to_bits());
        assert_eq!(run32("add", &["f16"], Type::F16, bits(2048.0), bits(1.0), 0), bits(2048.0), "ties to even");
        assert_eq!(
            run32("add", &["f16x2"], Type::F16x2, bits(1.5) << 16 | bits(1.0), bits(0.25) << 16 | bits(2.0), 0),
            bits(1.75) << 16 | bits(3.0)
        );
    }

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

    /// A product and a sum of halves round once, where two roundings by way of f64 would not give the same.
    #[test]
    fn halves_round_once() {
        let bits = |v: f64| u32::from(f16::from_f64(v).to_bits());
        let fma = |a, b, c| f16::from_bits(run32("fma", &["rn", "f16"], Type::F16, bits(a), bits(b), bits(c)) as u16);
        // 1 + 2⁻¹¹ is a tie of f16; a little more or less decides, though it is far below an f64's last bit of it.
        let tiny = 2f64.powi(-24);
        assert_eq!(fma(tiny, tiny, 1.0), f16::from_f64(1.0));
        let one = 1.0 + 2f64.powi(-10);
        assert_eq!(fma(one, 0.5, 0.5 - 2f64.powi(-11)), f16::from_f64(1.0));
        // 2048·2048 overflows, and so does not the sum with what takes it back.
        assert_eq!(fma(256.0, 256.0, -65504.0), f16::from_f64(32.0));
        // bf16: 2^100 squared against a tie.
        let brain = |v: f64| u32::from(bf16::from_f64(v).to_bits());
        let sum = |a, b, c| run32("fma", &["rn", "bf16"], Type::Bf16, brain(a), brain(b), brain(c));
        let (tie, small) = (1.0 + 2f64.powi(-7), 2f64.powi(-60));
        assert_eq!(
            sum(tie, 1.0 + 2f64.powi(-1), small),
            brain(1.5 + 2f64.powi(-6)),
            "1.5 + 1.5·2⁻⁷ lies at a tie, and above it"
        );
        assert_eq!(sum(tie, 1.0 + 2f64.powi(-1), -small), brain(1.5 + 2f64.powi(-7)), "and below it");
    }

    #[test]
    fn saturation_and_relu() {
        let finish = |modifiers: &[&str], ty, bits| Finish::new(modifiers, ty).unwrap().result(bits);
        let f = |v: f32| v.to_bits();
        assert_eq!(finish(&["sat"], Type::F32, f(1.5)), f(1.0));
        assert_eq!(finish(&["sat"], Type::F32, f(f32::NAN)), f(0.0));
        assert_eq!(finish(&["sat"], Type::F32, f(-3.0)), f(0.0));
        assert_eq!(finish(&["relu"], Type::F16, 0xc000), 0);
        assert_eq!(finish(&["relu"], Type::Bf16x2, 0xc000_3f80), 0x3f80);
        assert!(Finish::new(&["rn"], Type::F32).is_none());
    }

    #[test]
    fn comparisons_of_nan() {
        let of = |name: &str, a: f32, b: f32| {
            compare(name, Type::F32).unwrap()(&[u64::from(a.to_bits()); LANES], &[u64::from(b.to_bits()); LANES]) != 0
        };
        let all = ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];
        let nan: Vec<_> = all.into_iter().filter(|name| of(name, f32::NAN, 1.0)).collect();
        assert_eq!(nan, ["equ", "neu", "ltu", "leu", "gtu", "geu", "nan"]);
        let less: Vec<_> = all.into_iter().filter(|name| of(name, 0.5, 1.0)).collect();
        assert_eq!(less, ["ne", "lt", "le", "neu", "ltu", "leu", "num"]);
        let same: Vec<_> = all.into_iter().filter(|name| of(name, 1.0, 1.0)).collect();
        assert_eq!(same, ["eq", "le", "ge", "equ", "leu", "geu", "num"]);
    }

    #[test]
    fn conversions() {
        use Type::{Bf16, F16, F32, F64, Signed, Unsigned};
        let f = |v: f32| u64::from(v.to_bits());
        assert_eq!(convert(&["rni"], Signed(4), F32, f(2.5)), Some(2));
        assert_eq!(convert(&["rni"], Signed(4), F32, f(-3.5)), Some(-4i32 as u64));
        assert_eq!(convert(&["rzi"], Signed(4), F32, f(-3.9)), Some(-3i32 as u64));
        assert_eq!(convert(&["rmi"], Signed(4), F32, f(-3.1)), Some(-4i32 as u64));
        assert_eq!(convert(&["rpi"], Signed(4), F32, f(3.1)), Some(4));
        assert_eq!(convert(&["rzi"], Unsigned(1), F32, f(300.0)), Some(255), "saturates");
        assert_eq!(convert(&["rzi"], Signed(4), F32, f(f32::NAN)), Some(0));
        assert_eq!(convert(&["rn"], F32, Unsigned(8), (1 << 24) + 1), Some(f(16_777_216.0)));
        assert_eq!(convert(&["rn"], F32, Signed(4), -5i32 as u32 as u64), Some(f(-5.0)));
        assert_eq!(convert(&["rn"], F16, F32, f(1.0 + 2f32.powi(-11))), Some(0x3c00), "ties to even");
        assert_eq!(convert(&["rn"], Bf16, F32, f(1.0 + 2f32.powi(-7) * 1.5)), Some(0x3f82));
        assert_eq!(convert(&["rz"], F32, F64, (1.0 + 2f64.powi(-24) * 1.9).to_bits()), Some(f(1.0)));
        assert_eq!(convert(&[], Signed(8), Signed(4), 0xffff_ffff), Some(u64::MAX));
        assert_eq!(convert(&[], Unsigned(8), Unsigned(4), 0xffff_ffff), Some(0xffff_ffff));
        assert_eq!(convert(&["sat"], Signed(1), Signed(4), 1000), Some(127));
    }
}
