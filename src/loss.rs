//! [`MarginLoss`]: the loss, and its calls.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use crate::builder::MarginLossBuilder;
use crate::composed::unit_rows;
use crate::counts::ClassCounts;
use crate::error::Result;
use crate::margin::{InstanceGate, Margin};
use crate::op::{self, Kept};
use crate::options::{ClassWeights, Normalize, Params, Prior};
use crate::output::LossOutput;
use crate::problem::{Problem, RowInputs, check_pair};

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
#[derive(Clone)]
pub struct MarginLoss {
    pub(crate) params: Arc<Params>,
    pub(crate) kept: Arc<Kept>,
}

/// The options, of a table by class its smallest and its largest value; nothing of what is kept between calls.
impl std::fmt::Debug for MarginLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_tuple("MarginLoss").field(&self.params).finish()
    }
}

impl MarginLossBuilder {
    /// Checks the options and makes the loss.
    ///
    /// # Errors
    /// A value that is out of its range or not finite; counts or tables of the wrong length, or missing; options that mean nothing together.
    pub fn build(self) -> Result<MarginLoss> {
        Ok(MarginLoss { params: Arc::new(self.params()?), kept: Arc::default() })
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

    /// Whether every row of a call brings margins of its own ([`RowInputs::margins`]).
    pub fn takes_row_margins(&self) -> bool {
        self.params.row_margins
    }

    /// The loss: a scalar, or (N) for [`Reduction::None`](crate::Reduction::None).
    ///
    /// - `features` X: (N, D), f16, bf16, f32 or f64, any strides. `weight` W: (C, D), of the same dtype, or f32 beside f16 or bf16 features.
    /// - `labels` y: (N), `u8`, `u32` or `i64`.
    ///
    /// Gradients reach X and W in their own dtypes.
    ///
    /// # Errors
    /// Row margins that the loss takes; shapes, dtypes or devices that do not fit; a label that is neither a class nor the ignore index.
    pub fn forward(&self, features: &Tensor, weight: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.output(features, weight, labels, RowInputs::default())?.loss)
    }

    /// The loss and what else the pass knows: per-sample loss, predicted class, hard flag, target cosine.
    ///
    /// `rows` is `None`, `Some(&sample_weights)`, or [`RowInputs`]: sample weights (N), row margins (N, 2).
    ///
    /// # Errors
    /// As [`MarginLoss::forward`], and inputs of rows that do not fit.
    pub fn output<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
    ) -> candle_core::Result<LossOutput> {
        let problem = Problem::new(&self.params, features, weight, labels, rows.into())?;
        Ok(op::forward(&problem, &self.kept)?)
    }

    /// The loss, ∂L/∂X (N, D) and ∂L/∂W (C, D) without Candle's tape: no zero-filled gradient, no addition, and X and W need not be tracked.
    ///
    /// For [`Reduction::None`](crate::Reduction::None) the gradients are those of the sum.
    ///
    /// # Errors
    /// As [`MarginLoss::output`].
    pub fn loss_and_grads<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
    ) -> candle_core::Result<(LossOutput, Tensor, Tensor)> {
        let problem = Problem::new(&self.params, features, weight, labels, rows.into())?;
        Ok(op::loss_and_grads(&problem, &self.kept)?)
    }

    /// The loss, and the gradients of everything that it is computed from: one call in place of `forward` and `backward`.
    ///
    /// A training loop hands the store to its optimizer. W's gradient is the pass's own, where Candle's tape would fill another one of its size with
    /// zeros and add; the backbone's come by Candle's tape from dX. Where W is used elsewhere in the graph of X as well, its gradients are added up. The
    /// loss that is given is off the tape. For [`Reduction::None`](crate::Reduction::None) the gradients are those of the sum.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_margin_loss::MarginLoss;
    /// use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vars = VarMap::new();
    /// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    /// let backbone = candle_nn::linear(6, 8, vb.pp("backbone"))?;
    /// let head = candle_nn::linear_no_bias(8, 3, vb.pp("head"))?;
    /// let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW::default())?;
    /// let margin = MarginLoss::arc_face(3, 30.0, 0.5)?;
    /// let (inputs, labels) = (Tensor::randn(0f32, 1., (4, 6), &Device::Cpu)?, Tensor::new(&[0u32, 1, 2, 0], &Device::Cpu)?);
    /// let features = backbone.forward(&inputs)?;
    /// let (output, grads) = margin.backward(&features, head.weight(), &labels, None)?;
    /// optimizer.step(&grads)?;
    /// # assert!(output.loss.to_scalar::<f32>()? > 0.0 && grads.get(backbone.weight()).is_some());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`MarginLoss::output`].
    pub fn backward<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
    ) -> candle_core::Result<(LossOutput, GradStore)> {
        self.backward_scaled(features, weight, labels, rows, 1.0)
    }

    /// As [`MarginLoss::backward`], with the gradients of `upstream`·loss: a loss scale for f16, or 1/k for one of k parts of a batch. They are
    /// multiplied before they are rounded. The loss that is given is not multiplied.
    ///
    /// # Errors
    /// As [`MarginLoss::output`], and an `upstream` that is not finite.
    pub fn backward_scaled<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
        upstream: f64,
    ) -> candle_core::Result<(LossOutput, GradStore)> {
        let problem = Problem::new(&self.params, features, weight, labels, rows.into())?.with_upstream(upstream)?;
        Ok(op::backward(&problem, &self.kept)?)
    }

    /// As [`MarginLoss::loss_and_grads`], writing the gradients over what `d_features` (N, D) and `d_weight` (C, D) held.
    ///
    /// A training loop that keeps these two tensors saves the allocation and page faults of a new C×D tensor a step. Both must be
    /// contiguous, of the shape and dtype of what they are the gradient of, and not be X or W themselves. They may be two places of one storage.
    ///
    /// # Errors
    /// As [`MarginLoss::output`], and gradient tensors that do not fit.
    pub fn loss_and_grads_into<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
        d_features: &Tensor,
        d_weight: &Tensor,
    ) -> candle_core::Result<LossOutput> {
        let problem = Problem::new(&self.params, features, weight, labels, rows.into())?;
        Ok(op::loss_and_grads_into(&problem, &self.kept, d_features, d_weight)?)
    }

    /// Waits for the calls so far, and is the error of the first that had a bad label or sample weight and has not said so: with
    /// [`LabelCheck::Later`](crate::LabelCheck::Later), at the end of an epoch or before a checkpoint. Otherwise there is none.
    ///
    /// # Errors
    /// A label that is no class, or a sample weight that is none, of an earlier call; the device's.
    pub fn check_calls(&self) -> Result<()> {
        self.kept.check_calls(&self.params)
    }

    /// The logits of evaluation, s·c (N, C): no margin, no prior, no class scales, no bias.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit.
    pub fn logits(&self, features: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        check_pair(&self.params, &(0..self.classes()), features, weight)?;
        let dtype = features.dtype();
        // Norms of half types are accumulated in f32.
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let unit = |rows: &Tensor, normalized: bool| match normalized {
            true => unit_rows(&rows.to_dtype(wide)?)?.to_dtype(dtype),
            false => rows.to_dtype(dtype),
        };
        let normalize = self.params.normalize;
        let x = unit(features, normalize == Normalize::Both)?;
        x.matmul(&unit(weight, normalize != Normalize::None)?.t()?)? * self.scale()
    }
}
