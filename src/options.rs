//! What a loss can be told, and what that comes to: [`Params`], the tables and scalars that every path reads.

use crate::margin::MarginRule;
use crate::row_loss::RowLoss;

/// What is added to every class's logit, for its frequency in training.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Prior {
    /// Nothing: softmax cross-entropy.
    None,
    /// `tau`·ln p_j (balanced softmax at 1, eqs. 4 and 11; logit adjustment). Needs class counts. A class without a sample is out, as by a
    /// [`Prior::LogPrior`] of −∞; with `tau` = 0 no class is.
    BalancedSoftmax {
        /// The prior's exponent, at least 0.
        tau: f64,
    },
    /// Values of one's own, one a class, added to the scaled cosines. −∞ takes a class out: it has no part in the sum, its centre no gradient, and a
    /// row with its label is an error; it can still be the predicted class, which raw cosines decide. So does a finite value 10¹⁸ or more below the
    /// largest, such as −10³⁰⁰.
    LogPrior(Vec<f64>),
}

/// Which rows are divided by their norms before their products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Normalize {
    /// X's and W's: c is a cosine, −1 to 1.
    #[default]
    Both,
    /// W's alone: c = x·ŵ, the feature's length along the centre's direction. No margin on the angle, and no row margins.
    Weight,
    /// None: c = x·w, of a linear head, or x·w + b where a call brings a bias ([`RowInputs::bias`](crate::RowInputs::bias)). No margin on the angle, and no
    /// row margins.
    None,
}

/// What a class's logit is multiplied by beside s: z = s·σ_j·c + b_j.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ClassScales {
    /// 1.
    None,
    /// (n_j / n_max)^γ: the multiplicative part 1/Δ_j of the vector-scaling loss (Kini et al., NeurIPS 2021) and of class-dependent temperatures
    /// (Ye et al., 2020). Needs class counts.
    Frequency {
        /// γ, 0 to 10. The vector-scaling loss's authors take 0.05 to 0.3.
        gamma: f64,
    },
    /// Values of one's own, one a class, 10⁻⁶ to 10⁶; s times the largest at most 10⁹.
    PerClass(Vec<f64>),
}

/// The weight of a row's loss, by its class.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ClassWeights {
    /// 1 for every class.
    None,
    /// (1 − β)/(1 − β^n_j), the paper's formula (eqs. 3 and 10). Needs class counts.
    ///
    /// The weights are small where the classes are large (at β = 0.9999 and 500 samples, 0.002), and a mean over the batch does not divide by them:
    /// taken up in the middle of a training, as [`LossSchedule::drw_by_formula`](crate::LossSchedule::drw_by_formula) does, they all but stop it.
    ClassBalanced {
        /// β, 0 ≤ β < 1. The paper uses 0.9999.
        beta: f64,
    },
    /// The same, rescaled to sum to C, as the authors' code does. Needs class counts.
    ClassBalancedNormalized {
        /// β, 0 ≤ β < 1. The paper uses 0.9999.
        beta: f64,
    },
    /// Weights of one's own, one a class, 0 or from 10⁻¹⁵ to 10⁹.
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
    /// Σ ℓ / Σ ω over rows not ignored: what PyTorch's weighted cross-entropy does without label smoothing. With it the two differ: here a row's
    /// weight is its label's, there each class's share of the smoothed target has the weight of that class.
    WeightedMean,
}

/// Which of a loss's implementations a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// The fused one, where the device has one: the CPU, and CUDA with the feature `cuda`, but for [`Normalize`] and [`ClassScales`]. Else the composed one.
    Auto,
    /// The fused one; an error on a device that has none of the loss.
    Fused,
    /// The loss composed of Candle's own ops ([`reference`](mod@crate::reference)), on every device: slower, and with (N, C) tensors.
    Composed,
}

/// When it is said that a label or a sample weight is none, where a CUDA device finds it. It never reaches memory: its row's loss is NaN, and so is every
/// gradient that the row reaches. On the CPU the call is the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LabelCheck {
    /// At once: the call waits for the device, and is the error.
    #[default]
    AtOnce,
    /// Later: no call waits. One of the next is the error instead of doing anything, as soon as the device has answered, or
    /// [`MarginLoss::check_calls`](crate::MarginLoss::check_calls) is, which waits. The labels of a call are held until then.
    Later,
    /// Never.
    Off,
}

impl From<bool> for LabelCheck {
    /// At once, or never.
    fn from(check: bool) -> Self {
        if check { Self::AtOnce } else { Self::Off }
    }
}

/// Default workspace of the CPU path: 64 MiB.
pub const DEFAULT_WORKSPACE_BYTES: usize = 64 << 20;

/// Default workspace of the CUDA path: 16 MiB.
pub const DEFAULT_CUDA_WORKSPACE_BYTES: usize = 16 << 20;

/// The largest scale and the largest weight: with them, and a prior no lower than [`OUT`], no product leaves single precision.
pub(crate) const LARGEST: f64 = 1e9;

/// The smallest weight that is not 0: the product of two of them is a number of single precision, and its inverse one.
pub(crate) const LEAST_WEIGHT: f64 = 1e-15;

/// The log prior of a class that is out: what e^z makes 0 of beside any other class, and finite, so that no (−∞) − (−∞) is formed where every
/// class but the target's is out.
pub(crate) const OUT: f64 = -1e18;

/// Tables by class and scalars, all in f64: what the paths read of a loss.
#[derive(Clone)]
pub(crate) struct Params {
    pub classes: usize,
    /// s
    pub scale: f64,
    pub normalize: Normalize,
    /// σ_j (C), where they are not all 1
    pub class_scales: Option<Vec<f64>>,
    pub rule: MarginRule,
    /// Whether every row brings margins of its own
    pub row_margins: bool,
    /// F
    pub row_loss: RowLoss,
    /// A_j, (C)
    pub angular: Vec<f64>,
    /// B_j, (C)
    pub additive: Vec<f64>,
    /// b_j shifted so that the largest is 0 (softmax does not see the shift), [`OUT`] at least, (C)
    pub log_prior: Vec<f64>,
    /// ω_j, (C)
    pub weights: Vec<f64>,
    pub reduction: Reduction,
    pub ignore_index: Option<i64>,
    /// α
    pub label_smoothing: f64,
    pub path: Path,
    /// Backward computes the gradients of a reduced loss, and not forward
    pub recompute_gradients: bool,
    /// None: the device's default
    pub workspace_bytes: Option<usize>,
    /// On a CUDA device: when the check of labels and sample weights is heard of
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub check_labels: LabelCheck,
    /// On a CUDA device: workspaces stay with the loss
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub keep_workspace: bool,
    /// On a CUDA device: never `fused_step`
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub streaming: bool,
}

impl Params {
    /// σ_j
    #[inline(always)]
    pub fn class_scale(&self, class: usize) -> f64 {
        self.class_scales.as_ref().map_or(1.0, |scales| scales[class])
    }

    /// The largest s·σ_j
    pub fn largest_scale(&self) -> f64 {
        self.scale * self.class_scales.as_ref().map_or(1.0, |scales| scales.iter().copied().fold(0.0, f64::max))
    }

    /// Whether logits are those of cosines times one scale: what CUDA's kernels, shards and the companion losses take.
    pub fn is_plain(&self) -> bool {
        self.normalize == Normalize::Both && self.class_scales.is_none()
    }

    /// Whether the prior takes a class out.
    pub fn is_out(&self, class: usize) -> bool {
        self.log_prior[class] <= OUT
    }
}

/// In a few lines whatever the number of classes: of a table, its smallest and its largest value.
impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let span = |table: &[f64]| {
            let least = table.iter().copied().fold(f64::INFINITY, f64::min);
            least..=table.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        };
        f.debug_struct("Params")
            .field("classes", &self.classes)
            .field("scale", &self.scale)
            .field("normalize", &self.normalize)
            .field("class_scales", &self.class_scales.as_deref().map(span))
            .field("rule", &self.rule)
            .field("row_margins", &self.row_margins)
            .field("row_loss", &self.row_loss)
            .field("angular", &span(&self.angular))
            .field("additive", &span(&self.additive))
            .field("log_prior", &span(&self.log_prior))
            .field("weights", &span(&self.weights))
            .field("reduction", &self.reduction)
            .field("ignore_index", &self.ignore_index)
            .field("label_smoothing", &self.label_smoothing)
            .field("workspace_bytes", &self.workspace_bytes)
            .finish_non_exhaustive()
    }
}
