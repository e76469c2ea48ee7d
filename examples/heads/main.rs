//! The losses compared where differences can be told: heads on frozen features of a small network, where the loss is the step and twenty seeds are cheap.
//!
//!     RAYON_NUM_THREADS=1 cargo run --release --example heads -- --corpus detexify
//!     sh examples/heads/fonts.sh && RAYON_NUM_THREADS=1 cargo run --release --example heads -- --corpus glyphs
//!
//! Training, validation and test are cut once. Every loss gets the same search on the validation: five learning rates; then five scales s (a linear head:
//! weight decays); then five margins, where it has one; two seeds each. What is best is trained from twenty other seeds, and only then is the test set
//! looked at. Differences are paired, and corrected for their number. docs/experiments.md says what came out.

#[path = "../train/augment.rs"]
#[allow(dead_code)]
mod augment;
#[path = "../train/checkpoint.rs"]
#[allow(dead_code)]
mod checkpoint;
#[path = "../train/companion.rs"]
#[allow(dead_code)]
mod companion;
mod corpus;
#[path = "../longtail/data.rs"]
#[allow(dead_code)]
mod data;
mod embedding;
mod glyphs;
mod head;
mod losses;
#[path = "../train/methods.rs"]
#[allow(dead_code)]
mod methods;
#[path = "../train/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "../train/photos.rs"]
#[allow(dead_code)]
mod photos;
mod report;
#[path = "../train/resnet.rs"]
mod resnet;
#[path = "../train/run.rs"]
#[allow(dead_code)]
mod run;
#[path = "../train/sgd.rs"]
#[allow(dead_code)]
mod sgd;
mod statistics;
#[path = "../longtail/strokes.rs"]
#[allow(dead_code)]
mod strokes;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use candle_core::Tensor;
use candle_margin_loss::metrics;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use corpus::{Corpus, Part};
use data::Grouping;
use embedding::Features;
use losses::{Choice, Family, LOSSES, Loss};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// All symbols of the crate `detexify`, at their natural counts
    Detexify,
    /// Glyphs of 249 font families, tested on families that were never seen
    Glyphs,
}

/// Losses on frozen features, with one search for all and paired seeds.
#[derive(Debug, Clone, Parser)]
#[command(name = "heads")]
struct Arguments {
    #[arg(long, value_enum, default_value = "detexify")]
    corpus: Source,
    /// Seeds of the comparison; at least 2
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// Seeds of each trial of the search
    #[arg(long, default_value_t = 2)]
    search_seeds: u64,
    /// Epochs of a head
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    #[arg(long, default_value_t = 15)]
    embedding_epochs: usize,
    /// Fewer classes than there are
    #[arg(long)]
    classes: Option<usize>,
    /// Runs side by side
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Where fonts.sh left the fonts
    #[arg(long, value_name = "DIR", default_value = "target/fonts")]
    fonts: PathBuf,
    #[arg(long, value_name = "DIR", default_value = "target/heads")]
    out: PathBuf,
}

/// What the search saw of a choice.
#[derive(Debug, Clone, Serialize)]
struct Trial {
    choice: Choice,
    /// Mean accuracy of the classes on the validation, %
    validation: f64,
}

/// A run's accuracy on a part, in %: the mean of the classes' accuracies, each class counting the same.
#[derive(Debug, Clone, Serialize)]
struct Accuracy {
    all: f64,
    many: Option<f64>,
    medium: Option<f64>,
    few: Option<f64>,
    /// Of the classes that the part has
    by_class: Vec<f64>,
    /// Mean angle in degrees of the samples of many, medium and few to their class's centre (Fig. 4)
    angles: [f64; 3],
}

/// A loss and what came of it on the test.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    loss: Loss,
    choice: Choice,
    trials: Vec<Trial>,
    /// (seeds)
    test: Vec<Accuracy>,
    /// Median time of a step on one thread, ms: the loss with its gradients, the update of W
    step_ms: f64,
}

struct Protocol<'a> {
    arguments: &'a Arguments,
    corpus: &'a Corpus,
    parts: &'a [Features; 3],
    grouping: Grouping,
}

/// Seeds of the search begin here, those of the comparison at 0.
const SEARCH: u64 = 1000;
/// Values of K and τ around the chosen ones (Fig. 3).
const SWEEP_K: [f64; 5] = [0.05, 0.1, 0.2, 0.3, 0.5];
const SWEEP_TAU: [f64; 4] = [0.25, 0.5, 1.0, 2.0];

fn main() {
    if let Err(error) = heads(&Arguments::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn heads(arguments: &Arguments) -> Result<()> {
    if arguments.seeds < 2 || arguments.search_seeds == 0 || arguments.jobs == 0 || arguments.epochs == 0 {
        return Err("--seeds must be at least 2, --search-seeds, --jobs and --epochs 1".into());
    }
    std::fs::create_dir_all(&arguments.out).map_err(|error| format!("{}: {error}", arguments.out.display()))?;
    let name = arguments.corpus.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string());
    let corpus = match arguments.corpus {
        Source::Detexify => corpus::detexify(arguments.classes, 20)?,
        Source::Glyphs => glyphs::glyphs(&arguments.fonts, &arguments.out, arguments.classes, 24)?,
    };
    println!("{}\n{}", corpus.attribution, corpus.title);
    let parts = embedding::features(&corpus, &name, arguments.embedding_epochs, &arguments.out)?;
    let grouping = Grouping::thirds(&corpus.counts);
    let protocol = Protocol { arguments, corpus: &corpus, parts: &parts, grouping };
    let mut outcomes = Vec::new();
    for loss in LOSSES {
        let (choice, trials) = protocol.search(loss)?;
        println!("{:16} validation {:5.2} %  {choice:?}", loss.name, best(&trials).validation);
        outcomes.push(Outcome { loss, choice, trials, test: Vec::new(), step_ms: protocol.time(loss, choice)? });
    }
    // All choices are made: the test set.
    let chosen: Vec<(Loss, Choice)> = outcomes.iter().map(|outcome| (outcome.loss, outcome.choice)).collect();
    let (dbm, at) = *chosen.iter().find(|(loss, _)| loss.name == "DBM-BS").ok_or("DBM-BS is in the table")?;
    let by_k = SWEEP_K.map(|margin| (dbm, Choice { margin, ..at }));
    let by_tau = SWEEP_TAU.map(|tau| (dbm, Choice { tau, ..at }));
    let all: Vec<_> = chosen.into_iter().chain(by_k).chain(by_tau).collect();
    let mut tested = protocol.runs("test", &all, Part::Test, 0, arguments.seeds)?.into_iter();
    for outcome in &mut outcomes {
        outcome.test = tested.next().ok_or("every loss was tested")?;
    }
    let sweep: Vec<(Choice, Vec<Accuracy>)> =
        all[outcomes.len()..].iter().map(|(_, choice)| *choice).zip(tested).collect();
    let text = report::markdown(&corpus, arguments, &outcomes, &sweep);
    println!("\n{text}");
    report::write(&arguments.out.join(&name), &corpus, &outcomes, &sweep, &text)?;
    println!("Written to {}.", arguments.out.display());
    Ok(())
}

/// The first of the best.
fn best(trials: &[Trial]) -> &Trial {
    trials.iter().rev().max_by(|a, b| a.validation.total_cmp(&b.validation)).expect("a search has a trial")
}

impl Protocol<'_> {
    /// One axis after the other, each from the best so far.
    fn search(&self, loss: Loss) -> Result<(Choice, Vec<Trial>)> {
        let axes: [fn(Loss, Choice) -> Vec<Choice>; 3] = [Loss::rates, Loss::scales, Loss::by_margin];
        let mut trials: Vec<Trial> = Vec::new();
        for axis in axes {
            let from = if trials.is_empty() { loss.start() } else { best(&trials).choice };
            let new = axis(loss, from).into_iter().filter(|choice| trials.iter().all(|trial| trial.choice != *choice));
            let new: Vec<(Loss, Choice)> = new.map(|choice| (loss, choice)).collect();
            let accuracies = self.runs(loss.name, &new, Part::Validation, SEARCH, self.arguments.search_seeds)?;
            trials.extend(new.iter().zip(accuracies).map(|((_, choice), of)| Trial {
                choice: *choice,
                validation: of.iter().map(|accuracy| accuracy.all).sum::<f64>() / of.len() as f64,
            }));
        }
        Ok((best(&trials).choice, trials))
    }

    /// Accuracies on a part by setting and seed; several runs side by side.
    fn runs(
        &self,
        title: &str,
        settings: &[(Loss, Choice)],
        part: Part,
        first: u64,
        seeds: u64,
    ) -> Result<Vec<Vec<Accuracy>>> {
        let runs = settings.len() * seeds as usize;
        let (next, done) = (AtomicUsize::new(0), Mutex::new(vec![None; runs]));
        let bar = ProgressBar::new(runs as u64);
        bar.set_style(ProgressStyle::with_template("{msg} {pos}/{len} {bar:30.cyan} {elapsed} {eta}")?);
        bar.set_message(title.to_string());
        let work = || -> Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= runs {
                    return Ok(());
                }
                let (seed, which) = (at / settings.len(), at % settings.len());
                let (loss, choice) = &settings[which];
                let (counts, epochs) = (&self.corpus.counts, self.arguments.epochs);
                let head = head::train(loss, *choice, counts, &self.parts[0], epochs, first + seed as u64)?;
                let accuracy = self.accuracy(&head, &self.parts[part as usize])?;
                done.lock().expect("no thread panicked with the lock")[which * seeds as usize + seed] = Some(accuracy);
                bar.inc(1);
            }
        };
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..self.arguments.jobs).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a run panicked")?)
        })?;
        bar.finish_and_clear();
        let mut done = done.into_inner().expect("no thread panicked with the lock").into_iter().flatten();
        Ok(settings.iter().map(|_| done.by_ref().take(seeds as usize).collect()).collect())
    }

    fn accuracy(&self, head: &head::Head, part: &Features) -> Result<Accuracy> {
        let (classes, groups) = (self.corpus.counts.classes(), &self.grouping.of_class);
        let predicted = head.predict(&part.features)?;
        let by_class = metrics::class_accuracy(&predicted, &part.labels, classes)?;
        let group = |wanted: Option<candle_margin_loss::Group>| {
            let of = by_class.iter().zip(groups).filter(|(_, group)| wanted.is_none_or(|wanted| wanted == **group));
            let of: Vec<f64> = of.filter_map(|(accuracy, _)| *accuracy).collect();
            (!of.is_empty()).then(|| 100.0 * of.iter().sum::<f64>() / of.len() as f64)
        };
        let angles = metrics::angular_distances(&part.features, &head.weight, &part.labels)?;
        let mean_angle = |wanted| {
            let of = angles.iter().zip(&part.labels).filter(|(_, y)| groups[**y as usize] == wanted);
            let (sum, n) = of.fold((0.0, 0.0), |(sum, n), (angle, _)| (sum + angle.to_degrees(), n + 1.0));
            sum / n
        };
        let [many, medium, few] = candle_margin_loss::Group::ALL;
        Ok(Accuracy {
            all: group(None).ok_or("a part has samples")?,
            many: group(Some(many)),
            medium: group(Some(medium)),
            few: group(Some(few)),
            by_class: by_class.iter().flatten().map(|accuracy| 100.0 * accuracy).collect(),
            angles: [mean_angle(many), mean_angle(medium), mean_angle(few)],
        })
    }

    /// Median of 21 calls that give loss and gradients, ms; a linear head's are made of Candle's ops.
    fn time(&self, loss: Loss, choice: Choice) -> Result<f64> {
        if loss.family == Family::Linear {
            return Ok(f64::NAN);
        }
        let counts = &self.corpus.counts;
        let schedule = loss.schedule(counts, choice, self.arguments.epochs)?.ok_or("a cosine head has a schedule")?;
        let margin = schedule.at(self.arguments.epochs - 1);
        let rows = head::BATCH.min(self.parts[0].labels.len());
        let x = self.parts[0].features.narrow(0, 0, rows)?;
        let y = Tensor::new(&self.parts[0].labels[..rows], x.device())?;
        let w = Tensor::randn(0f32, 1.0, (counts.classes(), x.dim(1)?), x.device())?;
        let mut times = Vec::new();
        for _ in 0..21 {
            let start = Instant::now();
            margin.loss_and_grads(&x, &w, &y, None)?;
            times.push(1e3 * start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}
