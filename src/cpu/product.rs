//! Matrix products by `gemm`, behind a safe face.

use gemm::Parallelism;

use super::numeric::Real;

/// A (rows, cols) view of a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `cols` elements, `row_stride` apart, (rows, cols).
    pub fn of_rows(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "matrix outside its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// (cols, rows)
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// `dst` (m, n), contiguous rows: `[dst +] lhs (m, k) · rhs (k, n)`, on this thread alone.
///
/// Its bits depend on the sizes and the machine, on nothing else.
pub(super) fn product<T: Real>(dst: &mut [T], accumulate: bool, lhs: Matrix<T>, rhs: Matrix<T>) {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    assert_eq!(k, rhs.rows, "inner sizes of a product");
    assert_eq!(dst.len(), m * n, "size of a product's result");
    let stride = |stride: usize| isize::try_from(stride).expect("a slice's stride fits isize");
    // SAFETY: every element gemm touches is in bounds: `dst` has m·n elements at row stride n (asserted above), and the
    // views' last elements lie in their slices (asserted where they are made; transposition swaps sizes and strides alike).
    // All are initialised, being slices. `dst` is borrowed mutably, so it overlaps neither operand. T is f32 or f64, which
    // gemm supports.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride(n),
            accumulate,
            lhs.data.as_ptr(),
            stride(lhs.col_stride),
            stride(lhs.row_stride),
            rhs.data.as_ptr(),
            stride(rhs.col_stride),
            stride(rhs.row_stride),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes on both sides of gemm's tiles; strided and transposed operands; accumulation.
    #[test]
    fn agrees_with_the_definition() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 33, 9), (64, 1, 40), (2, 130, 65), (5, 4, 0)] {
            for padding in [0, 3] {
                let value = |i: usize| ((i * 37 % 101) as f64 - 50.0) / 17.0;
                let a: Vec<f64> = (0..k * (m + padding)).map(value).collect(); // (k, m), transposed below
                let b: Vec<f64> = (0..k * (n + padding)).map(|i| value(i + 7)).collect(); // (k, n)
                let lhs = Matrix::of_rows(&a, k, m, m + padding).transposed();
                let rhs = Matrix::of_rows(&b, k, n, n + padding);
                for accumulate in [false, true] {
                    let mut dst: Vec<f64> = (0..m * n).map(|i| value(i + 3)).collect();
                    let start = dst.clone();
                    product(&mut dst, accumulate, lhs, rhs);
                    for i in 0..m {
                        for j in 0..n {
                            let sum: f64 = (0..k).map(|p| a[p * (m + padding) + i] * b[p * (n + padding) + j]).sum();
                            let expected = sum + if accumulate { start[i * n + j] } else { 0.0 };
                            assert!((dst[i * n + j] - expected).abs() < 1e-9, "{m} {n} {k} {accumulate}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "matrix outside its slice")]
    fn a_view_beyond_its_slice_is_refused() {
        Matrix::of_rows(&[0f32; 7], 2, 4, 4);
    }

    #[test]
    #[should_panic(expected = "size of a product's result")]
    fn a_result_of_the_wrong_size_is_refused() {
        let a = [0f32; 4];
        let view = Matrix::of_rows(&a, 2, 2, 2);
        product(&mut [0f32; 3], false, view, view);
    }
}
