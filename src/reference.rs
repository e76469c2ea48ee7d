//! The loss composed from Candle ops with Candle's autograd: what it means, slowly.
//!
//! It materialises the (N, C) logits several times over and computes in the dtype it is given, as a loss composed by hand does. It is the
//! baseline of the tests and benchmarks, and runs on any device that Candle has.

use candle_core::{Result, Tensor};

use crate::composed;
use crate::loss::MarginLoss;
use crate::output::LossOutput;
use crate::problem::{Problem, RowInputs};

/// The loss of features X (N, D), centres W (C, D) and labels y (N), with the options of `loss`.
///
/// Everything but labels and rows to ignore is a Candle op, so gradients come from Candle's tape.
///
/// # Errors
/// As [`MarginLoss::output`].
pub fn forward<'a>(
    loss: &MarginLoss,
    features: &Tensor,
    weight: &Tensor,
    labels: &Tensor,
    rows: impl Into<RowInputs<'a>>,
) -> Result<LossOutput> {
    composed::forward(&Problem::new(&loss.params, features, weight, labels, rows.into())?)
}
