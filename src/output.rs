//! What one call gives.

use candle_core::{DType, Tensor};

/// What one call gives, all from the same pass.
#[derive(Debug, Clone)]
pub struct LossOutput {
    /// The reduced loss, a scalar, or (N) for [`Reduction::None`](crate::Reduction::None). f32 for f16, bf16 and f32 features, f64 for f64.
    /// Differentiable where X or W is.
    pub loss: Tensor,
    /// ℓ_i with its weight, (N), of the loss's dtype; 0 at ignored rows. Differentiable where X or W is, whatever the reduction.
    pub per_sample: Tensor,
    /// argmax_j c_ij, the lowest index at a tie, (N) `u32`; [`IGNORED`] at ignored rows, unspecified where X has NaN.
    pub predicted: Tensor,
    /// 1 where the predicted class is not the label (eq. 9), (N) `u8`; 0 at ignored rows.
    pub hard: Tensor,
    /// c_iy, (N), of the loss's dtype, or of a head that is not normalised its product; 0 at ignored rows.
    pub target_cosine: Tensor,
    /// Where row margins were given, and by the calls that give gradients: the loss's gradient to α and β, (N, 2), of the loss's dtype; 0 at ignored
    /// rows. For [`Reduction::None`](crate::Reduction::None), that of the sum.
    pub margin_gradient: Option<Tensor>,
    /// Where a bias was given, and by the calls that give gradients: the loss's gradient to it, (C), of the loss's dtype. For
    /// [`Reduction::None`](crate::Reduction::None), that of the sum.
    pub bias_gradient: Option<Tensor>,
}

/// A pass's slopes by row margins.
#[derive(Debug)]
pub(crate) struct MarginSlopes {
    /// ∂ℓ_i/∂α_i and ∂ℓ_i/∂β_i, (N, 2), of the type of accumulation
    pub rows: Tensor,
    /// What the reduction multiplies the rows' losses by, a scalar of the same type
    pub factor: Tensor,
}

/// The predicted class of an ignored row in [`LossOutput::predicted`].
pub const IGNORED: u32 = u32::MAX;

impl LossOutput {
    /// The share of rows, ignored ones apart, whose predicted class is not the label; 0 for no row.
    pub fn hard_positive_rate(&self) -> candle_core::Result<f64> {
        let (hard, rows) = self.hard_and_rows()?;
        Ok(if rows == 0.0 { 0.0 } else { hard / rows })
    }

    /// The share of rows, ignored ones apart, whose predicted class is the label; 0 for no row.
    pub fn accuracy(&self) -> candle_core::Result<f64> {
        let (hard, rows) = self.hard_and_rows()?;
        Ok(if rows == 0.0 { 0.0 } else { 1.0 - hard / rows })
    }

    fn hard_and_rows(&self) -> candle_core::Result<(f64, f64)> {
        if self.hard.elem_count() == 0 {
            return Ok((0.0, 0.0)); // Candle's CUDA backend adds up no empty tensor
        }
        let hard = self.hard.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        let rows = self.predicted.ne(IGNORED)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        Ok((hard, rows))
    }
}
