//! Steps 2 and 3 of a shard of the classes: its statistics, of which others' are the rest; and rows from the statistics of all shards.

use candle_core::DType;
use rayon::prelude::*;

use super::call::Call;
use super::dispatch::{by_types, with_call};
use super::engine::Engine;
use super::finish::{RowState, finish};
use super::numeric::{Element, Real};
use super::plan::ranges;
use super::statistics::{Accumulated, RowStatistics};
use super::workspace::WorkspacePool;
use crate::error::{Error, Result};
use crate::problem::{Problem, Targets};

/// The statistics of the rows that count over the classes of W's rows.
pub(crate) fn statistics(
    problem: &Problem,
    workspace: &WorkspacePool,
    targets: &Targets,
) -> Result<Vec<RowStatistics>> {
    if problem.c == 0 || targets.rows.is_empty() {
        return Ok(vec![RowStatistics::EMPTY; targets.rows.len()]);
    }
    by_types!(problem, typed(problem, workspace, targets))
}

fn typed<X, W, P>(problem: &Problem, workspace: &WorkspacePool, targets: &Targets) -> Result<Vec<RowStatistics>>
where
    X: Element,
    W: Element<Acc = X::Acc>,
    P: Engine<X, W>,
{
    with_call::<X, W, P, _>(problem, targets, |call| Ok(call.shard_statistics::<P>(workspace)))
}

/// The states of the rows that count from their statistics over all classes.
pub(crate) fn finish_rows(problem: &Problem, targets: &Targets, all: &[RowStatistics]) -> Vec<RowState> {
    let sin_floor = match problem.features.dtype() {
        DType::F64 => f64::SIN_FLOOR,
        _ => f32::SIN_FLOOR,
    };
    let cosines: Vec<f64> = all.iter().map(|row| row.target).collect();
    finish(problem.params(), sin_floor, &Accumulated::of(all), &cosines, &targets.rows).collect()
}

impl<X, W> Call<'_, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    fn shard_statistics<P: Engine<X, W>>(&self, workspace: &WorkspacePool) -> Vec<RowStatistics> {
        let (plan, all) = (self.plan, &self.targets.rows);
        let of_part = plan.elements(self.operands, self.c, self.d);
        let mut out = vec![RowStatistics::EMPTY; all.len()];
        workspace.with(plan.parts * of_part, |buffer: &mut [X::Acc]| {
            let parts: Vec<_> =
                all.chunks(plan.part).zip(out.chunks_mut(plan.part)).zip(buffer.chunks_mut(of_part)).collect();
            parts.into_par_iter().for_each(|((all, out), buffer)| {
                let mut memory = self.memory(buffer);
                for (rows, out) in all.chunks(plan.rows).zip(out.chunks_mut(plan.rows)) {
                    let block = P::load(self, rows, memory.unit, false);
                    let mut accumulated = Accumulated::new(rows.len());
                    let mut cosines = vec![f64::INFINITY; rows.len()];
                    for range in ranges(self.c, plan.range) {
                        let (accumulated, cosines) = (Some(&mut accumulated), Some(&mut cosines[..]));
                        self.cosines::<P>(&block, range, memory.cosines, &mut memory.norms, accumulated, cosines);
                    }
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = accumulated.row(i, |row| self.class_of(row), cosines[i]);
                    }
                }
            });
        });
        out
    }
}
