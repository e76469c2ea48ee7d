//! `cargo bench --features cuda --bench cuda`: a step of DBM-BS on a GPU, by each way of making it, beside the loss composed of Candle's ops and
//! beside its floor, the three bare products by cuBLAS.
//!
//! Every way's loss and gradients are first compared with the CPU path's. Then each is timed by CUDA events, between which nothing waits for the
//! device (labels are not checked): by criterion, for its reports and baselines, and in rounds of this program's own, all ways one after the other
//! in each, whose medians are the table. GB/s are the compulsory bytes X + W + dX + dW over the time, beside the device's peak by its memory clock
//! and bus; TFLOP/s are the three products' 6·N·C·D over the time, beside what cuBLAS reaches on a product of 8192³ here and now.
//!
//! The table goes to the terminal; with `MARGIN_LOSS_RECORD=1` also to `benches/CUDA.md`. A filter leaves it out. `-- --test` runs every way once
//! on the smallest size, checks included: that also runs on the emulated device, whose times are of no device.
//!
//! `part NAME FILE …` instead of all this is one of the measurements of `tests/silicon`: `parts.rs`.

mod case;
#[path = "../../tests/common/mod.rs"]
mod common;
mod parts;

use std::fmt::Write;
use std::time::Duration;

use candle_core::{DType, Device};
use case::{Case, Result, SIZES, Way, median, peak_bandwidth, peak_products};
use criterion::{BenchmarkId, Criterion, Throughput};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const ROUNDS: usize = 15;
/// What one way should take in one round.
const TURN: Duration = Duration::from_millis(20);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [part, name, rest @ ..] = &args[..]
        && part == "part"
    {
        return parts::run(name, rest);
    }
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let (list, test) = (has("--list"), has("--test") || !has("--bench"));
    let table = test || !list && !args.iter().any(|arg| !arg.starts_with('-'));
    let gpu = Device::new_cuda(0)?;
    let device = gpu.as_cuda_device()?.cuda_stream().context().name()?;
    let bandwidth = peak_bandwidth(&gpu)?;
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .without_plots()
        .configure_from_args();
    let rounds = if test { 1 } else { ROUNDS };
    let mut text = String::from(
        "| N × C × D | type | way | µs | × step | GB/s | of peak | TFLOP/s | of cuBLAS at 8192³ |\n|---|---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    let dtypes = if test { &DTYPES[..2] } else { &DTYPES[..] };
    for &dtype in dtypes {
        let products = if table { peak_products(&gpu, dtype, if test { 64 } else { 8192 })? } else { f64::NAN };
        for &size in if test { &SIZES[..1] } else { &SIZES[..] } {
            let case = Case::new(size, dtype, &gpu)?;
            if !list {
                case.check()?;
            }
            if table {
                let mut times = Way::ALL.map(|_| Vec::new());
                let mut counts = [1; Way::ALL.len()];
                for (way, count) in Way::ALL.into_iter().zip(&mut counts) {
                    if test {
                        break;
                    }
                    case.time(way, 3)?;
                    *count = (TURN.as_secs_f64() * 1e3 / case.time(way, 3)?.max(1e-3)).clamp(1.0, 10_000.0) as u64;
                }
                for _ in 0..rounds {
                    for ((way, times), &count) in Way::ALL.into_iter().zip(&mut times).zip(&counts) {
                        times.push(case.time(way, count)?);
                    }
                }
                let times = times.map(median);
                for (way, ms) in Way::ALL.into_iter().zip(times) {
                    let rate = case.flop(way) / ms / 1e9;
                    // A forward pass writes no gradient.
                    let bytes = case.compulsory_bytes() * if way.products() == 1 { 0.5 } else { 1.0 } / ms / 1e6;
                    writeln!(
                        text,
                        "| {} | {} | {} | {:.1} | {:.2} | {bytes:.0} | {:.0} % | {rate:.1} | {:.0} % |",
                        case.name(),
                        dtype.as_str(),
                        way.name(),
                        1e3 * ms,
                        ms / times[0],
                        100.0 * bytes / bandwidth,
                        100.0 * rate / products
                    )?;
                }
            }
            let mut group = criterion.benchmark_group(format!("cuda/{}", dtype.as_str()));
            for way in Way::ALL {
                group.throughput(Throughput::Elements(case.flop(way) as u64)); // "Gelem/s" reads as GFLOP/s
                group.bench_function(BenchmarkId::new(way.name(), case.name()), |bencher| {
                    bencher.iter_custom(|count| {
                        let ms = case.time(way, count).expect("ran when it was checked");
                        Duration::from_secs_f64((ms * count as f64 / 1e3).max(1e-9))
                    });
                });
            }
            group.finish();
        }
    }
    if table {
        let head = format!(
            "{device}, memory {bandwidth:.0} GB/s at its peak. Medians of {rounds} rounds, by CUDA events; DBM-BS, labels not checked.\n\n"
        );
        println!("\n{head}{text}");
        if test {
            println!("To see that it runs: these times are not to be used.");
            return Ok(());
        }
        if std::env::var("MARGIN_LOSS_RECORD").is_ok_and(|value| value == "1") {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/CUDA.md");
            std::fs::write(
                path,
                format!(
                    "# On a GPU\n\nWritten by `MARGIN_LOSS_RECORD=1 cargo bench --features cuda --bench cuda`.\n\n{head}{text}"
                ),
            )?;
        }
    }
    Ok(())
}
