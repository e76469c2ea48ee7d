//! [`MarginLoss`]: the loss, and its calls.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::builder::MarginLossBuilder;
use crate::composed::unit_rows;
use crate::counts::ClassCounts;
use crate::error::Result;
use crate::margin::{InstanceGate, Margin};
use crate::op::{self, Kept};
use crate::options::{ClassWeights, Params, Prior};
use crate::output::LossOutput;
use crate::problem::Problem;

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
    kept: Arc<Kept>,
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
        let problem = Problem::new(&self.params, features, weight, labels, sample_weights)?;
        Ok(op::forward(&problem, &self.kept)?)
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
        let problem = Problem::new(&self.params, features, weight, labels, sample_weights)?;
        Ok(op::loss_and_grads(&problem, &self.kept)?)
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
        let problem = Problem::new(&self.params, features, weight, labels, sample_weights)?;
        Ok(op::loss_and_grads_into(&problem, &self.kept, d_features, d_weight)?)
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
