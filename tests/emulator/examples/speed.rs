//! Prints what the interpreter executes a second and core, checks on: thread instructions of a loop of loads and multiply-adds, and
//! multiply-adds through `mma.sync`. Run it in release mode on a quiet machine.

use std::path::Path;
use std::time::Instant;

use ptx_emulator::{Gpu, LaunchConfig, nvcc};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let gpu = Gpu::new(&nvcc::compile(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/speed.cu")))?)?;
    let cores = std::thread::available_parallelism()?.get();
    let blocks = 4 * cores as u32;
    let x = gpu.upload(&vec![1f32; 1024]);
    let y = gpu.allocate(4 * 256 * blocks as usize);
    let mut best = [0f64; 2];
    for _ in 0..5 {
        for (i, name) in ["fma_loop", "mma_loop"].into_iter().enumerate() {
            let rounds = 4000i32.to_le_bytes();
            let start = Instant::now();
            let counters =
                gpu.launch(name, LaunchConfig::line(blocks, 256), &[&x.to_le_bytes(), &y.to_le_bytes(), &rounds])?;
            let work = if i == 0 { counters.thread_instructions } else { counters.mma_flop / 2 };
            best[i] = best[i].max(work as f64 / start.elapsed().as_secs_f64() / cores as f64);
        }
    }
    println!("{:.0} million thread instructions a second and core (loads and multiply-adds)", best[0] / 1e6);
    println!("{:.2} billion multiply-adds a second and core through mma.sync", best[1] / 1e9);
    Ok(())
}
