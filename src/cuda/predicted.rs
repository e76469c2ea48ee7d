//! The times that a step is predicted to take on an H100: what the plans make of a problem and what the emulated device has counted of it, through a
//! model that states its constants. Nothing here was measured on a GPU. The table is `kernels/predicted.md`; `MARGIN_LOSS_RECORD=1` writes it anew.
//!
//! A phase takes as long as its slowest resource: issue slots, products and shared memory of the multiprocessor that has most of them, the
//! second-level cache, memory. Its work is dealt to blocks as the kernels deal it.

use std::fmt::Write;

use candle_core::DType;

use super::kind::{Kind, Products};
use super::plan::{Alone, Backward, Chunk, Forward, Fused, Limits, Sizes};
use crate::options::DEFAULT_CUDA_WORKSPACE_BYTES;

/// One H100 SXM. Bandwidths are what is reached, not what is printed on it.
const MULTIPROCESSORS: usize = 132;
const CLOCK: f64 = 1.755e9; // Hz, under load
const MEMORY: f64 = 3.0e12; // bytes/s
const CACHE: f64 = 5.5e12; // bytes/s of the second-level cache
const CACHE_PORT: f64 = 64.0; // bytes a clock into a multiprocessor
const CACHED: f64 = 30e6; // bytes of W that are still in the cache when they are read again
const TENSOR: f64 = 2048.0 * 0.62; // bf16 multiply-adds a clock and multiprocessor by mma.sync, which reaches 62 % of the peak
const FMA: f64 = 128.0; // f32 multiply-adds a clock and multiprocessor
const LAUNCH: f64 = 5e-6; // from the call to an empty kernel's end
const NEXT_LAUNCH: f64 = 2e-6; // of a further one that is queued already
const BARRIER: f64 = 1.8e-6; // of a grid
const FILL: f64 = 900.0; // clocks from a tile's first copy to its first product
const ROW_END: f64 = 5000.0; // clocks of finish_row, one lane's work in f64
/// Instructions a clock and scheduler by the blocks on a multiprocessor, each of which has one warp a scheduler: on tensor cores, of multiply-adds
const ISSUED: [[f64; 4]; 2] = [[0.30, 0.52, 0.66, 0.75], [0.45, 0.70, 0.80, 0.85]];
/// What cuBLAS reaches, FLOP/s: bf16, f32
const CUBLAS: [f64; 2] = [700e12, 48e12];
/// Peaks that the floor takes, FLOP/s: bf16 as a long product sustains it; f32's multiply-adds at the clock above
const PEAK: [f64; 2] = [800e12, 2.0 * FMA * MULTIPROCESSORS as f64 * CLOCK];

const H100: Limits = Limits {
    multiprocessors: MULTIPROCESSORS,
    shared_a_block: 227 << 10,
    shared_a_multiprocessor: 228 << 10,
    cooperative: true,
};

const SIZES: [[usize; 3]; 8] = [
    [64, 100, 64],
    [128, 1000, 512],
    [256, 1000, 512],
    [256, 1000, 2048],
    [256, 8142, 2048],
    [1024, 10_000, 512],
    [512, 100_000, 512],
    [1024, 1_000_000, 512],
];

/// What parts of the kernels take of a warp, in instructions of PTX: fitted to the emulated device's counts of single launches, and held to those of
/// figures.md by the test below.
struct Units {
    /// k of a step, and a step of the logits with their squares, of the logits again, of a contraction
    depth: usize,
    logits: f64,
    again: f64,
    contract: f64,
    /// A tile's statistics, its g, the end of a tile of a gradient, a part of a split sum
    statistics: f64,
    gradient: f64,
    end: f64,
    part: f64,
    /// Wavefronts of shared memory: a step of the logits, of the others
    wavefronts: [f64; 2],
    /// What the squares add to the logits' products
    squares: f64,
}

const WIDE: Units = Units {
    depth: 64,
    logits: 339.0,
    again: 260.0,
    contract: 281.0,
    statistics: 4201.0,
    gradient: 4628.0,
    end: 1596.0,
    part: 356.0,
    wavefronts: [1024.0, 768.0],
    squares: 0.25,
};
const NARROW: Units = Units {
    depth: 64,
    logits: 143.0,
    again: 108.0,
    contract: 117.0,
    statistics: 1842.0,
    gradient: 1606.0,
    end: 753.0,
    part: 300.0,
    wavefronts: [512.0, 384.0],
    squares: 0.5,
};
const MULTIPLY_ADDS: Units = Units {
    depth: 16,
    logits: 650.0,
    again: 640.0,
    contract: 679.0,
    statistics: 2334.0,
    gradient: 1100.0,
    end: 725.0,
    part: 235.0,
    wavefronts: [448.0, 448.0],
    squares: 0.03,
};

/// What a job, or all of a multiprocessor's, takes: a warp's instructions, clocks of products and of shared memory, bytes; how many.
#[derive(Clone, Copy, Default)]
struct Work {
    instructions: f64,
    products: f64,
    wavefronts: f64,
    bytes: f64,
    jobs: f64,
}

impl Work {
    fn add(&mut self, other: &Work) {
        self.instructions += other.instructions;
        self.products += other.products;
        self.wavefronts += other.wavefronts;
        self.bytes += other.bytes;
        self.jobs += other.jobs;
    }

    fn times(self, count: f64) -> Work {
        Work {
            instructions: self.instructions * count,
            products: self.products * count,
            wavefronts: self.wavefronts * count,
            bytes: self.bytes * count,
            jobs: self.jobs * count,
        }
    }
}

/// A problem on its way through the model.
struct Model {
    kind: Kind,
    sizes: Sizes,
    units: &'static Units,
    /// g is in shared memory
    on_chip: bool,
    /// What all phases have added up to
    seconds: f64,
    work: Work,
    launches: usize,
    path: String,
    /// Each phase's seconds and what binds it
    phases: Vec<(&'static str, f64, &'static str)>,
}

impl Model {
    fn of(ncd: [usize; 3], dtype: DType, streaming: bool) -> Self {
        Self::with(Kind::choose(dtype, dtype, ncd, streaming, &H100, DEFAULT_CUDA_WORKSPACE_BYTES), ncd, streaming)
    }

    /// By the tiles that a problem on tensor cores does not take.
    fn with_other_tiles(ncd: [usize; 3], dtype: DType) -> Option<Self> {
        let kind = Kind::choose(dtype, dtype, ncd, false, &H100, DEFAULT_CUDA_WORKSPACE_BYTES);
        let by = match kind.by {
            Products::Wide => Products::TensorCores,
            Products::TensorCores => Products::Wide,
            _ => return None,
        };
        Some(Self::with(Kind { by, ..kind }, ncd, false))
    }

    fn with(kind: Kind, ncd: [usize; 3], streaming: bool) -> Self {
        let units = match kind.by {
            Products::Wide => &WIDE,
            Products::TensorCores => &NARROW,
            _ => &MULTIPLY_ADDS,
        };
        let mut model = Self {
            kind,
            sizes: kind.problem_sizes(ncd),
            units,
            on_chip: false,
            seconds: 0.0,
            work: Work::default(),
            launches: 0,
            path: String::new(),
            phases: Vec::new(),
        };
        let fused = Fused::new(&model.sizes, &H100, &kind.sizes(), DEFAULT_CUDA_WORKSPACE_BYTES, true, true);
        match fused.filter(|_| !streaming) {
            Some(plan) => model.fused_step(&plan),
            None => model.streaming(),
        }
        model
    }

    fn ncd(&self) -> [f64; 3] {
        [self.sizes.n as f64, self.sizes.c as f64, self.sizes.d as f64]
    }

    fn on_tensor_cores(&self) -> bool {
        self.kind.by != Products::Fma
    }

    /// Products of a tile with `depth` k; `read` bytes of its operands.
    fn product(&self, tile: usize, depth: usize, step: f64, wavefronts: f64, squares: f64, read: f64) -> Work {
        let steps = depth.div_ceil(self.units.depth) as f64;
        let rate = if self.on_tensor_cores() { TENSOR } else { FMA };
        Work {
            instructions: steps * step,
            products: steps * (tile * tile * self.units.depth) as f64 / rate * (1.0 + squares),
            wavefronts: steps * wavefronts,
            bytes: read,
            jobs: 1.0,
        }
    }

    /// A tile of cosines: with squares and statistics, or once more for g.
    fn cosines(&self, again: bool) -> Work {
        let Sizes { tile, d, x, .. } = self.sizes;
        let [n, c, _] = self.ncd();
        let tiles = (self.sizes.n.div_ceil(tile) * self.sizes.c.div_ceil(tile)) as f64;
        // Rows and classes that are not there are not read.
        let sides = n * self.sizes.c.div_ceil(tile) as f64 + c * self.sizes.n.div_ceil(tile) as f64;
        let read = sides * (d * x) as f64 / tiles;
        let units = self.units;
        if again {
            self.product(tile, d, units.again, units.wavefronts[1], 0.0, read)
        } else {
            let mut work = self.product(tile, d, units.logits, units.wavefronts[0], units.squares, read);
            work.instructions += units.statistics;
            work
        }
    }

    /// Bytes of an element of g in memory.
    fn g(&self) -> usize {
        if self.on_chip { 0 } else { self.sizes.g }
    }

    fn gradient(&self) -> Work {
        let tile = self.sizes.tile;
        Work { instructions: self.units.gradient, bytes: (tile * tile * self.g()) as f64, jobs: 1.0, ..Work::default() }
    }

    /// The jobs of a chunk's contraction in the order of their blocks: dX's, dW's, and how many of each.
    fn contraction(&self, chunk: &Chunk) -> [(Work, usize); 2] {
        let Sizes { contract_tile: tile, d, x, sum, .. } = self.sizes;
        let g = self.g();
        let d_tiles = d.div_ceil(tile);
        let (rows, classes) = (chunk.rows.len(), chunk.classes.len());
        let job = |m: usize, depth: usize, splits: usize, sums: bool| {
            let depth = depth.div_ceil(splits);
            let (m, across) = (m as f64 / m.div_ceil(tile) as f64, d as f64 / d_tiles as f64);
            let read = depth as f64 * (m * g as f64 + across * x as f64);
            let units = self.units;
            let mut work = self.product(tile, depth, units.contract, units.wavefronts[1], 0.0, read);
            let end = m * across * if sums { 2.0 * sum as f64 } else { 2.0 * x as f64 };
            // Its own row and the gradient's, once for all parts; a part is written and read.
            work.bytes += end / splits as f64;
            work.instructions += units.end / splits as f64;
            if splits > 1 {
                work.bytes += 2.0 * (tile * tile * sum) as f64;
                work.instructions += units.part;
            }
            work
        };
        let dx_jobs = rows.div_ceil(tile) * d_tiles * chunk.dx_splits;
        let dw_jobs = classes.div_ceil(tile) * d_tiles * chunk.dw_splits;
        [
            (job(rows, classes, chunk.dx_splits, chunk.memory.dx_sums > 0), if chunk.dx { dx_jobs } else { 0 }),
            (job(classes, rows, chunk.dw_splits, chunk.memory.dw_sums > 0), if chunk.dw { dw_jobs } else { 0 }),
        ]
    }

    /// A phase whose jobs go one by one to `places` blocks, `resident` of them on a multiprocessor, and take `memory` bytes from memory.
    fn phase(&mut self, name: &'static str, jobs: &[(Work, usize)], places: usize, resident: usize, memory: f64) {
        let places = places.max(1);
        let mut of = vec![Work::default(); places.min(MULTIPROCESSORS)];
        let (mut all, mut at, count) = (Work::default(), 0, jobs.iter().map(|job| job.1).sum::<usize>());
        for (job, times) in jobs {
            all.add(&job.times(*times as f64));
            for _ in 0..*times {
                let here = at % places % MULTIPROCESSORS;
                of[here].add(job);
                at += 1;
            }
        }
        let beside = count.min(places).div_ceil(MULTIPROCESSORS).clamp(1, resident.max(1));
        let issued = ISSUED[usize::from(!self.on_tensor_cores())][beside.min(4) - 1];
        let most = |of_work: fn(&Work) -> f64| of.iter().map(of_work).fold(0.0, f64::max);
        let bounds = [
            ("issue", most(|w| w.instructions) / issued / CLOCK),
            ("products", most(|w| w.products) / CLOCK),
            ("shared memory", most(|w| w.wavefronts) / CLOCK),
            ("cache", (all.bytes / CACHE).max(most(|w| w.bytes) / CACHE_PORT / CLOCK)),
            ("memory", memory / MEMORY),
        ];
        let (binds, seconds) = bounds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("", 0.0));
        // One block's first copies are hidden by those beside it.
        let fill = FILL * most(|w| w.jobs) / (beside * beside) as f64 / CLOCK;
        self.work.add(&all);
        self.add(name, seconds + if name == "g" { 0.0 } else { fill }, binds);
    }

    fn add(&mut self, name: &'static str, seconds: f64, binds: &'static str) {
        self.seconds += seconds;
        match self.phases.iter_mut().find(|phase| phase.0 == name) {
            Some(phase) => phase.1 += seconds,
            None => self.phases.push((name, seconds, binds)),
        }
    }

    fn launch(&mut self) {
        self.add("launch", if self.launches == 0 { LAUNCH } else { NEXT_LAUNCH }, "launch");
        self.launches += 1;
    }

    /// Bytes of X and W, and of W read again once it is too large to stay in the cache.
    fn tensors(&self) -> (f64, f64) {
        let [n, c, d] = self.ncd();
        let (x, w) = (n * d * self.sizes.x as f64, c * d * self.sizes.w as f64);
        (x + w, if w > CACHED { w } else { 0.0 })
    }

    fn fused_step(&mut self, plan: &Fused) {
        let tiles = self.sizes.n.div_ceil(self.sizes.tile) * self.sizes.c.div_ceil(self.sizes.tile);
        let (resident, blocks) = (plan.blocks_a_multiprocessor, plan.blocks);
        let (tensors, again) = self.tensors();
        self.on_chip = plan.states.is_some();
        let barrier = if plan.states.is_some() { 0.0 } else { BARRIER };
        self.path = match (blocks, self.kind.by) {
            (1, _) => "fused_step, one block".into(),
            (_, Products::Wide) => "fused_step, tiles of 128".into(),
            _ => "fused_step".into(),
        };
        self.launch();
        let owners = blocks.min(tiles);
        self.phase("logits", &[(self.cosines(false), tiles)], owners, resident, tensors);
        let lanes = if blocks == 1 { 1 } else { self.sizes.c.div_ceil(self.sizes.tile).next_power_of_two().min(32) };
        let rows = (self.sizes.n * lanes).div_ceil(blocks * super::plan::THREADS as usize) as f64;
        self.add("rows", rows * ROW_END / CLOCK + 2.0 * barrier, "one row's end");
        self.phase("g", &[(self.gradient(), tiles)], owners, resident, 0.0);
        self.add("g", barrier, "barrier");
        let jobs = self.contraction(&plan.chunk);
        self.phase("gradients", &jobs, blocks, resident, tensors + again);
    }

    fn streaming(&mut self) {
        let (sizes, kind) = (self.sizes, self.kind.sizes());
        let (tensors, again) = self.tensors();
        let resident = if self.kind.by == Products::Wide { 2 } else { 3 }; // `BLOCKS` in kind.cuh
        let places = resident * MULTIPROCESSORS;
        let forward = Forward::new(&sizes, &H100, &kind);
        let tiles = sizes.n.div_ceil(sizes.tile) * sizes.c.div_ceil(sizes.tile);
        self.launch();
        let blocks = (forward.row_tiles * forward.splits).min(places);
        self.phase("logits", &[(self.cosines(false), tiles)], blocks, resident, tensors);
        self.add("rows", ROW_END / CLOCK, "one row's end");
        if let Some(plan) = Alone::new(&sizes, &H100, &kind, true, true) {
            self.launch();
            self.on_chip = true;
            let (mut once_more, jobs) = (self.cosines(true), self.contraction(&plan.chunk));
            once_more.add(&self.gradient());
            self.phase("g", &[(once_more, tiles)], 1, 1, 0.0);
            self.phase("gradients", &jobs, 1, 1, tensors);
        } else {
            let plan = Backward::new(&sizes, &H100, DEFAULT_CUDA_WORKSPACE_BYTES, true, true);
            for chunk in &plan.chunks {
                let share = chunk.classes.len() as f64 / sizes.c as f64;
                let mut once_more = self.cosines(true);
                once_more.add(&self.gradient());
                once_more.jobs = 1.0;
                self.launch();
                self.phase("g", &[(once_more, chunk.gradient_blocks(&sizes))], places, resident, again * share);
                self.launch();
                let jobs = self.contraction(chunk);
                self.phase("gradients", &jobs, places, resident, tensors * share);
            }
        }
        self.path = format!("streaming, {} launches", self.launches);
    }

    /// Thread instructions; 128 threads run a warp's.
    fn instructions(&self) -> f64 {
        128.0 * self.work.instructions
    }
}

/// The fastest that any program is: memory, W twice once it is larger than the cache; or products. And a launch.
fn floor([n, c, d]: [f64; 3], of: usize) -> f64 {
    let element = [2.0, 4.0][of];
    let w = c * d * element;
    let bytes = 2.0 * (n * d * element + w) + if w > 2.0 * CACHED { w } else { 0.0 };
    (bytes / MEMORY).max(6.0 * n * c * d / PEAK[of]) + LAUNCH - 1e-6
}

/// A product of cuBLAS's: tiles of 128 × 128, a last wave as full as it is; long sums are split.
fn cublas(m: f64, n: f64, k: f64, of: usize) -> f64 {
    let tiles = (m / 128.0).ceil() * (n / 128.0).ceil() / MULTIPROCESSORS as f64;
    let full = (tiles / tiles.ceil()).max((k / 4096.0).min(1.0)).max(0.15);
    let bytes = (m * k + n * k + m * n) * [2.0, 4.0][of];
    (2.0 * m * n * k / (CUBLAS[of] * full)).max(0.7 * bytes / MEMORY).max(4e-6)
}

fn three_products([n, c, d]: [f64; 3], of: usize) -> f64 {
    cublas(n, c, d, of) + cublas(n, d, c, of) + cublas(c, d, n, of)
}

/// The best of what is composed: three products, and ten elementwise kernels as torch.compile fuses them.
fn products_and_elementwise(ncd @ [n, c, d]: [f64; 3], of: usize) -> f64 {
    let e = [2.0, 4.0][of];
    let bytes = 5.0 * (n + c) * d * e + n * c * (8.0 + 2.0 * e);
    let kept = if 10.0 * n * c + c * d * e < CACHED { 0.6 } else { 1.0 };
    LAUNCH + 10.0 * NEXT_LAUNCH + bytes * kept / MEMORY + three_products(ncd, of)
}

/// As CCE's kernels do it, without normalisation and margin: logits twice, dX and dW added up in memory under locks.
fn cce([n, c, d]: [f64; 3], of: usize) -> f64 {
    let (e, rate) = ([2.0, 4.0][of], [440e12, 0.85 * CUBLAS[1]][of]);
    let full = ((n / 128.0).ceil() * (c / 128.0).ceil() / MULTIPROCESSORS as f64).clamp(0.1, 1.0);
    let bytes = 3.0 * c * d * e + 4.0 * (n / 128.0).ceil() * c * d;
    6.0 * LAUNCH + (8.0 * n * c * d / rate / full).max(bytes / MEMORY)
}

/// Candle's ops one after the other: 247 launches (figures.md), each of its own; bytes by figures.md, as a form in N·C, N·D and C·D.
fn composed(ncd @ [n, c, d]: [f64; 3], of: usize) -> f64 {
    let bytes = (14.0 * (c + n) * d + [190.0, 118.0][of] * n * c) * [2.0, 4.0][of];
    (247.0 * 4e-6_f64).max(bytes / MEMORY + 247e-6) + three_products(ncd, of)
}

fn micros(seconds: f64) -> String {
    match seconds * 1e6 {
        us if us < 99.5 => format!("{us:.1}"),
        us if us < 99_999.5 => format!("{us:.0}"),
        us => format!("{:.0} k", us / 1e3),
    }
}

const TYPES: [(DType, &str); 2] = [(DType::BF16, "bf16"), (DType::F32, "f32")];

fn table() -> String {
    let mut text = format!(
        "# A step's predicted times\n\n\
         Microseconds of loss and both gradients on one H100 SXM, by the model of `src/cuda/predicted.rs`: **no number here was measured on a GPU**; ±35 % at best.\n\
         The crate's work is that of its plans, in units that the emulated device has counted (figures.md): each phase takes as long as its slowest resource on the\n\
         multiprocessor that has most to do. Constants: {MULTIPROCESSORS} multiprocessors at {:.3} GHz; {:.1} TB/s of memory, {:.1} TB/s of second-level cache; {TENSOR:.0} multiply-adds a clock\n\
         and multiprocessor by mma.sync, {FMA:.0} in f32; {:.1} µs a launch, {:.1} µs a further one, {:.1} µs a barrier of the grid; of cuBLAS {:.0} TFLOP/s in bf16, {:.0} in f32;\n\
         {:?} instructions a clock and scheduler on tensor cores with one to four blocks a multiprocessor, {:?} on multiply-adds.\n\
         The floor is memory or products at their peak, and a launch. Rivals: three products by cuBLAS and ten fused elementwise kernels; kernels as CCE's (no\n\
         normalisation, no margin); the loss composed of Candle's ops. The host's share of a call is in none of them. Other tiles: the crate with tiles of 64 where it\n\
         takes 128, or the other way around. Where few tiles of 128 leave multiprocessors idle, those of 64 are faster by this model, though they take twice the\n\
         instructions and bytes, which are what the goals of figures.md count: not decided without a GPU.\n\n\
         | N | C | D | type | path | floor | this crate | over floor | longest phase | other tiles | three products | CCE-like | Candle's ops | |\n\
         |---:|---:|---:|---|---|---:|---:|---:|---|---:|---:|---:|---:|---|\n",
        CLOCK / 1e9,
        MEMORY / 1e12,
        CACHE / 1e12,
        LAUNCH * 1e6,
        NEXT_LAUNCH * 1e6,
        BARRIER * 1e6,
        CUBLAS[0] / 1e12,
        CUBLAS[1] / 1e12,
        ISSUED[0],
        ISSUED[1],
    );
    for (of, (dtype, name)) in TYPES.into_iter().enumerate() {
        for ncd in SIZES {
            let sizes = ncd.map(|size| size as f64);
            let model = Model::of(ncd, dtype, false);
            let (least, ours) = (floor(sizes, of), model.seconds);
            let rivals = [products_and_elementwise(sizes, of), cce(sizes, of), composed(sizes, of)];
            let longest = model.phases.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("a step has phases");
            let other = Model::with_other_tiles(ncd, dtype).map(|model| micros(model.seconds)).unwrap_or_default();
            // The goals: within twice the floor where that is 20 µs or more, and ahead of every rival.
            let mut missed = Vec::new();
            if least >= 20e-6 && ours > 2.0 * least {
                missed.push("2 × the floor");
            }
            if rivals.iter().any(|&rival| rival < ours) {
                missed.push("ahead of every rival");
            }
            let verdict = if missed.is_empty() { String::new() } else { format!("missed: {}", missed.join("; ")) };
            let [n, c, d] = ncd;
            writeln!(
                text,
                "| {n} | {c} | {d} | {name} | {} | {} | {} | {:.1} | {} {}: {} | {other} | {} | {} | {} | {verdict} |",
                model.path,
                micros(least),
                micros(ours),
                ours / least,
                longest.0,
                micros(longest.1),
                longest.2,
                micros(rivals[0]),
                micros(rivals[1]),
                micros(rivals[2]),
            )
            .expect("a string takes all");
        }
    }
    text
}

#[test]
fn the_table_is_the_models() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/predicted.md");
    let now = table();
    if std::env::var_os("MARGIN_LOSS_RECORD").is_some() {
        std::fs::write(path, now).expect("kernels/predicted.md is written");
        return;
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    for (now, then) in now.lines().zip(recorded.lines()) {
        assert_eq!(now, then, "MARGIN_LOSS_RECORD=1 writes kernels/predicted.md anew");
    }
    assert_eq!(now.lines().count(), recorded.lines().count(), "kernels/predicted.md is whole");
}

/// What the kit for a machine with a GPU reports beside its times is the table's.
#[test]
fn the_kit_predicts_the_same() {
    let Ok(text) = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/silicon/predictions.json"))
    else {
        println!("SKIPPED: the package has no kit");
        return;
    };
    let all: serde_json::Value = serde_json::from_str(&text).expect("predictions.json");
    let steps = all["steps"].as_array().expect("steps");
    for step in steps {
        let ncd = [0, 1, 2].map(|i| step["size"][i].as_u64().expect("a size") as usize);
        let (dtype, _) = TYPES.into_iter().find(|of| step["type"] == of.1).expect("a type of the table");
        let model = Model::of(ncd, dtype, false);
        let (now, then) = (1e6 * model.seconds, step["ways"]["loss_and_grads_into"].as_f64().expect("a time"));
        assert!((then / now - 1.0).abs() < 0.01, "{ncd:?} {dtype:?}: {now:.1}, predictions.json has {then}");
        assert_eq!(step["of"], model.path.as_str(), "{ncd:?} {dtype:?}");
    }
    assert_eq!(steps.len(), 14);
}

/// The model's work is the emulated device's: figures.md, which tests/figures.rs checks.
#[test]
fn the_models_work_is_what_was_counted() {
    let recorded = include_str!("../../kernels/figures.md");
    let mut seen = 0;
    for line in recorded.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let &[n, c, d, dtype, way, _, _, requested, .., instructions] = &cells[..] else { continue };
        let Some((dtype, _)) = TYPES.into_iter().find(|of| of.1 == dtype) else { continue };
        let ncd = [n, c, d].map(|size| size.parse::<usize>());
        let ([Ok(n), Ok(c), Ok(d)], Ok(instructions)) = (ncd, instructions.parse::<f64>()) else { continue };
        if way == "composed" || cells.len() < 14 {
            continue;
        }
        let model = Model::of([n, c, d], dtype, way == "streaming");
        let counted = requested.parse::<f64>().expect("bytes") * (2 * (n + c) * d * dtype.size_in_bytes()) as f64;
        let off = |model: f64, counted: f64| model / counted - 1.0;
        let of_instructions = off(model.instructions(), 1e6 * instructions);
        let of_bytes = off(model.work.bytes, counted);
        println!(
            "{n} {c} {d} {dtype:?} {way}: instructions {:+.1} %, bytes {:+.1} %",
            100.0 * of_instructions,
            100.0 * of_bytes
        );
        seen += 1;
    }
    assert!(seen >= 8, "figures.md has the lines");
}
