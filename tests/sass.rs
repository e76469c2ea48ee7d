//! What of the machine code of the main loops makes products: of the kinds on tensor cores, HMMA of a whole step's instructions on the path of whole,
//! aligned tiles; of f32's multiply-adds, FFMA, whose goal of 88 % is missed. By ptxas and cuobjdump (`sh tests/emulator/toolkit.sh tools`), for sm_80 and sm_90.
#![cfg(feature = "cuda")]
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// An instruction: its address, whether a predicate decides on it, its name, its operands.
struct Instruction {
    at: u64,
    conditional: bool,
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
            let conditional = code.trim_start().starts_with('@') && !code.trim_start().starts_with("@!PT");
            let mut words = code.split_whitespace().skip_while(|word| word.starts_with('@'));
            let name = words.next().unwrap_or_default().to_string();
            body.push(Instruction { at, conditional, name, rest: words.collect::<Vec<_>>().join(" ") });
        }
    }
    all
}

/// Where a branch goes.
fn target(i: &Instruction) -> Option<u64> {
    let digits = i.rest.rsplit("0x").next().unwrap_or_default();
    i.name.starts_with("BRA").then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

fn count(body: &[Instruction], name: &str) -> usize {
    body.iter().filter(|i| i.name.starts_with(name)).count()
}

/// The innermost loops with at least so many of an instruction.
fn loops<'a>(body: &'a [Instruction], product: &str, least: usize) -> Vec<&'a [Instruction]> {
    let mut loops: Vec<(usize, usize)> = body
        .iter()
        .enumerate()
        .filter_map(|(end, i)| {
            let start = body.binary_search_by_key(&target(i)?, |i| i.at).ok()?;
            (start < end && count(&body[start..=end], product) >= least).then_some((start, end))
        })
        .collect();
    loops.sort_by_key(|(start, end)| end - start);
    let mut innermost = Vec::<(usize, usize)>::new();
    for (start, end) in loops {
        if !innermost.iter().any(|&(s, e)| start <= s && e <= end) {
            innermost.push((start, end));
        }
    }
    innermost.into_iter().map(|(start, end)| &body[start..=end]).collect()
}

/// Of each loop of whole, aligned tiles on tensor cores: (products, instructions). They copy past the registers, and call for nothing else from memory.
fn main_loops(body: &[Instruction], product: &str, least: usize) -> Vec<(usize, usize)> {
    let mut loops = loops(body, product, least);
    loops.retain(|of| count(of, "LDGSTS") > 0 && count(of, "LDG.") == 0);
    loops.into_iter().map(|of| (count(of, product), of.len())).collect()
}

/// The way through a turn of a loop that whole, aligned tiles take: with as many wide loads as there are, and then products, and as few narrow loads.
fn fast_path(turn: &[Instruction]) -> Vec<&Instruction> {
    let worth = |i: &Instruction| match i.name.as_str() {
        name if name.starts_with("CALL") => -1e7,
        name if name.starts_with("LD") && name.contains("128") => 1e6,
        name if name.starts_with("LDG") || name.starts_with("LD.E") => -1e4,
        _ => 1.0,
    };
    // The worth of the best way from an instruction to the loop's end, and where that goes; none where no way leads there.
    let mut best: Vec<Option<(f64, usize)>> = vec![None; turn.len()];
    for (at, i) in turn.iter().enumerate().rev() {
        let mut ways = Vec::new();
        if i.name.starts_with("BRA") {
            match target(i).and_then(|to| turn.binary_search_by_key(&to, |i| i.at).ok()) {
                Some(0) => ways.push(turn.len()),
                Some(to) if to > at => ways.push(to),
                _ => {}
            }
        }
        if at + 1 < turn.len() && (i.conditional || !["BRA", "EXIT"].iter().any(|end| i.name.starts_with(end))) {
            ways.push(at + 1);
        }
        let to_end = |way: usize| if way == turn.len() { Some(0.0) } else { best[way].map(|(worth, _)| worth) };
        let found = ways.into_iter().filter_map(|way| to_end(way).map(|worth| (worth, way)));
        best[at] = found.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(further, way)| (worth(i) + further, way));
    }
    let (mut path, mut at) = (Vec::new(), 0);
    while let Some(Some((_, next))) = best.get(at) {
        path.push(&turn[at]);
        at = *next;
    }
    path
}

fn tools() -> Option<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator/toolkit.sh");
    let run = Command::new("sh").args([script, "tools"]).output().ok().filter(|run| run.status.success())?;
    let home = String::from_utf8(run.stdout).ok()?; // …/cuda-toolkit/nvidia/cu13
    let folder = Path::new(home.trim()).parent()?.parent()?.join("tools/nvidia/cu13/bin");
    folder.join("cuobjdump").is_file().then_some(folder)
}

const F32: [&str; 4] = ["fused_step_f32", "stream_forward_f32", "stream_gradient_f32", "stream_contract_f32"];

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
            let (mut seen, mut f32_seen) = (0, 0);
            for (name, body) in functions(&text) {
                if F32.contains(&name.as_str()) {
                    // A step of 16 k is 512 multiply-adds and 48 loads of operands a thread, of eight rows by four columns: 91 % with nothing else. What
                    // comes to it are bounds, masks and the stores of the next step.
                    let loops = loops(&body, "FFMA", 500);
                    assert!(!loops.is_empty(), "{name} for {architecture} has main loops");
                    for of in loops {
                        let path = fast_path(of);
                        let share =
                            path.iter().filter(|i| i.name.starts_with("FFMA")).count() as f64 / path.len() as f64;
                        println!("{name} {architecture}: {} instructions, {:.1} % are FFMA", path.len(), 100.0 * share);
                        assert!(share >= 0.76, "{name} for {architecture}: {share}");
                    }
                    f32_seen += 1;
                }
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
            assert!(seen >= 2 && f32_seen >= 1, "{kernel} for {architecture} has both wide kinds, and f32");
        }
    }
}
