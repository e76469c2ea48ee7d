//! Products of bf16 in f32 sums by AVX512-BF16: `vdpbf16ps` takes two neighbours along k at a time, at twice the rate of f32's multiply-adds.
//!
//! The right operand is packed (`pack.rs`): panels of [`WIDTH`] columns, each value a pair (k, k + 1). The left one is read a pair at a time, wherever
//! pairs lie. On other machines nothing here is called ([`available`]).
//!
//! A subnormal bf16 counts as 0, and so does a subnormal product.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))] // no other machine runs it

use super::pack::{WIDTH, packed_len};

/// Rows of a microkernel: 6 × 4 sums, four vectors of the panel and one pair fill the 32 registers.
#[cfg(target_arch = "x86_64")]
const HEIGHT: usize = 6;

/// Whether this machine has the instructions.
pub fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A left operand (rows, k) of bf16 by their bits: values 2p and 2p + 1 of row i are the two at i·row_stride + p·pair_stride. Of an odd k the last value is
/// alone, and what lies behind it is not read.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    data: &'a [u16],
    rows: usize,
    k: usize,
    row_stride: usize,
    pair_stride: usize,
}

impl<'a> Left<'a> {
    pub fn new(data: &'a [u16], rows: usize, k: usize, row_stride: usize, pair_stride: usize) -> Self {
        let last = |k: usize| (rows - 1) * row_stride + (k - 1) / 2 * pair_stride + (k - 1) % 2;
        let fits = rows == 0 || (k == 0 || last(k) < data.len()) && (k < 2 || last(k / 2 * 2) < data.len());
        assert!(fits, "pairs outside their slice");
        Self { data, rows, k, row_stride, pair_stride }
    }
}

/// What becomes of a product (m, n).
#[derive(Debug, Clone, Copy)]
pub enum Store<'a> {
    /// It takes the place of what was there.
    Write,
    /// It is added.
    Add,
    /// Its columns, multiplied by these (n), take the place of what was there.
    Scaled(&'a [f32]),
}

/// `dst` (m, n), contiguous rows: lhs (m, k) · rhs (k, n), on this thread; `rhs` packed, zeros beyond k and n.
///
/// Its bits depend on the sizes alone: a sum is over rising pairs.
#[cfg(target_arch = "x86_64")]
pub fn product(dst: &mut [f32], lhs: Left, rhs: &[f32], n: usize, store: Store) {
    let pairs = lhs.k.div_ceil(2);
    assert!(available(), "a product by instructions that are not here");
    assert_eq!(dst.len(), lhs.rows * n, "size of a product's result");
    assert!(packed_len(n, lhs.k) <= rhs.len(), "size of a packed operand");
    let scales = match store {
        Store::Scaled(scales) => {
            assert!(n <= scales.len(), "a scale for every column");
            Some(scales)
        }
        _ => None,
    };
    for start in (0..n).step_by(WIDTH) {
        let width = (n - start).min(WIDTH);
        let rhs = &rhs[start * pairs..][..width.next_multiple_of(16) * pairs];
        for first in (0..lhs.rows).step_by(HEIGHT) {
            let height = (lhs.rows - first).min(HEIGHT);
            // SAFETY: the instructions are there (asserted above). `dst` has rows first..first + height and columns start..start + width at row
            // stride n, `rhs` has `pairs` rows of `width` values rounded up to vectors, `scales` has columns start..start + width, and the
            // pairs of rows first..first + height lie in their slice (asserted where they were made). All is initialised, being slices; `dst`
            // is borrowed mutably, so it overlaps no operand.
            unsafe {
                let tile = micro::Tile {
                    dst: dst.as_mut_ptr().add(first * n + start),
                    stride: n,
                    width,
                    add: matches!(store, Store::Add),
                    scales: scales.map(|scales| scales.as_ptr().add(start)),
                    lhs: lhs.data.as_ptr().add(first * lhs.row_stride),
                    row_stride: lhs.row_stride,
                    pair_stride: lhs.pair_stride,
                    k: lhs.k,
                    rhs: rhs.as_ptr(),
                };
                micro::of_height(height, &tile);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn product(_: &mut [f32], _: Left, _: &[f32], _: usize, _: Store) {
    unreachable!("a product by instructions that are not here");
}

#[cfg(target_arch = "x86_64")]
mod micro {
    use std::arch::x86_64::*;

    /// A microkernel's piece of a product.
    pub struct Tile {
        /// (rows, width), rows `stride` apart
        pub dst: *mut f32,
        pub stride: usize,
        pub width: usize,
        /// Whether it is added to what is there.
        pub add: bool,
        /// Of its columns, (width)
        pub scales: Option<*const f32>,
        /// (rows, k): see `Left`
        pub lhs: *const u16,
        pub row_stride: usize,
        pub pair_stride: usize,
        pub k: usize,
        /// (⌈k/2⌉, width rounded up to vectors)
        pub rhs: *const f32,
    }

    /// The microkernel for `height` rows, 1 to HEIGHT.
    ///
    /// # Safety
    /// AVX-512 with BF16; the tile's pointers valid for what stands beside them, `dst` for writing, and `width` 1 to WIDTH.
    pub unsafe fn of_height(height: usize, tile: &Tile) {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match height {
                1 => of_width::<1>(tile),
                2 => of_width::<2>(tile),
                3 => of_width::<3>(tile),
                4 => of_width::<4>(tile),
                5 => of_width::<5>(tile),
                _ => of_width::<6>(tile),
            }
        }
    }

    /// # Safety
    /// As [`of_height`], for M rows.
    unsafe fn of_width<const M: usize>(tile: &Tile) {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match tile.width.div_ceil(16) {
                1 => run::<M, 1>(tile),
                2 => run::<M, 2>(tile),
                3 => run::<M, 3>(tile),
                _ => run::<M, 4>(tile),
            }
        }
    }

    /// M rows by V vectors of columns.
    ///
    /// # Safety
    /// As [`of_height`], for M rows and a width beyond V − 1 vectors and within V.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn run<const M: usize, const V: usize>(tile: &Tile) {
        let &Tile { dst, stride, width, add, scales, lhs, row_stride, pair_stride, k, rhs } = tile;
        if add {
            // A lane's sum of dX is larger than the second-level cache: without this a third of dX's time is waiting for it (D = 2048).
            for row in 0..M {
                for v in 0..V {
                    // SAFETY: a prefetch of any address is allowed. Newer compilers know.
                    #[allow(unused_unsafe)]
                    unsafe {
                        _mm_prefetch::<_MM_HINT_ET0>(dst.wrapping_add(row * stride + 16 * v).cast())
                    };
                }
            }
        }
        let mut sums = [[_mm512_setzero_ps(); V]; M];
        for p in 0..k / 2 {
            let mut b = [_mm512_setzero_ps(); V];
            for (v, b) in b.iter_mut().enumerate() {
                // SAFETY: row p of ⌈k/2⌉, each of V vectors.
                *b = unsafe { _mm512_loadu_ps(rhs.add((p * V + v) * 16)) };
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                // SAFETY: pair p of row m is there, at any alignment; a vector of f32 and one of bf16 pairs are 64 bytes, any of which are valid.
                unsafe {
                    let pair = lhs.add(m * row_stride + p * pair_stride).cast::<i32>().read_unaligned();
                    let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_dpbf16_ps(*sum, pair, std::mem::transmute::<__m512, __m512bh>(b));
                    }
                }
            }
        }
        if k % 2 == 1 {
            let p = k / 2;
            for (m, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the last value of row m is there, and row p of `rhs` is; vectors as above.
                unsafe {
                    let alone = lhs.add(m * row_stride + p * pair_stride).read();
                    let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(i32::from(alone)));
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let b = _mm512_loadu_ps(rhs.add((p * V + v) * 16));
                        *sum = _mm512_dpbf16_ps(*sum, pair, std::mem::transmute::<__m512, __m512bh>(b));
                    }
                }
            }
        }
        let last = u16::MAX >> (16 * V - width);
        let mask = |v: usize| if v + 1 == V { last } else { u16::MAX };
        if let Some(scales) = scales {
            for v in 0..V {
                // SAFETY: the mask leaves columns below `width`, which `scales` is valid for.
                let scale = unsafe { _mm512_maskz_loadu_ps(mask(v), scales.add(16 * v)) };
                for sums in &mut sums {
                    sums[v] = _mm512_mul_ps(sums[v], scale);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the mask leaves columns below `width` of row m, which `dst` is valid for.
                unsafe {
                    let out = dst.add(m * stride + 16 * v);
                    let sum = if add { _mm512_add_ps(_mm512_maskz_loadu_ps(mask(v), out), sum) } else { sum };
                    _mm512_mask_storeu_ps(out, mask(v), sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::pack::{Panels, word};
    use super::*;

    fn value(i: usize) -> bf16 {
        bf16::from_f32(((i * 37 % 101) as f32 - 50.0) / 17.0)
    }

    /// Sizes on both sides of the microkernel's; pairs along rows and across them; strides; every way to store; nothing written or read beyond.
    #[test]
    fn agrees_with_the_definition() {
        if !available() {
            println!("SKIPPED: no AVX512-BF16 here");
            return;
        }
        for m in [1, 2, 3, 4, 5, 6, 7, 13] {
            for n in [1, 15, 16, 17, 33, 48, 63, 64, 65, 130] {
                for k in [0usize, 1, 2, 3, 4, 65, 66] {
                    for (row_stride, pair_stride) in [(k + 3, 2), (2, 2 * m + 1)] {
                        let last = (m - 1) * row_stride + k.saturating_sub(1) / 2 * pair_stride + 1 - k % 2;
                        // What lies behind the last value is NaN, and so would be a sum that reads it.
                        let mut a: Vec<u16> = (0..=last).map(|i| value(i).to_bits()).collect();
                        a.push(bf16::NAN.to_bits());
                        if k % 2 == 1 && pair_stride == 2 {
                            (0..m).for_each(|i| a[i * row_stride + k] = bf16::NAN.to_bits());
                        }
                        let lhs = Left::new(&a, m, k, row_stride, pair_stride);
                        let b: Vec<u16> = (0..k * n).map(|i| value(i + 7).to_bits()).collect();
                        let mut packed = vec![f32::NAN; packed_len(n, k)];
                        Panels::new(&mut packed, n, k).fill_rows(|row, _| &b[row * n..][..n]);
                        let scales: Vec<f32> = (0..n).map(|j| 0.5 + j as f32).collect();
                        let start: Vec<f32> = (0..m * n).map(|i| value(i + 3).to_f32()).collect();
                        for store in [Store::Write, Store::Add, Store::Scaled(&scales)] {
                            let mut dst = start.clone();
                            product(&mut dst, lhs, &packed, n, store);
                            for i in 0..m {
                                for j in 0..n {
                                    let of = |bits: u16| bf16::from_bits(bits).to_f64();
                                    let a = |k: usize| of(a[i * row_stride + k / 2 * pair_stride + k % 2]);
                                    let sum: f64 = (0..k).map(|k| a(k) * of(b[k * n + j])).sum();
                                    let expected = match store {
                                        Store::Write => sum,
                                        Store::Add => sum + f64::from(start[i * n + j]),
                                        Store::Scaled(scales) => sum * f64::from(scales[j]),
                                    };
                                    let error = (f64::from(dst[i * n + j]) - expected).abs();
                                    let bound =
                                        2e-4 * if matches!(store, Store::Scaled(_)) { 1.0 + j as f64 } else { 1.0 };
                                    assert!(error < bound, "{m} {n} {k} {store:?}: {error}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_word_is_a_pair() {
        let (one, two) = (bf16::ONE.to_bits(), bf16::from_f32(2.0).to_bits());
        assert_eq!(word(one, two), 0x4000_3f80);
    }

    #[test]
    #[should_panic(expected = "pairs outside their slice")]
    fn pairs_beyond_their_slice_are_refused() {
        Left::new(&[0; 7], 2, 4, 4, 2);
    }

    #[test]
    #[should_panic(expected = "pairs outside their slice")]
    fn a_last_value_beyond_its_slice_is_refused() {
        Left::new(&[0; 6], 2, 3, 4, 2);
    }
}
