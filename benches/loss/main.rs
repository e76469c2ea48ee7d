//! `cargo bench`: the fused loss beside the loss composed of Candle ops and beside its floor, the three bare products.
//!
//! For DBM-BS on each of [`SIZES`], in f32 and bf16, every way of computing the loss is checked, then timed twice over:
//!
//! - by criterion, for its reports and for `--save-baseline` / `--baseline`;
//! - in rounds of this program's own, all ways one after the other in each round. The machine's speed drifts, so ratios are taken
//!   within a round and their median over the rounds is what the table shows.
//!
//! Ways that take longer than half a second are timed in the rounds only. The table goes to the terminal; with `MARGIN_LOSS_RECORD=1` also to `benches/RESULTS.md` and `benches/results.json`. A filter, or
//! any other argument that is not a flag, leaves it out. `-- --test` runs every way once on the small sizes, checks included, without a table.
//! `-- --turns N,C,D,dtype` times single ways as standard input asks (`turns.rs`).
//!
//! Threads: as many as rayon has, all cores by default; `RAYON_NUM_THREADS=2` is what the targets are stated for.

mod case;
mod floor;
mod memory;
mod record;
mod turns;

use std::time::{Duration, Instant};

use candle_core::DType;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};

use case::{Case, Result, Way};
use memory::Counting;
use record::{CaseRecord, Growth, Record};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// (N, C, D)
const SIZES: [(usize, usize, usize); 5] =
    [(64, 100, 64), (128, 1000, 512), (256, 1000, 2048), (256, 8142, 2048), (1024, 10000, 512)];
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// (C, D) of the problems whose N grows from the first of [`GROWING_ROWS`] to the second.
const GROWING: (usize, usize) = (8142, 512);
const GROWING_ROWS: (usize, usize) = (1024, 4096);

/// Rounds of a table, and fewer where one takes long.
const ROUNDS: usize = 15;
const FEWEST_ROUNDS: usize = 7;
/// What the rounds of one case should take together, where that allows for more than the fewest.
const ROUNDS_TIME: Duration = Duration::from_secs(10);
/// What takes longer, in milliseconds, is left to the rounds: criterion takes ten samples at least.
const LONGEST_FOR_CRITERION: f64 = 500.0;
/// What one way should take in one round: short ones are repeated.
const TURN: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Checks, table, criterion.
    Full,
    /// Checks and criterion.
    Criterion,
    /// Everything once, small.
    Test,
    /// Names only.
    List,
}

impl Mode {
    /// Cargo passes `--bench` for `cargo bench` and nothing for `cargo test --benches`; criterion takes both as this does.
    fn from_args() -> Self {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        if has("--list") {
            Mode::List
        } else if has("--test") || !has("--bench") {
            Mode::Test
        } else if args.iter().any(|arg| !arg.starts_with('-')) {
            Mode::Criterion
        } else {
            Mode::Full
        }
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "--turns") {
        return turns::serve(args.get(at + 1).ok_or("--turns N,C,D,dtype")?, time);
    }
    let mode = Mode::from_args();
    let threads = rayon::current_num_threads();
    if mode != Mode::List {
        println!("{threads} threads (RAYON_NUM_THREADS sets them)");
    }
    let mut record = Record::new(threads, memory::gemm_slabs());
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .nresamples(10_000)
        .without_plots()
        .configure_from_args();

    // Unoptimised, as `cargo test --benches` builds it, a product takes seconds.
    let sizes = match mode {
        Mode::Test if cfg!(debug_assertions) => &SIZES[..1],
        Mode::Test => &SIZES[..2],
        _ => &SIZES[..],
    };
    for &(n, c, d) in sizes {
        for dtype in DTYPES {
            let mut case = Case::new(n, c, d, dtype)?;
            let mut left_out = Vec::new();
            if mode != Mode::List {
                let errors = case.check()?;
                let memory = case.extra_memory()?;
                if mode == Mode::Full {
                    case.floor.choose_parallelism();
                    let mut of_case = CaseRecord::new(&case, errors, memory);
                    rounds(&mut case, &mut of_case)?;
                    println!("{}", of_case.line());
                    left_out.extend(Way::ALL.into_iter().filter(|&way| of_case.ms(way) > LONGEST_FOR_CRITERION));
                    record.cases.push(of_case);
                }
            }
            run_criterion(&mut criterion, &mut case, &left_out)?;
        }
    }
    if matches!(mode, Mode::Full | Mode::Test) {
        let (c, d) = if mode == Mode::Full { GROWING } else { (GROWING.0, 16) };
        for dtype in DTYPES {
            // A problem too large for its logits to fit the workspace.
            let measure = |n| Case::new(n, c, d, dtype)?.extra_of(Way::Kept);
            let (rows, of_rows) = (GROWING_ROWS, (measure(GROWING_ROWS.0)?, measure(GROWING_ROWS.1)?));
            record.growth.push(Growth::new(c, d, dtype, rows, of_rows));
        }
    }
    match mode {
        Mode::Full => record.finish(std::env::var("MARGIN_LOSS_RECORD").is_ok_and(|value| value == "1")),
        Mode::Test => record.growth.iter().try_for_each(Growth::check),
        _ => Ok(()),
    }
}

/// Times all ways in every round, forwards and backwards in turn, so that none always follows the same other.
fn rounds(case: &mut Case, record: &mut CaseRecord) -> Result<()> {
    let mut repetitions = Vec::new();
    let mut round_time = Duration::ZERO;
    for way in Way::ALL {
        case.run(way)?; // the first call pays for pages and threads
        let once = time(case, way, 1)?;
        let count = (TURN.as_secs_f64() / once.max(1e-7)).clamp(1.0, 10_000.0) as usize;
        round_time += Duration::from_secs_f64(once * count as f64);
        repetitions.push(count);
    }
    let count = (ROUNDS_TIME.as_secs_f64() / round_time.as_secs_f64()) as usize;
    for round in 0..count.clamp(FEWEST_ROUNDS, ROUNDS) {
        let mut seconds = [0.0; Way::ALL.len()];
        let mut order: Vec<usize> = (0..Way::ALL.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for i in order {
            seconds[i] = time(case, Way::ALL[i], repetitions[i])?;
        }
        record.add_round(seconds);
    }
    Ok(())
}

/// Seconds a call, over `repetitions` calls.
fn time(case: &mut Case, way: Way, repetitions: usize) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..repetitions {
        case.run(way)?;
    }
    Ok(start.elapsed().as_secs_f64() / repetitions as f64)
}

fn run_criterion(criterion: &mut Criterion, case: &mut Case, left_out: &[Way]) -> Result<()> {
    let product = 2 * (case.n * case.c * case.d) as u64; // flop
    for (name, ways, products) in [("forward", Way::FORWARD, 1), ("forward+backward", Way::FORWARD_BACKWARD, 3)] {
        let mut group = criterion.benchmark_group(format!("{name}/{}", case.dtype.as_str()));
        group.throughput(Throughput::Elements(products * product)); // "Gelem/s" reads as Gflop/s of the bare products
        if product > 100_000_000 {
            group.sampling_mode(SamplingMode::Flat);
        }
        for &way in ways.iter().filter(|way| !left_out.contains(way)) {
            group.bench_function(BenchmarkId::new(way.name(), case.size()), |bencher| {
                bencher.iter(|| case.run(way).expect("ran when it was checked"));
            });
        }
        group.finish();
    }
    Ok(())
}
