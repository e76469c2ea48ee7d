//! Tensors to one checked [`Problem`]: below it nobody checks again.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Storage, Tensor};

use crate::error::{Error, Result};
use crate::options::{LARGEST, LEAST_WEIGHT, Normalize, Params, Reduction};

/// What a call may be told of its rows beside their labels, and the bias of a linear head. `None` and `Some(&sample_weights)` are taken for one as well.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use candle_margin_loss::{AngleRange, MarginLoss, RowInputs};
/// # fn main() -> candle_core::Result<()> {
/// # let device = Device::Cpu;
/// # let (x, w) = (Tensor::randn(0f32, 1., (4, 8), &device)?, Tensor::randn(0f32, 1., (3, 8), &device)?);
/// # let y = Tensor::new(&[0u32, 1, 2, 0], &device)?;
/// let loss = MarginLoss::builder(3).row_margins(true).angle_range(AngleRange::Clamp).build()?;
/// let margins = Tensor::new(&[[0.1f32, 0.4], [-0.2, 0.2], [0.0, 0.4], [0.4, 0.0]], &device)?; // α, β of every row
/// let output = loss.output(&x, &w, &y, RowInputs::default().margins(&margins))?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct RowInputs<'a> {
    pub(crate) sample_weights: Option<&'a Tensor>,
    pub(crate) margins: Option<&'a Tensor>,
    pub(crate) bias: Option<&'a Tensor>,
}

impl<'a> RowInputs<'a> {
    /// Weights (N), a float tensor of values that are 0 or from 10⁻¹⁵ to 10⁹: each multiplies its row's class weight ω_y. They get no gradient.
    pub fn sample_weights(mut self, weights: &'a Tensor) -> Self {
        self.sample_weights = Some(weights);
        self
    }

    /// Margins (N, 2), a float tensor: of every row α, −π to π, added to its angle, and β, −2 to 2, taken off its cosine, on top of the class's
    /// margins. The loss's builder is told that they come ([`row_margins`](crate::MarginLossBuilder::row_margins)). They get a gradient where they are on the tape.
    pub fn margins(mut self, margins: &'a Tensor) -> Self {
        self.margins = Some(margins);
        self
    }

    /// The bias b (C) of a linear head, a float tensor: c = x·w + b. The loss is one of [`Normalize::None`](crate::Normalize::None). It gets a gradient
    /// where it is on the tape.
    pub fn bias(mut self, bias: &'a Tensor) -> Self {
        self.bias = Some(bias);
        self
    }
}

impl<'a> From<Option<&'a Tensor>> for RowInputs<'a> {
    fn from(sample_weights: Option<&'a Tensor>) -> Self {
        Self { sample_weights, ..Self::default() }
    }
}

/// [`RowInputs`] of one's own, off the tape.
#[derive(Debug)]
pub(crate) struct OwnRowInputs {
    sample_weights: Option<Tensor>,
    margins: Option<Tensor>,
    bias: Option<Tensor>,
}

impl OwnRowInputs {
    pub fn of(rows: RowInputs) -> Self {
        let own = |tensor: Option<&Tensor>| tensor.map(Tensor::detach);
        Self { sample_weights: own(rows.sample_weights), margins: own(rows.margins), bias: own(rows.bias) }
    }

    pub fn borrow(&self) -> RowInputs<'_> {
        RowInputs {
            sample_weights: self.sample_weights.as_ref(),
            margins: self.margins.as_ref(),
            bias: self.bias.as_ref(),
        }
    }
}

/// A call's tensors, whose ranks, shapes, dtypes and devices fit each other.
#[derive(Debug, Clone)]
pub(crate) struct Problem<'a> {
    params: &'a Arc<Params>,
    /// N, C, D; C of W's rows, which of a shard are some of the classes
    pub n: usize,
    pub c: usize,
    pub d: usize,
    /// The class of W's first row
    pub first: usize,
    /// The rows of W that take part, rising, where not all do: C is their number then
    pub index: Option<&'a [u32]>,
    /// X (N, D)
    pub features: &'a Tensor,
    /// W (C, D)
    pub weight: &'a Tensor,
    /// y (N), `u8`, `u32` or `i64`
    pub labels: &'a Tensor,
    /// Sample weights (N), row margins (N, 2), any float dtype
    pub rows: RowInputs<'a>,
    /// ∂L/∂loss of a reduced loss, as far as it is known before the pass: the gradients are multiplied by it before they are rounded.
    pub upstream: f64,
}

impl<'a> Problem<'a> {
    pub fn new(
        params: &'a Arc<Params>,
        features: &'a Tensor,
        weight: &'a Tensor,
        labels: &'a Tensor,
        rows: RowInputs<'a>,
    ) -> Result<Self> {
        Self::of_classes(params, 0..params.classes, features, weight, labels, rows)
    }

    /// Where W has the centres of `classes` alone; labels are of all classes.
    pub fn of_classes(
        params: &'a Arc<Params>,
        classes: Range<usize>,
        features: &'a Tensor,
        weight: &'a Tensor,
        labels: &'a Tensor,
        rows: RowInputs<'a>,
    ) -> Result<Self> {
        let (n, c, d) = check_pair(params, &classes, features, weight)?;
        vector("labels y", labels, n)?;
        if !matches!(labels.dtype(), DType::U8 | DType::U32 | DType::I64) {
            return Err(Error::Input(format!("labels y must be u8, u32 or i64, they are {}", labels.dtype().as_str())));
        }
        same_device(features, "labels y", labels)?;
        if let Some(weights) = rows.sample_weights {
            vector("sample weights", weights, n)?;
            row_input(features, "sample weights", weights)?;
        }
        match rows.margins {
            Some(margins) if params.row_margins => {
                if margins.dims() != [n, 2] {
                    return Err(Error::Input(format!(
                        "row margins must be of shape (N, 2) = ({n}, 2), the shape is {:?}",
                        margins.dims()
                    )));
                }
                row_input(features, "row margins", margins)?;
            }
            None if params.row_margins => {
                return Err(Error::Input("the loss takes row margins (N, 2), and the call brings none".into()));
            }
            Some(_) => {
                let why = "row margins are given, and the loss takes none: its builder's row_margins(true) lets it";
                return Err(Error::Input(why.into()));
            }
            None => {}
        }
        if let Some(bias) = rows.bias {
            if params.normalize != Normalize::None {
                return Err(Error::Input(format!(
                    "a bias is given, and the loss has Normalize::{:?}: a bias goes with Normalize::None",
                    params.normalize
                )));
            }
            if bias.dims() != [params.classes] {
                return Err(Error::Input(format!(
                    "the bias must be of shape (C) = ({}), the shape is {:?}",
                    params.classes,
                    bias.dims()
                )));
            }
            row_input(features, "the bias", bias)?;
        }
        Ok(Self { params, n, c, d, first: classes.start, index: None, features, weight, labels, rows, upstream: 1.0 })
    }

    /// With those classes alone whose rows of W `index` names, rising.
    pub fn of_index(self, index: Option<&'a [u32]>) -> Self {
        Self { c: index.map_or(self.c, <[u32]>::len), index, ..self }
    }

    /// With gradients of `upstream`·loss.
    pub fn with_upstream(self, upstream: f64) -> Result<Self> {
        if !upstream.is_finite() {
            return Err(Error::Input(format!("the upstream gradient must be finite, it is {upstream}")));
        }
        Ok(Self { upstream, ..self })
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
            DType::U8 => self.labels.to_vec1::<u8>()?.into_iter().map(i64::from).collect(),
            DType::U32 => self.labels.to_vec1::<u32>()?.into_iter().map(i64::from).collect(),
            _ => self.labels.to_vec1::<i64>()?,
        };
        let sample_weights = match self.rows.sample_weights {
            None => None,
            Some(weights) => Some(weights.to_dtype(DType::F64)?.to_vec1::<f64>()?),
        };
        let margins = match self.rows.margins {
            None => None,
            Some(margins) => Some(margins.to_dtype(DType::F64)?.to_vec2::<f64>()?),
        };
        let bias = match self.rows.bias {
            None => None,
            Some(bias) => Some(bias.to_dtype(DType::F64)?.to_vec1::<f64>()?),
        };
        let mut targets = Targets { rows: Vec::with_capacity(self.n), denominator: 1.0, upstream: self.upstream, bias };
        for (row, &label) in labels.iter().enumerate() {
            if params.ignore_index == Some(label) {
                continue;
            }
            if let Some(error) = self.bad_label(row, label) {
                return Err(error);
            }
            let class = label as usize;
            let mut weight = params.weights[class];
            if let Some(weights) = &sample_weights {
                if let Some(error) = bad_sample_weight(row, weights[row]) {
                    return Err(error);
                }
                weight *= weights[row];
            }
            let (mut alpha, mut beta) = (0.0, 0.0);
            if let Some(margins) = &margins {
                (alpha, beta) = (margins[row][0], margins[row][1]);
                if let Some(error) = bad_row_margin(row, alpha, beta) {
                    return Err(error);
                }
            }
            targets.rows.push(TargetRow { row, class: label as u32, weight, alpha, beta });
        }
        targets.denominator = match params.reduction {
            Reduction::None | Reduction::Sum => 1.0,
            Reduction::Mean => targets.rows.len() as f64,
            Reduction::WeightedMean => targets.rows.iter().map(|target| target.weight).sum(),
        };
        Ok(targets)
    }

    fn bad_label(&self, row: usize, label: i64) -> Option<Error> {
        bad_label(self.params, row, label)
    }
}

fn bad_label(params: &Params, row: usize, label: i64) -> Option<Error> {
    if !(0..params.classes as i64).contains(&label) {
        return Some(Error::Label { row, label, classes: params.classes, ignore_index: params.ignore_index });
    }
    params.is_out(label as usize).then(|| {
        Error::Input(format!("label {label} of row {row} is a class that the prior takes out: its log prior is −∞"))
    })
}

/// The error of a row whose label, sample weight or margin a device has found to be none.
#[cfg(feature = "cuda")]
pub(crate) fn bad_row(params: &Params, labels: &Tensor, rows: RowInputs, row: usize) -> Result<Error> {
    let label = labels.narrow(0, row, 1)?.to_dtype(DType::I64)?.to_vec1::<i64>()?[0];
    if let Some(error) = bad_label(params, row, label) {
        return Ok(error);
    }
    let of_row = |tensor: &Tensor| -> Result<Vec<f64>> {
        Ok(tensor.narrow(0, row, 1)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?)
    };
    if let Some(weights) = rows.sample_weights
        && let Some(error) = bad_sample_weight(row, of_row(weights)?[0])
    {
        return Ok(error);
    }
    if let Some(margins) = rows.margins {
        let margins = of_row(margins)?;
        if let Some(error) = bad_row_margin(row, margins[0], margins[1]) {
            return Ok(error);
        }
    }
    Ok(Error::Input(format!("row {row} had no such label, weight or margin, and has one now")))
}

fn bad_sample_weight(row: usize, weight: f64) -> Option<Error> {
    let good = weight == 0.0 || (LEAST_WEIGHT..=LARGEST).contains(&weight);
    let range = || format!("0 or in {LEAST_WEIGHT:e}..={LARGEST:e}");
    (!good).then(|| Error::Input(format!("the sample weight of row {row} must be {}, it is {weight}", range())))
}

/// The largest α and β of a row, either way.
pub(crate) const MOST_ROW_MARGIN: (f64, f64) = (std::f64::consts::PI, 2.0);

fn bad_row_margin(row: usize, alpha: f64, beta: f64) -> Option<Error> {
    let (most_alpha, most_beta) = MOST_ROW_MARGIN;
    let good = alpha.abs() <= most_alpha && beta.abs() <= most_beta;
    (!good).then(|| {
        Error::Input(format!(
            "the margins of row {row} must be α in −π..=π and β in −2..=2, they are {alpha} and {beta}"
        ))
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

impl Gradients<'_> {
    /// Whether they are of the dtypes of X and W, and not of the type of accumulation.
    pub fn are_of(&self, problem: &Problem) -> bool {
        self.features.is_none_or(|dx| dx.dtype() == problem.features.dtype())
            && self.weight.is_none_or(|dw| dw.dtype() == problem.weight.dtype())
    }
}

pub(crate) fn same_storage(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (a.storage_and_layout().0, b.storage_and_layout().0);
    std::ptr::eq::<Storage>(&*a, &*b)
}

/// The rows that are not ignored, in their order.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    pub rows: Vec<TargetRow>,
    /// What the reduction divides by; 0 where no row (or no weight) is left.
    pub denominator: f64,
    /// [`Problem::upstream`]
    pub upstream: f64,
    /// The head's bias (C), where it has one
    pub bias: Option<Vec<f64>>,
}

impl Targets {
    /// 1 / denominator, and 0 where nothing is left: loss and gradients are then 0, not NaN.
    pub fn reduction_factor(&self) -> f64 {
        if self.denominator == 0.0 { 0.0 } else { 1.0 / self.denominator }
    }

    /// What every row's gradient is multiplied by.
    pub fn gradient_factor(&self) -> f64 {
        self.upstream * self.reduction_factor()
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
    /// α
    pub alpha: f64,
    /// β
    pub beta: f64,
}

/// (N, C, D) of features and of the centres of `classes` that fit each other and a loss.
pub(crate) fn check_pair(
    params: &Params,
    classes: &Range<usize>,
    features: &Tensor,
    weight: &Tensor,
) -> Result<(usize, usize, usize)> {
    let (n, d) = matrix("features X", "(N, D)", features)?;
    let (c, weight_d) = matrix("weight W", "(C, D)", weight)?;
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
    if c != classes.len() {
        let all = params.classes;
        return Err(Error::Input(match classes.len() == all {
            true => format!("weight W has {c} rows, the loss is over {all} classes"),
            false => {
                format!("weight W has {c} rows, the shard has classes {} to {} of {all}", classes.start, classes.end)
            }
        }));
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
    same_device(features, "weight W", weight)?;
    Ok((n, c, d))
}

fn same_device(features: &Tensor, what: &str, tensor: &Tensor) -> Result<()> {
    if tensor.device().same_device(features.device()) {
        return Ok(());
    }
    Err(Error::Input(format!(
        "features X are on {:?} and {what} on {:?}",
        features.device().location(),
        tensor.device().location()
    )))
}

fn row_input(features: &Tensor, what: &str, tensor: &Tensor) -> Result<()> {
    if !is_float(tensor.dtype()) {
        return Err(Error::Input(format!("{what} must be f16, bf16, f32 or f64, not {}", tensor.dtype().as_str())));
    }
    same_device(features, what, tensor)
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
