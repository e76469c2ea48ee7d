//! [`CosineClassifier`]: class centres from a `VarBuilder`, logits for evaluation, the margin loss for training.

use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

use crate::loss::MarginLoss;
use crate::output::LossOutput;
use crate::problem::RowInputs;

/// A cosine head: C class centres in D dimensions and the loss that trains them.
///
/// Its one variable is `weight` (C, D), named and shaped as `candle_nn::linear_no_bias` saves it, so that checkpoints of either load into the other.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_margin_loss::{CosineClassifier, MarginLoss};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let head = CosineClassifier::new(8, MarginLoss::arc_face(3, 30.0, 0.5)?, vb.pp("head"))?;
/// let features = Tensor::randn(0f32, 1., (4, 8), &Device::Cpu)?;
/// let labels = Tensor::new(&[0u32, 1, 2, 0], &Device::Cpu)?;
/// let logits = head.forward(&features)?; // (4, 3), s·cos: for evaluation
/// let loss = head.loss(&features, &labels)?; // a scalar: for training
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct CosineClassifier {
    weight: Tensor,
    loss: MarginLoss,
}

impl CosineClassifier {
    /// Centres of `loss.classes()` classes in `in_dim` dimensions from `vb`, initialised as `linear_no_bias` does.
    ///
    /// # Errors
    /// A variable of another shape in `vb`.
    pub fn new(in_dim: usize, loss: MarginLoss, vb: VarBuilder) -> Result<Self> {
        let init = candle_nn::init::DEFAULT_KAIMING_NORMAL;
        let weight = vb.get_with_hints((loss.classes(), in_dim), "weight", init)?;
        Ok(Self { weight, loss })
    }

    /// The class centres W (C, D).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The loss in use.
    pub fn margin_loss(&self) -> &MarginLoss {
        &self.loss
    }

    /// Trains with another loss from now on, such as a schedule's.
    ///
    /// # Errors
    /// A loss over another number of classes.
    pub fn set_loss(&mut self, loss: MarginLoss) -> Result<()> {
        if loss.classes() != self.loss.classes() {
            candle_core::bail!(
                "cosine classifier: a loss over {} classes for a head of {}",
                loss.classes(),
                self.loss.classes()
            )
        }
        self.loss = loss;
        Ok(())
    }

    /// The training loss of features (N, D) and labels (N).
    ///
    /// # Errors
    /// As [`MarginLoss::forward`].
    pub fn loss(&self, features: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self.loss.forward(features, &self.weight, labels)
    }

    /// The training loss with per-sample losses, predictions, hard flags and target cosines.
    ///
    /// # Errors
    /// As [`MarginLoss::output`].
    pub fn output<'a>(&self, features: &Tensor, labels: &Tensor, rows: impl Into<RowInputs<'a>>) -> Result<LossOutput> {
        self.loss.output(features, &self.weight, labels, rows)
    }
}

impl Module for CosineClassifier {
    /// s·cos (N, C) of features (N, D): no margin, no prior.
    fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.loss.logits(features, &self.weight)
    }
}
