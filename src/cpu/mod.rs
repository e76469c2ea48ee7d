//! The fused CPU path: a block of rows at a time against all classes, within a bounded workspace.
//!
//! For a block of rows, with lanes of classes side by side and the tiles of a lane one after the other:
//!
//! 1. X̂: the block's rows that count, widened and divided by their norms; and X̂ᵀ.
//! 2. Cosines, class-major (classes, rows): a tile of W times X̂ᵀ, scaled by the classes' norms; in the same sweep each row's maximum and
//!    sum of exponentials over non-targets, and its best class.
//! 3. Rows: the tiles' statistics folded in their order, then ψ, δ, ℓ and what the gradient needs, in f64.
//! 4. Gradient: cosines to g in place; dX += gᵀ·Ŵ into the lane's own sum, dW = g·X̂ minus its projection, while the tile of W is at hand.
//! 5. dX: the lanes' sums added in their order, minus its projection.
//!
//! How a problem is cut ([`Plan`]) depends on its sizes alone, and every sum has a fixed order: the bits do not depend on the threads.

mod norm;
mod numeric;
mod plan;
mod product;
mod rows;
mod sweep;
mod view;
mod workspace;

use std::cell::RefCell;

use candle_core::{CpuStorage, Layout, Storage, Tensor};
use half::{bf16, f16};
use pulp::Arch;
use rayon::prelude::*;

pub(crate) use rows::RowState;
pub(crate) use workspace::WorkspacePool;

use crate::error::{Error, Result};
use crate::options::{DEFAULT_WORKSPACE_BYTES, Params};
use crate::problem::{Gradients, Problem, TargetRow, Targets};
use norm::{Norm, normalize, sigma};
use numeric::{Element, Real};
use plan::Plan;
use product::{Matrix, product};
use rows::Accumulated;
use sweep::{Logit, RowConstants, Statistics};
use view::Rows;

/// Rows handed out together where rows are independent.
const PIECE: usize = 16;

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
                candle_core::DType::F64 => zeros::<f64>(like),
                candle_core::DType::F32 => zeros::<f32>(like),
                candle_core::DType::F16 => zeros::<f16>(like),
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
    use candle_core::DType::{BF16, F16, F32, F64};
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
    with_slice(out.features, |dx: Option<&mut [X]>| {
        with_slice(
            out.weight,
            |dw: Option<&mut [W]>| Ok(Call::new(problem, workspace, targets, x, w).run(pass, dx, dw)),
        )
    })
}

/// Lends `work` the elements of a contiguous tensor to write.
fn with_slice<E: Element, R>(tensor: Option<&Tensor>, work: impl FnOnce(Option<&mut [E]>) -> Result<R>) -> Result<R> {
    let Some(tensor) = tensor else { return work(None) };
    let mut result = None;
    let write = |elements: &mut [E]| result = Some(work(Some(elements)));
    tensor.inplace_op1(&Write(RefCell::new(Some(Box::new(write)))))?;
    result.unwrap_or_else(|| Err(Error::Input("a gradient tensor that is not on the CPU".into())))
}

/// Candle's way to a tensor's storage for writing: an in-place op, here with what to do with the elements.
struct Write<'w, E>(RefCell<Option<WriteFn<'w, E>>>);

type WriteFn<'w, E> = Box<dyn FnOnce(&mut [E]) + 'w>;

impl<E: Element> candle_core::InplaceOp1 for Write<'_, E> {
    fn name(&self) -> &'static str {
        "margin-loss-gradient"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let start = layout.start_offset();
        let elements = E::storage_mut(storage)
            .and_then(|all| all.get_mut(start..start + layout.shape().elem_count()))
            .ok_or_else(|| candle_core::Error::msg("a gradient tensor of another dtype or size"))?;
        if let Some(write) = self.0.take() {
            write(elements);
        }
        Ok(())
    }
}

/// A block of rows, made ready: step 1.
struct Block<'b, T> {
    rows: &'b [TargetRow],
    /// X̂ (R, D)
    unit: &'b [T],
    /// X̂ᵀ (D, R)
    unit_t: &'b [T],
    norms: Vec<Norm>,
    /// (class, row of the block), sorted
    by_class: Vec<(u32, u32)>,
}

impl<T> Block<'_, T> {
    /// The rows whose targets are in `classes`, by class.
    fn targets_in(&self, classes: &std::ops::Range<usize>) -> &[(u32, u32)] {
        let start = self.by_class.partition_point(|&(class, _)| (class as usize) < classes.start);
        let end = self.by_class.partition_point(|&(class, _)| (class as usize) < classes.end);
        &self.by_class[start..end]
    }
}

/// Takes the rows of one class off the front of sorted (class, row) pairs.
#[inline(always)]
fn take_class<'t>(targets: &mut &'t [(u32, u32)], class: u32) -> &'t [(u32, u32)] {
    let count = targets.iter().take_while(|&&(of, _)| of == class).count();
    let (taken, rest) = targets.split_at(count);
    *targets = rest;
    taken
}

/// A call's inputs and how it is cut.
struct Call<'a, X: Element, W> {
    params: &'a Params,
    workspace: &'a WorkspacePool,
    targets: &'a Targets,
    n: usize,
    c: usize,
    d: usize,
    x: Rows<'a, X>,
    w: Rows<'a, W>,
    plan: Plan,
    arch: Arch,
}

/// A tile of W as the products take it: Ŵ_j = σ_j · row j.
struct Tile<'t, T> {
    rows: Matrix<'t, T>,
    data: &'t [T],
    row_stride: usize,
}

impl<'t, T: Real> Tile<'t, T> {
    #[inline(always)]
    fn row(&self, j: usize, d: usize) -> &'t [T] {
        &self.data[j * self.row_stride..][..d]
    }
}

impl<'a, X, W> Call<'a, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    fn new(
        problem: &Problem<'a>,
        workspace: &'a WorkspacePool,
        targets: &'a Targets,
        x: Rows<'a, X>,
        w: Rows<'a, W>,
    ) -> Self {
        let (n, c, d) = (problem.n, problem.c, problem.d);
        let params = problem.params();
        let rows = targets.rows.len().max(1);
        let copies = W::as_acc(&[]).is_none();
        let plan = Plan::new(
            rows,
            c,
            d,
            size_of::<X::Acc>(),
            params.workspace_bytes.unwrap_or(DEFAULT_WORKSPACE_BYTES),
            copies,
        );
        Self { params, workspace, targets, n, c, d, x, w, plan, arch: Arch::new() }
    }

    fn run(&self, pass: Pass, mut dx: Option<&mut [X]>, mut dw: Option<&mut [W]>) -> Vec<RowState> {
        let (d, plan) = (self.d, self.plan);
        let all = &self.targets.rows;
        let zero = X::narrow(X::Acc::ZERO);
        if let Some(dx) = &mut dx
            && all.len() < self.n
        {
            dx.fill(zero);
        }
        if all.is_empty() {
            if let Some(dw) = dw {
                dw.fill(W::narrow(X::Acc::ZERO));
            }
            return Vec::new();
        }

        let cosines_len = plan.rows * plan.range;
        let unit_len = 2 * plan.rows * d;
        let lanes_len = plan.lanes * plan.rows * d;
        self.workspace.with(cosines_len + unit_len + lanes_len, |buffer: &mut [X::Acc]| {
            let (cosines, buffer) = buffer.split_at_mut(cosines_len);
            let (unit, sums) = buffer.split_at_mut(unit_len);
            let mut norms = vec![None; self.c];
            let mut states = Vec::with_capacity(all.len());
            // dW of a half type is rounded once: its sum over several blocks of rows is for a second sweep, with sums of its own.
            let several = all.len() > plan.rows;
            let second_sweep = several && dw.is_some() && W::as_acc(&[]).is_none();

            for (index, rows) in all.chunks(plan.rows).enumerate() {
                let block = self.load(rows, unit);
                let whole = plan.range == self.c;
                if !matches!(pass, Pass::Gradients { .. }) {
                    let mut accumulated = Accumulated::new(rows.len());
                    for range in ranges(self.c, plan.range) {
                        self.cosines(&block, range, cosines, &mut norms, Some(&mut accumulated));
                    }
                    states.extend(accumulated.finish(self.params, rows, X::Acc::SIN_FLOOR));
                }
                let Some(mut constants) = self.constants(pass, &states, index * plan.rows, rows) else { continue };
                let mut row_dots = vec![X::Acc::ZERO; plan.lanes * rows.len()];
                for range in ranges(self.c, plan.range) {
                    if !whole || matches!(pass, Pass::Gradients { .. }) {
                        self.cosines(&block, range.clone(), cosines, &mut norms, None);
                    }
                    let sums = dx.is_some().then_some(&mut *sums);
                    let dw = dw.as_deref_mut().filter(|_| !second_sweep);
                    let dw = dw.map(|dw| &mut dw[range.start * d..range.end * d]);
                    let sink = match dw {
                        None => WeightSink::None,
                        Some(dw) if several => {
                            WeightSink::Sum(W::as_acc_mut(dw).expect("half types sum in a second sweep"), index > 0)
                        }
                        Some(dw) => WeightSink::Write(dw),
                    };
                    self.gradient(&block, range, cosines, &norms, &mut constants, &mut row_dots, sums, sink);
                }
                if let Some(dx) = &mut dx {
                    self.write_features(&block, sums, &row_dots, dx);
                }
            }

            if second_sweep && let Some(dw) = dw {
                let range = plan.range.min(sums.len() / d).max(1);
                for range in ranges(self.c, range) {
                    let sums = &mut sums[..range.len() * d];
                    for (index, rows) in all.chunks(plan.rows).enumerate() {
                        let block = self.load(rows, unit);
                        let constants = self.constants(pass, &states, index * plan.rows, rows);
                        let mut constants = constants.expect("dW is asked for");
                        self.cosines(&block, range.clone(), cosines, &mut norms, None);
                        let mut row_dots = vec![X::Acc::ZERO; plan.lanes * rows.len()];
                        let sink = WeightSink::<W>::Sum(sums, index > 0);
                        self.gradient(
                            &block,
                            range.clone(),
                            cosines,
                            &norms,
                            &mut constants,
                            &mut row_dots,
                            None,
                            sink,
                        );
                    }
                    W::narrow_slice(sums, &mut dw[range.start * d..range.end * d]);
                }
            }
            states
        })
    }

    /// Does each piece of work, side by side where the problem is worth waking threads for.
    fn each<I: Send>(&self, pieces: Vec<I>, work: impl Fn(I) + Sync + Send) {
        if self.plan.lanes > 1 {
            pieces.into_par_iter().for_each(work);
        } else {
            pieces.into_iter().for_each(work);
        }
    }

    /// Step 1: X̂ of a block's rows, and X̂ᵀ: `gemm` packs a left operand whose columns are not contiguous, and with X̂ it would pack all
    /// of it for every tile of W (a quarter of the cosines' time at 256 classes a tile).
    fn load<'b>(&self, rows: &'b [TargetRow], unit: &'b mut [X::Acc]) -> Block<'b, X::Acc> {
        let (d, count) = (self.d, rows.len());
        let (unit, unit_t) = unit.split_at_mut(self.plan.rows * d);
        let (unit, unit_t) = (&mut unit[..count * d], &mut unit_t[..count * d]);
        let mut norms = vec![Norm { inverse: 0.0, projects: false, long: false }; count];
        let pieces = rows.chunks(PIECE).zip(unit.chunks_mut(PIECE * d)).zip(norms.chunks_mut(PIECE));
        self.each(pieces.collect(), |((rows, unit), norms)| {
            self.arch.dispatch(
                #[inline(always)]
                || {
                    for ((target, unit), norm) in rows.iter().zip(unit.chunks_exact_mut(d)).zip(norms) {
                        self.x.widen_row(target.row, unit);
                        *norm = Norm::of(unit);
                        normalize(unit, *norm);
                    }
                },
            );
        });
        self.each(unit_t.chunks_mut(PIECE * count).enumerate().collect(), |(piece, unit_t)| {
            for (i, row) in unit.chunks_exact(d).enumerate() {
                for (column, &value) in unit_t.chunks_exact_mut(count).zip(&row[piece * PIECE..]) {
                    column[i] = value;
                }
            }
        });
        let mut by_class: Vec<_> = rows.iter().enumerate().map(|(i, target)| (target.class, i as u32)).collect();
        by_class.sort_unstable();
        Block { rows, unit, unit_t, norms, by_class }
    }

    /// A tile of W: its own rows where they are of the accumulation type and short enough for products, else a copy in `scratch`.
    #[inline(always)]
    fn tile<'t>(
        &self,
        classes: std::ops::Range<usize>,
        norms: &mut [Option<Norm>],
        scratch: &'t mut Vec<X::Acc>,
    ) -> Tile<'t, X::Acc>
    where
        'a: 't,
    {
        let (d, count) = (self.d, classes.len());
        if let Some((data, row_stride)) = self.w.borrow(classes.start) {
            for (j, norm) in norms.iter_mut().enumerate() {
                if norm.is_none() {
                    *norm = Some(Norm::of(&data[j * row_stride..][..d]));
                }
            }
            if !norms.iter().flatten().any(|norm| norm.long) {
                return Tile { rows: Matrix::of_rows(data, count, d, row_stride), data, row_stride };
            }
        }
        scratch.resize(count * d, X::Acc::ZERO);
        for ((class, row), norm) in classes.zip(scratch.chunks_exact_mut(d)).zip(norms) {
            self.w.widen_row(class, row);
            let known = match *norm {
                Some(known) => known,
                None => Norm::of(row),
            };
            *norm = Some(known);
            if known.long {
                normalize(row, known);
            }
        }
        Tile { rows: Matrix::of_rows(scratch, count, d, d), data: scratch, row_stride: d }
    }

    /// Step 2: cosines of a block against a range of classes, and their statistics where they are asked for.
    fn cosines(
        &self,
        block: &Block<X::Acc>,
        range: std::ops::Range<usize>,
        cosines: &mut [X::Acc],
        norms: &mut [Option<Norm>],
        accumulated: Option<&mut Accumulated>,
    ) {
        struct Lane<'l, T> {
            start: usize,
            cosines: &'l mut [T],
            norms: &'l mut [Option<Norm>],
            partials: Vec<Partial<T>>,
        }
        let (d, rows, width) = (self.d, block.rows.len(), self.plan.lane);
        let cosines = &mut cosines[..rows * range.len()];
        let want = accumulated.is_some();
        let mut lanes: Vec<Lane<X::Acc>> = cosines
            .chunks_mut(width * rows)
            .zip(norms[range.clone()].chunks_mut(width))
            .enumerate()
            .map(|(l, (cosines, norms))| Lane { start: range.start + l * width, cosines, norms, partials: Vec::new() })
            .collect();
        let unit = Matrix::of_rows(block.unit_t, d, rows, rows); // (D, R)
        let lanes_mut: Vec<&mut Lane<X::Acc>> = lanes.iter_mut().collect();
        self.each(lanes_mut, |lane| {
            let mut scratch = Vec::new();
            let tile_classes = self.plan.tile;
            let tiles = lane.cosines.chunks_mut(tile_classes * rows).zip(lane.norms.chunks_mut(tile_classes));
            for (t, (cosines, norms)) in tiles.enumerate() {
                let start = lane.start + t * tile_classes;
                let classes = start..start + norms.len();
                self.arch.dispatch(
                    #[inline(always)]
                    || {
                        let tile = self.tile(classes.clone(), norms, &mut scratch);
                        product(cosines, false, tile.rows, unit);
                        for (row, norm) in cosines.chunks_exact_mut(rows).zip(norms.iter()) {
                            sweep::to_cosines(row, sigma(norm.expect("set with the tile")));
                        }
                        if want {
                            lane.partials.push(self.statistics(block, classes, cosines));
                        }
                    },
                );
            }
        });
        if let Some(accumulated) = accumulated {
            for partial in lanes.iter_mut().flat_map(|lane| &mut lane.partials) {
                accumulated.fold(&partial.view(rows));
            }
            for &(class, row) in block.targets_in(&range) {
                let j = class as usize - range.start;
                let cosine = lanes[j / width].cosines[j % width * rows + row as usize];
                accumulated.target[row as usize] = cosine.f64();
            }
        }
    }

    #[inline(always)]
    fn statistics(
        &self,
        block: &Block<X::Acc>,
        classes: std::ops::Range<usize>,
        cosines: &[X::Acc],
    ) -> Partial<X::Acc> {
        let rows = block.rows.len();
        let mut partial = Partial::new(rows);
        let mut saved = Vec::new();
        let mut out = partial.view(rows);
        let mut targets = block.targets_in(&classes);
        for (row, class) in cosines.chunks_exact(rows).zip(classes.clone()) {
            let of_class = take_class(&mut targets, class as u32);
            sweep::maxima(row, class as u32, self.logit(class), of_class, &mut saved, &mut out);
        }
        let mut targets = block.targets_in(&classes);
        for (row, class) in cosines.chunks_exact(rows).zip(classes) {
            let of_class = take_class(&mut targets, class as u32);
            sweep::sums(row, self.logit(class), of_class, &mut saved, &mut out);
        }
        partial
    }

    #[inline(always)]
    fn logit(&self, class: usize) -> Logit<X::Acc> {
        Logit { scale: X::Acc::of(self.params.scale), prior: X::Acc::of(self.params.log_prior[class]) }
    }

    /// What step 4 takes of the rows from `first` on; nothing where no gradient is asked for.
    fn constants(
        &self,
        pass: Pass,
        states: &[RowState],
        first: usize,
        rows: &[TargetRow],
    ) -> Option<RowConstants<X::Acc>> {
        let factor = self.targets.reduction_factor();
        let (states, upstream) = match pass {
            Pass::Loss => return None,
            Pass::LossAndGradients => (states, None),
            Pass::Gradients { states, upstream } => (states, Some(upstream)),
        };
        let mut constants = RowConstants::with_capacity(rows.len());
        for (target, state) in rows.iter().zip(&states[first..]) {
            let upstream = upstream.map_or(1.0, |upstream| upstream[target.row]);
            let coefficient = upstream * factor * target.weight * self.params.scale;
            state.push_constants(coefficient, self.params, &mut constants);
        }
        Some(constants)
    }

    /// Step 4: cosines to gradients, into the lanes' sums of dX and into dW.
    #[allow(clippy::too_many_arguments)]
    fn gradient(
        &self,
        block: &Block<X::Acc>,
        range: std::ops::Range<usize>,
        cosines: &mut [X::Acc],
        norms: &[Option<Norm>],
        constants: &mut RowConstants<X::Acc>,
        row_dots: &mut [X::Acc],
        sums: Option<&mut [X::Acc]>,
        sink: WeightSink<W>,
    ) {
        struct Lane<'l, T, W: Element> {
            start: usize,
            cosines: &'l mut [T],
            norms: &'l [Option<Norm>],
            row_dots: &'l mut [T],
            sum: Option<&'l mut [T]>,
            sink: WeightSink<'l, W>,
        }
        let (d, rows, width) = (self.d, block.rows.len(), self.plan.lane);
        let first_range = range.start == 0;
        let cosines = &mut cosines[..rows * range.len()];
        let lanes: Vec<Lane<X::Acc, W>> = cosines
            .chunks_mut(width * rows)
            .zip(norms[range.clone()].chunks(width))
            .zip(row_dots.chunks_mut(rows))
            .zip(split(sums, self.plan.rows * d))
            .zip(sink.split(width * d))
            .enumerate()
            .map(|(l, ((((cosines, norms), row_dots), sum), sink))| {
                let start = range.start + l * width;
                Lane { start, cosines, norms, row_dots, sum: sum.map(|sum| &mut sum[..rows * d]), sink }
            })
            .collect();
        let unit = Matrix::of_rows(block.unit, rows, d, d); // (R, D)
        self.each(lanes, |mut lane| {
            let mut constants = constants.clone();
            let (mut scratch, mut dw_scratch, mut saved) = (Vec::new(), Vec::new(), Vec::new());
            let tile_classes = self.plan.tile;
            let tiles = lane
                .cosines
                .chunks_mut(tile_classes * rows)
                .zip(lane.norms.chunks(tile_classes))
                .zip(lane.sink.split(tile_classes * d));
            for (t, ((cosines, norms), sink)) in tiles.enumerate() {
                let start = lane.start + t * tile_classes;
                let classes = start..start + norms.len();
                self.arch.dispatch(
                    #[inline(always)]
                    || {
                        let mut class_dots = Vec::with_capacity(norms.len());
                        let mut targets = block.targets_in(&classes);
                        for ((row, class), norm) in cosines.chunks_exact_mut(rows).zip(classes.clone()).zip(norms) {
                            let sigma = sigma(norm.expect("set with the cosines"));
                            let of_class = take_class(&mut targets, class as u32);
                            let logit = self.logit(class);
                            class_dots.push(sweep::gradients(
                                row,
                                logit,
                                sigma,
                                of_class,
                                &mut saved,
                                &mut constants,
                                lane.row_dots,
                            ));
                        }
                        let mut known = norms.to_vec();
                        let tile = self.tile(classes, &mut known, &mut scratch);
                        if let Some(sum) = lane.sum.as_deref_mut() {
                            let g = Matrix::of_rows(cosines, norms.len(), rows, rows).transposed(); // (R, classes)
                            product(sum, t > 0 || !first_range, g, tile.rows);
                        }
                        if !matches!(sink, WeightSink::None) {
                            self.write_weight(&tile, norms, cosines, unit, &class_dots, &mut dw_scratch, sink);
                        }
                    },
                );
            }
        });
    }

    /// dW of a tile: h·X̂ − (Σ_i g·c)·ŵ, over ‖w‖. `gradients` (classes, R) holds h = σ·g.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn write_weight(
        &self,
        tile: &Tile<X::Acc>,
        norms: &[Option<Norm>],
        gradients: &mut [X::Acc],
        unit: Matrix<X::Acc>,
        class_dots: &[X::Acc],
        scratch: &mut Vec<X::Acc>,
        sink: WeightSink<W>,
    ) {
        let d = self.d;
        let rows = gradients.len() / norms.len();
        for (row, norm) in gradients.chunks_exact_mut(rows).zip(norms.iter().flatten()) {
            if norm.long {
                sweep::scale(row, X::Acc::of(norm.inverse)); // σ was 1
            }
        }
        let lhs = Matrix::of_rows(gradients, norms.len(), rows, rows);
        match sink {
            WeightSink::None => {}
            WeightSink::Sum(dw, accumulate) => {
                product(dw, accumulate, lhs, unit);
                self.project(tile, norms, class_dots, dw);
            }
            WeightSink::Write(dw) => match W::as_acc_mut(dw) {
                Some(dw) => {
                    product(dw, false, lhs, unit);
                    self.project(tile, norms, class_dots, dw);
                }
                None => {
                    scratch.resize(norms.len() * d, X::Acc::ZERO);
                    product(scratch, false, lhs, unit);
                    self.project(tile, norms, class_dots, scratch);
                    W::narrow_slice(scratch, dw);
                }
            },
        }
    }

    /// The derivative of W's normalisation: `dw` (classes, D) −= (Σ_i g·c)·ŵ / ‖w‖.
    #[inline(always)]
    fn project(&self, tile: &Tile<X::Acc>, norms: &[Option<Norm>], class_dots: &[X::Acc], dw: &mut [X::Acc]) {
        for (j, dw) in dw.chunks_exact_mut(self.d).enumerate() {
            if let Some(norm) = norms[j]
                && norm.projects
            {
                let factor = class_dots[j] * X::Acc::of(norm.inverse) * sigma(norm);
                sweep::subtract_scaled(dw, tile.row(j, self.d), factor);
            }
        }
    }

    /// Step 5: dX of a block from the lanes' sums and dots.
    fn write_features(&self, block: &Block<X::Acc>, sums: &[X::Acc], row_dots: &[X::Acc], dx: &mut [X]) {
        let (d, rows) = (self.d, block.rows.len());
        let lane_len = self.plan.rows * d;
        let (first, last) = (block.rows[0].row, block.rows[rows - 1].row);
        let mut wanted = block.rows.iter().enumerate().peekable();
        let mut outs: Vec<(usize, &mut [X])> = dx[first * d..(last + 1) * d]
            .chunks_exact_mut(d)
            .zip(first..)
            .filter_map(|(out, n)| wanted.next_if(|(_, target)| target.row == n).map(|(i, _)| (i, out)))
            .collect();
        self.each(outs.chunks_mut(PIECE).collect(), |outs| {
            self.arch.dispatch(
                #[inline(always)]
                || {
                    for (i, out) in outs {
                        let norm = block.norms[*i];
                        let mut dot = X::Acc::ZERO;
                        if norm.projects {
                            for lane in row_dots.chunks_exact(rows) {
                                dot += lane[*i];
                            }
                        }
                        let inverse = X::Acc::of(norm.inverse);
                        let unit = &block.unit[*i * d..][..d];
                        let mut sum = [X::Acc::ZERO; 256];
                        for start in (0..d).step_by(sum.len()) {
                            let end = (start + sum.len()).min(d);
                            let sum = &mut sum[..end - start];
                            sum.fill(X::Acc::ZERO);
                            for lane in sums.chunks_exact(lane_len) {
                                sweep::add(sum, &lane[*i * d + start..*i * d + end]);
                            }
                            sweep::subtract_scaled(sum, &unit[start..end], dot);
                            sweep::scale(sum, inverse);
                            X::narrow_slice(sum, &mut out[start..end]);
                        }
                    }
                },
            )
        });
    }
}

/// 0..c in ranges of `size`.
fn ranges(c: usize, size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..c).step_by(size).map(move |start| start..(start + size).min(c))
}

/// Chunks of what there may be, or endlessly nothing.
fn split<T>(slice: Option<&mut [T]>, size: usize) -> impl Iterator<Item = Option<&mut [T]>> {
    let nothing = slice.is_none();
    slice
        .into_iter()
        .flat_map(move |slice| slice.chunks_mut(size))
        .map(Some)
        .chain(std::iter::repeat_with(|| None).take_while(move |_| nothing))
}

/// Where a range's or tile's dW goes.
enum WeightSink<'s, W: Element> {
    /// Nowhere.
    None,
    /// Over what is there, rounded to W.
    Write(&'s mut [W]),
    /// Into sums of the accumulation type: added where true, else over what is there.
    Sum(&'s mut [W::Acc], bool),
}

impl<'s, W: Element> WeightSink<'s, W> {
    fn split(self, size: usize) -> Box<dyn Iterator<Item = WeightSink<'s, W>> + 's> {
        match self {
            WeightSink::None => Box::new(std::iter::repeat_with(|| WeightSink::None)),
            WeightSink::Write(dw) => Box::new(dw.chunks_mut(size).map(WeightSink::Write)),
            WeightSink::Sum(dw, add) => Box::new(dw.chunks_mut(size).map(move |dw| WeightSink::Sum(dw, add))),
        }
    }
}

/// A tile's statistics, (R) each.
struct Partial<T> {
    /// max, sum, total and best, one after the other
    values: Vec<T>,
    best_class: Vec<u32>,
}

impl<T: Real> Partial<T> {
    fn new(rows: usize) -> Self {
        let mut values = vec![T::NEG_INFINITY; 4 * rows];
        values[rows..3 * rows].fill(T::ZERO);
        Self { values, best_class: vec![0; rows] }
    }

    fn view(&mut self, rows: usize) -> Statistics<'_, T> {
        let (max, rest) = self.values.split_at_mut(rows);
        let (sum, rest) = rest.split_at_mut(rows);
        let (total, best) = rest.split_at_mut(rows);
        Statistics { max, sum, total, best, best_class: &mut self.best_class }
    }
}
