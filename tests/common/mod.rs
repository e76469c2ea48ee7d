//! What the test suites share: a table of losses, random problems, runs by the fused op and by the composed reference, and errors.
#![allow(dead_code, missing_docs)]

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::{
    AngleRange, ClassCounts, ClassWeights, InstanceGate, LossOutput, Margin, MarginLoss, MarginLossBuilder, Prior,
    Reduction, RowInputs, RowLoss, TargetGradient, reference,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The device that the suites run on: the CPU, or with `MARGIN_LOSS_DEVICE=cuda` the first CUDA device.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| match std::env::var("MARGIN_LOSS_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok("cuda") => Device::new_cuda(0).expect("a CUDA device"),
        Ok(other) => panic!("MARGIN_LOSS_DEVICE is cpu or cuda, not {other}"),
    });
    device.clone()
}

/// Whether the suites run on a CUDA device: what a test of the CPU path alone leaves out, saying so.
pub fn on_cuda() -> bool {
    device().is_cuda()
}

/// Whether that device is an emulated one, which takes hours for what a real one does in seconds.
pub fn emulated() -> bool {
    #[cfg(feature = "cuda")]
    if let Ok(cuda) = device().as_cuda_device() {
        return cuda.cuda_stream().context().name().is_ok_and(|name| name.starts_with("emulated"));
    }
    false
}

/// Whether the losses below take a device's streaming kernels only: `MARGIN_LOSS_STREAMING=1`.
pub fn streaming() -> bool {
    std::env::var_os("MARGIN_LOSS_STREAMING").is_some()
}

/// The distance from 1 to the next number of a type.
pub fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f64::from(half::f16::EPSILON),
        DType::BF16 => f64::from(half::bf16::EPSILON),
        DType::F32 => f64::from(f32::EPSILON),
        _ => f64::EPSILON,
    }
}

/// Long-tailed counts of `classes` classes, in shuffled order.
pub fn counts(classes: usize) -> ClassCounts {
    let n: Vec<u64> = (0..classes).map(|j| 1 + (j as u64 * 7919 + 13) % 97 * ((j as u64 % 5) + 1)).collect();
    ClassCounts::new(n).unwrap()
}

/// The options that a loss is made of: every family, gate, prior, weighting, gradient, angle range, smoothing and ignore index.
pub fn builders(classes: usize) -> Vec<(&'static str, MarginLossBuilder)> {
    let counts = counts(classes);
    let new = || MarginLoss::builder(classes).counts(&counts).scale(16.0).streaming(streaming());
    let bs = || Prior::BalancedSoftmax { tau: 1.0 };
    let dbm = || Margin::Dbm { k: 0.3, tau: 1.0 };
    let per_class = || Margin::PerClass {
        m1: 1.2,
        angular: (0..classes).map(|j| (j % 7) as f64 * 0.1 - 0.2).collect(),
        cosine: (0..classes).map(|j| (j % 5) as f64 * 0.08 - 0.1).collect(),
    };
    let table = |scale: f64| (0..classes).map(|j| scale * (1.0 + (j % 11) as f64)).collect::<Vec<_>>();
    vec![
        ("cosine softmax", new()),
        ("cosine softmax, scale 1", new().scale(1.0)),
        ("cosine softmax, scale 64", new().scale(64.0)),
        ("balanced softmax", new().prior(bs())),
        ("logit adjustment 1.7", new().prior(Prior::BalancedSoftmax { tau: 1.7 })),
        ("log prior", new().prior(Prior::LogPrior(table(-0.4)))),
        ("SphereFace 1.5", new().margin(Margin::SphereFace { m: 1.5 })),
        ("SphereFace 4", new().margin(Margin::SphereFace { m: 4.0 })),
        ("SphereFace 3, wrap", new().margin(Margin::SphereFace { m: 3.0 }).angle_range(AngleRange::Wrap)),
        ("CosFace", new().margin(Margin::CosFace { m: 0.35 })),
        ("ArcFace", new().margin(Margin::ArcFace { m: 0.5 })),
        ("ArcFace 2, monotone", new().margin(Margin::ArcFace { m: 2.0 }).angle_range(AngleRange::Monotone)),
        (
            "ArcFace, straight through",
            new().margin(Margin::ArcFace { m: 0.5 }).target_gradient(TargetGradient::StraightThrough),
        ),
        (
            "ArcFace, positives",
            new()
                .margin(Margin::ArcFace { m: 0.5 })
                .instance_gate(InstanceGate::Positives)
                .angle_range(AngleRange::Monotone),
        ),
        ("ArcFace 1.2, linear", new().margin(Margin::ArcFace { m: 1.2 }).angle_range(AngleRange::Linear)),
        (
            "DBM, positives, linear",
            new()
                .margin(Margin::Dbm { k: 1.5, tau: 0.2 })
                .instance_gate(InstanceGate::Positives)
                .angle_range(AngleRange::Linear),
        ),
        (
            "ArcFace, easy, hard positives, focal 2",
            new()
                .margin(Margin::ArcFace { m: 0.5 })
                .instance_gate(InstanceGate::HardPositives)
                .angle_range(AngleRange::Easy)
                .row_loss(RowLoss::Focal { gamma: 2.0 }),
        ),
        (
            "combined, clamp, Poly-1",
            new()
                .margin(Margin::Combined { m1: 1.1, m2: 0.8, m3: 0.2 })
                .angle_range(AngleRange::Clamp)
                .row_loss(RowLoss::Poly1 { epsilon: 2.0 }),
        ),
        (
            "DBM-BS, generalised 0.7, per row, ignore",
            new()
                .margin(dbm())
                .instance_gate(InstanceGate::HardPositives)
                .prior(bs())
                .row_loss(RowLoss::Generalized { q: 0.7 })
                .ignore_index(IGNORE)
                .reduction(Reduction::None),
        ),
        (
            "focal 0.5, weights",
            new().row_loss(RowLoss::Focal { gamma: 0.5 }).class_weights(ClassWeights::PerClass(table(0.3))),
        ),
        ("row margins", new().row_margins(true)),
        (
            "row margins, clamp, per row",
            new().row_margins(true).angle_range(AngleRange::Clamp).reduction(Reduction::None),
        ),
        (
            "ArcFace, row margins, straight through, ignore, weighted mean",
            new()
                .margin(Margin::ArcFace { m: 0.4 })
                .row_margins(true)
                .target_gradient(TargetGradient::StraightThrough)
                .class_weights(ClassWeights::PerClass(table(0.3)))
                .ignore_index(IGNORE)
                .reduction(Reduction::WeightedMean),
        ),
        (
            "DBM-BS, row margins, linear, smoothed",
            new()
                .margin(dbm())
                .instance_gate(InstanceGate::HardPositives)
                .row_margins(true)
                .angle_range(AngleRange::Linear)
                .prior(bs())
                .label_smoothing(0.1),
        ),
        (
            "SphereFace 1.5, row margins, easy, focal 2, sum",
            new()
                .margin(Margin::SphereFace { m: 1.5 })
                .row_margins(true)
                .angle_range(AngleRange::Easy)
                .row_loss(RowLoss::Focal { gamma: 2.0 })
                .reduction(Reduction::Sum),
        ),
        ("LDAM", new().margin(Margin::Ldam { max_m: 0.5 })),
        (
            "LDAM-CB",
            new().margin(Margin::Ldam { max_m: 0.5 }).class_weights(ClassWeights::ClassBalanced { beta: 0.999 }),
        ),
        ("DBM, gate off", new().margin(dbm())),
        ("DBM, positives", new().margin(dbm()).instance_gate(InstanceGate::Positives)),
        ("DBM-CE", new().margin(dbm()).instance_gate(InstanceGate::HardPositives)),
        (
            "DBM-CB",
            new()
                .margin(dbm())
                .instance_gate(InstanceGate::HardPositives)
                .class_weights(ClassWeights::ClassBalanced { beta: 0.9999 }),
        ),
        (
            "DBM-CB normalised, weighted mean",
            new()
                .margin(Margin::Dbm { k: 0.2, tau: 0.5 })
                .instance_gate(InstanceGate::HardPositives)
                .class_weights(ClassWeights::ClassBalancedNormalized { beta: 0.99 })
                .reduction(Reduction::WeightedMean),
        ),
        ("DBM-BS", new().margin(dbm()).instance_gate(InstanceGate::HardPositives).prior(bs())),
        (
            "DBM-BS, λ 2.5, detached, sum",
            new()
                .margin(dbm())
                .instance_gate(InstanceGate::HardPositives)
                .instance_strength(2.5)
                .target_gradient(TargetGradient::DetachDifficulty)
                .prior(bs())
                .reduction(Reduction::Sum),
        ),
        (
            "DBM-BS, straight through, smoothed",
            new()
                .margin(dbm())
                .instance_gate(InstanceGate::Positives)
                .target_gradient(TargetGradient::StraightThrough)
                .prior(bs())
                .label_smoothing(0.1),
        ),
        ("combined", new().margin(Margin::Combined { m1: 1.1, m2: 0.3, m3: 0.2 })),
        (
            "combined, hard positives, monotone, ignore",
            new()
                .margin(Margin::Combined { m1: 2.0, m2: 0.8, m3: 0.1 })
                .instance_gate(InstanceGate::HardPositives)
                .angle_range(AngleRange::Monotone)
                .ignore_index(IGNORE),
        ),
        ("per class", new().margin(per_class())),
        (
            "per class, weights, prior, smoothing, ignore, weighted mean",
            new()
                .margin(per_class())
                .instance_gate(InstanceGate::HardPositives)
                .instance_strength(0.6)
                .class_weights(ClassWeights::PerClass(table(0.3)))
                .prior(Prior::LogPrior(table(0.2)))
                .label_smoothing(0.25)
                .ignore_index(IGNORE)
                .reduction(Reduction::WeightedMean),
        ),
        ("smoothing", new().label_smoothing(0.4)),
        ("ignore, sum", new().ignore_index(IGNORE).reduction(Reduction::Sum)),
        ("per row", new().reduction(Reduction::None)),
        (
            "DBM-BS per row, ignore, smoothed",
            new()
                .margin(dbm())
                .instance_gate(InstanceGate::HardPositives)
                .prior(bs())
                .class_weights(ClassWeights::ClassBalanced { beta: 0.99 })
                .label_smoothing(0.1)
                .ignore_index(IGNORE)
                .reduction(Reduction::None),
        ),
    ]
}

pub fn losses(classes: usize) -> Vec<(&'static str, MarginLoss)> {
    builders(classes).into_iter().map(|(name, builder)| (name, builder.build().expect(name))).collect()
}

/// The ignore index of the losses above that have one.
pub const IGNORE: i64 = -100;

/// Tensors of one call, in f64; `to` makes them what a dtype can hold.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// (N, D)
    pub x: Tensor,
    /// (C, D)
    pub w: Tensor,
    /// (N)
    pub y: Tensor,
    pub sample_weights: Option<Tensor>,
    /// (N, 2), for the losses that take them
    pub margins: Option<Tensor>,
}

impl Inputs {
    /// What else than labels `loss` is told of the rows.
    pub fn rows(&self, loss: &MarginLoss) -> RowInputs<'_> {
        self.rows_with(loss, self.margins.as_ref())
    }

    /// The same, with other margins.
    pub fn rows_with<'a>(&'a self, loss: &MarginLoss, margins: Option<&'a Tensor>) -> RowInputs<'a> {
        let rows = RowInputs::from(self.sample_weights.as_ref());
        match margins {
            Some(margins) if loss.takes_row_margins() => rows.margins(margins),
            _ => rows,
        }
    }

    /// Features of uneven norms, some near their own centre and some near another, some opposite, and labels of every kind of row.
    pub fn random(n: usize, c: usize, d: usize, ignore: bool, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut normal = |len: usize| -> Vec<f64> { (0..len).map(|_| StandardNormal.sample(&mut rng)).collect() };
        let mut x = normal(n * d);
        let mut w = normal(c * d);
        for row in w.chunks_mut(d) {
            let norm = rng.random_range(0.2..5.0);
            row.iter_mut().for_each(|v| *v *= norm);
        }
        let mut y = Vec::with_capacity(n);
        for row in x.chunks_mut(d) {
            let label = rng.random_range(0..c);
            // Outliers: near the own centre, opposite to it, near another's, or anywhere.
            let (centre, pull) = match rng.random_range(0..6) {
                0 => (label, 3.0),
                1 => (label, -2.0),
                2 => (rng.random_range(0..c), 3.0),
                3 => (label, 0.7),
                _ => (label, 0.0),
            };
            let norm: f64 = 10f64.powf(rng.random_range(-1.0..1.0));
            for (x, w) in row.iter_mut().zip(&w[centre * d..]) {
                *x = norm * (*x + pull * w);
            }
            y.push(if ignore && rng.random_bool(0.25) { IGNORE } else { label as i64 });
        }
        // Of the size of α that others train with, one of them 0, one beyond what helps.
        let margins: Vec<f64> = (0..2 * n)
            .map(|i| match i % 10 {
                0 => 0.0,
                2 => 2.5,
                _ => rng.random_range(-0.5..1.0),
            })
            .collect();
        let device = device();
        Ok(Self {
            margins: Some(Tensor::from_vec(margins, (n, 2), &device)?),
            x: Tensor::from_vec(x, (n, d), &device)?,
            w: Tensor::from_vec(w, (c, d), &device)?,
            y: Tensor::from_vec(y, n, &device)?,
            sample_weights: None,
        })
    }

    pub fn with_sample_weights(mut self, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let n = self.y.dims1()?;
        let weights: Vec<f64> =
            (0..n).map(|_| if rng.random_bool(0.2) { 0.0 } else { rng.random_range(0.1..3.0) }).collect();
        self.sample_weights = Some(Tensor::from_vec(weights, n, &device())?);
        Ok(self)
    }

    /// X and W rounded to a dtype.
    pub fn to(&self, dtype: DType) -> Result<Self> {
        Ok(Self { x: self.x.to_dtype(dtype)?, w: self.w.to_dtype(dtype)?, ..self.clone() })
    }

    pub fn on(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            x: self.x.to_device(device)?,
            w: self.w.to_device(device)?,
            y: self.y.to_device(device)?,
            sample_weights: self.sample_weights.as_ref().map(|weights| weights.to_device(device)).transpose()?,
            margins: self.margins.as_ref().map(|margins| margins.to_device(device)).transpose()?,
        })
    }

    pub fn dims(&self) -> (usize, usize, usize) {
        let (n, d) = self.x.dims2().unwrap();
        (n, self.w.dim(0).unwrap(), d)
    }
}

/// What a run gives, in f64.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// One element, or N
    pub loss: Vec<f64>,
    pub per_sample: Vec<f64>,
    pub predicted: Vec<u32>,
    pub hard: Vec<u8>,
    pub target_cosine: Vec<f64>,
    /// (N, D), and (C, D)
    pub dx: Vec<f64>,
    pub dw: Vec<f64>,
    /// (N, 2), or nothing where the loss takes no row margins
    pub d_margins: Vec<f64>,
}

pub fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

impl Outcome {
    pub fn new(output: &LossOutput, dx: &Tensor, dw: &Tensor, d_margins: Option<&Tensor>) -> Self {
        Self {
            loss: flat(&output.loss),
            per_sample: flat(&output.per_sample),
            predicted: output.predicted.to_vec1().unwrap(),
            hard: output.hard.to_vec1().unwrap(),
            target_cosine: flat(&output.target_cosine),
            dx: flat(dx),
            dw: flat(dw),
            d_margins: d_margins.map(flat).unwrap_or_default(),
        }
    }

    /// All its floating-point values by name.
    pub fn parts(&self) -> [(&'static str, &[f64]); 6] {
        [
            ("loss", &self.loss),
            ("per sample", &self.per_sample),
            ("target cosine", &self.target_cosine),
            ("dX", &self.dx),
            ("dW", &self.dw),
            ("d(α, β)", &self.d_margins),
        ]
    }
}

/// What upstream gradient a loss gets: 1, or a scalar or one a row.
pub fn upstream(output: &Tensor, values: Option<&[f64]>) -> Result<Tensor> {
    Ok(match values {
        None => output.sum_all()?,
        Some(values) => {
            let values = Tensor::new(values, output.device())?.to_dtype(output.dtype())?.reshape(output.shape())?;
            (output * values)?.sum_all()?
        }
    })
}

fn through_tape(
    loss: &MarginLoss,
    inputs: &Inputs,
    upstream_values: Option<&[f64]>,
    forward: impl Fn(&Tensor, &Tensor, RowInputs) -> candle_core::Result<LossOutput>,
) -> Result<Outcome> {
    let (x, w) = (Var::from_tensor(&inputs.x)?, Var::from_tensor(&inputs.w)?);
    let margins = match &inputs.margins {
        Some(margins) if loss.takes_row_margins() => Some(Var::from_tensor(margins)?),
        _ => None,
    };
    let output = forward(&x, &w, inputs.rows_with(loss, margins.as_deref()))?;
    let grads = upstream(&output.loss, upstream_values)?.backward()?;
    let dx = grads.get(&x).ok_or("no gradient for X")?;
    let dw = grads.get(&w).ok_or("no gradient for W")?;
    assert_eq!((dx.dtype(), dx.dims()), (x.dtype(), x.dims()), "dX has X's dtype and shape");
    assert_eq!((dw.dtype(), dw.dims()), (w.dtype(), w.dims()), "dW has W's dtype and shape");
    let d_margins = match &margins {
        None => None,
        Some(margins) => Some(grads.get(margins).ok_or("no gradient for the row margins")?),
    };
    Ok(Outcome::new(&output, dx, dw, d_margins))
}

/// The fused op through Candle's tape.
pub fn fused(loss: &MarginLoss, inputs: &Inputs, upstream: Option<&[f64]>) -> Result<Outcome> {
    through_tape(loss, inputs, upstream, |x, w, rows| loss.output(x, w, &inputs.y, rows))
}

/// The loss composed of Candle ops, through Candle's tape: on the CPU, whatever the inputs' device.
pub fn composed(loss: &MarginLoss, inputs: &Inputs, upstream: Option<&[f64]>) -> Result<Outcome> {
    composed_where_it_is(loss, &inputs.on(&Device::Cpu)?, upstream)
}

/// As [`composed`], on the inputs' device.
pub fn composed_where_it_is(loss: &MarginLoss, inputs: &Inputs, upstream: Option<&[f64]>) -> Result<Outcome> {
    through_tape(loss, inputs, upstream, |x, w, rows| reference::forward(loss, x, w, &inputs.y, rows))
}

/// The fused op off the tape.
pub fn off_tape(loss: &MarginLoss, inputs: &Inputs) -> Result<Outcome> {
    let (output, dx, dw) = loss.loss_and_grads(&inputs.x, &inputs.w, &inputs.y, inputs.rows(loss))?;
    Ok(Outcome::new(&output, &dx, &dw, output.margin_gradient.as_ref()))
}

/// The largest |a − b|, NaN-aware: NaN against a number is ∞.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |largest, (a, b)| {
        let distance = if a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() };
        if distance.is_nan() { f64::INFINITY } else { largest.max(distance) }
    })
}

/// The largest |a|, for relative errors.
pub fn size(a: &[f64]) -> f64 {
    a.iter().fold(0.0, |largest, a| largest.max(a.abs()))
}

/// Asserts that two runs in the same dtype agree to `tolerance`, relative to each part's largest value, and in predictions to the last one.
pub fn assert_close(label: &str, actual: &Outcome, expected: &Outcome, tolerance: f64) {
    for ((part, a), (_, b)) in actual.parts().into_iter().zip(expected.parts()) {
        let error = distance(a, b);
        let bound = tolerance * size(b).max(1e-3);
        assert!(error <= bound, "{label}: {part} differs by {error:e}, more than {bound:e}");
    }
    assert_eq!(actual.predicted, expected.predicted, "{label}: predicted");
    assert_eq!(actual.hard, expected.hard, "{label}: hard");
}
