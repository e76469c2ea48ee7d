//! The main job: long-tailed classifiers trained on real data under the losses of the paper, compared side by side.
//!
//! `cargo run --release --example longtail` trains on handwritten symbols that cargo has already fetched; `-- --help` lists the settings.

mod data;
mod images;
mod losses;
mod network;
mod plots;
mod report;
mod strokes;
mod train;

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;
use candle_margin_loss::metrics::Scatter;
use clap::{Parser, ValueEnum};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use data::Dataset;
use images::Cifar;
use losses::{Loss, LossSettings};
use network::Network;
use train::{Job, Outcome, Recipe, Tensors};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// handwritten symbols, cut to an exponential long tail
    Detexify,
    /// handwritten symbols with the data's own long tail
    DetexifyNatural,
    /// Fashion-MNIST's gzipped IDX files
    FashionMnist,
    /// CIFAR-10's binary files
    Cifar10,
    /// CIFAR-100's binary files
    Cifar100,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
}

/// Trains long-tailed classifiers under the losses of the paper and compares them: table, plots and a results file.
#[derive(Debug, Parser)]
#[command(name = "longtail", version)]
struct Arguments {
    /// What to train on
    #[arg(long, value_enum, default_value = "detexify")]
    dataset: Source,
    /// Folder of the dataset's files [default: where cargo or Debian put them; CIFAR has none]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Training samples of the largest class over those of the smallest [default: 20 for detexify, else 100]
    #[arg(long, value_name = "IF")]
    imbalance_factor: Option<f64>,
    /// Losses to compare, comma-separated
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Loss::ALL)]
    losses: Vec<Loss>,
    /// Seeds, comma-separated: each loss is trained once from each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3, 4, 5])]
    seeds: Vec<u64>,
    /// Passes over the training set [default: 60 for detexify and detexify-natural, else 15]
    #[arg(long)]
    epochs: Option<usize>,
    /// K, the largest class margin of DBM, in radians [default: what was best on other symbols, by loss]
    #[arg(long)]
    k: Option<f64>,
    /// τ, the frequency exponent of DBM's class margin
    #[arg(long, default_value_t = 1.0)]
    tau: f64,
    /// s, the scale of all cosine losses [default: what was best on other symbols, by loss; 32 for the images]
    #[arg(long)]
    scale: Option<f64>,
    /// Where to train; cuda needs a build of this crate that has it
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// ArcFace's margin in radians [default: as K's]
    #[arg(long)]
    arcface_margin: Option<f64>,
    /// LDAM's largest margin [default: as K's]
    #[arg(long)]
    ldam_margin: Option<f64>,
    /// β of DRW's class-balanced weights
    #[arg(long, default_value_t = 0.9999)]
    beta: f64,
    /// Share of the epochs before DRW's weights set in (the paper: 160 of 200)
    #[arg(long, default_value_t = 0.8)]
    drw_start: f64,
    /// Samples a step
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Peak learning rate of AdamW [default: as K's; 3e-3 for the images]
    #[arg(long)]
    lr: Option<f64>,
    /// Weight decay of AdamW
    #[arg(long, default_value_t = 0.01)]
    weight_decay: f64,
    /// Epochs of linear warm-up, before cosine decay
    #[arg(long, default_value_t = 2)]
    warmup_epochs: usize,
    /// Network [default: conv for CIFAR, else mlp]
    #[arg(long, value_enum)]
    network: Option<Network>,
    /// Width of the hidden layer
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    /// D, the dimension of the features
    #[arg(long, default_value_t = 64)]
    features: usize,
    /// detexify: number of symbols
    #[arg(long, default_value_t = 100)]
    classes: usize,
    /// detexify: drawings of each symbol held out for the test
    #[arg(long, default_value_t = 10)]
    test_per_class: usize,
    /// detexify: height and width of the images
    #[arg(long, default_value_t = 20)]
    side: usize,
    /// detexify: renderings of each training drawing, all but the first a little turned, scaled and shifted
    #[arg(long, default_value_t = 32)]
    renderings: usize,
    /// detexify: choose learning rate, s and margin of each loss on as many other symbols, those with most drawings but for the first `--classes`, instead
    /// of comparing the losses; the defaults are what this found
    #[arg(long)]
    search: bool,
    /// Seed of the split, the long tail and the renderings
    #[arg(long, default_value_t = 0)]
    data_seed: u64,
    /// Shrinkage of the covariance that finds Fisher's projections [default: 0.1 for the pooled one, 0.001 for the pair's]
    #[arg(long)]
    shrinkage: Option<f64>,
    /// Runs at a time [default: one a core]
    #[arg(long)]
    jobs: Option<usize>,
    /// Folder of the plots and of results.json
    #[arg(long, value_name = "DIR", default_value = "target/longtail")]
    out: PathBuf,
}

fn main() {
    let arguments = Arguments::parse();
    again_with_few_threads(&arguments);
    if let Err(error) = compare(&arguments) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

/// Runs this program again with Candle's threads divided among the runs at a time, unless the user set them.
/// Where that fails it returns, and the work is done with the threads that Candle chooses.
///
/// Candle reads the number of its threads from the environment alone, and its threads spin while they wait for each other. With small tensors
/// and more threads than cores that costs more than it brings: two runs of 20 epochs side by side on two busy cores took 10 s with two
/// threads each, 1.6 s with one.
fn again_with_few_threads(arguments: &Arguments) {
    const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];
    if VARIABLES.iter().any(|variable| std::env::var_os(variable).is_some()) {
        return;
    }
    let threads = (cores() / jobs(arguments).max(1)).max(1).to_string();
    let Ok(program) = std::env::current_exe() else { return };
    let mut again = std::process::Command::new(program);
    again.args(std::env::args_os().skip(1)).envs(VARIABLES.map(|variable| (variable, threads.as_str())));
    // In this process's place where that can be done, so that a signal reaches it.
    #[cfg(unix)]
    let _ = std::os::unix::process::CommandExt::exec(&mut again);
    #[cfg(not(unix))]
    if let Ok(status) = again.status() {
        std::process::exit(status.code().unwrap_or(1));
    }
}

fn compare(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let device = match arguments.device {
        DeviceName::Cpu => Device::Cpu,
        DeviceName::Cuda if cfg!(feature = "cuda") => Device::new_cuda(0)?,
        DeviceName::Cuda => {
            return Err("this build has no CUDA: build with --features cuda, or use --device cpu".into());
        }
    };
    let dataset = load(arguments)?;
    let recipe = recipe(arguments, &dataset)?;
    // Every loss's settings are checked before the first run starts.
    for &loss in &arguments.losses {
        loss.schedule(&dataset.counts, &settings(arguments, loss, recipe.epochs))?;
    }
    println!("{}", dataset.title);
    let load_seconds = started.elapsed().as_secs_f64();

    let tensors = Tensors::new(&dataset, &device)?;
    if arguments.search {
        return search(arguments, &dataset, &tensors, &recipe);
    }
    let of = |loss: Loss| settings(arguments, loss, recipe.epochs);
    let jobs_of = |&loss: &Loss| arguments.seeds.iter().map(move |&seed| Job { loss, settings: of(loss), seed });
    let jobs_of_all: Vec<Job> = arguments.losses.iter().flat_map(jobs_of).collect();
    let outcomes = train_all(arguments, &dataset, &tensors, &recipe, &jobs_of_all)?;
    print!("\n{}", report::table(&arguments.losses, &outcomes, &recipe, dataset.groups.rule));
    let gains = report::gains(&arguments.losses, &outcomes);
    print!("{}", report::gains_table(&gains));

    std::fs::create_dir_all(&arguments.out).map_err(|error| format!("{}: {error}", arguments.out.display()))?;
    let mut written = plots::all(&arguments.out, &arguments.losses, &dataset, &outcomes, &gains, of)?;
    let results = arguments.out.join("results.json");
    let seconds = (load_seconds, started.elapsed().as_secs_f64());
    let about = report::Settings {
        dataset: name(&arguments.dataset),
        device: if device.is_cuda() { "cuda" } else { "cpu" },
        data_seed: arguments.data_seed,
        jobs: jobs(arguments),
    };
    std::fs::write(&results, report::json(&about, &dataset, &recipe, &outcomes, seconds))
        .map_err(|error| format!("{}: {error}", results.display()))?;
    written.push(results);
    println!("\nWritten after {:.0} s:", started.elapsed().as_secs_f64());
    written.iter().for_each(|path| println!("  {}", path.display()));
    Ok(())
}

fn load(arguments: &Arguments) -> Result<Dataset, Box<dyn Error>> {
    let folder = |default: &str| arguments.data.clone().unwrap_or_else(|| PathBuf::from(default));
    let imbalance_factor = arguments.imbalance_factor.unwrap_or(match arguments.dataset {
        Source::Detexify => 20.0,
        _ => 100.0,
    });
    let seed = arguments.data_seed;
    let spinner = ProgressBar::new_spinner().with_message("reading the data");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let dataset = match arguments.dataset {
        Source::Detexify | Source::DetexifyNatural => {
            let natural = arguments.dataset == Source::DetexifyNatural;
            if natural && arguments.imbalance_factor.is_some() {
                return Err("detexify-natural has its own long tail: --imbalance-factor does not apply".into());
            }
            let snapshot = match &arguments.data {
                Some(folder) => folder.join("snapshot.json"),
                None => strokes::find_snapshot()?,
            };
            let symbols = strokes::read_snapshot(&snapshot)?;
            spinner.suspend(|| println!("{}", strokes::ATTRIBUTION));
            let options = strokes::Options {
                natural,
                skip: if arguments.search { arguments.classes } else { 0 },
                classes: arguments.classes,
                test_per_class: arguments.test_per_class,
                imbalance_factor,
                side: arguments.side,
                renderings: arguments.renderings,
                seed,
            };
            strokes::dataset(symbols, &options)?
        }
        Source::FashionMnist => images::fashion_mnist(&folder(images::DEBIAN_FASHION_MNIST), imbalance_factor, seed)?,
        Source::Cifar10 => images::cifar(Cifar::Ten, &folder("cifar-10-batches-bin"), imbalance_factor, seed)?,
        Source::Cifar100 => images::cifar(Cifar::Hundred, &folder("cifar-100-binary"), imbalance_factor, seed)?,
    };
    spinner.finish_and_clear();
    Ok(dataset)
}

fn recipe(arguments: &Arguments, dataset: &Dataset) -> Result<Recipe, String> {
    let symbols = matches!(arguments.dataset, Source::Detexify | Source::DetexifyNatural);
    let default_network = match arguments.dataset {
        Source::Cifar10 | Source::Cifar100 => Network::Conv,
        _ => Network::Mlp,
    };
    let epochs = arguments.epochs.unwrap_or(if symbols { 60 } else { 15 });
    let positive = [
        ("--epochs", epochs),
        ("--batch-size", arguments.batch_size),
        ("--hidden", arguments.hidden),
        ("--features", arguments.features),
        ("--losses", arguments.losses.len()),
        ("--seeds", arguments.seeds.len()),
        ("--jobs", arguments.jobs.unwrap_or(1)),
    ];
    if let Some((flag, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
        return Err(format!("{flag} must be at least 1"));
    }
    let lr = arguments.lr.unwrap_or(1.0);
    if !lr.is_finite() || !arguments.weight_decay.is_finite() || lr <= 0.0 || arguments.weight_decay < 0.0 {
        return Err("--lr must be positive and --weight-decay not negative".into());
    }
    if arguments.search && arguments.dataset != Source::Detexify {
        return Err("--search chooses on other symbols, of --dataset detexify".into());
    }
    if !(0.0..=1.0).contains(&arguments.drw_start) || !(0.0..=1.0).contains(&arguments.shrinkage.unwrap_or(0.0)) {
        return Err("--drw-start and --shrinkage must be in 0..=1".into());
    }
    // The covariance of two classes finds their projection where its samples are twice its dimensions, else that of all classes.
    let pair_samples = 2 * dataset.test.len() / dataset.counts.classes();
    let scatter = if pair_samples >= 2 * arguments.features { Scatter::Pair } else { Scatter::Pooled };
    Ok(Recipe {
        network: arguments.network.unwrap_or(default_network),
        hidden: arguments.hidden,
        features: arguments.features,
        epochs,
        batch_size: arguments.batch_size,
        weight_decay: arguments.weight_decay,
        warmup_epochs: arguments.warmup_epochs.min(epochs - 1),
        scatter,
        shrinkage: arguments.shrinkage.unwrap_or(if scatter == Scatter::Pair { 1e-3 } else { 0.1 }),
    })
}

/// What a loss is trained with: what the command line says, else what was best on other symbols.
fn settings(arguments: &Arguments, loss: Loss, epochs: usize) -> LossSettings {
    let symbols = matches!(arguments.dataset, Source::Detexify | Source::DetexifyNatural);
    let (lr, scale, margin) = if symbols { loss.validated() } else { (3e-3, 32.0, loss.usual_margin()) };
    let asked = match loss {
        Loss::DbmCe | Loss::DbmDrw | Loss::DbmBs => arguments.k,
        Loss::Arcface => arguments.arcface_margin,
        Loss::Ldam | Loss::LdamDrw => arguments.ldam_margin,
        Loss::Ce | Loss::CosineCe | Loss::Bs => None,
    };
    LossSettings {
        lr: arguments.lr.unwrap_or(lr),
        scale: arguments.scale.unwrap_or(scale),
        margin: asked.unwrap_or(margin),
        tau: arguments.tau,
        beta: arguments.beta,
        drw_epoch: (arguments.drw_start * epochs as f64).round() as usize,
    }
}

/// Learning rates, then scales, then margins, each from the best so far; means of the seeds. Prints what `Loss::validated` has.
fn search(arguments: &Arguments, dataset: &Dataset, tensors: &Tensors, recipe: &Recipe) -> Result<(), Box<dyn Error>> {
    for &loss in &arguments.losses {
        let first = settings(arguments, loss, recipe.epochs);
        let start = LossSettings {
            lr: 3e-3,
            scale: if loss == Loss::Ce { 1.0 } else { 16.0 },
            margin: loss.usual_margin(),
            ..first
        };
        let mut tried: Vec<(LossSettings, f64)> = Vec::new();
        type Set = fn(&mut LossSettings, f64);
        let axes: [(&[f64], Set); 3] = [
            (&[1e-3, 3e-3, 1e-2], |settings, lr| settings.lr = lr),
            (if loss == Loss::Ce { &[1.0] } else { &[8.0, 12.0, 16.0, 24.0, 32.0] }, |settings, scale| {
                settings.scale = scale
            }),
            (loss.margins(), |settings, margin| settings.margin = margin),
        ];
        for (values, set) in axes {
            let from = best(&tried).map_or(start, |best| best.0);
            let along = values.iter().map(|&value| {
                let mut settings = from;
                set(&mut settings, value);
                settings
            });
            let new: Vec<LossSettings> =
                along.filter(|settings| tried.iter().all(|(other, _)| other != settings)).collect();
            let of = |&settings: &LossSettings| arguments.seeds.iter().map(move |&seed| Job { loss, settings, seed });
            let jobs: Vec<Job> = new.iter().flat_map(of).collect();
            let outcomes = train_all(arguments, dataset, tensors, recipe, &jobs)?;
            let mean = |of: &[train::Outcome]| {
                100.0 * of.iter().map(|outcome| outcome.accuracy.all).sum::<f64>() / of.len() as f64
            };
            tried.extend(new.into_iter().zip(outcomes.chunks(arguments.seeds.len()).map(mean)));
        }
        let (LossSettings { lr, scale, margin, .. }, accuracy) = best(&tried).ok_or("a loss has settings")?;
        println!("{:9} {accuracy:.2} %: lr {lr}, s {scale}, margin {margin}", loss.name());
    }
    Ok(())
}

/// The first of the best.
fn best(tried: &[(LossSettings, f64)]) -> Option<(LossSettings, f64)> {
    tried.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1)).copied()
}

/// Every job, `--jobs` at a time; in their order.
fn train_all(
    arguments: &Arguments,
    dataset: &Dataset,
    tensors: &Tensors,
    recipe: &Recipe,
    runs: &[Job],
) -> Result<Vec<Outcome>, Box<dyn Error>> {
    let shown = std::io::stderr().is_terminal();
    let bars = MultiProgress::with_draw_target(if shown {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    });
    let style =
        |template: &str| ProgressStyle::with_template(template).expect("the template is valid").progress_chars("━╸─");
    let overall = bars.add(ProgressBar::new(runs.len() as u64));
    overall.set_style(style("{bar:30.green} {pos} of {len} runs, {elapsed} gone"));
    overall.enable_steady_tick(Duration::from_millis(500));
    let steps = (recipe.epochs * dataset.train[0].len().div_ceil(recipe.batch_size)) as u64;

    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<candle_core::Result<Outcome>>>> = Mutex::new(runs.iter().map(|_| None).collect());
    let worker = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&job) = runs.get(index) else { return };
            let bar = bars.insert_before(&overall, ProgressBar::new(steps));
            bar.set_style(style("{prefix:18} {bar:30.cyan} {percent:>3} %  {msg}"));
            bar.set_prefix(format!("{}, seed {}", job.loss.name(), job.seed));
            let result = train::run(dataset, tensors, recipe, job, &bar);
            bar.finish_and_clear();
            bars.remove(&bar);
            if let Ok(outcome) = &result {
                let line = report::line(outcome);
                bars.suspend(|| eprintln!("{line}"));
            } else {
                next.store(runs.len(), Ordering::Relaxed);
            }
            overall.inc(1);
            results.lock().expect("no worker panicked")[index] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        (0..jobs(arguments).min(runs.len())).for_each(|_| {
            scope.spawn(worker);
        });
    });
    overall.finish_and_clear();
    let finished = results.into_inner().expect("no worker panicked").into_iter().flatten();
    Ok(finished.collect::<candle_core::Result<Vec<_>>>()?)
}

fn jobs(arguments: &Arguments) -> usize {
    arguments.jobs.unwrap_or_else(cores)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
}
