//! The losses that are compared, by their names on the command line and in the paper.

use candle_margin_loss::{ClassCounts, InstanceGate, LossSchedule, Margin, MarginLoss, Prior, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Loss {
    /// linear head, softmax cross-entropy
    Ce,
    /// cosine head, softmax cross-entropy
    CosineCe,
    /// constant angular margin
    Arcface,
    /// cosine margins by class frequency
    Ldam,
    /// balanced softmax, cosine head
    Bs,
    /// LDAM with deferred class-balanced weights
    LdamDrw,
    /// DBM margins with cross-entropy
    DbmCe,
    /// DBM-CE with deferred class-balanced weights
    DbmDrw,
    /// DBM margins with balanced softmax
    DbmBs,
}

/// The numbers that the losses have, from the command line.
#[derive(Debug, Clone, Copy)]
pub struct LossSettings {
    /// s
    pub scale: f64,
    /// K
    pub k: f64,
    /// τ
    pub tau: f64,
    pub arcface_margin: f64,
    /// LDAM's max_m
    pub ldam_margin: f64,
    /// β of the class-balanced weights
    pub beta: f64,
    /// First epoch with class-balanced weights.
    pub drw_epoch: usize,
}

impl Loss {
    pub const ALL: [Self; 9] = [
        Self::Ce,
        Self::CosineCe,
        Self::Arcface,
        Self::Ldam,
        Self::Bs,
        Self::LdamDrw,
        Self::DbmCe,
        Self::DbmDrw,
        Self::DbmBs,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ce => "CE",
            Self::CosineCe => "cosine CE",
            Self::Arcface => "ArcFace",
            Self::Ldam => "LDAM",
            Self::Bs => "BS",
            Self::LdamDrw => "LDAM-DRW",
            Self::DbmCe => "DBM-CE",
            Self::DbmDrw => "DBM-DRW",
            Self::DbmBs => "DBM-BS",
        }
    }

    /// The loss of each epoch; `None` for plain cross-entropy on a linear head.
    pub fn schedule(self, counts: &ClassCounts, settings: &LossSettings) -> Result<Option<LossSchedule>> {
        let LossSettings { scale, k, tau, arcface_margin, ldam_margin, .. } = *settings;
        let cosine = || MarginLoss::builder(counts.classes()).counts(counts).scale(scale);
        let ldam = || cosine().margin(Margin::Ldam { max_m: ldam_margin });
        let dbm = || cosine().margin(Margin::Dbm { k, tau }).instance_gate(InstanceGate::HardPositives);
        let balanced = Prior::BalancedSoftmax { tau: 1.0 };
        let deferred = |base| LossSchedule::drw(base, counts, settings.drw_epoch, settings.beta);
        let builder = match self {
            Self::Ce => return Ok(None),
            Self::CosineCe => cosine(),
            Self::Arcface => cosine().margin(Margin::ArcFace { m: arcface_margin }),
            Self::Ldam => ldam(),
            Self::Bs => cosine().prior(balanced),
            Self::DbmCe => dbm(),
            Self::DbmBs => dbm().prior(balanced),
            Self::LdamDrw => return deferred(ldam()).map(Some),
            Self::DbmDrw => return deferred(dbm()).map(Some),
        };
        Ok(Some(LossSchedule::constant(builder.build()?)))
    }
}
