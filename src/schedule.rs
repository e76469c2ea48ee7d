//! Losses that change with the epoch.

use crate::builder::MarginLossBuilder;
use crate::counts::ClassCounts;
use crate::error::{Error, Result};
use crate::loss::MarginLoss;
use crate::options::ClassWeights;

/// A sequence of losses, each from its epoch on: the value that a training loop asks for an epoch's loss.
///
/// ```
/// use candle_margin_loss::{ClassCounts, LossSchedule};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let counts = ClassCounts::new(vec![500, 50, 5])?;
/// let schedule = LossSchedule::dbm_drw(&counts, 0.1, 160, 0.9999)?;
/// let loss = schedule.at(159); // DBM-CE; at 160 and later DBM-CB
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

    /// Deferred re-weighting: `base` until epoch `start`, then `base` with class-balanced weights of `beta`.
    ///
    /// The weights are the paper's; pass [`ClassWeights::ClassBalancedNormalized`] in a second stage of [`LossSchedule::new`] for the authors' code's.
    ///
    /// # Errors
    /// What `base` cannot be built with, and `beta` outside 0 ≤ β < 1.
    pub fn drw(base: MarginLossBuilder, counts: &ClassCounts, start: usize, beta: f64) -> Result<Self> {
        let weights = ClassWeights::ClassBalanced { beta };
        let reweighted = base.clone().counts(counts).class_weights(weights).build()?;
        if start == 0 {
            return Ok(Self::constant(reweighted));
        }
        Self::new(vec![(0, base.build()?), (start, reweighted)])
    }

    /// DBM-DRW: DBM-CE until epoch `start` (160 of 200 in the paper), then DBM-CB of `beta` (0.9999).
    ///
    /// # Errors
    /// `k` outside 0 ≤ K ≤ π, or `beta` outside 0 ≤ β < 1.
    pub fn dbm_drw(counts: &ClassCounts, k: f64, start: usize, beta: f64) -> Result<Self> {
        Self::drw(MarginLoss::dbm(counts, k), counts, start, beta)
    }

    /// The loss of an epoch, counted from 0.
    pub fn at(&self, epoch: usize) -> &MarginLoss {
        let stage = self.stages.partition_point(|(start, _)| *start <= epoch);
        &self.stages[stage - 1].1
    }
}
