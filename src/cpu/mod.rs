//! The fused CPU path: a block of rows at a time against all classes, within a bounded workspace.
//!
//! For a block of rows, with lanes of classes side by side and the tiles of a lane one after the other:
//!
//! 1. `load`: X̂, the block's rows that count, widened and divided by their norms; and X̂ᵀ.
//! 2. `cosines`, class-major (classes, rows): a tile of W times X̂ᵀ, scaled by the classes' norms; and their `statistics`: each row's maximum and
//!    sum of exponentials over non-targets, and its best class.
//! 3. `finish`: the tiles' statistics folded in their order, then ψ, δ, ℓ and what the gradient needs, in f64.
//! 4. `gradient`: cosines to g in place; `contract`: dX += gᵀ·Ŵ into the lane's own sum, dW = g·X̂ minus its projection, while the tile of W
//!    is at hand.
//! 5. `write_features`: the lanes' sums of dX added in their order, minus its projection.
//!
//! How a problem is cut ([`Plan`]) depends on its sizes alone, and every sum has a fixed order: the bits do not depend on the threads.

mod call;
mod contract;
mod cosines;
mod finish;
mod gradient;
mod load;
mod norm;
mod numeric;
mod plan;
mod product;
mod statistics;
mod vector;
mod view;
mod workspace;

use std::ops::Range;

use candle_core::DType::{BF16, F16, F32, F64};
use candle_core::{Storage, Tensor};
use half::{bf16, f16};

pub(crate) use finish::RowState;
pub(crate) use workspace::WorkspacePool;

use crate::error::{Error, Result};
use crate::problem::{Gradients, Problem, Targets};
use call::Call;
use contract::WeightSink;
use norm::Norm;
use numeric::{Element, Real};
use statistics::Accumulated;
use view::{Rows, with_slice};

/// What a call computes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pass<'a> {
    /// The rows' losses.
    Loss,
    /// The rows' losses, and the gradients of their reduction.
    LossAndGradients,
    /// The gradients for these upstream gradients, one a row of the batch, from the rows' states of an earlier pass.
    Gradients { states: &'a [RowState], upstream: &'a [f64] },
}

/// New gradient tensors, each where it is wanted.
pub(crate) fn new_gradients(
    problem: &Problem,
    features: bool,
    weight: bool,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    fn zeros<E: Element>(like: &Tensor) -> Result<Tensor> {
        Ok(Tensor::from_vec(E::zeros(like.elem_count()), like.dims(), like.device())?)
    }
    let new = |wanted: bool, like: &Tensor| {
        wanted
            .then(|| match like.dtype() {
                F64 => zeros::<f64>(like),
                F32 => zeros::<f32>(like),
                F16 => zeros::<f16>(like),
                _ => zeros::<bf16>(like),
            })
            .transpose()
    };
    Ok((new(features, problem.features)?, new(weight, problem.weight)?))
}

/// Runs `pass` over a problem whose tensors are on the CPU; gives the state of every row that is not ignored, in their order.
pub(crate) fn run(
    problem: &Problem,
    workspace: &WorkspacePool,
    targets: &Targets,
    pass: Pass,
    out: Gradients,
) -> Result<Vec<RowState>> {
    match (problem.features.dtype(), problem.weight.dtype()) {
        (F64, F64) => typed::<f64, f64>(problem, workspace, targets, pass, out),
        (F32, F32) => typed::<f32, f32>(problem, workspace, targets, pass, out),
        (F16, F16) => typed::<f16, f16>(problem, workspace, targets, pass, out),
        (F16, F32) => typed::<f16, f32>(problem, workspace, targets, pass, out),
        (BF16, BF16) => typed::<bf16, bf16>(problem, workspace, targets, pass, out),
        (BF16, F32) => typed::<bf16, f32>(problem, workspace, targets, pass, out),
        (x, w) => Err(Error::Input(format!("features X are {} and weight W is {}", x.as_str(), w.as_str()))),
    }
}

fn typed<X, W>(
    problem: &Problem,
    workspace: &WorkspacePool,
    targets: &Targets,
    pass: Pass,
    out: Gradients,
) -> Result<Vec<RowState>>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    let (x_storage, x_layout) = problem.features.storage_and_layout();
    let (w_storage, w_layout) = problem.weight.storage_and_layout();
    let (Storage::Cpu(x), Storage::Cpu(w)) = (&*x_storage, &*w_storage) else {
        return Err(Error::Input("the CPU path was given a tensor of another device".into()));
    };
    let x = Rows::new(X::cpu_storage_as_slice(x)?, x_layout);
    let w = Rows::new(W::cpu_storage_as_slice(w)?, w_layout);
    let call = Call::new(problem, targets, x, w);
    with_slice(out.features, |dx| with_slice(out.weight, |dw| Ok(call.run(workspace, pass, dx, dw))))
}

/// What a call works in.
struct Memory<'m, T> {
    /// (range, R)
    cosines: &'m mut [T],
    /// X̂ (R, D) and X̂ᵀ (D, R)
    unit: &'m mut [T],
    /// dX by lanes (lanes, R, D)
    sums: &'m mut [T],
    /// Of W's rows, as far as they are known, (C)
    norms: Vec<Option<Norm>>,
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    fn run(
        &self,
        workspace: &WorkspacePool,
        pass: Pass,
        mut dx: Option<&mut [X]>,
        dw: Option<&mut [W]>,
    ) -> Vec<RowState> {
        let (d, plan) = (self.d, self.plan);
        let all = &self.targets.rows;
        if let Some(dx) = &mut dx
            && all.len() < self.n
        {
            dx.fill(X::narrow(X::Acc::ZERO));
        }
        if all.is_empty() {
            if let Some(dw) = dw {
                dw.fill(W::narrow(X::Acc::ZERO));
            }
            return Vec::new();
        }

        let lens = [plan.rows * plan.range, 2 * plan.rows * d, plan.lanes * plan.rows * d];
        workspace.with(lens.iter().sum(), |buffer: &mut [X::Acc]| {
            let (cosines, buffer) = buffer.split_at_mut(lens[0]);
            let (unit, sums) = buffer.split_at_mut(lens[1]);
            let mut memory = Memory { cosines, unit, sums, norms: vec![None; self.c] };
            // dW of a half type is rounded once: its sum over several blocks of rows is for a second sweep, with sums of its own.
            let second_sweep = all.len() > plan.rows && W::as_acc(&[]).is_none();
            let (dw, late_dw) = if second_sweep { (None, dw) } else { (dw, None) };
            let states = self.by_blocks(&mut memory, pass, dx, dw);
            if let Some(dw) = late_dw {
                self.weight_by_ranges(&mut memory, pass, &states, dw);
            }
            states
        })
    }

    /// Blocks of rows, each against all classes: the rows' states, dX, and dW unless it is None.
    fn by_blocks(
        &self,
        memory: &mut Memory<X::Acc>,
        pass: Pass,
        mut dx: Option<&mut [X]>,
        mut dw: Option<&mut [W]>,
    ) -> Vec<RowState> {
        let (d, plan) = (self.d, self.plan);
        let Memory { cosines, unit, sums, norms } = memory;
        let mut states = Vec::with_capacity(self.targets.rows.len());
        let several = self.targets.rows.len() > plan.rows;
        for (index, rows) in self.targets.rows.chunks(plan.rows).enumerate() {
            let block = self.load(rows, unit);
            let mut made = false; // whether the cosines of all classes are there
            if !matches!(pass, Pass::Gradients { .. }) {
                let mut accumulated = Accumulated::new(rows.len());
                for range in ranges(self.c, plan.range) {
                    self.cosines(&block, range, cosines, norms, Some(&mut accumulated));
                }
                states.extend(self.finish(&accumulated, rows));
                made = plan.range == self.c;
            }
            let (states, upstream) = match pass {
                Pass::Loss => continue,
                Pass::LossAndGradients => (&states[..], None),
                Pass::Gradients { states, upstream } => (states, Some(upstream)),
            };
            let constants = self.constants(rows, &states[index * plan.rows..], upstream);
            let mut row_dots = vec![X::Acc::ZERO; plan.lanes * rows.len()];
            for range in ranges(self.c, plan.range) {
                if !made {
                    self.cosines(&block, range.clone(), cosines, norms, None);
                }
                let sink = match dw.as_deref_mut().map(|dw| &mut dw[range.start * d..range.end * d]) {
                    None => WeightSink::None,
                    Some(dw) if several => {
                        WeightSink::Sum(W::as_acc_mut(dw).expect("half types sum in a second sweep"), index > 0)
                    }
                    Some(dw) => WeightSink::Write(dw),
                };
                let sums = dx.is_some().then_some(&mut **sums);
                self.contract(sums, sink, &mut row_dots, cosines, &block, range, norms, &constants);
            }
            if let Some(dx) = &mut dx {
                self.write_features(dx, sums, &row_dots, &block);
            }
        }
        states
    }

    /// Ranges of classes, each against all blocks of rows: dW of a half type, summed where dX was and rounded once.
    fn weight_by_ranges(&self, memory: &mut Memory<X::Acc>, pass: Pass, states: &[RowState], dw: &mut [W]) {
        let (d, plan) = (self.d, self.plan);
        let Memory { cosines, unit, sums, norms } = memory;
        let (states, upstream) = match pass {
            Pass::Gradients { states, upstream } => (states, Some(upstream)),
            _ => (states, None),
        };
        for range in ranges(self.c, plan.range.min(sums.len() / d).max(1)) {
            let sums = &mut sums[..range.len() * d];
            for (index, rows) in self.targets.rows.chunks(plan.rows).enumerate() {
                let block = self.load(rows, unit);
                let constants = self.constants(rows, &states[index * plan.rows..], upstream);
                self.cosines(&block, range.clone(), cosines, norms, None);
                let mut row_dots = vec![X::Acc::ZERO; plan.lanes * rows.len()];
                let sink = WeightSink::Sum(sums, index > 0);
                self.contract(None, sink, &mut row_dots, cosines, &block, range.clone(), norms, &constants);
            }
            W::narrow_slice(sums, &mut dw[range.start * d..range.end * d]);
        }
    }
}

/// 0..c in ranges of `size`.
fn ranges(c: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..c).step_by(size).map(move |start| start..(start + size).min(c))
}
