//! Blocks that speak to each other: what orders them, and what does not, is told apart.
#![allow(missing_docs)]

mod common;

use common::ptx;
use ptx_emulator::{Counters, Error, Fault, FaultKind, Gpu, LaunchConfig};

fn fault(result: Result<Counters, Error>) -> Fault {
    match result {
        Err(Error::Fault(fault)) => {
            println!("{fault}");
            *fault
        }
        other => panic!("a fault expected, not {other:?}"),
    }
}

fn cooperative(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { cooperative: true, ..LaunchConfig::line(blocks, threads) }
}

fn gpu(ptx: &str, seed: u64) -> Gpu {
    Gpu { seed, ..Gpu::new(ptx).unwrap() }
}

#[test]
fn barriers_of_a_grid() {
    let Some(ptx) = ptx("grid") else { return };
    for (seed, (blocks, threads)) in [(1, 32), (2, 64), (7, 33), (40, 128)].into_iter().enumerate() {
        let gpu = gpu(&ptx, seed as u64);
        let n = (blocks * threads - 3) as i32;
        let (x, y) = (gpu.allocate(4 * n as usize), gpu.allocate(4 * n as usize));
        let p = [&x.to_le_bytes()[..], &y.to_le_bytes(), &n.to_le_bytes()];
        gpu.launch("exchange_ok", cooperative(blocks, threads), &p).unwrap();
        let expected: Vec<i32> = (0..n).map(|i| 3 * (n - 1 - (i + 7) % n)).collect();
        assert_eq!(gpu.download::<i32>(x, n as usize).unwrap(), expected);
        // Without the grid's second barrier.
        if blocks > 1 {
            let found = fault(gpu.launch("exchange", cooperative(blocks, threads), &p));
            assert!(matches!(found.kind, FaultKind::GlobalRace { .. }));
        }
        // Not launched as a grid, there is no barrier: the kernel traps.
        let found = fault(gpu.launch("exchange_ok", LaunchConfig::line(blocks, threads), &p));
        assert_eq!(found.kind, FaultKind::Trap);
        let (_, peak) = gpu.memory.usage();
        assert_eq!(gpu.memory.usage().0, 8 * n as usize, "the grid's barrier was freed");
        assert_eq!(peak, 8 * n as usize + 64);
    }
}

#[test]
fn grids_that_do_not_fit() {
    let Some(ptx) = ptx("grid") else { return };
    let gpu = gpu(&ptx, 1);
    let p = [&[0; 8][..], &[0; 8], &[0; 4]];
    // 132 multiprocessors of 2048 threads.
    let error = gpu.launch("exchange_ok", cooperative(265, 1024), &p).unwrap_err();
    assert_eq!(error.code(), 720);
    assert!(error.to_string().contains("265 blocks, 264 of exchange_ok at once"), "{error}");
    let large = LaunchConfig { dynamic_shared: 200 << 10, ..cooperative(133, 32) };
    assert_eq!(gpu.launch("exchange_ok", large, &p).unwrap_err().code(), 720);
}

#[test]
fn the_last_block_adds_up() {
    let Some(ptx) = ptx("grid") else { return };
    let (blocks, threads) = (12, 64);
    let run = |kernel: &str, seed| {
        let gpu = gpu(&ptx, seed);
        let x: Vec<f32> = (0..blocks * threads).map(|i| (i % 19) as f32).collect();
        let (x, part, out, count) =
            (gpu.upload(&x), gpu.allocate(4 * (blocks * threads) as usize), gpu.allocate(4), gpu.upload(&[0u32]));
        let p = [x, part, out, count].map(u64::to_le_bytes);
        gpu.launch(kernel, LaunchConfig::line(blocks, threads), &[&p[0], &p[1], &p[2], &p[3]])?;
        gpu.download::<f32>(out, 1)
    };
    let expected = 2.0 * (0..blocks * threads).map(|i| (i % 19) as f32).sum::<f32>();
    for seed in 0..6 {
        assert_eq!(run("last_ok", seed).unwrap(), [expected]);
        for kernel in ["last_unreleased", "last_unacquired"] {
            let Err(Error::Fault(found)) = run(kernel, seed) else { panic!("{kernel} is not reported") };
            assert!(matches!(found.kind, FaultKind::GlobalRace { .. }), "{found}");
        }
    }
}

#[test]
fn races_between_blocks_and_warps() {
    let Some(ptx) = ptx("grid") else { return };
    for seed in 0..4 {
        for (name, blocks, threads, words) in [("overlap", 2, 16, 16), ("peek", 6, 1, 12), ("inside", 1, 64, 128)] {
            let gpu = gpu(&ptx, seed);
            let x = gpu.upload(&vec![1i32; words]);
            let x = x.to_le_bytes();
            gpu.launch(&format!("{name}_ok"), LaunchConfig::line(blocks, threads), &[&x]).unwrap();
            let found = fault(gpu.launch(name, LaunchConfig::line(blocks, threads), &[&x]));
            assert!(matches!(found.kind, FaultKind::GlobalRace { .. }));
            assert!(found.to_string().contains("grid.cu:"), "{found}");
        }
        let gpu = gpu(&ptx, seed);
        let x = gpu.upload(&[0i32]);
        gpu.launch("mixed_ok", LaunchConfig::line(5, 1), &[&x.to_le_bytes()]).unwrap();
        assert_eq!(gpu.download::<i32>(x, 1).unwrap(), [9]);
        let found = fault(gpu.launch("mixed", LaunchConfig::line(5, 1), &[&x.to_le_bytes()]));
        assert!(matches!(found.kind, FaultKind::GlobalRace { .. }));
    }
}

/// Two launches are in order, whatever they touch.
#[test]
fn launches_do_not_race() {
    let Some(ptx) = ptx("grid") else { return };
    let gpu = gpu(&ptx, 3);
    let x = gpu.upload(&[1i32; 16]);
    for _ in 0..3 {
        gpu.launch("overlap_ok", LaunchConfig::line(4, 16), &[&x.to_le_bytes()]).unwrap();
        gpu.launch("peek_ok", LaunchConfig::line(8, 1), &[&x.to_le_bytes()]).unwrap();
    }
}

#[test]
fn flags_between_blocks() {
    let Some(ptx) = ptx("grid") else { return };
    for seed in 0..6 {
        let gpu = gpu(&ptx, seed);
        let (flag, x) = (gpu.upload(&[0i32]), gpu.allocate(4));
        let p = [&flag.to_le_bytes()[..], &x.to_le_bytes()];
        gpu.launch("flag_ok", LaunchConfig::line(2, 1), &p).unwrap();
        assert_eq!(gpu.download::<i32>(x, 1).unwrap(), [42]);
        gpu.memory.write(flag, &[0; 4]).unwrap();
        let found = fault(gpu.launch("flag", LaunchConfig::line(2, 1), &p));
        assert!(matches!(found.kind, FaultKind::Deadlock(_)));
    }
}

#[test]
fn copies_that_nobody_waits_for() {
    let Some(ptx) = ptx("grid") else { return };
    for seed in 0..4 {
        let gpu = gpu(&ptx, seed);
        let (x, y) = (gpu.upload(&(0..64).collect::<Vec<i32>>()), gpu.allocate(256));
        let p = [&x.to_le_bytes()[..], &y.to_le_bytes()];
        let counters = gpu.launch("copy_ok", LaunchConfig::line(1, 64), &p).unwrap();
        assert_eq!(counters.async_copied, 256);
        assert_eq!(gpu.download::<i32>(y, 64).unwrap(), (0..64).rev().collect::<Vec<i32>>());
        assert!(matches!(fault(gpu.launch("copy", LaunchConfig::line(1, 64), &p)).kind, FaultKind::InFlight { .. }));
        let early = fault(gpu.launch("copy_early", LaunchConfig::line(1, 64), &p)).kind;
        let told = matches!(
            early,
            FaultKind::SharedRace { .. } | FaultKind::InFlight { .. } | FaultKind::Uninitialised { .. }
        );
        assert!(told, "{early}");
    }
}

#[test]
fn copies_of_a_part() {
    let Some(ptx) = ptx("grid") else { return };
    for count in [0i32, 4, 12, 16] {
        let gpu = gpu(&ptx, 1);
        // Beyond the part nothing is read: the last element's rest is not even there.
        let (x, y) = (gpu.upload(&(1..=32 * 4).collect::<Vec<i32>>()), gpu.allocate(512));
        gpu.launch("copy_part", LaunchConfig::line(1, 32), &[&x.to_le_bytes(), &y.to_le_bytes(), &count.to_le_bytes()])
            .unwrap();
        let expected: Vec<i32> = (0..128).map(|i| if i % 4 < count / 4 { i + 1 } else { 0 }).collect();
        assert_eq!(gpu.download::<i32>(y, 128).unwrap(), expected);
    }
}

/// The order of warps and blocks is a matter of the seed alone: the same seed gives the same counts, whoever runs what.
#[test]
fn a_seed_is_a_schedule() {
    let Some(ptx) = ptx("grid") else { return };
    let run = |seed| {
        let gpu = gpu(&ptx, seed);
        let (x, y) = (gpu.allocate(4 * 640), gpu.allocate(4 * 640));
        let p = [&x.to_le_bytes()[..], &y.to_le_bytes(), &640i32.to_le_bytes()];
        gpu.launch("exchange_ok", cooperative(10, 64), &p).unwrap()
    };
    assert_eq!(run(5), run(5));
}
