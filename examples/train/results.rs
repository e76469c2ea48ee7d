//! What a run leaves: its configuration, its epochs in JSON, its curves, and its line of the table.

use std::fmt::Write;
use std::path::Path;

use clap::ValueEnum;
use plotters::prelude::*;

use crate::data::Dataset;
use crate::methods::Method;
use crate::paper;
use crate::run::{Config, Progress};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A method's name for files.
pub fn slug(method: Method) -> String {
    method.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
}

pub fn write_config(folder: &Path, config: &Config) -> Result<()> {
    let write = || {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(config)? + "\n")
    };
    write().map_err(|error| format!("{}: {error}", folder.display()).into())
}

/// `results.json` and `curves.svg`.
pub fn write(folder: &Path, config: &Config, progress: &Progress) -> Result<()> {
    let all = serde_json::json!({ "config": config, "epochs": progress.history });
    let path = folder.join("results.json");
    std::fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")
        .map_err(|error| format!("{}: {error}", path.display()))?;
    curves(&folder.join("curves.svg"), config, progress).map_err(|error| error.to_string().into())
}

/// Training loss, and accuracy in training and test, by epoch.
fn curves(path: &Path, config: &Config, progress: &Progress) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (960, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(480);
    let history = &progress.history;
    let most = history.iter().map(|epoch| epoch.train_loss).fold(1e-3, f64::max);
    type Value = fn(&crate::run::Epoch) -> f64;
    let loss: [(&str, RGBColor, Value); 1] = [("training", BLUE, |epoch| epoch.train_loss)];
    let accuracy: [(&str, RGBColor, Value); 2] = [
        ("training", BLUE, |epoch| 100.0 * epoch.train_accuracy),
        ("test", RED, |epoch| 100.0 * epoch.test_accuracy[0].unwrap_or(0.0)),
    ];
    for (area, title, top, lines) in
        [(left, "loss", 1.05 * most, &loss[..]), (right, "accuracy, %", 100.0, &accuracy[..])]
    {
        let caption = format!("{}: {title}", config.method.name());
        let mut chart = ChartBuilder::on(&area)
            .caption(caption, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..config.epochs as f64, 0.0..top)?;
        chart.configure_mesh().x_desc("epoch").draw()?;
        for &(name, colour, value) in lines {
            let points = history.iter().enumerate().map(|(i, epoch)| ((i + 1) as f64, value(epoch)));
            chart
                .draw_series(LineSeries::new(points, &colour))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        }
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    }
    root.present()?;
    Ok(())
}

/// A run after its last epoch.
pub fn line(config: &Config, progress: &Progress) -> String {
    let Some(last) = progress.history.last() else { return String::new() };
    format!(
        "{:<10} seed {} epoch {:>3}: loss {:6.3}, training accuracy {:5.1} %, hard positives {:5.1} %, test accuracy {:5.1} %",
        config.method.name(),
        config.seed,
        progress.history.len(),
        last.train_loss,
        100.0 * last.train_accuracy,
        100.0 * last.hard_positive_rate,
        100.0 * last.test_accuracy[0].unwrap_or(f64::NAN)
    )
}

/// A line a method: test accuracy in %, over all classes and by group, the mean of the seeds; beside it the paper's, where the data set is one of its.
pub fn table(runs: &[(Config, Progress)], dataset: &Dataset, set: Option<paper::Set>) -> String {
    let mut text = format!("Test accuracy in %, last epoch. Groups: {}.\n\n", dataset.groups.rule);
    let heads = ["All", "Many", "Medium", "Few"].map(|head| format!(" {head:>6}")).concat();
    let (title, line) = match set {
        Some(_) => (format!("{:<12}{heads} │{heads}  (paper)", "method"), 78),
        None => (format!("{:<12}{heads}", "method"), 40),
    };
    let _ = writeln!(text, "{title}\n{}", "─".repeat(line));
    let cells = |values: [Option<f64>; 4], digits: usize| {
        values.map(|value| value.map_or_else(|| format!(" {:>6}", "–"), |v| format!(" {v:6.digits$}"))).concat()
    };
    for &method in Method::value_variants() {
        let of: Vec<_> = runs.iter().filter(|(config, _)| config.method == method).collect();
        let Some((config, _)) = of.first() else { continue };
        let mean = |group: usize| -> Option<f64> {
            let last = of.iter().map(|(_, progress)| progress.history.last()?.test_accuracy[group]);
            let values: Vec<f64> = last.collect::<Option<_>>()?;
            Some(100.0 * values.iter().sum::<f64>() / values.len() as f64)
        };
        let _ = write!(text, "{:<12}{}", method.name(), cells([0, 1, 2, 3].map(mean), 1));
        if let Some(set) = set {
            let paper = paper::accuracy(set, config.imbalance_factor, method).unwrap_or_default();
            let _ = write!(text, " │{}", cells(paper, 2));
        }
        text.push('\n');
    }
    if let Some(set) = set {
        let _ = writeln!(text, "\n{}", paper::note(set));
    }
    text
}
