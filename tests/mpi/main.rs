//! Classes over processes: every scenario is a job of `mpirun`, which runs this program on its ranks.
//!
//! Numbers are those of the loss on one rank, and to the bit those of as many threads.
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_margin_loss::MarginLoss;
use candle_margin_loss::sharded::{ClassShard, Communicator, Mpi, Threads};
use common::{Inputs, Result, distance, flat, losses, off_tape, size};

/// Names of a job, and what it says of itself; an error of a rank where one is wanted.
const JOBS: [(&str, usize, Option<&str>); 7] = [
    ("numbers", 4, None),
    ("pieces", 3, None),
    ("label", 3, Some("sharded loss: rank 1: margin loss: label 99 of row 2 is not in 0..11")),
    ("disagree", 3, Some("sharded loss: ranks disagree on the number of dimensions D: rank 0 has 6, rank 2 has 7")),
    ("leave", 4, Some("sharded loss: rank 1 has left")),
    ("panic", 3, Some("sharded loss: rank 2 panicked")),
    ("killed", 3, Some("signal 9")),
];

fn main() {
    if let Some(job) = std::env::args().nth(1).filter(|argument| argument.starts_with("job=")) {
        return rank(&job["job=".len()..]);
    }
    let program = std::env::current_exe().expect("this program has a path");
    for (job, ranks, error) in JOBS {
        let started = std::time::Instant::now();
        let output = Command::new("timeout")
            .args(["60", "mpirun", "-n", &ranks.to_string()])
            .arg(&program)
            .arg(format!("job={job}"))
            .env("RAYON_NUM_THREADS", "1")
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("mpirun runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let Some(error) = error else {
            assert!(output.status.success(), "{job}: {}\n{text}", output.status);
            println!("mpirun -n {ranks} {job}: ok, {:.1} s", started.elapsed().as_secs_f64());
            continue;
        };
        // Every rank that is left says so and ends well, lest mpirun end the others before they do; a kill is mpirun's to tell.
        let (survivors, ends) = match job {
            "label" | "disagree" => (ranks, output.status.success()),
            "killed" => (1, !output.status.success() && output.status.code() != Some(124)),
            _ => (ranks - 1, output.status.success()),
        };
        let told = text.matches(error).count();
        assert!(ends && told >= survivors, "{job}: {}, {told} of {survivors} say {error:?}\n{text}", output.status);
        println!("mpirun -n {ranks} {job}: ok, {:.1} s", started.elapsed().as_secs_f64());
    }
}

/// A rank of a job.
fn rank(job: &str) {
    let mpi = Mpi::new().expect("MPI starts");
    let me = mpi.rank();
    let work = || match job {
        "numbers" => numbers(mpi),
        "pieces" => numbers(mpi.largest_message(64)),
        "label" => failing(mpi, |rank| if rank == 1 { 99 } else { 3 }, |_| 6),
        "disagree" => failing(mpi, |_| 3, |rank| if rank == 2 { 7 } else { 6 }),
        "leave" if me == 1 => Ok(()),
        "panic" if me == 2 => {
            let _held = mpi;
            panic!("on purpose")
        }
        "killed" if me == 1 => {
            Command::new("kill").args(["-9", &std::process::id().to_string()]).status()?;
            Ok(())
        }
        _ => failing(mpi, |_| 3, |_| 6),
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    if let Ok(Err(error)) = &result {
        eprintln!("rank {me}: {error}");
    }
    if ["numbers", "pieces"].contains(&job) && !matches!(result, Ok(Ok(()))) {
        std::process::exit(1);
    }
}

/// A call that is to fail.
fn failing(mpi: Mpi, label: impl Fn(usize) -> u32, d: impl Fn(usize) -> usize) -> Result<()> {
    let shard = ClassShard::balanced(11, mpi.rank(), mpi.size())?;
    let (label, d) = (label(mpi.rank()), d(mpi.rank()));
    let (x, w) =
        (Tensor::ones((3, d), DType::F32, &Device::Cpu)?, Tensor::ones((shard.len(), d), DType::F32, &Device::Cpu)?);
    let y = Tensor::new(&[0u32, 1, label], &Device::Cpu)?;
    MarginLoss::builder(11).build()?.sharded(shard, Arc::new(mpi))?.loss_and_grads(&x, &w, &y, None)?;
    Ok(())
}

/// Rows of a rank: uneven, the second has none.
fn rows(n: usize, rank: usize, size: usize) -> (usize, usize) {
    let bound = |rank: usize| if rank == 2 { n / size } else { rank * n / size };
    (bound(rank), bound(rank + 1) - bound(rank))
}

/// A rank's loss, predictions, dX and dW.
type Step = (Vec<f64>, Vec<u32>, Vec<f64>, Vec<f64>);

/// A call on this rank, its bytes counted.
fn step(loss: &MarginLoss, inputs: &Inputs, communicator: Arc<dyn Communicator>) -> Result<Step> {
    let (rank, size) = (communicator.rank(), communicator.size());
    let (n, c, _) = inputs.dims();
    let (start, count) = rows(n, rank, size);
    let shard = ClassShard::balanced(c, rank, size)?;
    let of = |tensor: &Tensor| tensor.narrow(0, start, count);
    let own = Inputs {
        x: of(&inputs.x)?,
        w: inputs.w.narrow(0, shard.range().start, shard.len())?,
        y: of(&inputs.y)?,
        sample_weights: inputs.sample_weights.as_ref().map(of).transpose()?,
        margins: inputs.margins.as_ref().map(of).transpose()?,
    };
    let sharded = loss.sharded(shard, communicator)?;
    let (output, dx, dw) = sharded.loss_and_grads(&own.x, &own.w, &own.y, own.rows(loss))?;
    // The bytes of docs/sharded.md.
    let costs = sharded.costs();
    let of = |phase: &str| costs.iter().find(|cost| cost.phase == phase).unwrap().received_bytes as usize;
    let (d, bytes) = (own.x.dim(1)?, own.x.dtype().size_in_bytes());
    let numbers = 1 + usize::from(own.sample_weights.is_some()) + 2 * usize::from(loss.takes_row_margins());
    assert_eq!(of("agree"), (size - 1) * 23 * 8);
    assert_eq!(of("gather X and y"), (n - count) * (bytes * d + 8 * numbers));
    assert_eq!(of("merge statistics"), (n - count) * 48 + (size - 1) * count * 48);
    assert_eq!(of("scatter dX"), (size - 1) * count * d * bytes.max(4));
    Ok((flat(&output.loss), output.predicted.to_vec1()?, flat(&dx), flat(&dw)))
}

fn numbers(mpi: Mpi) -> Result<()> {
    let mpi = Arc::new(mpi);
    let (rank, ranks) = (mpi.rank(), mpi.size());
    for (n, c, d) in [(3, 2, 5), (17, 33, 16)] {
        for (name, loss) in losses(c) {
            for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
                let inputs = Inputs::random(n, c, d, name.contains("ignore"), 31)?.with_sample_weights(4)?.to(dtype)?;
                let (value, predicted, dx, dw) = step(&loss, &inputs, mpi.clone())?;
                let mut threads = Threads::run(ranks, |rank| step(&loss, &inputs, Arc::new(rank)).unwrap());
                let same = threads.swap_remove(rank).unwrap();
                let label = format!("{name} {n} {c} {d} {dtype:?} on rank {rank}");
                assert_eq!(
                    (&value, &predicted, &dx, &dw),
                    (&same.0, &same.1, &same.2, &same.3),
                    "{label}: not as threads"
                );
                if dtype == DType::F64 {
                    let one = off_tape(&loss, &inputs)?;
                    let (start, count) = rows(n, rank, ranks);
                    let shard = ClassShard::balanced(c, rank, ranks)?.range();
                    let expected = &one.dx[start * d..(start + count) * d];
                    assert!(distance(&dx, expected) <= 1e-12 * size(&one.dx), "{label}: dX");
                    let expected = &one.dw[shard.start * d..shard.end * d];
                    assert!(distance(&dw, expected) <= 1e-12 * size(&one.dw), "{label}: dW");
                    let expected = if one.loss.len() == 1 { &one.loss } else { &one.loss[start..start + count] };
                    assert!(distance(&value, expected) <= 1e-12 * size(&one.loss), "{label}: loss");
                    assert_eq!(predicted, one.predicted[start..start + count], "{label}: predicted");
                }
            }
        }
    }
    Ok(())
}
