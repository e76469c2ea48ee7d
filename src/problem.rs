//! Tensors to one checked [`Problem`]: below it nobody checks again.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::options::{Params, Reduction};

/// A call's tensors, whose ranks, shapes, dtypes and devices fit each other.
#[derive(Debug, Clone)]
pub(crate) struct Problem<'a> {
    params: &'a Arc<Params>,
    /// N, C, D
    pub n: usize,
    pub c: usize,
    pub d: usize,
    /// X (N, D)
    pub features: &'a Tensor,
    /// W (C, D)
    pub weight: &'a Tensor,
    /// y (N), `u32` or `i64`
    pub labels: &'a Tensor,
    /// (N), any float dtype
    pub sample_weights: Option<&'a Tensor>,
}

impl<'a> Problem<'a> {
    pub fn new(
        params: &'a Arc<Params>,
        features: &'a Tensor,
        weight: &'a Tensor,
        labels: &'a Tensor,
        sample_weights: Option<&'a Tensor>,
    ) -> Result<Self> {
        let (n, d) = matrix("features X", "(N, D)", features)?;
        let (c, weight_d) = matrix("weight W", "(C, D)", weight)?;
        let classes = params.classes;
        if d == 0 {
            return Err(Error::Input(format!("features X have no dimension, their shape is {:?}", features.dims())));
        }
        if d != weight_d {
            return Err(Error::Input(format!(
                "features X {:?} and weight W {:?} differ in D",
                features.dims(),
                weight.dims()
            )));
        }
        if c != classes {
            return Err(Error::Input(format!("weight W has {c} rows, the loss is over {classes} classes")));
        }
        vector("labels y", labels, n)?;
        if !matches!(labels.dtype(), DType::U32 | DType::I64) {
            return Err(Error::Input(format!("labels y must be u32 or i64, they are {}", labels.dtype().as_str())));
        }
        let (x_type, w_type) = (features.dtype(), weight.dtype());
        for (what, dtype) in [("features X", x_type), ("weight W", w_type)] {
            if !is_float(dtype) {
                return Err(Error::Input(format!("{what} must be f16, bf16, f32 or f64, not {}", dtype.as_str())));
            }
        }
        let mixed = matches!((x_type, w_type), (DType::F16 | DType::BF16, DType::F32));
        if x_type != w_type && !mixed {
            return Err(Error::Input(format!(
                "features X are {} and weight W is {}: they must agree, or W be f32 beside f16 or bf16 features",
                x_type.as_str(),
                w_type.as_str()
            )));
        }
        if let Some(weights) = sample_weights {
            vector("sample weights", weights, n)?;
            if !is_float(weights.dtype()) {
                return Err(Error::Input(format!(
                    "sample weights must be f16, bf16, f32 or f64, not {}",
                    weights.dtype().as_str()
                )));
            }
        }
        let others = [("weight W", Some(weight)), ("labels y", Some(labels)), ("sample weights", sample_weights)];
        for (what, tensor) in others {
            if let Some(tensor) = tensor
                && !tensor.device().same_device(features.device())
            {
                return Err(Error::Input(format!(
                    "features X are on {:?} and {what} on {:?}",
                    features.device().location(),
                    tensor.device().location()
                )));
            }
        }
        Ok(Self { params, n, c, d, features, weight, labels, sample_weights })
    }

    pub fn params(&self) -> &'a Arc<Params> {
        self.params
    }

    /// The dtype of accumulation, of the loss and of what is given per sample: f64 for f64, else f32.
    pub fn accumulation_dtype(&self) -> DType {
        if self.features.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// Labels and weights on the host, checked.
    pub fn targets(&self) -> Result<Targets> {
        let params = self.params();
        let labels: Vec<i64> = match self.labels.dtype() {
            DType::U32 => self.labels.to_vec1::<u32>()?.into_iter().map(i64::from).collect(),
            _ => self.labels.to_vec1::<i64>()?,
        };
        let sample_weights = match self.sample_weights {
            None => None,
            Some(weights) => Some(weights.to_dtype(DType::F64)?.to_vec1::<f64>()?),
        };
        let mut targets = Targets { rows: Vec::with_capacity(self.n), denominator: 1.0 };
        for (row, &label) in labels.iter().enumerate() {
            if params.ignore_index == Some(label) {
                continue;
            }
            if !(0..self.c as i64).contains(&label) {
                return Err(self.bad_label(row, label));
            }
            let class = label as usize;
            let mut weight = params.weights[class];
            if let Some(weights) = &sample_weights {
                if let Some(error) = bad_sample_weight(row, weights[row]) {
                    return Err(error);
                }
                weight *= weights[row];
            }
            targets.rows.push(TargetRow { row, class: label as u32, weight });
        }
        targets.denominator = match params.reduction {
            Reduction::None | Reduction::Sum => 1.0,
            Reduction::Mean => targets.rows.len() as f64,
            Reduction::WeightedMean => targets.rows.iter().map(|target| target.weight).sum(),
        };
        Ok(targets)
    }

    fn bad_label(&self, row: usize, label: i64) -> Error {
        Error::Label { row, label, classes: self.c, ignore_index: self.params().ignore_index }
    }

    /// The error of a row whose label or sample weight a device has found to be none.
    #[cfg(feature = "cuda")]
    pub fn bad_row(&self, row: usize) -> Result<Error> {
        let label = self.labels.narrow(0, row, 1)?;
        let label = match label.dtype() {
            DType::U32 => i64::from(label.to_vec1::<u32>()?[0]),
            _ => label.to_vec1::<i64>()?[0],
        };
        if !(0..self.c as i64).contains(&label) {
            return Ok(self.bad_label(row, label));
        }
        let weight = match self.sample_weights {
            None => 1.0,
            Some(weights) => weights.narrow(0, row, 1)?.to_dtype(DType::F64)?.to_vec1::<f64>()?[0],
        };
        let error = bad_sample_weight(row, weight);
        Ok(error.unwrap_or_else(|| Error::Input(format!("row {row} changed while its loss was computed"))))
    }
}

fn bad_sample_weight(row: usize, weight: f64) -> Option<Error> {
    let good = weight.is_finite() && weight >= 0.0;
    (!good).then(|| {
        Error::Input(format!("the sample weight of row {row} must be finite and not negative, it is {weight}"))
    })
}

/// Where gradients go: tensors to write over.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gradients<'a> {
    /// dX (N, D)
    pub features: Option<&'a Tensor>,
    /// dW (C, D)
    pub weight: Option<&'a Tensor>,
}

/// The rows that are not ignored, in their order.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    pub rows: Vec<TargetRow>,
    /// What the reduction divides by; 0 where no row (or no weight) is left.
    pub denominator: f64,
}

impl Targets {
    /// 1 / denominator, and 0 where nothing is left: loss and gradients are then 0, not NaN.
    pub fn reduction_factor(&self) -> f64 {
        if self.denominator == 0.0 { 0.0 } else { 1.0 / self.denominator }
    }
}

/// A row that is not ignored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TargetRow {
    /// Its index in the batch
    pub row: usize,
    /// y
    pub class: u32,
    /// ω_y times the sample weight
    pub weight: f64,
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}

fn matrix(what: &str, shape: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    tensor
        .dims2()
        .map_err(|_| Error::Input(format!("{what} must be of shape {shape}, the shape is {:?}", tensor.dims())))
}

fn vector(what: &str, tensor: &Tensor, n: usize) -> Result<()> {
    if tensor.dims() == [n] {
        return Ok(());
    }
    Err(Error::Input(format!("{what} must be of shape (N) = ({n}), the shape is {:?}", tensor.dims())))
}
