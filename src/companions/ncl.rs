//! Nested collaborative learning.

use candle_core::{D, Tensor};
use candle_nn::ops::log_softmax;

use super::shared::{
    balanced_softmax, check_alike, check_classification, check_weight, column, error, matrix, row, unit,
};
use crate::composed::{margin_cosine, row_loss};
use crate::counts::ClassCounts;
use crate::error::Result;
use crate::loss::MarginLoss;
use crate::output::LossOutput;

const NAME: &str = "NCL";

/// The most classes that Candle's argsort takes on a CUDA device: a row's indices lie in 48 KiB of shared memory, padded to a power of two.
const CUDA_SORT_CLASSES: usize = 8192;

/// Nested collaborative learning (Li et al., *Nested Collaborative Learning for Long-Tailed Visual Recognition*, CVPR 2022).
///
/// Experts e = 1…E, each with features and centres of its own, learn the same labels y. With cosines c^e, the prior b and the margined target ψ:
///
/// - Individual learning: every expert has the classification loss over all classes, and a second one over its hard classes H_i alone.
/// - Hard category mining: H_i is the target and the k − 1 other classes of the largest raw cosine (no margin, no prior) of the **first** expert, one set
///   for all of them, as in the authors' code.
/// - Balanced online distillation: with p^e = softmax(s·c^e + b), the mean over ordered pairs of experts of KL(p^e ‖ p^f), and the same with the softmax over
///   H_i alone. No margin stands in it unless [`NclBuilder::margined_distillation`] asks for one, and gradients pass through both sides.
///
/// L = Σ_e (all classes + w·hard classes) + λ·distillation + λ_h·distillation over hard classes, with w = 1 and λ = λ_h = 0.6.
/// With E = 1 there is no distillation.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_margin_loss::ClassCounts;
/// use candle_margin_loss::companions::Ncl;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let ncl = Ncl::dbm(&ClassCounts::new(vec![500, 50, 5])?, 0.1)?;
/// let device = Device::Cpu;
/// let features = [Var::randn(0f32, 1., (4, 8), &device)?, Var::randn(0f32, 1., (4, 8), &device)?]; // (N, D) an expert
/// let weights = [Var::randn(0f32, 1., (3, 8), &device)?, Var::randn(0f32, 1., (3, 8), &device)?]; // (C, D) an expert
/// let labels = Tensor::new(&[0u32, 1, 2, 0], &device)?; // (N)
/// let experts = [(features[0].as_tensor(), weights[0].as_tensor()), (features[1].as_tensor(), weights[1].as_tensor())];
/// let grads = ncl.forward(&experts, &labels)?.backward()?;
/// assert!(grads.get(&features[1]).is_some());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Ncl {
    loss: MarginLoss,
    hard_classes: usize,
    hard_weight: f64,
    distillation_weight: f64,
    hard_distillation_weight: f64,
    margined_distillation: bool,
}

/// What a call of [`Ncl`] gives. The scalars are before their weights.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NclOutput {
    /// The sum of all, a scalar.
    pub loss: Tensor,
    /// The classification over all classes, one an expert.
    pub individual: Vec<LossOutput>,
    /// The classification over hard classes, summed over the experts, a scalar.
    pub hard: Tensor,
    /// The distillation over all classes, a scalar; 0 for one expert.
    pub distillation: Tensor,
    /// The distillation over hard classes, a scalar; 0 for one expert.
    pub hard_distillation: Tensor,
    /// The hard classes H_i, (N, k) `u32`, the target first. At ties the choice is the sort's.
    pub hard_classes: Tensor,
}

/// Sets the options of an [`Ncl`].
#[derive(Debug, Clone)]
pub struct NclBuilder(Ncl);

impl Ncl {
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

    /// With any classification loss that reduces by mean, weighs every class alike, ignores no row and smooths no label.
    pub fn builder(loss: MarginLoss) -> NclBuilder {
        let classes = loss.classes();
        NclBuilder(Self {
            loss,
            hard_classes: (classes * 3 / 10).max(2).min(classes),
            hard_weight: 1.0,
            distillation_weight: 0.6,
            hard_distillation_weight: 0.6,
            margined_distillation: false,
        })
    }

    /// The loss, a scalar: as [`Ncl::output`].
    ///
    /// # Errors
    /// As [`Ncl::output`].
    pub fn forward(&self, experts: &[(&Tensor, &Tensor)], labels: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.output(experts, labels)?.loss)
    }

    /// The loss and its terms.
    ///
    /// - `experts`: features (N, D) and weight (C, D) of each, as [`MarginLoss::output`] takes them; N and C are the same for all, D need not be.
    /// - `labels` y (N).
    ///
    /// # Errors
    /// No expert, no row; shapes, dtypes or devices that do not fit; a label that is no class; on a CUDA device more than 8192 classes.
    pub fn output(&self, experts: &[(&Tensor, &Tensor)], labels: &Tensor) -> candle_core::Result<NclOutput> {
        let Some(&(first, _)) = experts.first() else {
            return error(format!("{NAME}: at least one expert is needed"));
        };
        let (n, _) = matrix(NAME, "features", "(N, D)", first)?;
        let (classes, k) = (self.loss.classes(), self.hard_classes);
        for (features, _) in experts {
            check_alike(NAME, ("the first expert's features", first), &[("another expert's", features)])?;
        }
        if first.device().is_cuda() && classes > CUDA_SORT_CLASSES {
            return error(format!(
                "{NAME}: hard classes are mined among at most {CUDA_SORT_CLASSES} on a CUDA device, there are {classes}"
            ));
        }
        let params = &self.loss.params;
        let device = first.device();
        let individual = experts
            .iter()
            .map(|(features, weight)| self.loss.output(features, weight, labels, None))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let cosines = experts
            .iter()
            .map(|(features, weight)| Ok(unit(features)?.matmul(&unit(weight)?.t()?)?.clamp(-1.0, 1.0)?))
            .collect::<Result<Vec<_>>>()?; // E of (N, C)
        let dtype = cosines[0].dtype();
        let table = |values: &[f64]| Tensor::new(values, device)?.to_dtype(dtype); // (C)

        // Hard category mining. NaN goes last: Candle's sort wants an order.
        let raw = cosines[0].detach();
        let raw = raw.eq(&raw)?.where_cond(&raw, &(raw.zeros_like()? - 2.0)?)?;
        let is_target = column(labels)?.broadcast_eq(&row(&Tensor::arange(0i64, classes as i64, device)?)?)?; // (N, C)
        let raw = is_target.where_cond(&(raw.zeros_like()? + 2.0)?, &raw)?;
        let hard_classes = raw.contiguous()?.arg_sort_last_dim(false)?.narrow(1, 0, k)?.contiguous()?; // (N, k)
        let target = hard_classes.narrow(1, 0, 1)?.contiguous()?; // (N, 1): the labels, and no bad one
        let y = target.squeeze(1)?;

        let prior = table(&params.log_prior)?;
        let (angular, additive) =
            (table(&params.angular)?.index_select(&y, 0)?, table(&params.additive)?.index_select(&y, 0)?);
        let prior_y = prior.index_select(&y, 0)?; // (N)
        let mut hard = Tensor::zeros((), dtype, device)?;
        let (mut all_p, mut hard_p) = (Vec::new(), Vec::new());
        for (c, output) in cosines.iter().zip(&individual) {
            let z = (c * params.scale)?.broadcast_add(&prior)?; // (N, C)
            let z_hard = z.gather(&hard_classes, 1)?; // (N, k)
            let c_y = c.gather(&target, 1)?.squeeze(1)?; // (N)
            let psi = (margin_cosine(params, &c_y, &angular, None, &output.hard)? - &additive)?;
            let z_y = ((psi * params.scale)? + &prior_y)?.unsqueeze(1)?; // (N, 1)
            let margined = match k {
                1 => z_y,
                _ => Tensor::cat(&[&z_y, &z_hard.narrow(1, 1, k - 1)?], 1)?,
            };
            let nll = log_softmax(&margined, D::Minus1)?.narrow(1, 0, 1)?.neg()?; // (N, 1)
            hard = (hard + row_loss(params.row_loss, &nll)?.mean_all()?)?;
            let (z, z_hard) = match self.margined_distillation {
                false => (z, z_hard),
                true => (is_target.where_cond(&margined.narrow(1, 0, 1)?.broadcast_as((n, classes))?, &z)?, margined),
            };
            all_p.push(log_softmax(&z, D::Minus1)?);
            hard_p.push(log_softmax(&z_hard, D::Minus1)?);
        }
        let distillation = distill(&all_p, n)?;
        let hard_distillation = distill(&hard_p, n)?;

        let mut loss = (&hard * self.hard_weight)?;
        for output in &individual {
            loss = (loss + &output.loss)?;
        }
        loss = (loss + (&distillation * self.distillation_weight)?)?;
        loss = (loss + (&hard_distillation * self.hard_distillation_weight)?)?;
        Ok(NclOutput { loss, individual, hard, distillation, hard_distillation, hard_classes })
    }

    /// The classification loss.
    pub fn margin_loss(&self) -> &MarginLoss {
        &self.loss
    }

    /// k, how many hard classes a row has, its target among them.
    pub fn hard_classes(&self) -> usize {
        self.hard_classes
    }
}

/// The mean over ordered pairs of experts and over rows of KL(p^e ‖ p^f), from log p (N, ·). Both orders of a pair together are
/// Σ (p^e − p^f)·(log p^e − log p^f), where no probability is divided by.
fn distill(log_p: &[Tensor], n: usize) -> candle_core::Result<Tensor> {
    let mut sum = Tensor::zeros((), log_p[0].dtype(), log_p[0].device())?;
    let pairs = log_p.len() * (log_p.len() - 1);
    if pairs == 0 {
        return Ok(sum);
    }
    for (e, left) in log_p.iter().enumerate() {
        for right in &log_p[e + 1..] {
            sum = (sum + ((left.exp()? - right.exp()?)? * (left - right)?)?.sum_all()?)?;
        }
    }
    sum / (pairs * n) as f64
}

impl NclBuilder {
    /// k, how many hard classes a row has, its target among them, 1 ≤ k ≤ C. Default three tenths of C rounded down, and 2 at least (for C > 1).
    pub fn hard_classes(mut self, k: usize) -> Self {
        self.0.hard_classes = k;
        self
    }

    /// The weight w of the classification over hard classes, not negative. Default 1.
    pub fn hard_weight(mut self, weight: f64) -> Self {
        self.0.hard_weight = weight;
        self
    }

    /// The weights λ and λ_h of the distillation over all and over hard classes, not negative. Default 0.6 and 0.6.
    ///
    /// Candle takes a factor of 0 off the tape: what only a term of weight 0 depends on gets no gradient, not one of zeros.
    ///
    /// The authors' code divides the sum over ordered pairs by E − 1 where this crate takes their mean: 0.6·E is what it calls 0.6.
    pub fn distillation_weights(mut self, all: f64, hard: f64) -> Self {
        (self.0.distillation_weight, self.0.hard_distillation_weight) = (all, hard);
        self
    }

    /// Whether the experts' logits have the target's margin in the distillation, too, as in the DBM authors' code. Default false: the paper substitutes the
    /// classification loss alone.
    pub fn margined_distillation(mut self, margined: bool) -> Self {
        self.0.margined_distillation = margined;
        self
    }

    /// Checks the options.
    ///
    /// # Errors
    /// A value out of its range; a classification loss that does not reduce by mean, ignores rows, weighs classes or smooths labels.
    pub fn build(self) -> Result<Ncl> {
        let params = &self.0.loss.params;
        check_classification(NAME, &self.0.loss)?;
        if params.label_smoothing != 0.0 || params.weights.iter().any(|&weight| weight != 1.0) {
            return error(format!("{NAME}: the classification loss must have no class weights and no label smoothing"));
        }
        if !(1..=params.classes).contains(&self.0.hard_classes) {
            let k = self.0.hard_classes;
            return error(format!("{NAME}: k hard classes of {} were asked for, k is {k}", params.classes));
        }
        check_weight(NAME, "the hard classes", self.0.hard_weight)?;
        check_weight(NAME, "the distillation", self.0.distillation_weight)?;
        check_weight(NAME, "the hard classes' distillation", self.0.hard_distillation_weight)?;
        Ok(self.0)
    }
}
