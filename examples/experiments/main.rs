//! The ablation of the paper's Table 5 (what each part of the margin gives), the sweep of its Figure 3 (K and τ), and the methods of its Table 2, on data
//! that two cores can train:
//!
//!     RAYON_NUM_THREADS=1 cargo run --release --example experiments -- --dataset fashion-mnist
//!
//! Every configuration is trained from every seed, several runs side by side; a seed gives all configurations the same batches. Means stand with
//! 95 % confidence intervals (Student's t over the seeds), differences between configurations are paired by seed. docs/experiments.md has what
//! came out. The parts are those of the example `train`.

#[path = "../train/augment.rs"]
#[allow(dead_code)]
mod augment;
#[path = "../train/checkpoint.rs"]
#[allow(dead_code)]
mod checkpoint;
#[path = "../train/companion.rs"]
#[allow(dead_code)]
mod companion;
#[path = "../longtail/data.rs"]
#[allow(dead_code)]
mod data;
#[path = "../longtail/images.rs"]
#[allow(dead_code)]
mod images;
#[path = "../train/methods.rs"]
#[allow(dead_code)]
mod methods;
#[path = "../train/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "../train/photos.rs"]
#[allow(dead_code)]
mod photos;
#[path = "../train/resnet.rs"]
mod resnet;
#[path = "../train/run.rs"]
#[allow(dead_code)]
mod run;
#[path = "../train/sgd.rs"]
#[allow(dead_code)]
mod sgd;
#[path = "../longtail/strokes.rs"]
#[allow(dead_code)]
mod strokes;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;
use serde::Serialize;

use data::{DataError, Dataset};
use methods::{Companion, CompanionNumbers, Gate, Method, Network, Numbers};
use model::{Design, Model, Teacher};
use run::{Config, Images, Run};
use sgd::Sgd;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// Debian's package `dataset-fashion-mnist`, imbalance factor 100
    FashionMnist,
    /// Handwritten symbols, carried by the crate `detexify`, imbalance factor 20
    Detexify,
}

/// Table 5's ablation and Figure 3's sweep, or the methods of Table 2, with confidence intervals.
#[derive(Debug, Clone, Parser)]
#[command(name = "experiments")]
struct Arguments {
    #[arg(long, value_enum, default_value = "fashion-mnist")]
    dataset: Source,
    /// Seeds: 0 and on; at least 2
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    #[arg(long, default_value_t = 8)]
    epochs: usize,
    #[arg(long, default_value_t = 0.05)]
    lr: f64,
    /// s
    #[arg(long, default_value_t = 16.0)]
    scale: f64,
    /// Runs side by side
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// The ablation alone
    #[arg(long)]
    no_sweep: bool,
    /// The linear and the plain cosine heads alone
    #[arg(long)]
    plain: bool,
    /// The methods of Table 2 instead: all by the same recipe, GML's teacher and NCL's networks like the others', DRW in the last fifth
    #[arg(long, conflicts_with_all = ["plain", "no_sweep"])]
    methods: bool,
    /// Where the time of a training step goes, by network, instead of the experiments
    #[arg(long)]
    profile: bool,
    #[arg(long, value_name = "DIR", default_value = "target/experiments")]
    out: PathBuf,
}

/// K and τ where nothing else is said.
const K: f64 = 0.1;
const TAU: f64 = 1.0;
const SWEEP_K: [f64; 5] = [0.05, 0.1, 0.2, 0.3, 0.5];
const SWEEP_TAU: [f64; 4] = [0.25, 0.5, 1.0, 2.0];

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Setting {
    name: &'static str,
    /// The setting that this one is compared with
    less: Option<&'static str>,
    method: Method,
    gate: Gate,
    k: f64,
    tau: f64,
}

impl Setting {
    const fn new(name: &'static str, less: Option<&'static str>, method: Method, gate: Gate) -> Self {
        Self { name, less, method, gate, k: K, tau: TAU }
    }
}

/// Table 5, for CE and for BS: each row is compared with the one above.
const ABLATION: [Setting; 10] = [
    Setting::new("CE, linear", None, Method::Ce, Gate::Off),
    Setting::new("CE, cosine", Some("CE, linear"), Method::CosineCe, Gate::Off),
    Setting::new("CE, m_C", Some("CE, cosine"), Method::DbmCe, Gate::Off),
    Setting::new("CE, m_C + m_I on P", Some("CE, m_C"), Method::DbmCe, Gate::Positives),
    Setting::new("CE, m_C + m_I on HP", Some("CE, m_C + m_I on P"), Method::DbmCe, Gate::HardPositives),
    Setting::new("BS, linear", None, Method::Bs, Gate::Off),
    Setting::new("BS, cosine", Some("BS, linear"), Method::CosineBs, Gate::Off),
    Setting::new("BS, m_C", Some("BS, cosine"), Method::DbmBs, Gate::Off),
    Setting::new("BS, m_C + m_I on P", Some("BS, m_C"), Method::DbmBs, Gate::Positives),
    Setting::new("BS, m_C + m_I on HP", Some("BS, m_C + m_I on P"), Method::DbmBs, Gate::HardPositives),
];

/// Table 2: what has DBM in it is compared with the same without.
fn methods() -> Vec<Setting> {
    let base = |method: Method| match method {
        Method::DbmCe => Some(Method::Ce),
        Method::DbmDrw => Some(Method::CeDrw),
        Method::DbmBs => Some(Method::Bs),
        Method::DbmBcl => Some(Method::Bcl),
        Method::DbmGml => Some(Method::Gml),
        Method::DbmNcl => Some(Method::Ncl),
        _ => None,
    };
    let setting =
        |&method: &Method| Setting::new(method.name(), base(method).map(Method::name), method, Gate::HardPositives);
    Method::ALL.iter().map(setting).collect()
}

/// A setting's test accuracies after the last epoch in %, (seeds) of all, many, medium, few.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    setting: Setting,
    accuracy: Vec<[Option<f64>; 4]>,
}

fn main() {
    if let Err(error) = experiments(&Arguments::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn experiments(arguments: &Arguments) -> Result<()> {
    if arguments.seeds < 2 || arguments.jobs == 0 || arguments.epochs < 2 {
        return Err("--seeds and --epochs must be at least 2, --jobs 1".into());
    }
    if arguments.profile {
        return profile(arguments);
    }
    std::fs::create_dir_all(&arguments.out).map_err(|error| format!("{}: {error}", arguments.out.display()))?;
    let dataset = load(arguments.dataset)?;
    println!("{}; groups {}", dataset.title, dataset.groups.rule);
    let dbm = Setting::new("DBM-BS", None, Method::DbmBs, Gate::HardPositives);
    let mut settings = if arguments.methods { methods() } else { ABLATION.to_vec() };
    if arguments.plain {
        settings
            .retain(|setting| matches!(setting.method, Method::Ce | Method::CosineCe | Method::Bs | Method::CosineBs));
    }
    let (rows, sweeps) = (settings.len(), !arguments.no_sweep && !arguments.plain && !arguments.methods);
    if sweeps {
        settings.extend(SWEEP_K.iter().filter(|&&k| k != K).map(|&k| Setting { k, ..dbm }));
        settings.extend(SWEEP_TAU.iter().filter(|&&tau| tau != TAU).map(|&tau| Setting { tau, ..dbm }));
    }
    let outcomes = train(arguments, &dataset, &settings)?;
    let name = arguments.dataset.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string());
    let name = if arguments.methods { name + "-methods" } else { name };
    let path = |end: &str| arguments.out.join(format!("{name}{end}"));
    std::fs::write(path(".json"), serde_json::to_string_pretty(&outcomes)? + "\n")?;
    let table = table(&outcomes[..rows]);
    println!("\n{table}");
    let mut text = format!("{}; {} seeds, {} epochs.\n\n{table}", dataset.title, arguments.seeds, arguments.epochs);
    if sweeps {
        let sweep = sweep(&outcomes);
        println!("{}", sweep.text);
        text += &sweep.text;
        plot(&path("-sweep.svg"), &sweep).map_err(|error| error.to_string())?;
    }
    std::fs::write(path(".md"), text)?;
    println!("Written to {}.", arguments.out.display());
    Ok(())
}

fn load(source: Source) -> std::result::Result<Dataset, DataError> {
    match source {
        Source::FashionMnist => images::fashion_mnist(Path::new(images::DEBIAN_FASHION_MNIST), 100.0, 0),
        Source::Detexify => {
            println!("{}", strokes::ATTRIBUTION);
            let symbols = strokes::read_snapshot(&strokes::find_snapshot()?)?;
            let options = strokes::Options {
                natural: false,
                classes: 100,
                test_per_class: 10,
                imbalance_factor: 20.0,
                side: 20,
                renderings: 8,
                seed: 0,
            };
            strokes::dataset(symbols, &options)
        }
    }
}

fn config(arguments: &Arguments, dataset: &Dataset, setting: Setting, seed: u64) -> Config {
    Config {
        dataset: dataset.title.clone(),
        imbalance_factor: dataset.counts.max() as f64 / dataset.counts.min() as f64,
        data_seed: 0,
        method: setting.method,
        seed,
        network: Network::Patches,
        epochs: arguments.epochs,
        batch_size: 64,
        lr: arguments.lr,
        momentum: 0.9,
        weight_decay: 2e-4,
        warmup_epochs: 1,
        padding: 2,
        flip: false,
        auto_augment: false,
        cutout: 0,
        numbers: Numbers {
            scale: arguments.scale,
            k: setting.k,
            tau: setting.tau,
            gate: setting.gate,
            ldam_margin: 0.5,
            beta: 0.9999,
            drw_epoch: arguments.epochs - arguments.epochs.div_ceil(5),
            companion: CompanionNumbers::new(setting.method, arguments.epochs)
                .map(|numbers| CompanionNumbers { teacher_network: Network::Patches, ..numbers }),
        },
    }
}

/// Medians of a step's parts. The loss op is timed by itself, forward and backward, on the features that the step has; loading and augmentation,
/// which another thread does, are left out.
fn profile(arguments: &Arguments) -> Result<()> {
    let (dataset, device) = (load(arguments.dataset)?, &Device::Cpu);
    println!("{}\n", dataset.title);
    println!(
        "| Network | features, ms | loss op, forward and backward, ms | whole step, ms | outside the loss op |\n|---|---|---|---|---|"
    );
    for (network, steps) in [(Network::Patches, 60), (Network::Conv, 10), (Network::Resnet32, 4)] {
        let config = Config { network, ..config(arguments, &dataset, ABLATION[9], 0) };
        let shape = dataset.shape;
        let objective = config.method.objective(&dataset.counts, &config.numbers)?;
        let design = Design { network, shape, counts: &dataset.counts, objective, companion: None, device };
        let model = Model::new(&design, 0, None)?;
        let mut sgd = Sgd::new(model.trained(), config.momentum, config.weight_decay);
        sgd.lr = 0.01;
        let mut times = [const { Vec::new() }; 3];
        for step in 0..steps {
            let rows: Vec<usize> =
                (0..config.batch_size).map(|i| (step * 37 + i * 19) % dataset.train[0].len()).collect();
            let batch = dataset.train[0].select(&rows);
            let images =
                Tensor::from_vec(batch.pixels, (rows.len(), shape.channels, shape.height, shape.width), device)?;
            let labels = Tensor::new(batch.labels, device)?;
            let start = Instant::now();
            let features = model.features(&images, true)?;
            let forward = start.elapsed();
            sgd.step(&model.loss(&features, &labels, 0)?.loss.backward()?)?;
            let whole = start.elapsed();
            let alone = Var::from_tensor(&features.detach())?;
            let start = Instant::now();
            model.loss(&alone, &labels, 0)?.loss.backward()?;
            let parts = [forward, start.elapsed(), whole];
            times.iter_mut().zip(parts).for_each(|(times, part)| times.push(1e3 * part.as_secs_f64()));
        }
        let [features, op, whole] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        println!("| {network:?} | {features:.2} | {op:.3} | {whole:.2} | {:.1} % |", 100.0 * (1.0 - op / whole));
    }
    Ok(())
}

/// Outcomes in the order of the settings, whatever run ends first.
fn train(arguments: &Arguments, dataset: &Dataset, settings: &[Setting]) -> Result<Vec<Outcome>> {
    let images = Images::new(dataset);
    let seeds = arguments.seeds as usize;
    let runs = settings.len() * seeds;
    let (next, done) = (AtomicUsize::new(0), Mutex::new(vec![None; runs]));
    let bar = ProgressBar::new(runs as u64);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} runs {bar:30.cyan} {elapsed} {eta}")?);
    let work = || -> Result<()> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= runs {
                return Ok(());
            }
            // Seed by seed, so that what else the machine does meets all settings alike.
            let (seed, which) = (at / settings.len(), at % settings.len());
            let config = config(arguments, dataset, settings[which], seed as u64);
            let trained = |config: Config, teacher: Option<Teacher>| -> Result<Run> {
                let mut run = Run::new(config, dataset, &images, &Device::Cpu, teacher.as_ref())?;
                run.train(&ProgressBar::hidden(), &|| false, |_| Ok(()))?;
                Ok(run)
            };
            let teacher = match config.method.companion() {
                Some(Companion::Gml) => Some(trained(config.teacher(), None)?.teacher()?),
                _ => None,
            };
            let run = trained(config, teacher)?;
            let last = run.progress.history.last().ok_or("a run has an epoch")?;
            let accuracy = last.test_accuracy.map(|value| value.map(|value| 100.0 * value));
            done.lock().expect("no thread panicked with the lock")[which * seeds + seed] = Some(accuracy);
            bar.inc(1);
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..arguments.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a run panicked")?)
    })?;
    bar.finish_and_clear();
    let done = done.into_inner().expect("no thread panicked with the lock");
    let of = |setting: usize| done[setting * seeds..][..seeds].iter().copied().flatten().collect();
    Ok(settings.iter().enumerate().map(|(i, &setting)| Outcome { setting, accuracy: of(i) }).collect())
}

/// Student's t, two-sided 95 %, by degrees of freedom from 1 on; the normal's beyond.
const STUDENT: [f64; 15] =
    [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131];

/// Mean, and half the width of its 95 % confidence interval, of at least two values.
fn interval(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, STUDENT.get(values.len() - 2).copied().unwrap_or(1.96) * (variance / n).sqrt())
}

fn group(outcome: &Outcome, group: usize) -> Option<Vec<f64>> {
    outcome.accuracy.iter().map(|of_seed| of_seed[group]).collect()
}

/// Accuracy by group, and of all classes the difference to another setting, paired by seed.
fn table(outcomes: &[Outcome]) -> String {
    let mut text =
        "| Setting | All | Many | Medium | Few | All, less another |\n|---|---|---|---|---|---|\n".to_string();
    for outcome in outcomes {
        let _ = write!(text, "| {} |", outcome.setting.name);
        for of in 0..4 {
            let _ = match group(outcome, of).map(|values| interval(&values)) {
                Some((mean, half)) => write!(text, " {mean:.1} ± {half:.1} |"),
                None => write!(text, " – |"),
            };
        }
        let difference = outcome.setting.less.and_then(|less| {
            let other = outcomes.iter().find(|other| other.setting.name == less)?;
            let pairs = group(outcome, 0)?.into_iter().zip(group(other, 0)?);
            let (mean, half) = interval(&pairs.map(|(here, there)| here - there).collect::<Vec<_>>());
            Some(format!("{less}: {mean:+.2} ± {half:.2}"))
        });
        let _ = writeln!(text, " {} |", difference.unwrap_or_default());
    }
    text
}

/// A value of K or τ, and mean and half width of all classes' accuracy.
type Point = (f64, f64, f64);

struct Sweep {
    text: String,
    /// K's and τ's
    lines: [(&'static str, Vec<Point>); 2],
}

fn sweep(outcomes: &[Outcome]) -> Sweep {
    let dbm: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| outcome.setting.method == Method::DbmBs && outcome.setting.gate == Gate::HardPositives)
        .collect();
    let line = |value: fn(&Setting) -> f64, kept: fn(&Setting) -> bool| {
        let of = dbm.iter().filter(|outcome| kept(&outcome.setting)).filter_map(|outcome| {
            let (mean, half) = interval(&group(outcome, 0)?);
            Some((value(&outcome.setting), mean, half))
        });
        let mut line: Vec<_> = of.collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        line
    };
    let lines = [
        ("K", line(|setting| setting.k, |setting| setting.tau == TAU)),
        ("τ", line(|setting| setting.tau, |setting| setting.k == K)),
    ];
    let mut text = String::new();
    for (name, line) in &lines {
        let fixed = if *name == "K" { "τ = 1" } else { "K = 0.1" };
        let _ = write!(text, "\nDBM-BS, {fixed}:");
        for (value, mean, half) in line {
            let _ = write!(text, " {name} = {value}: {mean:.1} ± {half:.1};");
        }
        text.push('\n');
    }
    Sweep { text, lines }
}

fn plot(path: &Path, sweep: &Sweep) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (960, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(480);
    let all = || sweep.lines.iter().flat_map(|(_, line)| line);
    let low = all().map(|(_, mean, half)| mean - half).fold(f64::INFINITY, f64::min) - 0.5;
    let high = all().map(|(_, mean, half)| mean + half).fold(f64::NEG_INFINITY, f64::max) + 0.5;
    for (area, (name, line)) in [left, right].into_iter().zip(&sweep.lines) {
        let most = line.iter().map(|point| point.0).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(format!("DBM-BS: accuracy by {name}"), ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..1.05 * most, low..high)?;
        chart.configure_mesh().x_desc(*name).y_desc("all classes, %").draw()?;
        chart.draw_series(LineSeries::new(line.iter().map(|&(value, mean, _)| (value, mean)), &BLUE))?;
        chart.draw_series(line.iter().map(|&(value, mean, half)| {
            ErrorBar::new_vertical(value, mean - half, mean, mean + half, BLUE.filled(), 8)
        }))?;
    }
    root.present()?;
    Ok(())
}
