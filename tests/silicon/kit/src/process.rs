//! A command with a time limit, its output in a file; what it started ends with it.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Ok,
    /// Its exit status, in words
    Failed(String),
    /// After so many seconds
    Stopped(u64),
    NotStarted(String),
}

#[derive(Debug, Clone, Default)]
pub struct Job {
    pub name: String,
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Where it leaves rows of JSON
    pub rows: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Done {
    pub name: String,
    pub end: End,
    pub seconds: f64,
    pub output: String,
}

pub struct Running {
    name: String,
    child: Result<Child, String>,
    start: Instant,
    log: PathBuf,
}

impl Job {
    pub fn start(&self, log: PathBuf) -> Running {
        let start = Instant::now();
        let child = File::create(&log).and_then(|out| Ok((out.try_clone()?, out))).and_then(|(errors, out)| {
            // A group of its own, so that what it starts can be ended with it.
            Command::new(&self.command[0])
                .args(&self.command[1..])
                .envs(self.env.iter().cloned())
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(errors)
                .process_group(0)
                .spawn()
        });
        let child = child.map_err(|error| format!("{}: {error}", self.command[0]));
        Running { name: self.name.clone(), child, start, log }
    }
}

impl Running {
    /// Waits until `deadline`, then ends it and what it started.
    pub fn wait(mut self, deadline: Instant) -> Done {
        let end = match &mut self.child {
            Err(error) => End::NotStarted(error.clone()),
            Ok(child) => loop {
                match child.try_wait() {
                    Err(error) => break End::Failed(error.to_string()),
                    Ok(Some(status)) if status.success() => break End::Ok,
                    Ok(Some(status)) => {
                        break End::Failed(match (status.code(), status.signal()) {
                            (Some(code), _) => format!("exit status {code}"),
                            (_, Some(signal)) => format!("ended by signal {signal}"),
                            _ => status.to_string(),
                        });
                    }
                    Ok(None) if Instant::now() >= deadline => {
                        let group = format!("kill -9 -{} 2>/dev/null", child.id());
                        let _ = Command::new("sh").args(["-c", &group]).status();
                        let _ = child.kill();
                        let _ = child.wait();
                        break End::Stopped(self.start.elapsed().as_secs());
                    }
                    Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                }
            },
        };
        let output = std::fs::read(&self.log)
            .map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
        Done { name: self.name, end, seconds: self.start.elapsed().as_secs_f64(), output }
    }
}

/// All at once, or one after the other, all of them within `limit`.
pub fn run(jobs: &[Job], together: bool, limit: Duration, work: &Path) -> Vec<Done> {
    let deadline = Instant::now() + limit;
    let start =
        |(i, job): (usize, &Job)| job.start(work.join(format!("{i}-{}.log", job.name.replace(['/', ' '], "-"))));
    if together {
        let running: Vec<Running> = jobs.iter().enumerate().map(start).collect();
        return running.into_iter().map(|running| running.wait(deadline)).collect();
    }
    jobs.iter()
        .enumerate()
        .map(|job| match Instant::now() < deadline {
            true => start(job).wait(deadline),
            false => Done {
                name: job.1.name.clone(),
                end: End::NotStarted("no time was left in its part".into()),
                seconds: 0.0,
                output: String::new(),
            },
        })
        .collect()
}

/// The last lines of an output, at most so many bytes of them.
pub fn tail(output: &str, lines: usize) -> String {
    let all: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let text = all[all.len().saturating_sub(lines)..].join("\n");
    let mut from = text.len().saturating_sub(4000);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(script: &str) -> Job {
        Job { name: "a job".into(), command: ["sh", "-c", script].map(Into::into).into(), ..Job::default() }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("silicon-kit-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn every_end() {
        let work = folder("ends");
        let nowhere = Job { name: "none".into(), command: vec!["/no/such/program".into()], ..Job::default() };
        let jobs = [job("echo well"), job("echo ill >&2; exit 3"), job("kill -11 $$"), nowhere];
        for together in [true, false] {
            let done = run(&jobs, together, Duration::from_secs(20), &work);
            assert_eq!((&done[0].end, done[0].output.as_str()), (&End::Ok, "well\n"));
            assert_eq!((&done[1].end, done[1].output.as_str()), (&End::Failed("exit status 3".into()), "ill\n"));
            assert_eq!(done[2].end, End::Failed("ended by signal 11".into()));
            assert!(matches!(&done[3].end, End::NotStarted(why) if why.contains("/no/such/program")), "{:?}", done[3]);
        }
        std::fs::remove_dir_all(&work).unwrap();
    }

    /// What a job has started ends with it; the job after it is told that no time was left.
    #[test]
    fn limits() {
        let work = folder("limits");
        let mark = work.join("mark");
        let script = format!("echo begun; (sleep 3; touch {}) & wait", mark.display());
        let start = Instant::now();
        let done = run(&[job(&script), job("true")], false, Duration::from_millis(500), &work);
        assert!(start.elapsed() < Duration::from_secs(2));
        assert_eq!((&done[0].end, done[0].output.as_str()), (&End::Stopped(0), "begun\n"));
        assert!(matches!(done[1].end, End::NotStarted(_)));
        std::thread::sleep(Duration::from_secs(4));
        assert!(!mark.exists(), "it went on");
        std::fs::remove_dir_all(&work).unwrap();
    }

    #[test]
    fn tails_are_short() {
        assert_eq!(tail("a\n\nb\nc\n", 2), "b\nc");
        assert!(tail(&"µ".repeat(9000), 5).len() <= 4000);
    }
}
