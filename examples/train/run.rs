//! One run: a method and a seed, trained by the paper's recipe, measured after every epoch, and kept so that it can be taken up to the same bits.

use std::path::Path;

use candle_core::{Device, Tensor};
use candle_margin_loss::metrics::{self, ByGroup};
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::augment;
use crate::checkpoint;
use crate::companion::Batch;
use crate::data::{DataError, Dataset, Samples, Shape};
use crate::methods::{Method, Network, Numbers};
use crate::model::{Design, Model, Teacher};
use crate::photos::{self, Photos};
use crate::sgd::Sgd;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Every number of a run: what its checkpoint and its results file record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub dataset: String,
    pub imbalance_factor: f64,
    pub data_seed: u64,
    pub method: Method,
    pub seed: u64,
    pub network: Network,
    pub epochs: usize,
    pub batch_size: usize,
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub warmup_epochs: usize,
    /// Crop padding, flip, AutoAugment, Cutout's side
    pub padding: usize,
    pub flip: bool,
    pub auto_augment: bool,
    pub cutout: usize,
    pub numbers: Numbers,
}

impl Config {
    /// Of GML's teacher: the same recipe with cross-entropy on a cosine head.
    pub fn teacher(&self) -> Self {
        let mut config = Self { method: Method::CosineCe, ..self.clone() };
        if let Some(numbers) = config.numbers.companion.take() {
            (config.network, config.epochs) = (numbers.teacher_network, numbers.teacher_epochs);
        }
        config
    }

    /// The learning rate of an epoch: a linear warm-up, then cosine decay.
    pub fn learning_rate(&self, epoch: usize) -> f64 {
        if epoch < self.warmup_epochs {
            return self.lr * (epoch + 1) as f64 / self.warmup_epochs as f64;
        }
        let (done, all) = (epoch - self.warmup_epochs, (self.epochs - self.warmup_epochs).max(1));
        self.lr * 0.5 * (1.0 + (std::f64::consts::PI * done as f64 / all as f64).cos())
    }
}

/// What an epoch gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    pub train_loss: f64,
    pub train_accuracy: f64,
    pub hard_positive_rate: f64,
    /// Of the test set: all, many, medium, few, from 0 to 1; a group without classes has none
    pub test_accuracy: [Option<f64>; 4],
}

/// Where a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The next batch, of the epoch after those in `history`
    pub batch: usize,
    /// Of the epoch's batches so far, by samples: loss, right, hard, and how many
    pub sums: [f64; 4],
    pub history: Vec<Epoch>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    config: Config,
    progress: Progress,
}

/// Where images come from, each of bytes, (channels, height, width), as augmentation takes them.
enum Source {
    /// Renderings of the training set, (N, channels · height · width) each, and the test set
    Memory {
        train: Vec<Vec<u8>>,
        test: Vec<u8>,
    },
    Files(Photos),
}

impl Source {
    fn renderings(&self) -> usize {
        match self {
            Self::Memory { train, .. } => train.len(),
            Self::Files(_) => 1,
        }
    }

    fn training_image(
        &self,
        rendering: usize,
        row: usize,
        shape: Shape,
        rng: &mut StdRng,
    ) -> std::result::Result<Vec<u8>, DataError> {
        match self {
            Self::Memory { train, .. } => Ok(image(&train[rendering], row, shape)),
            Self::Files(photos) => photos.training_image(row, rng),
        }
    }

    fn test_image(&self, row: usize, shape: Shape) -> std::result::Result<Vec<u8>, DataError> {
        match self {
            Self::Memory { test, .. } => Ok(image(test, row, shape)),
            Self::Files(photos) => photos.test_image(row),
        }
    }
}

fn image(all: &[u8], row: usize, shape: Shape) -> Vec<u8> {
    all[row * shape.pixels()..][..shape.pixels()].to_vec()
}

/// The images that a run trains and tests on.
pub struct Images {
    source: Source,
    train_labels: Vec<u32>,
    test_labels: Vec<u32>,
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Images {
    pub fn new(dataset: &Dataset) -> Self {
        let bytes = |samples: &Samples| -> Vec<u8> {
            samples.pixels.iter().map(|&v| (255.0 * v).round().clamp(0.0, 255.0) as u8).collect()
        };
        let train: Vec<Vec<u8>> = dataset.train.iter().map(bytes).collect();
        let (plane, channels) = (dataset.shape.height * dataset.shape.width, dataset.shape.channels);
        let of_channel = |c: usize| {
            let planes = train[0].chunks_exact(plane).skip(c).step_by(channels);
            let values = planes.flatten().map(|&v| f64::from(v) / 255.0);
            let (n, sum, squares) =
                values.fold((0f64, 0f64, 0f64), |(n, sum, squares), v| (n + 1.0, sum + v, squares + v * v));
            let mean = sum / n;
            (mean as f32, ((squares / n - mean * mean).max(0.0).sqrt() as f32).max(1e-3))
        };
        let (mean, deviation) = (0..channels).map(of_channel).unzip();
        let test = bytes(&dataset.test);
        Self::from(dataset, Source::Memory { train, test }, mean, deviation)
    }

    /// In files: a batch decodes what it needs.
    pub fn files(dataset: &Dataset, photos: Photos) -> Self {
        Self::from(dataset, Source::Files(photos), photos::MEAN.to_vec(), photos::DEVIATION.to_vec())
    }

    fn from(dataset: &Dataset, source: Source, mean: Vec<f32>, deviation: Vec<f32>) -> Self {
        let (train_labels, test_labels) = (dataset.train[0].labels.clone(), dataset.test.labels.clone());
        Self { source, train_labels, test_labels, mean, deviation }
    }

    /// Normalised pixels of one view of a training batch; each image is drawn for by a generator of its own, whatever thread does it.
    pub fn training_batch(
        &self,
        config: &Config,
        shape: Shape,
        rendering: usize,
        epoch: usize,
        view: usize,
        rows: &[usize],
    ) -> Result<Vec<f32>> {
        let recipe = augment::Recipe {
            padding: config.padding,
            flip: config.flip,
            auto_augment: config.auto_augment,
            cutout: config.cutout,
        };
        self.batch(shape, rows, |row| {
            let of_view = 0x0061_7567 ^ ((view as u64) << 32);
            let mut rng = StdRng::seed_from_u64(mixed(mixed(config.seed, epoch as u64) ^ of_view, row as u64));
            let mut image = self.source.training_image(rendering, row, shape, &mut rng)?;
            recipe.apply(&mut image, shape, &mut rng);
            Ok(image)
        })
    }

    /// Normalised pixels of test images.
    pub fn test_batch(&self, shape: Shape, rows: &[usize]) -> Result<Vec<f32>> {
        self.batch(shape, rows, |row| self.source.test_image(row, shape))
    }

    /// The error, if any, is that of the first row that has one.
    fn batch(
        &self,
        shape: Shape,
        rows: &[usize],
        image: impl Fn(usize) -> std::result::Result<Vec<u8>, DataError> + Sync,
    ) -> Result<Vec<f32>> {
        let plane = shape.height * shape.width;
        let normalised = |&row: &usize| -> std::result::Result<Vec<f32>, DataError> {
            let normal = |(i, &v): (usize, &u8)| {
                let c = i / plane;
                (f32::from(v) / 255.0 - self.mean[c]) / self.deviation[c]
            };
            Ok(image(row)?.iter().enumerate().map(normal).collect())
        };
        let images: Vec<_> = rows.par_iter().map(normalised).collect();
        Ok(images.into_iter().collect::<std::result::Result<Vec<_>, _>>()?.concat())
    }
}

/// One run, and what it is run on.
pub struct Run<'d> {
    pub config: Config,
    pub progress: Progress,
    dataset: &'d Dataset,
    images: &'d Images,
    device: Device,
    model: Model,
    optimizer: Sgd,
}

impl<'d> Run<'d> {
    /// GML needs a teacher.
    pub fn new(
        config: Config,
        dataset: &'d Dataset,
        images: &'d Images,
        device: &Device,
        teacher: Option<&Teacher>,
    ) -> Result<Self> {
        let model = Model::new(&design(&config, dataset, device)?, config.seed, teacher)?;
        let optimizer = Sgd::new(model.trained(), config.momentum, config.weight_decay);
        let (progress, device) = (Progress::default(), device.clone());
        Ok(Self { config, progress, dataset, images, device, model, optimizer })
    }

    /// Takes up what `save` left: the configuration must be the same.
    pub fn resume(
        path: &Path,
        config: Config,
        dataset: &'d Dataset,
        images: &'d Images,
        device: &Device,
    ) -> Result<Self> {
        let (tensors, record) = checkpoint::load::<Record>(path, device)?;
        if record.config != config {
            let differs = |a: &Config| serde_json::to_string(a).unwrap_or_default();
            let (was, is) = (differs(&record.config), differs(&config));
            return Err(format!("{} is of another run:\n  {was}\nthis one is\n  {is}", path.display()).into());
        }
        let model = Model::restored(&design(&config, dataset, device)?, &tensors)?;
        let mut optimizer = Sgd::new(model.trained(), config.momentum, config.weight_decay);
        for (name, tensor) in tensors {
            if let Some(name) = name.strip_prefix("velocity.") {
                optimizer.set_velocity(name, tensor);
            }
        }
        Ok(Self { config, progress: record.progress, dataset, images, device: device.clone(), model, optimizer })
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = self.model.tensors()?;
        let velocities = self.optimizer.velocities().iter();
        tensors.extend(velocities.map(|(name, velocity)| (format!("velocity.{name}"), velocity.clone())));
        let record = Record { config: self.config.clone(), progress: self.progress.clone() };
        Ok(checkpoint::save(path, tensors, &record)?)
    }

    /// What this run has learnt, to teach another one.
    pub fn teacher(&self) -> Result<Teacher> {
        Ok(Teacher { network: self.config.network, tensors: self.model.tensors()? })
    }

    pub fn batches(&self) -> usize {
        self.images.train_labels.len().div_ceil(self.config.batch_size)
    }

    /// Trains until the last epoch, or until `stop`, asked before every batch, says so; true at the end. After each epoch `on_epoch` sees the run.
    pub fn train(
        &mut self,
        bar: &ProgressBar,
        stop: &dyn Fn() -> bool,
        mut on_epoch: impl FnMut(&Self) -> Result<()>,
    ) -> Result<bool> {
        while self.progress.history.len() < self.config.epochs {
            if !self.epoch(bar, stop)? {
                return Ok(false);
            }
            on_epoch(self)?;
        }
        Ok(true)
    }

    /// The rest of an epoch; false where it was stopped. A thread makes batches while the device works on those before.
    fn epoch(&mut self, bar: &ProgressBar, stop: &dyn Fn() -> bool) -> Result<bool> {
        let epoch = self.progress.history.len();
        self.model.start(epoch)?;
        self.optimizer.lr = self.config.learning_rate(epoch);
        // Nothing is drawn from a generator that runs on from epoch to epoch: a run that is taken up draws the same.
        let mut rng = StdRng::seed_from_u64(mixed(self.config.seed, epoch as u64));
        let mut order: Vec<usize> = (0..self.images.train_labels.len()).collect();
        order.shuffle(&mut rng);
        let rendering = rng.random_range(0..self.images.source.renderings());
        let (images, shape, config) = (self.images, self.dataset.shape, self.config.clone());
        let batches = order.chunks(config.batch_size).skip(self.progress.batch);
        let made = |rows: &[usize]| -> Result<(Vec<Vec<f32>>, Vec<usize>)> {
            let views = 0..config.method.views();
            let views = views.map(|view| images.training_batch(&config, shape, rendering, epoch, view, rows));
            Ok((views.collect::<Result<_>>()?, rows.to_vec()))
        };
        let finished = ahead(batches, made, |(views, ids)| {
            if stop() {
                return Ok(false);
            }
            let n = ids.len();
            let views = views.into_iter().map(|pixels| self.batch(pixels, n)).collect::<candle_core::Result<_>>()?;
            let labels = ids.iter().map(|&row| images.train_labels[row]).collect();
            let step = self.model.step(&Batch { views, labels, ids }, epoch)?;
            self.optimizer.step(&step.loss.backward()?)?;
            let loss = f64::from(step.loss.to_scalar::<f32>()?);
            if !loss.is_finite() {
                return Err(format!("the loss is {loss} in epoch {epoch}: a smaller --lr would help").into());
            }
            let values = [loss, step.accuracy, step.hard_positive_rate, 1.0];
            self.progress.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += n as f64 * value);
            self.progress.batch += 1;
            let [loss, right, hard, n] = self.progress.sums;
            bar.set_message(format!(
                "loss {:6.3}  accuracy {:5.1} %  hard positives {:5.1} %",
                loss / n,
                100.0 * right / n,
                100.0 * hard / n
            ));
            bar.inc(1);
            Ok(true)
        })?;
        if !finished {
            return Ok(false);
        }
        let [loss, right, hard, n] = self.progress.sums;
        let test = self.evaluate()?;
        self.progress.history.push(Epoch {
            train_loss: loss / n,
            train_accuracy: right / n,
            hard_positive_rate: hard / n,
            test_accuracy: [Some(test.all), test.many, test.medium, test.few],
        });
        (self.progress.batch, self.progress.sums) = (0, [0.0; 4]);
        Ok(true)
    }

    /// (N, channels, H, W), normalised.
    fn batch(&self, pixels: Vec<f32>, n: usize) -> candle_core::Result<Tensor> {
        let shape = self.dataset.shape;
        Tensor::from_vec(pixels, (n, shape.channels, shape.height, shape.width), &self.device)
    }

    /// Accuracy of the test set.
    pub fn evaluate(&self) -> Result<ByGroup> {
        let predicted = self.predict(self.images)?;
        Ok(metrics::group_accuracy(&predicted, &self.images.test_labels, &self.dataset.groups.of_class)?)
    }

    /// Classes (N) that the test images of `images` are taken for.
    pub fn predict(&self, images: &Images) -> Result<Vec<u32>> {
        let mut predicted = Vec::with_capacity(images.test_labels.len());
        self.test_batches(images, |batch| {
            predicted.extend(self.model.predict(batch)?.to_vec1::<u32>()?);
            Ok(())
        })?;
        Ok(predicted)
    }

    /// Features (N, D) of the test images of `images`.
    pub fn test_features(&self, images: &Images) -> Result<Tensor> {
        let mut features = Vec::new();
        self.test_batches(images, |batch| {
            features.push(self.model.features(batch, false)?.detach());
            Ok(())
        })?;
        Ok(Tensor::cat(&features, 0)?)
    }

    /// 500 images at once, or as many as have 32 MiB.
    fn test_batches(&self, images: &Images, mut used: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let shape = self.dataset.shape;
        let at_once = ((8 << 20) / shape.pixels()).clamp(1, 500);
        let rows: Vec<usize> = (0..images.test_labels.len()).collect();
        let made = |rows: &[usize]| Ok((images.test_batch(shape, rows)?, rows.len()));
        ahead(rows.chunks(at_once), made, |(pixels, n)| {
            used(&self.batch(pixels, n)?)?;
            Ok(true)
        })?;
        Ok(())
    }
}

/// Gives `used` what `made` makes of each batch, in order, until it says false or one of them fails. A thread is at most three batches ahead.
fn ahead<'a, T: Send>(
    batches: impl Iterator<Item = &'a [usize]> + Send,
    made: impl Fn(&[usize]) -> Result<T> + Send,
    mut used: impl FnMut(T) -> Result<bool>,
) -> Result<bool> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(2);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for rows in batches {
                let batch = made(rows);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        for batch in receiver {
            if !used(batch?)? {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

fn design<'a>(config: &Config, dataset: &'a Dataset, device: &'a Device) -> Result<Design<'a>> {
    Ok(Design {
        network: config.network,
        shape: dataset.shape,
        counts: &dataset.counts,
        objective: config.method.objective(&dataset.counts, &config.numbers)?,
        companion: config.numbers.companion,
        device,
    })
}

/// A seed of its own for each pair.
fn mixed(seed: u64, of: u64) -> u64 {
    let x = (seed ^ of.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 29)
}
