//! Cosine-margin softmax losses for Candle, fused: L2 normalisation, cosine logits, margin, prior, softmax cross-entropy and its
//! gradients in one pass over bounded memory.
//!
//! - [`MarginLoss`] is the loss: built once from a margin family ([`Margin`]), an instance gate ([`InstanceGate`]), a prior ([`Prior`]), weights
//!   ([`ClassWeights`]) and a reduction ([`Reduction`]), or by a preset of the difficulty-aware balancing margin paper (AAAI 2025, arXiv
//!   2412.15477): [`MarginLoss::dbm_ce`], [`MarginLoss::dbm_cb`], [`MarginLoss::dbm_bs`].
//! - [`margin_cross_entropy`] is the line to write where `candle_nn::loss::cross_entropy` stood; [`CosineClassifier`] is the head as a module.
//! - [`LossSchedule`] changes the loss with the epoch (deferred re-weighting).
//! - [`companions`] are the losses that the paper puts beside its own: balanced contrastive, nested collaborative and mixture-likelihood learning.
//! - [`sharded`] spreads the classes over ranks: threads, or processes by MPI.
//! - [`metrics`] has what the paper measures; [`mod@reference`] is the loss composed of Candle ops, the plain meaning of every option.
//!
//! X is (N, D), W is (C, D), y is (N) of `u8`, `u32` or `i64`; X and W are f64, f32, f16 or bf16, or W is f32 beside f16 or bf16 features. The loss and what
//! is given per sample are f32, or f64 for f64. The bits of a result do not depend on the number of threads, and a call's memory beyond its
//! inputs, outputs and gradients is its workspace ([`MarginLossBuilder::workspace_bytes`]) and O(N + C).
//!
//! Features: `cuda` builds Candle's CUDA backend and this crate's kernels, for devices of compute capability 8.0 and up; it needs nvcc and libclang.
//! `mpi` lets the ranks of [`sharded`] be processes; it needs mpicc and libclang.
//! `cudnn`, `nccl`, `metal`, `accelerate` and `mkl` are Candle's own, handed on. A device without a fused path, such as Metal's, gets the loss composed
//! of Candle's ops; [`Path::Fused`] refuses instead.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod builder;
mod classifier;
pub mod companions;
mod composed;
mod counts;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod loss;
mod margin;
pub mod metrics;
mod op;
mod options;
mod output;
mod problem;
pub mod reference;
mod row_loss;
pub mod row_margins;
mod schedule;
pub mod sharded;

pub use builder::MarginLossBuilder;
pub use classifier::CosineClassifier;
pub use counts::{ClassCounts, Group};
pub use error::{Error, Result};
pub use loss::MarginLoss;
pub use margin::{AngleRange, InstanceGate, Margin, TargetGradient};
pub use options::{
    ClassScales, ClassWeights, DEFAULT_CUDA_WORKSPACE_BYTES, DEFAULT_WORKSPACE_BYTES, LabelCheck, Normalize, Path,
    Prior, Reduction,
};
pub use output::{IGNORED, LossOutput};
pub use problem::RowInputs;
pub use row_loss::RowLoss;
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

/// The cross-entropy of a linear head's logits x·w + b in the style of [`candle_nn::loss`], without the logits: the line to write where
/// `cross_entropy(&head.forward(&x)?, &y)?` stood.
///
/// x (N, D), w (C, D), b (C) where the head has one, y (N); the mean over the rows, a scalar. Beyond x, w and their gradients it holds O(N + C) and the
/// workspace, no (N, C). So on the CPU; a CUDA device has no kernels of it yet, and takes the loss composed
/// of Candle's ops ([`Path::Auto`]), logits and all. A prior, class or sample
/// weights, smoothing, an index to ignore and losses by row are options of a [`MarginLoss`] with [`Normalize::None`], which also keeps its workspace
/// from one call to the next: a training loop is to build one.
///
/// ```
/// # use candle_core::{Device, Tensor, Var};
/// # use candle_margin_loss::linear_cross_entropy;
/// # use candle_nn::Module;
/// # fn main() -> candle_core::Result<()> {
/// # let device = Device::Cpu;
/// # let x = Tensor::randn(0f32, 1., (4, 8), &device)?;
/// # let (w, b) = (Var::randn(0f32, 1., (3, 8), &device)?, Var::randn(0f32, 1., 3, &device)?);
/// # let head = candle_nn::Linear::new(w.as_tensor().clone(), Some(b.as_tensor().clone()));
/// # let y = Tensor::new(&[0u32, 1, 2, 0], &device)?;
/// let usual = candle_nn::loss::cross_entropy(&head.forward(&x)?, &y)?;
/// let loss = linear_cross_entropy(&x, head.weight(), head.bias(), &y)?;
/// # assert!((usual.to_scalar::<f32>()? - loss.to_scalar::<f32>()?).abs() < 1e-5);
/// assert!(loss.backward()?.get(&b).is_some());
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`MarginLoss::output`].
pub fn linear_cross_entropy(
    features: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    labels: &Tensor,
) -> candle_core::Result<Tensor> {
    let loss = MarginLoss::builder(weight.dim(0)?).normalize(Normalize::None).build()?;
    let rows = bias.map_or_else(RowInputs::default, |bias| RowInputs::default().bias(bias));
    Ok(loss.output(features, weight, labels, rows)?.loss)
}
