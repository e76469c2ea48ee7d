//! The methods of the paper's Table 2 that are one loss on one head, and the cosine heads without a margin of its Table 5, by their names on the
//! command line.

use candle_margin_loss::{
    ClassCounts, ClassWeights, InstanceGate, LossSchedule, Margin, MarginLoss, MarginLossBuilder, Prior, Result,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Softmax cross-entropy on a linear head
    Ce,
    /// CE, class-balanced weights from the DRW epoch on
    CeDrw,
    /// Cosine margins by class frequency, and DRW
    LdamDrw,
    /// Balanced softmax on a linear head
    Bs,
    /// Difficulty-aware balancing margin with cross-entropy
    DbmCe,
    /// DBM-CE and DRW
    DbmCeDrw,
    /// DBM with balanced softmax
    DbmBs,
    /// Softmax cross-entropy on a cosine head: no margin
    CosineCe,
    /// Balanced softmax on a cosine head: no margin
    CosineBs,
}

/// Which samples have DBM's instance margin: the rows of the paper's Table 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// None: the class margin alone
    Off,
    /// Every sample (P)
    Positives,
    /// Those nearest to another class's centre (HP)
    HardPositives,
}

/// The numbers of the losses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// s
    pub scale: f64,
    /// K
    pub k: f64,
    /// τ
    pub tau: f64,
    pub gate: Gate,
    /// LDAM's max_m
    pub ldam_margin: f64,
    /// β of the class-balanced weights
    pub beta: f64,
    /// First epoch with class-balanced weights
    pub drw_epoch: usize,
}

/// A method's head and loss.
pub enum Objective {
    /// W·x + b; cross-entropy of logits + `prior` (C), by class weights (C) from an epoch on
    Linear { prior: Option<Vec<f64>>, weights: Option<(usize, Vec<f64>)> },
    /// s·cos
    Cosine(LossSchedule),
}

impl Method {
    /// The rows of Table 2.
    pub const ALL: [Self; 7] =
        [Self::Ce, Self::CeDrw, Self::LdamDrw, Self::Bs, Self::DbmCe, Self::DbmCeDrw, Self::DbmBs];

    /// As the paper writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ce => "CE",
            Self::CeDrw => "CE-DRW",
            Self::LdamDrw => "LDAM-DRW",
            Self::Bs => "BS",
            Self::DbmCe => "DBM-CE",
            Self::DbmCeDrw => "DBM-CE-DRW",
            Self::DbmBs => "DBM-BS",
            Self::CosineCe => "cosine CE",
            Self::CosineBs => "cosine BS",
        }
    }

    pub fn objective(self, counts: &ClassCounts, numbers: &Numbers) -> Result<Objective> {
        let Numbers { scale, k, tau, gate, ldam_margin, beta, drw_epoch } = *numbers;
        let cosine = || MarginLoss::builder(counts.classes()).counts(counts).scale(scale);
        let gate = match gate {
            Gate::Off => InstanceGate::Off,
            Gate::Positives => InstanceGate::Positives,
            Gate::HardPositives => InstanceGate::HardPositives,
        };
        let dbm = || cosine().margin(Margin::Dbm { k, tau }).instance_gate(gate);
        let balanced_softmax = Prior::BalancedSoftmax { tau: 1.0 };
        // Weights that sum to C, as the authors' code has them: the learning rate means the same before and after.
        let balanced = ClassWeights::ClassBalancedNormalized { beta };
        let deferred = |base: MarginLossBuilder| -> Result<Objective> {
            let reweighted = base.clone().class_weights(balanced.clone()).build()?;
            Ok(Objective::Cosine(match drw_epoch {
                0 => LossSchedule::constant(reweighted),
                epoch => LossSchedule::new(vec![(0, base.build()?), (epoch, reweighted)])?,
            }))
        };
        Ok(match self {
            Self::Ce => Objective::Linear { prior: None, weights: None },
            Self::CeDrw => {
                let weights = counts.class_balanced_weights_normalized(beta)?;
                Objective::Linear { prior: None, weights: Some((drw_epoch, weights)) }
            }
            Self::Bs => Objective::Linear { prior: Some(counts.log_priors()), weights: None },
            Self::LdamDrw => deferred(cosine().margin(Margin::Ldam { max_m: ldam_margin }))?,
            Self::DbmCe => Objective::Cosine(LossSchedule::constant(dbm().build()?)),
            Self::DbmCeDrw => deferred(dbm())?,
            Self::DbmBs => Objective::Cosine(LossSchedule::constant(dbm().prior(balanced_softmax).build()?)),
            Self::CosineCe => Objective::Cosine(LossSchedule::constant(cosine().build()?)),
            Self::CosineBs => Objective::Cosine(LossSchedule::constant(cosine().prior(balanced_softmax).build()?)),
        })
    }
}
