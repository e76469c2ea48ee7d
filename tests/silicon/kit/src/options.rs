//! What `kit run` is told, and what the archive has beside it.

use std::path::{Path, PathBuf};

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

pub fn options(args: &[String]) -> Result<(Options, bool), String> {
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
pub fn json_of(path: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}
