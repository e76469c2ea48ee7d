//! Where the compiler is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where nvcc is: in `CUDA_HOME`, on the `PATH`, or what `toolkit.sh` installs under `target/`, in this order.
///
/// # Errors
/// Why there is none.
pub fn find() -> Result<PathBuf, String> {
    if let Some(home) = std::env::var_os("CUDA_HOME") {
        let nvcc = Path::new(&home).join("bin/nvcc");
        return if nvcc.exists() {
            Ok(nvcc)
        } else {
            Err(format!("CUDA_HOME is set, but there is no {}", nvcc.display()))
        };
    }
    if Command::new("nvcc").arg("--version").output().is_ok_and(|out| out.status.success()) {
        return Ok("nvcc".into());
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/toolkit.sh");
    let out = Command::new("sh").arg(script).output().map_err(|error| format!("sh {script}: {error}"))?;
    if !out.status.success() {
        return Err(format!("no nvcc, and toolkit.sh could not install one: {}", String::from_utf8_lossy(&out.stderr)));
    }
    Ok(Path::new(String::from_utf8_lossy(&out.stdout).trim()).join("bin/nvcc"))
}

/// The PTX of a source file for compute capability 8.0, with the lines of the source.
///
/// # Errors
/// There is no nvcc, or what it says of the source.
pub fn compile(source: &Path) -> Result<String, String> {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let target = std::env::temp_dir().join(format!("ptx-emulator-{}-{count}.ptx", std::process::id()));
    let nvcc = find()?;
    let mut command = Command::new(&nvcc);
    command.args(["-ptx", "-arch=compute_80", "-lineinfo", "-o"]).arg(&target).arg(source);
    let out = command.output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    let text = std::fs::read_to_string(&target).map_err(|error| format!("{}: {error}", target.display()));
    let _ = std::fs::remove_file(&target);
    text
}
