//! Optimizer steps that touch the rows that a sampled call had gradients of, and no other: neither of W nor of its state.

use candle_core::{DType, Tensor};

use crate::cpu::with_f32;
use crate::error::{Error, Result};
use crate::problem::same_storage;

/// Stochastic gradient descent with momentum and weight decay on some rows: v ← μ·v + (g + λ·w), w ← w − η·v.
///
/// A row that is not in the sample keeps its velocity as it is until it is again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseSgd {
    /// η
    pub lr: f64,
    /// μ
    pub momentum: f64,
    /// λ
    pub weight_decay: f64,
}

impl SparseSgd {
    /// A step of `rows` (M) of W (C, D) and its velocity (C, D), both f32, contiguous, on the CPU, by `gradient` (M, D).
    ///
    /// W of a half type is trained through an f32 copy: [`round_rows`] writes its rows.
    ///
    /// # Errors
    /// Tensors of other shapes or dtypes, or elsewhere.
    pub fn step(&self, weight: &Tensor, velocity: &Tensor, gradient: &Tensor, rows: &[u32]) -> Result<()> {
        let gradient = checked(&[("weight W", weight), ("the velocity", velocity)], gradient, rows)?;
        let d = weight.dims()[1];
        let (lr, momentum, decay) = (self.lr as f32, self.momentum as f32, self.weight_decay as f32);
        with_f32(velocity, |velocity| {
            with_f32(weight, |weight| {
                for (&row, gradient) in rows.iter().zip(gradient.chunks_exact(d)) {
                    let place = row as usize * d..(row as usize + 1) * d;
                    let both = weight[place.clone()].iter_mut().zip(&mut velocity[place]);
                    for ((w, v), g) in both.zip(gradient) {
                        *v = momentum * *v + (g + decay * *w);
                        *w -= lr * *v;
                    }
                }
            })
        })?
    }
}

/// AdamW on some rows, as `candle_nn::AdamW` has it for all: moments of a row that is not in the sample stay as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseAdamW {
    /// η
    pub lr: f64,
    /// β₁ and β₂
    pub betas: (f64, f64),
    /// ε
    pub epsilon: f64,
    /// λ
    pub weight_decay: f64,
}

impl SparseAdamW {
    /// Step `step`, counted from 1, of `rows` (M) of W (C, D) and its moments (C, D) each, all f32, contiguous, on the CPU, by `gradient`
    /// (M, D).
    ///
    /// # Errors
    /// As [`SparseSgd::step`]; step 0.
    pub fn step(
        &self,
        step: usize,
        weight: &Tensor,
        moments: (&Tensor, &Tensor),
        gradient: &Tensor,
        rows: &[u32],
    ) -> Result<()> {
        if step == 0 {
            return Err(Error::Sharded("steps are counted from 1, this is 0".into()));
        }
        let named = [("weight W", weight), ("the first moment", moments.0), ("the second moment", moments.1)];
        let gradient = checked(&named, gradient, rows)?;
        let d = weight.dims()[1];
        let (beta1, beta2) = self.betas;
        let (scale1, scale2) = (1.0 / (1.0 - beta1.powf(step as f64)), 1.0 / (1.0 - beta2.powf(step as f64)));
        let decay = 1.0 - self.lr * self.weight_decay;
        with_f32(moments.0, |first| {
            with_f32(moments.1, |second| {
                with_f32(weight, |weight| {
                    for (&row, gradient) in rows.iter().zip(gradient.chunks_exact(d)) {
                        for (i, &g) in (row as usize * d..).zip(gradient) {
                            let g = f64::from(g);
                            let m = beta1 * f64::from(first[i]) + (1.0 - beta1) * g;
                            let v = beta2 * f64::from(second[i]) + (1.0 - beta2) * g * g;
                            (first[i], second[i]) = (m as f32, v as f32);
                            let change = m * scale1 / ((v * scale2).sqrt() + self.epsilon);
                            weight[i] = (f64::from(weight[i]) * decay - self.lr * change) as f32;
                        }
                    }
                })
            })
        })??
    }
}

/// Writes rows of an f32 `weight` (C, D) over those of its copy in a half type, rounded.
///
/// # Errors
/// Tensors of other shapes, a copy that is not f16 or bf16, or not on the CPU.
pub fn round_rows(weight: &Tensor, copy: &Tensor, rows: &[u32]) -> Result<()> {
    if weight.dims() != copy.dims() || weight.rank() != 2 {
        let (dims, of) = (copy.dims(), weight.dims());
        return Err(Error::Sharded(format!("a copy is of its tensor's shape {of:?} (C, D), it is {dims:?}")));
    }
    let index = Tensor::from_vec(rows.to_vec(), rows.len(), weight.device())?;
    let rounded = weight.detach().index_select(&index, 0)?.to_dtype(copy.dtype())?;
    for (i, &row) in rows.iter().enumerate() {
        copy.slice_set(&rounded.narrow(0, i, 1)?, 0, row as usize)?;
    }
    Ok(())
}

/// The gradient's elements, where all fits.
fn checked(tensors: &[(&str, &Tensor)], gradient: &Tensor, rows: &[u32]) -> Result<Vec<f32>> {
    let shape = tensors[0].1.dims();
    for (name, tensor) in tensors {
        if tensor.dtype() != DType::F32 || tensor.rank() != 2 || tensor.dims() != shape || !tensor.is_contiguous() {
            let (dtype, dims) = (tensor.dtype().as_str(), tensor.dims());
            return Err(Error::Sharded(format!("{name} must be f32, contiguous and (C, D), it is {dtype} {dims:?}")));
        }
    }
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        if let Some((other, _)) = tensors[..i].iter().find(|(_, other)| same_storage(tensor, other)) {
            return Err(Error::Sharded(format!("{name} shares its storage with {other}")));
        }
    }
    if gradient.dims() != [rows.len(), shape[1]] {
        let (expected, dims) = ((rows.len(), shape[1]), gradient.dims());
        return Err(Error::Sharded(format!("the gradient must be of shape {expected:?}, its shape is {dims:?}")));
    }
    if let Some(row) = rows.iter().find(|&&row| row as usize >= shape[0]) {
        return Err(Error::Sharded(format!("there is no row {row} of {}", shape[0])));
    }
    Ok(gradient.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
