//! One problem, and the ways to its loss.

use std::collections::BTreeMap;
use std::hint::black_box;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::{ClassCounts, MarginLoss, reference};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use crate::floor::Floor;
use crate::memory;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The logits' bare product, in f32.
    FloorForward,
    /// The loss by this crate.
    Forward,
    /// The loss composed of Candle ops.
    ComposedForward,
    /// The three bare products, in f32.
    Floor,
    /// Loss and gradients by `loss_and_grads_into`, over gradient tensors that are kept.
    Kept,
    /// Loss and gradients by `loss_and_grads`, into new tensors.
    New,
    /// `forward(…)?.backward()`.
    Tape,
    /// The composed loss and its `backward()`.
    Composed,
}

impl Way {
    /// In the order of a round: what is compared is near each other.
    pub const ALL: [Way; 8] = [
        Way::FloorForward,
        Way::Forward,
        Way::ComposedForward,
        Way::Tape,
        Way::New,
        Way::Kept,
        Way::Floor,
        Way::Composed,
    ];
    pub const FORWARD: &[Way] = &[Way::FloorForward, Way::Forward, Way::ComposedForward];
    pub const FORWARD_BACKWARD: &[Way] = &[Way::Floor, Way::Kept, Way::New, Way::Tape, Way::Composed];

    pub fn name(self) -> &'static str {
        match self {
            Way::FloorForward => "floor (1 product)",
            Way::Forward => "forward",
            Way::ComposedForward => "composed forward",
            Way::Floor => "floor (3 products)",
            Way::Kept => "loss_and_grads_into",
            Way::New => "loss_and_grads",
            Way::Tape => "tape",
            Way::Composed => "composed",
        }
    }
}

/// Error that a result in f32 may have, relative to the composed loss in f64: of the loss to its size, and of each gradient both in the
/// largest element and in the norm.
const TOLERANCE: f64 = 2e-5;
/// The same of a gradient that is rounded to bf16: half a unit in its last place is 2⁻⁹, and as much again.
const BF16_TOLERANCE: f64 = 1.0 / 256.0;
/// Error of a bare product in f32, relative to the sum of its terms' sizes.
const PRODUCT_TOLERANCE: f64 = 1e-5;

/// The inputs of one size and dtype.
#[derive(Debug)]
pub struct Case {
    pub n: usize,
    pub c: usize,
    pub d: usize,
    pub dtype: DType,
    loss: MarginLoss,
    /// X (N, D), tracked
    x_var: Var,
    /// W (C, D), tracked
    w_var: Var,
    /// X and W off the tape, in the same memory
    x: Tensor,
    w: Tensor,
    /// y (N)
    y: Tensor,
    /// dX (N, D) and dW (C, D), kept
    dx: Tensor,
    dw: Tensor,
    pub floor: Floor,
}

fn dbm_bs(c: usize) -> Result<MarginLoss> {
    Ok(MarginLoss::dbm_bs(&ClassCounts::exponential(1280, c, 100.0)?, 0.1)?)
}

impl Case {
    /// Random centres; every other row random, and so hard, the rest near its centre.
    pub fn new(n: usize, c: usize, d: usize, dtype: DType) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(7);
        let mut normal = |len: usize| -> Vec<f32> { (0..len).map(|_| StandardNormal.sample(&mut rng)).collect() };
        let w = normal(c * d);
        let mut x = normal(n * d);
        let y: Vec<u32> = (0..n).map(|_| rng.random_range(0..c as u32)).collect();
        for (row, label) in x.chunks_mut(d).zip(&y).step_by(2) {
            row.iter_mut().zip(&w[*label as usize * d..]).for_each(|(x, w)| *x += 0.3 * w);
        }
        let cpu = Device::Cpu;
        let x_var = Var::from_tensor(&Tensor::from_vec(x, (n, d), &cpu)?.to_dtype(dtype)?)?;
        let w_var = Var::from_tensor(&Tensor::from_vec(w, (c, d), &cpu)?.to_dtype(dtype)?)?;
        let (x, w) = (x_var.as_tensor().detach(), w_var.as_tensor().detach());
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let floor = Floor::new(n, c, d, wide(&x)?, wide(&w)?);
        let (dx, dw) = (x.zeros_like()?, w.zeros_like()?);
        Ok(Self {
            n,
            c,
            d,
            dtype,
            loss: dbm_bs(c)?,
            x_var,
            w_var,
            x,
            w,
            y: Tensor::from_vec(y, n, &cpu)?,
            dx,
            dw,
            floor,
        })
    }

    /// "NxCxD"
    pub fn size(&self) -> String {
        format!("{}x{}x{}", self.n, self.c, self.d)
    }

    /// Computes once, and lets go of the result.
    pub fn run(&mut self, way: Way) -> candle_core::Result<()> {
        let Self { loss, x, w, x_var, w_var, y, dx, dw, .. } = self;
        match way {
            Way::FloorForward => self.floor.logits(),
            Way::Floor => self.floor.all(),
            Way::Forward => drop(black_box(loss.forward(x, w, y)?)),
            Way::Kept => drop(black_box(loss.loss_and_grads_into(x, w, y, None, dx, dw)?)),
            Way::New => drop(black_box(loss.loss_and_grads(x, w, y, None)?)),
            Way::Tape => drop(black_box(loss.forward(x_var, w_var, y)?.backward()?)),
            Way::ComposedForward => drop(black_box(reference::forward(loss, x, w, y, None)?.loss)),
            Way::Composed => drop(black_box(reference::forward(loss, x_var, w_var, y, None)?.loss.backward()?)),
        }
        Ok(())
    }

    /// The loss, dX and dW where the way has them.
    fn results(&self, way: Way) -> Result<Vec<Tensor>> {
        let Self { loss, x, w, x_var, w_var, y, dx, dw, .. } = self;
        let on_tape = |value: Tensor| -> Result<Vec<Tensor>> {
            let grads = value.backward()?;
            let grad = |var: &Var| grads.get(var).cloned().ok_or("a gradient is missing");
            Ok(vec![value, grad(x_var)?, grad(w_var)?])
        };
        match way {
            Way::FloorForward | Way::Floor => Ok(Vec::new()),
            Way::Forward => Ok(vec![loss.forward(x, w, y)?]),
            Way::ComposedForward => Ok(vec![reference::forward(loss, x, w, y, None)?.loss]),
            Way::Kept => {
                let output = loss.loss_and_grads_into(x, w, y, None, dx, dw)?;
                Ok(vec![output.loss, dx.clone(), dw.clone()])
            }
            Way::New => {
                let (output, dx, dw) = loss.loss_and_grads(x, w, y, None)?;
                Ok(vec![output.loss, dx, dw])
            }
            Way::Tape => on_tape(loss.forward(x_var, w_var, y)?),
            Way::Composed => on_tape(reference::forward(loss, x_var, w_var, y, None)?.loss),
        }
    }

    /// Compares every way with the composed loss in f64 on the same inputs, and the floor with sums in f64. Gives the
    /// largest error of each way; one beyond its tolerance is an `Err`, except for the composed loss in bf16, which has none to keep.
    pub fn check(&mut self) -> Result<BTreeMap<&'static str, f64>> {
        let (x, w) =
            (Var::from_tensor(&self.x.to_dtype(DType::F64)?)?, Var::from_tensor(&self.w.to_dtype(DType::F64)?)?);
        let value = reference::forward(&self.loss, &x, &w, &self.y, None)?.loss;
        let grads = value.backward()?;
        let missing = "a gradient of the composed loss is missing";
        let expected = [value, grads.get(&x).ok_or(missing)?.clone(), grads.get(&w).ok_or(missing)?.clone()];
        let expected = expected.iter().map(flat).collect::<Result<Vec<_>>>()?;
        drop((grads, x, w));

        let mut errors = BTreeMap::new();
        for way in Way::ALL {
            let mut largest: f64 = 0.0;
            for (part, (result, expected)) in self.results(way)?.iter().zip(&expected).enumerate() {
                let error = relative_error(&flat(result)?, expected);
                let tolerance = match (self.dtype, way, part) {
                    (DType::BF16, Way::Composed | Way::ComposedForward, _) => f64::INFINITY,
                    (DType::BF16, _, 1..) => BF16_TOLERANCE,
                    _ => TOLERANCE,
                };
                if error > tolerance {
                    let (what, way, dtype) = (["the loss", "dX", "dW"][part], way.name(), self.dtype.as_str());
                    let label = format!("{} {dtype}, {way}", self.size());
                    return Err(format!("{label}: {what} is wrong by {error:.1e}, more than {tolerance:.1e}").into());
                }
                largest = largest.max(error);
            }
            errors.insert(way.name(), largest);
        }
        let error = self.floor.error();
        if error > PRODUCT_TOLERANCE {
            return Err(format!("{}: a bare product is wrong by {error:.1e}", self.size()).into());
        }
        errors.insert(Way::Floor.name(), error);
        errors.remove(Way::FloorForward.name());
        Ok(errors)
    }

    /// Peak bytes of each way beyond inputs, outputs and gradients.
    pub fn extra_memory(&mut self) -> Result<BTreeMap<&'static str, isize>> {
        let ways = [Way::Forward, Way::Kept, Way::New, Way::Tape, Way::ComposedForward, Way::Composed];
        ways.into_iter().map(|way| Ok((way.name(), self.extra_of(way)?))).collect()
    }

    /// Of one way, in its first call: with a loss whose workspace is not there yet, and with what `gemm` keeps for its threads.
    pub fn extra_of(&mut self, way: Way) -> Result<isize> {
        let slabs = memory::gemm_slabs();
        self.loss = dbm_bs(self.c)?;
        let (result, peak, _) = memory::measure(|| self.run(way));
        result?;
        // loss, per-sample loss, predicted class, target cosine (4 bytes each) and hard flag
        let outputs = 4 + self.n * (4 + 4 + 4 + 1);
        let gradients = match way {
            Way::New | Way::Tape | Way::Composed => (self.n + self.c) * self.d * self.dtype.size_in_bytes(),
            _ => 0,
        };
        Ok(slabs + peak - isize::try_from(outputs + gradients)?)
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// The larger of max |a − b| / max |b| and ‖a − b‖ / ‖b‖; infinite where NaN is.
fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "sizes of results");
    let (mut worst, mut largest, mut squares, mut size) = (0f64, 0f64, 0f64, 0f64);
    for (a, b) in a.iter().zip(b) {
        let difference = a - b;
        worst = worst.max(difference.abs());
        largest = largest.max(b.abs());
        squares += difference * difference;
        size += b * b;
    }
    let error = (worst / largest).max((squares / size).sqrt());
    // max() passes NaN over; the sums do not.
    if squares.is_nan() || size.is_nan() || error.is_nan() { f64::INFINITY } else { error }
}
