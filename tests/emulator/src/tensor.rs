//! Matrix fragments: `mma.sync` and the distribution of `ldmatrix`. Layouts are those of the tables in the PTX ISA's section on matrix fragments.

use half::f16;
use pulp::Arch;

use crate::lanes::{L32, L64, LANES};

/// What an `mma` multiplies and adds up. Rows of A are 16, or 8 in f64; columns of B are 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    Tf32,
}

/// An `mma.sync` of shape m16n8k`k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mma {
    pub element: Element,
    pub k: usize,
    /// C, D: f16, two a register
    pub narrow: bool,
}

const M: usize = 16;
const N: usize = 8;
const MOST_K: usize = 16;

impl Mma {
    /// Registers of A, of B, and of C or D.
    pub fn registers(self) -> (usize, usize, usize) {
        let each = if self.element == Element::Tf32 { 1 } else { 2 };
        (M * self.k / LANES / each, self.k * N / LANES / each, if self.narrow { 2 } else { 4 })
    }

    /// D = A·B + C. Products are exact, and added to C in the order of k in f32; the hardware's order and its inner roundings are not documented.
    pub fn run(self, a: &[L32], b: &[L32], c: &[L32]) -> [L32; 4] {
        let (mut left, mut right) = ([[0f32; MOST_K]; M], [[0f32; N]; MOST_K]);
        let each = if self.element == Element::Tf32 { 1 } else { 2 };
        let value = |register: u32, part: usize| match self.element {
            Element::F16 => f16::from_bits((register >> (16 * part)) as u16).to_f32(),
            Element::Bf16 => f32::from_bits(register >> (16 * part) << 16),
            // The low 13 bits are not part of a tf32.
            Element::Tf32 => f32::from_bits(register & !0x1fff),
        };
        // A lane's group is its row of A and its column of B; its rank in the group tells the columns, or rows.
        for lane in 0..LANES {
            let (group, rank) = (lane / 4, lane % 4);
            for (i, register) in a.iter().enumerate() {
                for part in 0..each {
                    left[group + 8 * (i % 2)][each * rank + part + 4 * each * (i / 2)] = value(register[lane], part);
                }
            }
            for (i, register) in b.iter().enumerate() {
                for part in 0..each {
                    right[each * rank + part + 4 * each * i][group] = value(register[lane], part);
                }
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
        Arch::new().dispatch(Multiply { a: &left, b: &right, c: &mut sums, k: self.k });
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
pub(crate) fn mma_f64(a: &L64, b: &L64, c: [&L64; 2]) -> [L64; 2] {
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
pub(crate) fn matrix_part(rows: &[[u8; 16]; 8], lane: usize, transposed: bool) -> u32 {
    let element =
        |row: usize, column: usize| u32::from(u16::from_le_bytes([rows[row][2 * column], rows[row][2 * column + 1]]));
    let (major, minor) = (lane / 4, 2 * (lane % 4));
    if transposed {
        element(minor, major) | element(minor + 1, major) << 16
    } else {
        element(major, minor) | element(major, minor + 1) << 16
    }
}
