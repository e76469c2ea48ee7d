//! What came out, as Markdown and as JSON.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::corpus::Corpus;
use crate::losses::{Choice, Loss};
use crate::statistics::{Difference, Mean, holm};
use crate::subject::Measures;

/// What the search saw of a choice.
#[derive(Debug, Clone, Serialize)]
pub struct Trial {
    pub choice: Choice,
    /// Mean accuracy of the classes on the validation, %
    pub validation: f64,
}

/// A loss and what came of it on the test.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub loss: Loss,
    pub choice: Choice,
    pub trials: Vec<Trial>,
    /// (seeds)
    pub test: Vec<Measures>,
    /// Median time of the op on one batch, loss and gradients, ms
    pub step_ms: Option<f64>,
}

/// DBM-BS with other K and τ, (choice, seeds).
pub type Sweep = Vec<(Choice, Vec<Measures>)>;

/// What is claimed, by the paper or by us: the first is better than the second. Those of losses that were not run are left out.
const CLAIMS: [(&str, &str, &str); 23] = [
    ("Table 2: BS above CE", "BS, linear", "CE, linear"),
    ("Table 2: DBM-CE above CE", "DBM-CE", "CE, linear"),
    ("Table 2: DBM-CE above LDAM", "DBM-CE", "LDAM"),
    ("Table 2: DBM-DRW above CE-DRW", "DBM-DRW", "CE-DRW, linear"),
    ("Table 2: DBM-DRW above LDAM-DRW", "DBM-DRW", "LDAM-DRW"),
    ("Table 2: DBM-BS above BS", "DBM-BS", "BS, linear"),
    ("Table 5: a cosine head for CE", "CE", "CE, linear"),
    ("Table 5: m_C for CE", "DBM-CE, m_C", "CE"),
    ("Table 5: m_I on P for CE", "DBM-CE, P", "DBM-CE, m_C"),
    ("Table 5: m_I on HP, not P, for CE", "DBM-CE", "DBM-CE, P"),
    ("Table 5: a cosine head for BS", "BS", "BS, linear"),
    ("Table 5: m_C for BS", "DBM-BS, m_C", "BS"),
    ("Table 5: m_I on P for BS", "DBM-BS, P", "DBM-BS, m_C"),
    ("Table 5: m_I on HP, not P, for BS", "DBM-BS", "DBM-BS, P"),
    ("DBM-BS above BS, both on a cosine head", "DBM-BS", "BS"),
    ("margins by class, not one for all, under BS", "DBM-BS", "ArcFace-BS"),
    ("margins by class, not one for all, under CE", "DBM-CE", "ArcFace"),
    ("Table 2: BCL above BS", "BCL", "BS"),
    ("Table 2: DBM-BCL above BCL", "DBM-BCL", "BCL"),
    ("Table 2: GML above BS", "GML", "BS"),
    ("Table 2: DBM-GML above GML", "DBM-GML", "GML"),
    ("Table 2: NCL above BS", "NCL", "BS"),
    ("Table 2: DBM-NCL above NCL", "DBM-NCL", "NCL"),
];

/// Beyond this, a difference is taken for chance.
const LEVEL: f64 = 0.05;

/// (seeds) over all, (classes) means of the seeds.
fn values(test: &[Measures]) -> (Vec<f64>, Vec<f64>) {
    let classes = test[0].by_class.len();
    let of_class = |j: usize| test.iter().map(|run| run.by_class[j]).sum::<f64>() / test.len() as f64;
    (test.iter().map(|run| run.all).collect(), (0..classes).map(of_class).collect())
}

fn difference(here: &[Measures], there: &[Measures]) -> Difference {
    let (here, there) = (values(here), values(there));
    Difference::of((&here.0, &here.1), (&there.0, &there.1))
}

pub fn markdown(corpus: &Corpus, seeds: u64, epochs: usize, outcomes: &[Outcome], sweep: &Sweep) -> String {
    let mut text = format!(
        "{}; {} seeds, {} epochs, groups are thirds of the classes by training samples.\n\n",
        corpus.title, seeds, epochs
    );
    text += "| Loss | All | Many | Medium | Few | lr | s | weight decay | margin | angle to the own centre: many, medium, few | separability: many, medium, few | op, ms |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";
    for Outcome { loss, choice, test, step_ms, .. } in outcomes {
        let column = |of: fn(&Measures) -> Option<f64>| match test.iter().map(of).collect::<Option<Vec<f64>>>() {
            Some(values) => format!("{:.2} ± {:.2}", Mean::of(&values).mean, Mean::of(&values).half),
            None => "–".to_string(),
        };
        let angle = |group: usize| test.iter().map(|run| run.angles[group]).sum::<f64>() / test.len() as f64;
        let step = step_ms.map_or("–".to_string(), |ms| format!("{ms:.2}"));
        let separability = |group: usize| test.iter().map(|run| Some(run.separability?[group])).sum::<Option<f64>>();
        let separability = [0, 1, 2].map(|group| separability(group).map(|sum| sum / test.len() as f64));
        let separability = match separability {
            [Some(many), Some(medium), Some(few)] => format!("{many:.2}, {medium:.2}, {few:.2}"),
            _ => "–".to_string(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1}°, {:.1}°, {:.1}° | {separability} | {step} |",
            loss.name,
            column(|run| Some(run.all)),
            column(|run| run.many),
            column(|run| run.medium),
            column(|run| run.few),
            choice.lr,
            choice.scale,
            choice.weight_decay,
            choice.margin,
            angle(0),
            angle(1),
            angle(2)
        );
    }
    let of =
        |name: &str| outcomes.iter().find(|outcome| outcome.loss.name == name).map(|outcome| outcome.test.as_slice());
    let claims = CLAIMS.iter().filter_map(|(claim, here, there)| Some((claim, here, there, of(here)?, of(there)?)));
    let claims: Vec<_> = claims.map(|(claim, here, there, a, b)| (claim, here, there, difference(a, b))).collect();
    let corrected = holm(&claims.iter().map(|claim| claim.3.p()).collect::<Vec<_>>());
    text += "\n| Claim | First less second | over seeds | over classes | p, corrected | |\n|---|---|---|---|---|---|\n";
    for ((claim, here, there, difference), p) in claims.iter().zip(&corrected) {
        let verdict = match (*p < LEVEL, difference.seeds.mean > 0.0) {
            (false, _) => "cannot be told",
            (true, true) => "yes",
            (true, false) => "no: the opposite",
        };
        let _ = writeln!(
            text,
            "| {claim} | {here}, {there} | {:+.2} ± {:.2} | {:+.2} ± {:.2} | {p:.4} | {verdict} |",
            difference.seeds.mean, difference.seeds.half, difference.classes.mean, difference.classes.half
        );
    }
    let Some(bs) = of("BS") else { return text };
    text += "\n| DBM-BS with | All | less BS on a cosine head, over seeds | over classes |\n|---|---|---|---|\n";
    for (choice, test) in sweep {
        let (all, less) = (Mean::of(&values(test).0), difference(test, bs));
        let _ = writeln!(
            text,
            "| K = {}, τ = {} | {:.2} ± {:.2} | {:+.2} ± {:.2} | {:+.2} ± {:.2} |",
            choice.margin,
            choice.tau,
            all.mean,
            all.half,
            less.seeds.mean,
            less.seeds.half,
            less.classes.mean,
            less.classes.half
        );
    }
    text
}

pub fn write(
    path: &Path,
    corpus: &Corpus,
    outcomes: &[Outcome],
    sweep: &Sweep,
    text: &str,
) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    #[derive(Serialize)]
    struct Swept {
        choice: Choice,
        /// (seeds)
        all: Vec<f64>,
    }
    #[derive(Serialize)]
    struct Results<'a> {
        corpus: &'a str,
        outcomes: Vec<serde_json::Value>,
        sweep: Vec<Swept>,
    }
    // By class the means of the seeds alone, to two digits: a line each would be most of the file.
    let rounded = |values: Vec<f64>| values.into_iter().map(|v| (100.0 * v).round() / 100.0).collect::<Vec<_>>();
    let outcome = |outcome: &Outcome| -> serde_json::Result<serde_json::Value> {
        let mut value = serde_json::to_value(outcome)?;
        for run in value["test"].as_array_mut().into_iter().flatten() {
            run.as_object_mut().map(|run| run.remove("by_class"));
        }
        value["by_class"] = serde_json::to_value(rounded(values(&outcome.test).1))?;
        Ok(value)
    };
    let swept = sweep.iter().map(|(choice, test)| Swept { choice: *choice, all: values(test).0 });
    let results = Results {
        corpus: &corpus.title,
        outcomes: outcomes.iter().map(outcome).collect::<serde_json::Result<_>>()?,
        sweep: swept.collect(),
    };
    std::fs::write(path.with_extension("json"), serde_json::to_string(&results)? + "\n")?;
    std::fs::write(path.with_extension("md"), text)?;
    Ok(())
}
