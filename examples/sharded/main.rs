//! Trains the 1,072 handwritten symbols of Detexify, at their natural counts, with the classes spread over ranks and the batch as well.
//!
//!     cargo run --release --example sharded -- --engine threads --ranks 4
//!     sh tests/mpi/run.sh cargo build --release --features mpi --example sharded
//!     sh tests/mpi/run.sh mpirun -n 4 target/release/examples/sharded --engine mpi
//!
//! Whatever the engine and the number of ranks, the same batches are trained on, and the accuracy is the same to rounding.

#[path = "../longtail/data.rs"]
#[allow(dead_code)]
mod data;
#[path = "../longtail/strokes.rs"]
#[allow(dead_code)]
mod strokes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::sharded::{
    ClassShard, Communicator, ShardedLoss, Threads, load_sharded, save_sharded, sum_over_ranks,
};
use candle_margin_loss::{ClassCounts, MarginLoss};
use clap::{Parser, ValueEnum};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Normal};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// Threads of this process, `--ranks` of them
    Threads,
    /// Processes of mpirun
    Mpi,
}

#[derive(Debug, Parser)]
struct Options {
    #[arg(long, value_enum, default_value = "threads")]
    engine: Engine,
    /// Threads, where they are the engine
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    #[arg(long, default_value_t = 4)]
    epochs: usize,
    /// Rows of a step, of all ranks
    #[arg(long, default_value_t = 256)]
    batch: usize,
    #[arg(long, default_value_t = 0.01)]
    lr: f64,
    /// Of the centres, whose gradients are those of few rows each
    #[arg(long, default_value_t = 0.3)]
    centres_lr: f64,
    /// Dimensions of the features
    #[arg(long, default_value_t = 128)]
    dimensions: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The most drawings of a class
    #[arg(long, default_value_t = usize::MAX)]
    most: usize,
    /// Where checkpoints go, one an epoch
    #[arg(long, default_value = "target/sharded")]
    out: PathBuf,
    /// Goes on from the last checkpoint in `--out`, whatever the number of ranks that wrote it
    #[arg(long)]
    resume: bool,
    /// RANK:STEP: this rank dies before that step
    #[arg(long)]
    kill: Option<String>,
}

const SIDE: usize = 16;
const HIDDEN: usize = 256;
const MOMENTUM: f64 = 0.9;

fn main() -> Result<()> {
    let options = Options::parse();
    match options.engine {
        Engine::Threads => {
            let results =
                Threads::run(options.ranks, |rank| train(Arc::new(rank), &options).map_err(|error| error.to_string()));
            // A rank that panicked has said so.
            results.into_iter().try_for_each(|result| result.unwrap_or_else(|_| Err("a rank panicked".into())))?;
            Ok(())
        }
        Engine::Mpi => {
            #[cfg(feature = "mpi")]
            return train(Arc::new(candle_margin_loss::sharded::Mpi::new()?), &options);
            #[cfg(not(feature = "mpi"))]
            Err("this was built without MPI: --features mpi".into())
        }
    }
}

/// Drawings as rows of pixels, and their classes.
struct Samples {
    /// (N, SIDE²)
    pixels: Tensor,
    labels: Vec<u32>,
}

impl Samples {
    fn rows(&self, indices: &[u32]) -> candle_core::Result<(Tensor, Tensor)> {
        let labels: Vec<u32> = indices.iter().map(|&i| self.labels[i as usize]).collect();
        let n = indices.len();
        let pixels = self.pixels.index_select(&Tensor::from_vec(indices.to_vec(), n, &Device::Cpu)?, 0)?;
        Ok((pixels, Tensor::from_vec(labels, n, &Device::Cpu)?))
    }
}

/// Every symbol at its natural count; a sixth of its drawings, where it has six, is held out.
fn samples(options: &Options) -> Result<(Samples, Samples, ClassCounts)> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let (mut train, mut test, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (class, symbol) in strokes::read_snapshot(&strokes::find_snapshot()?)?.into_iter().enumerate() {
        let mut drawings = symbol.drawings;
        drawings.shuffle(&mut rng);
        drawings.truncate(options.most);
        let held_out = drawings.len() / 6;
        counts.push((drawings.len() - held_out) as u64);
        for (i, drawing) in drawings.iter().enumerate() {
            let into = if i < held_out { &mut test } else { &mut train };
            into.push((strokes::rasterise(drawing, SIDE), class as u32));
        }
    }
    let samples = |of: Vec<(Vec<f32>, u32)>| -> Result<Samples> {
        let (pixels, labels): (Vec<_>, Vec<_>) = of.into_iter().unzip();
        let shape = (labels.len(), SIDE * SIDE);
        Ok(Samples { pixels: Tensor::from_vec(pixels.concat(), shape, &Device::Cpu)?, labels })
    };
    Ok((samples(train)?, samples(test)?, ClassCounts::new(counts)?))
}

/// Two layers, of which every rank has a copy, and the centres of its own classes; each with its momentum.
struct Model {
    backbone: BTreeMap<&'static str, (Var, Tensor)>,
    centres: (Var, Tensor),
}

impl Model {
    fn new(options: &Options, shard: &ClassShard) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(options.seed ^ 0x5eed);
        let mut drawn = |rows: usize, cols: usize, deviation: f64| -> Result<Tensor> {
            let normal = Normal::new(0.0, deviation)?;
            let values: Vec<f32> = (0..rows * cols).map(|_| normal.sample(&mut rng) as f32).collect();
            Ok(Tensor::from_vec(values, (rows, cols), &Device::Cpu)?)
        };
        let with_momentum =
            |tensor: Tensor| -> Result<(Var, Tensor)> { Ok((Var::from_tensor(&tensor)?, tensor.zeros_like()?)) };
        let backbone = [
            ("hidden", drawn(HIDDEN, SIDE * SIDE, (2.0 / (SIDE * SIDE) as f64).sqrt())?),
            ("features", drawn(options.dimensions, HIDDEN, (1.0 / HIDDEN as f64).sqrt())?),
        ];
        // The same centres on any number of ranks: drawn by all, and of a rank its own.
        let centres = drawn(shard.classes(), options.dimensions, (1.0 / options.dimensions as f64).sqrt())?.narrow(
            0,
            shard.range().start,
            shard.len(),
        )?;
        let backbone = backbone.into_iter().map(|(name, tensor)| Ok((name, with_momentum(tensor)?)));
        Ok(Self { backbone: backbone.collect::<Result<_>>()?, centres: with_momentum(centres.contiguous()?)? })
    }

    fn features(&self, pixels: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = pixels.matmul(&self.backbone["hidden"].0.t()?)?.relu()?;
        hidden.matmul(&self.backbone["features"].0.t()?)
    }

    /// v ← μ·v + g, p ← p − η·v
    fn step((variable, momentum): &mut (Var, Tensor), gradient: &Tensor, lr: f64) -> Result<()> {
        *momentum = ((&*momentum * MOMENTUM)? + gradient)?.detach();
        variable.set(&(variable.as_detached_tensor() - (&*momentum * lr)?)?)?;
        Ok(())
    }

    /// An epoch's folder, and last the file that names it: a checkpoint is there as a whole or not at all.
    fn save(&self, out: &Path, epoch: usize, loss: &ShardedLoss) -> Result<()> {
        let (shard, communicator) = (loss.shard(), &**loss.communicator());
        let folder = out.join(format!("epoch-{epoch}"));
        std::fs::create_dir_all(&folder)?;
        let (weight, momentum) = (self.centres.0.as_detached_tensor(), &self.centres.1);
        save_sharded(
            folder.join("head.safetensors"),
            &[("weight", &weight), ("momentum", momentum)],
            shard,
            communicator,
        )?;
        if communicator.rank() == 0 {
            let mut tensors = std::collections::HashMap::new();
            for (name, (variable, momentum)) in &self.backbone {
                tensors.insert((*name).to_string(), variable.as_detached_tensor());
                tensors.insert(format!("{name}.momentum"), momentum.clone());
            }
            candle_core::safetensors::save(&tensors, folder.join("backbone.safetensors"))?;
            std::fs::write(out.join("last.partial"), epoch.to_string())?;
            std::fs::rename(out.join("last.partial"), out.join("last"))?;
        }
        Ok(())
    }

    /// Takes the last checkpoint up; gives its epoch.
    fn resume(&mut self, out: &Path, shard: &ClassShard) -> Result<usize> {
        let epoch: usize = std::fs::read_to_string(out.join("last"))?.trim().parse()?;
        let folder = out.join(format!("epoch-{epoch}"));
        let rows = |name: &str| load_sharded(folder.join("head.safetensors"), name, shard, &Device::Cpu);
        self.centres = (Var::from_tensor(&rows("weight")?)?, rows("momentum")?);
        let tensors = candle_core::safetensors::load(folder.join("backbone.safetensors"), &Device::Cpu)?;
        for (name, (variable, momentum)) in &mut self.backbone {
            variable.set(&tensors[*name])?;
            *momentum = tensors[&format!("{name}.momentum")].clone();
        }
        Ok(epoch)
    }
}

/// A rank's share of `all`, in order.
fn share<'a, T>(all: &'a [T], communicator: &dyn Communicator) -> Result<&'a [T]> {
    Ok(&all[ClassShard::balanced(all.len(), communicator.rank(), communicator.size())?.range()])
}

fn train(communicator: Arc<dyn Communicator>, options: &Options) -> Result<()> {
    let (train, test, counts) = samples(options)?;
    let (rank, ranks, classes) = (communicator.rank(), communicator.size(), counts.classes());
    let shard = ClassShard::balanced(classes, rank, ranks)?;
    let mut model = Model::new(options, &shard)?;
    let first = if options.resume { model.resume(&options.out, &shard)? } else { 0 };
    let loss = MarginLoss::dbm_bs(&counts, 0.1)?.sharded(shard, communicator.clone())?;
    let says = |text: String| {
        if rank == 0 {
            println!("{text}");
        }
    };
    says(format!(
        "{ranks} ranks: {} drawings of {classes} classes ({} to {} a class), {} held out; {} classes on rank 0. {}",
        train.labels.len(),
        counts.min(),
        counts.max(),
        test.labels.len(),
        loss.shard().len(),
        strokes::ATTRIBUTION
    ));
    let kill = options.kill.as_deref().and_then(|kill| kill.split_once(':'));
    let kill =
        kill.map(|(who, when)| Ok::<_, std::num::ParseIntError>((who.parse::<usize>()?, when.parse::<usize>()?)));
    let kill = kill.transpose()?;
    let started = Instant::now();
    let (mut backbone_time, mut step) = (0.0, 0);
    for epoch in first..options.epochs {
        let mut order: Vec<u32> = (0..train.labels.len() as u32).collect();
        order.shuffle(&mut StdRng::seed_from_u64(options.seed ^ (epoch as u64 + 1) << 20));
        let mut total = 0.0;
        let batches = order.chunks(options.batch);
        let of_epoch = batches.len();
        for batch in batches {
            if kill == Some((rank, step)) {
                die(options.engine);
            }
            // Down to a hundredth, by a cosine.
            let progress = (epoch * of_epoch + step % of_epoch) as f64 / (options.epochs * of_epoch) as f64;
            let rate = 0.505 + 0.495 * (std::f64::consts::PI * progress).cos();
            let (pixels, labels) = train.rows(share(batch, &*communicator)?)?;
            let features = model.features(&pixels)?;
            let (output, dx, dw) = loss.loss_and_grads(&features.detach(), &model.centres.0, &labels, None)?;
            total += output.loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            Model::step(&mut model.centres, &dw, options.centres_lr * rate)?;
            let start = Instant::now();
            // dX through the backbone, whose gradients are summed over the ranks.
            let gradients = (features * dx)?.sum_all()?.backward()?;
            for both in model.backbone.values_mut() {
                let own = gradients.get(&both.0).cloned().map_or_else(|| both.0.zeros_like(), Ok)?;
                Model::step(both, &sum_over_ranks(&own, &*communicator)?, options.lr * rate)?;
            }
            backbone_time += start.elapsed().as_secs_f64();
            step += 1;
        }
        model.save(&options.out, epoch + 1, &loss)?;
        let accuracy = accuracy(&model, &loss, &test)?;
        says(format!("epoch {}: loss {:.4}, accuracy {:.2} %", epoch + 1, total / of_epoch as f64, 100.0 * accuracy));
    }
    let costs = loss.costs();
    says(format!("{step} steps in {:.1} s; of rank 0, a step:", started.elapsed().as_secs_f64()));
    for cost in costs {
        let (bytes, time) =
            (cost.received_bytes as f64 / step.max(1) as f64, cost.time.as_secs_f64() / step.max(1) as f64);
        says(format!("  {:<18} {:>10.0} bytes {:>8.2} ms", cost.phase, bytes, 1e3 * time));
    }
    says(format!("  {:<18} {:>16} {:>8.2} ms", "backbone", "", 1e3 * backbone_time / step.max(1) as f64));
    Ok(())
}

/// The share of the held-out drawings whose nearest centre, of all ranks', is their own.
fn accuracy(model: &Model, loss: &ShardedLoss, test: &Samples) -> Result<f64> {
    let all: Vec<u32> = (0..test.labels.len() as u32).collect();
    let mut hard = 0f64;
    for chunk in all.chunks(2048) {
        let (pixels, labels) = test.rows(share(chunk, &**loss.communicator())?)?;
        let features = model.features(&pixels)?.detach();
        let output = loss.output(&features, &model.centres.0.as_detached_tensor(), &labels, None)?;
        hard += output.hard.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    }
    let hard = sum_over_ranks(&Tensor::new(&[hard], &Device::Cpu)?, &**loss.communicator())?.to_vec1::<f64>()?[0];
    Ok(1.0 - hard / all.len() as f64)
}

/// As if the machine were gone; of a thread, as if it had a fault.
fn die(engine: Engine) {
    assert!(engine == Engine::Mpi, "killed by --kill");
    let id = std::process::id().to_string();
    drop(std::process::Command::new("kill").args(["-9", &id]).status());
}
