//! Margins of rows that others train with ([`RowInputs::margins`](crate::RowInputs::margins)): AdaFace, MagFace, ElasticFace.
//!
//! Each gives (N, 2) margins for a batch, and the builder of a loss that they go with. Margins learnt by class need nothing of this:
//! `table.index_select(&labels, 0)?` of a variable (C, 2) is on the tape.

use candle_core::{DType, Result, Tensor};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Normal};

use crate::builder::MarginLossBuilder;
use crate::loss::MarginLoss;
use crate::margin::AngleRange;

/// The norms of rows, (N), in f32 at least.
fn norms(features: &Tensor) -> Result<Tensor> {
    let wide = if features.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    features.to_dtype(wide)?.sqr()?.sum(1)?.sqrt()
}

/// AdaFace (Kim, Jain, Liu, CVPR 2022): the norm of a row's features stands for the quality of its image, and hard images of low
/// quality get a smaller margin than easy ones.
///
/// With ẑ_i = h·(‖x_i‖ − μ)/(σ + 10⁻³) clipped to [−1, 1]: α_i = −m·ẑ_i, β_i = m + m·ẑ_i. μ and σ are running means, over batches, of the norms' mean
/// and standard deviation. The margins have no gradient. The authors' code also keeps every cosine 10⁻³ away from ±1; this does not.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use candle_margin_loss::RowInputs;
/// use candle_margin_loss::row_margins::AdaFace;
/// # fn main() -> candle_core::Result<()> {
/// # let device = Device::Cpu;
/// # let (x, w) = (Tensor::randn(0f32, 1., (4, 8), &device)?, Tensor::randn(0f32, 1., (3, 8), &device)?);
/// # let y = Tensor::new(&[0u32, 1, 2, 0], &device)?;
/// let mut ada_face = AdaFace::default();
/// let loss = AdaFace::builder(3).build()?;
/// let margins = ada_face.margins(&x)?; // once a step
/// let output = loss.output(&x, &w, &y, RowInputs::default().margins(&margins))?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct AdaFace {
    /// m
    pub margin: f64,
    /// h: what share of the norms is not clipped
    pub concentration: f64,
    /// The share of a batch in the running means
    pub momentum: f64,
    /// μ and σ, scalars, on the device of the features seen last
    running: Option<(Tensor, Tensor)>,
    initial: (f64, f64),
}

impl Default for AdaFace {
    /// The paper's: m = 0.4, h = 0.333, a momentum of 0.01, μ and σ from 20 and 100 on.
    fn default() -> Self {
        Self { margin: 0.4, concentration: 0.333, momentum: 0.01, running: None, initial: (20.0, 100.0) }
    }
}

impl AdaFace {
    /// The builder of its loss: scale 64, no margin by class, angles clamped to [10⁻³, π − 10⁻³].
    pub fn builder(classes: usize) -> MarginLossBuilder {
        MarginLoss::builder(classes).scale(64.0).row_margins(true).angle_range(AngleRange::Clamp)
    }

    /// The margins (N, 2) of a batch's features (N, D), after its norms have moved μ and σ: σ only by batches of two rows and more.
    ///
    /// # Errors
    /// Features that are no matrix of floats.
    pub fn margins(&mut self, features: &Tensor) -> Result<Tensor> {
        let norms = norms(&features.detach())?.clamp(1e-3, 100.0)?;
        let n = norms.dim(0)?;
        let (mut mean, mut deviation) = self.running_on(&norms)?;
        if n > 0 {
            let batch_mean = norms.mean(0)?;
            if n > 1 {
                let batch = (norms.broadcast_sub(&batch_mean)?.sqr()?.sum(0)? / (n - 1) as f64)?.sqrt()?;
                deviation = ((batch * self.momentum)? + (deviation * (1.0 - self.momentum))?)?;
            }
            mean = ((batch_mean * self.momentum)? + (mean * (1.0 - self.momentum))?)?;
        }
        let z = norms.broadcast_sub(&mean)?.broadcast_div(&(&deviation + 1e-3)?)?;
        let z = (z * self.concentration)?.clamp(-1.0, 1.0)?;
        self.running = Some((mean, deviation));
        Tensor::stack(&[(&z * -self.margin)?, ((z + 1.0)? * self.margin)?], 1)
    }

    /// μ and σ.
    ///
    /// # Errors
    /// A device that does not answer.
    pub fn statistics(&self) -> Result<(f64, f64)> {
        let Some((mean, deviation)) = &self.running else { return Ok(self.initial) };
        let number = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.to_scalar::<f64>();
        Ok((number(mean)?, number(deviation)?))
    }

    /// Goes on from a μ and σ: those of a checkpoint.
    pub fn set_statistics(&mut self, mean: f64, deviation: f64) {
        (self.running, self.initial) = (None, (mean, deviation));
    }

    /// μ and σ beside `norms`.
    fn running_on(&self, norms: &Tensor) -> Result<(Tensor, Tensor)> {
        let (device, dtype) = (norms.device(), norms.dtype());
        match &self.running {
            Some((mean, deviation)) => {
                let here = |tensor: &Tensor| tensor.to_device(device)?.to_dtype(dtype);
                Ok((here(mean)?, here(deviation)?))
            }
            None => {
                let here = |value: f64| Tensor::new(value, device)?.to_dtype(dtype);
                Ok((here(self.initial.0)?, here(self.initial.1)?))
            }
        }
    }
}

/// MagFace (Meng et al., CVPR 2021, with the linear margin of its experiments): the margin on the angle grows with the norm of the features, and
/// the loss shapes the norm through it.
///
/// With a_i = ‖x_i‖ clamped to [l_a, u_a]: α_i = (u_m − l_m)/(u_a − l_a)·(a_i − l_a) + l_m, β_i = 0; and the regulariser's g(a_i) = a_i/u_a² + 1/a_i.
/// Both are on the tape of the features; where the norm is clamped they have no gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MagFace {
    /// (l_a, u_a)
    pub norms: (f64, f64),
    /// (l_m, u_m), in radians
    pub margins: (f64, f64),
}

impl Default for MagFace {
    /// The paper's: norms of 10 to 110, margins of 0.45 to 0.8.
    fn default() -> Self {
        Self { norms: (10.0, 110.0), margins: (0.45, 0.8) }
    }
}

impl MagFace {
    /// The builder of its loss: scale 64, no margin by class, a line beyond π.
    pub fn builder(classes: usize) -> MarginLossBuilder {
        MarginLoss::builder(classes).scale(64.0).row_margins(true).angle_range(AngleRange::Linear)
    }

    /// The margins (N, 2) of features (N, D), on their tape.
    ///
    /// # Errors
    /// Features that are no matrix of floats.
    pub fn margins(&self, features: &Tensor) -> Result<Tensor> {
        let ((low, high), (least, most)) = (self.norms, self.margins);
        let alpha = (((self.clamped(features)? - low)? * ((most - least) / (high - low)))? + least)?;
        let beta = alpha.zeros_like()?;
        Tensor::stack(&[alpha, beta], 1)
    }

    /// The mean of g over the rows, a scalar, to be added to the loss with a factor λ_g (the paper takes 20 to 35); 0 for no row.
    ///
    /// # Errors
    /// Features that are no matrix of floats.
    pub fn regularizer(&self, features: &Tensor) -> Result<Tensor> {
        let norms = self.clamped(features)?;
        if norms.elem_count() == 0 {
            return Tensor::zeros((), norms.dtype(), norms.device());
        }
        ((&norms / (self.norms.1 * self.norms.1))? + norms.recip()?)?.mean(0)
    }

    fn clamped(&self, features: &Tensor) -> Result<Tensor> {
        norms(features)?.clamp(self.norms.0, self.norms.1)
    }
}

/// ElasticFace (Boutros et al., CVPRW 2022): margins drawn anew for every row from a normal distribution.
///
/// The draws are a function of the seed and of how many batches came before, whatever the device: [`ElasticFace::batch`] is all the state there is.
#[derive(Debug, Clone, PartialEq)]
pub struct ElasticFace {
    /// Whether the margin is on the angle (ElasticFace-Arc), or on the cosine (ElasticFace-Cos)
    pub on_angle: bool,
    /// Mean of the margins
    pub mean: f64,
    /// Their standard deviation
    pub deviation: f64,
    /// Whether the rows farthest from their centres get the largest margins (ElasticFace-Arc+, -Cos+). The authors' code gives row i the margin whose
    /// rank is the i-th entry of the order of the cosines, which is that order's inverse; this is the one that their paper describes.
    pub sorted: bool,
    /// Where the draws begin
    pub seed: u64,
    /// How many batches were drawn
    pub batch: u64,
}

impl ElasticFace {
    /// ElasticFace-Arc: margins on the angle of mean 0.5 and deviation 0.05, as the paper has them; sorted, Arc+ takes a deviation of 0.0175.
    pub fn arc(seed: u64) -> Self {
        Self { on_angle: true, mean: 0.5, deviation: 0.05, sorted: false, seed, batch: 0 }
    }

    /// ElasticFace-Cos: margins on the cosine of mean 0.35 and deviation 0.05, as the paper has them; sorted, Cos+ takes a deviation of 0.025.
    pub fn cos(seed: u64) -> Self {
        Self { on_angle: false, mean: 0.35, ..Self::arc(seed) }
    }

    /// The builder of its loss: scale 64, no margin by class.
    pub fn builder(classes: usize) -> MarginLossBuilder {
        MarginLoss::builder(classes).scale(64.0).row_margins(true)
    }

    /// The next batch's margins (N, 2) for features (N, D), centres (C, D) and labels (N), which only the sorted forms read. They are beside the features.
    ///
    /// A label that is no class, such as an ignore index, is ranked as if it were the first class.
    ///
    /// # Errors
    /// A mean or a deviation that is not finite, or a deviation below 0; tensors that do not fit.
    pub fn margins(&mut self, features: &Tensor, weight: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let n = features.dim(0)?;
        let normal = Normal::new(self.mean, self.deviation).map_err(candle_core::Error::wrap)?;
        // Streams of their own: consecutive seeds of one generator are unrelated.
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.batch));
        self.batch += 1;
        // Beyond what a row may have no draw of a sensible mean and deviation comes.
        let most = if self.on_angle { std::f64::consts::PI } else { 2.0 };
        let mut drawn: Vec<f64> = (0..n).map(|_| normal.sample(&mut rng).clamp(-most, most)).collect();
        if self.sorted {
            drawn.sort_by(f64::total_cmp);
            let cosines = target_cosines(features, weight, labels)?;
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| cosines[b].total_cmp(&cosines[a]));
            let sorted = std::mem::replace(&mut drawn, vec![0.0; n]);
            order.into_iter().zip(sorted).for_each(|(row, margin)| drawn[row] = margin);
        }
        let values: Vec<f32> = drawn
            .into_iter()
            .flat_map(|margin| if self.on_angle { [margin as f32, 0.0] } else { [0.0, margin as f32] })
            .collect();
        Tensor::from_vec(values, (n, 2), features.device())
    }
}

/// c_iy of every row, on the host.
fn target_cosines(features: &Tensor, weight: &Tensor, labels: &Tensor) -> Result<Vec<f64>> {
    let (x, w) = (features.detach(), weight.detach());
    let classes = w.dim(0)? as i64;
    let labels = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let rows: Vec<u32> =
        labels.iter().map(|&label| if (0..classes).contains(&label) { label as u32 } else { 0 }).collect();
    let own = w.index_select(&Tensor::from_vec(rows, labels.len(), w.device())?, 0)?;
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
    let (x, own) = (wide(&x)?, wide(&own)?);
    let lengths = (norms(&x)? * norms(&own)?)?.maximum(1e-24)?;
    ((x * own)?.sum(1)? / lengths)?.to_dtype(DType::F64)?.to_vec1::<f64>()
}
