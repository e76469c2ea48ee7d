//! The kernels compiled for every architecture they are for: no warning, no spill, no stack, and registers and shared memory as the committed table
//! (`kernels/resources.md`) has them, so that a change shows. `MARGIN_LOSS_RECORD=1` writes the table anew.
#![cfg(feature = "cuda")]
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

const KERNELS: [&str; 4] = ["stream_forward", "stream_backward", "fused_step", "scale"];
const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];
const THREADS: usize = 128;

/// What ptxas says of one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Resources {
    registers: usize,
    shared: usize,
    stack: usize,
    spills: usize,
}

/// The number before a phrase of ptxas's.
fn number(text: &str, before: &str) -> usize {
    let Some(at) = text.find(before) else { return 0 };
    let digits = text[..at].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn compile(ptxas: &Path, kernel: &str, architecture: &str) -> BTreeMap<String, Resources> {
    let ptx = format!("{}/{kernel}.ptx", env!("OUT_DIR"));
    let out = std::env::temp_dir().join(format!("margin-loss-{}-{kernel}-{architecture}.cubin", std::process::id()));
    let flags = ["-v", "-Werror", "--warn-on-spills", "--warn-on-local-memory-usage"];
    let run = Command::new(ptxas).args(flags).args(["-arch", architecture, "-o"]).arg(&out).arg(&ptx).output();
    let run = run.unwrap_or_else(|error| panic!("{}: {error}", ptxas.display()));
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{kernel} for {architecture}: {text}");
    let _ = std::fs::remove_file(out);
    let mut entries = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current = rest.split('\'').next().unwrap_or_default().to_string();
        } else if line.contains("bytes stack frame") {
            let spills = number(line, "bytes spill stores") + number(line, "bytes spill loads");
            entries.insert(
                current.clone(),
                Resources { stack: number(line, "bytes stack frame"), spills, ..Default::default() },
            );
        } else if line.contains(" registers") {
            let entry = entries.entry(current.clone()).or_insert_with(Resources::default);
            (entry.registers, entry.shared) = (number(line, "registers"), number(line, "bytes smem"));
        }
    }
    entries
}

/// Blocks of a multiprocessor, by registers and static shared memory (of sm_80: 64 K registers in units of 256 a warp, 164 KB).
fn occupancy(resources: &Resources) -> usize {
    let registers = (resources.registers * 32).next_multiple_of(256) * (THREADS / 32);
    (65_536 / registers.max(1)).min((164 << 10) / (resources.shared + 1024)).min(16)
}

#[test]
fn every_target_as_recorded() {
    let home = std::env::var("CUDA_HOME").unwrap_or_else(|_| "/usr/local/cuda".into());
    let ptxas = Path::new(&home).join("bin/ptxas");
    let version = Command::new(&ptxas).arg("--version").output();
    let version = version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    if !version.contains("release 13.0") {
        println!("SKIPPED: the table is of ptxas 13.0, {} is {version:?}", ptxas.display());
        return;
    }
    let jobs: Vec<_> =
        KERNELS.iter().flat_map(|kernel| ARCHITECTURES.map(|architecture| (*kernel, architecture))).collect();
    let mut found = BTreeMap::<String, BTreeMap<&str, Resources>>::new();
    for pair in jobs.chunks(2) {
        let results = std::thread::scope(|scope| {
            let started: Vec<_> = pair.iter().map(|&(k, a)| (a, scope.spawn(|| compile(&ptxas, k, a)))).collect();
            started.into_iter().map(|(a, job)| (a, job.join().unwrap())).collect::<Vec<_>>()
        });
        for (architecture, entries) in results {
            for (entry, resources) in entries {
                assert_eq!((resources.stack, resources.spills), (0, 0), "{entry} for {architecture}");
                // MARGIN_LOSS_STEP_STATIC in kernels/params.h, beside what a plan asks for.
                let has_more = ["fused_step", "stream_backward"].iter().any(|kernel| entry.starts_with(kernel));
                assert!(!has_more || resources.shared <= 2048, "{entry} for {architecture}");
                found.entry(entry).or_default().insert(architecture, resources);
            }
        }
    }
    assert_eq!(
        found.len(),
        13 * 4 + 11 + 6,
        "thirteen kinds of four kernels, eleven of stream_backward, and scale_gradients"
    );

    let mut table = String::from(
        "# Registers, shared memory and occupancy\n\n\
         By ptxas 13.0 from the PTX that ships (`compute_80`), 128 threads a block. No entry has a stack or spills on any of these. Shared memory is the static\n\
         part; all but `scale_gradients` have their tiles beside it (`kernels/params.h`). The last column is how many blocks a multiprocessor of sm_80 holds by\n\
         registers and static shared memory. Written and checked by `tests/targets.rs`.\n\n| entry |",
    );
    for architecture in ARCHITECTURES {
        write!(table, " {architecture} |").unwrap();
    }
    table.push_str(" shared bytes | blocks |\n|---|");
    table.push_str(&"---:|".repeat(ARCHITECTURES.len() + 2));
    table.push('\n');
    for (entry, of) in &found {
        write!(table, "| `{entry}` |").unwrap();
        for architecture in ARCHITECTURES {
            write!(table, " {} |", of[architecture].registers).unwrap();
        }
        writeln!(table, " {} | {} |", of["sm_80"].shared, occupancy(&of["sm_80"])).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/resources.md");
    if std::env::var_os("MARGIN_LOSS_RECORD").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    assert!(recorded == table, "not what kernels/resources.md has (MARGIN_LOSS_RECORD=1 writes it anew):\n{table}");
}
