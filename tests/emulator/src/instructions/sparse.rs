//! Matrices with zeros: `mma.sp.sync`, in which a row of A has two of every four elements (in TF32 one of two, of 4 bits two pairs of four), and which
//! ones is in a register of metadata. Of the shapes those of CUTLASS: its products show where the metadata is of f16, bf16, TF32 and bytes.

use super::Decoded;
use super::adder::Adder;
use super::matrix::{Element, Integer, M, N, bf16_part, f16_part, in_s32, spoil_product, tf32_part, whole_warp};
use crate::lanes::L32;
use crate::line::Line;
use crate::operand::Src;
use crate::syntax::Type;

/// Where the metadata is, and what it says.
#[derive(Debug, Clone, Copy)]
enum Metadata {
    /// Two lanes of each four have 16 bits for a row and 16 for the row 8 below; the selector says which two
    Halves(usize),
    /// Four lanes have 32 bits for a row each
    Words,
}

impl Metadata {
    /// The four bits that tell of elements of a row: those of the `n`-th group.
    fn bits(self, register: &L32, row: usize, n: usize) -> usize {
        let (lane, shift) = match self {
            Metadata::Halves(selector) => (2 * selector + n / 4, 16 * (row / 8) + 4 * (n % 4)),
            Metadata::Words => (row / 8 + 2 * (n / 8), 4 * (n % 8)),
        };
        (register[4 * (row % 8) + lane] >> shift & 15) as usize
    }
}

/// The column of the `q`-th element that a row has, of `width` bits.
fn column(metadata: Metadata, register: &L32, row: usize, q: usize, width: usize) -> usize {
    let bits = |n: usize| metadata.bits(register, row, n);
    match width {
        32 => 2 * q + (bits(q) & 3) / 2,
        4 => 8 * (q / 4) + 2 * (bits(q / 4) >> (2 * (q % 4 / 2)) & 3) + q % 2,
        _ => 4 * (q / 2) + (bits(q / 2) >> (2 * (q % 2)) & 3),
    }
}

pub(super) fn decode(line: &Line) -> Decoded {
    let &[sparse, "sync", "aligned", shape, "row", "col", ..] = &line.modifiers[..] else { return None };
    if line.name != "mma" || !matches!(sparse, "sp" | "sp::ordered_metadata") {
        return None;
    }
    let bits = Type::Bits(4);
    let (dst, a, b, c) = (line.dsts(0)?, line.srcs(1, bits)?, line.srcs(2, bits)?, line.srcs(3, bits)?);
    let (from, selector) = (line.src(4, bits)?, usize::try_from(line.integer(5)?).ok()?);
    let integers = Integer::of(&line.modifiers);
    let (k, width, metadata) = match (shape, integers) {
        ("m16n8k64", Some([Integer { bits: 8, .. }, _])) => (64, 8, Metadata::Words),
        ("m16n8k128", Some([Integer { bits: 4, .. }, _])) => (128, 4, Metadata::Words),
        ("m16n8k32", None) => (32, 16, Metadata::Halves(selector)),
        ("m16n8k16", None) => (16, 32, Metadata::Halves(selector)),
        _ => return None,
    };
    let most = if matches!(metadata, Metadata::Words) { 0 } else { 1 };
    let narrow = dst.len() == 2;
    if (a.len(), b.len()) != (4, 4) || c.len() != dst.len() || selector > most {
        return None;
    }
    // What counts as reading what is poisoned: the metadata is of two rows.
    let of_a: Vec<Src> = a.iter().copied().chain([from, from]).collect();
    let place = move |i: usize, lane: usize| match narrow {
        true => (lane / 4 + 8 * i, 3 << (2 * (lane % 4))),
        false => (lane / 4 + 8 * (i / 2), 1 << (2 * (lane % 4) + i % 2)),
    };
    if let Some([left, right]) = integers {
        let saturates = line.has("satfinite");
        if narrow {
            return None;
        }
        return whole_warp(move |step| {
            let registers = |src: &[Src]| src.iter().map(|&src| step.warp.get32(src)).collect::<Vec<_>>();
            let (x, y, z, which) = (registers(&a), registers(&b), registers(&c), step.warp.get32(from));
            let product = |i: usize, q: usize, j: usize| {
                let (lane, register, part) = left.place_in_a(i, q);
                let in_b = right.place_in_b(column(metadata, &which, i, q, width), j);
                left.part(x[register][lane], part) * right.part(y[in_b.1][in_b.0], in_b.2)
            };
            for (n, &dst) in dst.iter().enumerate() {
                let value: L32 = std::array::from_fn(|lane| {
                    let (i, j) = (lane / 4 + 8 * (n / 2), 2 * (lane % 4) + n % 2);
                    let sum = (0..k / 2).fold(i64::from(z[n][lane] as i32), |sum, q| sum + product(i, q, j));
                    in_s32(sum, saturates)
                });
                step.warp.put(dst, step.active, &value);
            }
            step.run.counters.mma += 1;
            step.run.counters.mma_flop += (2 * M * N * k / 2) as u64;
            spoil_product(step, [&of_a, &b, &c], &dst, place);
        });
    }
    let [d, left, right, of_c] = line.types[..] else { return None };
    let (element, part): (_, fn(u32, usize) -> f32) = match left {
        Type::F16 if k == 32 => (Element::F16, f16_part),
        Type::Bf16 if k == 32 => (Element::Bf16, bf16_part),
        Type::Tf32 if k == 16 => (Element::Tf32, tf32_part),
        _ => return None,
    };
    let fits = match d {
        Type::F32 => !narrow && dst.len() == 4,
        Type::F16 => narrow && element == Element::F16,
        _ => false,
    };
    if left != right || d != of_c || !fits {
        return None;
    }
    let each = 32 / width;
    whole_warp(move |step| {
        let registers = |src: &[Src]| src.iter().map(|&src| step.warp.get32(src)).collect::<Vec<_>>();
        let (x, y, z, which) = (registers(&a), registers(&b), registers(&c), step.warp.get32(from));
        let sum = |i: usize, j: usize, start: f32| {
            let products = (0..k / 2).map(|q| {
                let p = column(metadata, &which, i, q, width);
                let a = x[i / 8 + q / (4 * each) * 2][4 * (i % 8) + q % (4 * each) / each];
                let b = y[p / (4 * each)][4 * j + p % (4 * each) / each];
                (part(a, q % each), part(b, p % each))
            });
            match Adder::asked_for() {
                None => products.fold(start, |sum, (a, b)| a.mul_add(b, sum)),
                Some(adder) => adder.sum(element == Element::Tf32, start, products),
            }
        };
        for (n, &dst) in dst.iter().enumerate() {
            let value: L32 = std::array::from_fn(|lane| match narrow {
                true => (0..2).fold(0, |word, half| {
                    let start = f16_part(z[n][lane], half);
                    let value = sum(lane / 4 + 8 * n, 2 * (lane % 4) + half, start);
                    word | u32::from(half::f16::from_f32(value).to_bits()) << (16 * half)
                }),
                false => {
                    let start = f32::from_bits(z[n][lane]);
                    sum(lane / 4 + 8 * (n / 2), 2 * (lane % 4) + n % 2, start).to_bits()
                }
            });
            step.warp.put(dst, step.active, &value);
        }
        step.run.counters.mma += 1;
        step.run.counters.mma_flop += (2 * M * N * k / 2) as u64;
        spoil_product(step, [&of_a, &b, &c], &dst, place);
    })
}

/// Matrices are a whole warp's: `tests/tensor.rs` has them.
#[cfg(test)]
pub(super) fn rows() -> Vec<super::rows::Row> {
    Vec::new()
}
