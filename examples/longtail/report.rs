//! What a comparison says: a line a run, the table, and results.json.

use std::fmt::Write;

use candle_margin_loss::Group;
use candle_margin_loss::metrics::{ByGroup, Scatter, quartiles};
use serde_json::{Value, json};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::data::Dataset;
use crate::losses::Loss;
use crate::train::{Outcome, Recipe};

/// Mean and sample standard deviation (n − 1); no deviation of one value.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub mean: f64,
    pub deviation: Option<f64>,
}

/// `None` of no values.
pub fn spread(values: &[f64]) -> Option<Spread> {
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    Some(Spread { mean, deviation: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()) })
}

/// Over the seeds of `loss`, a value that may be missing.
pub fn over_seeds(outcomes: &[Outcome], loss: Loss, value: impl Fn(&Outcome) -> Option<f64>) -> Option<Spread> {
    let values: Vec<f64> = outcomes.iter().filter(|outcome| outcome.loss == loss).filter_map(value).collect();
    spread(&values)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn cell(spread: Option<Spread>, scale: f64, digits: usize) -> String {
    match spread {
        None => "–".into(),
        Some(Spread { mean, deviation: None }) => format!("{:.digits$}", scale * mean),
        Some(Spread { mean, deviation: Some(deviation) }) => {
            format!("{:.digits$} ± {:.digits$}", scale * mean, scale * deviation)
        }
    }
}

/// One run, when it is done.
pub fn line(outcome: &Outcome) -> String {
    format!(
        "{:9} seed {}: loss {:6.3}, training accuracy {:5.1} %, hard positives {:5.1} %, test accuracy {:5.1} %, {:.1} s",
        outcome.loss.name(),
        outcome.seed,
        outcome.train_loss,
        100.0 * outcome.train_accuracy,
        100.0 * outcome.hard_positive_rate,
        100.0 * outcome.accuracy.all,
        outcome.train_seconds + outcome.evaluation_seconds
    )
}

/// A row a loss: accuracy of all classes and of each group, mean target angle, Fisher separability.
pub fn table(losses: &[Loss], outcomes: &[Outcome], recipe: &Recipe, group_rule: &str) -> String {
    let seeds = outcomes.iter().filter(|outcome| outcome.loss == losses[0]).count();
    let mut text = format!(
        "Test set, mean{} over {seeds} seed{}. Accuracy in %; angle: mean angular distance to the true class's centre, in degrees;\n\
         S: Fisher separability of the normalised features ({} covariance, shrinkage {}), mean of the classes.\n\
         Groups: {group_rule}.\n\n",
        if seeds > 1 { " ± standard deviation" } else { "" },
        if seeds == 1 { "" } else { "s" },
        if recipe.scatter == Scatter::Pair { "the pair's" } else { "pooled" },
        recipe.shrinkage
    );
    let header = ["loss", "All", "Many", "Medium", "Few", "angle", "S"].map(String::from);
    let mut rows = vec![header];
    for &loss in losses {
        let accuracy = |pick: &dyn Fn(&ByGroup) -> Option<f64>| {
            cell(over_seeds(outcomes, loss, |outcome| pick(&outcome.accuracy)), 100.0, 1)
        };
        rows.push([
            loss.name().into(),
            accuracy(&|by| Some(by.all)),
            accuracy(&|by| by.many),
            accuracy(&|by| by.medium),
            accuracy(&|by| by.few),
            cell(over_seeds(outcomes, loss, |outcome| Some(mean(&outcome.angles))), 1.0, 1),
            cell(over_seeds(outcomes, loss, |outcome| Some(outcome.separability.all)), 1.0, 2),
        ]);
    }
    let widths: Vec<usize> =
        (0..7).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
        if index == 0 {
            let _ = writeln!(text, "{}", "─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
        }
    }
    text
}

/// What the paper claims, in pairs: the first above the second.
const CLAIMS: [(Loss, Loss); 4] =
    [(Loss::Bs, Loss::CosineCe), (Loss::DbmCe, Loss::CosineCe), (Loss::DbmDrw, Loss::LdamDrw), (Loss::DbmBs, Loss::Bs)];

/// How much better one loss did than another.
pub struct Gain {
    pub with: Loss,
    pub without: Loss,
    /// Of all classes, and of *Few*; in percentage points
    pub all: Option<Interval>,
    pub few: Option<Interval>,
}

/// A mean with half the width of its 95 % confidence interval (Student's t), none of one value.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    pub mean: f64,
    pub half: Option<f64>,
}

impl Interval {
    fn of(values: &[f64]) -> Option<Self> {
        let Spread { mean, deviation } = spread(values)?;
        let n = values.len() as f64;
        let half = deviation.map(|deviation| {
            let student = StudentsT::new(0.0, 1.0, n - 1.0).expect("there are two values");
            student.inverse_cdf(0.975) * deviation / n.sqrt()
        });
        Some(Self { mean, half })
    }
}

/// The claims whose losses were run, differences paired by seed.
pub fn gains(losses: &[Loss], outcomes: &[Outcome]) -> Vec<Gain> {
    let claims = CLAIMS.into_iter().filter(|(a, b)| losses.contains(a) && losses.contains(b));
    let gain = |(with, without): (Loss, Loss)| {
        let difference = |value: &dyn Fn(&ByGroup) -> Option<f64>| {
            let of = outcomes.iter().filter(|outcome| outcome.loss == with).filter_map(|a| {
                let b = outcomes.iter().find(|b| b.loss == without && b.seed == a.seed)?;
                Some(100.0 * (value(&a.accuracy)? - value(&b.accuracy)?))
            });
            Interval::of(&of.collect::<Vec<_>>())
        };
        Gain { with, without, all: difference(&|by| Some(by.all)), few: difference(&|by| by.few) }
    };
    claims.map(gain).collect()
}

/// A line a claim.
pub fn gains_table(gains: &[Gain]) -> String {
    let cell = |interval: Option<Interval>| match interval {
        None => "–".to_string(),
        Some(Interval { mean, half: None }) => format!("{mean:+.1}"),
        Some(Interval { mean, half: Some(half) }) => format!("{mean:+.1} ± {half:.1}"),
    };
    let mut text = String::new();
    for Gain { with, without, all, few } in gains {
        let (all, few) = (cell(*all), cell(*few));
        let _ = writeln!(text, "{:>8} − {:9}: All {all:>11}, Few {few:>11} points", with.name(), without.name());
    }
    if text.is_empty() { text } else { format!("\nDifferences paired by seed, 95 % intervals:\n{text}") }
}

/// What results.json has beside the recipe.
pub struct Settings {
    pub dataset: String,
    pub device: &'static str,
    pub data_seed: u64,
    pub jobs: usize,
}

/// All settings, counts and numbers of every run.
pub fn json(
    settings: &Settings,
    dataset: &Dataset,
    recipe: &Recipe,
    outcomes: &[Outcome],
    (load_seconds, total_seconds): (f64, f64),
) -> String {
    let groups = |by: &ByGroup| json!({"all": by.all, "many": by.many, "medium": by.medium, "few": by.few});
    let angles_of = |outcome: &Outcome, wanted: Option<Group>| -> Value {
        let angles = group_angles(dataset, outcome, wanted);
        match quartiles(&angles) {
            None => Value::Null,
            Some(q) => json!({"mean": mean(&angles), "q1": q.q1, "median": q.median, "q3": q.q3}),
        }
    };
    let runs: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "loss": outcome.loss.name(),
                "settings": outcome.settings,
                "seed": outcome.seed,
                "test_accuracy": groups(&outcome.accuracy),
                "test_angle_degrees": {
                    "all": angles_of(outcome, None),
                    "many": angles_of(outcome, Some(Group::Many)),
                    "medium": angles_of(outcome, Some(Group::Medium)),
                    "few": angles_of(outcome, Some(Group::Few)),
                },
                "fisher_separability": groups(&outcome.separability),
                "last_epoch": {
                    "loss": outcome.train_loss,
                    "accuracy": outcome.train_accuracy,
                    "hard_positive_rate": outcome.hard_positive_rate,
                },
                "seconds": {"train": outcome.train_seconds, "evaluate": outcome.evaluation_seconds},
            })
        })
        .collect();
    let results = json!({
        "format": 2,
        "versions": {"candle-margin-loss": env!("CARGO_PKG_VERSION"), "candle-core": locked_version("candle-core"), "os": std::env::consts::OS, "arch": std::env::consts::ARCH},
        "dataset": {
            "name": settings.dataset,
            "title": dataset.title,
            "seed": settings.data_seed,
            "image": [dataset.shape.channels, dataset.shape.height, dataset.shape.width],
            "renderings": dataset.train.len(),
            "train_counts": dataset.counts.as_slice(),
            "test_samples": dataset.test.len(),
            "imbalance_factor": dataset.counts.imbalance_factor(),
            "classes": dataset.class_names,
            "groups": dataset.groups.of_class.iter().map(|group| group.name()).collect::<Vec<_>>(),
            "group_rule": dataset.groups.rule,
        },
        "settings": {
            "device": settings.device,
            "network": format!("{:?}", recipe.network).to_lowercase(),
            "hidden": recipe.hidden,
            "features": recipe.features,
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "optimizer": "AdamW",
            "weight_decay": recipe.weight_decay,
            "warmup_epochs": recipe.warmup_epochs,
            "fisher_scatter": format!("{:?}", recipe.scatter).to_lowercase(),
            "fisher_shrinkage": recipe.shrinkage,
            "jobs": settings.jobs,
        },
        "seconds": {"load": load_seconds, "total": total_seconds},
        "runs": runs,
    });
    let mut text = serde_json::to_string_pretty(&results).expect("the values are plain numbers and strings");
    text.push('\n');
    text
}

/// The version of a package in this crate's Cargo.lock, if it has one.
fn locked_version(package: &str) -> Option<String> {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).ok()?;
    let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{package}\"\n")))?;
    Some(entry.split("version = \"").nth(1)?.split('"').next()?.to_string())
}

/// The angles of a run's test samples of the classes of a group, or of all.
pub fn group_angles(dataset: &Dataset, outcome: &Outcome, wanted: Option<Group>) -> Vec<f64> {
    let labels = &dataset.test.labels;
    let wanted = |label: u32| wanted.is_none_or(|group| dataset.groups.of_class[label as usize] == group);
    labels.iter().zip(&outcome.angles).filter(|(label, _)| wanted(**label)).map(|(_, angle)| *angle).collect()
}
