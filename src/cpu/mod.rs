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
//! Where there are many rows and too few classes for lanes, several parts of the rows do this side by side, each with a dW of its own; these are
//! added in the parts' order.
//!
//! What multiplies, and in what layout, is an engine's ([`Engine`]): X̂ and h above are `Gemm`'s; `Pairs` has X, and g over both norms.
//!
//! How a problem is cut ([`Plan`]) depends on its sizes alone, and every sum has a fixed order: the bits do not depend on the threads.

mod call;
mod contract;
mod cosines;
mod dispatch;
mod engine;
mod finish;
mod gemm;
mod gradient;
mod instructions;
mod load;
mod norm;
mod numeric;
mod pairs;
mod plan;
mod product;
mod scale;
mod shard;
mod statistics;
mod vector;
mod view;
mod workspace;

use std::ops::Range;

use candle_core::{Tensor, WithDType};
use rayon::prelude::*;

pub(crate) use finish::RowState;
pub(crate) use scale::scale_gradients;
pub(crate) use shard::{finish_rows, statistics};
pub(crate) use statistics::RowStatistics;
pub(crate) use view::{new_gradient, with_f32};
pub(crate) use workspace::WorkspacePool;

use crate::error::{Error, Result};
use crate::problem::{Gradients, Problem, TargetRow, Targets};
use call::Call;
use contract::FeatureSink;
use dispatch::{by_types, with_call};
use engine::{Engine, WeightSink};
use load::Block;
use norm::Norm;
use numeric::{Element, Real};
use plan::ranges;
use statistics::Accumulated;
use view::with_slices;

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

/// Runs `pass` over a problem whose tensors are on the CPU; gives the state of every row that is not ignored, in their order.
pub(crate) fn run(
    problem: &Problem,
    workspace: &WorkspacePool,
    targets: &Targets,
    pass: Pass,
    out: Gradients,
) -> Result<Ran> {
    by_types!(problem, typed(problem, workspace, targets, pass, out))
}

fn typed<X, W, P>(
    problem: &Problem,
    workspace: &WorkspacePool,
    targets: &Targets,
    pass: Pass,
    out: Gradients,
) -> Result<Ran>
where
    X: Element,
    W: Element<Acc = X::Acc>,
    P: Engine<X, W>,
{
    with_call::<X, W, P, _>(problem, targets, |call| {
        // A half type's gradients are of its own, or f32 to be rounded later.
        let wide = |gradient: Option<&Tensor>| gradient.is_none_or(|gradient| gradient.dtype() == X::Acc::DTYPE);
        if out.are_of(problem) {
            with_slices(out, |dx: Option<&mut [X]>, dw: Option<&mut [W]>| call.run::<P, _, _>(workspace, pass, dx, dw))
        } else if wide(out.weight) {
            with_slices(out, |dx: Option<&mut [X::Acc]>, dw: Option<&mut [X::Acc]>| {
                call.run::<P, _, _>(workspace, pass, dx, dw)
            })
        } else {
            // A shard's: its part of dX is to be summed, its dW is whole.
            with_slices(out, |dx: Option<&mut [X::Acc]>, dw: Option<&mut [W]>| {
                call.run::<P, _, _>(workspace, pass, dx, dw)
            })
        }
    })
}

/// What a pass gives beside the gradients that it writes.
pub(crate) struct Ran {
    /// Of every row that is not ignored, in their order; none of a pass that was given them
    pub states: Vec<RowState>,
    /// dB (C), of a head with a bias; zeros where the pass makes no gradient
    pub bias: Option<Vec<f64>>,
}

/// What a call works in.
struct Memory<'m, T> {
    /// (range, R)
    cosines: &'m mut [T],
    /// The right operands of a block
    unit: &'m mut [T],
    /// dX by lanes (lanes, R, D)
    sums: &'m mut [T],
    /// Of W's rows, as far as they are known, (C)
    norms: Vec<Option<Norm>>,
    /// dB (C), of a head with a bias
    bias: Option<Vec<f64>>,
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    fn run<P, DX, DW>(
        &self,
        workspace: &WorkspacePool,
        pass: Pass,
        mut dx: Option<&mut [DX]>,
        dw: Option<&mut [DW]>,
    ) -> Result<Ran>
    where
        P: Engine<X, W>,
        DX: Element<Acc = X::Acc>,
        DW: Element<Acc = X::Acc>,
    {
        let (d, plan) = (self.d, self.plan);
        let all = &self.targets.rows;
        if let Some(dx) = &mut dx
            && all.len() < self.n
        {
            dx.fill(DX::narrow(X::Acc::ZERO));
        }
        if all.is_empty() {
            if let Some(dw) = dw {
                dw.fill(DW::narrow(X::Acc::ZERO));
            }
            return Ok(Ran { states: Vec::new(), bias: self.targets.bias.as_ref().map(|_| vec![0.0; self.c]) });
        }

        let empty = RowState::default();
        let mut states = if matches!(pass, Pass::Gradients { .. }) { Vec::new() } else { vec![empty; all.len()] };
        let bias =
            workspace.with(plan.parts * plan.elements(self.operands, self.c, d), |buffer: &mut [X::Acc]| {
                let dx = dx.map(|dx| FeatureSink { dx, first: 0 });
                if plan.parts > 1 {
                    return self.by_parts::<P, _, _>(buffer, pass, &mut states, dx, dw);
                }
                let mut memory = self.memory(buffer);
                // dW of a half type is rounded once: its sum over several blocks of rows is for a second sweep, with sums of its own.
                let second_sweep = all.len() > plan.rows && DW::as_acc(&[]).is_none();
                let (dw, late_dw) = if second_sweep { (None, dw) } else { (dw, None) };
                self.by_blocks::<P, _, _>(all, &mut memory, pass, &mut states, dx, dw)?;
                if let Some(dw) = late_dw {
                    self.weight_by_ranges::<P, _>(&mut memory, pass, &states, dw);
                }
                Ok::<_, Error>(memory.bias)
            })?;
        Ok(Ran { states, bias })
    }

    fn memory<'m>(&self, buffer: &'m mut [X::Acc]) -> Memory<'m, X::Acc> {
        let (d, plan) = (self.d, self.plan);
        let (cosines, buffer) = buffer.split_at_mut(plan.rows * plan.range);
        let (unit, sums) = buffer.split_at_mut(self.operands.block(plan.rows, d));
        let bias = self.targets.bias.is_some().then(|| vec![0.0; self.c]);
        Memory { cosines, unit, sums, norms: vec![None; self.c], bias }
    }

    /// Parts of the rows side by side, each by its blocks; gives dB of a head with a bias.
    fn by_parts<P, DX, DW>(
        &self,
        buffer: &mut [X::Acc],
        pass: Pass,
        states: &mut [RowState],
        mut dx: Option<FeatureSink<DX>>,
        dw: Option<&mut [DW]>,
    ) -> Result<Option<Vec<f64>>>
    where
        P: Engine<X, W>,
        DX: Element<Acc = X::Acc>,
        DW: Element<Acc = X::Acc>,
    {
        let (d, plan) = (self.d, self.plan);
        let (all, weight_len) = (&self.targets.rows, self.c * d);
        let (weights, buffer) = buffer.split_at_mut(plan.parts * weight_len);
        let wanted = dw.is_some();
        let mut states = if states.is_empty() { None } else { Some(states.chunks_mut(plan.part)) };
        let parts = all.chunks(plan.part).zip(weights.chunks_mut(weight_len));
        let parts = parts.zip(buffer.chunks_mut(plan.elements(self.operands, self.c, d) - weight_len)).enumerate();
        let parts: Vec<_> = parts
            .map(|(part, ((rows, weight), buffer))| {
                let pass = match pass {
                    Pass::Gradients { states, upstream } => {
                        Pass::Gradients { states: &states[part * plan.part..], upstream }
                    }
                    other => other,
                };
                let states = states.as_mut().and_then(|states| states.next()).unwrap_or_default();
                // dX from this part's first row to the next part's.
                let dx = dx.take().map(|sink| match all.get((part + 1) * plan.part) {
                    Some(next) => {
                        let (own, rest) = sink.dx.split_at_mut((next.row - sink.first) * d);
                        dx = Some(FeatureSink { dx: rest, first: next.row });
                        FeatureSink { dx: own, first: sink.first }
                    }
                    None => sink,
                });
                (rows, weight, buffer, pass, states, dx)
            })
            .collect();
        let results: Vec<Result<Option<Vec<f64>>>> = parts
            .into_par_iter()
            .map(|(rows, weight, buffer, pass, states, dx)| {
                let mut memory = self.memory(buffer);
                self.by_blocks::<P, _, _>(rows, &mut memory, pass, states, dx, wanted.then_some(weight))?;
                Ok(memory.bias)
            })
            .collect();
        let mut bias: Option<Vec<f64>> = None;
        for part in results {
            match (&mut bias, part?) {
                (Some(bias), Some(part)) => bias.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
                (_, part) => bias = part,
            }
        }
        if let Some(dw) = dw {
            self.add_parts(weights, dw);
        }
        Ok(bias)
    }

    /// Blocks of rows, each against all classes: the rows' states, dX, and dW unless it is None.
    fn by_blocks<P, DX, DW>(
        &self,
        all: &[TargetRow],
        memory: &mut Memory<X::Acc>,
        pass: Pass,
        new_states: &mut [RowState],
        mut dx: Option<FeatureSink<DX>>,
        mut dw: Option<&mut [DW]>,
    ) -> Result<()>
    where
        P: Engine<X, W>,
        DX: Element<Acc = X::Acc>,
        DW: Element<Acc = X::Acc>,
    {
        let (d, plan) = (self.d, self.plan);
        let Memory { cosines, unit, sums, norms, bias } = memory;
        let several = all.len() > plan.rows;
        for (index, rows) in all.chunks(plan.rows).enumerate() {
            let block = P::load(self, rows, unit, !matches!(pass, Pass::Loss));
            let mut made = false; // whether the cosines of all classes are there
            let of_block = index * plan.rows;
            let mut targets = vec![0.0; rows.len()];
            if !matches!(pass, Pass::Gradients { .. }) {
                let mut accumulated = Accumulated::new(rows.len());
                for range in ranges(self.c, plan.range) {
                    self.cosines::<P>(&block, range, cosines, norms, Some(&mut accumulated), Some(&mut targets));
                }
                new_states[of_block..]
                    .iter_mut()
                    .zip(self.finish(&accumulated, &targets, rows))
                    .for_each(|(to, state)| *to = state);
                made = plan.range == self.c;
            }
            let (states, upstream) = match pass {
                Pass::Loss => continue,
                Pass::LossAndGradients => (&new_states[of_block..], None),
                Pass::Gradients { states, upstream } => (&states[of_block..], Some(upstream)),
            };
            let constants = self.constants(&block, states, upstream);
            let mut row_dots = vec![X::Acc::ZERO; plan.lanes * rows.len()];
            for range in ranges(self.c, plan.range) {
                if !made {
                    let check = matches!(pass, Pass::Gradients { .. });
                    self.cosines::<P>(&block, range.clone(), cosines, norms, None, check.then_some(&mut targets));
                    if check {
                        self.check_unchanged(&targets, &block, &range, states)?;
                    }
                }
                let sink = match dw.as_deref_mut().map(|dw| &mut dw[range.start * d..range.end * d]) {
                    None => WeightSink::None,
                    Some(dw) if several => {
                        WeightSink::Sum(DW::as_acc_mut(dw).expect("half types sum in a second sweep"), index > 0)
                    }
                    Some(dw) => WeightSink::Write(dw),
                };
                let sums = dx.is_some().then_some(&mut **sums);
                let bias = bias.as_mut().map(|bias| &mut bias[range.clone()]);
                self.contract::<P, _>(sums, sink, &mut row_dots, cosines, &block, range, norms, &constants, bias);
            }
            if let Some(dx) = &mut dx {
                self.write_features::<P, _>(dx, sums, &row_dots, &block);
            }
        }
        Ok(())
    }

    /// A backward pass is to see the X and W of its forward pass: the targets' cosines are then the same to the bit.
    fn check_unchanged(
        &self,
        targets: &[f64],
        block: &Block<X::Acc>,
        range: &Range<usize>,
        states: &[RowState],
    ) -> Result<()> {
        for &(class, row) in block.targets_in(range) {
            let row = row as usize;
            let cosine = targets[row];
            if cosine.to_bits() != states[row].cosine.to_bits() && !cosine.is_nan() {
                return Err(Error::Input(format!(
                    "X or W changed between forward and backward: the cosine of row {} to class {class} was {}, it is {cosine}",
                    block.rows[row].row, states[row].cosine
                )));
            }
        }
        Ok(())
    }

    /// Ranges of classes, each against all blocks of rows: dW of a half type, summed where dX was and rounded once.
    fn weight_by_ranges<P: Engine<X, W>, DW: Element<Acc = X::Acc>>(
        &self,
        memory: &mut Memory<X::Acc>,
        pass: Pass,
        states: &[RowState],
        dw: &mut [DW],
    ) {
        let (d, plan) = (self.d, self.plan);
        let Memory { cosines, unit, sums, norms, .. } = memory;
        let (states, upstream) = match pass {
            Pass::Gradients { states, upstream } => (states, Some(upstream)),
            _ => (states, None),
        };
        for range in ranges(self.c, plan.range.min(sums.len() / d).max(1)) {
            let sums = &mut sums[..range.len() * d];
            for (index, rows) in self.targets.rows.chunks(plan.rows).enumerate() {
                let block = P::load(self, rows, unit, true);
                let constants = self.constants(&block, &states[index * plan.rows..], upstream);
                self.cosines::<P>(&block, range.clone(), cosines, norms, None, None);
                let mut row_dots = vec![X::Acc::ZERO; plan.lanes * rows.len()];
                let sink = WeightSink::<DW>::Sum(sums, index > 0);
                let range = range.clone();
                self.contract::<P, _>(None, sink, &mut row_dots, cosines, &block, range, norms, &constants, None);
            }
            DW::narrow_slice(sums, &mut dw[range.start * d..range.end * d]);
        }
    }
}
