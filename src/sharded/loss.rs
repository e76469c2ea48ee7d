//! [`ShardedLoss`]: the loss of a batch and of classes that are spread over ranks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use super::agreement::{Agreed, Brought, Item, agree, options, reason};
use super::communicator::Communicator;
use super::partial::{Partial, gradients_of, partial, problem_of, states};
use super::reduce::fold;
use super::sample::Sampling;
use super::shard::ClassShard;
use crate::cpu::{RowState, scale_gradients};
use crate::error::{Error, Result};
use crate::loss::MarginLoss;
use crate::op::{Node, Saved, add_margins, output};
use crate::options::Reduction;
use crate::output::{LossOutput, MarginSlopes};
use crate::problem::{Gradients, Problem, RowInputs, Targets};

/// A [`MarginLoss`] whose classes are spread over ranks, each of which has a batch of its own: made by [`MarginLoss::sharded`].
///
/// A call is every rank's: with its rows of the batch, as many as it has, none included, and the centres of its classes. The loss is that
/// of all rows and classes, the same on every rank, and the gradients are those of it: a backbone's are to be *summed* over the ranks, not
/// averaged.
#[derive(Clone)]
pub struct ShardedLoss(Arc<Inner>);

struct Inner {
    loss: MarginLoss,
    shard: ClassShard,
    communicator: Arc<dyn Communicator>,
    options: Vec<Item>,
    calls: AtomicUsize,
    phases: Mutex<[(u64, Duration); PHASES.len()]>,
}

/// What [`ShardedLoss::loss_and_grads_sampled`] gives a rank.
#[derive(Debug, Clone)]
pub struct SampledGradients {
    /// The loss over the classes that take part, and what is known of this rank's rows
    pub output: LossOutput,
    /// dX of this rank's rows, in X's dtype
    pub dx: Tensor,
    /// dW (M, D), in W's dtype
    pub dw: Tensor,
    /// The rows of this rank's W that it is of (M), rising; of the others dW is 0
    pub rows: Vec<u32>,
}

/// What a call consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Phase {
    Agree,
    Gather,
    Statistics,
    Merge,
    Gradients,
    Features,
}

const PHASES: [&str; 6] = ["agree", "gather X and y", "statistics", "merge statistics", "gradients", "scatter dX"];

/// Bytes that came from other ranks, and the time, of one phase of all calls so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PhaseCost {
    /// Its name
    pub phase: &'static str,
    /// Bytes received from other ranks; 0 where a phase computes alone
    pub received_bytes: u64,
    /// Waiting for slower ranks included
    pub time: Duration,
}

impl MarginLoss {
    /// This loss with its classes spread over ranks: `shard` is this rank's, `communicator` its way to the others.
    ///
    /// # Errors
    /// A shard of other classes, or of another rank or number of ranks than the communicator's.
    pub fn sharded(&self, shard: ClassShard, communicator: Arc<dyn Communicator>) -> Result<ShardedLoss> {
        let (rank, size) = (communicator.rank(), communicator.size());
        if shard.classes() != self.classes() {
            let (of, over) = (shard.classes(), self.classes());
            return Err(Error::Sharded(format!("the shard is of {of} classes, the loss is over {over}")));
        }
        if (shard.rank(), shard.size()) != (rank, size) {
            return Err(Error::Sharded(format!(
                "the shard is rank {}'s of {}, the communicator's rank is {rank} of {size}",
                shard.rank(),
                shard.size()
            )));
        }
        Ok(ShardedLoss(Arc::new(Inner {
            loss: self.clone(),
            shard,
            communicator,
            options: options(&self.params),
            calls: AtomicUsize::new(0),
            phases: Mutex::default(),
        })))
    }
}

impl ShardedLoss {
    /// This rank's classes.
    pub fn shard(&self) -> &ClassShard {
        &self.0.shard
    }

    /// The loss that is sharded.
    pub fn loss(&self) -> &MarginLoss {
        &self.0.loss
    }

    /// What connects the ranks.
    pub fn communicator(&self) -> &Arc<dyn Communicator> {
        &self.0.communicator
    }

    /// What the calls so far have cost by phase.
    pub fn costs(&self) -> Vec<PhaseCost> {
        let phases = self.0.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(phase, &(received_bytes, time)): (&'static str, &(u64, Duration))| PhaseCost {
            phase,
            received_bytes,
            time,
        };
        PHASES.into_iter().zip(phases.iter()).map(of).collect()
    }

    /// The loss of all ranks' rows, a scalar; for [`Reduction::None`] of this rank's rows (N of the rank).
    ///
    /// - `features` X: (N of the rank, D), `labels` y: (N of the rank), of all classes.
    /// - `weight`: (C of the shard, D), the centres of this rank's classes.
    ///
    /// On the tape where X or W is. Of a scalar the gradients are made with the loss, and backward talks to nobody; for
    /// [`Reduction::None`], and with `recompute_gradients`, backward is every rank's as well.
    ///
    /// # Errors
    /// As [`MarginLoss::forward`], on every rank where on one; ranks that disagree on classes, dimensions, dtypes, options or calls; a rank
    /// that has failed.
    pub fn forward(&self, features: &Tensor, weight: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.output(features, weight, labels, RowInputs::default())?.loss)
    }

    /// The loss, and what is known of this rank's rows: (N of the rank) each, with classes counted over all shards.
    ///
    /// `per_sample` is on the tape for [`Reduction::None`] alone.
    ///
    /// # Errors
    /// As [`ShardedLoss::forward`], and inputs of rows that do not fit.
    pub fn output<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
    ) -> candle_core::Result<LossOutput> {
        Ok(self.on_tape(features, weight, labels, rows.into())?)
    }

    /// The loss, ∂L/∂X of this rank's rows and ∂L/∂W of its classes, without Candle's tape, in X's and W's dtypes.
    ///
    /// For [`Reduction::None`] the gradients are those of the sum over all ranks' rows.
    ///
    /// # Errors
    /// As [`ShardedLoss::output`].
    pub fn loss_and_grads<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
    ) -> candle_core::Result<(LossOutput, Tensor, Tensor)> {
        let (output, dx, dw, _) = self.gradients(features, weight, labels, rows.into(), None)?;
        Ok((output, dx, dw))
    }

    /// As [`ShardedLoss::loss_and_grads`], with a sample of the classes: the loss over those that take part, and dW of them alone.
    ///
    /// W's rows are read where they are, a tile at a time: no copy of the sample is made. A step that touches its rows alone is
    /// [`SparseSgd`](super::SparseSgd)'s or [`SparseAdamW`](super::SparseAdamW)'s.
    ///
    /// # Errors
    /// As [`ShardedLoss::loss_and_grads`]; a rate out of its range; label smoothing, which is over all classes.
    pub fn loss_and_grads_sampled<'a>(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: impl Into<RowInputs<'a>>,
        sampling: Sampling,
    ) -> candle_core::Result<SampledGradients> {
        let (output, dx, dw, rows) = self.gradients(features, weight, labels, rows.into(), Some(sampling))?;
        Ok(SampledGradients { output, dx, dw, rows })
    }

    /// The output, dX and dW, and the rows of W that these are of, where classes are sampled.
    fn gradients(
        &self,
        features: &Tensor,
        weight: &Tensor,
        labels: &Tensor,
        rows: RowInputs,
        sampling: Option<Sampling>,
    ) -> Result<(LossOutput, Tensor, Tensor, Vec<u32>)> {
        let inner = &self.0;
        let local = inner.local(features, weight, labels, rows).and_then(|local| {
            inner.check_sampling(sampling)?;
            Ok(local)
        });
        let agreed = inner.agree("gradients", &local, true, sampling)?;
        let local = local?;
        inner.guarded(|| {
            let pass = inner.pass(&local, &agreed, sampling)?;
            let dims = [pass.sample.as_ref().map_or(local.c, Vec::len), local.d];
            let dw = Tensor::zeros(&dims[..], weight.dtype(), &Device::Cpu)?;
            let ones = vec![1.0; pass.batch.rows()];
            let dx = inner.gradients(&pass, &agreed, weight, &ones, Some(&dw))?;
            let mut output = pass.output;
            if let Some(slopes) = pass.slopes {
                output.margin_gradient = Some(slopes.rows.broadcast_mul(&slopes.factor)?);
            }
            let dx = dx.map_or_else(|| Ok(features.zeros_like()?), |dx| scale_gradients(&dx, features.dtype(), 1.0))?;
            Ok((output, dx, dw, pass.sample.unwrap_or_default()))
        })
    }

    fn on_tape(&self, features: &Tensor, weight: &Tensor, labels: &Tensor, rows: RowInputs) -> Result<LossOutput> {
        let inner = &self.0;
        let (track_x, track_w) = (features.track_op(), weight.track_op());
        let local = inner.local(features, weight, labels, rows);
        let agreed = inner.agree("output", &local, track_x, None)?;
        let local = local?;
        inner.guarded(|| {
            let Pass { batch, sample, targets, states, mut output, slopes } = inner.pass(&local, &agreed, None)?;
            let params = &inner.loss.params;
            let pass = Pass { batch, sample, targets, states, output: output.clone(), slopes: None };
            let at_once = params.reduction != Reduction::None && !params.recompute_gradients;
            let wanted = agreed.wants_features || track_w;
            let saved = if at_once {
                let wide = local.accumulation_dtype();
                let dw = track_w.then(|| Tensor::zeros(weight.dims(), wide, &Device::Cpu)).transpose()?;
                let ones = vec![1.0; pass.batch.rows()];
                let dx = if wanted { inner.gradients(&pass, &agreed, weight, &ones, dw.as_ref())? } else { None };
                Saved::Reduced { dx: dx.filter(|_| track_x), dw, db: None }
            } else {
                let this = self.clone();
                Saved::Backward(Box::new(move |x, w, upstream| Ok(this.0.backward(&pass, x, w, upstream)?)))
            };
            if track_x || track_w {
                let node = Node { value: output.loss.clone(), saved };
                output.loss = features.apply_op2(weight, node)?;
                if params.reduction == Reduction::None {
                    output.per_sample = output.loss.clone();
                }
            }
            add_margins(&local, output, slopes)
        })
    }
}

/// All ranks' rows, on every rank.
struct Batch {
    /// X (N, D)
    features: Tensor,
    /// y (N), `i64`
    labels: Tensor,
    sample_weights: Option<Tensor>,
    margins: Option<Tensor>,
}

impl Batch {
    fn rows(&self) -> usize {
        self.labels.elem_count()
    }

    fn inputs(&self) -> RowInputs<'_> {
        RowInputs { sample_weights: self.sample_weights.as_ref(), margins: self.margins.as_ref(), bias: None }
    }
}

/// What all rows' statistics give, on every rank.
struct Pass {
    batch: Batch,
    /// The rows of W that take part, where not all do
    sample: Option<Vec<u32>>,
    targets: Targets,
    states: Vec<RowState>,
    /// Of this rank's rows
    output: LossOutput,
    slopes: Option<MarginSlopes>,
}

impl Inner {
    /// This rank's own rows against its shard, checked, labels included.
    fn local<'a>(
        &'a self,
        features: &'a Tensor,
        weight: &'a Tensor,
        labels: &'a Tensor,
        rows: RowInputs<'a>,
    ) -> Result<Problem<'a>> {
        let problem = problem_of(&self.loss, &self.shard, features, weight, labels, rows)?;
        problem.targets()?;
        Ok(problem)
    }

    /// Agrees with the others on a call, or is the error of the first that cannot make it.
    fn agree(
        &self,
        call: &'static str,
        local: &Result<Problem>,
        wants_features: bool,
        sampling: Option<Sampling>,
    ) -> Result<Agreed> {
        let (d, x, w, weighted) = match local {
            Ok(own) => (own.d, own.features.dtype(), own.weight.dtype(), own.rows.sample_weights.is_some()),
            Err(_) => (0, DType::F32, DType::F32, false),
        };
        let mut items = self.items(call);
        items.extend([
            Item::number("the number of dimensions D", d),
            Item::dtype("the dtype of X", x),
            Item::dtype("the dtype of W", w),
            Item::flag("whether there are sample weights", weighted),
            Item::of("the sampling of classes", &sampling),
        ]);
        let why = local.as_ref().err().map(reason);
        let brought = match (local, &why) {
            (Ok(problem), _) => Ok(Brought { rows: problem.n, wants_features }),
            (Err(_), why) => Err(why.as_deref().unwrap_or_default()),
        };
        self.timed(Phase::Agree, || agree(&*self.communicator, &items, brought))
    }

    /// That classes can be sampled so.
    fn check_sampling(&self, sampling: Option<Sampling>) -> Result<()> {
        match sampling {
            Some(_) if self.loss.params.label_smoothing > 0.0 => Err(Error::Sharded(
                "label smoothing gives every class a share of the target, and a sample leaves classes out".into(),
            )),
            Some(sampling) => sampling.check(),
            None => Ok(()),
        }
    }

    fn items(&self, call: &'static str) -> Vec<Item> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut items = vec![Item::of("what is called", &call), Item::number("how many calls came before", number)];
        items.extend(&self.options);
        items
    }

    /// Does what the others wait for: an error of it is theirs, too.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        /// A panic of this rank is known to the others, whoever else holds the communicator.
        struct Panic<'c>(&'c dyn Communicator);
        impl Drop for Panic<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.abort("it panicked");
                }
            }
        }
        let _panic = Panic(&*self.communicator);
        work().inspect_err(|error| self.communicator.abort(&reason(error)))
    }

    fn timed<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let (start, before) = (Instant::now(), self.communicator.received_bytes());
        let result = work();
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, time) = &mut phases[phase as usize];
        *bytes += self.communicator.received_bytes() - before;
        *time += start.elapsed();
        result
    }

    /// All ranks' rows, from theirs.
    fn gather(&self, local: &Problem, counts: &[usize]) -> Result<Batch> {
        let features = local.features.detach().contiguous()?;
        let features = self.communicator.all_gather(&features, counts)?;
        // Labels, weights and margins in one message: a label is below 2³² or the ignore index, which becomes −1.
        let params = local.params();
        let labels = local.labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let labels = labels.into_iter().map(|y| if params.ignore_index == Some(y) { -1.0 } else { y as f64 });
        let mut columns = vec![Tensor::from_vec(labels.collect::<Vec<f64>>(), (local.n, 1), &Device::Cpu)?];
        let (weights, margins) = (local.rows.sample_weights, local.rows.margins);
        if let Some(weights) = weights {
            columns.push(weights.detach().to_dtype(DType::F64)?.reshape((local.n, 1))?);
        }
        if let Some(margins) = margins {
            columns.push(margins.detach().to_dtype(DType::F64)?);
        }
        let rows = self.communicator.all_gather(&Tensor::cat(&columns, 1)?.contiguous()?, counts)?;
        let n = counts.iter().sum::<usize>();
        let labels = rows.narrow(1, 0, 1)?.flatten_all()?.to_vec1::<f64>()?;
        let ignored = params.ignore_index.unwrap_or(-1);
        let labels: Vec<i64> = labels.into_iter().map(|y| if y < 0.0 { ignored } else { y as i64 }).collect();
        let sample_weights = weights.map(|_| rows.narrow(1, 1, 1)?.reshape(n)).transpose()?;
        let first = 1 + usize::from(weights.is_some());
        let margins = margins.map(|_| rows.narrow(1, first, 2)?.contiguous()).transpose()?;
        Ok(Batch { features, labels: Tensor::from_vec(labels, n, &Device::Cpu)?, sample_weights, margins })
    }

    /// Every rank's partial statistics to those of all classes: a rank merges those of its own rows, and all gather what was merged.
    fn merge(&self, own: &Partial, counts: &[usize]) -> Result<Partial> {
        let communicator = &*self.communicator;
        let parts = communicator.all_to_all(&own.to_tensor()?, counts)?; // (P, N of the rank, numbers)
        let parts = (0..communicator.size())
            .map(|rank| {
                let shard = ClassShard::balanced(self.shard.classes(), rank, communicator.size())?;
                Partial::from_tensor(shard.range(), &parts.get(rank)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let merged = Partial::merge(&parts)?;
        Partial::from_tensor(merged.classes(), &communicator.all_gather(&merged.to_tensor()?, counts)?)
    }

    /// The loss, and what gradients are made from.
    fn pass(&self, local: &Problem, agreed: &Agreed, sampling: Option<Sampling>) -> Result<Pass> {
        let counts = &agreed.counts;
        let batch = self.timed(Phase::Gather, || self.gather(local, counts))?;
        let (loss, weight) = (&self.loss, local.weight);
        let problem = problem_of(loss, &self.shard, &batch.features, weight, &batch.labels, batch.inputs())?;
        let targets = problem.targets()?;
        let sample = sampling.map(|sampling| {
            let call = self.calls.load(Ordering::Relaxed);
            sampling.draw(&self.shard, targets.rows.iter().map(|target| target.class), call)
        });
        let problem = problem.of_index(sample.as_deref());
        let own = self.timed(Phase::Statistics, || partial(&problem, &loss.kept, &targets))?;
        let all = self.timed(Phase::Merge, || self.merge(&own, counts))?;
        let states = states(&problem, &targets, &all)?;
        let (mut output, mut slopes) = output(&problem, &targets, &states)?;
        // Of this rank's rows.
        let start = counts[..self.shard.rank()].iter().sum();
        let own = |tensor: &Tensor| tensor.narrow(0, start, local.n);
        for tensor in [&mut output.per_sample, &mut output.predicted, &mut output.hard, &mut output.target_cosine] {
            *tensor = own(tensor)?;
        }
        if loss.params.reduction == Reduction::None {
            output.loss = output.per_sample.clone();
        }
        if let Some(slopes) = &mut slopes {
            slopes.rows = own(&slopes.rows)?;
        }
        Ok(Pass { batch, sample, targets, states, output, slopes })
    }

    /// dX of this rank's rows in the type of accumulation, where any rank wants it, and dW into `dw`; `upstream` is one a row of the batch.
    fn gradients(
        &self,
        pass: &Pass,
        agreed: &Agreed,
        weight: &Tensor,
        upstream: &[f64],
        dw: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        let Pass { batch, sample, targets, states, .. } = pass;
        let (loss, features) = (&self.loss, &batch.features);
        let problem = problem_of(loss, &self.shard, features, weight, &batch.labels, batch.inputs())?;
        let problem = problem.of_index(sample.as_deref());
        let wide = problem.accumulation_dtype();
        let dx_part = agreed.wants_features.then(|| Tensor::zeros(features.dims(), wide, &Device::Cpu)).transpose()?;
        let gradients = Gradients { features: dx_part.as_ref(), weight: dw };
        self.timed(Phase::Gradients, || gradients_of(&problem, &loss.kept, targets, states, upstream, gradients))?;
        let Some(dx_part) = dx_part else { return Ok(None) };
        self.timed(Phase::Features, || {
            let parts = self.communicator.all_to_all(&dx_part, &agreed.counts)?; // (P, N of the rank, D)
            Ok(Some(fold(&parts)?))
        })
    }

    /// Backward of a call whose gradients were left to it.
    fn backward(
        &self,
        pass: &Pass,
        x: &Tensor,
        w: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = pass.output.per_sample.elem_count();
        let brought = Brought { rows: n, wants_features: x.track_op() };
        let items = self.items("backward");
        let agreed = self.timed(Phase::Agree, || agree(&*self.communicator, &items, Ok(brought)))?;
        self.guarded(|| {
            let upstream = upstream.to_dtype(DType::F64)?;
            let upstream = if upstream.rank() == 0 { upstream.broadcast_as(n)? } else { upstream }.contiguous()?;
            let upstream = self.timed(Phase::Gather, || self.communicator.all_gather(&upstream, &agreed.counts))?;
            let upstream = upstream.to_vec1::<f64>()?;
            let dw = w.track_op().then(|| Tensor::zeros(w.dims(), w.dtype(), &Device::Cpu)).transpose()?;
            let dx = self.gradients(pass, &agreed, w, &upstream, dw.as_ref())?.filter(|_| x.track_op());
            let dx = dx.map(|dx| scale_gradients(&dx, x.dtype(), 1.0)).transpose()?;
            Ok((dx, dw))
        })
    }
}
