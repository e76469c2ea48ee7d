//! The engine of bf16 on machines with AVX512-BF16: products of bf16 in f32 sums, at twice the rate of f32's.
//!
//! X and W go into the products as they are; their norms are applied to the results: c_ij = ρ_i·σ_j·(x_i·w_j), ρ_i = 1/‖x_i‖, σ_j = 1/‖w_j‖. g is
//! divided by the norms of its row and of its class before it is rounded, g′_ij = ρ_i·σ_j·g_ij, so that one g′ serves both products:
//!
//! ```text
//! dX_i = Σ_j g′_ij·w_j − ρ_i·(Σ_j g′_ij·c_ij/σ_j)·x_i        dW_j = Σ_i g′_ij·x_i − σ_j·(Σ_i g′_ij·c_ij/ρ_i)·w_j
//! ```
//!
//! g′ is rounded once to bf16, and the projections' sums take it as it was rounded. What rounding takes off the targets' g′, which are large and are
//! to cancel near a pole, is added in f32. A row whose norm is beyond 2^±16 takes a power of two first, so that g′ has room.
//!
//! Tried and lost: g′ in two parts (hi + lo), which costs all of what bf16 gains. f16 would take such parts, and stays with `gemm` in f32.

mod kernel;
mod pack;

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use pulp::bytemuck::cast_slice;

use super::call::{Call, Logit};
use super::engine::{Engine, LaneTile, WeightSink};
use super::gradient::RowConstants;
use super::instructions::Instructions;
use super::load::{Block, PIECE, take_class};
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real, to_bf16};
use super::plan::Operands;
use super::statistics::exact_cosine;
use super::vector::{LANES, load, store, subtract_scaled, sum};
use crate::problem::TargetRow;
use kernel::{Left, Store, product};
use pack::{Panels, across, along, packed_len};

pub(super) struct Pairs;

impl Pairs {
    /// Whether this machine has the instructions, and the sweeps are to use such.
    pub fn available() -> bool {
        Instructions::new().are_wide() && kernel::available()
    }
}

/// What a lane's tiles are laid out in.
#[derive(Default)]
pub(super) struct Scratch {
    /// W (classes, D), where its rows cannot be read as they are
    copies: Vec<u16>,
    /// W as a right operand, (classes, D)
    packed: Vec<f32>,
    /// g′ in pairs of classes, (⌈classes/2⌉, R) words
    across: Vec<f32>,
    /// dW (classes, D)
    weight: Vec<f32>,
    /// A row of X or W, widened (D)
    row: Vec<f32>,
    /// One of X beside it (D)
    feature: Vec<f32>,
    /// (class of the tile, row, what rounding took off its g′) of targets
    residuals: Vec<(usize, usize, f32)>,
}

impl Engine<bf16, bf16> for Pairs {
    type Scratch = Scratch;

    fn operands() -> Operands {
        Operands::Pairs
    }

    fn load<'b>(
        call: &Call<bf16, bf16>,
        rows: &'b [TargetRow],
        memory: &'b mut [f32],
        gradients: bool,
    ) -> Block<'b, f32> {
        let (d, count) = (call.d, rows.len());
        let (by_dims, by_rows) = memory.split_at_mut(packed_len(count, d));
        let mut norms = vec![Norm::default(); count];
        call.each(rows.chunks(PIECE).zip(norms.chunks_mut(PIECE)).collect(), |(rows, norms)| {
            call.arch.dispatch(
                #[inline(always)]
                || {
                    let mut wide = vec![0.0; d];
                    for (target, norm) in rows.iter().zip(norms.iter_mut()) {
                        call.x.widen_row(target.row, &mut wide);
                        *norm = Norm::of_halves(&wide);
                    }
                },
            );
        });
        let as_they_are = norms.iter().all(|norm| norm.power == 1.0) && call.x.side_by_side(0).is_some();
        let mut copies = vec![0u16; if as_they_are { 0 } else { count * d }];
        let of_rows: Vec<&[u16]> = if as_they_are {
            let row = |target: &TargetRow| call.x.side_by_side(target.row).map_or(&[][..], |(data, _)| &data[..d]);
            rows.iter().map(|target| row(target).reinterpret_cast()).collect()
        } else {
            let mut wide = vec![0.0; d];
            for ((target, norm), copy) in rows.iter().zip(&norms).zip(copies.chunks_exact_mut(d)) {
                call.x.widen_row(target.row, &mut wide);
                to_bits(&wide, norm.power, copy);
            }
            copies.chunks_exact(d).collect()
        };
        call.each(Panels::new(by_dims, count, d).split(), |mut panel| {
            let first = panel.first;
            call.arch.dispatch(
                #[inline(always)]
                || panel.fill_columns(|j| of_rows[first + j]),
            );
        });
        let panels = if gradients { Panels::new(by_rows, d, count).split() } else { Vec::new() };
        call.each(panels, |mut panel| {
            call.arch.dispatch(
                #[inline(always)]
                || {
                    for (pair, rows) in of_rows.chunks(2).enumerate() {
                        panel.fill_pair(pair, rows[0], rows.get(1).copied().unwrap_or_default());
                    }
                },
            );
        });
        let scales = norms.iter().map(|norm| norm.inverse as f32).collect();
        Block::new(rows, call.by_class(rows), by_rows, by_dims, scales, norms)
    }

    #[inline(always)]
    fn products(
        call: &Call<bf16, bf16>,
        block: &Block<f32>,
        classes: Range<usize>,
        norms: &mut [Option<Norm>],
        scratch: &mut Scratch,
        out: &mut [f32],
        targets: Option<&mut Vec<(u32, f64)>>,
    ) {
        scratch.row.resize(call.d, 0.0);
        for (class, norm) in classes.clone().zip(norms.iter_mut()).filter(|(_, norm)| norm.is_none()) {
            call.w.widen_row(class, &mut scratch.row);
            *norm = Some(Norm::of_halves(&scratch.row));
        }
        let (data, stride) = weight_bits(call, classes.clone(), norms, &mut scratch.copies, &mut scratch.row);
        let left = Left::new(data, norms.len(), call.d, stride, 2);
        product(out, left, block.unit_t, block.rows.len(), Store::Scaled(&block.scales));
        if let Some(targets) = targets {
            let (x, w) = (&mut scratch.feature, &mut scratch.row);
            x.resize(call.d, 0.0);
            for &(class, row) in block.targets_in(&classes) {
                let (j, i) = (class as usize - classes.start, row as usize);
                feature(call, block, i, x);
                widen(&data[j * stride..][..call.d], w);
                let (x_norm, w_norm) = (block.norms[i], norms[j].unwrap_or_default()); // set above
                let side = |norm: Norm| (norm.projects, norm.inverse);
                let ((x_own, x_inverse), (w_own, w_inverse)) = (side(x_norm), side(w_norm));
                targets.push((row, exact_cosine((x, x_own, x_inverse), (w, w_own, w_inverse), 1.0)));
            }
        }
    }

    #[inline(always)]
    fn contract<E: Element<Acc = f32>>(
        call: &Call<bf16, bf16>,
        block: &Block<f32>,
        tile: &mut LaneTile<f32, E>,
        constants: &mut RowConstants<f32>,
        scratch: &mut Scratch,
    ) {
        let LaneTile { classes, cosines, norms, row_dots, sum, accumulate, sink } = tile;
        let (d, rows, count) = (call.d, block.rows.len(), norms.len());
        let Scratch { copies, packed, across: words, weight, row, residuals, .. } = scratch;
        let (classes, sink) = (classes.clone(), sink.take());
        row.resize(d, 0.0);
        words.resize(count.div_ceil(2) * rows, 0.0);
        residuals.clear();

        let mut class_dots = Vec::with_capacity(count);
        let mut targets = block.targets_in(&classes);
        let pairs = cosines.chunks_mut(2 * rows).zip(words.chunks_exact_mut(rows));
        for (pair, (two, words)) in pairs.enumerate() {
            for (j, row) in two.chunks_exact_mut(rows).enumerate() {
                let (j, class) = (2 * pair + j, classes.start + 2 * pair + j);
                let norm = norms[j].unwrap_or_default(); // set with the cosines
                let of_class = take_class(&mut targets, class as u32);
                let logit = call.logit(class);
                class_dots.push(gradients(row, j, logit, norm, of_class, constants, row_dots, residuals));
            }
            let (a, b) = two.split_at_mut(rows);
            across(a, b, words);
            along(a);
            along(b);
        }

        let (data, stride) = weight_bits(call, classes, norms, copies, row);
        if let Some(sum) = sum {
            packed.resize(packed_len(d, count), 0.0);
            Panels::new(packed, d, count).fill_rows(|j, _| &data[j * stride..][..d]);
            let g = Left::new(cast_slice(&words[..count.div_ceil(2) * rows]), rows, count, 2, 2 * rows); // (R, classes)
            product(sum, g, packed, d, if *accumulate { Store::Add } else { Store::Write });
            for &(j, i, residual) in residuals.iter() {
                widen(&data[j * stride..][..d], row);
                subtract_scaled(&mut sum[i * d..][..d], row, -residual);
            }
        }
        if matches!(sink, WeightSink::None) {
            return;
        }
        weight.resize(count * d, 0.0);
        let weight = &mut weight[..count * d];
        let g = Left::new(cast_slice(cosines), count, rows, 2 * rows, 2); // (classes, R)
        product(weight, g, block.unit, d, Store::Write);
        for &(j, i, residual) in residuals.iter() {
            feature(call, block, i, row);
            subtract_scaled(&mut weight[j * d..][..d], row, -residual);
        }
        for (j, (weight, sink)) in weight.chunks_exact_mut(d).zip(sink.split(d)).enumerate() {
            let norm = norms[j].unwrap_or_default();
            if norm.projects {
                widen(&data[j * stride..][..d], row);
                subtract_scaled(weight, row, class_dots[j] * sigma::<f32>(norm));
            }
            let power = norm.power as f32;
            if power != 1.0 {
                weight.iter_mut().for_each(|v| *v *= power);
            }
            match sink {
                WeightSink::None => {}
                WeightSink::Write(dw) => E::narrow_slice(weight, dw),
                WeightSink::Sum(dw, true) => dw.iter_mut().zip(weight).for_each(|(dw, v)| *dw += *v),
                WeightSink::Sum(dw, false) => dw.copy_from_slice(weight),
            }
        }
    }

    #[inline(always)]
    fn feature_row<'r>(
        call: &Call<bf16, bf16>,
        block: &'r Block<f32>,
        i: usize,
        scratch: &'r mut Vec<f32>,
    ) -> (&'r [f32], f32, f32) {
        scratch.resize(call.d, 0.0);
        feature(call, block, i, scratch);
        (scratch, block.scales[i], block.norms[i].power as f32)
    }
}

/// Row i of a block as the products have it, widened.
#[inline(always)]
fn feature(call: &Call<bf16, bf16>, block: &Block<f32>, i: usize, out: &mut [f32]) {
    call.x.widen_row(block.rows[i].row, out);
    let power = block.norms[i].power as f32;
    if power != 1.0 {
        out.iter_mut().for_each(|v| *v *= power);
    }
}

#[inline(always)]
fn widen(bits: &[u16], out: &mut [f32]) {
    for (out, &bits) in out.iter_mut().zip(bits) {
        *out = f32::from_bits(u32::from(bits) << 16);
    }
}

/// A row times a power of two, as bf16.
#[inline(always)]
fn to_bits(row: &[f32], power: f64, out: &mut [u16]) {
    let power = power as f32;
    for (out, v) in out.iter_mut().zip(row) {
        *out = (to_bf16(v * power).to_bits() >> 16) as u16;
    }
}

/// A tile's rows of W under their powers of two, and their stride: W's own where they lie side by side and all powers are 1, else copies.
#[inline(always)]
fn weight_bits<'t>(
    call: &Call<'t, bf16, bf16>,
    classes: Range<usize>,
    norms: &[Option<Norm>],
    copies: &'t mut Vec<u16>,
    wide: &mut [f32],
) -> (&'t [u16], usize) {
    let d = call.d;
    if let Some((data, stride)) = call.w.side_by_side(classes.start)
        && norms.iter().flatten().all(|norm| norm.power == 1.0)
    {
        return (data.reinterpret_cast(), stride);
    }
    copies.resize(classes.len() * d, 0);
    for ((class, norm), copy) in classes.zip(norms.iter().flatten()).zip(copies.chunks_exact_mut(d)) {
        call.w.widen_row(class, wide);
        to_bits(wide, norm.power, copy);
    }
    (copies, d)
}

/// Class j's cosines to g′, rounded, in place; adds g′_ij·c_ij·‖w_j‖ to `row_dots` (R), the targets' residuals to `residuals`, and returns
/// Σ_i g′_ij·c_ij·‖x_i‖. `rows` holds the constants of ρ_i·g_ij.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn gradients(
    cosines: &mut [f32],
    j: usize,
    logit: Logit<f32>,
    norm: Norm,
    targets: &[(u32, u32)],
    rows: &mut RowConstants<f32>,
    row_dots: &mut [f32],
    residuals: &mut Vec<(usize, usize, f32)>,
) -> f32 {
    let class = Class { logit, sigma: sigma(norm), length: (1.0 / norm.inverse) as f32 };
    rows.hide(targets);
    let n = cosines.len();
    let mut dots = [0.0; LANES];
    let (log_sums, log_sum_rest) = rows.log_sum[..n].as_chunks::<LANES>();
    let (factors, factor_rest) = rows.factor[..n].as_chunks::<LANES>();
    let (uniforms, uniform_rest) = rows.uniform[..n].as_chunks::<LANES>();
    let (lengths, length_rest) = rows.lengths[..n].as_chunks::<LANES>();
    let (whole, c_rest) = cosines.as_chunks_mut::<LANES>();
    let (row_dot, dot_rest) = row_dots[..n].as_chunks_mut::<LANES>();
    for (((((c, log_sum), factor), uniform), length), dot) in
        whole.iter_mut().zip(log_sums).zip(factors).zip(uniforms).zip(lengths).zip(row_dot)
    {
        class.gradients_of_lanes(c, log_sum, factor, uniform, length, dot, &mut dots);
    }
    if !c_rest.is_empty() {
        let (mut c, mut dot) = (load(c_rest), load(dot_rest));
        let (log_sum, factor, uniform) = (load(log_sum_rest), load(factor_rest), load(uniform_rest));
        class.gradients_of_lanes(&mut c, &log_sum, &factor, &uniform, &load(length_rest), &mut dot, &mut dots);
        store(c_rest, c);
        store(dot_rest, dot);
    }
    let mut class_dot = sum(dots);
    rows.show(targets, |i, c, g, length| {
        let g = g * class.sigma;
        let rounded = to_bf16(g);
        row_dots[i] += g * c * class.length;
        class_dot += g * c * length;
        cosines[i] = rounded;
        if g != rounded {
            residuals.push((j, i, g - rounded));
        }
    });
    class_dot
}

/// What a class's g′ takes of it.
#[derive(Clone, Copy)]
struct Class {
    logit: Logit<f32>,
    /// σ_j
    sigma: f32,
    /// ‖w_j‖
    length: f32,
}

impl Class {
    /// [`gradients`] of LANES rows. One loop: of one a step the compiler makes vectors of two.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn gradients_of_lanes(
        self,
        c: &mut [f32; LANES],
        log_sum: &[f32; LANES],
        factor: &[f32; LANES],
        uniform: &[f32; LANES],
        length: &[f32; LANES],
        row_dots: &mut [f32; LANES],
        dots: &mut [f32; LANES],
    ) {
        for l in 0..LANES {
            let p = factor[l] * Real::exp(self.logit.of(c[l]) - log_sum[l]);
            let g = to_bf16((p - uniform[l]) * self.sigma);
            let dot = g * c[l];
            row_dots[l] = dot.mul_add(self.length, row_dots[l]);
            dots[l] += dot * length[l];
            c[l] = g;
        }
    }
}
