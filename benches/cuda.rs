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

use std::fmt::Write;
use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::{ClassCounts, InstanceGate, Margin, MarginLoss, Prior, reference};
use criterion::{BenchmarkId, Criterion, Throughput};
use cudarc::driver::sys::{CUdevice_attribute, CUevent_flags};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// (N, C, D)
const SIZES: [(usize, usize, usize); 5] =
    [(64, 100, 64), (128, 1000, 512), (256, 1000, 2048), (256, 8142, 2048), (1024, 10000, 512)];
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const ROUNDS: usize = 15;
/// What one way should take in one round.
const TURN: Duration = Duration::from_millis(20);

/// A way to make a step, or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Step,
    Tape,
    Streaming,
    Forward,
    Composed,
    ComposedForward,
    Products,
}

impl Way {
    const ALL: [Way; 7] =
        [Way::Step, Way::Tape, Way::Streaming, Way::Composed, Way::Products, Way::Forward, Way::ComposedForward];

    fn name(self) -> &'static str {
        match self {
            Way::Step => "loss_and_grads_into",
            Way::Tape => "forward + backward",
            Way::Streaming => "loss_and_grads_into, streaming",
            Way::Composed => "composed, forward + backward",
            Way::Products => "three products (cuBLAS)",
            Way::Forward => "forward",
            Way::ComposedForward => "composed, forward",
        }
    }

    /// How many of the three products are in it.
    fn products(self) -> usize {
        if matches!(self, Way::Forward | Way::ComposedForward) { 1 } else { 3 }
    }
}

struct Case {
    dtype: DType,
    size: (usize, usize, usize),
    loss: MarginLoss,
    streaming: MarginLoss,
    x: Var,
    w: Var,
    y: Tensor,
    g: Tensor,
    dx: Tensor,
    dw: Tensor,
}

impl Case {
    fn new((n, c, d): (usize, usize, usize), dtype: DType, gpu: &Device) -> Result<Self> {
        let counts: Vec<u64> = (0..c).map(|j| (1 + 500 * (c - j) / c) as u64).collect();
        let loss = |streaming| {
            MarginLoss::builder(c)
                .counts(&ClassCounts::new(&counts[..])?)
                .margin(Margin::Dbm { k: 0.2, tau: 1.0 })
                .instance_gate(InstanceGate::HardPositives)
                .prior(Prior::BalancedSoftmax { tau: 1.0 })
                .check_labels(false)
                .streaming(streaming)
                .build()
        };
        let new =
            |rows, columns| Tensor::randn(0f32, 1., (rows, columns), &Device::Cpu)?.to_dtype(dtype)?.to_device(gpu);
        let (x, w, g) = (Var::from_tensor(&new(n, d)?)?, Var::from_tensor(&new(c, d)?)?, new(n, c)?);
        let y = Tensor::from_vec((0..n).map(|i| (i * 7919 % c) as u32).collect::<Vec<_>>(), n, gpu)?;
        let (dx, dw) = (x.zeros_like()?, w.zeros_like()?);
        Ok(Self { dtype, size: (n, c, d), loss: loss(false)?, streaming: loss(true)?, x, w, y, g, dx, dw })
    }

    fn name(&self) -> String {
        let (n, c, d) = self.size;
        format!("{n}x{c}x{d}")
    }

    fn compulsory_bytes(&self) -> f64 {
        let (n, c, d) = self.size;
        (2 * (n + c) * d * self.dtype.size_in_bytes()) as f64
    }

    fn flop(&self, way: Way) -> f64 {
        let (n, c, d) = self.size;
        (2 * way.products() * n * c * d) as f64
    }

    /// Puts one step on the device's stream; the gradients, for the ways that give some.
    fn run(&self, way: Way) -> candle_core::Result<Option<(Tensor, Tensor, Tensor)>> {
        let Self { x, w, y, dx, dw, .. } = self;
        let (fixed_x, fixed_w) = (x.as_detached_tensor(), w.as_detached_tensor());
        let on_tape = |loss: Tensor| {
            let gradients = loss.backward()?;
            let of = |v: &Var| gradients.get(v).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"));
            Ok(Some((loss, of(x)?, of(w)?)))
        };
        match way {
            Way::Step | Way::Streaming => {
                let loss = if way == Way::Step { &self.loss } else { &self.streaming };
                let out = loss.loss_and_grads_into(&fixed_x, &fixed_w, y, None, dx, dw)?;
                Ok(Some((out.loss, dx.clone(), dw.clone())))
            }
            Way::Tape => on_tape(self.loss.forward(x, w, y)?),
            Way::Composed => on_tape(reference::forward(&self.loss, x, w, y, None)?.loss),
            Way::Forward => self.loss.forward(&fixed_x, &fixed_w, y).map(|_| None),
            Way::ComposedForward => reference::forward(&self.loss, &fixed_x, &fixed_w, y, None).map(|_| None),
            Way::Products => {
                fixed_x.matmul(&fixed_w.t()?)?;
                self.g.matmul(&fixed_w)?;
                self.g.t()?.matmul(&fixed_x)?;
                Ok(None)
            }
        }
    }

    /// Every way against the CPU path on the same inputs; the composed loss, whose halves round at every op, is only printed.
    fn check(&self) -> Result<()> {
        let cpu = Device::Cpu;
        let flat = |t: &Tensor| t.to_device(&cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let (x, w, y) = (self.x.to_device(&cpu)?, self.w.to_device(&cpu)?, self.y.to_device(&cpu)?);
        let (out, dx, dw) = self.loss.loss_and_grads(&x, &w, &y, None)?;
        let expected = [flat(&out.loss)?, flat(&dx)?, flat(&dw)?];
        for way in Way::ALL {
            let Some((loss, dx, dw)) = self.run(way)? else { continue };
            for ((part, found), expected) in [("loss", loss), ("dX", dx), ("dW", dw)].iter().zip(&expected) {
                let size = expected.iter().fold(0f64, |most, v| most.max(v.abs()));
                let errors = flat(found)?.into_iter().zip(expected).map(|(a, b)| (a - b).abs());
                let error = errors.fold(0f64, f64::max) / size;
                let tolerance = match (self.dtype, *part) {
                    (DType::F32, _) | (_, "loss") => 1e-4,
                    (DType::F16, _) => 4e-3,
                    _ => 3e-2,
                };
                if way == Way::Composed {
                    println!("{} {} {}: {part} is off by {error:.1e}", self.name(), self.dtype.as_str(), way.name());
                } else if error.is_nan() || error > tolerance {
                    return Err(format!(
                        "{} {:?}, {}: {part} is off by {error:e}",
                        self.name(),
                        self.dtype,
                        way.name()
                    )
                    .into());
                }
            }
        }
        Ok(())
    }

    /// Milliseconds a call, over `count` calls, by the device's own events.
    fn time(&self, way: Way, count: u64) -> Result<f64> {
        milliseconds(self.x.device(), count, || self.run(way).map(drop))
    }
}

fn milliseconds(gpu: &Device, count: u64, mut work: impl FnMut() -> candle_core::Result<()>) -> Result<f64> {
    let stream = gpu.as_cuda_device()?.cuda_stream();
    let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    stream.synchronize()?;
    let start = event()?;
    for _ in 0..count {
        work()?;
    }
    let end = event()?;
    end.synchronize()?;
    Ok(f64::from(start.elapsed_ms(&end)?) / count as f64)
}

/// GB/s of the device's memory by its clock and bus, both edges counted.
fn peak_bandwidth(gpu: &Device) -> Result<f64> {
    let stream = gpu.as_cuda_device()?.cuda_stream();
    let of = |which| stream.context().attribute(which).map(f64::from);
    let khz = of(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let bits = of(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    Ok(2.0 * khz * 1e3 * bits / 8.0 / 1e9)
}

/// TFLOP/s of cuBLAS on a square product of `size`.
fn peak_products(gpu: &Device, dtype: DType, size: usize) -> Result<f64> {
    let a = Tensor::ones((size, size), dtype, gpu)?;
    a.matmul(&a)?;
    let ms = milliseconds(gpu, 5, || a.matmul(&a).map(drop))?;
    Ok(2.0 * (size as f64).powi(3) / ms / 1e9)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
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
