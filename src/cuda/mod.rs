//! The fused path on a CUDA device: a loss's tables and a call's tensors as the kernels take them, and the launches of a call.
//!
//! Where loss and gradients are wanted at once and the cosines fit into the shared memory of the whole device: `fused_step`, one launch. Else
//!
//! 1. `stream_forward`: every row's loss and state, the reduced loss.
//! 2. `stream_backward`, dX and dW by one block, for a problem of a few tiles ([`plan::Alone`]). Else for each chunk of the backward pass
//!    ([`plan::Backward`]; at usual sizes there is one): `stream_gradient`, g of the chunk into the workspace; `stream_contract`, dX and dW from
//!    g.
//!
//! Everything is put on the device's stream; nothing waits for it, but the check of labels and sample weights where that is on.

#[cfg(test)]
mod host;
mod params;
mod plan;

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::cuda::gemm_reduced_precision_f32;
use candle_core::cuda_backend::{CudaDType, CudaStorage, CudaStorageSlice, DeviceId, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaDevice, DType, InplaceOp1, Layout, Shape, Storage, Tensor};
use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
    ValidAsZeroBits,
};
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::loss::{DEFAULT_CUDA_WORKSPACE_BYTES, LossOutput, Reduction};
use crate::problem::{Gradients, Problem};
use params::{MarginLossCall, MarginLossChunk};
use plan::{Alone, Backward, Chunk, Forward, Fused, KindSizes, Limits, Sizes, THREADS, TILE, align};

const STREAM_FORWARD: Module = Module {
    name: "candle_margin_loss_stream_forward",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/stream_forward.ptx")),
};
const STREAM_BACKWARD: Module = Module {
    name: "candle_margin_loss_stream_backward",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/stream_backward.ptx")),
};

const FUSED_STEP: Module =
    Module { name: "candle_margin_loss_fused_step", ptx: include_str!(concat!(env!("OUT_DIR"), "/fused_step.ptx")) };

/// Kernels compiled together. Candle keeps modules by name, whoever brought them: the name is ours alone.
struct Module {
    name: &'static str,
    ptx: &'static str,
}

/// A loss's tables on the devices it has been used on: uploaded once for each.
#[derive(Debug, Default)]
pub(crate) struct TablePool(Mutex<Vec<(DeviceId, Arc<Tables>)>>);

/// (C) each, f64. A prior or weights that are the same for every class are left out.
#[derive(Debug)]
struct Tables {
    angular: CudaSlice<f64>,
    additive: CudaSlice<f64>,
    prior: Option<CudaSlice<f64>>,
    weights: Option<CudaSlice<f64>>,
}

impl TablePool {
    fn on(&self, problem: &Problem, device: &CudaDevice) -> Result<Arc<Tables>> {
        let mut all = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, tables)) = all.iter().find(|(id, _)| *id == device.id()) {
            return Ok(tables.clone());
        }
        let params = problem.params();
        let upload = |values: &[f64]| device.clone_htod(values);
        let unless =
            |values: &[f64], plain: f64| values.iter().any(|&v| v != plain).then(|| upload(values)).transpose();
        let tables = Arc::new(Tables {
            angular: upload(&params.angular)?,
            additive: upload(&params.additive)?,
            prior: unless(&params.log_prior, 0.0)?,
            weights: unless(&params.weights, 1.0)?,
        });
        all.push((device.id(), tables.clone()));
        Ok(tables)
    }
}

/// What a forward pass leaves for a backward pass of other upstream gradients: the rows' states, the classes' norms, the reduction's factor.
#[derive(Debug)]
pub(crate) struct States {
    memory: CudaSlice<u8>,
}

/// Where the parts of [`States`] begin, in bytes.
struct StatesLayout {
    class_norms: usize,
    factor: usize,
    bad_row: usize,
    end: usize,
}

impl StatesLayout {
    fn new<T: Accumulator>(n: usize, c: usize) -> Self {
        let class_norms = align(n * T::ROW_STATE);
        let factor = class_norms + align(c * T::NORM);
        Self { class_norms, factor, bad_row: factor + 8, end: factor + 16 }
    }
}

/// The types that sums are in.
trait Accumulator: CudaDType + DeviceRepr + ValidAsZeroBits {
    const ROW_STATE: usize;
    const NORM: usize;
    const STATISTICS: usize;
    const SIN_FLOOR: f64;
}

impl Accumulator for f32 {
    const ROW_STATE: usize = params::MARGIN_LOSS_ROW_STATE_F32 as usize;
    const NORM: usize = params::MARGIN_LOSS_NORM_F32 as usize;
    const STATISTICS: usize = params::MARGIN_LOSS_STATISTICS_F32 as usize;
    const SIN_FLOOR: f64 = 0.000345266983001244; // √ε
}

impl Accumulator for f64 {
    const ROW_STATE: usize = params::MARGIN_LOSS_ROW_STATE_F64 as usize;
    const NORM: usize = params::MARGIN_LOSS_NORM_F64 as usize;
    const STATISTICS: usize = params::MARGIN_LOSS_STATISTICS_F64 as usize;
    const SIN_FLOOR: f64 = 1.4901161193847656e-8; // √ε
}

/// New gradient tensors, each where it is wanted. What is in them is unspecified until a pass has written them.
pub(crate) fn new_gradients(
    problem: &Problem,
    features: bool,
    weight: bool,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let new = |wanted: bool, like: &Tensor| {
        // SAFETY: every element is written by the backward pass before the tensor is handed out.
        wanted.then(|| unsafe { Tensor::empty(like.dims(), like.dtype(), like.device()) }).transpose()
    };
    Ok((new(features, problem.features)?, new(weight, problem.weight)?))
}

/// The rows' losses and, where `out` wants them, the gradients of their reduction.
pub(crate) fn forward(problem: &Problem, out: Gradients) -> Result<(LossOutput, States)> {
    match problem.accumulation_dtype() {
        DType::F64 => typed_forward::<f64>(problem, out),
        _ => typed_forward::<f32>(problem, out),
    }
}

/// The gradients for `upstream` (N), one ∂L/∂ℓ a row.
pub(crate) fn backward(problem: &Problem, states: &States, upstream: &Tensor, out: Gradients) -> Result<()> {
    if problem.n == 0 {
        return zero_gradients(out);
    }
    let upstream = upstream.to_dtype(problem.accumulation_dtype())?.contiguous()?;
    with_call(problem, |device, stream, call| {
        let layout = match problem.accumulation_dtype() {
            DType::F64 => StatesLayout::new::<f64>(problem.n, problem.c),
            _ => StatesLayout::new::<f32>(problem.n, problem.c),
        };
        let (storage, upstream_layout) = upstream.storage_and_layout();
        let (upstream, _upstream) = pointer(&storage, upstream_layout, stream)?;
        let (base, _states) = states.memory.device_ptr(stream);
        call.upstream = upstream as _;
        point_at(call, base, &layout);
        gradients(problem, device, stream, call, out)
    })
}

/// dX and dW, as far as they are there, by `upstream`, a scalar of the loss's dtype that stays on the device.
pub(crate) fn scaled(
    dx: Option<&Tensor>,
    dw: Option<&Tensor>,
    upstream: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (Some(x), Some(w)) = (dx.or(dw), dw.or(dx)) else { return Ok((None, None)) };
    let device = upstream.device().as_cuda_device()?;
    let stream = device.cuda_stream();
    let count = |gradient: Option<&Tensor>| gradient.map_or(0, Tensor::elem_count);
    // SAFETY: the kernel writes every element.
    let new = |gradient: &Tensor| unsafe { Tensor::empty(gradient.dims(), gradient.dtype(), gradient.device()) };
    let (to_dx, to_dw) = (dx.map(new).transpose()?, dw.map(new).transpose()?);
    let (x_count, w_count) = (count(dx), count(dw));
    if x_count.max(w_count) == 0 {
        return Ok((to_dx, to_dw));
    }
    let (x_from, w_from) = (dx.map(Tensor::storage_and_layout), dw.map(Tensor::storage_and_layout));
    let (from_x, _x) = x_from.as_ref().map(|(storage, layout)| pointer(storage, layout, &stream)).transpose()?.unzip();
    let (from_w, _w) = w_from.as_ref().map(|(storage, layout)| pointer(storage, layout, &stream)).transpose()?.unzip();
    let (from_x, from_w) = (from_x.unwrap_or(0), from_w.unwrap_or(0));
    let (by, by_layout) = upstream.storage_and_layout();
    let (by, _by) = pointer(&by, by_layout, &stream)?;
    let kind = Kind { x: x.dtype(), w: w.dtype(), by: Products::Fma }; // of one gradient alone, its type twice
    let name = format!("scale_gradients_{}", kind.suffix());
    let function = device.get_or_load_custom_func(&name, STREAM_BACKWARD.name, STREAM_BACKWARD.ptx)?;
    let blocks = x_count.max(w_count).div_ceil(8 * THREADS as usize).min(16 * limits(&stream)?.multiprocessors);
    with_optional_pointer(to_dx.as_ref().filter(|_| x_count > 0), &stream, |to_x| {
        with_optional_pointer(to_dw.as_ref().filter(|_| w_count > 0), &stream, |to_w| {
            let (x_count, w_count) = (x_count as i64, w_count as i64);
            let mut builder = function.builder();
            builder.arg(&to_x).arg(&from_x).arg(&x_count).arg(&to_w).arg(&from_w).arg(&w_count).arg(&by);
            // SAFETY: `to_x` and `from_x` are `x_count` elements of X's type, `to_w` and `from_w` `w_count` of W's, and `by` is one of their type of
            // accumulation.
            unsafe { builder.launch(config(blocks)?) }.w()?;
            Ok(())
        })
    })?;
    Ok((to_dx, to_dw))
}

fn typed_forward<T: Accumulator>(problem: &Problem, out: Gradients) -> Result<(LossOutput, States)> {
    let (n, c) = (problem.n, problem.c);
    let layout = StatesLayout::new::<T>(n, c);
    with_call(problem, |device, stream, call| {
        if n == 0 {
            zero_gradients(out)?;
            let outputs = Outputs::<T>::new(problem, device, true)?;
            return Ok((outputs.wrap(problem, device), States { memory: device.alloc_zeros(layout.end)? }));
        }
        let mut outputs = Outputs::<T>::new(problem, device, false)?;
        // SAFETY: the forward pass writes every state and norm before anything reads them.
        let mut memory = unsafe { device.alloc::<u8>(layout.end)? };
        {
            let (base, _memory) = memory.device_ptr_mut(stream);
            let _outputs = outputs.point_at(call, stream);
            point_at(call, base, &layout);
            if !fused_step(problem, device, stream, call, out)? {
                stream_forward(problem, device, stream, call)?;
                gradients(problem, device, stream, call, out)?;
            }
        }
        if problem.params().check_labels {
            let bad = device.clone_dtoh(&memory.slice(layout.bad_row..layout.bad_row + 8))?;
            let bad = u64::from_le_bytes(bad.try_into().expect("eight bytes"));
            if bad != 0 {
                return Err(problem.bad_row(bad as usize - 1)?);
            }
        }
        Ok((outputs.wrap(problem, device), States { memory }))
    })
}

fn stream_forward(
    problem: &Problem,
    device: &CudaDevice,
    stream: &CudaStream,
    call: &mut MarginLossCall,
) -> Result<()> {
    let (sizes, kind) = (sizes(problem), Kind::of(problem));
    let plan = Forward::new(&sizes, &limits(stream)?, &kind.sizes());
    let mut arrivals = counters(device, plan.arrivals())?;
    let partials = plan.partials(&sizes, &kind.sizes());
    // SAFETY: a split's statistics are written before the last one reads them.
    let mut partials = (partials > 0).then(|| unsafe { device.alloc::<u8>(partials) }).transpose()?;
    let arrivals = arrivals.as_mut().map(|arrivals| arrivals.device_ptr_mut(stream));
    let partials = partials.as_mut().map(|partials| partials.device_ptr_mut(stream));
    call.arrivals = arrivals.as_ref().map_or(0, |(address, _)| *address) as _;
    call.partials = partials.as_ref().map_or(0, |(address, _)| *address) as _;
    call.splits = plan.splits as i64;
    let name = format!("stream_forward_{}", kind.suffix());
    let function = device.get_or_load_custom_func(&name, STREAM_FORWARD.name, STREAM_FORWARD.ptx)?;
    let mut builder = function.builder();
    builder.arg(&*call);
    // SAFETY: the call's addresses are of live memory of the sizes that params.h states; the grid is the plan's.
    unsafe { builder.launch(config(plan.row_tiles * plan.splits)?) }.w()?;
    Ok(())
}

/// Loss and gradients in one launch; false where that is not wanted or does not fit.
fn fused_step(
    problem: &Problem,
    device: &CudaDevice,
    stream: &CudaStream,
    call: &mut MarginLossCall,
    out: Gradients,
) -> Result<bool> {
    if problem.params().streaming {
        return Ok(false);
    }
    let (sizes, limits, kind) = (sizes(problem), limits(stream)?, Kind::of(problem));
    let (dx, dw) = (out.features.is_some(), out.weight.is_some());
    let Some(plan) = Fused::new(&sizes, &limits, &kind.sizes(), budget(problem), dx, dw) else {
        return Ok(false);
    };
    let name = format!("fused_step_{}", kind.suffix());
    let function = device.get_or_load_custom_func(&name, FUSED_STEP.name, FUSED_STEP.ptx)?;
    if !allow_shared(&function, &limits, plan.shared)? {
        return Ok(false);
    }
    let resident = function.occupancy_max_active_blocks_per_multiprocessor(THREADS, plan.shared, None).w()? as usize;
    if resident < plan.blocks_a_multiprocessor {
        return Ok(false);
    }
    // SAFETY: statistics, g, dots and sums are written before they are read.
    let mut workspace = (plan.bytes > 0).then(|| unsafe { device.alloc::<u8>(plan.bytes) }).transpose()?;
    let workspace = workspace.as_mut().map(|workspace| workspace.device_ptr_mut(stream));
    // One block has its workspace on chip, and addresses from 0 on.
    let base = workspace.as_ref().map_or(0, |(address, _)| *address);
    call.partials = (base + plan.partials as u64) as _;
    if let Some((rows, class_norms)) = plan.states {
        call.on_chip = 1;
        (call.rows, call.class_norms) = (rows as _, class_norms as _);
    }
    with_optional_pointer(out.features, stream, |dx| {
        with_optional_pointer(out.weight, stream, |dw| {
            (call.dx, call.dw) = (dx as _, dw as _);
            let mut arrivals = counters(device, plan.chunk.arrivals)?;
            let arrivals = arrivals.as_mut().map(|arrivals| arrivals.device_ptr_mut(stream));
            let arrivals = arrivals.as_ref().map_or(0, |(address, _)| *address);
            let chunk = chunk_arguments(call, &sizes, &plan.chunk, base + plan.workspace as u64, arrivals);
            let mut builder = function.builder();
            builder.arg(&*call).arg(&chunk);
            let config = LaunchConfig { shared_mem_bytes: plan.shared as u32, ..config(plan.blocks)? };
            // SAFETY: as for stream_forward; the whole grid is resident, as its barriers need.
            unsafe { builder.launch_cooperative(config) }.w()?;
            Ok(true)
        })
    })
}

/// Lets a function have as much dynamic shared memory as the device has for a block; false where that is less than `wanted` bytes.
fn allow_shared(function: &CudaFunction, limits: &Limits, wanted: usize) -> Result<bool> {
    // The same in every call: the attribute is the function's, and calls on other threads set it, too.
    let own = function.get_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).w()? as usize;
    let most = limits.shared_a_block.saturating_sub(own);
    if wanted > most {
        return Ok(false);
    }
    function.set_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most as i32).w()?;
    Ok(true)
}

/// Counters of the blocks that have come to something.
fn counters(device: &CudaDevice, count: usize) -> Result<Option<CudaSlice<u32>>> {
    Ok((count > 0).then(|| device.alloc_zeros(count)).transpose()?)
}

/// The backward pass, with a call whose states and upstream gradient are set.
fn gradients(
    problem: &Problem,
    device: &CudaDevice,
    stream: &CudaStream,
    call: &mut MarginLossCall,
    out: Gradients,
) -> Result<()> {
    if stream_backward(problem, device, stream, call, out)? {
        return Ok(());
    }
    let sizes = sizes(problem);
    let plan = Backward::new(&sizes, &limits(stream)?, budget(problem), out.features.is_some(), out.weight.is_some());
    if plan.chunks.is_empty() {
        return Ok(());
    }
    // SAFETY: each chunk writes its g, dots and sums before it reads them.
    let mut workspace = unsafe { device.alloc::<u8>(plan.bytes())? };
    let (base, _workspace) = workspace.device_ptr_mut(stream);
    with_optional_pointer(out.features, stream, |dx| {
        with_optional_pointer(out.weight, stream, |dw| {
            (call.dx, call.dw) = (dx as _, dw as _);
            plan.chunks.iter().try_for_each(|chunk| launch_chunk(problem, device, stream, call, &sizes, chunk, base))
        })
    })
}

/// The whole backward pass in one launch of one block; false where that is not wanted or does not fit.
fn stream_backward(
    problem: &Problem,
    device: &CudaDevice,
    stream: &CudaStream,
    call: &mut MarginLossCall,
    out: Gradients,
) -> Result<bool> {
    let (sizes, limits, kind) = (sizes(problem), limits(stream)?, Kind::of(problem));
    let (dx, dw) = (out.features.is_some(), out.weight.is_some());
    let Some(plan) = Alone::new(&sizes, &limits, &kind.sizes(), dx, dw) else {
        return Ok(false);
    };
    let name = format!("stream_backward_{}", kind.suffix());
    let function = device.get_or_load_custom_func(&name, STREAM_BACKWARD.name, STREAM_BACKWARD.ptx)?;
    if !allow_shared(&function, &limits, plan.shared)? {
        return Ok(false);
    }
    with_optional_pointer(out.features, stream, |dx| {
        with_optional_pointer(out.weight, stream, |dw| {
            (call.dx, call.dw) = (dx as _, dw as _);
            // g is on chip, and addresses from 0 on; nothing is split.
            let chunk = chunk_arguments(call, &sizes, &plan.chunk, plan.workspace as u64, 0);
            let mut builder = function.builder();
            builder.arg(&*call).arg(&chunk);
            let config = LaunchConfig { shared_mem_bytes: plan.shared as u32, ..config(1)? };
            // SAFETY: as for stream_forward; the shared memory is as large as the plan says.
            unsafe { builder.launch(config) }.w()?;
            Ok(true)
        })
    })
}

#[allow(clippy::too_many_arguments)]
fn launch_chunk(
    problem: &Problem,
    device: &CudaDevice,
    stream: &CudaStream,
    call: &MarginLossCall,
    sizes: &Sizes,
    chunk: &Chunk,
    workspace: u64,
) -> Result<()> {
    let kind = Kind::of(problem);
    let mut arrivals = counters(device, chunk.arrivals)?;
    let arrivals = arrivals.as_mut().map(|arrivals| arrivals.device_ptr_mut(stream));
    let address = arrivals.as_ref().map_or(0, |(address, _)| *address);
    let arguments = chunk_arguments(call, sizes, chunk, workspace, address);
    let (row_tiles, class_tiles) = (chunk.rows.len().div_ceil(TILE), chunk.classes.len().div_ceil(TILE));
    let d_tiles = sizes.d.div_ceil(TILE);
    let dw_blocks = if chunk.dw { class_tiles * d_tiles * chunk.dw_splits } else { 0 };
    let dx_blocks = if chunk.dx { row_tiles * d_tiles * chunk.dx_splits } else { 0 };
    for (kernel, blocks) in [("stream_gradient", row_tiles * class_tiles), ("stream_contract", dw_blocks + dx_blocks)] {
        let name = format!("{kernel}_{}", kind.suffix());
        let function = device.get_or_load_custom_func(&name, STREAM_BACKWARD.name, STREAM_BACKWARD.ptx)?;
        let mut builder = function.builder();
        builder.arg(call).arg(&arguments);
        // SAFETY: the addresses are of live memory of the sizes that params.h states, the workspace being as large as the plan says.
        unsafe { builder.launch(config(blocks)?) }.w()?;
    }
    Ok(())
}

/// A chunk as the kernels take it, with its parts of the workspace.
fn chunk_arguments(
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

/// N = 0: no row reaches anything.
fn zero_gradients(out: Gradients) -> Result<()> {
    for gradient in [out.features, out.weight].into_iter().flatten() {
        if gradient.elem_count() > 0 {
            gradient.zero_set()?;
        }
    }
    Ok(())
}

/// Tensors that a call gives, before they are tensors.
struct Outputs<T> {
    /// None where nothing is reduced
    loss: Option<CudaSlice<T>>,
    per_sample: CudaSlice<T>,
    predicted: CudaSlice<u32>,
    hard: CudaSlice<u8>,
    target_cosine: CudaSlice<T>,
}

impl<T: Accumulator> Outputs<T> {
    fn new(problem: &Problem, device: &CudaDevice, zero: bool) -> Result<Self> {
        fn new<E: DeviceRepr + ValidAsZeroBits>(device: &CudaDevice, count: usize, zero: bool) -> Result<CudaSlice<E>> {
            // SAFETY: the forward pass writes every element before the tensor is handed out.
            Ok(if zero { device.alloc_zeros(count)? } else { unsafe { device.alloc(count)? } })
        }
        let n = problem.n;
        let reduced = problem.params().reduction != Reduction::None;
        Ok(Self {
            loss: reduced.then(|| new(device, 1, zero)).transpose()?,
            per_sample: new(device, n, zero)?,
            predicted: new(device, n, zero)?,
            hard: new(device, n, zero)?,
            target_cosine: new(device, n, zero)?,
        })
    }

    fn point_at<'a>(&'a mut self, call: &mut MarginLossCall, stream: &'a CudaStream) -> Vec<SyncOnDrop<'a>> {
        let mut guards = Vec::new();
        let mut keep = |(address, guard)| {
            guards.push(guard);
            address
        };
        call.loss = self.loss.as_mut().map_or(0, |loss| keep(loss.device_ptr_mut(stream))) as _;
        call.per_sample = keep(self.per_sample.device_ptr_mut(stream)) as _;
        call.predicted = keep(self.predicted.device_ptr_mut(stream)) as _;
        call.hard = keep(self.hard.device_ptr_mut(stream)) as _;
        call.target_cosine = keep(self.target_cosine.device_ptr_mut(stream)) as _;
        guards
    }

    fn wrap(self, problem: &Problem, device: &CudaDevice) -> LossOutput {
        fn tensor<E: CudaDType>(slice: CudaSlice<E>, shape: impl Into<Shape>, device: &CudaDevice) -> Tensor {
            let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
            Tensor::from_storage(storage, shape, BackpropOp::none(), false)
        }
        let n = problem.n;
        let per_sample = tensor(self.per_sample, n, device);
        LossOutput {
            loss: self.loss.map_or_else(|| per_sample.clone(), |loss| tensor(loss, (), device)),
            per_sample,
            predicted: tensor(self.predicted, n, device),
            hard: tensor(self.hard, n, device),
            target_cosine: tensor(self.target_cosine, n, device),
        }
    }
}

fn point_at(call: &mut MarginLossCall, base: u64, layout: &StatesLayout) {
    call.rows = base as _;
    call.class_norms = (base + layout.class_norms as u64) as _;
    call.factor = (base + layout.factor as u64) as _;
    call.bad_row = (base + layout.bad_row as u64) as _;
}

/// Lends `work` a call with its sizes, options and inputs; the rest is null.
fn with_call<R>(
    problem: &Problem,
    work: impl FnOnce(&CudaDevice, &CudaStream, &mut MarginLossCall) -> Result<R>,
) -> Result<R> {
    let device = problem.features.device().as_cuda_device()?;
    let stream = device.cuda_stream();
    let tables = problem.loss.tables.on(problem, device)?;
    let ((angular, _a), (additive, _b)) = (tables.angular.device_ptr(&stream), tables.additive.device_ptr(&stream));
    let (prior, weights) = (
        tables.prior.as_ref().map(|prior| prior.device_ptr(&stream)),
        tables.weights.as_ref().map(|weights| weights.device_ptr(&stream)),
    );
    let address = |table: &Option<(u64, SyncOnDrop)>| table.as_ref().map_or(0, |(address, _)| *address);
    let sin_floor = if problem.accumulation_dtype() == DType::F64 { f64::SIN_FLOOR } else { f32::SIN_FLOOR };
    let mut options = params::options(problem.params(), sin_floor);
    (options.angular, options.additive) = (angular as _, additive as _);
    (options.prior, options.weights) = (address(&prior) as _, address(&weights) as _);

    // Rows may lie anywhere, their elements side by side.
    let (x, w) = (by_rows(problem.features)?, by_rows(problem.weight)?);
    let ((x_storage, x_layout), (w_storage, w_layout)) = (x.storage_and_layout(), w.storage_and_layout());
    let ((x, _x), (w, _w)) = (pointer(&x_storage, x_layout, &stream)?, pointer(&w_storage, w_layout, &stream)?);
    let (y_storage, y_layout) = problem.labels.storage_and_layout();
    let (labels, _y) = pointer(&y_storage, y_layout, &stream)?;
    let weights = problem.sample_weights.map(|weights| weights.storage_and_layout());
    let (sample_weights, _s) =
        weights.as_ref().map(|(storage, layout)| pointer(storage, layout, &stream)).transpose()?.unzip();
    let mut call = MarginLossCall {
        options,
        n: problem.n as i64,
        c: problem.c as i64,
        d: problem.d as i64,
        x: x as _,
        w: w as _,
        labels: labels as _,
        sample_weights: sample_weights.unwrap_or(0) as _,
        x_stride: x_layout.stride()[0] as i64,
        w_stride: w_layout.stride()[0] as i64,
        label_stride: y_layout.stride()[0] as i64,
        sample_weight_stride: weights.as_ref().map_or(0, |(_, layout)| layout.stride()[0] as i64),
        labels_are_wide: (problem.labels.dtype() == DType::I64).into(),
        sample_weight_type: match problem.sample_weights.map(Tensor::dtype) {
            None => params::MARGIN_LOSS_NO_WEIGHTS,
            Some(DType::F16) => params::MARGIN_LOSS_F16,
            Some(DType::BF16) => params::MARGIN_LOSS_BF16,
            Some(DType::F32) => params::MARGIN_LOSS_F32,
            Some(_) => params::MARGIN_LOSS_F64,
        } as i32,
        ..Default::default()
    };
    work(device, &stream, &mut call)
}

/// A matrix whose elements lie side by side in each row: itself, or a copy.
fn by_rows(matrix: &Tensor) -> Result<Tensor> {
    let (columns, step) = (matrix.dims()[1], matrix.stride()[1]);
    Ok(if step == 1 || columns == 1 { matrix.clone() } else { matrix.contiguous()? })
}

fn budget(problem: &Problem) -> usize {
    problem.params().workspace_bytes.unwrap_or(DEFAULT_CUDA_WORKSPACE_BYTES)
}

fn sizes(problem: &Problem) -> Sizes {
    let bytes = |tensor: &Tensor| tensor.dtype().size_in_bytes();
    Sizes {
        n: problem.n,
        c: problem.c,
        d: problem.d,
        x: bytes(problem.features),
        w: bytes(problem.weight),
        g: Kind::of(problem).g(),
        sum: problem.accumulation_dtype().size_in_bytes(),
    }
}

/// How a problem's products are made: `OnFma`, `OnTf32` and `OnTensorCores` in rows.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    x: DType,
    w: DType,
    by: Products,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Products {
    Fma,
    Tf32,
    TensorCores,
}

impl Kind {
    /// Fewer dimensions are not worth a step of 64: padding would be most of it.
    const LEAST_DIMENSIONS: usize = 16;

    fn of(problem: &Problem) -> Self {
        let (x, w) = (problem.features.dtype(), problem.weight.dtype());
        let wide = problem.d >= Self::LEAST_DIMENSIONS;
        let by = match (x, w) {
            (DType::F64, _) => Products::Fma,
            (DType::F16 | DType::BF16, w) if w == x && wide => Products::TensorCores,
            // Candle's own switch, off unless the user sets it.
            (_, DType::F32) if wide && gemm_reduced_precision_f32() => Products::Tf32,
            _ => Products::Fma,
        };
        Self { x, w, by }
    }

    /// What its kernels' names end with.
    fn suffix(self) -> String {
        let (x, w) = (self.x.as_str(), self.w.as_str());
        let types = if x == w { x.to_string() } else { format!("{x}_{w}") };
        match self.by {
            Products::Fma => types,
            Products::Tf32 => format!("{types}_tf32"),
            Products::TensorCores => format!("{types}_tensor"),
        }
    }

    /// Bytes of an element of g: `Engine::G` of its contraction.
    fn g(self) -> usize {
        match (self.x, self.by) {
            (DType::F64, _) => 8,
            (DType::BF16, Products::TensorCores) => 2,
            _ => 4,
        }
    }

    /// What its kernels take: `Kind::STEP_SHARED` in rows.cuh, and the sizes that params.h has.
    fn sizes(self) -> KindSizes {
        let shared = match (self.x, self.by) {
            (DType::F64, _) => params::MARGIN_LOSS_STEP_SHARED_F64,
            (_, Products::Fma) => params::MARGIN_LOSS_STEP_SHARED_F32,
            (_, Products::Tf32) => params::MARGIN_LOSS_STEP_SHARED_TF32,
            (_, Products::TensorCores) => params::MARGIN_LOSS_STEP_SHARED_TENSOR,
        };
        let (statistics, row_state, norm) = match self.x {
            DType::F64 => (f64::STATISTICS, f64::ROW_STATE, f64::NORM),
            _ => (f32::STATISTICS, f32::ROW_STATE, f32::NORM),
        };
        KindSizes {
            shared: shared as usize,
            statistics,
            row_state,
            norm,
            alone: if self.by == Products::Fma { 2 } else { 6 },
        }
    }
}

fn limits(stream: &CudaStream) -> Result<Limits> {
    let attribute = |which| stream.context().attribute(which).w();
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    if major < 8 {
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        return Err(Error::Input(format!("the device's compute capability is {major}.{minor}, the kernels need 8.0")));
    }
    let count = |which| attribute(which).map(|value| value as usize);
    Ok(Limits {
        multiprocessors: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_a_block: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_a_multiprocessor: count(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        cooperative: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
    })
}

fn config(blocks: usize) -> Result<LaunchConfig> {
    // A grid has at most 2³¹ − 1 blocks along x.
    let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32);
    let blocks = blocks.ok_or_else(|| Error::Input("a problem of more tiles than a CUDA grid can have".into()))?;
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 })
}

/// The address of a tensor's first element, to be read while the guard lives.
fn pointer<'a>(storage: &'a Storage, layout: &Layout, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
    fn of<'a, E: CudaDType + 'a>(storage: &'a CudaStorage, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
        Ok(storage.as_cuda_slice::<E>()?.device_ptr(stream))
    }
    let Storage::Cuda(storage) = storage else {
        return Err(Error::Input("the CUDA path was given a tensor of another device".into()));
    };
    let (base, guard) = match storage.dtype() {
        DType::F64 => of::<f64>(storage, stream)?,
        DType::F32 => of::<f32>(storage, stream)?,
        DType::F16 => of::<f16>(storage, stream)?,
        DType::BF16 => of::<bf16>(storage, stream)?,
        DType::I64 => of::<i64>(storage, stream)?,
        DType::U32 => of::<u32>(storage, stream)?,
        other => return Err(Error::Input(format!("the kernels take no tensor of {}", other.as_str()))),
    };
    Ok((base + (layout.start_offset() * storage.dtype().size_in_bytes()) as u64, guard))
}

fn with_optional_pointer<R>(
    tensor: Option<&Tensor>,
    stream: &CudaStream,
    work: impl FnOnce(u64) -> Result<R>,
) -> Result<R> {
    match tensor {
        None => work(0),
        Some(tensor) => with_pointer(tensor, stream, work),
    }
}

/// Lends `work` the address of a contiguous tensor's first element, to be written.
fn with_pointer<R>(tensor: &Tensor, stream: &CudaStream, work: impl FnOnce(u64) -> Result<R>) -> Result<R> {
    let mut result = None;
    let write = |address: u64| result = Some(work(address));
    tensor.inplace_op1(&Write { stream, work: RefCell::new(Some(Box::new(write))) })?;
    result.unwrap_or_else(|| Err(Error::Input("a gradient tensor that is not on a CUDA device".into())))
}

/// Candle's way to a tensor's storage for writing: an in-place op, here with what to do with its address.
struct Write<'w> {
    stream: &'w CudaStream,
    work: RefCell<Option<WriteFn<'w>>>,
}

type WriteFn<'w> = Box<dyn FnOnce(u64) + 'w>;

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "margin-loss-gradient"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Err(candle_core::Error::msg("a gradient tensor that is not on a CUDA device"))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let size = storage.dtype().size_in_bytes();
        let (base, _guard) = match &mut storage.slice {
            CudaStorageSlice::F64(slice) => slice.device_ptr_mut(self.stream),
            CudaStorageSlice::F32(slice) => slice.device_ptr_mut(self.stream),
            CudaStorageSlice::F16(slice) => slice.device_ptr_mut(self.stream),
            CudaStorageSlice::BF16(slice) => slice.device_ptr_mut(self.stream),
            _ => return Err(candle_core::Error::msg("a gradient tensor of another dtype")),
        };
        if let Some(work) = self.work.take() {
            work(base + (layout.start_offset() * size) as u64);
        }
        Ok(())
    }
}
