//! The losses compared where differences can be told: heads on frozen features, where the loss is the step and twenty seeds are cheap, and small networks.
//!
//!     RAYON_NUM_THREADS=1 cargo run --release --example experiments -- --corpus detexify
//!     sh examples/experiments/fonts.sh && RAYON_NUM_THREADS=1 cargo run --release --example experiments -- --corpus glyphs --classes 1500
//!     RAYON_NUM_THREADS=1 cargo run --release --example experiments -- --corpus detexify --classes 214 --networks --seeds 5
//!
//! Training, validation and test are cut once. Every loss gets the same search on the validation: learning rates; then scales s (a linear head: weight
//! decays); then margins, where it has one. What is best is trained from other seeds, and only then is the test set looked at. Differences are paired, and
//! corrected for their number. docs/experiments.md says what came out. The parts of a network's training are those of the example `train`.

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
mod recipe;
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
mod subject;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use corpus::Part;
use losses::{Choice, LOSSES, Loss};
use report::{Outcome, Sweep, Trial};
use subject::{Heads, Measures, Networks, Subject};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// All symbols of the crate `detexify`, at their natural counts
    Detexify,
    /// Glyphs of 249 font families, tested on families that were never seen
    Glyphs,
}

/// Losses on heads or on networks, with one search for all and paired seeds.
#[derive(Debug, Clone, Parser)]
#[command(name = "experiments")]
struct Arguments {
    #[arg(long, value_enum, default_value = "detexify")]
    corpus: Source,
    /// Whole networks instead of heads
    #[arg(long)]
    networks: bool,
    /// BCL, GML and NCL, too
    #[arg(long, requires = "networks")]
    companions: bool,
    /// Seeds of the comparison; at least 2
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// Seeds of each trial of the search
    #[arg(long, default_value_t = 2)]
    search_seeds: u64,
    /// Epochs of a head, or of a network
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    /// Epochs of the network whose features heads are trained on
    #[arg(long, default_value_t = 40)]
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
    #[arg(long, value_name = "DIR", default_value = "target/experiments")]
    out: PathBuf,
}

/// Seeds of the search begin here, those of the comparison at 0.
const SEARCH: u64 = 1000;
/// Values of K and τ around what DBM-BS chose (Fig. 3).
const SWEEP_K: [f64; 5] = [0.05, 0.1, 0.2, 0.3, 0.5];
const SWEEP_TAU: [f64; 4] = [0.25, 0.5, 1.0, 2.0];

fn main() {
    if let Err(error) = experiments(&Arguments::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn experiments(arguments: &Arguments) -> Result<()> {
    if arguments.seeds < 2 || arguments.search_seeds == 0 || arguments.jobs == 0 || arguments.epochs < 2 {
        return Err("--seeds and --epochs must be at least 2, --search-seeds and --jobs 1".into());
    }
    std::fs::create_dir_all(&arguments.out).map_err(|error| format!("{}: {error}", arguments.out.display()))?;
    let mut name = arguments.corpus.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string());
    let corpus = match arguments.corpus {
        Source::Detexify => corpus::detexify(arguments.classes, 20)?,
        Source::Glyphs => glyphs::glyphs(&arguments.fonts, &arguments.out, arguments.classes, 24)?,
    };
    println!("{}\n{}", corpus.attribution, corpus.title);
    let outcomes;
    let sweep;
    if arguments.networks {
        let networks = Networks::new(&corpus, arguments.epochs);
        (outcomes, sweep) = compare(arguments, &networks, &losses::of_networks(arguments.companions))?;
        name += "-networks";
    } else {
        let parts = embedding::features(&corpus, &name, arguments.embedding_epochs, &arguments.out)?;
        let heads = Heads { corpus: &corpus, parts: &parts, epochs: arguments.epochs };
        let compared = compare(arguments, &heads, &LOSSES)?;
        let timed = |outcome: Outcome| -> Result<Outcome> {
            Ok(Outcome { step_ms: heads.time(outcome.loss, outcome.choice)?, ..outcome })
        };
        outcomes = compared.0.into_iter().map(timed).collect::<Result<_>>()?;
        sweep = compared.1;
    }
    let text = report::markdown(&corpus, arguments.seeds, arguments.epochs, &outcomes, &sweep);
    println!("\n{text}");
    report::write(&arguments.out.join(&name), &corpus, &outcomes, &sweep, &text)?;
    println!("Written to {}.", arguments.out.display());
    Ok(())
}

/// Search on the validation, then the test.
fn compare(arguments: &Arguments, subject: &impl Subject, losses: &[Loss]) -> Result<(Vec<Outcome>, Sweep)> {
    let mut outcomes = Vec::new();
    for &loss in losses {
        let trials = search(arguments, subject, loss)?;
        let Trial { choice, validation } = best(&trials).clone();
        println!("{:16} validation {validation:5.2} %  {choice:?}", loss.name);
        outcomes.push(Outcome { loss, choice, trials, test: Vec::new(), step_ms: None });
    }
    // All choices are made.
    let chosen: Vec<(Loss, Choice)> = outcomes.iter().map(|outcome| (outcome.loss, outcome.choice)).collect();
    let (dbm, at) = *chosen.iter().find(|(loss, _)| loss.name == "DBM-BS").ok_or("DBM-BS is in the table")?;
    let by_k = SWEEP_K.map(|margin| (dbm, Choice { margin, ..at }));
    let by_tau = SWEEP_TAU.map(|tau| (dbm, Choice { tau, ..at }));
    let all: Vec<_> = chosen.into_iter().chain(by_k).chain(by_tau).collect();
    let mut tested = runs(arguments, subject, "test", &all, Part::Test, 0, arguments.seeds)?.into_iter();
    for outcome in &mut outcomes {
        outcome.test = tested.next().ok_or("every loss was tested")?;
    }
    let choices = all[outcomes.len()..].iter().map(|(_, choice)| *choice);
    Ok((outcomes, choices.zip(tested).collect()))
}

/// The first of the best.
fn best(trials: &[Trial]) -> &Trial {
    trials.iter().rev().max_by(|a, b| a.validation.total_cmp(&b.validation)).expect("a search has a trial")
}

/// One axis after the other, each from the best so far.
fn search(arguments: &Arguments, subject: &impl Subject, loss: Loss) -> Result<Vec<Trial>> {
    let mut trials: Vec<Trial> = Vec::new();
    for axis in 0..3 {
        let from = (!trials.is_empty()).then(|| best(&trials).choice);
        let along = loss.along(axis, subject.axes(), from).into_iter();
        let new = along.filter(|choice| trials.iter().all(|trial| trial.choice != *choice));
        let new: Vec<(Loss, Choice)> = new.map(|choice| (loss, choice)).collect();
        let measured = runs(arguments, subject, loss.name, &new, Part::Validation, SEARCH, arguments.search_seeds)?;
        trials.extend(new.iter().zip(measured).map(|((_, choice), of)| Trial {
            choice: *choice,
            validation: of.iter().map(|run| run.all).sum::<f64>() / of.len() as f64,
        }));
    }
    Ok(trials)
}

/// Measures on a part by setting and seed; several runs side by side, seed by seed, so that what else the machine does meets all settings alike.
fn runs(
    arguments: &Arguments,
    subject: &impl Subject,
    title: &str,
    settings: &[(Loss, Choice)],
    part: Part,
    first: u64,
    seeds: u64,
) -> Result<Vec<Vec<Measures>>> {
    let seeds = seeds as usize;
    let runs = settings.len() * seeds;
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
            let (loss, choice) = settings[which];
            let measures = subject.run(loss, choice, first + seed as u64, part)?;
            done.lock().expect("no thread panicked with the lock")[which * seeds + seed] = Some(measures);
            bar.inc(1);
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..arguments.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a run panicked")?)
    })?;
    bar.finish_and_clear();
    let mut done = done.into_inner().expect("no thread panicked with the lock").into_iter().flatten();
    Ok(settings.iter().map(|_| done.by_ref().take(seeds).collect()).collect())
}
