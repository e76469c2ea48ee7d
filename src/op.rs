//! The op: dispatch to the device's path, and the two ways gradients take through Candle's tape.
//!
//! A scalar reduction has one upstream gradient: the gradients are computed with the loss and backward scales them. With
//! [`Reduction::None`] every row may have its own: backward computes the logits again from the rows' states.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Shape, Storage, Tensor, WithDType};

use crate::cpu::{self, Pass, RowState};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::{Error, Result};
use crate::options::{Params, Reduction};
use crate::output::{IGNORED, LossOutput};
use crate::problem::{Gradients, Problem, Targets};

/// What a loss keeps between calls, on every device that it is used on.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    workspace: cpu::WorkspacePool,
    #[cfg(feature = "cuda")]
    tables: cuda::TablePool,
}

/// The loss, on the tape where X or W is.
pub(crate) fn forward(problem: &Problem, kept: &Arc<Kept>) -> Result<LossOutput> {
    let (track_x, track_w) = (problem.features.track_op(), problem.weight.track_op());
    let tracked = track_x || track_w;
    let (mut output, saved) = if problem.params().reduction == Reduction::None || !tracked {
        let (output, states) = run(problem, kept, Gradients::default())?;
        let saved = || Saved::PerRow {
            params: problem.params().clone(),
            kept: kept.clone(),
            labels: problem.labels.clone(),
            sample_weights: problem.sample_weights.map(Tensor::detach),
            states,
        };
        (output, tracked.then(saved))
    } else {
        let (dx, dw) = new_gradients(problem, track_x, track_w)?;
        let (output, _) = run(problem, kept, Gradients { features: dx.as_ref(), weight: dw.as_ref() })?;
        (output, Some(Saved::Reduced { dx, dw }))
    };
    if let Some(saved) = saved {
        output.loss = problem.features.apply_op2(problem.weight, Node { value: output.loss.clone(), saved })?;
    }
    Ok(output)
}

/// The loss and both gradients, off the tape.
pub(crate) fn loss_and_grads(problem: &Problem, kept: &Kept) -> Result<(LossOutput, Tensor, Tensor)> {
    let (dx, dw) = new_gradients(problem, true, true)?;
    let (Some(dx), Some(dw)) = (dx, dw) else { unreachable!("both are asked for") };
    Ok((run(problem, kept, Gradients { features: Some(&dx), weight: Some(&dw) })?.0, dx, dw))
}

/// The loss, and both gradients over what `dx` and `dw` held.
pub(crate) fn loss_and_grads_into(problem: &Problem, kept: &Kept, dx: &Tensor, dw: &Tensor) -> Result<LossOutput> {
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
        problem.sample_weights.map(|weights| ("the sample weights", weights)),
    ];
    for (what, gradient) in [("dX", dx), ("dW", dw)] {
        for (name, tensor) in read.into_iter().flatten() {
            if same_storage(gradient, tensor) {
                return Err(Error::Input(format!("{what} shares its storage with {name}")));
            }
        }
    }
    if same_storage(dx, dw) {
        return Err(Error::Input("dX shares its storage with dW".into()));
    }
    Ok(run(problem, kept, Gradients { features: Some(dx), weight: Some(dw) })?.0)
}

fn same_storage(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (a.storage_and_layout().0, b.storage_and_layout().0);
    std::ptr::eq::<Storage>(&*a, &*b)
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

/// New gradient tensors, each where it is wanted, to be written over.
fn new_gradients(problem: &Problem, features: bool, weight: bool) -> Result<(Option<Tensor>, Option<Tensor>)> {
    match problem.features.device() {
        Device::Cpu => cpu::new_gradients(problem, features, weight),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::new_gradients(problem, features, weight),
        device => Err(no_path(device)),
    }
}

/// The loss, and those gradients of its reduction that are wanted.
fn run(problem: &Problem, kept: &Kept, gradients: Gradients) -> Result<(LossOutput, States)> {
    match problem.features.device() {
        Device::Cpu => {
            let targets = problem.targets()?;
            let wanted = gradients.features.is_some() || gradients.weight.is_some();
            let pass = if wanted { Pass::LossAndGradients } else { Pass::Loss };
            let rows = cpu::run(problem, &kept.workspace, &targets, pass, gradients)?;
            Ok((output(problem, &targets, &rows)?, States::Cpu { rows, targets }))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let (output, states) = cuda::forward(problem, &kept.tables, gradients)?;
            Ok((output, States::Cuda(states)))
        }
        device => Err(no_path(device)),
    }
}

/// The gradients for `upstream` (N).
fn backward(problem: &Problem, kept: &Kept, states: &States, upstream: &Tensor, gradients: Gradients) -> Result<()> {
    match states {
        States::Cpu { rows, targets } => {
            let upstream = upstream.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            let pass = Pass::Gradients { states: rows, upstream: &upstream };
            cpu::run(problem, &kept.workspace, targets, pass, gradients)?;
            Ok(())
        }
        #[cfg(feature = "cuda")]
        States::Cuda(states) => cuda::backward(problem, &kept.tables, states, upstream, gradients),
    }
}

/// dX and dW, as far as they are there, times a scalar upstream gradient.
fn scaled(dx: Option<&Tensor>, dw: Option<&Tensor>, upstream: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    match upstream.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::scale_gradients(dx, dw, upstream),
        _ => {
            let upstream = upstream.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            // `loss.backward()` starts from 1: nothing to multiply, and no copy of a C×D tensor.
            let scaled = |gradient: &Tensor| match upstream {
                1.0 => Ok(gradient.clone()),
                _ => gradient.affine(upstream, 0.0),
            };
            Ok((dx.map(scaled).transpose()?, dw.map(scaled).transpose()?))
        }
    }
}

fn no_path(device: &Device) -> Error {
    Error::Input(format!(
        "there is no fused path for {:?} in this build; candle_margin_loss::reference runs on any device",
        device.location()
    ))
}

/// What a call gives, from the states of the rows that count.
fn output(problem: &Problem, targets: &Targets, states: &[RowState]) -> Result<LossOutput> {
    let (n, device, wide) = (problem.n, problem.features.device(), problem.accumulation_dtype());
    let mut per_sample = vec![0f64; n];
    let mut predicted = vec![IGNORED; n];
    let mut hard = vec![0u8; n];
    let mut target_cosine = vec![0f64; n];
    for (target, state) in targets.rows.iter().zip(states) {
        per_sample[target.row] = state.loss;
        predicted[target.row] = state.predicted;
        hard[target.row] = u8::from(state.hard);
        target_cosine[target.row] = state.cosine;
    }
    let sum: f64 = states.iter().map(|state| state.loss).sum();
    let tensor = |values: Vec<f64>| -> Result<Tensor> {
        Ok(match wide {
            DType::F64 => Tensor::from_vec(values, n, device)?,
            _ => Tensor::from_vec(values.into_iter().map(|v| v as f32).collect::<Vec<_>>(), n, device)?,
        })
    };
    let per_sample = tensor(per_sample)?;
    let loss = match problem.params().reduction {
        Reduction::None => per_sample.clone(),
        _ if wide == DType::F64 => Tensor::new(sum * targets.reduction_factor(), device)?,
        _ => Tensor::new((sum * targets.reduction_factor()) as f32, device)?,
    };
    Ok(LossOutput {
        loss,
        per_sample,
        predicted: Tensor::from_vec(predicted, n, device)?,
        hard: Tensor::from_vec(hard, n, device)?,
        target_cosine: tensor(target_cosine)?,
    })
}

/// A loss on the tape: its value, and where its gradients come from.
struct Node {
    /// A scalar, or (N)
    value: Tensor,
    saved: Saved,
}

/// What a node saves for backward.
enum Saved {
    /// The gradients of a reduced loss, each where its argument is tracked: dX (N, D), dW (C, D).
    Reduced { dx: Option<Tensor>, dw: Option<Tensor> },
    /// The rows' states, from which upstream gradients of their own make the gradients.
    PerRow { params: Arc<Params>, kept: Arc<Kept>, labels: Tensor, sample_weights: Option<Tensor>, states: States },
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
        use candle_core::backend::BackendStorage;
        let (value, layout) = self.value.storage_and_layout();
        let Storage::Cuda(value) = &*value else {
            candle_core::bail!("a loss that is not on the device of its features")
        };
        Ok((value.try_clone(layout)?, self.value.shape().clone()))
    }

    fn bwd(
        &self,
        features: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        match &self.saved {
            Saved::Reduced { dx, dw } => Ok(scaled(dx.as_ref(), dw.as_ref(), upstream)?),
            Saved::PerRow { params, kept, labels, sample_weights, states } => {
                let problem = Problem::new(params, features, weight, labels, sample_weights.as_ref())?;
                let (dx, dw) = new_gradients(&problem, features.track_op(), weight.track_op())?;
                let gradients = Gradients { features: dx.as_ref(), weight: dw.as_ref() };
                backward(&problem, kept, states, upstream, gradients)?;
                Ok((dx, dw))
            }
        }
    }
}
