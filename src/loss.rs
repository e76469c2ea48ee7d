//! [`MarginLoss`]: the loss, its builder, and what a call gives.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::counts::ClassCounts;
use crate::cpu::WorkspacePool;
use crate::error::{Error, Result};
use crate::margin::{AngleRange, InstanceGate, Margin, MarginRule, TargetGradient};
use crate::op;
use crate::problem::Problem;
use crate::reference::unit_rows;

/// What is added to every class's logit, for its frequency in training.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Prior {
    /// Nothing: softmax cross-entropy.
    None,
    /// `tau`·ln p_j (balanced softmax at 1, eqs. 4 and 11; logit adjustment). Needs class counts.
    BalancedSoftmax {
        /// The prior's exponent, at least 0.
        tau: f64,
    },
    /// Values of one's own, one a class, added to the scaled cosines.
    LogPrior(Vec<f64>),
}

/// The weight of a row's loss, by its class.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ClassWeights {
    /// 1 for every class.
    None,
    /// (1 − β)/(1 − β^n_j), the paper's formula (eqs. 3 and 10). Needs class counts.
    ClassBalanced {
        /// β, 0 ≤ β < 1. The paper uses 0.9999.
        beta: f64,
    },
    /// The same, rescaled to sum to C, as the authors' code does. Needs class counts.
    ClassBalancedNormalized {
        /// β, 0 ≤ β < 1. The paper uses 0.9999.
        beta: f64,
    },
    /// Weights of one's own, one a class, finite and not negative.
    PerClass(Vec<f64>),
}

/// How the rows' losses become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// They do not: (N), zero at ignored rows.
    None,
    /// Σ ℓ.
    Sum,
    /// Σ ℓ / number of rows not ignored.
    Mean,
    /// Σ ℓ / Σ ω over rows not ignored: what PyTorch's weighted cross-entropy does.
    WeightedMean,
}

/// Default workspace of the CPU path: 64 MiB.
pub const DEFAULT_WORKSPACE_BYTES: usize = 64 << 20;

/// Default workspace of the CUDA path: 16 MiB.
pub const DEFAULT_CUDA_WORKSPACE_BYTES: usize = 16 << 20;

/// Tables by class and scalars, all in f64: what the paths read of a [`MarginLoss`].
#[derive(Debug, Clone)]
pub(crate) struct Params {
    pub classes: usize,
    /// s
    pub scale: f64,
    pub rule: MarginRule,
    /// A_j, (C)
    pub angular: Vec<f64>,
    /// B_j, (C)
    pub additive: Vec<f64>,
    /// b_j shifted so that the largest is 0 (softmax does not see the shift), (C)
    pub log_prior: Vec<f64>,
    /// ω_j, (C)
    pub weights: Vec<f64>,
    pub reduction: Reduction,
    pub ignore_index: Option<i64>,
    /// α
    pub label_smoothing: f64,
    /// None: the device's default
    pub workspace_bytes: Option<usize>,
    /// On a CUDA device: wait for the check of labels and sample weights
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub check_labels: bool,
    /// On a CUDA device: never `fused_step`
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub streaming: bool,
}

/// A cosine-margin softmax loss over features X (N, D), class centres W (C, D) and labels y (N).
///
/// Built once (by [`MarginLoss::builder`] or a preset such as [`MarginLoss::dbm_bs`]), cheap to clone, and then called for
/// every batch. `docs/math.md` has the formula of every option.
///
/// The gradient of a scalar reduction is computed together with the loss whenever X or W is tracked by Candle; to evaluate the
/// loss alone, pass detached tensors.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_margin_loss::{ClassCounts, MarginLoss};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let counts = ClassCounts::new(vec![500, 50, 5])?;
/// let loss = MarginLoss::dbm_bs(&counts, 0.1)?;
/// let features = Var::randn(0f32, 1., (4, 8), &Device::Cpu)?; // (N, D)
/// let centres = Var::randn(0f32, 1., (3, 8), &Device::Cpu)?; // (C, D)
/// let labels = Tensor::new(&[0u32, 1, 2, 0], &Device::Cpu)?; // (N)
/// let value = loss.forward(&features, &centres, &labels)?;
/// let grads = value.backward()?;
/// assert!(grads.get(&centres).is_some());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct MarginLoss {
    pub(crate) params: Arc<Params>,
    pub(crate) pool: Arc<WorkspacePool>,
    #[cfg(feature = "cuda")]
    pub(crate) tables: Arc<crate::cuda::TablePool>,
}

/// What one call gives, all from the same pass.
#[derive(Debug, Clone)]
pub struct LossOutput {
    /// The reduced loss, a scalar, or (N) for [`Reduction::None`]. f32 for f16, bf16 and f32 features, f64 for f64.
    /// Differentiable where X or W is.
    pub loss: Tensor,
    /// ℓ_i with its weight, (N), of the loss's dtype; 0 at ignored rows. Not differentiable; [`Reduction::None`] is.
    pub per_sample: Tensor,
    /// argmax_j c_ij, the lowest index at a tie, (N) `u32`; [`IGNORED`] at ignored rows, unspecified where X has NaN.
    pub predicted: Tensor,
    /// 1 where the predicted class is not the label (eq. 9), (N) `u8`; 0 at ignored rows.
    pub hard: Tensor,
    /// c_iy, (N), of the loss's dtype; 0 at ignored rows.
    pub target_cosine: Tensor,
}

/// The predicted class of an ignored row in [`LossOutput::predicted`].
pub const IGNORED: u32 = u32::MAX;

impl LossOutput {
    /// The share of rows, ignored ones apart, whose predicted class is not the label; 0 for no row.
    pub fn hard_positive_rate(&self) -> candle_core::Result<f64> {
        let (hard, rows) = self.hard_and_rows()?;
        Ok(if rows == 0.0 { 0.0 } else { hard / rows })
    }

    /// The share of rows, ignored ones apart, whose predicted class is the label; 0 for no row.
    pub fn accuracy(&self) -> candle_core::Result<f64> {
        let (hard, rows) = self.hard_and_rows()?;
        Ok(if rows == 0.0 { 0.0 } else { 1.0 - hard / rows })
    }

    fn hard_and_rows(&self) -> candle_core::Result<(f64, f64)> {
        if self.hard.elem_count() == 0 {
            return Ok((0.0, 0.0)); // Candle's CUDA backend adds up no empty tensor
        }
        let hard = self.hard.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        let rows = self.predicted.ne(IGNORED)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        Ok((hard, rows))
    }
}

impl MarginLoss {
    /// A builder for `classes` classes: cosine softmax at scale 32, no margin, no prior, mean over the batch.
    pub fn builder(classes: usize) -> MarginLossBuilder {
        MarginLossBuilder::new(classes)
    }

    /// Cosine softmax cross-entropy: no margin, no prior, scale `scale`.
    ///
    /// # Errors
    /// No class, or a scale that is not positive and finite.
    pub fn cosine_ce(classes: usize, scale: f64) -> Result<Self> {
        Self::builder(classes).scale(scale).build()
    }

    /// ArcFace: additive angular margin `m` in radians, scale `scale`.
    ///
    /// # Errors
    /// A value out of its range.
    pub fn arc_face(classes: usize, scale: f64, m: f64) -> Result<Self> {
        Self::builder(classes).scale(scale).margin(Margin::ArcFace { m }).build()
    }

    /// CosFace: additive cosine margin `m`, scale `scale`.
    ///
    /// # Errors
    /// A value out of its range.
    pub fn cos_face(classes: usize, scale: f64, m: f64) -> Result<Self> {
        Self::builder(classes).scale(scale).margin(Margin::CosFace { m }).build()
    }

    /// LDAM at scale 30 with largest margin `max_m` (0.5 in its paper).
    ///
    /// # Errors
    /// A margin out of its range.
    pub fn ldam(counts: &ClassCounts, max_m: f64) -> Result<Self> {
        Self::builder(counts.classes()).scale(30.0).counts(counts).margin(Margin::Ldam { max_m }).build()
    }

    /// DBM-CE: the difficulty-aware balancing margin with softmax cross-entropy (eqs. 6 to 9), scale 32, τ = 1.
    ///
    /// # Errors
    /// `k` outside 0 ≤ K ≤ π.
    pub fn dbm_ce(counts: &ClassCounts, k: f64) -> Result<Self> {
        Self::dbm(counts, k).build()
    }

    /// DBM-CB: DBM-CE with class-balanced weights of `beta` (eq. 10).
    ///
    /// # Errors
    /// `k` outside 0 ≤ K ≤ π, or `beta` outside 0 ≤ β < 1.
    pub fn dbm_cb(counts: &ClassCounts, k: f64, beta: f64) -> Result<Self> {
        Self::dbm(counts, k).class_weights(ClassWeights::ClassBalanced { beta }).build()
    }

    /// DBM-BS: the difficulty-aware balancing margin with balanced softmax (eq. 11).
    ///
    /// # Errors
    /// `k` outside 0 ≤ K ≤ π.
    pub fn dbm_bs(counts: &ClassCounts, k: f64) -> Result<Self> {
        Self::dbm(counts, k).prior(Prior::BalancedSoftmax { tau: 1.0 }).build()
    }

    pub(crate) fn dbm(counts: &ClassCounts, k: f64) -> MarginLossBuilder {
        Self::builder(counts.classes())
            .counts(counts)
            .margin(Margin::Dbm { k, tau: 1.0 })
            .instance_gate(InstanceGate::HardPositives)
    }

    /// Number of classes C.
    pub fn classes(&self) -> usize {
        self.params.classes
    }

    /// The scale s.
    pub fn scale(&self) -> f64 {
        self.params.scale
    }

    /// The loss: a scalar, or (N) for [`Reduction::None`].
    ///
    /// - `features` X: (N, D), f16, bf16, f32 or f64, any strides. `weight` W: (C, D), of the same dtype, or f32 beside f16 or bf16 features.
    /// - `labels` y: (N), `u32` or `i64`.
    ///
    /// Gradients reach X and W in their own dtypes.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit; a label that is neither a class nor the ignore index.
    pub fn forward(&self, features: &Tensor, weight: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.output(features, weight, labels, None)?.loss)
    }

    /// The loss and what else the pass knows: per-sample loss, predicted class, hard flag, target cosine.
    ///
    /// `sample_weights`, if given, is (N), a float tensor, finite and not negative; it multiplies the class's weight ω_y and gets no gradient.
    ///
    /// # Errors
    /// As [`MarginLoss::forward`], and sample weights that do not fit.
    pub fn output(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        sample_weights: Option<&Tensor>,
    ) -> candle_core::Result<LossOutput> {
        let problem = Problem::new(self, features, weight, labels, sample_weights)?;
        Ok(op::forward(&problem)?)
    }

    /// The loss, ∂L/∂X (N, D) and ∂L/∂W (C, D) without Candle's tape: no zero-filled gradient, no addition, and X and W need not be tracked.
    ///
    /// For [`Reduction::None`] the gradients are those of the sum.
    ///
    /// # Errors
    /// As [`MarginLoss::output`].
    pub fn loss_and_grads(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        sample_weights: Option<&Tensor>,
    ) -> candle_core::Result<(LossOutput, Tensor, Tensor)> {
        let problem = Problem::new(self, features, weight, labels, sample_weights)?;
        Ok(op::loss_and_grads(&problem)?)
    }

    /// As [`MarginLoss::loss_and_grads`], writing the gradients over what `d_features` (N, D) and `d_weight` (C, D) held.
    ///
    /// A training loop that keeps these two tensors saves the allocation and page faults of a new C×D tensor a step. Both must be
    /// contiguous, of the shape and dtype of what they are the gradient of, and not be X or W themselves.
    ///
    /// # Errors
    /// As [`MarginLoss::output`], and gradient tensors that do not fit.
    pub fn loss_and_grads_into(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        sample_weights: Option<&Tensor>,
        d_features: &Tensor,
        d_weight: &Tensor,
    ) -> candle_core::Result<LossOutput> {
        let problem = Problem::new(self, features, weight, labels, sample_weights)?;
        Ok(op::loss_and_grads_into(&problem, d_features, d_weight)?)
    }

    /// The logits of evaluation, s·c (N, C): no margin, no prior.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit.
    pub fn logits(&self, features: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        let dtype = features.dtype();
        // Norms of half types are accumulated in f32.
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let unit = |rows: &Tensor| unit_rows(&rows.to_dtype(wide)?)?.to_dtype(dtype);
        unit(features)?.matmul(&unit(weight)?.t()?)? * self.scale()
    }
}

/// Sets a [`MarginLoss`]'s options; [`build`](MarginLossBuilder::build) checks that they make sense together.
#[derive(Debug, Clone)]
pub struct MarginLossBuilder {
    classes: usize,
    counts: Option<ClassCounts>,
    scale: f64,
    margin: Margin,
    gate: InstanceGate,
    instance_strength: Option<f64>,
    angle_range: Option<AngleRange>,
    gradient: TargetGradient,
    prior: Prior,
    weights: ClassWeights,
    reduction: Reduction,
    ignore_index: Option<i64>,
    label_smoothing: f64,
    workspace_bytes: Option<usize>,
    check_labels: bool,
    streaming: bool,
}

impl MarginLossBuilder {
    fn new(classes: usize) -> Self {
        Self {
            classes,
            counts: None,
            scale: 32.0,
            margin: Margin::None,
            gate: InstanceGate::Off,
            instance_strength: None,
            angle_range: None,
            gradient: TargetGradient::Exact,
            prior: Prior::None,
            weights: ClassWeights::None,
            reduction: Reduction::Mean,
            ignore_index: None,
            label_smoothing: 0.0,
            workspace_bytes: None,
            check_labels: true,
            streaming: false,
        }
    }

    /// The training samples per class, for the options that need them.
    pub fn counts(mut self, counts: &ClassCounts) -> Self {
        self.counts = Some(counts.clone());
        self
    }

    /// The scale s > 0 of the cosines. Default 32.
    pub fn scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// The margin family. Default [`Margin::None`].
    pub fn margin(mut self, margin: Margin) -> Self {
        self.margin = margin;
        self
    }

    /// Which samples get the instance margin; needs an angular margin. Default [`InstanceGate::Off`].
    pub fn instance_gate(mut self, gate: InstanceGate) -> Self {
        self.gate = gate;
        self
    }

    /// The strength λ ≥ 0 of the instance margin; needs an instance gate. Default 1.
    pub fn instance_strength(mut self, lambda: f64) -> Self {
        self.instance_strength = Some(lambda);
        self
    }

    /// What happens to angles beyond π; needs a margin on the angle. Default [`AngleRange::Monotone`] for SphereFace, else [`AngleRange::Wrap`].
    pub fn angle_range(mut self, angle_range: AngleRange) -> Self {
        self.angle_range = Some(angle_range);
        self
    }

    /// How the gradient passes through the margin. Default [`TargetGradient::Exact`].
    pub fn target_gradient(mut self, gradient: TargetGradient) -> Self {
        self.gradient = gradient;
        self
    }

    /// What is added to the logits for the classes' frequency. Default [`Prior::None`].
    pub fn prior(mut self, prior: Prior) -> Self {
        self.prior = prior;
        self
    }

    /// The weight of a row's loss by class. Default [`ClassWeights::None`].
    pub fn class_weights(mut self, weights: ClassWeights) -> Self {
        self.weights = weights;
        self
    }

    /// How the rows' losses become one. Default [`Reduction::Mean`].
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Rows with this label have no loss, no gradient and no part in any denominator. Default: none.
    pub fn ignore_index(mut self, index: i64) -> Self {
        self.ignore_index = Some(index);
        self
    }

    /// α of the target distribution (1 − α)·onehot + α/C, 0 ≤ α < 1. Default 0.
    pub fn label_smoothing(mut self, alpha: f64) -> Self {
        self.label_smoothing = alpha;
        self
    }

    /// The memory that a call may use beyond inputs, outputs, gradients and O(N + C), in bytes. Default [`DEFAULT_WORKSPACE_BYTES`] on the CPU
    /// and [`DEFAULT_CUDA_WORKSPACE_BYTES`] on a CUDA device.
    ///
    /// Less than 1 MiB is taken as 1 MiB; what one row of D features and one tile of classes need is taken in any case.
    pub fn workspace_bytes(mut self, bytes: usize) -> Self {
        self.workspace_bytes = Some(bytes);
        self
    }

    /// Whether a call on a CUDA device waits for the device to say that every label and sample weight is one, and gives an error where not.
    /// Default true.
    ///
    /// That is the one moment where a call waits for the device; without it a call can be captured into a CUDA graph. A label or sample weight that
    /// cannot be never reaches memory in either case: its row's loss is NaN, and so is every gradient it reaches. On the CPU the check is always on.
    pub fn check_labels(mut self, check: bool) -> Self {
        self.check_labels = check;
        self
    }

    /// Whether a CUDA device always takes the streaming kernels, of any size, and never the one launch that keeps the cosines on chip where they
    /// fit. Default false. Both give the same numbers to rounding; a device shared with other work may not want to be held by one launch.
    pub fn streaming(mut self, streaming: bool) -> Self {
        self.streaming = streaming;
        self
    }

    /// Checks the options and makes the loss.
    ///
    /// # Errors
    /// A value that is out of its range or not finite; counts or tables of the wrong length, or missing; options that mean nothing together.
    pub fn build(self) -> Result<MarginLoss> {
        let classes = self.classes;
        if classes == 0 {
            return Err(Error::Option("at least one class is needed, C is 0".into()));
        }
        if let Some(counts) = &self.counts
            && counts.classes() != classes
        {
            return Err(Error::Counts(format!("{} counts for {classes} classes", counts.classes())));
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Err(Error::Option(format!("the scale s must be positive and finite, it is {}", self.scale)));
        }
        let (m1, angular, additive) = self.margin_tables()?;
        let on_angle = m1 != 1.0 || !matches!(self.margin, Margin::None | Margin::CosFace { .. } | Margin::Ldam { .. });
        let margin = self.margin.name();
        if self.gate != InstanceGate::Off && !self.has_class_margin() {
            return Err(Error::Option(format!(
                "the instance gate scales an angular class margin, and {margin} has none"
            )));
        }
        if self.gate == InstanceGate::Off {
            if self.instance_strength.is_some() {
                return Err(Error::Option("an instance strength λ is set, but the instance gate is off".into()));
            }
            if self.gradient == TargetGradient::DetachDifficulty {
                return Err(Error::Option("the difficulty can only be detached where an instance gate is on".into()));
            }
        }
        if self.angle_range.is_some() && !on_angle {
            return Err(Error::Option(format!("an angle range is set, but {margin} does not change the angle")));
        }
        let instance_strength = self.instance_strength.unwrap_or(1.0);
        range("the instance strength λ", instance_strength, 0.0, f64::MAX)?;
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(Error::Option(format!(
                "the label smoothing α must be in 0 ≤ α < 1, it is {}",
                self.label_smoothing
            )));
        }
        let default_range = match self.margin {
            Margin::SphereFace { .. } => AngleRange::Monotone,
            _ => AngleRange::Wrap,
        };
        let rule = MarginRule {
            m1,
            gate: self.gate,
            instance_strength,
            angle_range: self.angle_range.unwrap_or(default_range),
            gradient: self.gradient,
        };
        let params = Params {
            classes,
            scale: self.scale,
            rule,
            angular,
            additive,
            log_prior: self.log_prior()?,
            weights: self.weight_table()?,
            reduction: self.reduction,
            ignore_index: self.ignore_index,
            label_smoothing: self.label_smoothing,
            workspace_bytes: self.workspace_bytes.map(|bytes| bytes.max(1 << 20)),
            check_labels: self.check_labels,
            streaming: self.streaming,
        };
        Ok(MarginLoss {
            params: Arc::new(params),
            pool: Arc::default(),
            #[cfg(feature = "cuda")]
            tables: Arc::default(),
        })
    }

    fn needed_counts(&self, what: &str) -> Result<&ClassCounts> {
        self.counts.as_ref().ok_or_else(|| Error::Option(format!("{what} needs class counts")))
    }

    fn has_class_margin(&self) -> bool {
        match &self.margin {
            Margin::None | Margin::SphereFace { .. } | Margin::CosFace { .. } | Margin::Ldam { .. } => false,
            Margin::ArcFace { .. } | Margin::Dbm { .. } => true,
            Margin::Combined { m2, .. } => *m2 != 0.0,
            Margin::PerClass { angular, .. } => angular.iter().any(|&a| a != 0.0),
        }
    }

    /// (m1, A, B)
    fn margin_tables(&self) -> Result<(f64, Vec<f64>, Vec<f64>)> {
        use std::f64::consts::PI;
        let all = |value: f64| vec![value; self.classes];
        let name = self.margin.name();
        let angle = |value: f64| range(&format!("{name}: the angular margin"), value, 0.0, PI);
        let cosine = |value: f64| range(&format!("{name}: the cosine margin"), value, 0.0, 2.0);
        let factor = |value: f64| range(&format!("{name}: the angle's factor"), value, 1.0, 1e3);
        Ok(match &self.margin {
            Margin::None => (1.0, all(0.0), all(0.0)),
            Margin::SphereFace { m } => (factor(*m)?, all(0.0), all(0.0)),
            Margin::CosFace { m } => (1.0, all(0.0), all(cosine(*m)?)),
            Margin::ArcFace { m } => (1.0, all(angle(*m)?), all(0.0)),
            Margin::Ldam { max_m } => (1.0, all(0.0), self.needed_counts("LDAM")?.ldam_margins(cosine(*max_m)?)),
            Margin::Dbm { k, tau } => {
                range("DBM: the frequency exponent τ", *tau, 0.0, f64::MAX)?;
                (
                    1.0,
                    self.needed_counts("DBM")?.dbm_margins(range("DBM: the margin scale K", *k, 0.0, PI)?, *tau),
                    all(0.0),
                )
            }
            Margin::Combined { m1, m2, m3 } => (factor(*m1)?, all(angle(*m2)?), all(cosine(*m3)?)),
            Margin::PerClass { m1, angular, cosine } => {
                self.table("the per-class angular margin", angular, -PI, PI)?;
                self.table("the per-class cosine margin", cosine, -2.0, 2.0)?;
                (factor(*m1)?, angular.clone(), cosine.clone())
            }
        })
    }

    fn log_prior(&self) -> Result<Vec<f64>> {
        let mut prior = match &self.prior {
            Prior::None => return Ok(vec![0.0; self.classes]),
            Prior::BalancedSoftmax { tau } => {
                let tau = range("the prior's exponent τ", *tau, 0.0, 1e6)?;
                let counts = self.needed_counts("balanced softmax")?;
                counts.log_priors().iter().map(|log_p| tau * log_p).collect()
            }
            Prior::LogPrior(values) => {
                self.table("the log prior", values, f64::MIN, f64::MAX)?;
                values.clone()
            }
        };
        let largest = prior.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        prior.iter_mut().for_each(|value| *value -= largest);
        Ok(prior)
    }

    fn weight_table(&self) -> Result<Vec<f64>> {
        match &self.weights {
            ClassWeights::None => Ok(vec![1.0; self.classes]),
            ClassWeights::ClassBalanced { beta } => {
                self.needed_counts("class-balanced weighting")?.class_balanced_weights(*beta)
            }
            ClassWeights::ClassBalancedNormalized { beta } => {
                self.needed_counts("class-balanced weighting")?.class_balanced_weights_normalized(*beta)
            }
            ClassWeights::PerClass(weights) => {
                self.table("the class weight", weights, 0.0, f64::MAX)?;
                Ok(weights.clone())
            }
        }
    }

    fn table(&self, what: &str, values: &[f64], low: f64, high: f64) -> Result<()> {
        if values.len() != self.classes {
            return Err(Error::Option(format!("{what}: {} values for {} classes", values.len(), self.classes)));
        }
        for (class, &value) in values.iter().enumerate() {
            range(&format!("{what} of class {class}"), value, low, high)?;
        }
        Ok(())
    }
}

/// `value`, if it is finite and in `low..=high`.
fn range(what: &str, value: f64, low: f64, high: f64) -> Result<f64> {
    if value.is_finite() && (low..=high).contains(&value) {
        return Ok(value);
    }
    let bounds = match (low == f64::MIN, high == f64::MAX) {
        (true, true) => "finite".to_string(),
        (false, true) => format!("finite and at least {low}"),
        _ => format!("in {low}..={high}"),
    };
    Err(Error::Option(format!("{what} must be {bounds}, it is {value}")))
}
