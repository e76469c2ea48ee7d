//! What of the machine code of the main loops makes products: of the kinds on tensor cores, HMMA of a whole step's instructions on the path of whole,
//! aligned tiles; of the others, FFMA. By ptxas and cuobjdump (`sh tests/emulator/toolkit.sh tools`), for sm_80 and sm_90.
#![cfg(feature = "cuda")]
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// An instruction: its address, its name, its operands.
struct Instruction {
    at: u64,
    name: String,
    rest: String,
}

/// The functions of what cuobjdump prints.
fn functions(text: &str) -> Vec<(String, Vec<Instruction>)> {
    let mut all = Vec::<(String, Vec<Instruction>)>::new();
    for line in text.lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            all.push((name.trim().to_string(), Vec::new()));
        } else if let Some((at, rest)) = line.trim().strip_prefix("/*").and_then(|line| line.split_once("*/"))
            && let (Ok(at), Some((code, _))) = (u64::from_str_radix(at, 16), rest.split_once(';'))
            && let Some((_, body)) = all.last_mut()
        {
            let mut words = code.split_whitespace().skip_while(|word| word.starts_with('@'));
            let name = words.next().unwrap_or_default().to_string();
            body.push(Instruction { at, name, rest: words.collect::<Vec<_>>().join(" ") });
        }
    }
    all
}

/// Of each innermost loop with products of `name` and asynchronous copies or none of a narrow kind: (products, instructions).
fn main_loops(body: &[Instruction], product: &str, least: usize) -> Vec<(usize, usize)> {
    let count =
        |from: usize, to: usize, name: &str| body[from..=to].iter().filter(|i| i.name.starts_with(name)).count();
    let target = |i: &Instruction| {
        let digits = i.rest.rsplit("0x").next().unwrap_or_default();
        i.name.starts_with("BRA").then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    };
    let mut loops: Vec<(usize, usize)> = body
        .iter()
        .enumerate()
        .filter_map(|(end, i)| {
            let start = body.binary_search_by_key(&target(i)?, |i| i.at).ok()?;
            (start < end && count(start, end, product) >= least).then_some((start, end))
        })
        .collect();
    loops.sort_by_key(|(start, end)| end - start);
    let mut innermost = Vec::<(usize, usize)>::new();
    for (start, end) in loops {
        if !innermost.iter().any(|&(s, e)| start <= s && e <= end) {
            innermost.push((start, end));
        }
    }
    // The loops of whole, aligned tiles copy past the registers, and call for nothing else from memory.
    innermost.retain(|&(start, end)| count(start, end, "LDGSTS") > 0 && count(start, end, "LDG.") == 0);
    innermost.into_iter().map(|(start, end)| (count(start, end, product), end - start + 1)).collect()
}

fn tools() -> Option<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator/toolkit.sh");
    let run = Command::new("sh").args([script, "tools"]).output().ok().filter(|run| run.status.success())?;
    let home = String::from_utf8(run.stdout).ok()?; // …/cuda-toolkit/nvidia/cu13
    let folder = Path::new(home.trim()).parent()?.parent()?.join("tools/nvidia/cu13/bin");
    folder.join("cuobjdump").is_file().then_some(folder)
}

#[test]
fn main_loops_are_products() {
    let home = std::env::var("CUDA_HOME").unwrap_or_else(|_| "/usr/local/cuda".into());
    let Some(tools) = tools() else {
        println!("SKIPPED: no cuobjdump");
        return;
    };
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    for kernel in ["stream_forward", "stream_backward", "fused_step"] {
        for architecture in ["sm_80", "sm_90"] {
            let cubin =
                std::env::temp_dir().join(format!("margin-loss-{}-{kernel}.{architecture}", std::process::id()));
            let ptx = format!("{}/{kernel}.ptx", env!("OUT_DIR"));
            let ptxas = Path::new(&home).join("bin/ptxas");
            let run = Command::new(&ptxas).args(["-arch", architecture, "-o"]).arg(&cubin).arg(&ptx).status();
            assert!(run.is_ok_and(|status| status.success()), "{}", ptxas.display());
            let text = Command::new(tools.join("cuobjdump")).env("PATH", &path).arg("-sass").arg(&cubin).output();
            let text = String::from_utf8_lossy(&text.expect("cuobjdump").stdout).into_owned();
            let _ = std::fs::remove_file(&cubin);
            let mut seen = 0;
            for (name, body) in functions(&text) {
                // f16's gradients are contracted in TF32.
                if !name.ends_with("_wide") || name == "stream_contract_f16_wide" {
                    continue;
                }
                // A whole step of a wide tile: 128 products a warp, and 32 for the squares where norms are found. stream_gradient has one loop more,
                // of the tiles at the edges.
                let mut shares = Vec::new();
                for (products, all) in main_loops(&body, "HMMA.16816", 128) {
                    shares.push(products as f64 / all as f64);
                    println!(
                        "{name} {architecture}: {products} of {all} are HMMA, {:.1} %",
                        100.0 * shares[shares.len() - 1]
                    );
                }
                shares.sort_by(f64::total_cmp);
                let edges = usize::from(name.starts_with("stream_gradient"));
                assert!(shares.len() > edges, "{name} for {architecture} has main loops");
                assert!(shares[edges] >= 0.45 && shares[0] >= 0.43, "{name} for {architecture}: {shares:?}");
                seen += 1;
            }
            assert!(seen >= 2, "{kernel} for {architecture} has both wide kinds");
        }
    }
}
