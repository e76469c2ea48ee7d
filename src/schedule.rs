//! Losses that change with the epoch.

use crate::builder::MarginLossBuilder;
use crate::counts::ClassCounts;
use crate::error::{Error, Result};
use crate::loss::MarginLoss;
use crate::options::{ClassWeights, Reduction};

/// A sequence of losses, each from its epoch on: the value that a training loop asks for an epoch's loss.
///
/// ```
/// use candle_margin_loss::{ClassCounts, LossSchedule};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let counts = ClassCounts::new(vec![500, 50, 5])?;
/// let schedule = LossSchedule::dbm_drw(&counts, 0.1, 160, 0.9999)?;
/// let loss = schedule.at(159); // DBM-CE; from 160 on with class-balanced weights
/// # assert!(!std::ptr::eq(loss, schedule.at(160)));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct LossSchedule {
    /// (first epoch, loss), by rising epoch; the first is epoch 0's.
    stages: Vec<(usize, MarginLoss)>,
}

impl LossSchedule {
    /// The same loss in every epoch.
    pub fn constant(loss: MarginLoss) -> Self {
        Self { stages: vec![(0, loss)] }
    }

    /// Losses, each with the epoch (counted from 0) it starts at.
    ///
    /// # Errors
    /// No stage, a first stage that does not start at epoch 0, epochs that do not rise, or losses over different numbers of classes.
    pub fn new(stages: Vec<(usize, MarginLoss)>) -> Result<Self> {
        if stages.first().is_none_or(|(epoch, _)| *epoch != 0) {
            return Err(Error::Option("a schedule's first stage must start at epoch 0".into()));
        }
        if let Some(pair) = stages.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(Error::Option(format!(
                "a schedule's stages must start at rising epochs, {} comes after {}",
                pair[1].0, pair[0].0
            )));
        }
        if let Some(pair) = stages.windows(2).find(|pair| pair[0].1.classes() != pair[1].1.classes()) {
            return Err(Error::Option(format!(
                "a schedule's losses must be over the same classes, there are {} and {}",
                pair[0].1.classes(),
                pair[1].1.classes()
            )));
        }
        Ok(Self { stages })
    }

    /// Deferred re-weighting: `base` until epoch `start`, then `base` with class-balanced weights of `beta` that sum to C
    /// ([`ClassWeights::ClassBalancedNormalized`]) and the weighted mean ([`Reduction::WeightedMean`]): what the paper's numbers were made with, and what
    /// keeps the loss, and the learning rate's meaning, where they were. A `base` that reduces by [`Reduction::Sum`] or [`Reduction::None`] keeps that.
    ///
    /// # Errors
    /// What `base` cannot be built with, and `beta` outside 0 ≤ β < 1.
    pub fn drw(base: MarginLossBuilder, counts: &ClassCounts, start: usize, beta: f64) -> Result<Self> {
        let weights = ClassWeights::ClassBalancedNormalized { beta };
        let mean = |reduction| if reduction == Reduction::Mean { Reduction::WeightedMean } else { reduction };
        let reweighted = base.clone().counts(counts).class_weights(weights).map_reduction(mean);
        Self::deferred(base, reweighted, start)
    }

    /// Deferred re-weighting by the paper's formula as it is written (eqs. 3 and 10): weights (1 − β)/(1 − β^n_j), and the reduction of `base`.
    ///
    /// With the plain mean the loss and its gradients fall at `start` by the weights' size, for CIFAR-100-LT and β = 0.9999 to about a hundredth: unless the
    /// learning rate rises with it, training all but stops. [`LossSchedule::drw`] is what the paper's numbers were made with.
    ///
    /// # Errors
    /// As [`LossSchedule::drw`].
    pub fn drw_by_formula(base: MarginLossBuilder, counts: &ClassCounts, start: usize, beta: f64) -> Result<Self> {
        let reweighted = base.clone().counts(counts).class_weights(ClassWeights::ClassBalanced { beta });
        Self::deferred(base, reweighted, start)
    }

    /// DBM-DRW: DBM-CE until epoch `start` (160 of 200 in the paper), then with the weights of [`LossSchedule::drw`], of `beta` (0.9999).
    ///
    /// # Errors
    /// `k` outside 0 ≤ K ≤ π, or `beta` outside 0 ≤ β < 1.
    pub fn dbm_drw(counts: &ClassCounts, k: f64, start: usize, beta: f64) -> Result<Self> {
        Self::drw(MarginLoss::dbm(counts, k), counts, start, beta)
    }

    fn deferred(base: MarginLossBuilder, reweighted: MarginLossBuilder, start: usize) -> Result<Self> {
        let reweighted = reweighted.build()?;
        if start == 0 {
            return Ok(Self::constant(reweighted));
        }
        Self::new(vec![(0, base.build()?), (start, reweighted)])
    }

    /// The loss of an epoch, counted from 0.
    pub fn at(&self, epoch: usize) -> &MarginLoss {
        let stage = self.stages.partition_point(|(start, _)| *start <= epoch);
        &self.stages[stage - 1].1
    }
}
