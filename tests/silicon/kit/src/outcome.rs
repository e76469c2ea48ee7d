//! What is known of a part when it is over.

use serde_json::Value;

use crate::process::{Done, End};

/// What is known of a part when it is over.
#[derive(Debug)]
pub struct Outcome {
    pub name: &'static str,
    pub title: &'static str,
    pub jobs: Vec<Done>,
    /// What the jobs left, each with the name of its job
    pub rows: Vec<Value>,
    /// Why it did not run, or something beside what it ran
    pub notes: Vec<String>,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Failed,
    CutShort,
    NotRun,
}

impl Outcome {
    pub fn verdict(&self) -> Verdict {
        let failed = |job: &Done| {
            matches!(job.end, End::Failed(_)) || matches!(&job.end, End::NotStarted(why) if !why.contains("no time"))
        };
        if self.rows.iter().any(|row| row.get("failed").is_some()) || self.jobs.iter().any(failed) {
            Verdict::Failed
        } else if self.jobs.is_empty() {
            Verdict::NotRun
        } else if self.jobs.iter().any(|job| job.end != End::Ok) {
            Verdict::CutShort
        } else {
            Verdict::Ok
        }
    }
}
