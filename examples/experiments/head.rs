//! One head on frozen features: SGD with momentum 0.9 and cosine decay of the learning rate.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_margin_loss::ClassCounts;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

use crate::embedding::Features;
use crate::losses::{BETA, Balance, Choice, Loss, drw_epoch};

pub const BATCH: usize = 256;
const MOMENTUM: f64 = 0.9;

pub struct Head {
    /// W (C, D)
    pub weight: Tensor,
    /// b (C) of a linear head
    pub bias: Option<Tensor>,
}

/// The seed gives W and the order of the samples, the same to every loss.
pub fn train(
    loss: &Loss,
    choice: Choice,
    counts: &ClassCounts,
    train: &Features,
    epochs: usize,
    seed: u64,
) -> std::result::Result<Head, Box<dyn std::error::Error + Send + Sync>> {
    let (classes, dim) = (counts.classes(), train.features.dim(1)?);
    let mut rng = StdRng::seed_from_u64(seed);
    let deviation = 1.0 / (dim as f32).sqrt();
    let start: Vec<f32> = (0..classes * dim).map(|_| deviation * rng.sample::<f32, _>(StandardNormal)).collect();
    let mut head = Parameter::new(Tensor::from_vec(start, (classes, dim), &Device::Cpu)?);
    let mut bias = Parameter::new(Tensor::zeros(classes, DType::F32, &Device::Cpu)?);
    let schedule = loss.schedule(counts, choice, epochs)?;
    let prior = match loss.balance {
        Balance::Bs => Some(Tensor::new(counts.log_priors(), &Device::Cpu)?.to_dtype(DType::F32)?),
        _ => None,
    };
    let weights = Tensor::new(counts.class_balanced_weights_normalized(BETA)?, &Device::Cpu)?.to_dtype(DType::F32)?;
    let mut order: Vec<u32> = (0..train.labels.len() as u32).collect();
    let labels = Tensor::new(train.labels.as_slice(), &Device::Cpu)?;
    let steps = epochs * order.len().div_ceil(BATCH);
    let mut step = 0;
    for epoch in 0..epochs {
        order.shuffle(&mut rng);
        for rows in order.chunks(BATCH) {
            let lr = choice.lr * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
            step += 1;
            let rows = Tensor::new(rows, &Device::Cpu)?;
            let (x, y) = (train.features.index_select(&rows, 0)?, labels.index_select(&rows, 0)?);
            match &schedule {
                Some(schedule) => {
                    let (_, _, gradient) = schedule.at(epoch).loss_and_grads(&x, &head.value, &y, None)?;
                    head.step(&gradient, lr, choice.weight_decay)?;
                }
                None => {
                    let weights = (loss.balance == Balance::Drw && epoch >= drw_epoch(epochs)).then_some(&weights);
                    let g = linear_gradient(&x, &head.value, &bias.value, &y, prior.as_ref(), weights)?;
                    head.step(&g.t()?.matmul(&x)?, lr, choice.weight_decay)?;
                    bias.step(&g.sum(0)?, lr, 0.0)?;
                }
            }
        }
    }
    Ok(Head { weight: head.value, bias: schedule.is_none().then_some(bias.value) })
}

/// The gradient of softmax cross-entropy of x·Wᵀ + b + prior in its logits, (N, C); by class weights under a weighted mean.
fn linear_gradient(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    labels: &Tensor,
    prior: Option<&Tensor>,
    weights: Option<&Tensor>,
) -> Result<Tensor> {
    let logits = x.matmul(&weight.t()?)?.broadcast_add(bias)?;
    let logits = match prior {
        Some(prior) => logits.broadcast_add(prior)?,
        None => logits,
    };
    let rows = labels.dim(0)?;
    let of_rows = match weights {
        Some(weights) => weights.index_select(labels, 0)?,
        None => Tensor::ones(rows, DType::F32, x.device())?,
    };
    let of_rows = of_rows.broadcast_div(&of_rows.sum_all()?)?.unsqueeze(1)?;
    let p = candle_nn::ops::softmax_last_dim(&logits)?.broadcast_mul(&of_rows)?;
    p.scatter_add(&labels.unsqueeze(1)?, &of_rows.neg()?, 1)
}

/// v ← μ·v + (g + λ·p), p ← p − η·v
struct Parameter {
    value: Tensor,
    velocity: Option<Tensor>,
}

impl Parameter {
    fn new(value: Tensor) -> Self {
        Self { value, velocity: None }
    }

    fn step(&mut self, gradient: &Tensor, lr: f64, weight_decay: f64) -> Result<()> {
        let gradient = match weight_decay {
            0.0 => gradient.clone(),
            decay => (gradient + (&self.value * decay)?)?,
        };
        let velocity = match &self.velocity {
            Some(velocity) => ((velocity * MOMENTUM)? + gradient)?,
            None => gradient,
        };
        self.value = (&self.value - (&velocity * lr)?)?;
        self.velocity = Some(velocity);
        Ok(())
    }
}

impl Head {
    /// Of raw logits: no margin, no prior.
    pub fn predict(&self, features: &Tensor) -> Result<Vec<u32>> {
        let centres = match &self.bias {
            Some(_) => self.weight.clone(),
            None => self.weight.broadcast_div(&self.weight.sqr()?.sum_keepdim(1)?.sqrt()?)?,
        };
        let (rows, centres) = (features.dim(0)?, centres.t()?);
        let mut predicted = Vec::with_capacity(rows);
        for first in (0..rows).step_by(1024) {
            let logits = features.narrow(0, first, (rows - first).min(1024))?.matmul(&centres)?;
            let logits = match &self.bias {
                Some(bias) => logits.broadcast_add(bias)?,
                None => logits,
            };
            predicted.extend(logits.argmax(D::Minus1)?.to_vec1::<u32>()?);
        }
        Ok(predicted)
    }
}
