//! Gaussian-mixture-likelihood learning.

use candle_core::{D, Tensor};
use candle_nn::ops::log_softmax;

use super::shared::{
    balanced_softmax, check_alike, check_classification, check_integers, check_labels, check_positive, check_weight,
    column, error, log_sum_exp_where, matrix, row, unit, wide,
};
use crate::counts::ClassCounts;
use crate::error::Result;
use crate::loss::MarginLoss;
use crate::output::LossOutput;

const NAME: &str = "GML";

/// Gaussian-mixture-likelihood learning with a teacher (Suh and Seo, *Long-Tailed Recognition by Mutual Information Maximization between Latent
/// Features and Ground-Truth Labels*, ICML 2023).
///
/// L = γ·classification + β·contrastive + α·distillation, all weights 1.
///
/// The contrastive term takes the likelihood of a unit query q_i given class j to be a mixture with one component at each unit key of that class,
/// log S_ij = log( 1/|K_j| Σ_{k ∈ K_j} exp(q_i·k / t) ) (for unit vectors the Gaussian density at variance t, but for a constant), and is cross-entropy with the class
/// prior b_j = log p_j: the mean over i of log Σ_j exp(log S_ij + b_j) − log S_{i y_i} − b_{y_i}. The prior is the classification loss's.
///
/// The keys are a queue that the caller keeps, each of its class; in the authors' code the teacher's features through a projection. A class without a key is
/// left out of the sum, and a query of such a class out of the mean; where no query is left the term is 0.
///
/// A temperature to be learnt ([`GmlBatch::learned_temperature`]) has a loss of its own, as in the authors' code: the term is then computed twice, once with the
/// temperature held fixed, and once with queries and keys held fixed and each query's own key left out; their sum counts.
///
/// The distillation, where the batch has a teacher's logits ([`GmlBatch::teacher`]), is T²·KL(teacher ‖ student) of softmax(logits / T) at T = 4, mean over
/// the rows, with the student's logits s·c: no margin, no prior.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_margin_loss::ClassCounts;
/// use candle_margin_loss::companions::{Gml, GmlBatch};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let gml = Gml::dbm(&ClassCounts::new(vec![500, 50, 5])?, 0.1)?;
/// let device = Device::Cpu;
/// let features = Var::randn(0f32, 1., (4, 8), &device)?; // (N, D)
/// let weight = Var::randn(0f32, 1., (3, 8), &device)?; // (C, D)
/// let labels = Tensor::new(&[0u32, 1, 2, 0], &device)?; // (N)
/// let queries = Var::randn(0f32, 1., (4, 6), &device)?; // (N, E)
/// let keys = Tensor::randn(0f32, 1., (5, 6), &device)?; // (M, E)
/// let key_labels = Tensor::new(&[0u32, 0, 1, 2, 2], &device)?; // (M)
/// let teacher_logits = Tensor::randn(0f32, 9., (4, 3), &device)?; // (N, C)
/// let batch = GmlBatch::new(&features, &weight, &labels, &queries, &keys, &key_labels).teacher(&teacher_logits);
/// let grads = gml.forward(&batch)?.backward()?;
/// assert!(grads.get(&queries).is_some() && grads.get(&weight).is_some());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Gml {
    loss: MarginLoss,
    temperature: f64,
    distillation_temperature: f64,
    classification_weight: f64,
    contrastive_weight: f64,
    distillation_weight: f64,
}

/// The tensors of one call of [`Gml`].
#[derive(Debug, Clone)]
pub struct GmlBatch<'a> {
    features: &'a Tensor,
    weight: &'a Tensor,
    labels: &'a Tensor,
    queries: &'a Tensor,
    keys: &'a Tensor,
    key_labels: &'a Tensor,
    log_temperature: Option<&'a Tensor>,
    ids: Option<(&'a Tensor, &'a Tensor)>,
    teacher_logits: Option<&'a Tensor>,
}

impl<'a> GmlBatch<'a> {
    /// - `features` X (N, D), `weight` W (C, D), `labels` y (N): as [`MarginLoss::output`].
    /// - `queries` (N, E), one a label; `keys` (M, E), tracked or not; both are normalised here. `key_labels` (M), `u32` or `i64`: a label that is no class
    ///   marks a slot of the queue without a key.
    pub fn new(
        features: &'a Tensor,
        weight: &'a Tensor,
        labels: &'a Tensor,
        queries: &'a Tensor,
        keys: &'a Tensor,
        key_labels: &'a Tensor,
    ) -> Self {
        let (log_temperature, ids, teacher_logits) = (None, None, None);
        Self { features, weight, labels, queries, keys, key_labels, log_temperature, ids, teacher_logits }
    }

    /// The temperature as e^`log_temperature`, one value of shape () or (1), instead of the loss's own: what trains it.
    ///
    /// `query_ids` (N) and `key_ids` (M), `u32` or `i64`, name the samples: for the temperature's loss a key is left out for the query of its id.
    pub fn learned_temperature(
        mut self,
        log_temperature: &'a Tensor,
        query_ids: &'a Tensor,
        key_ids: &'a Tensor,
    ) -> Self {
        self.log_temperature = Some(log_temperature);
        self.ids = Some((query_ids, key_ids));
        self
    }

    /// The teacher's logits (N, C), scaled as the student's are ([`MarginLoss::logits`]). They get no gradient.
    pub fn teacher(mut self, logits: &'a Tensor) -> Self {
        self.teacher_logits = Some(logits);
        self
    }
}

/// What a call of [`Gml`] gives. The terms are before their weights.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GmlOutput {
    /// The weighted sum, a scalar.
    pub loss: Tensor,
    /// The classification term.
    pub classification: LossOutput,
    /// The contrastive term, a scalar; with a learned temperature the sum of the two.
    pub contrastive: Tensor,
    /// The distillation term, a scalar, where there is a teacher.
    pub distillation: Option<Tensor>,
}

/// Sets the options of a [`Gml`].
#[derive(Debug, Clone)]
pub struct GmlBuilder(Gml);

impl Gml {
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

    /// With any classification loss that reduces by mean and ignores no row. Its prior is the contrastive term's as well.
    pub fn builder(loss: MarginLoss) -> GmlBuilder {
        GmlBuilder(Self {
            loss,
            temperature: 0.1,
            distillation_temperature: 4.0,
            classification_weight: 1.0,
            contrastive_weight: 1.0,
            distillation_weight: 1.0,
        })
    }

    /// The loss, a scalar: as [`Gml::output`].
    ///
    /// # Errors
    /// As [`Gml::output`].
    pub fn forward(&self, batch: &GmlBatch) -> candle_core::Result<Tensor> {
        Ok(self.output(batch)?.loss)
    }

    /// The loss and its terms.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit; no row or no key; a label of a row that is no class.
    pub fn output(&self, batch: &GmlBatch) -> candle_core::Result<GmlOutput> {
        check_alike(NAME, ("features", batch.features), &[("queries", batch.queries)])?;
        let classification = self.loss.output(batch.features, batch.weight, batch.labels, None)?;
        let contrastive = self.contrastive(batch)?;
        let mut loss =
            ((&classification.loss * self.classification_weight)? + (&contrastive * self.contrastive_weight)?)?;
        let distillation = match batch.teacher_logits {
            None => None,
            Some(teacher) => {
                let term = self.distillation(batch, teacher)?;
                loss = (loss + (&term * self.distillation_weight)?)?;
                Some(term)
            }
        };
        Ok(GmlOutput { loss, classification, contrastive, distillation })
    }

    /// The contrastive term alone, a scalar, without its weight.
    ///
    /// Labels are checked where they are on the CPU. On a CUDA device a query whose label is no class is left out.
    ///
    /// # Errors
    /// As [`Gml::output`].
    pub fn contrastive(&self, batch: &GmlBatch) -> candle_core::Result<Tensor> {
        let GmlBatch { queries, keys, labels, key_labels, .. } = *batch;
        let (n, dim) = matrix(NAME, "queries", "(N, E)", queries)?;
        let (m, key_dim) = matrix(NAME, "keys", "(M, E)", keys)?;
        if dim != key_dim {
            let (q, k) = (queries.dims(), keys.dims());
            return error(format!("{NAME}: queries {q:?} and keys {k:?} differ in E"));
        }
        check_integers(NAME, "labels", labels, n)?;
        check_integers(NAME, "key labels", key_labels, m)?;
        check_alike(NAME, ("queries", queries), &[("keys", keys), ("labels", labels), ("key labels", key_labels)])?;
        check_labels(labels, self.loss.classes())?;
        let similarity = unit(queries)?.matmul(&unit(keys)?.t()?)?; // (N, M)
        let Some(log_temperature) = batch.log_temperature else {
            return Ok(self.likelihood(&(similarity / self.temperature)?, labels, key_labels, None)?);
        };
        if log_temperature.elem_count() != 1 {
            let shape = log_temperature.dims();
            return error(format!("{NAME}: the log temperature must be one value, its shape is {shape:?}"));
        }
        check_alike(NAME, ("queries", queries), &[("the log temperature", log_temperature)])?;
        let inverse = log_temperature.to_dtype(similarity.dtype())?.reshape((1, 1))?.neg()?.exp()?; // (1, 1), 1/t
        let own = match batch.ids {
            None => None,
            Some((query_ids, key_ids)) => {
                check_integers(NAME, "query ids", query_ids, n)?;
                check_integers(NAME, "key ids", key_ids, m)?;
                check_alike(NAME, ("queries", queries), &[("query ids", query_ids), ("key ids", key_ids)])?;
                Some(column(query_ids)?.broadcast_eq(&row(key_ids)?)?) // (N, M) u8
            }
        };
        let of_features = similarity.broadcast_mul(&inverse.detach())?;
        let of_temperature = similarity.detach().broadcast_mul(&inverse)?;
        self.likelihood(&of_features, labels, key_labels, None)?
            + self.likelihood(&of_temperature, labels, key_labels, own.as_ref())?
    }

    /// Cross-entropy of the mixtures' likelihoods with the prior, from q·k/t (N, M), without the keys that `own` (N, M) marks.
    ///
    /// log Σ_j exp(log S_j + b_j) is one log-sum-exp over all keys of q·k/t + b_j − log|K_j| with j the key's class, and log S_y + b_y the same over the keys of class y: no
    /// (N, C) tensor, and nothing that a maximum over another class's keys could make vanish.
    fn likelihood(&self, a: &Tensor, labels: &Tensor, key_labels: &Tensor, own: Option<&Tensor>) -> Result<Tensor> {
        let (device, dtype, params) = (a.device(), a.dtype(), &self.loss.params);
        let (n, m) = a.dims2()?;
        let classes = Tensor::arange(0i64, params.classes as i64, device)?;
        let onehot = column(key_labels)?.broadcast_eq(&row(&classes)?)?.to_dtype(dtype)?; // (M, C), 0 in an empty slot
        let present = onehot.sum_keepdim(D::Minus1)?.t()?.broadcast_as((n, m))?; // (N, M)
        let keep = match own {
            None => present.contiguous()?,
            Some(own) => (present * (1.0 - own.to_dtype(dtype)?)?)?,
        }; // (N, M), 1 or 0
        // |K_j| as a row sees it, at each of its keys; 1 instead of 0 where no key is left to use it
        let size = keep.matmul(&onehot)?.matmul(&onehot.t()?)?.maximum(1.0)?; // (N, M)
        let prior = Tensor::new(params.log_prior.as_slice(), device)?.to_dtype(dtype)?.unsqueeze(1)?; // (C, 1)
        let prior = onehot.matmul(&prior)?.t()?; // (1, M)
        let a = (a.broadcast_add(&prior)? - size.log()?)?; // (N, M)
        let same = column(labels)?.broadcast_eq(&row(key_labels)?)?.to_dtype(dtype)?; // (N, M)
        let (every, _) = log_sum_exp_where(&a, &keep.gt(0.5)?)?; // (N)
        let (target, any) = log_sum_exp_where(&a, &(same * keep)?.gt(0.5)?)?; // (N)
        let ell = any.where_cond(&(every - target)?, &any.zeros_like()?.to_dtype(dtype)?)?; // (N)
        let rows = any.to_dtype(dtype)?.sum_all()?.maximum(1.0)?;
        Ok((ell.sum_all()? / rows)?)
    }

    /// T²·KL(teacher ‖ student), mean over the rows.
    fn distillation(&self, batch: &GmlBatch, teacher: &Tensor) -> candle_core::Result<Tensor> {
        let (n, classes) = matrix(NAME, "teacher logits", "(N, C)", teacher)?;
        if (n, classes) != (batch.features.dim(0)?, self.loss.classes()) {
            let wanted = (batch.features.dim(0)?, self.loss.classes());
            return error(format!(
                "{NAME}: teacher logits must be of shape (N, C) = {wanted:?}, the shape is {:?}",
                teacher.dims()
            ));
        }
        check_alike(NAME, ("features", batch.features), &[("teacher logits", teacher)])?;
        let dtype = wide(batch.features);
        let t = self.distillation_temperature;
        let cosines = unit(batch.features)?.matmul(&unit(batch.weight)?.t()?)?; // (N, C)
        let student = log_softmax(&(cosines * (self.loss.scale() / t))?, D::Minus1)?;
        let teacher = log_softmax(&(teacher.detach().to_dtype(dtype)? / t)?, D::Minus1)?;
        let divergence = (teacher.exp()? * (teacher - student)?)?.sum_all()?;
        divergence * (t * t / n as f64)
    }

    /// The classification loss.
    pub fn margin_loss(&self) -> &MarginLoss {
        &self.loss
    }
}

impl GmlBuilder {
    /// The temperature t > 0 of the contrastive term where the batch brings none to be learnt. Default 0.1, where the authors' code starts.
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.0.temperature = temperature;
        self
    }

    /// The temperature T > 0 of the distillation. Default 4.
    pub fn distillation_temperature(mut self, temperature: f64) -> Self {
        self.0.distillation_temperature = temperature;
        self
    }

    /// The weights γ, β and α of the classification, the contrastive and the distillation term, not negative. Default 1, 1 and 1.
    ///
    /// Candle takes a factor of 0 off the tape: what only a term of weight 0 depends on gets no gradient, not one of zeros.
    pub fn weights(mut self, classification: f64, contrastive: f64, distillation: f64) -> Self {
        self.0.classification_weight = classification;
        self.0.contrastive_weight = contrastive;
        self.0.distillation_weight = distillation;
        self
    }

    /// Checks the options.
    ///
    /// # Errors
    /// A value out of its range; a classification loss that ignores rows or does not reduce by mean.
    pub fn build(self) -> Result<Gml> {
        check_classification(NAME, &self.0.loss)?;
        check_positive(NAME, "the temperature", self.0.temperature)?;
        check_positive(NAME, "the distillation's temperature", self.0.distillation_temperature)?;
        check_weight(NAME, "the classification term", self.0.classification_weight)?;
        check_weight(NAME, "the contrastive term", self.0.contrastive_weight)?;
        check_weight(NAME, "the distillation term", self.0.distillation_weight)?;
        Ok(self.0)
    }
}
