//! What a loss can be told, and what that comes to: [`Params`], the tables and scalars that every path reads.

use crate::margin::MarginRule;

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

/// Tables by class and scalars, all in f64: what the paths read of a loss.
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
