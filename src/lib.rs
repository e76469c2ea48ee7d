//! Cosine-margin softmax losses for Candle, fused: L2 normalisation, cosine logits, margin, prior, softmax cross-entropy and its
//! gradients in one pass over bounded memory.

mod classifier;
mod counts;
mod cpu;
mod error;
mod loss;
mod margin;
pub mod metrics;
mod op;
mod problem;
pub mod reference;
mod schedule;

pub use classifier::CosineClassifier;
pub use counts::{ClassCounts, Group};
pub use error::{Error, Result};
pub(crate) use loss::Params;
pub use loss::{
    ClassWeights, DEFAULT_WORKSPACE_BYTES, IGNORED, LossOutput, MarginLoss, MarginLossBuilder, Prior, Reduction,
};
pub use margin::{AngleRange, InstanceGate, Margin, TargetGradient};
pub use schedule::LossSchedule;

use candle_core::Tensor;

/// The margin loss in the style of [`candle_nn::loss`]: the line to write where `cross_entropy` stood.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use candle_margin_loss::{MarginLoss, margin_cross_entropy};
/// # fn main() -> candle_core::Result<()> {
/// # let device = Device::Cpu;
/// # let features = Tensor::randn(0f32, 1., (4, 8), &device)?;
/// # let head = candle_nn::Linear::new(Tensor::randn(0f32, 1., (3, 8), &device)?, None);
/// # let labels = Tensor::new(&[0u32, 1, 2, 0], &device)?;
/// # let margin = MarginLoss::arc_face(3, 30.0, 0.5)?;
/// // let loss = candle_nn::loss::cross_entropy(&head.forward(&features)?, &labels)?;
/// let loss = margin_cross_entropy(&features, head.weight(), &labels, &margin)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`MarginLoss::forward`].
pub fn margin_cross_entropy(
    features: &Tensor,
    weight: &Tensor,
    labels: &Tensor,
    loss: &MarginLoss,
) -> candle_core::Result<Tensor> {
    loss.forward(features, weight, labels)
}
