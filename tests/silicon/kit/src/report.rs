//! The report: `report.md` to read, `report.json` with all its numbers.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::outcome::{Outcome, Verdict};
use crate::process::{End, tail};

pub struct Report {
    pub reduced: bool,
    pub manifest: Value,
    pub predictions: Value,
    pub figures: Value,
    pub libraries: String,
    pub machine: String,
    pub outcomes: Vec<Outcome>,
    pub seconds: f64,
}

/// What a prediction may be off by and still be one.
const NEAR: f64 = 1.35;

impl Report {
    pub fn write(&self, folder: &Path) -> Result<(), String> {
        for (name, text) in [("report.md", self.markdown()), ("report.json", format!("{:#}\n", self.json()))] {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let parts: Vec<Value> = self
            .outcomes
            .iter()
            .map(|outcome| {
                let jobs: Vec<Value> = outcome
                    .jobs
                    .iter()
                    .map(|job| {
                        let mut value = json!({ "name": job.name, "end": words(&job.end), "seconds": job.seconds });
                        if job.end != End::Ok {
                            value["output's tail"] = json!(tail(&job.output, 30));
                        }
                        value
                    })
                    .collect();
                json!({
                    "part": outcome.name, "verdict": verdict(outcome.verdict()), "seconds": outcome.seconds,
                    "notes": outcome.notes, "jobs": jobs, "rows": outcome.rows,
                })
            })
            .collect();
        json!({
            "reduced": self.reduced, "seconds": self.seconds, "machine": self.machine, "libraries": self.libraries, "kit": self.manifest,
            "predictions": self.predictions, "parts": parts,
        })
    }

    fn markdown(&self) -> String {
        let mut text = String::from("# What a GPU says\n\n");
        let rows = |name: &str| {
            self.outcomes.iter().find(|outcome| outcome.name == name).map_or(&[][..], |outcome| &outcome.rows[..])
        };
        let device = rows("device").iter().find_map(|row| row["name"].as_str()).unwrap_or("an unknown device");
        if self.reduced {
            text.push_str("**REDUCED**: the sizes are those that an emulated device has done in seconds. This says that the kit runs; no time in it is to be used.\n\n");
        }
        let _ = writeln!(
            text,
            "{device}; {}. Kit: {}. {:.0} s in all.\n",
            self.machine,
            plain(&self.manifest),
            self.seconds
        );
        text.push_str("| part | verdict | s | |\n|---|---|---:|---|\n");
        for outcome in &self.outcomes {
            let note = outcome.notes.first().map_or("", |note| note.lines().next().unwrap_or_default());
            let _ = writeln!(
                text,
                "| [{}](#{}) | {} | {:.0} | {note} |",
                outcome.title,
                anchor(outcome.title),
                verdict(outcome.verdict()),
                outcome.seconds
            );
        }
        for outcome in &self.outcomes {
            let _ = writeln!(text, "\n## {}\n", outcome.title);
            for note in &outcome.notes {
                let _ = writeln!(text, "{note}\n");
            }
            match outcome.name {
                _ if outcome.rows.is_empty() => {}
                "device" => self.device(&mut text, outcome),
                "ceilings" => self.ceilings(&mut text, outcome),
                "load" => load(&mut text, outcome),
                "check" => check(&mut text, outcome),
                "suites" => suites(&mut text, outcome),
                "times" | "torch" => self.times(&mut text, outcome),
                "ncu" => self.counters(&mut text, outcome),
                _ => {
                    general(&mut text, outcome);
                    self.beside_predictions(&mut text, outcome);
                }
            }
            problems(&mut text, outcome);
        }
        let _ = writeln!(text, "\nPredictions: {}", self.predictions["about"].as_str().unwrap_or("none"));
        text
    }

    fn device(&self, text: &mut String, outcome: &Outcome) {
        for row in &outcome.rows {
            let Some(row) = row.as_object() else { continue };
            if let Some(said) = row.get("text").and_then(Value::as_str) {
                let _ = writeln!(text, "```\n{said}\n```");
                continue;
            }
            let list: Vec<String> = row
                .iter()
                .filter(|(key, _)| *key != "job")
                .map(|(key, value)| format!("{key} {}", plain(value)))
                .collect();
            let _ = writeln!(text, "{}\n", list.join("; "));
        }
        let _ = writeln!(
            text,
            "\nLibraries: {}\n",
            if self.libraries.is_empty() { "as the loader finds them" } else { &self.libraries }
        );
    }

    fn ceilings(&self, text: &mut String, outcome: &Outcome) {
        text.push_str(
            "| | median | least to most | | assumed by the predictions | over it |\n|---|---:|---|---|---:|---:|\n",
        );
        for row in good(outcome) {
            let what = row["what"].as_str().unwrap_or_default();
            let assumed = self.predictions["ceilings"]
                .as_object()
                .and_then(|all| all.iter().find(|(name, _)| what.starts_with(name.as_str())));
            let assumed = assumed.and_then(|(_, value)| value.as_f64());
            let over = row["median"].as_f64().zip(assumed).map(|(now, then)| now / then);
            let _ = writeln!(
                text,
                "| {what} | {} | {} | {} | {} | {} |",
                number(&row["median"]),
                range(row),
                plain(&row["unit"]),
                optional(assumed),
                optional(over)
            );
        }
    }

    /// The prediction of a step, where there is one.
    fn predicted(&self, row: &Value) -> Option<&Value> {
        self.predictions["steps"]
            .as_array()?
            .iter()
            .find(|step| step["size"] == row["size"] && step["type"] == row["type"])
    }

    fn times(&self, text: &mut String, outcome: &Outcome) {
        text.push_str("| N, C, D | type | way | µs | least to most | GB/s | TFLOP/s | × step | predicted µs | | × floor |\n|---|---|---|---:|---|---:|---:|---:|---:|---|---:|\n");
        let own = self.outcomes.iter().find(|outcome| outcome.name == "times");
        let step = |row: &Value| -> Option<f64> {
            own?.rows.iter().find(|own| {
                own["size"] == row["size"] && own["type"] == row["type"] && own["way"] == "loss_and_grads_into"
            })?["median"]
                .as_f64()
        };
        for row in good(outcome).filter(|row| row.get("text").is_none()) {
            let micros = row["median"].as_f64();
            let prediction = self.predicted(row);
            let way = row["way"].as_str().unwrap_or_default();
            let predicted = prediction.and_then(|step| step["ways"][way].as_f64());
            let judged = micros.zip(predicted).map_or_else(String::new, |(now, then)| judge(now / then));
            let floor = prediction
                .and_then(|step| step["floor"].as_f64())
                .filter(|_| !way.contains("forward") || way.contains("backward"));
            let _ = writeln!(
                text,
                "| {} | {} | {way} | {} | {} | {} | {} | {} | {} | {judged} | {} |",
                plain(&row["size"]),
                plain(&row["type"]),
                number(&row["median"]),
                range(row),
                number(&row["GB/s"]),
                number(&row["TFLOP/s"]),
                optional(micros.zip(step(row)).map(|(now, step)| now / step)),
                optional(predicted),
                optional(micros.zip(floor).map(|(now, floor)| now / floor)),
            );
        }
        for said in outcome.rows.iter().filter_map(|row| row["text"].as_str()) {
            let _ = writeln!(text, "\nRight after:\n\n```\n{said}\n```");
        }
    }

    /// Steps of this crate's that another part has timed.
    fn beside_predictions(&self, text: &mut String, outcome: &Outcome) {
        for row in good(outcome).filter(|row| outcome.name == "large" && row["median"].is_number()) {
            let Some(step) = self.predicted(row) else { continue };
            let (now, then) = (row["median"].as_f64(), step["ways"]["loss_and_grads_into"].as_f64());
            let Some((now, then)) = now.zip(then) else { continue };
            let _ = writeln!(
                text,
                "\n{}: predicted {} µs, {}",
                plain(&row["what"]),
                number(&json!(then)),
                judge(now / then)
            );
        }
    }

    fn counters(&self, text: &mut String, outcome: &Outcome) {
        text.push_str("| step | | device | emulator | over it |\n|---|---|---:|---:|---:|\n");
        for row in good(outcome).filter(|row| row.get("sum").is_some()) {
            let job = row["job"].as_str().unwrap_or_default();
            let counted = self.figures.as_array().and_then(|all| {
                all.iter().find(|of| {
                    let size: Vec<String> = of["size"].as_array().into_iter().flatten().map(Value::to_string).collect();
                    format!("{} {} {}", size.join(","), plain(&of["type"]), plain(&of["way"])) == job
                })
            });
            let sum = &row["sum"];
            let add = |names: &[&str], by: f64| -> Option<f64> {
                names.iter().map(|name| sum[*name].as_f64()).sum::<Option<f64>>().map(|sum| by * sum)
            };
            let launches = row["launches"].as_array().map(|launches| launches.len() as f64);
            let lines: [(&str, Option<f64>, &str); 9] = [
                ("launches", launches, "launches"),
                (
                    "bytes from and to memory; distinct bytes",
                    add(&["read from memory, bytes", "written to memory, bytes"], 1.0),
                    "distinct bytes",
                ),
                (
                    "bytes asked for",
                    add(&["sectors asked of global memory by loads", "sectors asked of global memory by stores"], 32.0),
                    "requested bytes",
                ),
                ("bytes of the second-level cache", add(&["sectors of the second-level cache"], 32.0), ""),
                ("bank conflicts", add(&["bank conflicts"], 1.0), "bank conflicts"),
                ("sectors of local memory", add(&["sectors of local memory"], 1.0), ""),
                ("thread instructions (machine code; PTX)", add(&["thread instructions"], 1.0), "thread instructions"),
                ("instructions of the tensor pipe", add(&["instructions of the tensor pipe"], 1.0), ""),
                ("µs", add(&["time, ns"], 1e-3), ""),
            ];
            for (what, found, name) in lines {
                let emulated = counted.and_then(|of| of[name].as_f64());
                let over = found
                    .zip(emulated)
                    .filter(|(_, emulated)| *emulated > 0.0)
                    .map(|(found, emulated)| found / emulated);
                let _ = writeln!(
                    text,
                    "| {job} | {what} | {} | {} | {} |",
                    optional(found),
                    optional(emulated),
                    optional(over)
                );
            }
        }
    }
}

/// A ratio of what is to what was predicted, in words.
fn judge(ratio: f64) -> String {
    match ratio {
        r if r > NEAR => format!("{r:.1} × slower"),
        r if r < 1.0 / NEAR => format!("{:.1} × faster", 1.0 / r),
        r => format!("as predicted ({r:.2})"),
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Failed => "**FAILED**",
        Verdict::CutShort => "cut short",
        Verdict::NotRun => "not run",
    }
}

fn words(end: &End) -> String {
    match end {
        End::Ok => "ok".into(),
        End::Failed(how) => format!("failed: {how}"),
        End::Stopped(seconds) => format!("stopped at its limit, after {seconds} s"),
        End::NotStarted(why) => format!("not started: {why}"),
    }
}

fn anchor(title: &str) -> String {
    title
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Rows that are no failures.
fn good(outcome: &Outcome) -> impl Iterator<Item = &Value> {
    outcome.rows.iter().filter(|row| row.get("failed").is_none())
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(all) => {
            all.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect::<Vec<_>>().join("; ")
        }
        Value::Number(_) => number(value),
        Value::Bool(value) => value.to_string(),
    }
}

/// Three digits or more.
fn number(value: &Value) -> String {
    let Some(number) = value.as_f64() else { return String::new() };
    match number.abs() {
        _ if value.is_u64() || value.is_i64() => value.to_string(),
        size if size >= 1e7 => format!("{number:.3e}"),
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 0.01 => format!("{number:.2}"),
        0.0 => "0".into(),
        _ => format!("{number:.1e}"),
    }
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| number(&json!(value)))
}

fn range(row: &Value) -> String {
    match row["runs"].as_u64() {
        Some(runs) if runs > 1 => format!("{} to {} of {runs}", number(&row["least"]), number(&row["most"])),
        Some(_) => "one run".into(),
        None => String::new(),
    }
}

fn load(text: &mut String, outcome: &Outcome) {
    text.push_str("| | cold, ms | warm, ms | kernels | most registers |\n|---|---:|---:|---:|---:|\n");
    let of = |job: &str, what: &Value| {
        outcome.rows.iter().find(|row| row["job"] == job && row["what"] == *what && row.get("failed").is_none())
    };
    for cold in good(outcome).filter(|row| row["job"] == "cold") {
        let warm = of("warm", &cold["what"]).map(|warm| number(&warm["median"])).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {} | {warm} | {} | {} |",
            plain(&cold["what"]),
            number(&cold["median"]),
            plain(&cold["kernels"]),
            plain(&cold["most registers"])
        );
    }
}

fn check(text: &mut String, outcome: &Outcome) {
    text.push_str("The largest error of each type and way, in units of what is allowed of a row (1: a failure).\n\n| type | way | sizes | failed | error | at |\n|---|---|---:|---:|---:|---|\n");
    let mut groups: Vec<(String, String, Vec<&Value>)> = Vec::new();
    for row in &outcome.rows {
        let (of, way) = (plain(&row["type"]), plain(&row["way"]));
        match groups.iter_mut().find(|(a, b, _)| *a == of && *b == way) {
            Some((_, _, rows)) => rows.push(row),
            None => groups.push((of, way, vec![row])),
        }
    }
    for (of, way, rows) in groups {
        let failed = rows.iter().filter(|row| row.get("failed").is_some()).count();
        let worst = rows
            .iter()
            .max_by(|a, b| a["error"].as_f64().unwrap_or(0.0).total_cmp(&b["error"].as_f64().unwrap_or(0.0)));
        let worst = worst.filter(|row| row["error"].is_number());
        let at = worst.map_or_else(
            // At the poles there is no bound: what was found of each way.
            || {
                rows[0]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(key, _)| key.contains("off by"))
                    .map(|(key, value)| format!("{key} {}", number(value)))
                    .collect::<Vec<_>>()
                    .join("; ")
            },
            |row| format!("{}: {}", plain(&row["size"]), plain(&row["of"])),
        );
        let _ = writeln!(
            text,
            "| {of} | {way} | {} | {failed} | {} | {at} |",
            rows.len(),
            worst.map(|row| number(&row["error"])).unwrap_or_default()
        );
    }
}

fn suites(text: &mut String, outcome: &Outcome) {
    text.push_str("| suite | | passed | failed | ignored | s |\n|---|---|---:|---:|---:|---:|\n");
    for (job, row) in outcome.jobs.iter().zip(&outcome.rows) {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.0} |",
            job.name,
            words(&job.end),
            plain(&row["passed"]),
            plain(&row["failing"]),
            plain(&row["ignored"]),
            job.seconds
        );
    }
}

/// A table of whatever the rows have.
fn general(text: &mut String, outcome: &Outcome) {
    let rows: Vec<&Map<String, Value>> = good(outcome).filter_map(Value::as_object).collect();
    let mut columns: Vec<&String> = Vec::new();
    for key in rows.iter().flat_map(|row| row.keys()) {
        if !columns.contains(&key) && (key != "job" || outcome.name == "sanitizer") {
            columns.push(key);
        }
    }
    let first = ["what", "size", "type", "way", "unit", "median", "least", "most", "runs"];
    columns.sort_by_key(|key| first.iter().position(|of| of == key).unwrap_or(first.len()));
    // A checker's own steps are listed where they fail.
    let rows: Vec<_> =
        rows.into_iter().filter(|row| outcome.name != "sanitizer" || row.contains_key("summary")).collect();
    columns.retain(|key| rows.iter().any(|row| row.contains_key(*key)));
    if rows.is_empty() || columns.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "|{}|\n|{}|",
        columns.iter().map(|key| format!(" {key} ")).collect::<Vec<_>>().join("|"),
        "---|".repeat(columns.len()).trim_end_matches('|')
    );
    for row in rows {
        let _ = writeln!(
            text,
            "|{}|",
            columns
                .iter()
                .map(|key| format!(" {} ", row.get(*key).map(plain).unwrap_or_default()))
                .collect::<Vec<_>>()
                .join("|")
        );
    }
}

/// Rows that failed, and the tails of jobs that did not end well.
fn problems(text: &mut String, outcome: &Outcome) {
    let failed: Vec<&Value> = outcome.rows.iter().filter(|row| row.get("failed").is_some()).collect();
    if !failed.is_empty() {
        let _ = writeln!(text, "\n{} failed:\n", failed.len());
    }
    for row in failed.iter().take(20) {
        let mut row = (*row).clone();
        let why = row.as_object_mut().and_then(|row| row.shift_remove("failed")).unwrap_or_default();
        let _ = writeln!(text, "- {}: **{}**", plain(&row), plain(&why).replace('\n', " "));
    }
    if failed.len() > 20 {
        let _ = writeln!(text, "- and {} more, in report.json", failed.len() - 20);
    }
    for job in outcome.jobs.iter().filter(|job| job.end != End::Ok) {
        let _ = writeln!(text, "\n{}: **{}**, after {:.1} s.", job.name, words(&job.end), job.seconds);
        if !job.output.trim().is_empty() {
            let _ = writeln!(text, "\n```\n{}\n```", tail(&job.output, 30).replace("```", "'''"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Done;

    fn outcome(name: &'static str, end: End, rows: Vec<Value>) -> Outcome {
        let job = Done { name: "a job".into(), end, seconds: 2.0, output: "first\nlast words\n".into() };
        Outcome { name, title: "A part", jobs: vec![job], rows, notes: Vec::new(), seconds: 2.0 }
    }

    fn report(outcomes: Vec<Outcome>) -> Report {
        let predictions = json!({
            "about": "a model", "ceilings": { "copy in memory": 3000.0 },
            "steps": [{ "size": [64, 100, 64], "type": "bf16", "floor": 4.0, "ways": { "loss_and_grads_into": 84.0 } }],
        });
        let figures = json!([{ "size": [64, 100, 64], "type": "bf16", "way": "fused_step", "bank conflicts": 100.0 }]);
        let (manifest, libraries, machine) = (json!({ "commit": "abc" }), String::new(), "a host".into());
        Report { reduced: false, manifest, predictions, figures, libraries, machine, outcomes, seconds: 9.0 }
    }

    #[test]
    fn figures_stand_beside_their_predictions() {
        let step = |way: &str, micros: f64| json!({ "size": [64, 100, 64], "type": "bf16", "way": way, "median": micros, "least": micros, "most": micros, "runs": 15 });
        let times = outcome(
            "times",
            End::Ok,
            vec![step("loss_and_grads_into", 42.0), step("forward", 4.0), step("composed, forward + backward", 420.0)],
        );
        let copy = json!({ "what": "copy in memory", "median": 2400.0, "least": 2300.0, "most": 2500.0, "runs": 15, "unit": "GB/s" });
        let text = report(vec![outcome("ceilings", End::Ok, vec![copy]), times]).markdown();
        assert!(text.contains("| copy in memory | 2400 | 2300 to 2500 of 15 | GB/s | 3000 | 0.80 |"), "{text}");
        assert!(text.contains("| 64, 100, 64 | bf16 | loss_and_grads_into | 42.0 | 42.0 to 42.0 of 15 |  |  | 1.00 | 84.0 | 2.0 × faster | 10.5 |"), "{text}");
        // A forward pass has another floor.
        assert!(text.contains("| forward | 4.00 | 4.00 to 4.00 of 15 |  |  | 0.10 |  |  |  |"), "{text}");
        assert!(text.contains("| 10.0 |  |  | 105 |"), "{text}");
        assert!(!text.contains("REDUCED") && text.contains("[A part](#a-part) | ok |"), "{text}");
    }

    #[test]
    fn a_failure_is_told_with_its_tail() {
        let failed = json!({ "size": [1, 1, 1], "type": "f32", "way": "streaming", "failed": "dX is off" });
        let all = report(vec![
            outcome("check", End::Failed("exit status 1".into()), vec![failed]),
            outcome("large", End::Stopped(60), vec![]),
        ]);
        let text = all.markdown();
        assert!(
            text.contains("| **FAILED** |") && text.contains("- size 1, 1, 1; type f32; way streaming: **dX is off**"),
            "{text}"
        );
        assert!(
            text.contains("a job: **failed: exit status 1**, after 2.0 s.\n\n```\nfirst\nlast words\n```"),
            "{text}"
        );
        assert!(text.contains("| cut short |") && text.contains("**stopped at its limit, after 60 s**"), "{text}");
        let json = all.json();
        assert_eq!(json["parts"][0]["jobs"][0]["output's tail"], "first\nlast words");
        assert_eq!(json["parts"][1]["verdict"], "cut short");
    }

    #[test]
    fn counters_stand_beside_the_emulators() {
        let row = json!({ "job": "64,100,64 bf16 fused_step", "launches": [{}], "sum": { "bank conflicts": 250.0 } });
        let text = report(vec![outcome("ncu", End::Ok, vec![row])]).markdown();
        assert!(text.contains("| 64,100,64 bf16 fused_step | bank conflicts | 250 | 100 | 2.50 |"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (json!(3), "3"),
            (json!(123456.0), "123456"),
            (json!(1.2e9), "1.200e9"),
            (json!(0.0), "0"),
            (json!(1e-5), "1.0e-5"),
            (json!(0.5), "0.50"),
        ] {
            assert_eq!(number(&value), text);
        }
    }
}
