//! Comparisons, logic of predicates, choices.

use super::lanewise::{self, Op, no64};
use super::numbers::{brain, flush, half};
use super::{Decoded, code, private_with_poison};
use crate::lanes::{L32, L64, LANES};
use crate::line::Line;
use crate::operand::{Pred, Src};
use crate::poison::Taint;
use crate::syntax::{Operand, Type};
use crate::warp::Warp;

pub(super) fn decode(line: &Line) -> Decoded {
    let ty = line.ty()?;
    match line.name {
        "setp" => {
            let with = match line.operands.len() {
                3 => None,
                _ => Some((line.modifiers.iter().find_map(|m| logic(m))?, line.predicate(3)?)),
            };
            let half = half_of(ty);
            let test = Test::new(line, half.unwrap_or(ty))?;
            set_predicates(test, half.is_some(), line.predicate_dsts(0)?, with)
        }
        "testp" => {
            let op = kind_of_number(line.modifiers.first()?, ty)?;
            let test = Test { op, flush: false, src: [line.src(1, ty)?, Src::Imm(0)] };
            set_predicates(test, false, [Some(line.predicate_dst(0)?), None], None)
        }
        "set" if line.operands.len() == 3 => set(line),
        "selp" => {
            let (dst, src, by) = (line.dst(0)?, [line.src(1, ty)?, line.src(2, ty)?], line.predicate(3)?);
            private_with_poison(move |step| {
                let (chosen, poisoned) = (step.warp.predicate(by), step.taint_of(by));
                let [a, b] = src.map(|src| step.warp.get64(src));
                let value: L64 = std::array::from_fn(|l| if chosen >> l & 1 == 1 { a[l] } else { b[l] });
                step.warp.put(dst, step.active, &value);
                let [a, b] = src.map(|src| step.taint(src));
                step.spoil(dst, poisoned.or(a.of(chosen)).or(b.of(!chosen)));
            })
        }
        "slct" if line.types.first()?.size() == 4 => lanewise::decode(line, choose, no64),
        "and" | "or" | "xor" | "not" | "mov" if ty == Type::Pred => {
            // `not` is `xor` with what holds always, `mov` `or` with what never does.
            let op = logic(line.name).unwrap_or(if line.name == "not" { |a, b| a ^ b } else { |a, b| a | b });
            let operand = |i: usize| match line.operands.get(i) {
                None => Some(Truth::Always(line.name == "not")),
                Some(Operand::Integer(value)) => Some(Truth::Always(*value != 0)),
                Some(_) => line.predicate(i).map(Truth::If),
            };
            let (p, src) = (line.predicate_dst(0)?, [operand(1)?, operand(2)?]);
            private_with_poison(move |step| {
                let [a, b] = src.map(|src| match src {
                    Truth::Always(holds) => (if holds { u32::MAX } else { 0 }, Taint::default()),
                    Truth::If(p) => (step.warp.predicate(p), step.taint_of(p)),
                });
                step.warp.put_predicate(p, step.active, op(a.0, b.0));
                step.spoil_predicate(p, joined(op, a, b));
            })
        }
        _ => None,
    }
}

/// A comparison, of operands zero-extended to 64 bits: a bit a lane
type Compare = fn(&L64, &L64) -> u32;

/// A comparison of two sources.
struct Test {
    op: Compare,
    /// Subnormal f32 are zero
    flush: bool,
    src: [Src; 2],
}

impl Test {
    fn new(line: &Line, ty: Type) -> Option<Self> {
        let op = compare(line.modifiers.first()?, ty)?;
        Some(Self { op, flush: line.has("ftz") && ty == Type::F32, src: [line.src(1, ty)?, line.src(2, ty)?] })
    }

    fn holds(&self, warp: &Warp) -> u32 {
        let [mut a, mut b] = self.src.map(|src| warp.get64(src));
        if self.flush {
            for v in a.iter_mut().chain(&mut b) {
                *v = u64::from(flush(*v as u32));
            }
        }
        (self.op)(&a, &b)
    }

    /// The same of a half of each operand.
    fn half_holds(&self, warp: &Warp, shift: u32) -> u32 {
        let [a, b] = self.src.map(|src| warp.get64(src).map(|v| v >> shift & 0xffff));
        (self.op)(&a, &b)
    }
}

/// Logic of 32 lanes
type Logic = fn(u32, u32) -> u32;

fn logic(name: &str) -> Option<Logic> {
    Some(match name {
        "and" => |a, b| a & b,
        "or" => |a, b| a | b,
        "xor" => |a, b| a ^ b,
        _ => return None,
    })
}

/// The poison of two predicates that are joined: of lanes in which the one that is poisoned decides.
fn joined(logic: Logic, a: (u32, Taint), b: (u32, Taint)) -> Taint {
    let decides = |other: (u32, Taint)| logic(0, other.0) ^ logic(u32::MAX, other.0) | other.1.lanes;
    a.1.of(decides(b)).or(b.1.of(decides(a)))
}

/// `p` is whether it holds, `q` the opposite; of two halves, `p` of the lower and `q` of the upper one. Each is joined with another predicate.
fn set_predicates(test: Test, halves: bool, [p, q]: [Option<u32>; 2], with: Option<(Logic, Pred)>) -> Decoded {
    private_with_poison(move |step| {
        let taint = step.taint(test.src[0]).or(step.taint(test.src[1]));
        let (of_p, of_q) = if halves {
            (test.half_holds(step.warp, 0), test.half_holds(step.warp, 16))
        } else {
            let holds = test.holds(step.warp);
            (holds, !holds)
        };
        let with = with.map(|(logic, by)| (logic, (step.warp.predicate(by), step.taint_of(by))));
        for (p, value) in [(p, of_p), (q, of_q)] {
            let Some(p) = p else { continue };
            let (value, taint) = match with {
                None => (value, taint),
                Some((logic, by)) => (logic(value, by.0), joined(logic, (value, taint), by)),
            };
            step.warp.put_predicate(p, step.active, value);
            step.spoil_predicate(p, taint);
        }
    })
}

/// The type of each half, of a type that has two.
fn half_of(ty: Type) -> Option<Type> {
    match ty {
        Type::F16x2 => Some(Type::F16),
        Type::Bf16x2 => Some(Type::Bf16),
        _ => None,
    }
}

/// The lanes where it holds get one, or all ones, the others 0; of two halves each half does.
fn set(line: &Line) -> Decoded {
    let ty = line.ty()?;
    let half = half_of(ty);
    let yes = match (*line.types.first()?, half) {
        (Type::F32, None) => 1f32.to_bits(),
        (Type::F16, None) | (Type::F16x2, Some(_)) => 0x3c00,
        (Type::Bf16, None) | (Type::Bf16x2, Some(_)) => 0x3f80,
        (Type::Unsigned(4) | Type::Signed(4), None) => u32::MAX,
        (Type::Unsigned(2) | Type::Signed(2), None) => 0xffff,
        _ => return None,
    };
    let (test, dst) = (Test::new(line, half.unwrap_or(ty))?, line.dst(0)?);
    code(move |step| {
        let (low, high) = match half {
            Some(_) => (test.half_holds(step.warp, 0), test.half_holds(step.warp, 16)),
            None => (test.holds(step.warp), 0),
        };
        let of = |holds: u32, lane: usize| if holds >> lane & 1 == 1 { yes } else { 0 };
        let value: L32 = std::array::from_fn(|lane| of(low, lane) | of(high, lane) << 16);
        step.warp.put(dst, step.active, &value);
    })
}

/// An operand of logic.
#[derive(Clone, Copy)]
enum Truth {
    Always(bool),
    If(Pred),
}

/// `slct`: a or b by the sign of c.
fn choose(_name: &str, _modifiers: &[&str], ty: Type) -> Option<Op<u32>> {
    Some(match ty {
        Type::Signed(4) => op32!(|a, b, c| if c as i32 >= 0 { a } else { b }),
        Type::F32 => op32!(|a, b, c| if f32::from_bits(c) >= 0.0 { a } else { b }),
        _ => return None,
    })
}

/// `testp` of a kind of number: a comparison that looks at its first operand only.
fn kind_of_number(name: &str, ty: Type) -> Option<Compare> {
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

/// A comparison by its name and type, of operands zero-extended to 64 bits.
fn compare(name: &str, ty: Type) -> Option<Compare> {
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

#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    use super::rows::{INF, NAN, b, d, f, h, s, two};
    vec![
        ("setp.lt.s32 p, a32, b32; selp.b32 d32, 1, 0, p", s(-1), 1, 0, 1),
        ("setp.lt.u32 p, a32, b32; selp.b32 d32, 1, 0, p", s(-1), 1, 0, 0),
        ("setp.lo.u64 p, a64, b64; selp.b32 d32, 1, 0, p", 1, 2, 0, 1),
        ("setp.eq.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(0.0), f(-0.0), 0, 1),
        ("setp.lt.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(NAN), f(1.0), 0, 0),
        ("setp.ltu.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(NAN), f(1.0), 0, 1),
        ("setp.ne.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(NAN), f(NAN), 0, 0),
        ("setp.neu.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(NAN), f(NAN), 0, 1),
        ("setp.nan.f64 p, a64, b64; selp.b32 d32, 1, 0, p", d(f64::NAN), d(1.0), 0, 1),
        ("setp.num.f64 p, a64, b64; selp.b32 d32, 1, 0, p", d(2.0), d(1.0), 0, 1),
        ("setp.gt.f16 p, a16, b16; selp.b32 d32, 1, 0, p", h(2.0), h(1.0), 0, 1),
        ("setp.ge.bf16 p, a16, b16; selp.b32 d32, 1, 0, p", b(2.0), b(2.0), 0, 1),
        ("setp.gt.f16x2 p|q, a32, b32; selp.b32 d32, 1, 0, p", two(h(2.0), h(0.0)), two(h(1.0), h(1.0)), 0, 1),
        ("setp.gt.f16x2 p|q, a32, b32; selp.b32 d32, 1, 0, q", two(h(2.0), h(0.0)), two(h(1.0), h(1.0)), 0, 0),
        ("setp.le.bf16x2 p|q, a32, b32; selp.b32 d32, 1, 0, q", two(b(2.0), b(0.0)), two(b(1.0), b(1.0)), 0, 1),
        ("setp.gt.ftz.f32 p, a32, b32; selp.b32 d32, 1, 0, p", 1, f(0.0), 0, 0),
        ("setp.eq.s16 p, a16, b16; selp.b32 d32, 1, 0, p", 0xffff, 0x1_ffff, 0, 1),
        // The second predicate is the comparison's opposite; a third operand joins both.
        ("setp.lt.s32 p|q, a32, b32; selp.b32 d32, 1, 0, q", 5, 1, 0, 1),
        ("setp.eq.s32 r, a32, 5; setp.lt.and.s32 p|q, a32, b32, r; selp.b32 d32, 1, 0, p", 5, 9, 0, 1),
        ("setp.eq.s32 r, a32, 6; setp.lt.or.s32 p, a32, b32, r; selp.b32 d32, 1, 0, p", 5, 1, 0, 0),
        ("setp.eq.s32 r, a32, 5; setp.lt.xor.s32 p, a32, b32, !r; selp.b32 d32, 1, 0, p", 5, 9, 0, 1),
        ("setp.eq.s32 p, a32, 5; setp.eq.s32 q, b32, 5; and.pred r, p, q; selp.b32 d32, 1, 0, r", 5, 5, 0, 1),
        ("setp.eq.s32 p, a32, 5; not.pred q, p; selp.b32 d32, 1, 0, q", 5, 0, 0, 0),
        ("setp.eq.s32 p, a32, 5; setp.eq.s32 q, b32, 5; xor.pred r, p, q; selp.b64 d64, 1, 0, r", 5, 4, 0, 1),
        ("set.gt.u32.f32 d32, a32, b32", f(2.0), f(1.0), 0, s(-1)),
        ("set.gt.f32.f32 d32, a32, b32", f(2.0), f(1.0), 0, f(1.0)),
        ("set.eq.f16.f16 d16, a16, b16", h(2.0), h(2.0), 0, h(1.0)),
        ("set.lt.f16.f16 d16, a16, b16", h(2.0), h(2.0), 0, 0),
        ("set.ge.bf16.bf16 d16, a16, b16", b(2.0), b(2.0), 0, b(1.0)),
        ("set.gt.f16x2.f16x2 d32, a32, b32", h(2.0) << 16 | h(1.0), h(1.0) << 16 | h(1.0), 0, h(1.0) << 16),
        ("set.lt.bf16x2.bf16x2 d32, a32, b32", b(2.0) << 16 | b(1.0), b(3.0) << 16 | b(1.5), 0, b(1.0) << 16 | b(1.0)),
        ("slct.u32.s32 d32, a32, b32, c32", 7, 8, s(-1), 8),
        ("slct.u32.f32 d32, a32, b32, c32", 7, 8, f(-0.0), 7),
        ("setp.eq.s32 p, a32, 5; @p mov.u32 d32, 9", 5, 0, 0, 9),
        ("setp.eq.s32 p, a32, 5; @!p mov.u32 d32, 9", 5, 0, 0, 0),
        ("testp.infinite.f32 p, a32; selp.b32 d32, 1, 0, p", f(-INF), 0, 0, 1),
        ("testp.notanumber.f64 p, a64; selp.b32 d32, 1, 0, p", d(1.0), 0, 0, 0),
        ("testp.subnormal.f32 p, a32; selp.b32 d32, 1, 0, p", 1, 0, 0, 1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
