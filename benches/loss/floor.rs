//! The floor: the three products that the loss and its gradients cannot do without, bare, by `gemm`, into memory that is there.

use std::time::Instant;

use gemm::Parallelism;

/// The operands and results of the products, in f32, class-major as the fused path has them.
#[derive(Debug)]
pub struct Floor {
    n: usize,
    c: usize,
    d: usize,
    /// X (N, D)
    x: Vec<f32>,
    /// W (C, D)
    w: Vec<f32>,
    /// L (C, N)
    logits: Vec<f32>,
    /// dX (N, D)
    dx: Vec<f32>,
    /// dW (C, D)
    dw: Vec<f32>,
    /// Of L, dX and dW
    parallelism: [Parallelism; 3],
}

impl Floor {
    pub fn new(n: usize, c: usize, d: usize, x: Vec<f32>, w: Vec<f32>) -> Self {
        let [logits, dx, dw] = [c * n, n * d, c * d].map(|len| vec![0.0; len]);
        Self { n, c, d, x, w, logits, dx, dw, parallelism: [Parallelism::Rayon(0); 3] }
    }

    /// L (C, N) = W·Xᵀ
    pub fn logits(&mut self) {
        let (n, c, d) = (self.n, self.c, self.d);
        product(&mut self.logits, (c, n, d), (&self.w, [d, 1]), (&self.x, [1, d]), self.parallelism[0]);
    }

    /// dX (N, D) = Lᵀ·W
    fn features(&mut self) {
        let (n, c, d) = (self.n, self.c, self.d);
        product(&mut self.dx, (n, d, c), (&self.logits, [1, n]), (&self.w, [d, 1]), self.parallelism[1]);
    }

    /// dW (C, D) = L·X
    fn weight(&mut self) {
        let (n, c, d) = (self.n, self.c, self.d);
        product(&mut self.dw, (c, d, n), (&self.logits, [n, 1]), (&self.x, [d, 1]), self.parallelism[2]);
    }

    /// All three.
    pub fn all(&mut self) {
        self.logits();
        self.features();
        self.weight();
    }

    /// Takes for each product what is faster here, one thread or all.
    pub fn choose_parallelism(&mut self) {
        let products: [fn(&mut Self); 3] = [Self::logits, Self::features, Self::weight];
        for (i, product) in products.into_iter().enumerate() {
            let choices = [Parallelism::None, Parallelism::Rayon(0)];
            let mut best = [f64::INFINITY; 2];
            let repetitions = (20_000_000 / (self.n * self.c * self.d)).clamp(1, 500);
            for _ in 0..7 {
                for (best, choice) in best.iter_mut().zip(choices) {
                    self.parallelism[i] = choice;
                    let start = Instant::now();
                    (0..repetitions).for_each(|_| product(self));
                    *best = best.min(start.elapsed().as_secs_f64());
                }
            }
            self.parallelism[i] = choices[usize::from(best[1] < best[0])];
        }
    }

    /// "1" or "all" threads, for L, dX and dW.
    pub fn threads(&self) -> [&'static str; 3] {
        self.parallelism.map(|parallelism| if matches!(parallelism, Parallelism::None) { "1" } else { "all" })
    }

    /// The largest error of elements spread over the three results, relative to the sum of their terms' sizes.
    pub fn error(&mut self) -> f64 {
        self.all();
        let (n, c, d) = (self.n, self.c, self.d);
        let mut largest: f64 = 0.0;
        let mut check = |value: f32, terms: &mut dyn Iterator<Item = (f32, f32)>| {
            let (mut sum, mut size) = (0.0, 0.0);
            for (a, b) in terms {
                let term = f64::from(a) * f64::from(b);
                sum += term;
                size += term.abs();
            }
            let error = (f64::from(value) - sum).abs() / size;
            largest = if error.is_nan() { f64::INFINITY } else { largest.max(error) };
        };
        for sample in 0..64 {
            let (i, j, k) = (sample * 7919 % n, sample * 104_729 % c, sample * 1_299_709 % d);
            check(self.logits[j * n + i], &mut (0..d).map(|k| (self.w[j * d + k], self.x[i * d + k])));
            check(self.dx[i * d + k], &mut (0..c).map(|j| (self.logits[j * n + i], self.w[j * d + k])));
            check(self.dw[j * d + k], &mut (0..n).map(|i| (self.logits[j * n + i], self.x[i * d + k])));
        }
        largest
    }
}

/// `dst` (m, n) = lhs (m, k) · rhs (k, n), `dst` contiguous, the operands with strides [by row, by column].
pub fn product(
    dst: &mut [f32],
    (m, n, k): (usize, usize, usize),
    (lhs, lhs_strides): (&[f32], [usize; 2]),
    (rhs, rhs_strides): (&[f32], [usize; 2]),
    parallelism: Parallelism,
) {
    assert!(m > 0 && n > 0 && k > 0, "an empty product");
    let last = |rows: usize, cols: usize, strides: [usize; 2]| (rows - 1) * strides[0] + (cols - 1) * strides[1];
    assert_eq!(dst.len(), m * n, "size of a product's result");
    assert!(last(m, k, lhs_strides) < lhs.len(), "left operand outside its slice");
    assert!(last(k, n, rhs_strides) < rhs.len(), "right operand outside its slice");
    let stride = |stride: usize| isize::try_from(stride).expect("a slice's stride fits isize");
    // SAFETY: in bounds: `dst` has m·n elements at row stride n, and the operands' last elements lie in their slices (all
    // asserted above). Initialised, being slices. `dst` is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride(n),
            false,
            lhs.as_ptr(),
            stride(lhs_strides[1]),
            stride(lhs_strides[0]),
            rhs.as_ptr(),
            stride(rhs_strides[1]),
            stride(rhs_strides[0]),
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
