//! What is trained and measured: a head on frozen features, or a whole network.

use std::time::Instant;

use candle_core::{Device, Tensor};
use candle_margin_loss::Group;
use candle_margin_loss::metrics::{self, Scatter};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::corpus::{Corpus, Part};
use crate::data::{Dataset, Grouping};
use crate::embedding::Features;
use crate::head;
use crate::losses::{self, Axes, BETA, Choice, Family, Loss, drw_epoch};
use crate::methods::{Companion, CompanionNumbers, Gate, Method, Network, Numbers};
use crate::recipe::{config, dataset};
use crate::run::{Config, Images, Run};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A run's measures on a part; accuracies in %, of each class alike.
#[derive(Debug, Clone, Serialize)]
pub struct Measures {
    pub all: f64,
    pub many: Option<f64>,
    pub medium: Option<f64>,
    pub few: Option<f64>,
    /// Of the classes that the part has
    pub by_class: Vec<f64>,
    /// Mean angle in degrees of the samples of many, medium and few to their class's centre (Fig. 4)
    pub angles: [f64; 3],
    /// Mean Fisher separability of the classes of many, medium and few (Table 6), pooled, γ = 0.1; of networks, whose features are their own
    pub separability: Option<[f64; 3]>,
}

pub trait Subject: Sync {
    fn axes(&self) -> &'static Axes;
    /// Trains from a seed and measures on a part.
    fn run(&self, loss: Loss, choice: Choice, seed: u64, part: Part) -> Result<Measures>;
}

pub struct Heads<'a> {
    pub corpus: &'a Corpus,
    pub parts: &'a [Features; 3],
    pub epochs: usize,
}

impl Subject for Heads<'_> {
    fn axes(&self) -> &'static Axes {
        &losses::HEADS
    }

    fn run(&self, loss: Loss, choice: Choice, seed: u64, part: Part) -> Result<Measures> {
        let head = head::train(&loss, choice, &self.corpus.counts, &self.parts[0], self.epochs, seed)?;
        let part = &self.parts[part as usize];
        measures(self.corpus, &head.predict(&part.features)?, &part.labels, &part.features, &head.weight)
    }
}

impl Heads<'_> {
    /// Median of 21 calls that give loss and gradients, ms; none of a linear head, which is of Candle's ops here.
    pub fn time(&self, loss: Loss, choice: Choice) -> Result<Option<f64>> {
        let Some(schedule) = loss.schedule(&self.corpus.counts, choice, self.epochs)? else { return Ok(None) };
        let margin = schedule.at(self.epochs - 1);
        let rows = head::BATCH.min(self.parts[0].labels.len());
        let x = self.parts[0].features.narrow(0, 0, rows)?;
        let y = Tensor::new(&self.parts[0].labels[..rows], x.device())?;
        let w = Tensor::randn(0f32, 1.0, (self.corpus.counts.classes(), x.dim(1)?), x.device())?;
        let mut times = Vec::new();
        for _ in 0..21 {
            let start = Instant::now();
            margin.loss_and_grads(&x, &w, &y, None)?;
            times.push(1e3 * start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(Some(times[times.len() / 2]))
    }
}

pub struct Networks<'a> {
    corpus: &'a Corpus,
    /// With the validation and with the test in the place of a test
    datasets: [(Dataset, Images); 2],
    epochs: usize,
}

impl<'a> Networks<'a> {
    pub fn new(corpus: &'a Corpus, epochs: usize) -> Self {
        let of = |part: Part| {
            let dataset = dataset(corpus, part);
            let images = Images::new(&dataset);
            (dataset, images)
        };
        Self { corpus, datasets: [of(Part::Validation), of(Part::Test)], epochs }
    }

    fn config(&self, method: Method, family: Family, choice: Choice, seed: u64) -> Config {
        let companion = CompanionNumbers::new(method, self.epochs);
        let companion = companion.map(|numbers| CompanionNumbers { teacher_network: Network::Patches, ..numbers });
        Config {
            lr: choice.lr,
            weight_decay: choice.weight_decay,
            seed,
            numbers: Numbers {
                scale: choice.scale,
                k: choice.margin,
                tau: choice.tau,
                gate: if let Family::Dbm(gate) = family { gate } else { Gate::Off },
                ldam_margin: choice.margin,
                beta: BETA,
                drw_epoch: drw_epoch(self.epochs),
                companion,
            },
            ..config(self.corpus, method, self.epochs)
        }
    }
}

impl Subject for Networks<'_> {
    fn axes(&self) -> &'static Axes {
        &losses::NETWORKS
    }

    fn run(&self, loss: Loss, choice: Choice, seed: u64, part: Part) -> Result<Measures> {
        let (dataset, images) = &self.datasets[usize::from(part == Part::Test)];
        let method = loss.method().ok_or("a network's loss is a method of the example train")?;
        let config = self.config(method, loss.family, choice, seed);
        let trained = |config: Config, teacher| -> Result<Run> {
            let mut run = Run::new(config, dataset, images, &Device::Cpu, teacher)?;
            run.train(&ProgressBar::hidden(), &|| false, |_| Ok(()))?;
            Ok(run)
        };
        let teacher = match method.companion() {
            Some(Companion::Gml) => Some(trained(config.teacher(), None)?.teacher()?),
            _ => None,
        };
        let run = trained(config, teacher.as_ref())?;
        let tensors = run.teacher()?.tensors;
        let centres = ["head.weight", "expert0.head.weight"].iter().find_map(|name| tensors.get(*name));
        let centres = centres.ok_or("a network has a head")?;
        let features = run.test_features(images)?;
        let labels = &dataset.test.labels;
        let mut measures = measures(self.corpus, &run.predict(images)?, labels, &features, centres)?;
        measures.separability = Some(separability(self.corpus, &features, labels)?);
        Ok(measures)
    }
}

fn measures(
    corpus: &Corpus,
    predicted: &[u32],
    labels: &[u32],
    features: &Tensor,
    centres: &Tensor,
) -> Result<Measures> {
    let groups = Grouping::thirds(&corpus.counts).of_class;
    let by_class = metrics::class_accuracy(predicted, labels, groups.len())?;
    let mean = |wanted: Option<Group>| {
        let of = by_class.iter().zip(&groups).filter(|(_, group)| wanted.is_none_or(|wanted| wanted == **group));
        let of: Vec<f64> = of.filter_map(|(accuracy, _)| *accuracy).collect();
        (!of.is_empty()).then(|| 100.0 * of.iter().sum::<f64>() / of.len() as f64)
    };
    let angles = metrics::angular_distances(features, centres, labels)?;
    let mean_angle = |wanted| {
        let of = angles.iter().zip(labels).filter(|(_, y)| groups[**y as usize] == wanted);
        let (sum, n) = of.fold((0.0, 0.0), |(sum, n), (angle, _)| (sum + angle.to_degrees(), n + 1.0));
        sum / n
    };
    let [many, medium, few] = Group::ALL;
    Ok(Measures {
        all: mean(None).ok_or("a part has samples")?,
        many: mean(Some(many)),
        medium: mean(Some(medium)),
        few: mean(Some(few)),
        by_class: by_class.iter().flatten().map(|accuracy| 100.0 * accuracy).collect(),
        angles: [mean_angle(many), mean_angle(medium), mean_angle(few)],
        separability: None,
    })
}

/// Of the classes that have two samples or more, on the sphere.
fn separability(corpus: &Corpus, features: &Tensor, labels: &[u32]) -> Result<[f64; 3]> {
    let groups = Grouping::thirds(&corpus.counts).of_class;
    let mut n = vec![0usize; groups.len()];
    labels.iter().for_each(|&y| n[y as usize] += 1);
    let kept: Vec<usize> = (0..groups.len()).filter(|&j| n[j] >= 2).collect();
    let rows: Vec<u32> = (0..labels.len()).filter(|&i| n[labels[i] as usize] >= 2).map(|i| i as u32).collect();
    let of_kept: Vec<u32> = rows
        .iter()
        .filter_map(|&i| kept.binary_search(&(labels[i as usize] as usize)).ok())
        .map(|j| j as u32)
        .collect();
    let x = features.index_select(&Tensor::new(rows, features.device())?, 0)?;
    let x = x.broadcast_div(&(x.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-12)?)?;
    let values = metrics::fisher_separability(&x, &of_kept, kept.len(), Scatter::Pooled, 0.1)?;
    Ok(Group::ALL.map(|wanted| {
        let of = values.iter().zip(&kept).filter(|(_, j)| groups[**j] == wanted);
        let (sum, n) = of.fold((0.0, 0.0), |(sum, n), (value, _)| (sum + value, n + 1.0));
        sum / n
    }))
}
