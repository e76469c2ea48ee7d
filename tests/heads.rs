//! Heads that are not normalised, biases and class scales, against a naive loss in f64 written here, PyTorch's, central differences and Candle's own cross-entropy.
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::{
    ClassScales, ClassWeights, Margin, MarginLoss, MarginLossBuilder, Normalize, Path, Prior, Reduction, RowInputs,
    linear_cross_entropy, reference,
};
use common::{IGNORE, Result, counts, distance, flat, size};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// What a case is made of: the loss's builder takes it from here, and so does the naive loss.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    normalize: Normalize,
    scale: f64,
    /// B
    cosine: f64,
    scaled: bool,
    prior: bool,
    weighted: bool,
    smoothing: f64,
    bias: bool,
    reduction: Reduction,
}

const PLAIN: Case = Case {
    name: "linear",
    normalize: Normalize::None,
    scale: 1.0,
    cosine: 0.0,
    scaled: false,
    prior: false,
    weighted: false,
    smoothing: 0.0,
    bias: true,
    reduction: Reduction::Mean,
};

const CASES: [Case; 9] = [
    PLAIN,
    Case { name: "linear, no bias", bias: false, reduction: Reduction::Sum, ..PLAIN },
    Case { name: "linear, per row", reduction: Reduction::None, prior: true, ..PLAIN },
    Case {
        name: "linear, scales, prior, weights, smoothed",
        scaled: true,
        prior: true,
        weighted: true,
        smoothing: 0.1,
        ..PLAIN
    },
    Case {
        name: "linear, margin, scale, weighted mean",
        cosine: 0.3,
        scale: 2.0,
        weighted: true,
        reduction: Reduction::WeightedMean,
        ..PLAIN
    },
    Case { name: "W normalised", normalize: Normalize::Weight, bias: false, scale: 3.0, scaled: true, ..PLAIN },
    Case { name: "cosines, scales", normalize: Normalize::Both, bias: false, scale: 16.0, scaled: true, ..PLAIN },
    Case {
        name: "cosines, scales, CosFace, smoothed, per row",
        normalize: Normalize::Both,
        bias: false,
        scale: 64.0,
        cosine: 0.35,
        scaled: true,
        prior: true,
        smoothing: 0.2,
        reduction: Reduction::None,
        ..PLAIN
    },
    Case { name: "cosines, scale 200", normalize: Normalize::Both, bias: false, scale: 200.0, scaled: true, ..PLAIN },
];

impl Case {
    fn scales(&self, c: usize) -> Vec<f64> {
        (0..c).map(|j| if self.scaled { 0.4 + 0.3 * (j % 6) as f64 } else { 1.0 }).collect()
    }

    fn weights(&self, c: usize) -> Vec<f64> {
        (0..c).map(|j| if self.weighted { 0.3 + (j % 4) as f64 } else { 1.0 }).collect()
    }

    fn prior(&self, c: usize) -> Vec<f64> {
        if self.prior { counts(c).log_priors() } else { vec![0.0; c] }
    }

    fn builder(&self, c: usize) -> MarginLossBuilder {
        let mut builder = MarginLoss::builder(c)
            .normalize(self.normalize)
            .scale(self.scale)
            .label_smoothing(self.smoothing)
            .ignore_index(IGNORE)
            .reduction(self.reduction);
        if self.cosine != 0.0 {
            builder = builder.margin(Margin::CosFace { m: self.cosine });
        }
        if self.scaled {
            builder = builder.class_scales(ClassScales::PerClass(self.scales(c)));
        }
        if self.prior {
            builder = builder.prior(Prior::LogPrior(self.prior(c)));
        }
        if self.weighted {
            builder = builder.class_weights(ClassWeights::PerClass(self.weights(c)));
        }
        builder
    }
}

/// Inputs in f64, rounded to what a dtype holds.
struct Inputs {
    x: Tensor,
    w: Tensor,
    b: Tensor,
    y: Vec<i64>,
}

impl Inputs {
    /// `size` is that of the features; with `zeros` one of five of them is zero. Without, since a cosine's gradient there is in 10¹², beyond f16.
    fn random((n, c, d): (usize, usize, usize), size: f64, zeros: bool, dtype: DType, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut normal = |len: usize, size: f64| -> Vec<f64> {
            (0..len)
                .map(|_| {
                    let v: f64 = StandardNormal.sample(&mut rng);
                    v * size
                })
                .collect()
        };
        let (mut x, w, b) = (normal(n * d, size), normal(c * d, 1.0), normal(c, 2.0));
        if zeros {
            x.chunks_mut(d).step_by(5).skip(1).for_each(|row| row.fill(0.0));
        }
        let y = (0..n).map(|_| if rng.random_bool(0.2) { IGNORE } else { rng.random_range(0..c as i64) }).collect();
        let tensor = |values: Vec<f64>, shape: &[usize]| {
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F64)
        };
        Ok(Self { x: tensor(x, &[n, d])?, w: tensor(w, &[c, d])?, b: tensor(b, &[c])?, y })
    }
}

/// Losses (N), dX, dW, dB of Σ u·reduced loss.
struct Naive {
    loss: Vec<f64>,
    per_sample: Vec<f64>,
    gradients: [Vec<f64>; 3],
    predicted: Vec<u32>,
}

/// The definition, a row at a time: z = s·σ·(c − [j = y]·B) + b, ℓ = ω·Σ_j −t_j·ln p_j.
fn naive(case: &Case, inputs: &Inputs, upstream: &[f64]) -> Naive {
    let (n, d) = inputs.x.dims2().unwrap();
    let c = inputs.w.dim(0).unwrap();
    let (x, w) = (flat(&inputs.x), flat(&inputs.w));
    let b = if case.bias { flat(&inputs.b) } else { vec![0.0; c] };
    let (scales, weights, prior) = (case.scales(c), case.weights(c), case.prior(c));
    let norms = |rows: &[f64], normalized: bool| -> Vec<f64> {
        rows.chunks(d)
            .map(|row| if normalized { row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12) } else { 1.0 })
            .collect()
    };
    let (x_on, w_on) = (case.normalize == Normalize::Both, case.normalize != Normalize::None);
    let (x_norms, w_norms) = (norms(&x, x_on), norms(&w, w_on));
    let counted: Vec<usize> = (0..n).filter(|&i| inputs.y[i] != IGNORE).collect();
    let total: f64 = counted.iter().map(|&i| weights[inputs.y[i] as usize]).sum();
    let factor = match case.reduction {
        Reduction::None | Reduction::Sum => 1.0,
        Reduction::Mean => 1.0 / counted.len() as f64,
        Reduction::WeightedMean => 1.0 / total,
    };
    let mut out = Naive {
        loss: Vec::new(),
        per_sample: vec![0.0; n],
        gradients: [vec![0.0; n * d], vec![0.0; c * d], vec![0.0; c]],
        predicted: vec![u32::MAX; n],
    };
    for &i in &counted {
        let y = inputs.y[i] as usize;
        let cosines: Vec<f64> = (0..c)
            .map(|j| (0..d).map(|k| x[i * d + k] * w[j * d + k]).sum::<f64>() / (x_norms[i] * w_norms[j]) + b[j])
            .collect();
        let z: Vec<f64> = (0..c)
            .map(|j| case.scale * scales[j] * (cosines[j] - if j == y { case.cosine } else { 0.0 }) + prior[j])
            .collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let target = |j: usize| case.smoothing / c as f64 + if j == y { 1.0 - case.smoothing } else { 0.0 };
        out.per_sample[i] = weights[y] * (0..c).map(|j| target(j) * (lse - z[j])).sum::<f64>();
        let best = (0..c).fold(0, |best, j| if cosines[j] > cosines[best] { j } else { best });
        out.predicted[i] = best as u32;
        let up = if case.reduction == Reduction::None { upstream[i] } else { upstream[0] };
        for j in 0..c {
            // ∂L/∂c_ij
            let g = up * factor * weights[y] * case.scale * scales[j] * ((z[j] - lse).exp() - target(j));
            out.gradients[2][j] += g;
            for k in 0..d {
                let (x_hat, w_hat) = (x[i * d + k] / x_norms[i], w[j * d + k] / w_norms[j]);
                let x_off = if x_on && x_norms[i] > 1e-12 { cosines[j] * x_hat } else { 0.0 };
                let w_off = if w_on { cosines[j] * w_hat } else { 0.0 };
                out.gradients[0][i * d + k] += g * (w_hat - x_off) / x_norms[i];
                out.gradients[1][j * d + k] += g * (x_hat - w_off) / w_norms[j];
            }
        }
    }
    out.loss = match case.reduction {
        Reduction::None => out.per_sample.clone(),
        _ => vec![factor * out.per_sample.iter().sum::<f64>()],
    };
    out
}

/// A run on the tape, by the fused path or the composed one: the loss, dX, dW, dB and the predictions.
fn run(case: &Case, loss: &MarginLoss, inputs: &Inputs, dtype: DType, upstream: &[f64], fused: bool) -> Result<Naive> {
    let var = |tensor: &Tensor| Var::from_tensor(&tensor.to_dtype(dtype)?);
    let (x, w, b) = (var(&inputs.x)?, var(&inputs.w)?, var(&inputs.b)?);
    let y = Tensor::new(inputs.y.as_slice(), &Device::Cpu)?;
    let rows = || if case.bias { RowInputs::default().bias(&b) } else { RowInputs::default() };
    let output = match fused {
        true => loss.output(&x, &w, &y, rows())?,
        false => reference::forward(loss, &x, &w, &y, rows())?,
    };
    let count = output.loss.elem_count();
    let up = Tensor::new(&upstream[..count], &Device::Cpu)?.to_dtype(output.loss.dtype())?;
    let grads = (output.loss.flatten_all()? * up)?.sum_all()?.backward()?;
    let of = |var: &Var| grads.get(var).map_or_else(|| vec![0.0; var.elem_count()], flat);
    if case.bias {
        assert_eq!(grads.get(&b).ok_or("no gradient for the bias")?.dtype(), dtype);
    }
    let gradients = [of(&x), of(&w), if case.bias { of(&b) } else { Vec::new() }];
    Ok(Naive {
        loss: flat(&output.loss),
        per_sample: flat(&output.per_sample),
        gradients,
        predicted: output.predicted.to_vec1()?,
    })
}

fn assert_near(label: &str, actual: &Naive, expected: &Naive, tolerance: f64) {
    let near = |part: &str, a: &[f64], b: &[f64]| {
        let (error, bound) = (distance(a, b), tolerance * size(b).max(1e-3));
        assert!(error <= bound, "{label}: {part} differs by {error:e}, more than {bound:e}");
    };
    near("loss", &actual.loss, &expected.loss);
    near("per sample", &actual.per_sample, &expected.per_sample);
    for (part, (a, b)) in ["dX", "dW", "dB"].iter().zip(actual.gradients.iter().zip(&expected.gradients)) {
        if !a.is_empty() {
            near(part, a, b);
        }
    }
}

/// (N, C, D): one tile, edges of vectors, several lanes, one class, more rows than classes.
const SIZES: [(usize, usize, usize); 5] = [(9, 5, 3), (33, 130, 17), (5, 1, 4), (70, 600, 64), (700, 3, 8)];

#[test]
fn fused_and_composed_are_the_naive_loss() -> Result<()> {
    for (s, &(n, c, d)) in SIZES.iter().enumerate() {
        for (i, case) in CASES.iter().enumerate() {
            let upstream: Vec<f64> = (0..n).map(|i| 1.5 - 0.4 * (i % 7) as f64).collect();
            let loss = case.builder(c).build()?;
            let recomputed = case.builder(c).recompute_gradients(true).workspace_bytes(1 << 20).build()?;
            for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-4), (DType::F16, 4e-3), (DType::BF16, 2e-2)]
            {
                let label = format!("{} {n} {c} {d} {dtype:?}", case.name);
                let inputs =
                    Inputs::random((n, c, d), 1.0, case.normalize != Normalize::Both, dtype, (100 * s + i) as u64)?;
                let expected = naive(case, &inputs, &upstream);
                let actual = run(case, &loss, &inputs, dtype, &upstream, true)?;
                assert_near(&label, &actual, &expected, tolerance);
                assert_near(
                    &format!("{label}, recomputed"),
                    &run(case, &recomputed, &inputs, dtype, &upstream, true)?,
                    &expected,
                    tolerance,
                );
                if dtype == DType::F64 {
                    assert_eq!(actual.predicted, expected.predicted, "{label}");
                    assert_near(
                        &format!("{label}, composed"),
                        &run(case, &loss, &inputs, dtype, &upstream, false)?,
                        &expected,
                        1e-10,
                    );
                }
            }
        }
    }
    Ok(())
}

/// Logits of ±10⁴ and rows of zeros: p is 0 or 1 to the last digit, and nothing overflows.
#[test]
fn large_logits_are_finite_and_right() -> Result<()> {
    let (n, c, d) = (20, 40, 16);
    for case in CASES.iter().filter(|case| case.normalize != Normalize::Both) {
        for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 5e-3)] {
            let inputs = Inputs::random((n, c, d), 2500.0, true, dtype, 7)?;
            let expected = naive(case, &inputs, &vec![1.0; n]);
            assert!(size(&expected.per_sample) > 1e3);
            let actual = run(case, &case.builder(c).build()?, &inputs, dtype, &vec![1.0; n], true)?;
            assert_near(&format!("{} {dtype:?}", case.name), &actual, &expected, tolerance);
        }
    }
    Ok(())
}

/// The naive gradient is itself the derivative of the naive loss.
#[test]
fn naive_gradients_are_central_differences() -> Result<()> {
    for case in &CASES {
        let inputs = Inputs::random((6, 5, 4), 1.0, false, DType::F64, 3)?;
        let up = [1.5, 1.1, 0.7, 0.3, -0.1, -0.5];
        let analytic = naive(case, &inputs, &up);
        let value =
            |inputs: &Inputs| -> f64 { naive(case, inputs, &up).loss.iter().zip(up).map(|(loss, up)| loss * up).sum() };
        for (which, tensor) in [&inputs.x, &inputs.w, &inputs.b].into_iter().enumerate() {
            if which == 2 && !case.bias {
                continue;
            }
            let values = flat(tensor);
            for i in 0..values.len() {
                let at = |h: f64| -> Result<f64> {
                    let mut moved = values.clone();
                    moved[i] += h;
                    let moved = Tensor::from_vec(moved, tensor.dims(), &Device::Cpu)?;
                    let pick = |at: usize, own: &Tensor| if at == which { moved.clone() } else { own.clone() };
                    let (x, w, b) = (pick(0, &inputs.x), pick(1, &inputs.w), pick(2, &inputs.b));
                    Ok(value(&Inputs { x, w, b, y: inputs.y.clone() }))
                };
                let numeric = (8.0 * (at(1e-5)? - at(-1e-5)?) - (at(2e-5)? - at(-2e-5)?)) / 12e-5;
                let gradient = analytic.gradients[which][i];
                assert!(
                    (numeric - gradient).abs() <= 1e-6 * size(&analytic.gradients[which]).max(1e-2),
                    "{} {which} {i}: {numeric} {gradient}",
                    case.name
                );
            }
        }
    }
    Ok(())
}

#[test]
fn calls_off_the_tape_give_the_same_gradients() -> Result<()> {
    let inputs = Inputs::random((12, 7, 5), 1.0, true, DType::F32, 11)?;
    let upstream = [1.0; 12];
    let y = Tensor::new(inputs.y.as_slice(), &Device::Cpu)?;
    for case in CASES.iter().filter(|case| case.bias) {
        for path in [Path::Auto, Path::Composed] {
            let loss = case.builder(7).path(path).build()?;
            let expected = naive(case, &inputs, &upstream);
            let var = |tensor: &Tensor| Var::from_tensor(&tensor.to_dtype(DType::F32)?);
            let (x, w, b) = (var(&inputs.x)?, var(&inputs.w)?, var(&inputs.b)?);
            let rows = || RowInputs::default().bias(&b);
            let near = |part: &str, a: &Tensor, b: &[f64]| {
                assert!(distance(&flat(a), b) <= 2e-4 * size(b), "{} {path:?}: {part}", case.name);
            };
            let (output, dx, dw) = loss.loss_and_grads(&x, &w, &y, rows())?;
            near("dX", &dx, &expected.gradients[0]);
            near("dW", &dw, &expected.gradients[1]);
            near("dB", output.bias_gradient.as_ref().ok_or("no dB")?, &expected.gradients[2]);
            let (_, grads) = loss.backward(&x, &w, &y, rows())?;
            for (part, var, which) in [("X", &x, 0), ("W", &w, 1), ("B", &b, 2)] {
                near(part, grads.get(var).ok_or("no gradient")?, &expected.gradients[which]);
            }
            // The bias alone on the tape.
            let (x, w) = (x.detach(), w.detach());
            let value = loss.output(&x, &w, &y, rows())?.loss.sum_all()?;
            near("B alone", value.backward()?.get(&b).ok_or("no gradient")?, &expected.gradients[2]);
        }
    }
    Ok(())
}

#[test]
fn is_candles_cross_entropy_of_a_linear_head() -> Result<()> {
    let inputs = Inputs::random((40, 30, 12), 1.0, true, DType::F32, 5)?;
    let y: Vec<u32> = inputs.y.iter().map(|&y| y.max(0) as u32).collect();
    let y = Tensor::new(y, &Device::Cpu)?;
    let var = |tensor: &Tensor| Var::from_tensor(&tensor.to_dtype(DType::F32)?);
    let (x, w, b) = (var(&inputs.x)?, var(&inputs.w)?, var(&inputs.b)?);
    let usual = candle_nn::loss::cross_entropy(&x.matmul(&w.t()?)?.broadcast_add(&b)?, &y)?;
    let loss = linear_cross_entropy(&x, &w, Some(&b), &y)?;
    assert!((usual.to_scalar::<f32>()? - loss.to_scalar::<f32>()?).abs() < 1e-5);
    let (usual, grads) = (usual.backward()?, loss.backward()?);
    for var in [&x, &w, &b] {
        let (a, b) = (flat(grads.get(var).ok_or("no gradient")?), flat(usual.get(var).ok_or("no gradient")?));
        assert!(distance(&a, &b) <= 1e-6);
    }
    Ok(())
}

#[test]
fn what_means_nothing_is_refused() -> Result<()> {
    let new = || MarginLoss::builder(3).normalize(Normalize::None);
    let error = |builder: MarginLossBuilder| builder.build().unwrap_err().to_string();
    assert_eq!(
        error(new().margin(Margin::ArcFace { m: 0.5 })),
        "margin loss: a margin on the angle needs normalised features and centres, and ArcFace is set with Normalize::None"
    );
    assert!(error(new().row_margins(true)).contains("row margins is set"));
    let scales = |values: Vec<f64>| MarginLoss::builder(3).class_scales(ClassScales::PerClass(values));
    assert!(error(scales(vec![1.0, 0.0, 1.0])).contains("the class scale of class 1 must be in"));
    assert!(error(scales(vec![1.0, f64::NAN, 1.0])).contains("class 1"));
    assert!(error(scales(vec![1.0])).contains("1 values for 3 classes"));
    assert!(error(scales(vec![1.0, 1e6, 1.0]).scale(1e6)).contains("at most 1e9"));
    assert!(
        error(MarginLoss::builder(3).class_scales(ClassScales::Frequency { gamma: 0.2 }))
            .contains("needs class counts")
    );
    let (x, w) = (Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?, Tensor::zeros((3, 4), DType::F32, &Device::Cpu)?);
    let y = Tensor::new(&[0u32, 1], &Device::Cpu)?;
    let b = Tensor::zeros(2, DType::F32, &Device::Cpu)?;
    let call = |loss: &MarginLoss| loss.output(&x, &w, &y, RowInputs::default().bias(&b)).unwrap_err().to_string();
    assert!(call(&new().build()?).contains("the bias must be of shape (C) = (3), the shape is [2]"));
    assert!(call(&MarginLoss::builder(3).build()?).contains("a bias goes with Normalize::None"));
    Ok(())
}

/// A case of `tests/golden/heads.json`.
#[derive(serde::Deserialize)]
struct Golden {
    name: String,
    n: usize,
    c: usize,
    d: usize,
    normalize: String,
    scale: f64,
    margin: f64,
    smoothing: f64,
    reduction: String,
    x: Vec<f64>,
    w: Vec<f64>,
    y: Vec<i64>,
    bias: Option<Vec<f64>>,
    scales: Option<Vec<f64>>,
    prior: Option<Vec<f64>>,
    upstream: Vec<f64>,
    loss: Vec<f64>,
    predicted: Vec<u32>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    db: Option<Vec<f64>>,
}

#[derive(serde::Deserialize)]
struct Goldens {
    cases: Vec<Golden>,
}

#[test]
fn goldens_of_pytorch() -> Result<()> {
    let goldens: Goldens = serde_json::from_str(include_str!("golden/heads.json"))?;
    for golden in goldens.cases {
        let normalize = match golden.normalize.as_str() {
            "both" => Normalize::Both,
            "weight" => Normalize::Weight,
            _ => Normalize::None,
        };
        let reduction = match golden.reduction.as_str() {
            "none" => Reduction::None,
            "sum" => Reduction::Sum,
            _ => Reduction::Mean,
        };
        let mut builder = MarginLoss::builder(golden.c)
            .normalize(normalize)
            .scale(golden.scale)
            .label_smoothing(golden.smoothing)
            .reduction(reduction)
            .ignore_index(IGNORE);
        if golden.margin != 0.0 {
            builder = builder.margin(Margin::CosFace { m: golden.margin });
        }
        if let Some(scales) = golden.scales {
            builder = builder.class_scales(ClassScales::PerClass(scales));
        }
        if let Some(prior) = golden.prior {
            builder = builder.prior(Prior::LogPrior(prior));
        }
        let (n, c, d) = (golden.n, golden.c, golden.d);
        let inputs = Inputs {
            x: Tensor::from_vec(golden.x, (n, d), &Device::Cpu)?,
            w: Tensor::from_vec(golden.w, (c, d), &Device::Cpu)?,
            b: Tensor::from_vec(golden.bias.clone().unwrap_or(vec![0.0; c]), c, &Device::Cpu)?,
            y: golden.y,
        };
        let case = Case { bias: golden.bias.is_some(), ..PLAIN };
        let actual = run(&case, &builder.build()?, &inputs, DType::F64, &golden.upstream, true)?;
        let near = |part: &str, a: &[f64], b: &[f64]| {
            assert!(distance(a, b) <= 1e-11 * size(b).max(1e-3), "{}: {part}", golden.name);
        };
        near("loss", &actual.loss, &golden.loss);
        near("dX", &actual.gradients[0], &golden.dx);
        near("dW", &actual.gradients[1], &golden.dw);
        if let Some(db) = golden.db {
            near("dB", &actual.gradients[2], &db);
        }
        assert_eq!(actual.predicted, golden.predicted, "{}", golden.name);
    }
    Ok(())
}

/// The kernels do not have these parts: a CUDA device takes the composed loss, to the CPU's numbers, and says so where the fused one is asked for.
#[cfg(feature = "cuda")]
#[test]
fn a_cuda_device_composes_them() -> Result<()> {
    let (n, c, d) = (7, 5, 6);
    let mut rng = StdRng::seed_from_u64(9);
    let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| StandardNormal.sample(&mut rng)).collect() };
    let (x, w, b) = (normal(n * d), normal(c * d), normal(c));
    let y: Vec<u32> = (0..n as u32).map(|i| i % c as u32).collect();
    let mut found = Vec::new();
    for device in [Device::Cpu, Device::new_cuda(0)?] {
        let x = Var::from_tensor(&Tensor::from_vec(x.clone(), (n, d), &device)?)?;
        let w = Var::from_tensor(&Tensor::from_vec(w.clone(), (c, d), &device)?)?;
        let b = Var::from_tensor(&Tensor::from_vec(b.clone(), c, &device)?)?;
        let y = Tensor::new(y.as_slice(), &device)?;
        let loss = linear_cross_entropy(&x, &w, Some(&b), &y)?;
        let gradients = loss.backward()?;
        let mut values = vec![loss.to_scalar::<f32>()?];
        for var in [&x, &w, &b] {
            values.extend(gradients.get(var).expect("all are tracked").flatten_all()?.to_vec1::<f32>()?);
        }
        found.push(values);
        let scales = ClassScales::PerClass(vec![0.5, 1.0, 1.5, 2.0, 0.25]);
        let fused = MarginLoss::builder(c).class_scales(scales).path(Path::Fused).build()?;
        let error = fused.forward(&x, &w, &y).err().map(|error| error.to_string());
        assert_eq!(error.is_some(), device.is_cuda());
        assert!(error.is_none_or(|error| error.contains("no CUDA kernels yet")));
    }
    for (cpu, cuda) in found[0].iter().zip(&found[1]) {
        assert!((cpu - cuda).abs() < 1e-5, "{cpu} on the CPU, {cuda} on CUDA");
    }
    Ok(())
}
