//! What a device allows, though it looks odd: kernels that are right run, and their faulty twins are reported.
#![allow(missing_docs)]

mod common;

use common::ptx;
use ptx_emulator::{Counters, Error, FaultKind, Gpu, LaunchConfig, Limits};

/// Runs a kernel on o (256 floats of zeros), a (256 floats, 0, 1, …) and a number, on several seeds; gives what o is then.
fn run(kernel: &str, config: LaunchConfig, number: i32, seed: u64) -> Option<Result<Vec<f32>, Error>> {
    let gpu = Gpu { seed, ..Gpu::new(&ptx("silicon")?).unwrap() };
    let o = gpu.upload(&[0f32; 256]);
    let a = gpu.upload(&(0..256).map(|i| i as f32).collect::<Vec<_>>());
    let all = [&o.to_le_bytes()[..], &a.to_le_bytes(), &number.to_le_bytes()];
    let count = gpu.module.kernel(kernel).unwrap().parameters.len();
    let ran: Result<Counters, Error> = gpu.launch(kernel, config, &all[..count]);
    Some(ran.and_then(|_| gpu.download(o, 256)))
}

const SEEDS: std::ops::Range<u64> = 0..8;

/// A kernel that must run, whatever the seed; gives what all seeds agree on.
fn runs(kernel: &str, config: LaunchConfig, number: i32) -> Vec<f32> {
    let mut found = Vec::new();
    for seed in SEEDS {
        let Some(ran) = run(kernel, config, number, seed) else { return found };
        let o = ran.unwrap_or_else(|error| panic!("{kernel}, seed {seed}: {error}"));
        assert!(found.is_empty() || found == o, "{kernel}, seed {seed}");
        found = o;
    }
    found
}

/// A kernel that must be reported, whatever the seed, as a fault of a kind.
fn reported(kernel: &str, config: LaunchConfig, number: i32, kind: fn(&FaultKind) -> bool) {
    for seed in SEEDS {
        match run(kernel, config, number, seed) {
            None => return,
            Some(Err(Error::Fault(fault))) if kind(&fault.kind) => println!("{fault}"),
            Some(other) => panic!("{kernel}, seed {seed}: {other:?}"),
        }
    }
}

#[test]
fn matrix_instructions_wait_for_lanes_on_their_way() {
    let warp = LaunchConfig::line(1, 32);
    runs("matrices_ok", warp, 50);
    reported("matrices_apart", warp, 50, |kind| matches!(kind, FaultKind::Deadlock(_)));
    let o = runs("products_ok", warp, 50);
    assert!(o.is_empty() || o[..32] == [800.0; 32]);
    reported("products_of_few", warp, 50, |kind| matches!(kind, FaultKind::Barrier(_)));
}

#[test]
fn exited_threads_release_a_barrier() {
    let block = LaunchConfig::line(1, 64);
    let o = runs("exited_ok", block, 0);
    assert!(o.iter().take(32).enumerate().all(|(i, &v)| v == (i + 32) as f32));
    reported("exited_unordered", block, 0, |kind| {
        matches!(kind, FaultKind::SharedRace { .. } | FaultKind::Uninitialised { .. })
    });
    reported("exited_counted", block, 0, |kind| matches!(kind, FaultKind::Barrier(_)));
}

#[test]
fn equal_stores_are_no_race() {
    let block = LaunchConfig::line(1, 64);
    let race = |kind: &FaultKind| matches!(kind, FaultKind::SharedRace { .. });
    let o = runs("same_lanes_ok", block, 0);
    assert!(o.is_empty() || o[..64] == [2016.0; 64]);
    reported("same_lanes_differ", block, 0, race);
    reported("same_lanes_hasty", block, 0, |kind| {
        matches!(kind, FaultKind::SharedRace { .. } | FaultKind::Uninitialised { .. })
    });
    let o = runs("same_warps_ok", block, 0);
    assert!(o.iter().take(64).enumerate().all(|(i, &v)| v == ((i + 1) % 32 + i % 32) as f32));
    for kernel in ["same_warps_differ", "same_warps_hasty", "same_warps_again"] {
        reported(kernel, block, 0, |kind| {
            matches!(kind, FaultKind::SharedRace { .. } | FaultKind::Uninitialised { .. })
        });
    }
}

/// Two multiprocessors hold 64 blocks of 32 threads: a grid of so many may wait for itself, a larger one waits for ever.
#[test]
fn a_grid_that_fits_is_resident() {
    let Some(ptx) = ptx("silicon") else { return };
    for seed in SEEDS {
        let run = |kernel: &str, blocks: u32| {
            let gpu = Gpu { seed, ..Gpu::new(&ptx).unwrap() };
            let limits = Limits { multiprocessors: 2, instructions: 1 << 15, ..gpu.limits };
            let gpu = Gpu { limits, ..gpu };
            let (o, flag) = (gpu.allocate(4 * blocks as usize), gpu.upload(&[0u32; 2]));
            gpu.launch(kernel, LaunchConfig::line(blocks, 32), &[&o.to_le_bytes(), &flag.to_le_bytes()])?;
            gpu.download::<f32>(o, blocks as usize)
        };
        assert_eq!(run("all_wait", 64).unwrap(), [1.0; 64]);
        assert_eq!(run("all_wait_busily", 64).unwrap(), [1.0; 64]);
        for kernel in ["all_wait", "all_wait_busily"] {
            match run(kernel, 65) {
                Err(Error::Fault(fault)) => assert!(matches!(fault.kind, FaultKind::Deadlock(_)), "{fault}"),
                other => panic!("{kernel}, seed {seed}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_is_read_and_not_used() {
    let warp = LaunchConfig::line(1, 32);
    let unwritten = |kind: &FaultKind| matches!(kind, FaultKind::Uninitialised { space: "shared", .. });
    let o = runs("prefetch_ok", warp, 2);
    assert!(o.iter().take(32).enumerate().all(|(i, &v)| v == 2.0 * i as f32));
    for kernel in ["added", "address", "branch", "shuffled", "chosen", "kept"] {
        reported(&format!("prefetch_{kernel}"), warp, 2, unwritten);
    }
    let o = runs("choice_ok", warp, 0);
    assert!(
        o.iter().take(16).enumerate().all(|(i, &v)| v == [1.0, 2.0, 3.0][usize::from(i > 5) + usize::from(i > 10)])
    );
    for kernel in ["used", "storing", "copying", "looping"] {
        reported(&format!("choice_{kernel}"), warp, 0, unwritten);
    }
    let o = runs("fragments_ok", warp, 0);
    assert!(o.is_empty() || o[..16] == [8.0; 16]);
    reported("fragments_used", warp, 0, |kind| matches!(kind, FaultKind::InFlight { .. }));
}

/// The report names the read, and where its value went.
#[test]
fn poison_is_told_from_beginning_to_end() {
    let Some(Err(Error::Fault(fault))) = run("prefetch_added", LaunchConfig::line(1, 32), 2, 1) else { return };
    let text = fault.to_string();
    assert!(fault.instruction.starts_with("ld.volatile.shared"), "{text}");
    assert!(text.contains("its value reaches global memory at ") && text.contains(": st.global"), "{text}");
}

#[test]
fn shuffles_from_lanes_that_are_gone() {
    let warp = LaunchConfig::line(1, 32);
    let o = runs("shuffle_ok", warp, 0);
    assert!(o.iter().take(30).enumerate().all(|(i, &v)| v == (i + 1) as f32));
    reported("shuffle_from_the_gone", warp, 0, |kind| matches!(kind, FaultKind::Shuffle));
}

/// Plain reads of words that compare-and-swaps of the same words follow: any number of them.
#[test]
fn reads_that_swaps_make_sure_of() {
    let Some(ptx) = ptx("silicon") else { return };
    for seed in SEEDS {
        let run = |kernel: &str| {
            let gpu = Gpu { seed, ..Gpu::new(&ptx).unwrap() };
            let x = gpu.upload(&[5u32; 4]);
            gpu.launch(kernel, LaunchConfig::line(8, 1), &[&x.to_le_bytes()])?;
            gpu.download::<u32>(x, 4)
        };
        assert_eq!(run("swap_ok").unwrap(), [13, 5, 5, 5]);
        assert_eq!(run("swap_two_ok").unwrap(), [13, 13, 5, 5]);
        assert_eq!(run("swap_four_ok").unwrap(), [13; 4]);
        match run("swap_one_of_two") {
            Err(Error::Fault(fault)) => assert!(matches!(fault.kind, FaultKind::GlobalRace { .. }), "{fault}"),
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

/// What nobody has written can be copied from a buffer, and it is told where it is.
#[test]
fn buffers_that_are_written_in_part() {
    let Some(ptx) = ptx("silicon") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let o = gpu.allocate(256);
    gpu.launch("half_written", LaunchConfig::line(1, 64), &[&o.to_le_bytes()]).unwrap();
    let mut bytes = [0; 256];
    assert_eq!(gpu.memory.read_as_it_is(o, &mut bytes).unwrap(), Some(o + 128));
    assert_eq!(bytes[..128], [0, 0, 128, 63].repeat(32));
    assert!(gpu.download::<f32>(o, 64).unwrap_err().to_string().contains("never written"));
}
