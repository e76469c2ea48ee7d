//! The losses that are compared, and what of each is searched: all get the same search.

use candle_margin_loss::{ClassCounts, InstanceGate, LossSchedule, Margin, MarginLoss, Prior, Result, RowLoss};
use serde::Serialize;

use crate::methods::{Gate, Method};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Family {
    /// W·x + b
    Linear,
    Cosine,
    CosFace,
    ArcFace,
    Ldam,
    /// By which samples have the instance margin
    Dbm(Gate),
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
    /// BCL, GML or NCL beside the loss
    pub companion: Option<Method>,
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
    Loss { name, family, balance, companion: None }
}

const DBM: Family = Family::Dbm(Gate::HardPositives);

/// The rows of the paper's Tables 2 and 5 that have no companion, and constant margins and the focal loss beside them.
pub const LOSSES: [Loss; 19] = [
    loss("CE, linear", Family::Linear, Balance::None),
    loss("CE", Family::Cosine, Balance::None),
    loss("focal", Family::Focal, Balance::None),
    loss("CosFace", Family::CosFace, Balance::None),
    loss("ArcFace", Family::ArcFace, Balance::None),
    loss("LDAM", Family::Ldam, Balance::None),
    loss("DBM-CE, m_C", Family::Dbm(Gate::Off), Balance::None),
    loss("DBM-CE, P", Family::Dbm(Gate::Positives), Balance::None),
    loss("DBM-CE", DBM, Balance::None),
    loss("CE-DRW, linear", Family::Linear, Balance::Drw),
    loss("CE-DRW", Family::Cosine, Balance::Drw),
    loss("LDAM-DRW", Family::Ldam, Balance::Drw),
    loss("DBM-DRW", DBM, Balance::Drw),
    loss("BS, linear", Family::Linear, Balance::Bs),
    loss("BS", Family::Cosine, Balance::Bs),
    loss("ArcFace-BS", Family::ArcFace, Balance::Bs),
    loss("DBM-BS, m_C", Family::Dbm(Gate::Off), Balance::Bs),
    loss("DBM-BS, P", Family::Dbm(Gate::Positives), Balance::Bs),
    loss("DBM-BS", DBM, Balance::Bs),
];

/// What the example `train` can train a whole network by, companions among it.
pub fn of_networks(companions: bool) -> Vec<Loss> {
    let mut all: Vec<Loss> = LOSSES.into_iter().filter(|loss| loss.method().is_some()).collect();
    if companions {
        let with = |name, family, method| Loss { name, family, balance: Balance::Bs, companion: Some(method) };
        all.extend([
            with("BCL", Family::Cosine, Method::Bcl),
            with("DBM-BCL", DBM, Method::DbmBcl),
            with("GML", Family::Cosine, Method::Gml),
            with("DBM-GML", DBM, Method::DbmGml),
            with("NCL", Family::Cosine, Method::Ncl),
            with("DBM-NCL", DBM, Method::DbmNcl),
        ]);
    }
    all
}

/// The values of an axis; the search begins with the first of each.
pub struct Axes {
    /// Learning rates: of W·x + b, and of centres, whose length does not matter
    pub linear_rates: &'static [f64],
    pub rates: &'static [f64],
    pub scales: &'static [f64],
    /// Weight decays of a linear head; the first is that of other heads too
    pub decays: &'static [f64],
}

pub const HEADS: Axes = Axes {
    linear_rates: &[30.0, 3.0, 10.0, 100.0, 300.0],
    rates: &[10.0, 1.0, 3.0, 30.0, 100.0],
    scales: &[16.0, 8.0, 12.0, 24.0, 32.0],
    decays: &[0.0, 1e-6, 1e-5, 1e-4, 1e-3],
};

pub const NETWORKS: Axes = Axes {
    linear_rates: &[0.03, 0.01, 0.1],
    rates: &[0.03, 0.01, 0.1],
    scales: &[16.0, 8.0, 32.0],
    decays: &[2e-4, 5e-4, 2e-3],
};

impl Loss {
    /// The choices along an axis from the best so far: 0 learning rate, 1 scale or weight decay, 2 margin.
    pub fn along(self, axis: usize, axes: &Axes, best: Option<Choice>) -> Vec<Choice> {
        let linear = self.family == Family::Linear;
        let rates = if linear { axes.linear_rates } else { axes.rates };
        let scale = if linear { 1.0 } else { axes.scales[0] };
        let start = Choice { lr: rates[0], scale, weight_decay: axes.decays[0], margin: self.margins()[0], tau: 1.0 };
        let from = best.unwrap_or(start);
        let each = |values: &[f64], set: fn(&mut Choice, f64)| {
            let with = |&value: &f64| {
                let mut choice = from;
                set(&mut choice, value);
                choice
            };
            values.iter().map(with).collect()
        };
        match axis {
            0 => each(rates, |choice, lr| choice.lr = lr),
            1 if linear => each(axes.decays, |choice, decay| choice.weight_decay = decay),
            1 => each(axes.scales, |choice, scale| choice.scale = scale),
            _ => each(self.margins(), |choice, margin| choice.margin = margin),
        }
    }

    /// The first is what papers take.
    fn margins(self) -> &'static [f64] {
        match self.family {
            Family::Linear | Family::Cosine => &[0.0],
            Family::CosFace => &[0.1, 0.02, 0.05, 0.2, 0.35],
            Family::ArcFace => &[0.1, 0.02, 0.05, 0.2, 0.5],
            Family::Ldam => &[0.5, 0.05, 0.1, 0.2, 0.3],
            Family::Dbm(_) => &[0.1, 0.05, 0.2, 0.3, 0.5],
            Family::Focal => &[2.0, 0.5, 1.0, 1.5, 3.0],
        }
    }

    /// The loss of each epoch; None for a linear head.
    pub fn schedule(self, counts: &ClassCounts, choice: Choice, epochs: usize) -> Result<Option<LossSchedule>> {
        let base = MarginLoss::builder(counts.classes()).counts(counts).scale(choice.scale);
        let Choice { margin: m, tau, .. } = choice;
        let base = match self.family {
            Family::Linear => return Ok(None),
            Family::Cosine => base,
            Family::CosFace => base.margin(Margin::CosFace { m }),
            Family::ArcFace => base.margin(Margin::ArcFace { m }),
            Family::Ldam => base.margin(Margin::Ldam { max_m: m }),
            Family::Dbm(gate) => base.margin(Margin::Dbm { k: m, tau }).instance_gate(match gate {
                Gate::Off => InstanceGate::Off,
                Gate::Positives => InstanceGate::Positives,
                Gate::HardPositives => InstanceGate::HardPositives,
            }),
            Family::Focal => base.row_loss(RowLoss::Focal { gamma: m }),
        };
        Ok(Some(match self.balance {
            Balance::None => LossSchedule::constant(base.build()?),
            Balance::Bs => LossSchedule::constant(base.prior(Prior::BalancedSoftmax { tau: 1.0 }).build()?),
            Balance::Drw => LossSchedule::drw(base, counts, drw_epoch(epochs), BETA)?,
        }))
    }

    /// The example `train`'s method of this loss, if it has one.
    pub fn method(self) -> Option<Method> {
        if self.companion.is_some() {
            return self.companion;
        }
        Some(match (self.family, self.balance) {
            (Family::Linear, Balance::None) => Method::Ce,
            (Family::Linear, Balance::Drw) => Method::CeDrw,
            (Family::Linear, Balance::Bs) => Method::Bs,
            (Family::Cosine, Balance::None) => Method::CosineCe,
            (Family::Cosine, Balance::Bs) => Method::CosineBs,
            (Family::Ldam, Balance::None) => Method::Ldam,
            (Family::Ldam, Balance::Drw) => Method::LdamDrw,
            (Family::Dbm(_), Balance::None) => Method::DbmCe,
            (Family::Dbm(_), Balance::Drw) => Method::DbmDrw,
            (Family::Dbm(_), Balance::Bs) => Method::DbmBs,
            _ => return None,
        })
    }
}

/// β of the class-balanced weights, as the paper has it.
pub const BETA: f64 = 0.9999;

pub fn drw_epoch(epochs: usize) -> usize {
    epochs - epochs.div_ceil(5)
}
