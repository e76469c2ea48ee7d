//! bf16 in pairs along k: words of two values, and panels of words as `vdpbf16ps` takes its right operand.
//!
//! Everything that loops is `inline(always)`, to be compiled for the instruction set that the caller has dispatched to.

use super::super::vector::LANES;

/// Columns of a panel: four vectors.
pub const WIDTH: usize = 64;

/// Two neighbours along k.
#[inline(always)]
pub fn word(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}

/// Values of a packed operand (k, cols).
pub fn packed_len(cols: usize, k: usize) -> usize {
    cols.next_multiple_of(16) * k.div_ceil(2)
}

/// A right operand (k, cols) to fill: panels of [`WIDTH`] columns one after the other, the last one's rounded up to vectors; each (⌈k/2⌉, columns) words
/// in the bits of f32. Zeros beyond k and the columns.
pub struct Panels<'p> {
    panels: Vec<&'p mut [f32]>,
    cols: usize,
    k: usize,
}

impl<'p> Panels<'p> {
    pub fn new(memory: &'p mut [f32], cols: usize, k: usize) -> Self {
        let pairs = k.div_ceil(2);
        let panels = match pairs {
            0 => Vec::new(),
            _ => memory[..packed_len(cols, k)].chunks_mut(WIDTH * pairs).collect(),
        };
        Self { panels, cols, k }
    }

    /// (first column, columns, words) of each panel, to be filled side by side.
    pub fn split(self) -> Vec<Panel<'p>> {
        let (cols, k) = (self.cols, self.k);
        let of = |(p, words): (usize, &'p mut [f32])| Panel {
            first: p * WIDTH,
            cols: (cols - p * WIDTH).min(WIDTH),
            k,
            words,
        };
        self.panels.into_iter().enumerate().map(of).collect()
    }

    /// From the operand's rows, (cols) each: `row(i, 0 or 1)` is called for the two of a pair, one after the other.
    #[inline(always)]
    pub fn fill_rows<'r>(self, mut row: impl FnMut(usize, usize) -> &'r [u16]) {
        let k = self.k;
        let mut panels = self.split();
        for first in (0..k).step_by(2) {
            let a = row(first, 0);
            let b = if first + 1 < k { row(first + 1, 1) } else { &[] };
            for panel in &mut panels {
                panel.fill_pair(first / 2, a, b);
            }
        }
    }
}

/// One panel of [`Panels`].
pub struct Panel<'p> {
    /// Its first column
    pub first: usize,
    cols: usize,
    k: usize,
    words: &'p mut [f32],
}

impl Panel<'_> {
    /// Rows 2·pair and 2·pair + 1 of the operand, whole; the second is empty where there is none.
    #[inline(always)]
    pub fn fill_pair(&mut self, pair: usize, a: &[u16], b: &[u16]) {
        let width = self.cols.next_multiple_of(16);
        let (out, padding) = self.words[pair * width..][..width].split_at_mut(self.cols);
        let a = &a[self.first..][..self.cols];
        if b.is_empty() {
            for (out, &a) in out.iter_mut().zip(a) {
                *out = f32::from_bits(word(a, 0));
            }
        } else {
            let b = &b[self.first..][..self.cols];
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = f32::from_bits(word(a, b));
            }
        }
        padding.fill(0.0);
    }

    /// From the operand's columns, (k) each: of this panel's first to last, `column(0)` to `column(columns − 1)`.
    #[inline(always)]
    pub fn fill_columns<'c>(&mut self, mut column: impl FnMut(usize) -> &'c [u16]) {
        let width = self.cols.next_multiple_of(16);
        if self.cols < width {
            self.words.fill(0.0);
        }
        for j in 0..self.cols {
            let column = &column(j)[..self.k];
            let (pairs, alone) = column.as_chunks::<2>();
            for (out, &[a, b]) in self.words.chunks_exact_mut(width).zip(pairs) {
                out[j] = f32::from_bits(word(a, b));
            }
            if let [a] = alone {
                self.words[self.k / 2 * width + j] = f32::from_bits(word(*a, 0));
            }
        }
    }
}

/// Two rows of rounded values (n), as f32, to words of pairs across them (n); 0 beside the first where there is no second.
#[inline(always)]
pub fn across(a: &[f32], b: &[f32], out: &mut [f32]) {
    if b.is_empty() {
        for (out, a) in out.iter_mut().zip(a) {
            *out = f32::from_bits(a.to_bits() >> 16);
        }
    }
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = f32::from_bits(a.to_bits() >> 16 | b.to_bits() & 0xffff_0000);
    }
}

/// A row of rounded values, as f32, to words of pairs along it, in its first half; 0 beside a last one that is alone.
#[inline(always)]
pub fn along(row: &mut [f32]) {
    const STEP: usize = 2 * LANES;
    let n = row.len();
    let whole = n / STEP * STEP;
    for start in (0..whole).step_by(STEP) {
        let mut values = [0f32; STEP];
        values.copy_from_slice(&row[start..start + STEP]);
        let mut words = [0f32; LANES];
        for (l, word) in words.iter_mut().enumerate() {
            *word = f32::from_bits(values[2 * l].to_bits() >> 16 | values[2 * l + 1].to_bits() & 0xffff_0000);
        }
        // What is written has been read: start/2 + LANES ≤ start + STEP.
        row[start / 2..start / 2 + LANES].copy_from_slice(&words);
    }
    for start in (whole..n).step_by(2) {
        let second = if start + 1 < n { row[start + 1].to_bits() } else { 0 };
        row[start / 2] = f32::from_bits(row[start].to_bits() >> 16 | second & 0xffff_0000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_from_rows_and_from_columns_are_the_same() {
        for (k, cols) in [(1, 1), (2, 3), (5, 16), (4, 17), (7, 64), (6, 65), (9, 140)] {
            let value = |p: usize, j: usize| (1 + p * cols + j) as u16;
            let rows: Vec<u16> = (0..k * cols).map(|i| value(i / cols, i % cols)).collect();
            let columns: Vec<u16> = (0..k * cols).map(|i| value(i % k, i / k)).collect();
            let (mut a, mut b) = (vec![f32::NAN; packed_len(cols, k)], vec![f32::NAN; packed_len(cols, k)]);
            Panels::new(&mut a, cols, k).fill_rows(|row, _| &rows[row * cols..][..cols]);
            for mut panel in Panels::new(&mut b, cols, k).split() {
                let first = panel.first;
                panel.fill_columns(|j| &columns[(first + j) * k..][..k]);
            }
            let bits = |words: &[f32]| words.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&a), bits(&b), "{k} {cols}");
            for p in 0..k.div_ceil(2) {
                for j in 0..cols {
                    let width = (cols - j / WIDTH * WIDTH).min(WIDTH).next_multiple_of(16);
                    let at = j / WIDTH * WIDTH * k.div_ceil(2) + p * width + j % WIDTH;
                    let second = if 2 * p + 1 < k { value(2 * p + 1, j) } else { 0 };
                    assert_eq!(a[at].to_bits(), word(value(2 * p, j), second), "{k} {cols} {p} {j}");
                }
            }
        }
    }

    #[test]
    fn pairs_across_rows_and_along_them() {
        for n in [1, 2, 3, 31, 32, 33, 64, 70, 127] {
            let row =
                |salt: u32| -> Vec<f32> { (0..n as u32).map(|i| f32::from_bits((100 * salt + i) << 16)).collect() };
            let (a, b) = (row(1), row(2));
            let mut out = vec![0f32; n];
            across(&a, &b, &mut out);
            assert!((0..n).all(|i| out[i].to_bits() == word(100 + i as u16, 200 + i as u16)));
            across(&a, &[], &mut out);
            assert!((0..n).all(|i| out[i].to_bits() == word(100 + i as u16, 0)));
            let mut words = a.clone();
            along(&mut words);
            for (p, found) in words[..n.div_ceil(2)].iter().enumerate() {
                let second = if 2 * p + 1 < n { 101 + 2 * p as u16 } else { 0 };
                assert_eq!(found.to_bits(), word(100 + 2 * p as u16, second), "{n} {p}");
            }
        }
    }
}
