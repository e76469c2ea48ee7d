//! The op: dispatch to the device's path, and the two ways gradients take through Candle's tape.
//!
//! A scalar reduction has one upstream gradient: the gradients are computed with the loss, in the type of accumulation, and backward scales and rounds
//! them. With [`Reduction::None`], and of [`LossOutput::per_sample`], every row may have its own: backward computes the logits again from the rows'
//! states, as it does of a scalar where that is asked for.

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::Storage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Device, Layout, Shape, Tensor, Var, WithDType};

use crate::composed;
use crate::cpu::{self, Pass, RowState};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::{Error, Result};
use crate::options::{Params, Path, Reduction};
use crate::output::{IGNORED, LossOutput, MarginSlopes};
use crate::problem::{Gradients, OwnRowInputs, Problem, Targets, same_storage};

/// What a loss keeps between calls, on every device that it is used on.
#[derive(Default)]
pub(crate) struct Kept {
    pub workspace: cpu::WorkspacePool,
    #[cfg(feature = "cuda")]
    tables: cuda::TablePool,
}

impl Kept {
    /// The error of the first call so far that had a bad label or sample weight and has not said so; waits for the devices.
    pub fn check_calls(
        &self,
        #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] params: &Params,
    ) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.tables.hear(params, true)?;
        Ok(())
    }
}

/// The loss, on the tape where X or W is.
pub(crate) fn forward(problem: &Problem, kept: &Arc<Kept>) -> Result<LossOutput> {
    if !is_fused(problem)? {
        return Ok(composed::forward(problem)?);
    }
    let params = problem.params();
    let (track_x, track_w) = (problem.features.track_op(), problem.weight.track_op());
    let bias = problem.rows.bias.filter(|bias| bias.track_op());
    let tracked = track_x || track_w || bias.is_some();
    let at_once = tracked && params.reduction != Reduction::None && !params.recompute_gradients;
    let (dx, dw) = if at_once { wide_gradients(problem, track_x, track_w)? } else { (None, None) };
    let wanted = Gradients { features: dx.as_ref(), weight: dw.as_ref() };
    let Passed { mut output, states, slopes, db } = run(problem, kept, wanted, at_once && bias.is_some(), tracked)?;
    if !tracked {
        return add_margins(problem, output, slopes);
    }
    let rows = Arc::new(Rows {
        params: params.clone(),
        kept: kept.clone(),
        labels: problem.labels.detach(),
        inputs: OwnRowInputs::of(problem.rows),
        states,
    });
    let node = |value: &Tensor, saved| {
        let node = Node { value: value.clone(), saved };
        match bias {
            None => problem.features.apply_op2(problem.weight, node),
            Some(bias) => problem.features.apply_op3(problem.weight, bias, node),
        }
    };
    output.per_sample = node(&output.per_sample, Saved::PerRow(rows.clone()))?;
    output.loss = match params.reduction {
        Reduction::None => output.per_sample.clone(),
        _ if at_once => node(&output.loss, Saved::Reduced { dx, dw, db })?,
        _ => node(&output.loss, Saved::Recomputed(rows))?,
    };
    add_margins(problem, output, slopes)
}

/// A loss and its per-sample losses, with row margins on the tape as well, where they are tracked.
///
/// Of every row its slopes times its margins less themselves: 0, which carries the gradient.
pub(crate) fn add_margins(
    problem: &Problem,
    mut output: LossOutput,
    slopes: Option<MarginSlopes>,
) -> Result<LossOutput> {
    let (Some(margins), Some(slopes)) = (problem.rows.margins, slopes) else { return Ok(output) };
    if margins.track_op() && problem.n > 0 {
        let rows = (&slopes.rows * zeros_on_tape(margins, slopes.rows.dtype())?)?.sum(1)?; // (N)
        output.per_sample = (output.per_sample + &rows)?;
        output.loss = match problem.params().reduction {
            Reduction::None => output.per_sample.clone(),
            _ => (output.loss + (rows.sum_all()? * slopes.factor)?)?,
        };
    }
    Ok(output)
}

/// `tensor` less itself, in `dtype`, with the gradient of `tensor`.
fn zeros_on_tape(tensor: &Tensor, dtype: DType) -> candle_core::Result<Tensor> {
    let tensor = tensor.to_dtype(dtype)?;
    &tensor - tensor.detach()
}

/// A pass that gives gradients: the output, with the row margins' gradient of upstream·loss.
fn with_gradients(problem: &Problem, kept: &Kept, gradients: Gradients) -> Result<LossOutput> {
    let Passed { mut output, slopes, db, .. } = run(problem, kept, gradients, true, false)?;
    output.bias_gradient = db;
    if let Some(slopes) = slopes {
        output.margin_gradient = Some((slopes.rows.broadcast_mul(&slopes.factor)? * problem.upstream)?);
    }
    Ok(output)
}

/// The loss and both gradients, off the tape.
pub(crate) fn loss_and_grads(problem: &Problem, kept: &Kept) -> Result<(LossOutput, Tensor, Tensor)> {
    if !is_fused(problem)? {
        return composed_gradients(problem);
    }
    let (dx, dw) = (new_gradient(problem.features)?, new_gradient(problem.weight)?);
    Ok((with_gradients(problem, kept, Gradients { features: Some(&dx), weight: Some(&dw) })?, dx, dw))
}

/// The loss off the tape, and the gradients of everything that it is computed from.
///
/// X's is handed to Candle's tape as it is, where X is computed from something; a variable's goes into the store as it is, without the zeros and the
/// sum that the tape would make of it.
pub(crate) fn backward(problem: &Problem, kept: &Kept) -> Result<(LossOutput, GradStore)> {
    let (x, w) = (problem.features, problem.weight);
    let (output, dx, dw) = if !is_fused(problem)? {
        let (output, dx, dw) = composed_gradients(problem)?;
        (output, x.track_op().then_some(dx), w.track_op().then_some(dw))
    } else {
        let new = |of: &Tensor| of.track_op().then(|| new_gradient(of)).transpose();
        let (dx, dw) = (new(x)?, new(w)?);
        let output = with_gradients(problem, kept, Gradients { features: dx.as_ref(), weight: dw.as_ref() })?;
        (output, dx, dw)
    };
    let (mut leaves, mut seeds) = (Vec::new(), [None, None]);
    for (i, (tensor, gradient)) in [(x, dx), (w, dw)].into_iter().enumerate() {
        match gradient {
            Some(gradient) if tensor.is_variable() => leaves.push((tensor, gradient)),
            gradient => seeds[i] = gradient,
        }
    }
    let mut root = None;
    if let (Some(margins), Some(gradient)) = (problem.rows.margins, &output.margin_gradient)
        && margins.track_op()
        && problem.n > 0
    {
        root = Some((gradient * zeros_on_tape(margins, gradient.dtype())?)?.sum_all()?);
    }
    if let (Some(bias), Some(gradient)) = (problem.rows.bias, &output.bias_gradient)
        && bias.track_op()
    {
        let seeds = (gradient * zeros_on_tape(bias, gradient.dtype())?)?.sum_all()?;
        root = Some(match root {
            None => seeds,
            Some(root) => (seeds + root)?,
        });
    }
    if seeds.iter().any(Option::is_some) {
        let [dx, dw] = seeds;
        // What is not to have a gradient, or has one already, is no argument of the tape's.
        let (from_x, from_w) = (detached_unless(dx.is_some(), x), detached_unless(dw.is_some(), w));
        let node = Node { value: output.loss.clone(), saved: Saved::Seeds { dx, dw } };
        let seeds = from_x.apply_op2(&from_w, node)?;
        root = Some(match root {
            None => seeds,
            Some(root) => seeds.broadcast_add(&root)?,
        });
    }
    let mut grads = root.map_or_else(|| Ok(GradStore::default()), |root| root.backward())?;
    for (variable, gradient) in leaves {
        let sum = match grads.remove(variable) {
            Some(other) => (other + gradient)?.detach(),
            None => gradient,
        };
        grads.insert(variable, sum);
    }
    Ok((output, grads))
}

fn detached_unless(keep: bool, tensor: &Tensor) -> Tensor {
    if keep { tensor.clone() } else { tensor.detach() }
}

/// The loss, and both gradients over what `dx` and `dw` held.
pub(crate) fn loss_and_grads_into(problem: &Problem, kept: &Kept, dx: &Tensor, dw: &Tensor) -> Result<LossOutput> {
    check_gradients(problem, dx, dw)?;
    if !is_fused(problem)? {
        let (output, new_dx, new_dw) = composed_gradients(problem)?;
        dx.slice_set(&new_dx, 0, 0)?;
        dw.slice_set(&new_dw, 0, 0)?;
        return Ok(output);
    }
    with_gradients(problem, kept, Gradients { features: Some(dx), weight: Some(dw) })
}

/// That gradients may be written over `dx` and `dw`.
fn check_gradients(problem: &Problem, dx: &Tensor, dw: &Tensor) -> Result<()> {
    for (what, gradient, of) in [("dX", dx, problem.features), ("dW", dw, problem.weight)] {
        if gradient.dims() != of.dims() || gradient.dtype() != of.dtype() {
            return Err(Error::Input(format!(
                "{what} must be {} {:?}, it is {} {:?}",
                of.dtype().as_str(),
                of.dims(),
                gradient.dtype().as_str(),
                gradient.dims()
            )));
        }
        if !gradient.is_contiguous() {
            return Err(Error::Input(format!("{what} must be contiguous")));
        }
        if !gradient.device().same_device(of.device()) {
            return Err(Error::Input(format!("{what} is on another device than what it is the gradient of")));
        }
    }
    let read = [
        Some(("the features X", problem.features)),
        Some(("the weight W", problem.weight)),
        Some(("the labels y", problem.labels)),
        problem.rows.sample_weights.map(|weights| ("the sample weights", weights)),
        problem.rows.margins.map(|margins| ("the row margins", margins)),
        problem.rows.bias.map(|bias| ("the bias", bias)),
    ];
    for (what, gradient) in [("dX", dx), ("dW", dw)] {
        for (name, tensor) in read.into_iter().flatten() {
            if same_storage(gradient, tensor) {
                return Err(Error::Input(format!("{what} shares its storage with {name}")));
            }
        }
    }
    let place = |tensor: &Tensor| {
        let start = tensor.layout().start_offset();
        start..start + tensor.elem_count()
    };
    let (x_place, w_place) = (place(dx), place(dw));
    if same_storage(dx, dw) && x_place.start < w_place.end && w_place.start < x_place.end {
        return Err(Error::Input("dX overlaps dW".into()));
    }
    Ok(())
}

/// Whether a call takes its device's fused path; false for the composed one.
fn is_fused(problem: &Problem) -> Result<bool> {
    let device = problem.features.device();
    let has_kernels = device.is_cuda() && cfg!(feature = "cuda");
    let has_path = device.is_cpu() || (has_kernels && problem.params().is_plain());
    match problem.params().path {
        Path::Composed => Ok(false),
        Path::Fused if has_kernels && !has_path => Err(Error::Input(
            "a head that is not normalised, and class scales, have no CUDA kernels yet: Path::Auto composes them there"
                .into(),
        )),
        Path::Fused if !has_path => Err(no_path(device)),
        Path::Auto | Path::Fused => Ok(has_path),
    }
}

/// The loss and both gradients by the composed path.
fn composed_gradients(problem: &Problem) -> Result<(LossOutput, Tensor, Tensor)> {
    let (x, w) = (Var::from_tensor(&problem.features.detach())?, Var::from_tensor(&problem.weight.detach())?);
    let margins = problem.rows.margins.map(|margins| Var::from_tensor(&margins.detach())).transpose()?;
    let bias = problem.rows.bias.map(|bias| Var::from_tensor(&bias.detach())).transpose()?;
    let mut tracked = problem.clone();
    (tracked.features, tracked.weight) = (&x, &w);
    tracked.rows.margins = margins.as_deref();
    tracked.rows.bias = bias.as_deref();
    let mut output = composed::forward(&tracked)?;
    let grads = (output.loss.sum_all()? * problem.upstream)?.backward()?;
    let of = |var: &Var| grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok);
    output.loss = output.loss.detach();
    output.per_sample = output.per_sample.detach();
    if let Some(margins) = &margins {
        output.margin_gradient = Some(of(margins)?.to_dtype(problem.accumulation_dtype())?);
    }
    if let Some(bias) = &bias {
        output.bias_gradient = Some(of(bias)?.to_dtype(problem.accumulation_dtype())?);
    }
    Ok((output, of(&x)?, of(&w)?))
}

/// What backward needs of a forward pass, on the device that made it.
enum States {
    Cpu {
        rows: Vec<RowState>,
        targets: Targets,
    },
    #[cfg(feature = "cuda")]
    Cuda(cuda::States),
}

/// A new tensor for the gradient of `like`, to be written over.
fn new_gradient(like: &Tensor) -> Result<Tensor> {
    new_gradient_of(like, like.dtype())
}

fn new_gradient_of(like: &Tensor, dtype: DType) -> Result<Tensor> {
    match like.device() {
        Device::Cpu => cpu::new_gradient(like, dtype),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::new_gradient(like, dtype),
        device => Err(no_path(device)),
    }
}

/// New gradient tensors, each where it is wanted, in the type of accumulation: their upstream gradient comes before they are rounded.
fn wide_gradients(problem: &Problem, features: bool, weight: bool) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let wide = problem.accumulation_dtype();
    let new = |wanted: bool, like: &Tensor| wanted.then(|| new_gradient_of(like, wide)).transpose();
    Ok((new(features, problem.features)?, new(weight, problem.weight)?))
}

/// What a pass gives.
struct Passed {
    output: LossOutput,
    states: States,
    /// Where row margins were given
    slopes: Option<MarginSlopes>,
    /// dB (C) in the type of accumulation, where a bias was given and its gradient wanted
    db: Option<Tensor>,
}

/// The loss, and those gradients of its reduction that are wanted; with `keep` the states that a backward pass is to find.
fn run(
    problem: &Problem,
    kept: &Kept,
    gradients: Gradients,
    bias: bool,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] keep: bool,
) -> Result<Passed> {
    match problem.features.device() {
        Device::Cpu => {
            let targets = problem.targets()?;
            let bias = bias && problem.rows.bias.is_some();
            let wanted = bias || gradients.features.is_some() || gradients.weight.is_some();
            let pass = if wanted { Pass::LossAndGradients } else { Pass::Loss };
            let ran = cpu::run(problem, &kept.workspace, &targets, pass, gradients)?;
            let (output, slopes) = output(problem, &targets, &ran.states)?;
            let db = if bias { bias_gradient(problem, ran.bias)? } else { None };
            Ok(Passed { output, states: States::Cpu { rows: ran.states, targets }, slopes, db })
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let (output, slopes, states) = cuda::forward(problem, &kept.tables, gradients, keep)?;
            Ok(Passed { output, states: States::Cuda(states), slopes, db: None })
        }
        device => Err(no_path(device)),
    }
}

/// dB (C) as a tensor of the type of accumulation.
fn bias_gradient(problem: &Problem, db: Option<Vec<f64>>) -> Result<Option<Tensor>> {
    let of = |db: Vec<f64>| Tensor::new(db, problem.features.device())?.to_dtype(problem.accumulation_dtype());
    Ok(db.map(of).transpose()?)
}

/// The gradients for `upstream` (N), one a row: ∂L/∂ℓ_i, or where `reduced` what the reduction has still to be applied to.
fn rows_backward(
    problem: &Problem,
    rows: &Rows,
    upstream: &Tensor,
    reduced: bool,
    gradients: Gradients,
) -> Result<Option<Tensor>> {
    match &rows.states {
        States::Cpu { rows: states, targets } => {
            let upstream = upstream.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            let pass = Pass::Gradients { states, upstream: &upstream };
            let unreduced = (!reduced).then(|| Targets { denominator: 1.0, ..targets.clone() });
            let targets = unreduced.as_ref().unwrap_or(targets);
            bias_gradient(problem, cpu::run(problem, &rows.kept.workspace, targets, pass, gradients)?.bias)
        }
        #[cfg(feature = "cuda")]
        States::Cuda(states) => {
            cuda::backward(problem, &rows.kept.tables, states, upstream, reduced, gradients)?;
            Ok(None)
        }
    }
}

/// A gradient that is wanted in the dtype of `of`, times a scalar upstream gradient, rounded once.
fn scaled(
    (dx, x): (Option<&Tensor>, &Tensor),
    (dw, w): (Option<&Tensor>, &Tensor),
    upstream: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    match upstream.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::scale_gradients((dx, x.dtype()), (dw, w.dtype()), upstream),
        _ => {
            let upstream = upstream.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let scaled = |gradient: &Tensor, of: &Tensor| cpu::scale_gradients(gradient, of.dtype(), upstream);
            Ok((dx.map(|dx| scaled(dx, x)).transpose()?, dw.map(|dw| scaled(dw, w)).transpose()?))
        }
    }
}

fn no_path(device: &Device) -> Error {
    Error::Input(format!(
        "there is no fused path for {:?} in this build; candle_margin_loss::reference runs on any device",
        device.location()
    ))
}

/// What a call gives, and the row margins' slopes, from the states of the rows that count.
pub(crate) fn output(
    problem: &Problem,
    targets: &Targets,
    states: &[RowState],
) -> Result<(LossOutput, Option<MarginSlopes>)> {
    let (n, device, wide) = (problem.n, problem.features.device(), problem.accumulation_dtype());
    let mut per_sample = vec![0f64; n];
    let mut predicted = vec![IGNORED; n];
    let mut hard = vec![0u8; n];
    let mut target_cosine = vec![0f64; n];
    let mut slopes = problem.rows.margins.map(|_| vec![0f64; 2 * n]);
    for (target, state) in targets.rows.iter().zip(states) {
        per_sample[target.row] = state.loss;
        predicted[target.row] = state.predicted;
        hard[target.row] = u8::from(state.hard);
        target_cosine[target.row] = state.cosine;
        if let Some(slopes) = &mut slopes {
            slopes[2 * target.row..][..2].copy_from_slice(&state.margin_slopes);
        }
    }
    // From +0: the empty sum of f64 is −0.
    let sum = states.iter().fold(0.0, |sum, state| sum + state.loss);
    let tensor = |values: Vec<f64>| -> Result<Tensor> {
        let len = values.len();
        Ok(match wide {
            DType::F64 => Tensor::from_vec(values, len, device)?,
            _ => Tensor::from_vec(values.into_iter().map(|v| v as f32).collect::<Vec<_>>(), len, device)?,
        })
    };
    let per_sample = tensor(per_sample)?;
    let loss = match problem.params().reduction {
        Reduction::None => per_sample.clone(),
        _ if wide == DType::F64 => Tensor::new(sum * targets.reduction_factor(), device)?,
        _ => Tensor::new((sum * targets.reduction_factor()) as f32, device)?,
    };
    let slopes = match slopes {
        None => None,
        Some(slopes) => Some(MarginSlopes {
            rows: tensor(slopes)?.reshape((n, 2))?,
            factor: tensor(vec![targets.reduction_factor()])?.reshape(())?,
        }),
    };
    let output = LossOutput {
        loss,
        per_sample,
        predicted: Tensor::from_vec(predicted, n, device)?,
        hard: Tensor::from_vec(hard, n, device)?,
        target_cosine: tensor(target_cosine)?,
        margin_gradient: None,
        bias_gradient: None,
    };
    Ok((output, slopes))
}

/// A loss on the tape: its value, and where its gradients come from.
pub(crate) struct Node {
    /// A scalar, or (N)
    pub value: Tensor,
    pub saved: Saved,
}

/// What a node saves for backward.
pub(crate) enum Saved {
    /// The gradients of a reduced loss, each where its argument is tracked, in the type of accumulation: dX (N, D), dW (C, D), dB (C).
    Reduced { dx: Option<Tensor>, dw: Option<Tensor>, db: Option<Tensor> },
    /// For a reduced loss, the rows: the upstream gradient is a scalar.
    Recomputed(Arc<Rows>),
    /// The rows, each of which has an upstream gradient of its own.
    PerRow(Arc<Rows>),
    /// Gradients as they are to go on, whatever the upstream gradient: it is in them.
    Seeds { dx: Option<Tensor>, dw: Option<Tensor> },
    /// What makes the gradients from X, W and the upstream gradient: a shard's, which takes the other ranks.
    Backward(Box<BackwardFn>),
}

/// Of X, W and the upstream gradient: dX and dW, each where its argument is tracked.
pub(crate) type BackwardFn =
    dyn Fn(&Tensor, &Tensor, &Tensor) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> + Send + Sync;

/// The rows' states, from which upstream gradients make the gradients, and what else that takes.
pub(crate) struct Rows {
    params: Arc<Params>,
    kept: Arc<Kept>,
    labels: Tensor,
    inputs: OwnRowInputs,
    states: States,
}

impl Rows {
    fn gradients(
        &self,
        features: &Tensor,
        weight: &Tensor,
        upstream: &Tensor,
        reduced: bool,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let problem = Problem::new(&self.params, features, weight, &self.labels, self.inputs.borrow())?;
        let new = |of: &Tensor| of.track_op().then(|| new_gradient(of)).transpose();
        let (dx, dw) = (new(features)?, new(weight)?);
        let gradients = Gradients { features: dx.as_ref(), weight: dw.as_ref() };
        let db = rows_backward(&problem, self, upstream, reduced, gradients)?;
        Ok((dx, dw, db))
    }
}

impl Node {
    /// dX, dW and, where there is a bias, dB in the type of accumulation.
    #[allow(clippy::type_complexity)]
    fn gradients(
        &self,
        features: &Tensor,
        weight: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        match &self.saved {
            Saved::Reduced { dx, dw, db } => {
                let (dx, dw) = scaled((dx.as_ref(), features), (dw.as_ref(), weight), upstream)?;
                let db = db.as_ref().map(|db| db.broadcast_mul(&upstream.to_dtype(db.dtype())?)).transpose()?;
                Ok((dx, dw, db))
            }
            Saved::Recomputed(rows) => {
                let upstream = upstream.reshape(1)?.broadcast_as(features.dim(0)?)?;
                rows.gradients(features, weight, &upstream, true)
            }
            Saved::PerRow(rows) => rows.gradients(features, weight, upstream, false),
            Saved::Seeds { dx, dw } => Ok((dx.clone(), dw.clone(), None)),
            Saved::Backward(backward) => {
                let (dx, dw) = backward(features, weight, upstream)?;
                Ok((dx, dw, None))
            }
        }
    }
}

/// Of X, W and a bias that is on the tape.
impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        "margin-loss"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        CustomOp2::cpu_fwd(self, x, x_layout, w, w_layout)
    }

    fn bwd(
        &self,
        features: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, db) = self.gradients(features, weight, upstream)?;
        Ok((dx, dw, db.map(|db| db.to_dtype(bias.dtype())).transpose()?))
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        "margin-loss"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let values = self.value.flatten_all()?;
        let storage = match self.value.dtype() {
            DType::F64 => f64::to_cpu_storage_owned(values.to_vec1()?),
            _ => f32::to_cpu_storage_owned(values.to_vec1()?),
        };
        Ok((storage, self.value.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::{BackendDevice, BackendStorage};
        let (value, layout) = self.value.storage_and_layout();
        let Storage::Cuda(value) = &*value else {
            candle_core::bail!("a loss that is not on the device of its features")
        };
        // `try_clone` would take all of a storage that several outputs share.
        // SAFETY: the copy writes every element.
        let mut copy = unsafe { value.device().alloc_uninit(self.value.shape(), value.dtype())? };
        value.copy_strided_src(&mut copy, 0, layout)?;
        Ok((copy, self.value.shape().clone()))
    }

    fn bwd(
        &self,
        features: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.gradients(features, weight, upstream)?;
        Ok((dx, dw))
    }
}
