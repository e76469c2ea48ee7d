//! A call's arguments, as the kernels take them, and what its launchers need to know beside them.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::{DType, Tensor};
use cudarc::driver::{CudaStream, result};

use super::device::{Kernels, check_capture};
use super::kind::{Accumulator, Kind};
use super::memory::{by_rows, pointer};
use super::params::{self, MarginLossCall, MarginLossChunk};
use super::plan::{Chunk, Limits, Sizes, align};
use super::states::StatesLayout;
use super::tables::TablePool;
use super::workspace::{Memory, WorkspacePool};
use crate::error::Result;
use crate::options::DEFAULT_CUDA_WORKSPACE_BYTES;
use crate::problem::{Gradients, Problem};

/// A call on its device: what plans are made from, and the arguments of its kernels.
pub(super) struct Call<'a> {
    pub problem: &'a Problem<'a>,
    pub stream: &'a Arc<CudaStream>,
    pub kernels: &'a Kernels,
    pub kind: Kind,
    pub sizes: Sizes,
    pub limits: Limits,
    /// The address of 1.0
    pub one: u64,
    /// Bytes of workspace
    pub budget: usize,
    /// Sizes, options and inputs are set; the rest is null until a launcher sets it.
    pub arguments: MarginLossCall,
    /// Where the rows' states lie that nothing keeps: at the workspace's beginning
    pub states: Option<StatesLayout>,
    /// Bytes that any workspace of this call has: where it does not grow, states stay where they are
    pub least_workspace: usize,
    workspaces: Option<&'a WorkspacePool>,
    memory: Option<Memory>,
}

impl Call<'_> {
    /// The address of a workspace for what is launched next: `counters` of u32, which are 0, and behind them `bytes`, which are unspecified. It
    /// is the same memory each time, or where that is too small another.
    pub fn workspace(&mut self, counters: usize, bytes: usize) -> Result<u64> {
        let states = self.states.map_or(0, |states| align(states.end));
        let wanted = states + (align(4 * counters) + bytes).max(self.least_workspace);
        if wanted == 0 {
            return Ok(0);
        }
        let base = match &self.memory {
            Some(memory) if memory.bytes >= wanted => memory.address,
            _ => {
                self.release();
                let memory = match self.workspaces {
                    Some(pool) => pool.lend(self.stream, wanted)?,
                    None => Memory::new(self.stream, wanted)?,
                };
                self.memory.insert(memory).address
            }
        };
        if let Some(states) = self.states {
            states.point_at(base, &mut self.arguments);
        }
        let base = base + states as u64;
        if counters > 0 {
            // SAFETY: so many bytes are the workspace's, and nothing else that is in the stream has them.
            unsafe { result::memset_d8_async(base, 0, 4 * counters, self.stream.cu_stream()) }.w()?;
        }
        Ok(base)
    }

    /// Gives the workspace back: all that has it is in the stream.
    fn release(&mut self) {
        if let (Some(memory), Some(pool)) = (self.memory.take(), self.workspaces) {
            pool.give_back(memory);
        }
    }

    /// Sets the addresses of the gradients `out`.
    pub fn set_gradients(&mut self, dx: u64, dw: u64, out: Gradients) {
        (self.arguments.dx, self.arguments.dw) = (dx as _, dw as _);
        self.arguments.wide_gradients = (!out.are_of(self.problem)).into();
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Lends `work` a call.
pub(super) fn with_call<R>(
    problem: &Problem,
    pool: &TablePool,
    work: impl FnOnce(&mut Call) -> Result<R>,
) -> Result<R> {
    let device = problem.features.device().as_cuda_device()?;
    let stream = device.cuda_stream();
    // Another device's context may be this thread's.
    stream.context().bind_to_thread().w()?;
    check_capture(&stream, false)?;
    let tables = pool.on(device, problem.params())?;
    let sin_floor = if problem.accumulation_dtype() == DType::F64 { f64::SIN_FLOOR } else { f32::SIN_FLOOR };
    let mut options = params::options(problem.params(), sin_floor);
    (options.angular, options.additive) = (tables.angular as _, tables.additive as _);
    (options.prior, options.weights) = (tables.prior.unwrap_or(0) as _, tables.weights.unwrap_or(0) as _);

    // Rows may lie anywhere, their elements side by side.
    let (x, w) = (by_rows(problem.features)?, by_rows(problem.weight)?);
    let ((x_storage, x_layout), (w_storage, w_layout)) = (x.storage_and_layout(), w.storage_and_layout());
    let ((x, _x), (w, _w)) = (pointer(&x_storage, x_layout, &stream)?, pointer(&w_storage, w_layout, &stream)?);
    let (y_storage, y_layout) = problem.labels.storage_and_layout();
    let (labels, _y) = pointer(&y_storage, y_layout, &stream)?;
    let weights = problem.rows.sample_weights.map(|weights| weights.storage_and_layout());
    let margins = problem.rows.margins.map(|margins| margins.storage_and_layout());
    let (sample_weights, _s) =
        weights.as_ref().map(|(storage, layout)| pointer(storage, layout, &stream)).transpose()?.unzip();
    let (row_margins, _m) =
        margins.as_ref().map(|(storage, layout)| pointer(storage, layout, &stream)).transpose()?.unzip();
    let arguments = MarginLossCall {
        options,
        n: problem.n as i64,
        c: problem.c as i64,
        d: problem.d as i64,
        x: x as _,
        w: w as _,
        labels: labels as _,
        sample_weights: sample_weights.unwrap_or(0) as _,
        row_margins: row_margins.unwrap_or(0) as _,
        x_stride: x_layout.stride()[0] as i64,
        w_stride: w_layout.stride()[0] as i64,
        label_stride: y_layout.stride()[0] as i64,
        sample_weight_stride: weights.as_ref().map_or(0, |(_, layout)| layout.stride()[0] as i64),
        row_margin_stride: margins.as_ref().map_or(0, |(_, layout)| layout.stride()[0] as i64),
        row_margin_step: margins.as_ref().map_or(0, |(_, layout)| layout.stride()[1] as i64),
        label_type: match problem.labels.dtype() {
            DType::U8 => params::MARGIN_LOSS_U8,
            DType::U32 => params::MARGIN_LOSS_U32,
            _ => params::MARGIN_LOSS_I64,
        } as i32,
        gradient_scale: problem.upstream,
        sample_weight_type: type_of(problem.rows.sample_weights),
        row_margin_type: type_of(problem.rows.margins),
        ..Default::default()
    };
    let limits = tables.kernels.limits;
    let budget = problem.params().workspace_bytes.unwrap_or(DEFAULT_CUDA_WORKSPACE_BYTES);
    let kind = Kind::of(problem, &limits, budget);
    let sizes = kind.problem_sizes([problem.n, problem.c, problem.d]);
    work(&mut Call {
        problem,
        stream: &stream,
        kernels: &tables.kernels,
        kind,
        sizes,
        limits,
        one: tables.one,
        budget,
        arguments,
        states: None,
        least_workspace: 0,
        workspaces: problem.params().keep_workspace.then_some(&pool.workspaces),
        memory: None,
    })
}

fn type_of(tensor: Option<&Tensor>) -> i32 {
    let number = match tensor.map(Tensor::dtype) {
        None => params::MARGIN_LOSS_NONE,
        Some(DType::F16) => params::MARGIN_LOSS_F16,
        Some(DType::BF16) => params::MARGIN_LOSS_BF16,
        Some(DType::F32) => params::MARGIN_LOSS_F32,
        Some(_) => params::MARGIN_LOSS_F64,
    };
    number as i32
}

/// A chunk as the kernels take it, with its parts of the workspace.
pub(super) fn chunk_arguments(
    call: &MarginLossCall,
    sizes: &Sizes,
    chunk: &Chunk,
    workspace: u64,
    arrivals: u64,
) -> MarginLossChunk {
    let d = sizes.d;
    let memory = &chunk.memory;
    // What several chunks add to comes first: it stays where it is when the other parts change their sizes.
    let dx_sums = workspace;
    let dw_sums = dx_sums + align(memory.dx_sums) as u64;
    let class_dots = dw_sums + align(memory.dw_sums) as u64;
    let g = class_dots + align(memory.class_dots) as u64;
    let partial_sums = g + align(memory.g) as u64;
    let (rows, classes) = (chunk.rows.len(), chunk.classes.len());
    // Where a gradient has the type of its sums, they are summed in it.
    let in_place = |gradient: *mut std::ffi::c_void, first: usize| gradient as u64 + (first * d * sizes.sum) as u64;
    MarginLossChunk {
        row0: chunk.rows.start as i64,
        rows: rows as i64,
        class0: chunk.classes.start as i64,
        classes: classes as i64,
        g: g as _,
        stride: chunk.stride as i64,
        class_dots: class_dots as _,
        partial_sums: partial_sums as _,
        arrivals: arrivals as _,
        dx_sums: if sizes.x < sizes.sum { dx_sums } else { in_place(call.dx, chunk.rows.start) } as _,
        dw_sums: if sizes.w < sizes.sum { dw_sums } else { in_place(call.dw, chunk.classes.start) } as _,
        dx_splits: chunk.dx_splits as i64,
        dw_splits: chunk.dw_splits as i64,
        dx: chunk.dx.into(),
        dw: chunk.dw.into(),
        first_classes: (chunk.classes.start == 0).into(),
        last_classes: (chunk.classes.end == sizes.c).into(),
        first_rows: (chunk.rows.start == 0).into(),
        last_rows: (chunk.rows.end == sizes.n).into(),
    }
}
