//! What was measured, as a table and as JSON, beside what it should reach.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use candle_core::DType;
use serde::Serialize;

use crate::case::{Case, Result, Way};

/// Loss and gradients at the largest width, f32: at most this often the time of the three products.
const MOST_FLOORS: f64 = 1.15;
const FLOOR_SIZE: (usize, usize, usize) = (256, 8142, 2048);
/// Extra memory at any size, in bytes.
const MOST_MEMORY: isize = 64_000_000;
/// What a further row may add to it: its state, but not its logits, which are 4·C.
const MOST_ROW_BYTES: f64 = 256.0;

/// How often faster than the composed loss, in f32.
fn least_speedup(size: (usize, usize, usize)) -> f64 {
    match size {
        (64, 100, 64) | FLOOR_SIZE => 5.0,
        _ => 3.0,
    }
}

/// The ways that are held to the targets.
const OURS: [Way; 3] = [Way::Kept, Way::New, Way::Tape];

fn verdict(pass: bool) -> &'static str {
    if pass { "PASS" } else { "MISSED" }
}

/// One size and dtype.
#[derive(Debug, Serialize)]
pub struct CaseRecord {
    n: usize,
    c: usize,
    d: usize,
    dtype: &'static str,
    /// Threads that were fastest for the floor's L, dX and dW
    floor_threads: [&'static str; 3],
    /// Largest error against the composed loss in f64, by way
    error: BTreeMap<&'static str, f64>,
    /// Peak bytes beyond inputs, outputs and gradients, by way
    extra_bytes: BTreeMap<&'static str, isize>,
    /// Milliseconds a call, one value a round, by way
    milliseconds: BTreeMap<&'static str, Vec<f64>>,
}

impl CaseRecord {
    pub fn new(case: &Case, error: BTreeMap<&'static str, f64>, extra_bytes: BTreeMap<&'static str, isize>) -> Self {
        let (n, c, d, dtype) = (case.n, case.c, case.d, case.dtype.as_str());
        let floor_threads = case.floor.threads();
        Self { n, c, d, dtype, floor_threads, error, extra_bytes, milliseconds: BTreeMap::new() }
    }

    /// One round's seconds, in the order of [`Way::ALL`].
    pub fn add_round(&mut self, seconds: [f64; Way::ALL.len()]) {
        for (way, seconds) in Way::ALL.into_iter().zip(seconds) {
            self.milliseconds.entry(way.name()).or_default().push(seconds * 1e3);
        }
    }

    fn size(&self) -> (usize, usize, usize) {
        (self.n, self.c, self.d)
    }

    /// The median over the rounds.
    pub fn ms(&self, way: Way) -> f64 {
        median(self.milliseconds[way.name()].clone())
    }

    /// The median over the rounds of the ratio within a round.
    fn ratio(&self, over: Way, under: Way) -> f64 {
        let (over, under) = (&self.milliseconds[over.name()], &self.milliseconds[under.name()]);
        median(over.iter().zip(under).map(|(over, under)| over / under).collect())
    }

    fn head(&self) -> String {
        format!("({}, {}, {}) | {}", self.n, self.c, self.d, self.dtype)
    }

    /// "time, (ratio to the floor, times faster than the composed loss)"
    fn cell(&self, way: Way, floor: Way, composed: Way) -> String {
        let (of_floor, speedup) = (self.ratio(way, floor), self.ratio(composed, way));
        format!("{} ({of_floor:.2}, {speedup:.1}×)", digits(self.ms(way)))
    }

    /// A line for the terminal while the next case runs.
    pub fn line(&self) -> String {
        let cells = OURS.map(|way| format!("{} {}", way.name(), self.cell(way, Way::Floor, Way::Composed)));
        let (floor, composed) = (digits(self.ms(Way::Floor)), digits(self.ms(Way::Composed)));
        format!("{} ms: floor {floor}, {}, composed {composed}", self.head(), cells.join(", "))
    }
}

/// Extra memory of a problem, and of the same with more rows.
#[derive(Debug, Serialize)]
pub struct Growth {
    c: usize,
    d: usize,
    dtype: &'static str,
    rows: (usize, usize),
    extra_bytes: (isize, isize),
}

impl Growth {
    pub fn new(c: usize, d: usize, dtype: DType, rows: (usize, usize), extra_bytes: (isize, isize)) -> Self {
        Self { c, d, dtype: dtype.as_str(), rows, extra_bytes }
    }

    fn row_bytes(&self) -> f64 {
        (self.extra_bytes.1 - self.extra_bytes.0) as f64 / (self.rows.1 - self.rows.0) as f64
    }

    fn passes(&self) -> bool {
        self.extra_bytes.0.max(self.extra_bytes.1) <= MOST_MEMORY && self.row_bytes() <= MOST_ROW_BYTES
    }

    /// An error where memory grows with N.
    pub fn check(&self) -> Result<()> {
        if self.passes() { Ok(()) } else { Err(format!("extra memory grows with N: {self:?}").into()) }
    }
}

#[derive(Debug, Serialize)]
struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    threads: usize,
    avx512: bool,
    rustc: String,
    versions: BTreeMap<String, String>,
    commit: String,
    /// One-minute load average before and after: what else ran here
    load: (String, String),
}

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Record {
    machine: Machine,
    /// Bytes that `gemm` keeps to pack into, on all of rayon's threads together; part of every extra_bytes
    gemm_slab_bytes: isize,
    pub cases: Vec<CaseRecord>,
    pub growth: Vec<Growth>,
}

impl Record {
    pub fn new(threads: usize, gemm_slab_bytes: isize) -> Self {
        Self { machine: Machine::here(threads), gemm_slab_bytes, cases: Vec::new(), growth: Vec::new() }
    }

    /// Prints the table, and keeps it with the numbers behind it if `keep`.
    pub fn finish(mut self, keep: bool) -> Result<()> {
        self.machine.load.1 = load();
        let table = self.markdown()?;
        println!("\n{table}");
        if keep {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
            std::fs::write(folder.join("RESULTS.md"), &table)?;
            std::fs::write(folder.join("results.json"), serde_json::to_string_pretty(&self)? + "\n")?;
            println!("kept as benches/RESULTS.md and benches/results.json");
        } else {
            println!("not kept: MARGIN_LOSS_RECORD=1 writes benches/RESULTS.md and benches/results.json");
        }
        Ok(())
    }

    fn markdown(&self) -> Result<String> {
        let mut out = String::new();
        let machine = &self.machine;
        let versions: Vec<String> =
            machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        writeln!(
            out,
            "# Benchmarks\n\nWritten by `MARGIN_LOSS_RECORD=1 cargo bench`; `results.json` has every round.\n"
        )?;
        writeln!(
            out,
            "{}: {}, {} cores{}, {} threads, load average {} before and {} after; {}; {}; commit {}.\n",
            machine.date,
            machine.cpu,
            machine.cores,
            if machine.avx512 { " with AVX-512" } else { " without AVX-512" },
            machine.threads,
            machine.load.0,
            machine.load.1,
            machine.rustc,
            versions.join(", "),
            machine.commit,
        )?;
        writeln!(
            out,
            "DBM-BS, mean over the batch. Times are medians over rounds in which every way takes its turn; a ratio is the median \
             of the ratios within the rounds. The floor is the bare f32 products by `gemm` into memory that is there, each with one thread \
             or all, whichever is faster: one product for the loss, three for the loss and its gradients. Every result was compared with the \
             composed loss in f64 before it was timed.\n"
        )?;
        self.targets(&mut out)?;
        self.times(&mut out)?;
        self.memory(&mut out)?;
        self.errors(&mut out)?;
        Ok(out)
    }

    fn targets(&self, out: &mut String) -> Result<()> {
        let ours = OURS.map(|way| format!("`{}`", way.name().replace("tape", "forward(…)?.backward()"))).join(" | ");
        writeln!(out, "## Targets\n\nLoss and gradients, f32 unless it says otherwise.\n")?;
        writeln!(out, "| (N, C, D) | target | {ours} |\n|---|---|---|---|---|")?;
        for case in self.cases.iter().filter(|case| case.dtype == "f32") {
            let (size, _) =
                case.head().split_once(" |").map(|(a, b)| (a.to_string(), b.to_string())).unwrap_or_default();
            if case.size() == FLOOR_SIZE {
                write!(out, "| {size} | ≤ {MOST_FLOORS} × floor |")?;
                for way in OURS {
                    let ratio = case.ratio(way, Way::Floor);
                    write!(out, " {ratio:.2} {} |", verdict(ratio <= MOST_FLOORS))?;
                }
                writeln!(out)?;
            }
            let least = least_speedup(case.size());
            write!(out, "| {size} | ≥ {least} × faster than composed |")?;
            for way in OURS {
                let speedup = case.ratio(Way::Composed, way);
                write!(out, " {speedup:.1} {} |", verdict(speedup >= least))?;
            }
            writeln!(out)?;
        }
        write!(out, "| all, f32 and bf16 | extra memory ≤ {} MB |", MOST_MEMORY / 1_000_000)?;
        for way in OURS {
            let most = self.cases.iter().map(|case| case.extra_bytes[way.name()]).max().unwrap_or(0);
            write!(out, " {} MB {} |", megabytes(most), verdict(most <= MOST_MEMORY))?;
        }
        writeln!(out)?;
        for growth in &self.growth {
            let ((few, many), (of_few, of_many)) = (growth.rows, growth.extra_bytes);
            writeln!(
                out,
                "| ({few} → {many}, {}, {}) {} | extra memory does not grow with N | {} → {} MB, {:.0} bytes a row {} | | |",
                growth.c,
                growth.d,
                growth.dtype,
                megabytes(of_few),
                megabytes(of_many),
                growth.row_bytes(),
                verdict(growth.passes()),
            )?;
        }
        writeln!(
            out,
            "\nWhat `loss_and_grads_into` spares: a new C×D gradient costs its page faults at every step, and Candle's `backward` adds it to one of zeros \
             into a third, so two more tensors of its size are there at the peak. Those count as extra memory here.\n"
        )?;
        Ok(())
    }

    fn times(&self, out: &mut String) -> Result<()> {
        writeln!(out, "## Times\n\nMilliseconds (× the floor, times faster than the composed loss).\n")?;
        writeln!(out, "Loss and gradients:\n")?;
        writeln!(out, "| (N, C, D) | dtype | floor | kept gradients | new gradients | tape | composed (× floor) |")?;
        writeln!(out, "|---|---|---|---|---|---|---|")?;
        for case in &self.cases {
            let [kept, new, tape] = OURS.map(|way| case.cell(way, Way::Floor, Way::Composed));
            let (floor, composed) = (digits(case.ms(Way::Floor)), digits(case.ms(Way::Composed)));
            let of_floor = case.ratio(Way::Composed, Way::Floor);
            writeln!(out, "| {} | {floor} | {kept} | {new} | {tape} | {composed} ({of_floor:.2}) |", case.head())?;
        }
        writeln!(out, "\nThe loss alone:\n")?;
        writeln!(out, "| (N, C, D) | dtype | floor | fused | composed (× floor) |\n|---|---|---|---|---|")?;
        for case in &self.cases {
            let fused = case.cell(Way::Forward, Way::FloorForward, Way::ComposedForward);
            let (floor, composed) = (digits(case.ms(Way::FloorForward)), digits(case.ms(Way::ComposedForward)));
            let of_floor = case.ratio(Way::ComposedForward, Way::FloorForward);
            writeln!(out, "| {} | {floor} | {fused} | {composed} ({of_floor:.2}) |", case.head())?;
        }
        writeln!(out)?;
        Ok(())
    }

    fn memory(&self, out: &mut String) -> Result<()> {
        writeln!(
            out,
            "## Extra memory\n\nMB (10⁶ bytes) at the peak of a first call, beyond inputs, outputs and one dX and dW: all that is allocated \
             while it runs, the workspace that is kept afterwards and what `gemm` packs included. {} MB of each are the \
             buffers that `gemm` keeps for its threads, once a process.\n",
            megabytes(self.gemm_slab_bytes)
        )?;
        writeln!(
            out,
            "| (N, C, D) | dtype | forward | kept gradients | new gradients | tape | composed forward | composed |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|")?;
        for case in &self.cases {
            let ways = [Way::Forward, Way::Kept, Way::New, Way::Tape, Way::ComposedForward, Way::Composed];
            let cells = ways.map(|way| megabytes(case.extra_bytes[way.name()]));
            writeln!(out, "| {} | {} |", case.head(), cells.join(" | "))?;
        }
        writeln!(out)?;
        Ok(())
    }

    fn errors(&self, out: &mut String) -> Result<()> {
        writeln!(
            out,
            "## Errors\n\nThe largest of the loss and both gradients against the composed loss in f64 on the same inputs: of the largest element \
             to the largest, or in the norm. bf16 gradients are rounded to bf16, 2⁻⁹ = 2.0e-3.\n"
        )?;
        writeln!(out, "| (N, C, D) | dtype | fused | composed in the same dtype |\n|---|---|---|---|")?;
        for case in &self.cases {
            let fused = OURS.into_iter().map(|way| case.error[way.name()]).fold(0.0, f64::max);
            writeln!(out, "| {} | {fused:.1e} | {:.1e} |", case.head(), case.error[Way::Composed.name()])?;
        }
        Ok(())
    }
}

impl Machine {
    fn here(threads: usize) -> Self {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        #[cfg(target_arch = "x86_64")]
        let avx512 = std::arch::is_x86_feature_detected!("avx512f");
        #[cfg(not(target_arch = "x86_64"))]
        let avx512 = false;
        let modified = if said("git", &["status", "--porcelain", "--", "src", "benches/loss"]).is_empty() {
            ""
        } else {
            ", modified"
        };
        Self {
            date: today(),
            cpu: model.map_or("unknown CPU", |(_, name)| name).to_string(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            threads,
            avx512,
            rustc: said("rustc", &["-V"]),
            versions: versions(),
            commit: said("git", &["rev-parse", "--short", "HEAD"]) + modified,
            load: (load(), String::new()),
        }
    }
}

/// What a command prints, or nothing.
fn said(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default()
}

/// Of the packages that the numbers depend on, from Cargo.lock.
fn versions() -> BTreeMap<String, String> {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock = std::fs::read_to_string(lock).unwrap_or_default();
    let mut lines = lock.lines();
    let mut versions = BTreeMap::new();
    while let Some(line) = lines.next() {
        let quoted = |line: &str, key: &str| {
            Some(line.strip_prefix(key)?.strip_prefix(" = \"")?.trim_end_matches('"').to_string())
        };
        if let Some(name) = quoted(line, "name")
            && ["candle-core", "candle-margin-loss", "gemm", "pulp", "rayon"].contains(&name.as_str())
            && let Some(version) = lines.next().and_then(|line| quoted(line, "version"))
        {
            // Candle may bring an older one of the same name; they are listed in ascending order, and ours is the newer.
            versions.insert(name, version);
        }
    }
    versions
}

fn load() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    all.split(' ').next().unwrap_or_default().to_string()
}

/// The date in UTC, as 2026-01-31.
fn today() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    // Days since 1 March of year 0, in eras of 400 years (146,097 days), years that begin in March, and months of 153 days in five.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Three significant digits or more.
fn digits(value: f64) -> String {
    let places = if value < 1.0 {
        4
    } else if value < 10.0 {
        2
    } else {
        1
    };
    format!("{value:.places$}")
}

fn megabytes(bytes: isize) -> String {
    let value = bytes as f64 / 1e6;
    format!("{value:.*}", if value < 10.0 { 2 } else { 1 })
}
