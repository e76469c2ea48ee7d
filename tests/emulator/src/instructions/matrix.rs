//! Matrices: `mma.sync` and `ldmatrix`. Layouts are those of the tables in the PTX ISA's section on matrix fragments.

use half::f16;
use pulp::Arch;

use super::adder::Adder;
use super::{Decoded, seen, with_poison};
use crate::error::FaultKind;
use crate::lanes::{L32, L64, LANES, Lanes};
use crate::line::Line;
use crate::operand::{Dst, Place, Src, resolve};
use crate::poison::Taint;
use crate::step::{Done, Next, Step, at, check_aligned};
use crate::syntax::Type;

pub(super) fn decode(line: &Line) -> Decoded {
    match line.name {
        "mma" => mma(line),
        "ldmatrix" if line.has("m8n8") && line.has("b16") => {
            let dst = line.dsts(0).filter(|dst| matches!(dst.len(), 1 | 2 | 4))?;
            let (place, transposed) = (line.place(1, line.space())?, line.has("trans"));
            seen(move |step| load_matrices(step, &dst, &place, transposed))
        }
        _ => None,
    }
}

/// What all lanes do once all are here.
pub(super) fn whole_warp(act: impl Fn(&mut Step) + Send + Sync + 'static) -> Decoded {
    with_poison(false, move |step| {
        let next = step.whole_warp()?;
        if let Next::On = next {
            act(step);
        }
        Ok(next)
    })
}

fn mma(line: &Line) -> Decoded {
    let modifiers = &line.modifiers;
    if !modifiers.starts_with(&["sync", "aligned"]) || !modifiers.windows(2).any(|w| w == ["row", "col"]) {
        return None;
    }
    let (shape, dst) = (*modifiers.get(2)?, line.dsts(0)?);
    if line.has("s32") {
        return mma_of_integers(line, shape, dst);
    }
    let [d, left, right, c] = line.types[..] else { return None };
    if left != right || d != c {
        return None;
    }
    if (shape, d, left) == ("m8n8k4", Type::F64, Type::F64) {
        let (a, b, c) = (line.srcs(1, left)?, line.srcs(2, left)?, line.srcs(3, left)?);
        let ([a], [b], [c0, c1], [d0, d1]) = (&a[..], &b[..], &c[..], &dst[..]) else { return None };
        let (a, b, c, dst) = (*a, *b, [*c0, *c1], [*d0, *d1]);
        return whole_warp(move |step| {
            let sources = c;
            let c = c.map(|src| step.warp.get64(src));
            let d = mma_f64(&step.warp.get64(a), &step.warp.get64(b), [&c[0], &c[1]]);
            dst.iter().zip(&d).for_each(|(dst, value)| step.warp.put(*dst, step.active, value));
            step.run.counters.mma += 1;
            step.run.counters.mma_flop += 2 * 8 * 8 * 4;
            spoil_product(step, [&[a], &[b], &sources], &dst, |i, lane| (lane / 4, 1 << (2 * (lane % 4) + i)));
        });
    }
    let element = match left {
        Type::F16 => Element::F16,
        Type::Bf16 => Element::Bf16,
        Type::Tf32 => Element::Tf32,
        _ => return None,
    };
    let k = match (shape, element) {
        ("m16n8k16", Element::F16 | Element::Bf16) => 16,
        ("m16n8k8", _) => 8,
        ("m16n8k4", Element::Tf32) => 4,
        _ => return None,
    };
    let narrow = match (d, element) {
        (Type::F32, _) => false,
        (Type::F16, Element::F16) => true,
        _ => return None,
    };
    let product = Product { element, k, narrow };
    let bits = Type::Bits(4);
    let (a, b, c) = (line.srcs(1, bits)?, line.srcs(2, bits)?, line.srcs(3, d)?);
    let fits = (a.len(), b.len(), c.len()) == product.registers() && dst.len() == c.len();
    if !fits {
        return None;
    }
    whole_warp(move |step| {
        let registers = |src: &[Src]| {
            let mut values = [[0; LANES]; 4];
            values.iter_mut().zip(src).for_each(|(value, &src)| *value = step.warp.get32(src));
            values
        };
        let d = product.run(&registers(&a)[..a.len()], &registers(&b)[..b.len()], &registers(&c));
        dst.iter().zip(&d).for_each(|(dst, value)| step.warp.put(*dst, step.active, value));
        step.run.counters.mma += 1;
        step.run.counters.mma_flop += (2 * M * N * product.k) as u64;
        spoil_product(step, [&a, &b, &c], &dst, |i, lane| match product.narrow {
            true => (lane / 4 + 8 * i, 3 << (2 * (lane % 4))),
            false => (lane / 4 + 8 * (i / 2), 1 << (2 * (lane % 4) + i % 2)),
        });
    })
}

/// The poison of a product: where a row of A, a column of B or an element of C has it. `place` gives the row that register i of D has of a lane, and
/// the columns, a bit for each.
pub(super) fn spoil_product(
    step: &mut Step,
    [a, b, c]: [&[Src]; 3],
    dst: &[Dst],
    place: impl Fn(usize, usize) -> (usize, u32),
) {
    if !step.warp.poison.is_any() {
        return;
    }
    let (mut rows, mut columns, mut all) = (0u32, 0u32, Taint::default());
    for (i, &src) in a.iter().enumerate() {
        let taint = step.taint(src);
        all = all.or(taint);
        Lanes(taint.lanes).for_each(|lane| rows |= 1 << (lane / 4 + 8 * (i % 2)));
    }
    for &src in b {
        let taint = step.taint(src);
        all = all.or(taint);
        Lanes(taint.lanes).for_each(|lane| columns |= 1 << (lane / 4));
    }
    let sums: Vec<Taint> = c.iter().map(|&src| step.taint(src)).collect();
    for (i, (&dst, sum)) in dst.iter().zip(sums).enumerate() {
        let is_of = |lane: usize| {
            let (row, column) = place(i, lane);
            rows >> row & 1 == 1 || columns & column != 0
        };
        let product = Taint { lanes: Lanes(u32::MAX).where_holds(is_of), ..all };
        step.spoil(dst, product.or(sum));
    }
}

/// An integer of 8 or 4 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Integer {
    pub bits: usize,
    signed: bool,
}

impl Integer {
    fn named(name: &str) -> Option<Self> {
        let (bits, signed) = match name {
            "s8" => (8, true),
            "u8" => (8, false),
            "s4" => (4, true),
            "u4" => (4, false),
            _ => return None,
        };
        Some(Self { bits, signed })
    }

    /// The types of A and B, which have as many bits.
    pub fn of(modifiers: &[&str]) -> Option<[Self; 2]> {
        // CUTLASS has `.satfinite` at the end.
        let modifiers = modifiers.strip_suffix(&["satfinite"]).unwrap_or(modifiers);
        let [.., "s32", a, b, "s32"] = modifiers else { return None };
        let types = [Self::named(a)?, Self::named(b)?];
        (types[0].bits == types[1].bits).then_some(types)
    }

    /// How many a register has.
    pub fn each(self) -> usize {
        32 / self.bits
    }

    pub fn part(self, register: u32, part: usize) -> i64 {
        let up = register << (32 - self.bits * (part + 1));
        let down = 32 - self.bits as u32;
        if self.signed { i64::from(up as i32 >> down) } else { i64::from(up >> down) }
    }

    /// Element (i, p) of A: the lane that has it, its register and its place there; see the tables.
    pub fn place_in_a(self, i: usize, p: usize) -> (usize, usize, usize) {
        let each = self.each();
        (4 * (i % 8) + p % (4 * each) / each, i / 8 + p / (4 * each) * 2, p % each)
    }

    /// The same of element (p, j) of B.
    pub fn place_in_b(self, p: usize, j: usize) -> (usize, usize, usize) {
        let each = self.each();
        (4 * j + p % (4 * each) / each, p / (4 * each), p % each)
    }
}

/// A sum in s32, which wraps or saturates at the end.
pub(super) fn in_s32(sum: i64, saturates: bool) -> u32 {
    if saturates { sum.clamp(i32::MIN.into(), i32::MAX.into()) as u32 } else { sum as u32 }
}

/// `mma.sync` of bytes, four a register, or of integers of 4 bits.
fn mma_of_integers(line: &Line, shape: &str, dst: Vec<Dst>) -> Decoded {
    let [left, right] = Integer::of(&line.modifiers)?;
    let (m, k) = match (shape, left.bits) {
        ("m8n8k16", 8) => (8, 16),
        ("m8n8k32", 4) => (8, 32),
        ("m16n8k16", 8) => (16, 16),
        ("m16n8k32", 8 | 4) => (16, 32),
        ("m16n8k64", 4) => (16, 64),
        _ => return None,
    };
    let (saturates, bits) = (line.has("satfinite"), Type::Bits(4));
    let (a, b, c) = (line.srcs(1, bits)?, line.srcs(2, bits)?, line.srcs(3, bits)?);
    let of_b = k / 4 / left.each();
    if (a.len(), b.len(), c.len(), dst.len()) != (of_b * m / 8, of_b, m / 4, m / 4) {
        return None;
    }
    whole_warp(move |step| {
        let registers = |src: &[Src]| src.iter().map(|&src| step.warp.get32(src)).collect::<Vec<_>>();
        let (x, y, z) = (registers(&a), registers(&b), registers(&c));
        let a_at = |i: usize, p: usize| {
            let (lane, register, part) = left.place_in_a(i, p);
            // Of eight rows there is one register for each part of k.
            left.part(x[if m == 8 { register / 2 } else { register }][lane], part)
        };
        let b_at = |p: usize, j: usize| {
            let (lane, register, part) = right.place_in_b(p, j);
            right.part(y[register][lane], part)
        };
        for (n, &dst) in dst.iter().enumerate() {
            let value: L32 = std::array::from_fn(|lane| {
                let (i, j) = (lane / 4 + 8 * (n / 2), 2 * (lane % 4) + n % 2);
                let sum = (0..k).fold(i64::from(z[n][lane] as i32), |sum, p| sum + a_at(i, p) * b_at(p, j));
                in_s32(sum, saturates)
            });
            step.warp.put(dst, step.active, &value);
        }
        step.run.counters.mma += 1;
        step.run.counters.mma_flop += (2 * m * N * k) as u64;
        spoil_product(step, [&a, &b, &c], &dst, |i, lane| (lane / 4 + 8 * (i / 2), 1 << (2 * (lane % 4) + i % 2)));
    })
}

/// What an `mma` multiplies and adds up. Rows of A are 16, or 8 in f64; columns of B are 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F16,
    Bf16,
    Tf32,
}

#[inline(always)]
pub(super) fn f16_part(register: u32, part: usize) -> f32 {
    f16::from_bits((register >> (16 * part)) as u16).to_f32()
}

#[inline(always)]
pub(super) fn bf16_part(register: u32, part: usize) -> f32 {
    f32::from_bits(register >> (16 * part) << 16)
}

/// The low 13 bits are not part of a tf32.
#[inline(always)]
pub(super) fn tf32_part(register: u32, _: usize) -> f32 {
    f32::from_bits(register & !0x1fff)
}

/// An `mma.sync` of shape m16n8k`k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Product {
    pub element: Element,
    pub k: usize,
    /// C, D: f16, two a register
    pub narrow: bool,
}

pub(super) const M: usize = 16;
pub(super) const N: usize = 8;
const MOST_K: usize = 16;

impl Product {
    /// Elements a register.
    fn each(element: Element) -> usize {
        if element == Element::Tf32 { 1 } else { 2 }
    }

    /// Registers of A, of B, and of C or D.
    fn registers(self) -> (usize, usize, usize) {
        let each = Self::each(self.element);
        (M * self.k / LANES / each, self.k * N / LANES / each, if self.narrow { 2 } else { 4 })
    }

    /// D = A·B + C. Products are exact, and added to C in the order of k in f32; the hardware's order and its inner roundings are not documented.
    fn run(self, a: &[L32], b: &[L32], c: &[L32; 4]) -> [L32; 4] {
        match self.element {
            Element::F16 => self.run_with::<2>(a, b, c, f16_part),
            Element::Bf16 => self.run_with::<2>(a, b, c, bf16_part),
            Element::Tf32 => self.run_with::<1>(a, b, c, tf32_part),
        }
    }

    /// The same, of elements `EACH` a register.
    #[inline(always)]
    fn run_with<const EACH: usize>(
        self,
        a: &[L32],
        b: &[L32],
        c: &[L32; 4],
        value: impl Fn(u32, usize) -> f32,
    ) -> [L32; 4] {
        let (mut left, mut right) = ([[0f32; MOST_K]; M], [[0f32; N]; MOST_K]);
        // Four lanes are a group, which has a row of A and a column of B; a lane's rank in its group tells the columns, or rows.
        for (i, register) in a.iter().enumerate() {
            for (group, lanes) in register.as_chunks::<4>().0.iter().enumerate() {
                let row = &mut left[group + 8 * (i % 2)][4 * EACH * (i / 2)..][..4 * EACH];
                (0..4 * EACH).for_each(|j| row[j] = value(lanes[j / EACH], j % EACH));
            }
        }
        for (i, register) in b.iter().enumerate() {
            for (group, lanes) in register.as_chunks::<4>().0.iter().enumerate() {
                let rows = &mut right[4 * EACH * i..][..4 * EACH];
                (0..4 * EACH).for_each(|j| rows[j][group] = value(lanes[j / EACH], j % EACH));
            }
        }
        let mut sums = [[0f32; N]; M];
        for lane in 0..LANES {
            for i in 0..4 {
                let sum = &mut sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
                *sum = if self.narrow {
                    f16::from_bits((c[i / 2][lane] >> (16 * (i % 2))) as u16).to_f32()
                } else {
                    f32::from_bits(c[i][lane])
                };
            }
        }
        match Adder::asked_for() {
            None => Arch::new().dispatch(Multiply { a: &left, b: &right, c: &mut sums, k: self.k }),
            Some(adder) => {
                for (a, sums) in left.iter().zip(&mut sums) {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        let products = a[..self.k].iter().zip(&right).map(|(&a, b)| (a, b[j]));
                        *sum = adder.sum(self.element == Element::Tf32, *sum, products);
                    }
                }
            }
        }
        let mut d = [[0; LANES]; 4];
        for lane in 0..LANES {
            for i in 0..4 {
                let sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
                if self.narrow {
                    d[i / 2][lane] |= u32::from(f16::from_f32(sum).to_bits()) << (16 * (i % 2));
                } else {
                    d[i][lane] = sum.to_bits();
                }
            }
        }
        d
    }
}

struct Multiply<'m> {
    a: &'m [[f32; MOST_K]; M],
    b: &'m [[f32; N]; MOST_K],
    c: &'m mut [[f32; N]; M],
    k: usize,
}

impl pulp::NullaryFnOnce for Multiply<'_> {
    type Output = ();

    // Iterators would not be inlined into what is compiled for the processor.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn call(self) {
        for i in 0..M {
            let mut sum = self.c[i];
            for p in 0..self.k {
                for j in 0..N {
                    sum[j] = self.a[i][p].mul_add(self.b[p][j], sum[j]);
                }
            }
            self.c[i] = sum;
        }
    }
}

/// `mma.sync.m8n8k4` in f64: D = A·B + C, in the order of k, rounded at each step.
fn mma_f64(a: &L64, b: &L64, c: [&L64; 2]) -> [L64; 2] {
    let mut d = [[0; LANES]; 2];
    for lane in 0..LANES {
        for i in 0..2 {
            let (row, column) = (lane / 4, 2 * (lane % 4) + i);
            let sum = (0..4).fold(f64::from_bits(c[i][lane]), |sum, k| {
                f64::from_bits(a[4 * row + k]).mul_add(f64::from_bits(b[4 * column + k]), sum)
            });
            d[i][lane] = sum.to_bits();
        }
    }
    d
}

/// What a lane gets of an 8×8 matrix of 16-bit elements, a row of which is 16 bytes: two elements of a row, or of a column if transposed.
fn matrix_part(rows: &[[u8; 16]; 8], lane: usize, transposed: bool) -> u32 {
    let element =
        |row: usize, column: usize| u32::from(u16::from_le_bytes([rows[row][2 * column], rows[row][2 * column + 1]]));
    let (major, minor) = (lane / 4, 2 * (lane % 4));
    if transposed {
        element(minor, major) | element(minor + 1, major) << 16
    } else {
        element(major, minor) | element(major, minor + 1) << 16
    }
}

/// Four matrices, two or one, a row of which is at the address of each lane.
fn load_matrices(step: &mut Step, dst: &[Dst], place: &Place, transposed: bool) -> Done {
    if let Next::Gather = step.whole_warp()? {
        return Ok(Next::Gather);
    }
    let addresses: L64 = step.warp.addresses(place).map(|address| resolve(place.space, address).1);
    let rows = u32::MAX >> (LANES - 8 * dst.len());
    step.run.counters.matrix_access(rows, &addresses);
    check_aligned(rows, &addresses, 16)?;
    for (i, &dst) in dst.iter().enumerate() {
        // Of each half of a row, what is missing.
        let (mut matrix, mut missing): (_, [[Option<FaultKind>; 2]; 8]) =
            ([[0; 16]; 8], [const { [const { None }; 2] }; 8]);
        for (row, bytes) in matrix.iter_mut().enumerate() {
            let lane = 8 * i + row;
            for half in 0..2 {
                let thread = step.warp.thread(lane, step.run.tick);
                let address = addresses[lane] + 8 * half as u64;
                let (part, lack) = step.run.shared.load(address, 8, false, &thread).map_err(at(lane))?;
                bytes[8 * half..][..8].copy_from_slice(&part.to_le_bytes());
                missing[row][half] = lack.map(|lack| lack.fault("shared", address));
            }
        }
        let value: L32 = std::array::from_fn(|lane| matrix_part(&matrix, lane, transposed));
        step.warp.put(dst, u32::MAX, &value);
        for (row, half) in (0..16).map(|part| (part / 2, part % 2)) {
            if let Some(what) = missing[row][half].take() {
                let is_part = |lane: usize| match transposed {
                    false => (lane / 4, lane % 4 / 2) == (row, half),
                    true => (lane % 4, lane / 16) == (row / 2, half),
                };
                let taint = step.missing(Lanes(u32::MAX).where_holds(is_part), what);
                step.spoil_more(dst, taint);
            }
        }
    }
    Ok(Next::Seen)
}

/// Matrices are a whole warp's: `tests/tensor.rs` has them.
#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    Vec::new()
}
