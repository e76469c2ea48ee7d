//! Balanced contrastive learning.

use candle_core::{D, DType, Tensor};

use super::shared::{
    balanced_softmax, check_alike, check_classification, check_integers, check_labels, check_positive, check_weight,
    column, error, log_sum_exp_where, matrix, row, unit,
};
use crate::counts::ClassCounts;
use crate::error::Result;
use crate::loss::MarginLoss;
use crate::output::LossOutput;

const NAME: &str = "BCL";

/// Balanced contrastive learning (Zhu et al., *Balanced Contrastive Learning for Long-Tailed Visual Recognition*, CVPR 2022).
///
/// L = α·classification + β·contrastive, with α = 2 and β = 0.6 (as the DBM paper trains it). With unit vectors z_i, i = 1…2N, of two views
/// of the batch, unit centres c_j of all classes, temperature t and V = {z} ∪ {c}, the contrastive loss of anchor i is
///
/// ℓ_i = −1/|P_i| Σ_{p ∈ P_i} log( exp(z_i·p/t) / Σ_j 1/|V_j| Σ_{v ∈ V_j} exp(z_i·v/t) ),
///
/// V_j: what of V without z_i is of class j; P_i = V_{y_i}; the loss is the mean over the anchors. That the denominator takes each class's average is
/// class-averaging; that centres stand in for every class, also as positives, is class-complement. |V_j| counts what is summed, so that a class's
/// share is its average exactly, as in the authors' code.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_margin_loss::ClassCounts;
/// use candle_margin_loss::companions::Bcl;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bcl = Bcl::dbm(&ClassCounts::new(vec![500, 50, 5])?, 0.1)?;
/// let device = Device::Cpu;
/// let features = Var::randn(0f32, 1., (4, 8), &device)?; // (N, D), the view that is classified
/// let weight = Var::randn(0f32, 1., (3, 8), &device)?; // (C, D), the head
/// let embeddings = Var::randn(0f32, 1., (8, 6), &device)?; // (2N, E), two more views through a projection
/// let centres = Var::randn(0f32, 1., (3, 6), &device)?; // (C, E), the head's rows through another
/// let labels = Tensor::new(&[0u32, 1, 2, 0], &device)?; // (N)
/// let output = bcl.output(&features, &weight, &embeddings, &centres, &labels)?;
/// let grads = output.loss.backward()?;
/// assert!(grads.get(&embeddings).is_some() && grads.get(&weight).is_some());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Bcl {
    loss: MarginLoss,
    temperature: f64,
    classification_weight: f64,
    contrastive_weight: f64,
}

/// What a call of [`Bcl`] gives.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BclOutput {
    /// α·classification + β·contrastive, a scalar.
    pub loss: Tensor,
    /// The classification term, before its weight α.
    pub classification: LossOutput,
    /// The contrastive term, a scalar, before its weight β.
    pub contrastive: Tensor,
}

/// Sets the options of a [`Bcl`].
#[derive(Debug, Clone)]
pub struct BclBuilder(Bcl);

impl Bcl {
    /// With balanced softmax without a margin.
    ///
    /// # Errors
    /// None that counts of at least one class could cause.
    pub fn bs(counts: &ClassCounts) -> Result<Self> {
        Self::builder(balanced_softmax(counts)?).build()
    }

    /// With DBM-BS of margin scale K = `k`.
    ///
    /// # Errors
    /// As [`MarginLoss::dbm_bs`].
    pub fn dbm(counts: &ClassCounts, k: f64) -> Result<Self> {
        Self::builder(MarginLoss::dbm_bs(counts, k)?).build()
    }

    /// With any classification loss that reduces by mean and ignores no row.
    pub fn builder(loss: MarginLoss) -> BclBuilder {
        BclBuilder(Self { loss, temperature: 0.1, classification_weight: 2.0, contrastive_weight: 0.6 })
    }

    /// The loss, a scalar: as [`Bcl::output`].
    ///
    /// # Errors
    /// As [`Bcl::output`].
    pub fn forward(
        &self,
        features: &Tensor,
        weight: &Tensor,
        embeddings: &Tensor,
        centres: &Tensor,
        labels: &Tensor,
    ) -> candle_core::Result<Tensor> {
        Ok(self.output(features, weight, embeddings, centres, labels)?.loss)
    }

    /// The loss and its terms.
    ///
    /// - `features` X (N, D), `weight` W (C, D), `labels` y (N): as [`MarginLoss::output`].
    /// - `embeddings` (2N, E): row i and row N + i are two views of sample i. `centres` (C, E): one a class, in the authors' model the
    ///   head's weight through a projection of its own. Both are normalised here.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit; no row; a label that is no class.
    pub fn output(
        &self,
        features: &Tensor,
        weight: &Tensor,
        embeddings: &Tensor,
        centres: &Tensor,
        labels: &Tensor,
    ) -> candle_core::Result<BclOutput> {
        check_alike(NAME, ("features", features), &[("embeddings", embeddings)])?;
        let classification = self.loss.output(features, weight, labels, None)?;
        let contrastive = self.contrastive(embeddings, centres, labels)?;
        let loss = ((&classification.loss * self.classification_weight)? + (&contrastive * self.contrastive_weight)?)?;
        Ok(BclOutput { loss, classification, contrastive })
    }

    /// The contrastive term alone, a scalar, without its weight.
    ///
    /// Labels are checked where they are on the CPU. On a CUDA device a label that is no class indexes no memory: its sample is of a class of its own.
    ///
    /// # Errors
    /// As [`Bcl::output`].
    pub fn contrastive(&self, embeddings: &Tensor, centres: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, dim) = matrix(NAME, "embeddings", "(2N, E)", embeddings)?;
        let (classes, centre_dim) = matrix(NAME, "centres", "(C, E)", centres)?;
        if rows % 2 != 0 {
            return error(format!("{NAME}: embeddings (2N, E) are of two views, {rows} rows are not even"));
        }
        if dim != centre_dim {
            let (e, c) = (embeddings.dims(), centres.dims());
            return error(format!("{NAME}: embeddings {e:?} and centres {c:?} differ in E"));
        }
        if classes != self.loss.classes() {
            let wanted = self.loss.classes();
            return error(format!("{NAME}: centres have {classes} rows, the loss is over {wanted} classes"));
        }
        check_integers(NAME, "labels", labels, rows / 2)?;
        check_alike(NAME, ("embeddings", embeddings), &[("centres", centres), ("labels", labels)])?;
        check_labels(labels, classes)?;

        let device = embeddings.device();
        let (z, c) = (unit(embeddings)?, unit(centres)?);
        let dtype = z.dtype();
        let all = Tensor::cat(&[&z, &c], 0)?; // (M, E), M = 2N + C
        let m = rows + classes;
        let s = (z.matmul(&all.t()?)? / self.temperature)?; // (2N, M)
        let y = labels.to_dtype(DType::I64)?;
        let y = Tensor::cat(&[&y, &y, &Tensor::arange(0i64, classes as i64, device)?], 0)?; // (M)
        let same = column(&y.narrow(0, 0, rows)?)?.broadcast_eq(&row(&y)?)?.to_dtype(dtype)?; // (2N, M)
        let index = Tensor::arange(0i64, m as i64, device)?;
        let others = column(&index.narrow(0, 0, rows)?)?.broadcast_ne(&row(&index)?)?; // (2N, M) u8, all but the anchor

        // |V_j| of column v's class: embeddings and the centre, without the anchor in the anchor's own class.
        let of_class = (same.sum_keepdim(0)? + 1.0)?; // (1, M)
        let size = of_class.broadcast_sub(&same)?; // (2N, M)
        let (denominator, _) = log_sum_exp_where(&(&s - size.log()?)?, &others)?; // (2N)
        let positive = (same * others.to_dtype(dtype)?)?; // (2N, M)
        let attraction = ((s * &positive)?.sum(D::Minus1)? / positive.sum(D::Minus1)?)?; // (2N)
        (denominator - attraction)?.mean_all()
    }

    /// The classification loss.
    pub fn margin_loss(&self) -> &MarginLoss {
        &self.loss
    }
}

impl BclBuilder {
    /// The temperature t > 0 of the contrastive term. Default 0.1.
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.0.temperature = temperature;
        self
    }

    /// The weights α and β of the classification and the contrastive term, not negative. Default 2 and 0.6.
    ///
    /// Candle takes a factor of 0 off the tape: what only a term of weight 0 depends on gets no gradient, not one of zeros.
    pub fn weights(mut self, classification: f64, contrastive: f64) -> Self {
        (self.0.classification_weight, self.0.contrastive_weight) = (classification, contrastive);
        self
    }

    /// Checks the options.
    ///
    /// # Errors
    /// A value out of its range; a classification loss that ignores rows or does not reduce by mean.
    pub fn build(self) -> Result<Bcl> {
        check_classification(NAME, &self.0.loss)?;
        check_positive(NAME, "the temperature", self.0.temperature)?;
        check_weight(NAME, "the classification term", self.0.classification_weight)?;
        check_weight(NAME, "the contrastive term", self.0.contrastive_weight)?;
        Ok(self.0)
    }
}
