//! The methods of the paper's Table 2, and the cosine heads without a margin of its Table 5, by their names on the command line.

use candle_margin_loss::companions::{Bcl, Gml, Ncl};
use candle_margin_loss::{
    ClassCounts, InstanceGate, LossSchedule, Margin, MarginLoss, MarginLossBuilder, Prior, Result,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Softmax cross-entropy on a linear head
    Ce,
    /// Cosine margins by class frequency
    Ldam,
    /// Difficulty-aware balancing margin with cross-entropy
    DbmCe,
    /// CE, class-balanced weights from the DRW epoch on
    CeDrw,
    /// LDAM and DRW
    LdamDrw,
    /// DBM-CE and DRW
    #[value(alias = "dbm-ce-drw")]
    DbmDrw,
    /// Balanced softmax on a linear head
    Bs,
    /// DBM with balanced softmax
    DbmBs,
    /// Balanced contrastive learning, with balanced softmax
    Bcl,
    /// Balanced contrastive learning, with DBM-BS
    DbmBcl,
    /// Gaussian-mixture-likelihood learning with a teacher, with balanced softmax
    Gml,
    /// Gaussian-mixture-likelihood learning with a teacher, with DBM-BS
    DbmGml,
    /// Nested collaborative learning of several networks, with balanced softmax
    Ncl,
    /// Nested collaborative learning of several networks, with DBM-BS
    DbmNcl,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The paper's, for 32 × 32 images
    Resnet32,
    /// The paper's teacher for GML
    Resnet56,
    /// Two 3 × 3 convolutions of 32 and 64 channels, each with ReLU and 2 × 2 max pooling, and a hidden layer of 256
    Conv,
    /// A 4 × 4 convolution of stride 4 and a 3 × 3 one, 32 channels each, with ReLU: cheap enough to train a hundred of on two cores
    Patches,
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
    /// None where the method has no companion
    pub companion: Option<CompanionNumbers>,
}

/// The numbers of BCL, GML and NCL; docs/companions.md has their formulas.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CompanionNumbers {
    /// Of BCL's and GML's terms
    pub classification_weight: f64,
    pub contrastive_weight: f64,
    /// t; where GML's begins, which is learnt
    pub temperature: f64,
    /// E, dimension of the embeddings that BCL and GML contrast
    pub embedding: usize,
    /// Of GML's distillation from its teacher; NCL's λ and λ_h
    pub distillation_weight: f64,
    /// GML's keys: how many in all, and of each class at least
    pub keys: usize,
    pub least_keys: usize,
    pub teacher_network: Network,
    pub teacher_epochs: usize,
    /// NCL's networks, the weight of its hard classes, and their number k: three tenths of the classes where there is none
    pub experts: usize,
    pub hard_weight: f64,
    pub hard_classes: Option<usize>,
    /// Whether the distillation sees the margin
    pub margined_distillation: bool,
}

impl CompanionNumbers {
    /// The paper's; what it leaves open is as in the methods' own code, but for BCL's 128 dimensions, which are ours. A teacher is trained for as long as its
    /// student.
    pub fn new(method: Method, epochs: usize) -> Option<Self> {
        let companion = method.companion()?;
        let (classification_weight, contrastive_weight, embedding) = match companion {
            Companion::Bcl => (2.0, 0.6, 128),
            Companion::Gml | Companion::Ncl => (1.0, 1.0, 32),
        };
        Some(Self {
            classification_weight,
            contrastive_weight,
            temperature: 0.1,
            embedding,
            distillation_weight: if companion == Companion::Ncl { 0.6 } else { 1.0 },
            keys: 4096,
            least_keys: 2,
            teacher_network: Network::Resnet56,
            teacher_epochs: epochs,
            experts: 3,
            hard_weight: 1.0,
            hard_classes: None,
            margined_distillation: false,
        })
    }
}

/// What stands beside the classification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Companion {
    Bcl,
    Gml,
    Ncl,
}

/// A method's head and loss.
pub enum Objective {
    /// W·x + b; cross-entropy of logits + `prior` (C), by class weights (C) from an epoch on
    Linear {
        prior: Option<Vec<f64>>,
        weights: Option<(usize, Vec<f64>)>,
    },
    /// s·cos
    Cosine(LossSchedule),
    Bcl(Bcl),
    Gml(Gml),
    Ncl(Ncl),
}

/// What of the recipe differs from method to method: the paper's, where nothing else is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    pub epochs: usize,
    pub batch_size: usize,
    pub lr: f64,
}

impl Method {
    /// The rows of Table 2, in its order.
    pub const ALL: [Self; 14] = [
        Self::Ce,
        Self::Ldam,
        Self::DbmCe,
        Self::CeDrw,
        Self::LdamDrw,
        Self::DbmDrw,
        Self::Bs,
        Self::DbmBs,
        Self::Bcl,
        Self::DbmBcl,
        Self::Gml,
        Self::DbmGml,
        Self::Ncl,
        Self::DbmNcl,
    ];

    /// As the paper writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ce => "CE",
            Self::Ldam => "LDAM",
            Self::DbmCe => "DBM-CE",
            Self::CeDrw => "CE-DRW",
            Self::LdamDrw => "LDAM-DRW",
            Self::DbmDrw => "DBM-DRW",
            Self::Bs => "BS",
            Self::DbmBs => "DBM-BS",
            Self::Bcl => "BCL",
            Self::DbmBcl => "DBM-BCL",
            Self::Gml => "GML",
            Self::DbmGml => "DBM-GML",
            Self::Ncl => "NCL",
            Self::DbmNcl => "DBM-NCL",
            Self::CosineCe => "cosine CE",
            Self::CosineBs => "cosine BS",
        }
    }

    pub fn companion(self) -> Option<Companion> {
        match self {
            Self::Bcl | Self::DbmBcl => Some(Companion::Bcl),
            Self::Gml | Self::DbmGml => Some(Companion::Gml),
            Self::Ncl | Self::DbmNcl => Some(Companion::Ncl),
            _ => None,
        }
    }

    /// Images that a sample gives to a batch, each augmented by itself: the first is classified, the others are contrasted.
    pub fn views(self) -> usize {
        match self.companion() {
            Some(Companion::Bcl | Companion::Gml) => 3,
            Some(Companion::Ncl) | None => 1,
        }
    }

    pub fn recipe(self) -> Recipe {
        match self.companion() {
            Some(Companion::Bcl) => Recipe { epochs: 200, batch_size: 256, lr: 0.15 },
            Some(Companion::Ncl) => Recipe { epochs: 400, batch_size: 64, lr: 0.1 },
            Some(Companion::Gml) | None => Recipe { epochs: 200, batch_size: 64, lr: 0.1 },
        }
    }

    pub fn objective(self, counts: &ClassCounts, numbers: &Numbers) -> Result<Objective> {
        let Numbers { scale, k, tau, gate, ldam_margin, beta, drw_epoch, companion } = *numbers;
        let cosine = || MarginLoss::builder(counts.classes()).counts(counts).scale(scale);
        let gate = match gate {
            Gate::Off => InstanceGate::Off,
            Gate::Positives => InstanceGate::Positives,
            Gate::HardPositives => InstanceGate::HardPositives,
        };
        let dbm = || cosine().margin(Margin::Dbm { k, tau }).instance_gate(gate);
        let ldam = || cosine().margin(Margin::Ldam { max_m: ldam_margin });
        let balanced = |base: MarginLossBuilder| base.prior(Prior::BalancedSoftmax { tau: 1.0 }).build();
        let constant = |loss: Result<MarginLoss>| Ok(Objective::Cosine(LossSchedule::constant(loss?)));
        let deferred = |base| Ok(Objective::Cosine(LossSchedule::drw(base, counts, drw_epoch, beta)?));
        let with_companion = |loss: MarginLoss| -> Result<Objective> {
            let numbers = companion.expect("a method with a companion has its numbers");
            let (classification, contrastive) = (numbers.classification_weight, numbers.contrastive_weight);
            Ok(match self.companion().expect("a method with a companion") {
                Companion::Bcl => {
                    let bcl = Bcl::builder(loss).temperature(numbers.temperature);
                    Objective::Bcl(bcl.weights(classification, contrastive).build()?)
                }
                Companion::Gml => {
                    let gml = Gml::builder(loss).temperature(numbers.temperature);
                    Objective::Gml(gml.weights(classification, contrastive, numbers.distillation_weight).build()?)
                }
                Companion::Ncl => {
                    let weight = numbers.distillation_weight;
                    let ncl = Ncl::builder(loss)
                        .hard_weight(numbers.hard_weight)
                        .distillation_weights(weight, weight)
                        .margined_distillation(numbers.margined_distillation);
                    Objective::Ncl(match numbers.hard_classes {
                        Some(k) => ncl.hard_classes(k).build()?,
                        None => ncl.build()?,
                    })
                }
            })
        };
        match self {
            Self::Ce => Ok(Objective::Linear { prior: None, weights: None }),
            Self::CeDrw => {
                let weights = counts.class_balanced_weights_normalized(beta)?;
                Ok(Objective::Linear { prior: None, weights: Some((drw_epoch, weights)) })
            }
            Self::Bs => Ok(Objective::Linear { prior: Some(counts.log_priors()), weights: None }),
            Self::Ldam => constant(ldam().build()),
            Self::LdamDrw => deferred(ldam()),
            Self::DbmCe => constant(dbm().build()),
            Self::DbmDrw => deferred(dbm()),
            Self::DbmBs => constant(balanced(dbm())),
            Self::CosineCe => constant(cosine().build()),
            Self::CosineBs => constant(balanced(cosine())),
            Self::Bcl | Self::Gml | Self::Ncl => with_companion(balanced(cosine())?),
            Self::DbmBcl | Self::DbmGml | Self::DbmNcl => with_companion(balanced(dbm())?),
        }
    }
}
