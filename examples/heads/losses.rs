//! The losses that are compared, and what of each is searched: all get the same search.

use candle_margin_loss::{ClassCounts, InstanceGate, LossSchedule, Margin, MarginLoss, Prior, Result, RowLoss};
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Family {
    /// W·x + b
    Linear,
    Cosine,
    CosFace,
    ArcFace,
    Ldam,
    /// DBM by which samples have the instance margin
    DbmOff,
    DbmPositives,
    DbmHardPositives,
    Focal,
}

/// The class-frequency part: nothing, log priors, or class-balanced weights in the last fifth of the epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Balance {
    None,
    Bs,
    Drw,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Loss {
    pub name: &'static str,
    pub family: Family,
    pub balance: Balance,
}

/// What is chosen on the validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Choice {
    pub lr: f64,
    /// s; a linear head has weight decay instead
    pub scale: f64,
    pub weight_decay: f64,
    /// K, m, max_m or γ; 0 where there is none
    pub margin: f64,
    pub tau: f64,
}

const fn loss(name: &'static str, family: Family, balance: Balance) -> Loss {
    Loss { name, family, balance }
}

/// The rows of Tables 2 and 5 that a head alone can show, and constant margins beside them.
pub const LOSSES: [Loss; 19] = [
    loss("CE, linear", Family::Linear, Balance::None),
    loss("CE", Family::Cosine, Balance::None),
    loss("focal", Family::Focal, Balance::None),
    loss("CosFace", Family::CosFace, Balance::None),
    loss("ArcFace", Family::ArcFace, Balance::None),
    loss("LDAM", Family::Ldam, Balance::None),
    loss("DBM-CE, m_C", Family::DbmOff, Balance::None),
    loss("DBM-CE, P", Family::DbmPositives, Balance::None),
    loss("DBM-CE", Family::DbmHardPositives, Balance::None),
    loss("CE-DRW, linear", Family::Linear, Balance::Drw),
    loss("CE-DRW", Family::Cosine, Balance::Drw),
    loss("LDAM-DRW", Family::Ldam, Balance::Drw),
    loss("DBM-DRW", Family::DbmHardPositives, Balance::Drw),
    loss("BS, linear", Family::Linear, Balance::Bs),
    loss("BS", Family::Cosine, Balance::Bs),
    loss("ArcFace-BS", Family::ArcFace, Balance::Bs),
    loss("DBM-BS, m_C", Family::DbmOff, Balance::Bs),
    loss("DBM-BS, P", Family::DbmPositives, Balance::Bs),
    loss("DBM-BS", Family::DbmHardPositives, Balance::Bs),
];

/// The learning rates: of W·x + b, and of centres whose length does not matter.
const LINEAR_RATES: [f64; 5] = [1.0, 3.0, 10.0, 30.0, 100.0];
const COSINE_RATES: [f64; 5] = [0.3, 1.0, 3.0, 10.0, 30.0];
const SCALES: [f64; 5] = [8.0, 12.0, 16.0, 24.0, 32.0];
const DECAYS: [f64; 5] = [0.0, 1e-6, 1e-5, 1e-4, 1e-3];

impl Loss {
    /// Where the search begins.
    pub fn start(self) -> Choice {
        let margin = self.margins()[0];
        match self.family {
            Family::Linear => Choice { lr: 10.0, scale: 1.0, weight_decay: 1e-5, margin, tau: 1.0 },
            _ => Choice { lr: 3.0, scale: 16.0, weight_decay: 0.0, margin, tau: 1.0 },
        }
    }

    pub fn rates(self, from: Choice) -> Vec<Choice> {
        let rates = if self.family == Family::Linear { LINEAR_RATES } else { COSINE_RATES };
        rates.map(|lr| Choice { lr, ..from }).to_vec()
    }

    /// Scales, or weight decays.
    pub fn scales(self, from: Choice) -> Vec<Choice> {
        match self.family {
            Family::Linear => DECAYS.map(|weight_decay| Choice { weight_decay, ..from }).to_vec(),
            _ => SCALES.map(|scale| Choice { scale, ..from }).to_vec(),
        }
    }

    pub fn by_margin(self, from: Choice) -> Vec<Choice> {
        self.margins().iter().map(|&margin| Choice { margin, ..from }).collect()
    }

    /// The first is where the search begins: what papers take.
    fn margins(self) -> &'static [f64] {
        match self.family {
            Family::Linear | Family::Cosine => &[0.0],
            Family::CosFace => &[0.1, 0.02, 0.05, 0.2, 0.35],
            Family::ArcFace => &[0.1, 0.02, 0.05, 0.2, 0.5],
            Family::Ldam => &[0.5, 0.05, 0.1, 0.2, 0.3],
            Family::DbmOff | Family::DbmPositives | Family::DbmHardPositives => &[0.1, 0.05, 0.2, 0.3, 0.5],
            Family::Focal => &[2.0, 0.5, 1.0, 1.5, 3.0],
        }
    }

    /// The loss of each epoch; None for a linear head.
    pub fn schedule(self, counts: &ClassCounts, choice: Choice, epochs: usize) -> Result<Option<LossSchedule>> {
        let base = MarginLoss::builder(counts.classes()).counts(counts).scale(choice.scale);
        let dbm = Margin::Dbm { k: choice.margin, tau: choice.tau };
        let m = choice.margin;
        let base = match self.family {
            Family::Linear => return Ok(None),
            Family::Cosine => base,
            Family::CosFace => base.margin(Margin::CosFace { m }),
            Family::ArcFace => base.margin(Margin::ArcFace { m }),
            Family::Ldam => base.margin(Margin::Ldam { max_m: m }),
            Family::DbmOff => base.margin(dbm).instance_gate(InstanceGate::Off),
            Family::DbmPositives => base.margin(dbm).instance_gate(InstanceGate::Positives),
            Family::DbmHardPositives => base.margin(dbm).instance_gate(InstanceGate::HardPositives),
            Family::Focal => base.row_loss(RowLoss::Focal { gamma: m }),
        };
        Ok(Some(match self.balance {
            Balance::None => LossSchedule::constant(base.build()?),
            Balance::Bs => LossSchedule::constant(base.prior(Prior::BalancedSoftmax { tau: 1.0 }).build()?),
            Balance::Drw => LossSchedule::drw(base, counts, drw_epoch(epochs), BETA)?,
        }))
    }
}

/// β of the class-balanced weights, as the paper has it.
pub const BETA: f64 = 0.9999;

pub fn drw_epoch(epochs: usize) -> usize {
    epochs - epochs.div_ceil(5)
}
