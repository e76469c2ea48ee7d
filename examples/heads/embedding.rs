//! The features that heads are trained on: a small network, trained once by plain cross-entropy on a linear head (as decoupled training has it, Kang et al.
//! 2020), then frozen.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};

use crate::corpus::{Corpus, Part, cached};
use crate::data::{Dataset, Grouping, Samples};
use crate::methods::{Gate, Method, Network, Numbers};
use crate::run::{Config, Images, Run};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Features (N, D) and labels (N) of a part, in f32 and u32; features have a mean norm of 1 over training.
pub struct Features {
    pub features: Tensor,
    pub labels: Vec<u32>,
}

pub fn features(corpus: &Corpus, name: &str, epochs: usize, folder: &Path) -> Result<[Features; 3]> {
    let file = folder.join(format!("{name}-{}-classes-{epochs}-epochs.safetensors", corpus.counts.classes()));
    let tensors = cached(&file, || embed(corpus, epochs))?;
    let scale = 1.0 / f64::from(tensors["0"].sqr()?.sum(1)?.sqrt()?.mean_all()?.to_scalar::<f32>()?);
    let part = |part: Part| -> Result<Features> {
        let features = (&tensors[&(part as usize).to_string()] * scale)?;
        Ok(Features { features, labels: corpus.part(part).labels.clone() })
    };
    Ok([part(Part::Train)?, part(Part::Validation)?, part(Part::Test)?])
}

/// Features of the parts, by number.
fn embed(corpus: &Corpus, epochs: usize) -> Result<HashMap<String, Tensor>> {
    let copy = |samples: &Samples| Samples { pixels: samples.pixels.clone(), labels: samples.labels.clone() };
    // The validation is looked at after each epoch; nothing is chosen by it here.
    let dataset = |test: Part| Dataset {
        title: corpus.title.clone(),
        shape: corpus.shape,
        class_names: Vec::new(),
        train: vec![copy(corpus.part(Part::Train))],
        test: copy(corpus.part(test)),
        counts: corpus.counts.clone(),
        groups: Grouping::thirds(&corpus.counts),
    };
    let config = Config {
        dataset: corpus.title.clone(),
        imbalance_factor: corpus.counts.imbalance_factor(),
        data_seed: 0,
        method: Method::Ce,
        seed: 0,
        network: Network::Patches,
        epochs,
        batch_size: 64,
        lr: 0.1,
        momentum: 0.9,
        weight_decay: 2e-4,
        warmup_epochs: 1,
        padding: 2,
        flip: false,
        auto_augment: false,
        cutout: 0,
        numbers: Numbers {
            scale: 16.0,
            k: 0.1,
            tau: 1.0,
            gate: Gate::Off,
            ldam_margin: 0.5,
            beta: 0.9999,
            drw_epoch: epochs,
            companion: None,
        },
    };
    let validated = dataset(Part::Validation);
    let images = Images::new(&validated);
    let mut run = Run::new(config, &validated, &images, &Device::Cpu, None)?;
    let bar = ProgressBar::new((epochs * run.batches()) as u64);
    bar.set_style(ProgressStyle::with_template("embedding {bar:30.cyan} {elapsed} {eta}  {msg}")?);
    run.train(&bar, &|| false, |run| {
        let last = run.progress.history.last().ok_or("an epoch has ended")?;
        let all = last.test_accuracy[0].unwrap_or(0.0);
        println!(
            "embedding, epoch {}: loss {:.3}, validation {:.1} %",
            run.progress.history.len(),
            last.train_loss,
            100.0 * all
        );
        Ok(())
    })?;
    bar.finish_and_clear();
    let mut tensors = HashMap::new();
    for part in Part::ALL {
        let of = dataset(part);
        // Normalised by the training images, as those were.
        let images = Images::new(&of);
        tensors.insert((part as usize).to_string(), run.test_features(&images)?);
    }
    Ok(tensors)
}
