//! What the companions have in common: checks, shapes, and sums over what a mask keeps.

use candle_core::{D, DType, Tensor};

use crate::composed::unit_rows;
use crate::counts::ClassCounts;
use crate::error::{Error, Result};
use crate::loss::MarginLoss;
use crate::options::{Prior, Reduction};

/// The error of an option or a tensor, as this crate's or as Candle's.
pub(super) fn error<T, E: From<Error>>(text: String) -> std::result::Result<T, E> {
    Err(Error::Companion(text).into())
}

/// The classification term of the plain form.
pub(super) fn balanced_softmax(counts: &ClassCounts) -> Result<MarginLoss> {
    MarginLoss::builder(counts.classes()).counts(counts).prior(Prior::BalancedSoftmax { tau: 1.0 }).build()
}

/// A classification term whose rows all count, each by the same mean as the other term's.
pub(super) fn check_classification(method: &str, loss: &MarginLoss) -> Result<()> {
    if loss.params.reduction != Reduction::Mean {
        return error(format!(
            "{method}: the classification loss must reduce by Mean, not {:?}",
            loss.params.reduction
        ));
    }
    if let Some(index) = loss.params.ignore_index {
        return error(format!("{method}: the classification loss must ignore no row, it ignores label {index}"));
    }
    if !loss.params.is_plain() {
        return error(format!(
            "{method}: the classification loss must be of cosines times one scale, without class scales"
        ));
    }
    if loss.takes_row_margins() {
        return error(format!("{method}: the classification loss must take no row margins, no call brings any"));
    }
    Ok(())
}

pub(super) fn check_positive(method: &str, what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    error(format!("{method}: {what} must be positive and finite, it is {value}"))
}

pub(super) fn check_weight(method: &str, what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    error(format!("{method}: the weight of {what} must be finite and not negative, it is {value}"))
}

/// Rows and columns of a float matrix with at least one of either.
pub(super) fn matrix(method: &str, what: &str, shape: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    let dims = tensor.dims2();
    let Ok((rows, columns)) = dims else {
        return error(format!("{method}: {what} must be of shape {shape}, the shape is {:?}", tensor.dims()));
    };
    if rows == 0 || columns == 0 {
        return error(format!("{method}: {what} {shape} must not be empty, the shape is {:?}", tensor.dims()));
    }
    if !matches!(tensor.dtype(), DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
        return error(format!("{method}: {what} must be f16, bf16, f32 or f64, not {}", tensor.dtype().as_str()));
    }
    Ok((rows, columns))
}

/// Integers, `u32` or `i64`, one for each of `len` rows.
pub(super) fn check_integers(method: &str, what: &str, tensor: &Tensor, len: usize) -> Result<()> {
    if tensor.dims() != [len] {
        return error(format!("{method}: {what} must be of shape ({len}), the shape is {:?}", tensor.dims()));
    }
    if !matches!(tensor.dtype(), DType::U32 | DType::I64) {
        return error(format!("{method}: {what} must be u32 or i64, not {}", tensor.dtype().as_str()));
    }
    Ok(())
}

/// The tensors are on `first`'s device, and those that are floats compute in the same dtype as it.
pub(super) fn check_alike(method: &str, first: (&str, &Tensor), others: &[(&str, &Tensor)]) -> Result<()> {
    for (what, tensor) in others {
        if !tensor.device().same_device(first.1.device()) {
            return error(format!(
                "{method}: {} are on {:?} and {what} on {:?}",
                first.0,
                first.1.device().location(),
                tensor.device().location()
            ));
        }
        if !tensor.dtype().is_int() && wide(tensor) != wide(first.1) {
            return error(format!(
                "{method}: {} are {} and {what} {}: f64 goes with f64 only",
                first.0,
                first.1.dtype().as_str(),
                tensor.dtype().as_str()
            ));
        }
    }
    Ok(())
}

/// On the CPU, where nothing has to be waited for: every label is a class.
pub(super) fn check_labels(labels: &Tensor, classes: usize) -> Result<()> {
    if !labels.device().is_cpu() {
        return Ok(());
    }
    let labels = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    match labels.iter().enumerate().find(|(_, label)| !(0..classes as i64).contains(*label)) {
        None => Ok(()),
        Some((row, &label)) => Err(Error::Label { row, label, classes, ignore_index: None }),
    }
}

/// The dtype to compute in.
pub(super) fn wide(tensor: &Tensor) -> DType {
    if tensor.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Rows divided by max(‖row‖₂, 1e-12), in the wide dtype.
pub(super) fn unit(rows: &Tensor) -> Result<Tensor> {
    Ok(unit_rows(&rows.to_dtype(wide(rows))?)?)
}

/// Integers (L) as a column (L, 1) of `i64`.
pub(super) fn column(integers: &Tensor) -> Result<Tensor> {
    Ok(integers.to_dtype(DType::I64)?.unsqueeze(1)?)
}

/// Integers (L) as a row (1, L) of `i64`.
pub(super) fn row(integers: &Tensor) -> Result<Tensor> {
    Ok(integers.to_dtype(DType::I64)?.unsqueeze(0)?)
}

/// log Σ e^a over the entries of each row that `keep` (N, M), `u8`, keeps: (N), and whether a row keeps any, (N) `u8`. A row that keeps none gives 0.
///
/// What is masked has no gradient, be it ±∞ or NaN: it is selected away before the exponential and not multiplied by 0.
pub(super) fn log_sum_exp_where(a: &Tensor, keep: &Tensor) -> Result<(Tensor, Tensor)> {
    let nothing = Tensor::full(f64::NEG_INFINITY, a.dims(), a.device())?.to_dtype(a.dtype())?;
    let a = keep.where_cond(a, &nothing)?; // (N, M)
    let any = keep.to_dtype(a.dtype())?.sum_keepdim(D::Minus1)?.gt(0.5)?; // (N, 1)
    let largest = a.detach().max_keepdim(D::Minus1)?; // (N, 1), −∞ where a row keeps none: (−∞) − (−∞) must not be formed
    let largest = any.where_cond(&largest, &largest.zeros_like()?)?;
    let sum = a.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?;
    let sum = any.where_cond(&sum, &sum.ones_like()?)?; // ln 0 must not be formed either
    Ok(((sum.log()? + largest)?.squeeze(1)?, any.squeeze(1)?))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn log_sum_exp_of_what_is_kept() -> Result<()> {
        let (device, infinity) = (Device::Cpu, f64::INFINITY);
        let a = Var::new(&[[1000.0, f64::NAN, 1001.0], [-800.0, infinity, -infinity], [1.0, 2.0, 3.0]], &device)?;
        let keep = Tensor::new(&[[1u8, 0, 1], [1, 0, 0], [0, 0, 0]], &device)?;
        let (values, any) = log_sum_exp_where(&a, &keep)?;
        let expected = [1001.0 + (-1f64).exp().ln_1p(), -800.0, 0.0];
        for (value, expected) in values.to_vec1::<f64>()?.into_iter().zip(expected) {
            assert!((value - expected).abs() < 1e-12, "{value} {expected}");
        }
        assert_eq!(any.to_vec1::<u8>()?, [1, 1, 0]);
        let grads = values.sum_all()?.backward()?;
        let p = 1.0 / (1.0 + 1f64.exp());
        let expected = [[p, 0.0, 1.0 - p], [1.0, 0.0, 0.0], [0.0; 3]];
        let gradient = grads.get(&a).map(|gradient| gradient.to_vec2::<f64>()).transpose()?.unwrap_or_default();
        for (row, expected) in gradient.iter().zip(expected) {
            assert!(row.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-12), "{row:?} {expected:?}");
        }
        assert_eq!(gradient.len(), 3);
        Ok(())
    }
}
