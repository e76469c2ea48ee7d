//! The kernels of `kernels/`, compiled once each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// PTX of a file of `kernels/`; none, with the reason printed, where there is no nvcc.
pub fn ptx(name: &'static str) -> Option<String> {
    static COMPILED: Mutex<BTreeMap<&str, Option<String>>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().unwrap();
    let compile = || {
        if let Err(reason) = ptx_emulator::nvcc::find() {
            println!("SKIPPED {name}: {reason}");
            return None;
        }
        let source = format!("{}/kernels/{name}.cu", env!("CARGO_MANIFEST_DIR"));
        Some(ptx_emulator::nvcc::compile(Path::new(&source)).unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    compiled.entry(name).or_insert_with(compile).clone()
}
