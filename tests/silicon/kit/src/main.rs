//! The kit's own program: `kit run` runs the parts of `parts.rs` one after the other, each within its time and going on after a failure, and
//! writes `report.md` and `report.json` anew after each, so that whatever stops it leaves what is known by then. It needs no CUDA itself.
//!
//! ```text
//! kit run --home FOLDER --out FOLDER [--reduced] [--seconds N] [--only NAME,…] [--work FOLDER]
//! kit figures kernels/figures.md      the table's raw numbers as JSON
//! ```

mod figures;
mod ncu;
mod options;
mod outcome;
mod parts;
mod process;
mod report;
mod tools;

use std::process::ExitCode;

use options::options;

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
