//! The measurements of `tests/silicon`, one a process: `part NAME FILE [--reduced] …`. Each appends rows of JSON to FILE as it has them, so that
//! what a limit cuts short leaves what it had. A row with `failed` is what went wrong; the others go on.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::{MarginLoss, Prior};
use cudarc::driver::sys::{
    CUdevice_attribute as Attribute, CUfunction_attribute, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use serde_json::{Value, json};

use crate::case::{Case, Result, SIZES, Size, Way, milliseconds, peak_bandwidth};
use crate::common::{Inputs, Outcome, builders, distance, epsilon, fused, off_tape, size};

/// What a part is told.
struct Options {
    rows: File,
    /// Sizes that an emulated device has done in seconds; their times are of no device.
    reduced: bool,
    /// `--ptx`: the folder of modules.
    ptx: Option<PathBuf>,
    /// `--size N,C,D`, `--type`, `--streaming`: of the step that a profiler looks at.
    size: Size,
    dtype: DType,
    streaming: bool,
    gpu: Device,
}

impl Options {
    fn new(args: &[String]) -> Result<Self> {
        let [file, flags @ ..] = args else { return Err("part NAME FILE [--reduced] …".into()) };
        let rows = File::options().append(true).create(true).open(file)?;
        let mut options = Self {
            rows,
            reduced: false,
            ptx: None,
            size: SIZES[0],
            dtype: DType::BF16,
            streaming: false,
            gpu: Device::new_cuda(0)?,
        };
        let mut flags = flags.iter();
        while let Some(flag) = flags.next() {
            let mut value = || flags.next().ok_or(format!("{flag} wants a value"));
            match flag.as_str() {
                "--reduced" => options.reduced = true,
                "--streaming" => options.streaming = true,
                "--ptx" => options.ptx = Some(value()?.into()),
                "--type" => options.dtype = value()?.parse()?,
                "--size" => {
                    let numbers: Vec<usize> =
                        value()?.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
                    let [n, c, d] = numbers[..] else { return Err("--size N,C,D".into()) };
                    options.size = (n, c, d);
                }
                other => return Err(format!("a part knows no {other}").into()),
            }
        }
        Ok(options)
    }

    fn put(&mut self, row: &Value) -> Result<()> {
        println!("{row}");
        writeln!(self.rows, "{row}")?;
        Ok(())
    }

    /// A row, or what went wrong instead; an error of the device's ends the part, since nothing after it would count.
    fn put_or(&mut self, what: &Value, row: Result<Value>) -> Result<()> {
        let mut whole = what.clone();
        let more = row.unwrap_or_else(|error| json!({ "failed": error.to_string() }));
        if let (Some(whole), Value::Object(more)) = (whole.as_object_mut(), more) {
            whole.extend(more);
        }
        self.put(&whole)?;
        self.gpu.synchronize().map_err(|error| format!("the device does not go on: {error}").into())
    }

    fn attribute(&self, which: Attribute) -> Result<i32> {
        Ok(self.gpu.as_cuda_device()?.cuda_stream().context().attribute(which)?)
    }

    /// The text of a module that was packed beside this program.
    fn module(&self, name: &str) -> Result<String> {
        let folder = self.ptx.as_deref().ok_or("--ptx FOLDER says where the modules are")?;
        Ok(std::fs::read_to_string(folder.join(name).with_extension("ptx"))?)
    }
}

pub fn run(name: &str, args: &[String]) -> Result<()> {
    let mut options = Options::new(args)?;
    match name {
        "device" => device(&mut options),
        "load" => load(&mut options),
        "ceilings" => ceilings(&mut options),
        "check" => check(&mut options),
        "sanitize" => sanitize(&mut options),
        "times" => times(&mut options),
        "step" => step(&mut options),
        "graph" => graph(&mut options),
        "large" => large(&mut options),
        other => Err(format!("there is no part {other}").into()),
    }
}

/// Median, least and most of a measurement's runs.
fn spread(mut runs: Vec<f64>) -> Value {
    runs.sort_by(f64::total_cmp);
    json!({ "median": runs[runs.len() / 2], "least": runs[0], "most": runs[runs.len() - 1], "runs": runs.len() })
}

/// `runs` times what `work` says of itself.
fn measured(runs: usize, mut work: impl FnMut() -> Result<f64>) -> Result<Value> {
    Ok(spread((0..runs).map(|_| work()).collect::<Result<_>>()?))
}

fn device(options: &mut Options) -> Result<()> {
    let stream = options.gpu.as_cuda_device()?.cuda_stream();
    let (free, total) = stream.context().mem_get_info()?;
    let mut driver = 0;
    // SAFETY: the address is that of an integer.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut driver) }.result()?;
    let mut row = json!({
        "name": stream.context().name()?,
        "driver's CUDA": format!("{}.{}", driver / 1000, driver % 1000 / 10),
        "memory, MiB": total >> 20,
        "free, MiB": free >> 20,
        "peak of memory by clock and bus, GB/s": peak_bandwidth(&options.gpu).unwrap_or(0.0).round(),
    });
    for (what, attribute, unit) in [
        ("compute capability, major", Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 1),
        ("compute capability, minor", Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 1),
        ("multiprocessors", Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 1),
        ("clock, MHz", Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1000),
        ("memory clock, MHz", Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 1000),
        ("memory bus, bits", Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 1),
        ("second-level cache, KiB", Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 1024),
        ("shared memory a block, bytes", Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 1),
        ("cooperative launches", Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1),
        ("ECC", Attribute::CU_DEVICE_ATTRIBUTE_ECC_ENABLED, 1),
    ] {
        row[what] = options.attribute(attribute).map_or(Value::Null, |value| json!(value / unit));
    }
    options.put(&row)
}

/// Each module from its PTX: translated by the driver, or taken from its cache, and every kernel of it made ready; then the first call of a loss,
/// which loads its own.
fn load(options: &mut Options) -> Result<()> {
    let gpu = options.gpu.clone();
    let folder = options.ptx.clone().ok_or("--ptx FOLDER says where the modules are")?;
    let mut modules: Vec<PathBuf> =
        std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    modules.sort();
    for path in modules.iter().filter(|path| path.extension().is_some_and(|kind| kind == "ptx")) {
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_string();
        let row = load_module(&gpu, path).map(|(ms, kernels, registers)| json!({ "unit": "ms", "median": ms, "runs": 1, "kernels": kernels, "most registers": registers }));
        options.put_or(&json!({ "what": format!("module {name}") }), row)?;
    }
    let first = || -> Result<Value> {
        let inputs = Inputs::random(64, 100, 64, false, 3)?.to(DType::BF16)?.on(&gpu)?;
        let loss = MarginLoss::cosine_ce(100, 16.0)?;
        let start = Instant::now();
        loss.loss_and_grads(&inputs.x, &inputs.w, &inputs.y, None)?;
        gpu.synchronize()?;
        Ok(json!({ "unit": "ms", "median": 1e3 * start.elapsed().as_secs_f64(), "runs": 1 }))
    };
    let row = first();
    options.put_or(&json!({ "what": "first loss_and_grads of a process" }), row)
}

/// Milliseconds, kernels, and the most registers that one of them has.
fn load_module(gpu: &Device, path: &Path) -> Result<(f64, usize, i32)> {
    let text = std::fs::read_to_string(path)?;
    let kernels: Vec<&str> = text.lines().filter_map(|line| line.split_once(".entry ")?.1.split('(').next()).collect();
    let name = format!("probe of {}", path.display());
    let start = Instant::now();
    let mut most = 0;
    for kernel in &kernels {
        let function = gpu.as_cuda_device()?.get_or_load_custom_func(kernel, &name, &text)?;
        most = most.max(function.get_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?);
    }
    Ok((1e3 * start.elapsed().as_secs_f64(), kernels.len(), most))
}

/// What the device can do at most: the measures of everything after.
fn ceilings(options: &mut Options) -> Result<()> {
    let gpu = options.gpu.clone();
    let cuda = gpu.as_cuda_device()?;
    let stream = cuda.cuda_stream();
    let (runs, reduced) = (if options.reduced { 2 } else { 15 }, options.reduced);

    for (what, bytes) in
        [("copy in memory", if reduced { 1 << 16 } else { 1 << 30 }), ("copy in the second-level cache", 8 << 20)]
    {
        if reduced && bytes > 1 << 20 {
            continue;
        }
        let copy = || -> Result<Value> {
            let from = cuda.alloc_zeros::<u8>(bytes)?;
            let mut to = cuda.alloc_zeros::<u8>(bytes)?;
            let count = if reduced { 1 } else { ((8usize << 30) / bytes).clamp(4, 200) as u64 };
            measured(runs, || {
                let ms = milliseconds(&gpu, count, || cuda.memcpy_dtod(&from, &mut to))?;
                Ok(2.0 * bytes as f64 / ms / 1e6)
            })
        };
        let row = copy();
        options.put_or(&json!({ "what": what, "unit": "GB/s, read and written", "bytes": bytes }), row)?;
    }

    let length: usize = if reduced { 32 } else { 8192 };
    for (name, dtype, tf32) in [
        ("bf16", DType::BF16, false),
        ("f16", DType::F16, false),
        ("tf32", DType::F32, true),
        ("f32", DType::F32, false),
    ] {
        let product = || -> Result<Value> {
            candle_core::cuda::set_gemm_reduced_precision_f32(tf32);
            let a = Tensor::randn(0f32, 1., (length, length), &gpu)?.to_dtype(dtype)?;
            a.matmul(&a)?;
            measured(if name == "f32" { runs.min(5) } else { runs }, || {
                let ms = milliseconds(&gpu, if reduced { 1 } else { 3 }, || a.matmul(&a).map(drop))?;
                Ok(2.0 * (length as f64).powi(3) / ms / 1e9)
            })
        };
        let row = product();
        candle_core::cuda::set_gemm_reduced_precision_f32(false);
        options.put_or(&json!({ "what": format!("cuBLAS product {length}³, {name}"), "unit": "TFLOP/s" }), row)?;
    }

    let probe = options.module("probe")?;
    let empty = || cuda.get_or_load_custom_func("probe_empty", "probe", &probe);
    let launch = |blocks: u32| LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
    let queued = || -> Result<Value> {
        let function = empty()?;
        let count = if reduced { 10 } else { 2000 };
        measured(runs, || {
            let ms = milliseconds(&gpu, count, || {
                // SAFETY: a kernel without parameters, which does nothing.
                unsafe { function.builder().launch(launch(132)) }.map(drop).map_err(candle_core::Error::wrap)
            })?;
            Ok(1e3 * ms)
        })
    };
    let row = queued();
    options.put_or(&json!({ "what": "empty launch, one after the other", "unit": "µs" }), row)?;
    let alone = || -> Result<Value> {
        let function = empty()?;
        measured(if reduced { 2 } else { 200 }, || {
            let start = Instant::now();
            // SAFETY: as above.
            unsafe { function.builder().launch(launch(132)) }?;
            stream.synchronize()?;
            Ok(1e6 * start.elapsed().as_secs_f64())
        })
    };
    let row = alone();
    options.put_or(&json!({ "what": "empty launch, waited for by the host", "unit": "µs" }), row)?;

    let multiprocessors = options.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
    for each in [1, 2] {
        let blocks = if reduced { 2 } else { each * multiprocessors };
        let barrier = || -> Result<Value> {
            let function = cuda.get_or_load_custom_func("probe_barriers", "probe", &probe)?;
            let count: i32 = if reduced { 4 } else { 1000 };
            let time = |barriers: i32| {
                milliseconds(&gpu, 1, || {
                    let mut builder = function.builder();
                    builder.arg(&barriers);
                    // SAFETY: the parameter is the kernel's one, and the grid of small blocks is resident.
                    unsafe { builder.launch_cooperative(launch(blocks)) }.map(drop).map_err(candle_core::Error::wrap)
                })
            };
            time(count)?;
            measured(runs, || Ok(1e3 * (time(count)? - time(0)?) / f64::from(count)))
        };
        let row = barrier();
        options.put_or(&json!({ "what": format!("barrier of a grid, {each} blocks of 128 threads a multiprocessor"), "blocks": blocks, "unit": "µs" }), row)?;
    }
    Ok(())
}

const TYPES: [(DType, DType); 6] = [
    (DType::BF16, DType::BF16),
    (DType::F32, DType::F32),
    (DType::F16, DType::F16),
    (DType::F64, DType::F64),
    (DType::BF16, DType::F32),
    (DType::F16, DType::F32),
];

/// The loss of the table that has every option at once, by the kernels that a call takes by itself, by the streaming ones, and by these in chunks.
fn ways(c: usize, name: &str) -> Result<Vec<(&'static str, MarginLoss)>> {
    let (_, builder) = builders(c).into_iter().find(|(other, _)| *other == name).ok_or("no such loss")?;
    let of = |streaming, budget: usize| builder.clone().streaming(streaming).workspace_bytes(budget << 20).build();
    Ok(vec![("as it comes", of(false, 16)?), ("streaming", of(true, 16)?), ("streaming, in 1 MiB", of(true, 1)?)])
}

const ALL_OPTIONS: &str = "per class, weights, prior, smoothing, ignore, weighted mean";

fn same_bits(a: &Outcome, b: &Outcome) -> bool {
    let bits = |out: &Outcome| -> Vec<Vec<u64>> {
        out.parts().map(|(_, values)| values.iter().map(|v| v.to_bits()).collect()).into()
    };
    bits(a) == bits(b) && a.predicted == b.predicted && a.hard == b.hard
}

/// The largest error of a row of a part, in units of what is allowed there: of the row's size, or of a tenth of the whole's where it is larger.
fn worst(found: &Outcome, expected: &Outcome, (x, w): (DType, DType), d: usize) -> (f64, &'static str) {
    let mut worst = (0f64, "");
    for ((part, found), (_, expected)) in found.parts().into_iter().zip(expected.parts()) {
        let gradient = matches!(part, "dX" | "dW");
        let rounding = match if part == "dW" { w } else { x } {
            DType::F64 => 1e-11,
            DType::BF16 if gradient => 4.0 * epsilon(DType::BF16),
            DType::F16 if gradient => 4.0 * epsilon(DType::F16),
            _ => 1e-4,
        };
        let (width, whole) = (if gradient { d } else { found.len().max(1) }, size(expected));
        for (a, b) in found.chunks(width).zip(expected.chunks(width)) {
            let error = distance(a, b) / (rounding * size(b).max((0.1 * whole).max(1e-12)));
            if error > worst.0 {
                worst = (error, part);
            }
        }
    }
    worst
}

/// Every kernel against the CPU path on the same rounded inputs, at even and odd sizes, the largest that a training step has among them; the same
/// bits when it is run again; and rows at their centre and opposite to it.
fn check(options: &mut Options) -> Result<()> {
    let gpu = options.gpu.clone();
    let sizes: &[Size] = if options.reduced {
        &[(1, 1, 1), (9, 67, 33)]
    } else {
        &[
            (1, 1, 1),
            (64, 100, 64),
            (65, 63, 65),
            (33, 257, 129),
            (256, 1000, 2048),
            (255, 1023, 511),
            (129, 4001, 96),
            (1, 20_000, 100),
            (2049, 10, 64),
            (300, 8142, 130),
            (1000, 3001, 72),
        ]
    };
    for &(n, c, d) in sizes {
        for (x, w) in TYPES {
            let inputs = Inputs::random(n, c, d, true, 36)?.with_sample_weights(8)?;
            let inputs = Inputs { x: inputs.x.to_dtype(x)?, w: inputs.w.to_dtype(w)?, ..inputs };
            let there = inputs.on(&gpu)?;
            let mut expected = None;
            for (way, loss) in ways(c, ALL_OPTIONS)? {
                let mut compared = || -> Result<Value> {
                    if expected.is_none() {
                        expected = Some(off_tape(&loss, &inputs.on(&Device::Cpu)?)?);
                    }
                    let expected = expected.as_ref().ok_or("expected")?;
                    let found = off_tape(&loss, &there)?;
                    let (error, part) = worst(&found, expected, (x, w), d);
                    let other = found.predicted.iter().zip(&expected.predicted).filter(|(a, b)| a != b).count();
                    let flips = found.hard.iter().zip(&expected.hard).filter(|(a, b)| a != b).count();
                    let repeats = (0..if n * c < 100_000 { 3 } else { 1 })
                        .map(|_| Ok(same_bits(&off_tape(&loss, &there)?, &found)))
                        .collect::<Result<Vec<_>>>()?;
                    let mut wrong = Vec::new();
                    // Two cosines a rounding apart may change places; more rows than one in a thousand are no such accident.
                    if error > 1.0 || flips > 0 || other * 1000 > n.max(1000) {
                        wrong.push(format!(
                            "{part} is off by {error:.2} times what is allowed, {other} predictions and {flips} hard flags differ"
                        ));
                    }
                    if repeats.contains(&false) {
                        wrong.push("other bits when it is run again".to_string());
                    }
                    let mut row = json!({ "error": error, "of": part, "predictions that differ": other, "bits again": !repeats.contains(&false) });
                    if !wrong.is_empty() {
                        row["failed"] = json!(wrong.join("; "));
                    }
                    Ok(row)
                };
                let row = compared();
                options.put_or(&json!({ "size": [n, c, d], "type": types(x, w), "way": way }), row)?;
            }
        }
    }
    for (x, w) in TYPES {
        for name in ["DBM-BS", "ArcFace", "SphereFace 4", "CosFace"] {
            let row = poles(&gpu, (x, w), name);
            options.put_or(
                &json!({ "size": [48, 70, 64], "type": types(x, w), "way": format!("at the poles, {name}") }),
                row,
            )?;
        }
    }
    Ok(())
}

fn types(x: DType, w: DType) -> String {
    if x == w { x.as_str().into() } else { format!("{}, {} centres", x.as_str(), w.as_str()) }
}

/// Rows that are a power of two times their centre, or its opposite: ψ′ is of the order of thousands there, and what it multiplies nearly 0. A cosine
/// that is off by ε is an angle off by √ε: some of that is allowed, and the rounding of what is given, of the largest element.
fn poles(gpu: &Device, (x_type, w_type): (DType, DType), name: &str) -> Result<Value> {
    let (n, c, d) = (48, 70, 64);
    let inputs = Inputs::random(n, c, d, false, 51)?.on(&Device::Cpu)?;
    let y: Vec<u32> = (0..n as u32).map(|i| i * 7 % c as u32).collect();
    let scales: Vec<f64> = (0..n).map(|i| [1.0, -1.0, 4.0, -0.125][i % 4]).collect();
    let w = inputs.w.to_dtype(x_type)?;
    let x = w.to_dtype(DType::F64)?.index_select(&Tensor::new(&y[..], &Device::Cpu)?, 0)?;
    let x = x.broadcast_mul(&Tensor::from_vec(scales, (n, 1), &Device::Cpu)?)?.to_dtype(x_type)?;
    let y = Tensor::new(&y[..], &Device::Cpu)?;
    let inputs = Inputs { x, w: w.to_dtype(w_type)?, y, sample_weights: None, ..inputs };
    let mut row = json!({});
    let mut wrong = Vec::new();
    for (way, loss) in ways(c, name)? {
        let (found, expected) = (fused(&loss, &inputs.on(gpu)?, None)?, fused(&loss, &inputs, None)?);
        let mut most = 0f64;
        for ((part, a), (_, b)) in found.parts().into_iter().zip(expected.parts()) {
            if a.iter().any(|v| !v.is_finite()) {
                wrong.push(format!("{way}: {part} is not finite"));
            }
            let error = distance(a, b) / size(b).max(1e-30);
            let (of_sums, given) = match (part, x_type, w_type) {
                (_, DType::F64, _) => (DType::F64, DType::F64),
                ("dX", of, _) | ("dW", _, of) => (DType::F32, of),
                _ => (DType::F32, DType::F32),
            };
            if error > 30.0 * epsilon(of_sums).sqrt() + 4.0 * epsilon(given) {
                wrong.push(format!("{way}: {part} is off by {error:.1e}"));
            }
            if matches!(part, "dX" | "dW") {
                most = most.max(error);
            }
        }
        row[format!("{way}: gradients off by")] = json!(most);
    }
    if !wrong.is_empty() {
        row["failed"] = json!(wrong.join("; "));
    }
    Ok(row)
}

/// Every kernel at small sizes, for a checker that makes each access take long: nothing is compared.
fn sanitize(options: &mut Options) -> Result<()> {
    let gpu = options.gpu.clone();
    let sizes: &[Size] = if options.reduced {
        &[(9, 20, 17)]
    } else {
        &[(65, 63, 65), (40, 100, 20), (70, 130, 33), (5, 1500, 20), (130, 200, 200)]
    };
    for &(n, c, d) in sizes {
        for (x, w) in TYPES {
            let inputs = Inputs::random(n, c, d, true, 36)?.with_sample_weights(8)?;
            let inputs = Inputs { x: inputs.x.to_dtype(x)?, w: inputs.w.to_dtype(w)?, ..inputs }.on(&gpu)?;
            for (way, loss) in ways(c, ALL_OPTIONS)? {
                let row = (|| {
                    off_tape(&loss, &inputs)?;
                    fused(&loss, &inputs, Some(&[0.5]))?;
                    Ok(json!({}))
                })();
                options.put_or(&json!({ "size": [n, c, d], "type": types(x, w), "way": way }), row)?;
            }
        }
    }
    Ok(())
}

/// Every way of the benchmark, checked and timed in rounds, all ways one after the other in each.
fn times(options: &mut Options) -> Result<()> {
    let gpu = options.gpu.clone();
    let mut sizes = SIZES.to_vec();
    sizes.push((512, 100_000, 512));
    // What is worth knowing first.
    sizes.swap(0, 3);
    let dtypes = [DType::BF16, DType::F32, DType::F16];
    let (sizes, dtypes, rounds, turn) =
        if options.reduced { (&SIZES[..1], &dtypes[..1], 1, 0.0) } else { (&sizes[..], &dtypes[..], 15, 10.0) };
    for &dtype in dtypes {
        for &(n, c, d) in sizes {
            let what = |way: &str| json!({ "size": [n, c, d], "type": dtype.as_str(), "way": way, "unit": "µs" });
            let case = match Case::new((n, c, d), dtype, &gpu) {
                Ok(case) => case,
                Err(error) => {
                    options.put_or(&what("all"), Err(error))?;
                    continue;
                }
            };
            let checked = case.check();
            if let Err(error) = checked {
                options.put_or(&what("check"), Err(error))?;
            }
            let mut counts = Vec::new();
            for way in Way::ALL {
                let count = (|| {
                    case.time(way, 3)?;
                    Ok((turn / case.time(way, 3)?.max(1e-3)).clamp(1.0, 10_000.0) as u64)
                })();
                match count {
                    Ok(count) => counts.push((way, count, Vec::new())),
                    Err(error) => options.put_or(&what(way.name()), Err(error))?,
                }
            }
            for _ in 0..rounds {
                for (way, count, times) in &mut counts {
                    times.push(1e3 * case.time(*way, *count)?);
                }
            }
            for (way, _, times) in counts {
                let mut row = spread(times);
                if let Some(micros) = row["median"].as_f64() {
                    row["GB/s"] =
                        json!(case.compulsory_bytes() * if way.products() == 1 { 0.5 } else { 1.0 } / micros / 1e3);
                    row["TFLOP/s"] = json!(case.flop(way) / micros / 1e6);
                }
                options.put_or(&what(way.name()), Ok(row))?;
            }
        }
    }
    Ok(())
}

/// One step for a profiler, after one that loads what there is to load.
fn step(options: &mut Options) -> Result<()> {
    let case = Case::new(options.size, options.dtype, &options.gpu)?;
    let way = if options.streaming { Way::Streaming } else { Way::Step };
    case.run(way)?;
    options.gpu.synchronize()?;
    let (n, c, d) = options.size;
    options.put(&json!({ "size": [n, c, d], "type": options.dtype.as_str(), "way": way.name() }))
}

/// A step captured into a graph and replayed on other inputs: the same bits, and what a replay takes beside a call.
fn graph(options: &mut Options) -> Result<()> {
    let gpu = options.gpu.clone();
    let sizes: &[Size] =
        if options.reduced { &[(9, 12, 7)] } else { &[SIZES[0], SIZES[1], SIZES[2], SIZES[3], (70, 130, 33)] };
    for &size in sizes {
        for (dtype, streaming) in [(DType::BF16, false), (DType::BF16, true), (DType::F32, false)] {
            let row = replayed(&gpu, size, dtype, streaming, options.reduced);
            let way = if streaming { Way::Streaming } else { Way::Step }.name();
            let (n, c, d) = size;
            options.put_or(&json!({ "size": [n, c, d], "type": dtype.as_str(), "way": way, "unit": "µs" }), row)?;
        }
    }
    Ok(())
}

fn replayed(gpu: &Device, (n, c, d): Size, dtype: DType, streaming: bool, reduced: bool) -> Result<Value> {
    let stream = gpu.as_cuda_device()?.cuda_stream();
    let loss = MarginLoss::builder(c).streaming(streaming).check_labels(false).build()?;
    let new = |rows| Tensor::randn(0f32, 1., (rows, d), gpu)?.to_dtype(dtype);
    let label = |step: usize| Tensor::from_vec((0..n).map(|i| (i * step % c) as u32).collect::<Vec<_>>(), n, gpu);
    let (x, w, y) = (Var::from_tensor(&new(n)?)?, new(c)?, Var::from_tensor(&label(7919)?)?);
    let (dx, dw) = (x.zeros_like()?, w.zeros_like()?);
    let step = || loss.loss_and_grads_into(&x, &w, &y, None, &dx, &dw);
    step()?; // tables and kernels come to the device outside the graph
    gpu.synchronize()?;
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
    let out = step();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("an empty graph")?;
    let out = out?;
    let flat = crate::common::flat;
    for other in [3, 5] {
        x.set(&new(n)?)?;
        y.set(&label(other)?)?;
        graph.launch()?;
        let found = [flat(&out.loss), flat(&dx), flat(&dw)];
        let (expected, dx, dw) = loss.loss_and_grads(&x, &w, &y, None)?;
        if found != [flat(&expected.loss), flat(&dx), flat(&dw)] {
            return Err("a replay has other bits than a call".into());
        }
    }
    let (count, runs) = if reduced { (1, 1) } else { (200, 9) };
    let called = measured(runs, || Ok(1e3 * milliseconds(gpu, count, || step().map(drop))?))?;
    let mut row =
        measured(runs, || Ok(1e3 * milliseconds(gpu, count, || graph.launch().map_err(candle_core::Error::wrap))?))?;
    row["of a call"] = called["median"].clone();
    Ok(row)
}

/// Offsets beyond 32 bits: W of more than 4 GiB, and N·C beyond 2³²; and a million classes, timed. Against the CPU path.
fn large(options: &mut Options) -> Result<()> {
    let gpu = options.gpu.clone();
    let cases: &[(&str, Size, DType)] = if options.reduced {
        &[("as W of 4.5 GB, reduced to a thousandth of a thousandth", (3, 300, 16), DType::BF16)]
    } else {
        &[
            ("W of 4.5 GB", (64, 2_200_000, 1024), DType::BF16),
            ("N·C = 4.4·10⁹", (4200, 1_050_000, 16), DType::BF16),
            ("a million classes", (1024, 1_000_000, 512), DType::BF16),
            ("W of 4.9 GB", (64, 600_000, 2048), DType::F32),
        ]
    };
    for &(what, (n, c, d), dtype) in cases {
        let row = compared_where_it_is(&gpu, (n, c, d), dtype, options.reduced);
        options.put_or(&json!({ "what": what, "size": [n, c, d], "type": dtype.as_str(), "unit": "µs" }), row)?;
    }
    Ok(())
}

fn compared_where_it_is(gpu: &Device, (n, c, d): Size, dtype: DType, reduced: bool) -> Result<Value> {
    // By ranges of rows: Candle's own kernels count elements in 32 bits.
    let ranges = |rows: usize| {
        let each = ((1 << 26) / d).max(1);
        (0..rows.div_ceil(each)).map(move |i| (i * each, each.min(rows - i * each)))
    };
    let new = |rows: usize| -> Result<Tensor> {
        let whole = Tensor::zeros((rows, d), dtype, gpu)?;
        for (from, count) in ranges(rows) {
            whole.slice_set(&Tensor::randn(0f32, 1., (count, d), gpu)?.to_dtype(dtype)?, 0, from)?;
        }
        Ok(whole)
    };
    let (x, w) = (new(n)?, new(c)?);
    // The first and the last class, and many between.
    let labels: Vec<u32> = (0..n).map(|i| if i % 3 == 0 { c - 1 - i % c } else { i * 7919 % c } as u32).collect();
    let y = Tensor::from_vec(labels, n, gpu)?;
    let loss = MarginLoss::builder(c)
        .prior(Prior::LogPrior((0..c).map(|j| -((j % 11) as f64)).collect()))
        .check_labels(false)
        .build()?;
    let (dx, dw) = (x.zeros_like()?, w.zeros_like()?);
    let step = || loss.loss_and_grads_into(&x, &w, &y, None, &dx, &dw);
    let found = step()?;
    let cpu = Device::Cpu;
    let (expected, expected_dx, expected_dw) =
        loss.loss_and_grads(&x.to_device(&cpu)?, &w.to_device(&cpu)?, &y.to_device(&cpu)?, None)?;
    let mut errors = serde_json::Map::new();
    let mut wrong = Vec::new();
    let mut compare = |part: &str, allowed: f64, found: &Tensor, expected: &Tensor| -> Result<()> {
        let (mut off, mut most) = (0f64, 0f64);
        let rows = found.dim(0)?;
        for (from, count) in ranges(rows) {
            // A copy of the range: what goes to a device goes with all of its storage.
            let part = |t: &Tensor| -> candle_core::Result<Tensor> {
                t.narrow(0, from, count)?.force_contiguous()?.to_device(gpu)?.to_dtype(DType::F32)?.reshape((count, ()))
            };
            let (off_by, b) = ((part(found)? - part(expected)?)?, part(expected)?);
            let largest = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.abs()?.max(1)?.max(0)?.to_scalar::<f32>()?)) };
            off = off.max(largest(&off_by)?);
            most = most.max(largest(&b)?);
            // A maximum passes over NaN.
            if !off_by.sum(1)?.sum(0)?.to_scalar::<f32>()?.is_finite() {
                off = f64::INFINITY;
            }
        }
        errors.insert(format!("{part} off by"), json!(off / most));
        if !(off <= allowed * most && most > 0.0) {
            wrong.push(format!("{part} is off by {off:.1e} of {most:.1e}"));
        }
        Ok(())
    };
    let rounding = 4.0 * epsilon(dtype).max(2e-5);
    compare("loss", 1e-4, &found.per_sample, &expected.per_sample)?;
    compare("dX", rounding, &dx, &expected_dx)?;
    compare("dW", rounding, &dw, &expected_dw)?;
    let mut row = measured(if reduced { 1 } else { 7 }, || Ok(1e3 * milliseconds(gpu, 1, || step().map(drop))?))?;
    for (name, error) in errors {
        row[name] = error;
    }
    if !wrong.is_empty() {
        row["failed"] = json!(wrong.join("; "));
    }
    Ok(row)
}
