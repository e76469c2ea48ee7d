//! The core, which communicates with nobody: a shard's statistics of the rows, and from all shards' the loss and the shard's gradients.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::shard::ClassShard;
use crate::cpu::{self, Pass, RowState, RowStatistics};
use crate::error::{Error, Result};
use crate::loss::MarginLoss;
use crate::op::{self, Kept};
use crate::options::Path;
use crate::output::LossOutput;
use crate::problem::{Gradients, Problem, RowInputs, Targets};

/// What the rows' cosines to some of the classes leave for their loss: a few numbers a row, mergeable with those of the other classes.
///
/// Of every row: the largest logit and the sum of exponentials over the classes that are not its own, the sum of their cosines where labels
/// are smoothed, the best class and its cosine, and the cosine to its own class where that is here.
#[derive(Debug, Clone, PartialEq)]
pub struct Partial {
    classes: Range<usize>,
    rows: Vec<RowStatistics>,
}

/// Numbers of a row in [`Partial::to_tensor`].
const NUMBERS: usize = 6;

impl Partial {
    /// The classes that are in it.
    pub fn classes(&self) -> Range<usize> {
        self.classes.clone()
    }

    /// How many rows it has, ignored ones included.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Parts of the same rows as one: their classes are to follow each other.
    ///
    /// The parts are folded in their order: the bits are the same however the parts came here.
    ///
    /// # Errors
    /// No part; parts of another number of rows, or whose classes do not follow those of the part before.
    pub fn merge(parts: &[Self]) -> Result<Self> {
        let Some((first, others)) = parts.split_first() else {
            return Err(Error::Sharded("at least one part is needed, there is none".into()));
        };
        let mut merged = first.clone();
        for part in others {
            if part.classes.start != merged.classes.end {
                return Err(Error::Sharded(format!(
                    "parts come in the order of their classes: {:?} is followed by {:?}",
                    merged.classes, part.classes
                )));
            }
            if part.rows.len() != merged.rows.len() {
                return Err(Error::Sharded(format!(
                    "parts are of the same rows: classes {:?} have {}, classes {:?} have {}",
                    first.classes,
                    first.rows.len(),
                    part.classes,
                    part.rows.len()
                )));
            }
            merged.classes.end = part.classes.end;
            merged.rows.iter_mut().zip(&part.rows).for_each(|(row, next)| row.fold(next));
        }
        Ok(merged)
    }

    /// As a message, (N, 6) f64 on the CPU.
    ///
    /// # Errors
    /// None but of memory.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let numbers: Vec<f64> = self
            .rows
            .iter()
            .flat_map(|row| [row.max, row.sum, row.total, row.best, f64::from(row.best_class), row.target])
            .collect();
        Ok(Tensor::from_vec(numbers, (self.rows.len(), NUMBERS), &Device::Cpu)?)
    }

    /// From a message, of `classes`.
    ///
    /// # Errors
    /// A tensor that is not (N, 6) f64.
    pub fn from_tensor(classes: Range<usize>, numbers: &Tensor) -> Result<Self> {
        if numbers.rank() != 2 || numbers.dims()[1] != NUMBERS || numbers.dtype() != DType::F64 {
            return Err(Error::Sharded(format!(
                "a part is f64 (N, {NUMBERS}), it is {} {:?}",
                numbers.dtype().as_str(),
                numbers.dims()
            )));
        }
        let rows = numbers.flatten_all()?.to_vec1::<f64>()?;
        let row = |row: &[f64]| RowStatistics {
            max: row[0],
            sum: row[1],
            total: row[2],
            best: row[3],
            best_class: row[4] as u32,
            target: row[5],
        };
        Ok(Self { classes, rows: rows.chunks_exact(NUMBERS).map(row).collect() })
    }
}

/// What [`MarginLoss::finish`] gives a shard.
#[derive(Debug, Clone)]
pub struct ShardOutput {
    /// The loss and what is known per row, of all rows and classes: the same on every shard. Off the tape.
    pub output: LossOutput,
    /// This shard's part of dX (N, D), in f32 or for f64 features f64: the sum over the shards is dX.
    pub dx_part: Tensor,
    /// dW of the shard's classes (C of the shard, D), in W's dtype
    pub dw: Tensor,
}

impl MarginLoss {
    /// Statistics of all rows over a shard's classes.
    ///
    /// - `features` X: (N, D), all rows of the batch, as on every shard. `labels` y: (N), of all classes.
    /// - `weight`: (C of the shard, D), the centres of `shard`'s classes. `rows` is what [`MarginLoss::output`] takes.
    ///
    /// The parts of all shards, in their order, go to [`MarginLoss::finish`].
    ///
    /// # Errors
    /// As [`MarginLoss::output`]; a shard of another number of classes; a device other than the CPU.
    pub fn partial<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
        shard: &ClassShard,
    ) -> candle_core::Result<Partial> {
        let problem = problem_of(self, shard, features, weight, labels, rows.into())?;
        Ok(partial(&problem, &self.kept, &problem.targets()?)?)
    }

    /// The loss from the parts of all shards, in their order or merged, and a shard's gradients.
    ///
    /// The loss is that of all classes and its gradients are those of it: no factor of the number of shards is in them. `dx_part` is to be
    /// summed over the shards, `dw` is whole. For [`Reduction::None`](crate::Reduction::None) the gradients are those of the sum.
    ///
    /// # Errors
    /// As [`MarginLoss::partial`]; parts that are not of these rows, or not of all classes in their order.
    pub fn finish<'a>(
        &self,
        parts: &[Partial],
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
        shard: &ClassShard,
    ) -> candle_core::Result<ShardOutput> {
        let problem = problem_of(self, shard, features, weight, labels, rows.into())?;
        let targets = problem.targets()?;
        let states = states(&problem, &targets, &Partial::merge(parts)?)?;
        let (mut output, slopes) = op::output(&problem, &targets, &states)?;
        if let Some(slopes) = slopes {
            output.margin_gradient = Some(slopes.rows.broadcast_mul(&slopes.factor)?);
        }
        let dx_part = Tensor::zeros(features.dims(), problem.accumulation_dtype(), &Device::Cpu)?;
        let dw = Tensor::zeros(weight.dims(), weight.dtype(), &Device::Cpu)?;
        let ones = vec![1.0; problem.n];
        let gradients = Gradients { features: Some(&dx_part), weight: Some(&dw) };
        gradients_of(&problem, &self.kept, &targets, &states, &ones, gradients)?;
        Ok(ShardOutput { output, dx_part, dw })
    }
}

/// A shard's problem, checked.
pub(super) fn problem_of<'a>(
    loss: &'a MarginLoss,
    shard: &ClassShard,
    features: &'a Tensor,
    weight: &'a Tensor,
    labels: &'a Tensor,
    rows: RowInputs<'a>,
) -> Result<Problem<'a>> {
    if shard.classes() != loss.classes() {
        return Err(Error::Sharded(format!(
            "the shard is of {} classes, the loss is over {}",
            shard.classes(),
            loss.classes()
        )));
    }
    let problem = Problem::of_classes(&loss.params, shard.range(), features, weight, labels, rows)?;
    if !features.device().is_cpu() {
        return Err(Error::Sharded(format!(
            "shards are computed on the CPU, X is on {:?}",
            features.device().location()
        )));
    }
    if !loss.params.is_plain() {
        return Err(Error::Sharded("shards are of cosines times one scale: no class scales, Normalize::Both".into()));
    }
    if loss.params.path == Path::Composed {
        return Err(Error::Sharded("shards have the fused path alone, and the composed one is asked for".into()));
    }
    Ok(problem)
}

/// The statistics of all rows over a problem's classes.
pub(super) fn partial(problem: &Problem, kept: &Kept, targets: &Targets) -> Result<Partial> {
    let counted = cpu::statistics(problem, &kept.workspace, targets)?;
    let mut rows = vec![RowStatistics::EMPTY; problem.n];
    targets.rows.iter().zip(counted).for_each(|(target, statistics)| rows[target.row] = statistics);
    let classes = problem.first..problem.first + problem.weight.dims()[0];
    Ok(Partial { classes, rows })
}

/// The states of the rows that count, from the statistics of all classes.
pub(super) fn states(problem: &Problem, targets: &Targets, all: &Partial) -> Result<Vec<RowState>> {
    let classes = problem.params().classes;
    if all.classes != (0..classes) {
        return Err(Error::Sharded(format!("the parts have classes {:?} of {classes}", all.classes)));
    }
    if all.rows.len() != problem.n {
        return Err(Error::Sharded(format!("the parts have {} rows, X has {}", all.rows.len(), problem.n)));
    }
    let counted: Vec<RowStatistics> = targets.rows.iter().map(|target| all.rows[target.row]).collect();
    if let Some((target, _)) = targets.rows.iter().zip(&counted).find(|(_, row)| row.target == f64::INFINITY) {
        return Err(Error::Sharded(format!(
            "the parts were made of other labels: none has the cosine of row {} to class {}",
            target.row, target.class
        )));
    }
    Ok(cpu::finish_rows(problem, targets, &counted))
}

/// A shard's gradients, where they are wanted: its part of dX in the type of accumulation, its dW; `upstream` is one a row (N).
pub(super) fn gradients_of(
    problem: &Problem,
    kept: &Kept,
    targets: &Targets,
    states: &[RowState],
    upstream: &[f64],
    gradients: Gradients,
) -> Result<()> {
    // New gradients are zeros: those of a shard without a class are so already.
    if problem.c > 0 && (gradients.features.is_some() || gradients.weight.is_some()) {
        cpu::run(problem, &kept.workspace, targets, Pass::Gradients { states, upstream }, gradients)?;
    }
    Ok(())
}
