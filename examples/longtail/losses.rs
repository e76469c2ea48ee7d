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

/// The numbers that a loss is trained with.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct LossSettings {
    /// Peak learning rate of AdamW
    pub lr: f64,
    /// s
    pub scale: f64,
    /// K, ArcFace's m or LDAM's max_m; 0 where there is none
    pub margin: f64,
    /// τ
    pub tau: f64,
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

    /// Learning rate, scale and margin that did best on a hundred other symbols than the default ones (`--search --seeds 101,102,103`).
    pub fn validated(self) -> (f64, f64, f64) {
        match self {
            Self::Ce => (1e-2, 1.0, 0.0),
            Self::CosineCe => (3e-3, 16.0, 0.0),
            Self::Arcface => (1e-2, 16.0, 0.1),
            Self::Ldam => (1e-2, 24.0, 0.35),
            Self::Bs => (1e-2, 8.0, 0.0),
            Self::LdamDrw => (3e-3, 32.0, 0.5),
            Self::DbmCe => (3e-3, 16.0, 0.5),
            Self::DbmDrw => (3e-3, 8.0, 0.5),
            Self::DbmBs => (1e-2, 8.0, 0.2),
        }
    }

    /// What papers take.
    pub fn usual_margin(self) -> f64 {
        match self {
            Self::Ce | Self::CosineCe | Self::Bs => 0.0,
            Self::Arcface | Self::DbmCe | Self::DbmDrw | Self::DbmBs => 0.1,
            Self::Ldam | Self::LdamDrw => 0.5,
        }
    }

    /// The margins that `--search` tries.
    pub fn margins(self) -> &'static [f64] {
        match self {
            Self::Ce | Self::CosineCe | Self::Bs => &[0.0],
            Self::Arcface => &[0.05, 0.1, 0.2, 0.4],
            Self::Ldam | Self::LdamDrw => &[0.1, 0.2, 0.35, 0.5],
            Self::DbmCe | Self::DbmDrw | Self::DbmBs => &[0.1, 0.2, 0.3, 0.5],
        }
    }

    /// The loss of each epoch; `None` for plain cross-entropy on a linear head.
    pub fn schedule(self, counts: &ClassCounts, settings: &LossSettings) -> Result<Option<LossSchedule>> {
        let LossSettings { scale, margin, tau, .. } = *settings;
        let cosine = || MarginLoss::builder(counts.classes()).counts(counts).scale(scale);
        let ldam = || cosine().margin(Margin::Ldam { max_m: margin });
        let dbm = || cosine().margin(Margin::Dbm { k: margin, tau }).instance_gate(InstanceGate::HardPositives);
        let balanced = Prior::BalancedSoftmax { tau: 1.0 };
        let deferred = |base| LossSchedule::drw(base, counts, settings.drw_epoch, settings.beta);
        let builder = match self {
            Self::Ce => return Ok(None),
            Self::CosineCe => cosine(),
            Self::Arcface => cosine().margin(Margin::ArcFace { m: margin }),
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
