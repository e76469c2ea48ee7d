//! Trains by the recipe of the difficulty-aware balancing margin paper (AAAI 2025, arXiv 2412.15477), one method or all of them, and prints the table:
//!
//!     cargo run --release --example train -- --method dbm-bs --dataset cifar100 --imbalance-factor 100 --data DIR
//!
//! The paper's recipe is the default; every number is a flag, and what was run is recorded in `config.json` beside the results. A run is kept in
//! `checkpoint.safetensors` after every epoch, and when Ctrl-C stops it; `--resume` takes it up to the same bits. GML's teacher is a run of its own, which
//! comes first.

#[path = "../longtail/data.rs"]
#[allow(dead_code)]
mod data;
#[path = "../longtail/images.rs"]
mod images;
#[path = "../longtail/strokes.rs"]
#[allow(dead_code)]
mod strokes;

mod augment;
mod checkpoint;
mod companion;
mod methods;
mod model;
mod paper;
mod photos;
mod resnet;
mod results;
// The example `experiments` takes features, too.
#[allow(dead_code)]
mod run;
mod sgd;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use data::Dataset;
use images::Cifar;
use methods::{Companion, CompanionNumbers, Gate, Method, Network, Numbers};
use model::Teacher;
use photos::Photos;
use run::{Config, Images, Run};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// Handwritten symbols, carried by the crate `detexify`
    Detexify,
    /// Debian's package `dataset-fashion-mnist`
    FashionMnist,
    /// The binary version of CIFAR-10, from --data
    Cifar10,
    /// The binary version of CIFAR-100, from --data
    Cifar100,
    /// Images in --data, list files in --lists
    ImagenetLt,
    /// Images in --data, list files in --lists
    #[value(name = "inaturalist2018")]
    Inaturalist2018,
}

impl Source {
    /// Whether the images are files that lists name.
    fn is_listed(self) -> bool {
        matches!(self, Self::ImagenetLt | Self::Inaturalist2018)
    }

    /// Among the paper's data sets.
    fn paper(self) -> Option<paper::Set> {
        match self {
            Self::Detexify | Self::FashionMnist => None,
            Self::Cifar10 => Some(paper::Set::Cifar10),
            Self::Cifar100 => Some(paper::Set::Cifar100),
            Self::ImagenetLt => Some(paper::Set::ImagenetLt),
            Self::Inaturalist2018 => Some(paper::Set::Inaturalist2018),
        }
    }

    /// Padding to crop from, flips, AutoAugment, and Cutout's side: the paper's for CIFAR. A mirrored symbol is another symbol; photographs of lists are
    /// cropped as they are read.
    fn augmentation(self) -> augment::Recipe {
        let (padding, flip, auto_augment, cutout) = match self {
            Self::Detexify => (2, false, false, 0),
            Self::FashionMnist => (4, true, false, 0),
            Self::Cifar10 | Self::Cifar100 => (4, true, true, 16),
            Self::ImagenetLt | Self::Inaturalist2018 => (0, true, false, 0),
        };
        augment::Recipe { padding, flip, auto_augment, cutout }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    One(Method),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
}

/// Trains a network on long-tailed data with one method of the paper's Table 2, or all.
#[derive(Debug, Clone, Parser)]
#[command(name = "train")]
struct Arguments {
    /// Of Table 2: ce, ldam, dbm-ce, ce-drw, ldam-drw, dbm-drw, bs, dbm-bs, bcl, dbm-bcl, gml, dbm-gml, ncl, dbm-ncl, or `all` of these; of Table 5, too:
    /// cosine-ce, cosine-bs
    #[arg(long, value_parser = which, default_value = "dbm-bs")]
    method: Which,
    #[arg(long, value_enum, default_value = "cifar100")]
    dataset: Source,
    /// Folder of the data set's files
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// imagenet-lt, inaturalist2018: folder of the two list files, whose lines are `path label` [default: that of --data]
    #[arg(long, value_name = "DIR")]
    lists: Option<PathBuf>,
    /// Training samples of the largest class over those of the smallest; lists have their own
    #[arg(long, value_name = "IF", default_value_t = 100.0)]
    imbalance_factor: f64,
    /// Seed of the long tail
    #[arg(long, default_value_t = 0)]
    data_seed: u64,
    /// Seeds, comma-separated: each method is trained once from each
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    seeds: Vec<u64>,
    #[arg(long, value_enum, default_value = "resnet32")]
    network: Network,
    /// [default: 200, of NCL 400]
    #[arg(long)]
    epochs: Option<usize>,
    /// [default: 64, of BCL 256]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Peak learning rate [default: 0.1, of BCL 0.15]
    #[arg(long)]
    lr: Option<f64>,
    #[arg(long, default_value_t = 0.9)]
    momentum: f64,
    #[arg(long, default_value_t = 2e-4)]
    weight_decay: f64,
    /// Epochs of linear warm-up, before cosine decay
    #[arg(long, default_value_t = 5)]
    warmup_epochs: usize,
    /// First epoch of deferred re-weighting
    #[arg(long, default_value_t = 160)]
    drw_epoch: usize,
    /// β of the class-balanced weights
    #[arg(long, default_value_t = 0.9999)]
    beta: f64,
    /// s, the scale of cosine losses
    #[arg(long, default_value_t = 32.0)]
    scale: f64,
    /// K, the largest class margin of DBM, in radians
    #[arg(long, default_value_t = 0.1)]
    k: f64,
    /// τ, the frequency exponent of DBM's class margin
    #[arg(long, default_value_t = 1.0)]
    tau: f64,
    /// Which samples have DBM's instance margin
    #[arg(long, value_enum, default_value = "hard-positives")]
    gate: Gate,
    /// LDAM's largest margin
    #[arg(long, default_value_t = 0.5)]
    ldam_margin: f64,
    /// Zeros around an image before a crop of its size is taken at random; 0: no crop [default: 4; of detexify 2, of lists 0, for they are cropped as they
    /// are read]
    #[arg(long)]
    padding: Option<usize>,
    /// Mirror images at random [default: true, of detexify false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    flip: Option<bool>,
    /// AutoAugment's policy for CIFAR [default: true of CIFAR, else false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    auto_augment: Option<bool>,
    /// Side of Cutout's square; 0: none [default: 16 of CIFAR, else 0]
    #[arg(long)]
    cutout: Option<usize>,
    #[command(flatten)]
    companion: CompanionFlags,
    /// detexify: number of symbols
    #[arg(long, default_value_t = 100)]
    classes: usize,
    /// detexify, imagenet-lt, inaturalist2018: height and width of the images [default: 20 of detexify, 224 of the others]
    #[arg(long)]
    side: Option<usize>,
    /// Where to train; cuda needs a build of this crate that has it
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// Take up checkpoints that are there
    #[arg(long)]
    resume: bool,
    /// Folder of checkpoints and results
    #[arg(long, value_name = "DIR", default_value = "target/train")]
    out: PathBuf,
}

/// Of BCL, GML and NCL; the defaults are the paper's, or else the methods' own.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "BCL, GML, NCL")]
struct CompanionFlags {
    /// BCL, GML: weight of the classification [default: 2 of BCL, 1 of GML]
    #[arg(long)]
    classification_weight: Option<f64>,
    /// BCL, GML: weight of the contrastive term [default: 0.6 of BCL, 1 of GML]
    #[arg(long)]
    contrastive_weight: Option<f64>,
    /// BCL, GML: temperature of the contrastive term; GML's is learnt from here on [default: 0.1]
    #[arg(long)]
    temperature: Option<f64>,
    /// BCL, GML: dimension of the embeddings [default: 128 of BCL, 32 of GML]
    #[arg(long)]
    embedding: Option<usize>,
    /// GML, NCL: weight of the distillation, of NCL of both [default: 1 of GML, 0.6 of NCL]
    #[arg(long)]
    distillation_weight: Option<f64>,
    /// GML: keys in the queue [default: 4096]
    #[arg(long)]
    keys: Option<usize>,
    /// GML: keys of each class at least [default: 2]
    #[arg(long)]
    least_keys: Option<usize>,
    /// GML: the teacher's network [default: resnet56]
    #[arg(long, value_enum)]
    teacher_network: Option<Network>,
    /// GML: the teacher's epochs [default: the student's]
    #[arg(long)]
    teacher_epochs: Option<usize>,
    /// NCL: networks [default: 3]
    #[arg(long)]
    experts: Option<usize>,
    /// NCL: weight of the classification among hard classes [default: 1]
    #[arg(long)]
    hard_weight: Option<f64>,
    /// NCL: hard classes of a sample [default: three tenths of all]
    #[arg(long)]
    hard_classes: Option<usize>,
    /// NCL: the margin in the distillation, too, as the DBM authors' code has it; the paper changes the classification alone
    #[arg(long)]
    margined_distillation: bool,
}

impl CompanionFlags {
    fn numbers(&self, method: Method, epochs: usize) -> Option<CompanionNumbers> {
        let default = CompanionNumbers::new(method, epochs)?;
        Some(CompanionNumbers {
            classification_weight: self.classification_weight.unwrap_or(default.classification_weight),
            contrastive_weight: self.contrastive_weight.unwrap_or(default.contrastive_weight),
            temperature: self.temperature.unwrap_or(default.temperature),
            embedding: self.embedding.unwrap_or(default.embedding),
            distillation_weight: self.distillation_weight.unwrap_or(default.distillation_weight),
            keys: self.keys.unwrap_or(default.keys),
            least_keys: self.least_keys.unwrap_or(default.least_keys),
            teacher_network: self.teacher_network.unwrap_or(default.teacher_network),
            teacher_epochs: self.teacher_epochs.unwrap_or(default.teacher_epochs),
            experts: self.experts.unwrap_or(default.experts),
            hard_weight: self.hard_weight.unwrap_or(default.hard_weight),
            hard_classes: self.hard_classes.or(default.hard_classes),
            margined_distillation: self.margined_distillation,
        })
    }
}

fn which(name: &str) -> std::result::Result<Which, String> {
    match name {
        "all" => Ok(Which::All),
        name => Method::from_str(name, false).map(Which::One).map_err(|_| {
            let names = Method::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            let names: Vec<String> = names.map(|value| value.get_name().to_string()).collect();
            format!("it is one of all, {}", names.join(", "))
        }),
    }
}

fn main() {
    match train(&Arguments::parse()) {
        Ok(true) => {}
        Ok(false) => std::process::exit(130),
        Err(error) => {
            eprintln!("error: {error}");
            std::process::exit(1);
        }
    }
}

/// False where Ctrl-C stopped it.
fn train(arguments: &Arguments) -> Result<bool> {
    check(arguments)?;
    let device = match arguments.device {
        DeviceName::Cpu => Device::Cpu,
        DeviceName::Cuda if cfg!(feature = "cuda") => Device::new_cuda(0)?,
        DeviceName::Cuda => {
            return Err("this build has no CUDA: build with --features cuda, or use --device cpu".into());
        }
    };
    let (dataset, images) = load(arguments)?;
    println!("{}", dataset.title);
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // the second time
        }
    })?;

    let methods = match arguments.method {
        Which::All => Method::ALL.to_vec(),
        Which::One(method) => vec![method],
    };
    let trainer = Trainer { arguments, dataset: &dataset, images: &images, device: &device, stop: &stop };
    let mut runs = Vec::new();
    let mut teachers: HashMap<u64, Teacher> = HashMap::new();
    for &method in &methods {
        for &seed in &arguments.seeds {
            let config = config(arguments, &dataset, method, seed);
            let folder = arguments.out.join(format!("{}-seed{seed}", results::slug(method)));
            // A checkpoint of GML's holds its teacher.
            if method.companion() == Some(Companion::Gml) && !trainer.takes_up(&folder) && !teachers.contains_key(&seed)
            {
                let Some(teacher) =
                    trainer.run(config.teacher(), &arguments.out.join(format!("teacher-seed{seed}")), None)?
                else {
                    return Ok(false);
                };
                teachers.insert(seed, teacher.teacher()?);
            }
            let Some(run) = trainer.run(config, &folder, teachers.get(&seed))? else { return Ok(false) };
            runs.push((run.config, run.progress));
        }
    }
    print!("\n{}", results::table(&runs, &dataset, arguments.dataset.paper()));
    println!("Written to {}.", arguments.out.display());
    Ok(true)
}

/// What all runs have in common.
struct Trainer<'a> {
    arguments: &'a Arguments,
    dataset: &'a Dataset,
    images: &'a Images,
    device: &'a Device,
    stop: &'a AtomicBool,
}

/// In a run's folder.
const CHECKPOINT: &str = "checkpoint.safetensors";

impl<'a> Trainer<'a> {
    fn takes_up(&self, folder: &Path) -> bool {
        self.arguments.resume && folder.join(CHECKPOINT).exists()
    }

    /// One run to its end, kept in `folder`; none where Ctrl-C stopped it.
    fn run(&self, config: Config, folder: &Path, teacher: Option<&Teacher>) -> Result<Option<Run<'a>>> {
        let &Self { dataset, images, device, stop, .. } = self;
        let checkpoint = folder.join(CHECKPOINT);
        let taken_up = self.takes_up(folder);
        results::write_config(folder, &config)?;
        let mut run = if taken_up {
            Run::resume(&checkpoint, config, dataset, images, device)?
        } else {
            Run::new(config, dataset, images, device, teacher)?
        };
        let bar = bar(&run);
        let finished = run.train(&bar, &|| stop.load(Ordering::Relaxed), |run| {
            run.save(&checkpoint)?;
            results::write(folder, &run.config, &run.progress)?;
            bar.suspend(|| eprintln!("{}", results::line(&run.config, &run.progress)));
            Ok(())
        })?;
        bar.finish_and_clear();
        if !finished {
            run.save(&checkpoint)?;
            println!("stopped; --resume goes on from {}", checkpoint.display());
            return Ok(None);
        }
        Ok(Some(run))
    }
}

fn check(arguments: &Arguments) -> Result<()> {
    let companion = &arguments.companion;
    let at_least_one = [
        ("--epochs", arguments.epochs),
        ("--batch-size", arguments.batch_size),
        ("--seeds", Some(arguments.seeds.len())),
        ("--teacher-epochs", companion.teacher_epochs),
        ("--embedding", companion.embedding),
        ("--experts", companion.experts),
    ];
    if let Some((flag, _)) = at_least_one.into_iter().find(|(_, value)| *value == Some(0)) {
        return Err(format!("{flag} must be at least 1").into());
    }
    let lr = arguments.lr.unwrap_or(0.1);
    let finite = [lr, arguments.momentum, arguments.weight_decay].iter().all(|v| v.is_finite() && *v >= 0.0);
    if !finite || lr == 0.0 {
        return Err("--lr must be positive, --momentum and --weight-decay not negative".into());
    }
    let all = [arguments.epochs, companion.teacher_epochs];
    if all.into_iter().flatten().any(|epochs| arguments.warmup_epochs >= epochs) {
        return Err("--warmup-epochs must be fewer than --epochs and --teacher-epochs".into());
    }
    if arguments.side.is_some_and(|side| side == 0 || side % 4 != 0) {
        return Err("--side must be a multiple of 4: the networks halve it twice".into());
    }
    Ok(())
}

fn config(arguments: &Arguments, dataset: &Dataset, method: Method, seed: u64) -> Config {
    let imbalance_factor = if arguments.dataset.is_listed() {
        dataset.counts.max() as f64 / dataset.counts.min() as f64
    } else {
        arguments.imbalance_factor
    };
    let (recipe, augmentation) = (method.recipe(), arguments.dataset.augmentation());
    let epochs = arguments.epochs.unwrap_or(recipe.epochs);
    Config {
        dataset: dataset.title.clone(),
        imbalance_factor,
        data_seed: arguments.data_seed,
        method,
        seed,
        network: arguments.network,
        epochs,
        batch_size: arguments.batch_size.unwrap_or(recipe.batch_size),
        lr: arguments.lr.unwrap_or(recipe.lr),
        momentum: arguments.momentum,
        weight_decay: arguments.weight_decay,
        warmup_epochs: arguments.warmup_epochs,
        padding: arguments.padding.unwrap_or(augmentation.padding),
        flip: arguments.flip.unwrap_or(augmentation.flip),
        auto_augment: arguments.auto_augment.unwrap_or(augmentation.auto_augment),
        cutout: arguments.cutout.unwrap_or(augmentation.cutout),
        numbers: Numbers {
            scale: arguments.scale,
            k: arguments.k,
            tau: arguments.tau,
            gate: arguments.gate,
            ldam_margin: arguments.ldam_margin,
            beta: arguments.beta,
            drw_epoch: arguments.drw_epoch,
            companion: arguments.companion.numbers(method, epochs),
        },
    }
}

fn load(arguments: &Arguments) -> Result<(Dataset, Images)> {
    let folder = |default: &str| arguments.data.clone().unwrap_or_else(|| PathBuf::from(default));
    let (imbalance_factor, seed) = (arguments.imbalance_factor, arguments.data_seed);
    let listed = |names: photos::Names| -> Result<(Dataset, Images)> {
        let folder = folder(names.set);
        let lists = arguments.lists.as_deref().unwrap_or(&folder);
        let (dataset, photos) = Photos::read(names, &folder, lists, arguments.side.unwrap_or(224))?;
        let images = Images::files(&dataset, photos);
        Ok((dataset, images))
    };
    let dataset = match arguments.dataset {
        Source::Detexify => {
            let snapshot = match &arguments.data {
                Some(folder) => folder.join("snapshot.json"),
                None => strokes::find_snapshot()?,
            };
            let symbols = strokes::read_snapshot(&snapshot)?;
            println!("{}", strokes::ATTRIBUTION);
            let options = strokes::Options {
                natural: false,
                skip: 0,
                classes: arguments.classes,
                test_per_class: 10,
                imbalance_factor,
                side: arguments.side.unwrap_or(20),
                renderings: 8,
                seed,
            };
            strokes::dataset(symbols, &options)?
        }
        Source::FashionMnist => images::fashion_mnist(&folder(images::DEBIAN_FASHION_MNIST), imbalance_factor, seed)?,
        Source::Cifar10 => images::cifar(Cifar::Ten, &folder("cifar-10-batches-bin"), imbalance_factor, seed)?,
        Source::Cifar100 => images::cifar(Cifar::Hundred, &folder("cifar-100-binary"), imbalance_factor, seed)?,
        Source::ImagenetLt => return listed(photos::IMAGENET_LT),
        Source::Inaturalist2018 => return listed(photos::INATURALIST_2018),
    };
    let images = Images::new(&dataset);
    Ok((dataset, images))
}

fn bar(run: &Run) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some((run.config.epochs * run.batches()) as u64), target);
    let style = ProgressStyle::with_template("{prefix:20} {bar:30.cyan} {percent:>3} %  {msg}  {eta}");
    bar.set_style(style.expect("the template is valid").progress_chars("━╸─"));
    bar.set_prefix(format!("{}, seed {}", run.config.method.name(), run.config.seed));
    bar.set_position((run.progress.history.len() * run.batches() + run.progress.batch) as u64);
    bar
}
