//! The kit's own program: `kit run` runs the parts of `parts.rs` one after the other, each within its time and going on after a failure, and
//! writes `report.md` and `report.json` anew after each, so that whatever stops it leaves what is known by then. It needs no CUDA itself.
//!
//!     kit run --home FOLDER --out FOLDER [--reduced] [--seconds N] [--only NAME,…] [--work FOLDER]
//!     kit figures kernels/figures.md      the table's raw numbers as JSON

mod figures;
mod ncu;
mod parts;
mod process;
mod report;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

/// What `kit run` is told.
pub struct Options {
    /// Where the archive was unpacked
    pub home: PathBuf,
    /// Where the report goes
    pub out: PathBuf,
    /// Rows and logs of the parts, removed at the end unless asked for
    pub work: PathBuf,
    /// Sizes that an emulated device has done in seconds
    pub reduced: bool,
    /// For all of it
    pub seconds: u64,
    /// Parts by name; all if empty
    pub only: Vec<String>,
}

fn options(args: &[String]) -> Result<(Options, bool), String> {
    let mut options = Options {
        home: PathBuf::new(),
        out: PathBuf::from("."),
        work: std::env::temp_dir().join(format!("margin-loss-kit-{}", std::process::id())),
        reduced: false,
        seconds: 530,
        only: Vec::new(),
    };
    let mut keep = false;
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let mut value = || args.next().cloned().ok_or(format!("{flag} wants a value"));
        match flag.as_str() {
            "--home" => options.home = value()?.into(),
            "--out" => options.out = value()?.into(),
            "--work" => (options.work, keep) = (value()?.into(), true),
            "--reduced" => options.reduced = true,
            "--seconds" => options.seconds = value()?.parse().map_err(|_| "--seconds wants a number".to_string())?,
            "--only" => options.only = value()?.split(',').map(Into::into).collect(),
            other => return Err(format!("kit run knows no {other}")),
        }
    }
    Ok((options, keep))
}

/// A file of JSON that the archive has.
fn json_of(path: &std::path::Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn run(args: &[String]) -> Result<bool, String> {
    let (options, keep) = options(args)?;
    for folder in [&options.out, &options.work] {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let good = parts::run_all(&options)?;
    if !keep {
        let _ = std::fs::remove_dir_all(&options.work);
    }
    Ok(good)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match &args[..] {
        [command, rest @ ..] if command == "run" => run(rest),
        [command, file] if command == "figures" => std::fs::read_to_string(file)
            .map_err(|error| format!("{file}: {error}"))
            .and_then(|text| figures::raw(&text))
            .map(|figures| {
                println!("{figures:#}");
                true
            }),
        _ => Err("kit run … | kit figures FILE".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("kit: {error}");
            ExitCode::from(2)
        }
    }
}
