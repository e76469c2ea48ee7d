//! One run: a loss and a seed, trained and measured.

use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_margin_loss::metrics::{self, ByGroup, Scatter};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use candle_nn::{Module, VarBuilder, VarMap};
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::data::{Dataset, Samples};
use crate::losses::{Loss, LossSettings};
use crate::network::{Backbone, Head, Network, initialise};

/// What every run has in common.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    pub network: Network,
    pub hidden: usize,
    pub features: usize,
    pub epochs: usize,
    pub batch_size: usize,
    pub weight_decay: f64,
    pub warmup_epochs: usize,
    pub scatter: Scatter,
    pub shrinkage: f64,
}

/// A loss and what it is trained with.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub loss: Loss,
    pub settings: LossSettings,
    pub seed: u64,
}

/// What a run measured.
pub struct Outcome {
    pub loss: Loss,
    pub settings: LossSettings,
    pub seed: u64,
    /// Of the test set, from 0 to 1.
    pub accuracy: ByGroup,
    /// θ_iy of each test sample, in degrees.
    pub angles: Vec<f64>,
    pub separability: ByGroup,
    /// Of the last epoch.
    pub train_loss: f64,
    pub train_accuracy: f64,
    pub hard_positive_rate: f64,
    pub train_seconds: f64,
    pub evaluation_seconds: f64,
}

/// A dataset as tensors on a device.
pub struct Tensors {
    train: Vec<Tensor>,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
}

impl Tensors {
    pub fn new(dataset: &Dataset, device: &Device) -> Result<Self> {
        let images =
            |samples: &Samples| Tensor::from_slice(&samples.pixels, (samples.len(), dataset.shape.pixels()), device);
        let labels = |samples: &Samples| Tensor::from_slice(&samples.labels, samples.len(), device);
        Ok(Self {
            train: dataset.train.iter().map(images).collect::<Result<_>>()?,
            train_labels: labels(&dataset.train[0])?,
            test: images(&dataset.test)?,
            test_labels: labels(&dataset.test)?,
        })
    }
}

/// Trains a loss from a seed and measures it on the test set. Same arguments, same numbers.
pub fn run(dataset: &Dataset, tensors: &Tensors, recipe: &Recipe, job: Job, bar: &ProgressBar) -> Result<Outcome> {
    let Job { loss, settings, seed } = job;
    let started = Instant::now();
    let device = tensors.test.device();
    let classes = dataset.counts.classes();
    let schedule = loss.schedule(&dataset.counts, &settings)?;

    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, device);
    let backbone = Backbone::new(recipe.network, dataset.shape, recipe.hidden, recipe.features, vb.pp("backbone"))?;
    let mut head = Head::new(recipe.features, classes, schedule.as_ref(), vb.pp("head"))?;
    // Two generators, so that every loss sees the same network and the same batches for a seed.
    initialise(&variables, &mut StdRng::seed_from_u64(seed))?;
    let mut order = StdRng::seed_from_u64(seed ^ 0x6f72_6465_7200);

    let params = ParamsAdamW { lr: settings.lr, weight_decay: recipe.weight_decay, ..Default::default() };
    let mut optimizer = AdamW::new(variables.all_vars(), params)?;

    let samples = tensors.train_labels.elem_count();
    let batches = samples.div_ceil(recipe.batch_size);
    let (mut last_loss, mut last_accuracy, mut last_hard) = (0.0, 0.0, 0.0);
    for epoch in 0..recipe.epochs {
        if let (Head::Cosine(head), Some(schedule)) = (&mut head, &schedule) {
            head.set_loss(schedule.at(epoch).clone())?;
        }
        let images = &tensors.train[order.random_range(0..tensors.train.len())];
        let mut shuffled: Vec<u32> = (0..samples as u32).collect();
        shuffled.shuffle(&mut order);
        let (mut loss_sum, mut right, mut hard) = (0.0, 0.0, 0.0);
        for (batch, indices) in shuffled.chunks(recipe.batch_size).enumerate() {
            optimizer.set_learning_rate(learning_rate(
                recipe,
                settings.lr,
                epoch as f64 + batch as f64 / batches as f64,
            ));
            let rows = Tensor::from_slice(indices, indices.len(), device)?;
            let features = backbone.forward(&images.index_select(&rows, 0)?)?;
            let step = head.step(&features, &tensors.train_labels.index_select(&rows, 0)?)?;
            optimizer.backward_step(&step.loss)?;
            let n = indices.len() as f64;
            loss_sum += n * f64::from(step.loss.to_scalar::<f32>()?);
            right += n * step.accuracy;
            hard += n * step.hard_positive_rate;
            bar.inc(1);
        }
        let n = samples as f64;
        (last_loss, last_accuracy, last_hard) = (loss_sum / n, right / n, hard / n);
        if !last_loss.is_finite() {
            candle_core::bail!("{} with seed {seed} diverged in epoch {epoch}: a smaller --lr would help", loss.name())
        }
        bar.set_message(format!(
            "loss {last_loss:6.3}  accuracy {:5.1} %  hard positives {:5.1} %",
            100.0 * last_accuracy,
            100.0 * last_hard
        ));
    }
    let train_seconds = started.elapsed().as_secs_f64();
    let (accuracy, angles, separability) = evaluate(dataset, tensors, recipe, &backbone, &head)?;
    Ok(Outcome {
        loss,
        settings,
        seed,
        accuracy,
        angles,
        separability,
        train_loss: last_loss,
        train_accuracy: last_accuracy,
        hard_positive_rate: last_hard,
        train_seconds,
        evaluation_seconds: started.elapsed().as_secs_f64() - train_seconds,
    })
}

/// The learning rate at a time in epochs: a linear warm-up, then cosine decay to 0.
fn learning_rate(recipe: &Recipe, lr: f64, time: f64) -> f64 {
    let warmup = recipe.warmup_epochs as f64;
    if time < warmup {
        return lr * (time + 0.1) / (warmup + 0.1);
    }
    let progress = (time - warmup) / (recipe.epochs as f64 - warmup);
    lr * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

/// Accuracy, target angles in degrees and Fisher separability of normalised features, of the test set.
fn evaluate(
    dataset: &Dataset,
    tensors: &Tensors,
    recipe: &Recipe,
    backbone: &Backbone,
    head: &Head,
) -> Result<(ByGroup, Vec<f64>, ByGroup)> {
    const ROWS: usize = 1000;
    let samples = tensors.test_labels.elem_count();
    let (mut predicted, mut features) = (Vec::new(), Vec::new());
    for start in (0..samples).step_by(ROWS) {
        let part = backbone.forward(&tensors.test.narrow(0, start, ROWS.min(samples - start))?)?.detach();
        predicted.extend(head.logits(&part)?.argmax(D::Minus1)?.to_vec1::<u32>()?);
        features.push(part);
    }
    let features = Tensor::cat(&features, 0)?;
    let labels = &dataset.test.labels;
    let groups = &dataset.groups.of_class;
    let accuracy = metrics::group_accuracy(&predicted, labels, groups)?;
    let angles = metrics::angular_distances(&features, head.centres(), labels)?;
    let norms = features.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
    let unit = features.broadcast_div(&norms)?;
    let separability =
        metrics::fisher_separability(&unit, labels, dataset.counts.classes(), recipe.scatter, recipe.shrinkage)?;
    let separability = metrics::group_means(&separability, groups)?;
    Ok((accuracy, angles.into_iter().map(f64::to_degrees).collect(), separability))
}
