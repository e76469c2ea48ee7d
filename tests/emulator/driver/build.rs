//! Writes a stub for every name of `symbols.txt` that the sources do not define.

use std::fmt::Write;

fn main() {
    let sources = ["cuda", "blas", "random"].map(|file| {
        let path = format!("src/{file}.rs");
        println!("cargo::rerun-if-changed={path}");
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    });
    println!("cargo::rerun-if-changed=symbols.txt");
    println!("cargo::rerun-if-changed=build.rs");
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let defined: std::collections::HashSet<&str> =
        sources.iter().flat_map(|source| source.split(|c| !word(c))).collect();
    let names = std::fs::read_to_string("symbols.txt").unwrap_or_else(|error| panic!("symbols.txt: {error}"));
    let mut stubs = String::new();
    let mut code = 0;
    for line in names.lines() {
        if let Some(library) = line.strip_prefix("# ") {
            // What each library calls "not supported", or comes nearest to it.
            code = match library {
                "driver" => 801,             // CUDA_ERROR_NOT_SUPPORTED
                "cublas" | "cublaslt" => 15, // CUBLAS_STATUS_NOT_SUPPORTED
                "curand" => 999,             // CURAND_STATUS_INTERNAL_ERROR
                "nvrtc" => 11,               // NVRTC_ERROR_INTERNAL_ERROR
                other => panic!("symbols.txt: no library {other}"),
            };
        } else if !defined.contains(line) {
            let _ = writeln!(
                stubs,
                "#[unsafe(no_mangle)]\nextern \"C\" fn {line}() -> u32 {{\n    unsupported(\"{line}\", {code})\n}}"
            );
        }
    }
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("stubs.rs");
    std::fs::write(&out, stubs).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
}
