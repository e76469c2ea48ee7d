//! The parts, in the order of what is worth knowing first: what each runs, and for how long at most.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::options::{Options, json_of};
use crate::outcome::{Outcome, Verdict};
use crate::process::{Done, End, Job, run, tail};
use crate::{ncu, report, tools};

/// What runs the parts: the archive's folder, its environment, where rows go.
struct Kit<'a> {
    options: &'a Options,
    env: Vec<(String, String)>,
}

/// A part before it runs.
struct Part {
    name: &'static str,
    title: &'static str,
    /// Seconds at most
    limit: u64,
    together: bool,
    jobs: Vec<Job>,
    notes: Vec<String>,
}

/// With their limits in seconds, which fit into nine minutes.
const PARTS: [(&str, &str, u64); 11] = [
    ("device", "Device, driver, clocks", 10),
    ("ceilings", "Ceilings", 40),
    ("load", "Loading the modules", 60),
    ("check", "Against the CPU path", 70),
    ("suites", "The suites", 90),
    ("sanitizer", "The vendor's checkers", 60),
    ("times", "Times", 90),
    ("torch", "PyTorch", 65),
    ("ncu", "The profiler's counters", 40),
    ("graph", "Capture and replay", 15),
    ("large", "Beyond 32 bits", 60),
];

impl Kit<'_> {
    fn path(&self, name: &str) -> String {
        self.options.home.join(name).display().to_string()
    }

    /// A job of the benchmark's program.
    fn part(&self, name: &str, part: &str, more: &[&str]) -> Job {
        let rows = self.options.work.join(format!("{}.jsonl", name.replace(['/', ' ', ','], "-")));
        let mut command = vec![
            self.path("bin/cuda"),
            "part".into(),
            part.into(),
            rows.display().to_string(),
            "--ptx".into(),
            self.path("ptx"),
        ];
        if self.options.reduced {
            command.push("--reduced".into());
        }
        command.extend(more.iter().map(|&flag| flag.into()));
        Job { name: name.into(), command, env: self.env.clone(), rows: Some(rows) }
    }

    fn with(mut job: Job, name: &str, value: impl Into<String>) -> Job {
        job.env.push((name.into(), value.into()));
        job
    }

    fn prepared(&self, name: &'static str, title: &'static str, limit: u64) -> Part {
        let mut part = Part { name, title, limit, together: false, jobs: Vec::new(), notes: Vec::new() };
        match name {
            "device" => {
                part.jobs.push(self.part("device", "device", &[]));
                self.tool(&mut part, "nvidia-smi", state);
            }
            "load" => {
                // The driver keeps what it has translated: here, in a folder that is empty at first.
                part.jobs = ["cold", "warm"].map(|name| self.part(name, "load", &[])).into();
            }
            "suites" => {
                part.together = true;
                part.jobs = self.suites(&mut part.notes);
            }
            "sanitizer" => {
                part.together = true;
                self.tool(&mut part, "compute-sanitizer", |sanitizer| {
                    ["memcheck", "racecheck", "synccheck"]
                        .map(|tool| {
                            self.under(
                                tool,
                                &[
                                    sanitizer.clone(),
                                    "--tool".into(),
                                    tool.into(),
                                    "--error-exitcode".into(),
                                    "9".into(),
                                    "--print-limit".into(),
                                    "10".into(),
                                ],
                                "sanitize",
                                &[],
                            )
                        })
                        .into()
                });
            }
            "torch" => match python() {
                Err(why) => part.notes.push(why),
                Ok(python) => {
                    let rows = self.options.work.join("torch.jsonl");
                    let mut command =
                        vec![python, self.path("torch/torch_step.py"), "--rows".into(), rows.display().to_string()];
                    if self.options.reduced {
                        command.push("--reduced".into());
                    }
                    // With the libraries that it brings: none of ours.
                    part.jobs.push(Job {
                        name: "torch".into(),
                        command,
                        env: vec![("PYTHONUNBUFFERED".into(), "1".into())],
                        rows: Some(rows),
                    });
                }
            },
            "times" => {
                part.jobs.push(self.part("times", "times", &[]));
                // The clocks that it ends with.
                self.tool(&mut part, "nvidia-smi", state);
            }
            "ncu" => self.tool(&mut part, "ncu", |profiler| {
                let mut command = vec![profiler];
                command.extend(ncu::arguments(false));
                STEPS.iter().map(|(name, flags)| self.under(name, &command, "step", flags)).collect()
            }),
            name => part.jobs.push(self.part(name, name, &[])),
        }
        part
    }

    /// A tool's jobs, or why there are none.
    fn tool(&self, part: &mut Part, name: &str, jobs: impl FnOnce(String) -> Vec<Job>) {
        match tools::find(name) {
            Some(path) => part.jobs.extend(jobs(path.display().to_string())),
            None => part.notes.push(format!("there is no {name} on the PATH or where it usually is")),
        }
    }

    /// A part of the benchmark's program under a tool.
    fn under(&self, name: &str, tool: &[String], part: &str, flags: &[&str]) -> Job {
        let mut job = self.part(name, part, flags);
        job.command.splice(0..0, tool.iter().cloned());
        job
    }

    /// The test programs that were packed: those of both devices by the kernels that a call takes by itself, some by the streaming ones alone, too.
    fn suites(&self, notes: &mut Vec<String>) -> Vec<Job> {
        let entries = std::fs::read_dir(self.options.home.join("suites")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        if names.is_empty() {
            notes.push("the archive has no suites".into());
        }
        let mut jobs = Vec::new();
        for name in names {
            let mut command =
                vec![self.path(&format!("suites/{name}")), "--skip".into(), "devices_that_lack_something".into()];
            if self.options.reduced {
                command.extend(["one_loss_on_every_device", "a_step_is_captured", "ties", "poles"].map(Into::into));
            }
            let job = Job { name: name.clone(), command, env: self.env.clone(), rows: None };
            if ["cuda", "driver", "tf32"].contains(&name.as_str()) {
                jobs.push(job);
                continue;
            }
            let job = Self::with(job, "MARGIN_LOSS_DEVICE", "cuda");
            if ["golden", "oracle", "gradient", "traps"].contains(&name.as_str()) && !self.options.reduced {
                let streaming = Job { name: format!("{name}, streaming kernels"), ..job.clone() };
                jobs.push(Self::with(streaming, "MARGIN_LOSS_STREAMING", "1"));
            }
            jobs.push(job);
        }
        jobs
    }
}

/// What the device does, as its driver's tool tells it.
fn state(smi: String) -> Vec<Job> {
    let fields = "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,power.limit";
    let command = vec![smi, format!("--query-gpu={fields}"), "--format=csv".into()];
    vec![Job { name: "nvidia-smi".into(), command, ..Job::default() }]
}

/// Steps that the profiler looks at: those that the emulator has counted.
const STEPS: [(&str, &[&str]); 6] = [
    ("256,1000,2048 bf16 fused_step", &["--size", "256,1000,2048", "--type", "bf16"]),
    ("256,8142,2048 bf16 fused_step", &["--size", "256,8142,2048", "--type", "bf16"]),
    ("256,1000,2048 bf16 streaming", &["--size", "256,1000,2048", "--type", "bf16", "--streaming"]),
    ("64,100,64 bf16 fused_step", &["--size", "64,100,64", "--type", "bf16"]),
    ("256,1000,512 f32 fused_step", &["--size", "256,1000,512", "--type", "f32"]),
    ("256,1000,2048 f16 fused_step", &["--size", "256,1000,2048", "--type", "f16"]),
];

/// A python3 whose torch sees a device.
fn python() -> Result<String, String> {
    let mut why = "there is no python3".to_string();
    for python in ["python3", "/usr/bin/python3", "python"] {
        let test = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 'torch sees no device')";
        match std::process::Command::new(python).args(["-c", test]).output() {
            Ok(output) if output.status.success() => return Ok(python.into()),
            Ok(output) => why = format!("{python}: {}", tail(&String::from_utf8_lossy(&output.stderr), 1)),
            Err(_) => {}
        }
    }
    Err(why)
}

fn rows_of(job: &Job, done: &Done) -> Vec<Value> {
    let text = job.rows.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    // A last line may have been cut where the job was.
    let rows = text.lines().filter_map(|line| serde_json::from_str::<Map<String, Value>>(line).ok());
    rows.map(|mut row| {
        row.insert("job".into(), json!(done.name));
        Value::Object(row)
    })
    .collect()
}

/// What is read from a job's output rather than from its rows.
fn rows_of_output(part: &str, done: &Done) -> Vec<Value> {
    match part {
        "suites" => {
            let summary = done.output.lines().rev().find_map(|line| line.trim().strip_prefix("test result: "));
            let count = |what: &str| -> Option<u64> {
                let found = summary?.split(['.', ';']).find_map(|part| part.trim().strip_suffix(what))?;
                found.trim().parse().ok()
            };
            let mut row = json!({ "job": done.name, "passed": count("passed"), "failing": count("failed"), "ignored": count("ignored") });
            if done.end == End::Ok && count("passed").unwrap_or(0) == 0 {
                row["failed"] = json!("no test was run");
            }
            let names: Vec<&str> = done
                .output
                .lines()
                .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
                .collect();
            if !names.is_empty() {
                row["failed"] = json!(names.join(", "));
            }
            vec![row]
        }
        "sanitizer" => {
            let summary = done.output.lines().rev().find(|line| line.contains("SUMMARY"));
            let summary = summary.map(|line| line.trim_start_matches('=').trim());
            let mut row = json!({ "job": done.name, "summary": summary });
            if done.end == End::Ok && summary.is_none() {
                row["failed"] = json!("it said nothing of errors");
            }
            vec![row]
        }
        "ncu" => {
            let launches = ncu::launches(&done.output);
            let mut row = json!({ "job": done.name, "launches": launches, "sum": ncu::sum(&launches) });
            if done.end == End::Ok && launches.is_empty() {
                row["failed"] = json!("it has no table of launches");
            }
            vec![row]
        }
        _ if done.name == "nvidia-smi" => {
            vec![json!({ "job": done.name, "text": tail(&done.output, 4) })]
        }
        _ => Vec::new(),
    }
}

fn run_part(kit: &Kit, part: Part, limit: Duration, work: &Path) -> Outcome {
    let start = Instant::now();
    let folder = work.join(part.name);
    let mut outcome = Outcome {
        name: part.name,
        title: part.title,
        jobs: Vec::new(),
        rows: Vec::new(),
        notes: part.notes,
        seconds: 0.0,
    };
    if let Err(error) = std::fs::create_dir_all(&folder) {
        outcome.notes.push(format!("{}: {error}", folder.display()));
        return outcome;
    }
    let mut jobs = part.jobs;
    let mut done = run(&jobs, part.together, limit, &folder);
    // A profiler of another version may not know a metric: then what it knows by sections.
    if part.name == "ncu"
        && done.iter().all(|done| ncu::launches(&done.output).is_empty())
        && let (Some(first), Some(left)) = (jobs.first(), limit.checked_sub(start.elapsed()))
    {
        let profiler = first.command[0].clone();
        outcome.notes.push(format!("by sections, since the metrics gave nothing:\n{}", tail(&done[0].output, 8)));
        let mut command = vec![profiler];
        command.extend(ncu::arguments(true));
        jobs = STEPS.iter().map(|(name, flags)| kit.under(name, &command, "step", flags)).collect();
        done = run(&jobs, false, left, &folder);
    }
    for (job, done) in jobs.iter().zip(done) {
        outcome.rows.extend(rows_of(job, &done));
        outcome.rows.extend(rows_of_output(part.name, &done));
        outcome.jobs.push(done);
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome
}

/// Whether nothing failed.
pub fn run_all(options: &Options) -> Result<bool, String> {
    let start = Instant::now();
    let names = PARTS.map(|(name, _, _)| name);
    if let Some(unknown) = options.only.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("there is no part {unknown}: {}", names.join(", ")));
    }
    let mut env = vec![("CUDA_CACHE_PATH".to_string(), options.work.join("cache").display().to_string())];
    env.push(("CUDA_CACHE_MAXSIZE".into(), (1u64 << 30).to_string()));
    if let Ok(path) = std::env::var("KIT_LIBRARY_PATH") {
        env.push(("LD_LIBRARY_PATH".into(), path));
    }
    let kit = Kit { options, env };
    let home = |name: &str| -> PathBuf { options.home.join(name) };
    let mut report = report::Report {
        reduced: options.reduced,
        manifest: json_of(&home("manifest.json"))?,
        predictions: json_of(&home("predictions.json"))?,
        figures: json_of(&home("figures.json"))?,
        libraries: std::env::var("KIT_LIBRARIES").unwrap_or_default(),
        machine: machine(),
        outcomes: Vec::new(),
        seconds: 0.0,
    };
    for (name, title, limit) in PARTS {
        let left = options.seconds.saturating_sub(start.elapsed().as_secs());
        let outcome = if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            Outcome {
                name,
                title,
                jobs: Vec::new(),
                rows: Vec::new(),
                notes: vec!["not asked for (--only)".into()],
                seconds: 0.0,
            }
        } else if left < 3 {
            let notes = vec![format!("no time was left of {} s", options.seconds)];
            Outcome { name, title, jobs: Vec::new(), rows: Vec::new(), notes, seconds: 0.0 }
        } else {
            println!("{name}…");
            let part = kit.prepared(name, title, limit);
            let limit = Duration::from_secs(part.limit.min(left));
            run_part(&kit, part, limit, &options.work)
        };
        println!("{name}: {:?}, {:.1} s", outcome.verdict(), outcome.seconds);
        report.outcomes.push(outcome);
        report.seconds = start.elapsed().as_secs_f64();
        report.write(&options.out)?;
    }
    Ok(report.outcomes.iter().all(|outcome| outcome.verdict() != Verdict::Failed))
}

/// The host, in a line.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let system = read("/etc/os-release");
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("?").trim_matches('"');
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("?", |line| line.trim_start_matches([' ', '\t', ':']));
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {processors} processors; {system}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(end: End, output: &str) -> Done {
        Done { name: "a job".into(), end, seconds: 1.0, output: output.into() }
    }

    #[test]
    fn nine_minutes() {
        // Parts end before their limits as a rule; what is left in the end is the last ones'.
        let sum: u64 = PARTS.iter().map(|(_, _, limit)| limit).sum();
        assert!(sum <= 600, "{sum}");
    }

    #[test]
    fn suites_are_read() {
        let good = "running 2 tests\ntest a ... ok\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let row = &rows_of_output("suites", &done(End::Ok, good))[0];
        assert_eq!((&row["passed"], &row["failing"], &row["ignored"]), (&json!(2), &json!(0), &json!(1)));
        assert!(row.get("failed").is_none());
        let bad = "test a ... ok\ntest b ... FAILED\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        assert_eq!(rows_of_output("suites", &done(End::Failed("exit status 101".into()), bad))[0]["failed"], "b");
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.0s\n";
        assert_eq!(rows_of_output("suites", &done(End::Ok, none))[0]["failed"], "no test was run");
    }

    #[test]
    fn checkers_are_read() {
        let row = &rows_of_output("sanitizer", &done(End::Ok, "========= ERROR SUMMARY: 0 errors\n"))[0];
        assert_eq!(row["summary"], "ERROR SUMMARY: 0 errors");
        assert!(rows_of_output("sanitizer", &done(End::Ok, "nothing"))[0].get("failed").is_some());
    }

    #[test]
    fn verdicts() {
        let of = |jobs: Vec<Done>, rows: Vec<Value>| {
            Outcome { name: "a", title: "A", jobs, rows, notes: Vec::new(), seconds: 0.0 }.verdict()
        };
        assert_eq!(of(vec![], vec![]), Verdict::NotRun);
        assert_eq!(of(vec![done(End::Ok, "")], vec![]), Verdict::Ok);
        assert_eq!(of(vec![done(End::Ok, "")], vec![json!({ "failed": "so" })]), Verdict::Failed);
        assert_eq!(of(vec![done(End::Ok, ""), done(End::Stopped(3), "")], vec![]), Verdict::CutShort);
        assert_eq!(of(vec![done(End::Stopped(3), ""), done(End::Failed("1".into()), "")], vec![]), Verdict::Failed);
        assert_eq!(of(vec![done(End::NotStarted("no program".into()), "")], vec![]), Verdict::Failed);
    }
}
