//! Kernels as nvcc compiles them: results against the host's, faults against their correct twins.
#![allow(missing_docs)]

mod common;

use common::ptx;
use ptx_emulator::{Counters, Error, Fault, FaultKind, Gpu, LaunchConfig};

fn launch(
    gpu: &Gpu,
    name: &str,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: usize,
    parameters: &[&[u8]],
) -> Result<Counters, Error> {
    gpu.launch(name, LaunchConfig { grid, block, dynamic_shared, ..Default::default() }, parameters)
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + 13) % 1009) as f32 / 101.0 - 5.0).collect()
}

#[test]
fn saxpy_for_any_size() {
    let Some(ptx) = ptx("basic") else { return };
    for n in [1, 31, 32, 33, 255, 256, 1000] {
        let gpu = Gpu::new(&ptx).unwrap();
        let (x, y) = (values(n), values(2 * n)[n..].to_vec());
        let (dx, dy) = (gpu.upload(&x), gpu.upload(&y));
        let parameters: [&[u8]; 4] =
            [&dx.to_le_bytes(), &dy.to_le_bytes(), &2.5f32.to_le_bytes(), &(n as i32).to_le_bytes()];
        launch(&gpu, "saxpy", [n.div_ceil(128) as u32, 1, 1], [128, 1, 1], 0, &parameters).unwrap();
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 2.5f32.mul_add(*x, *y)).collect();
        assert_eq!(gpu.download::<f32>(dy, n).unwrap(), expected);
    }
}

#[test]
fn reduction_in_any_order() {
    let Some(ptx) = ptx("basic") else { return };
    let n = 10_000;
    let x: Vec<f32> = (0..n).map(|i| (i % 13) as f32).collect(); // sums are exact, whatever their order
    for seed in 1..6 {
        let mut gpu = Gpu::new(&ptx).unwrap();
        gpu.seed = seed;
        let (dx, out) = (gpu.upload(&x), gpu.upload(&[0f32]));
        let parameters: [&[u8]; 3] = [&dx.to_le_bytes(), &out.to_le_bytes(), &(n as i64).to_le_bytes()];
        let counters = launch(&gpu, "reduce", [7, 1, 1], [256, 1, 1], 0, &parameters).unwrap();
        assert_eq!(gpu.download::<f32>(out, 1).unwrap(), [x.iter().sum::<f32>()]);
        assert_eq!(counters.barriers, 7);
        assert_eq!(counters.global_read, 4 * n as u64);
    }
}

#[test]
fn what_kernels_print() {
    let Some(ptx) = ptx("basic") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let x = gpu.upload(&[1.5f32, -2.25]);
    launch(&gpu, "says", [1, 1, 1], [3, 1, 1], 0, &[&x.to_le_bytes(), &2i32.to_le_bytes()]).unwrap();
    let text = gpu.memory.take_printed();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let expected =
        ["0:  1.50 even a -1099511627776%, 7   |   0", "1: -2.25 odd b -1099511627776%, 7   |   1", "no arguments"];
    assert_eq!(lines, expected);
    assert_eq!(gpu.memory.take_printed(), "");
}

#[test]
fn divergent_loops() {
    let Some(ptx) = ptx("basic") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let start: Vec<u32> = (1..=1000).map(|i| i * 37 % 4001 + 1).collect();
    let (a, b) = (gpu.upload(&start), gpu.allocate(4000));
    let parameters: [&[u8]; 3] = [&a.to_le_bytes(), &b.to_le_bytes(), &1000i32.to_le_bytes()];
    launch(&gpu, "collatz", [8, 1, 1], [128, 1, 1], 0, &parameters).unwrap();
    let steps = |mut v: u64| {
        let mut count = 0u32;
        while v != 1 {
            v = if v % 2 == 1 { 3 * v + 1 } else { v / 2 };
            count += 1;
        }
        count
    };
    let expected: Vec<u32> = start.iter().map(|&v| steps(u64::from(v))).collect();
    assert_eq!(gpu.download::<u32>(b, 1000).unwrap(), expected);
}

#[test]
fn transposition_through_dynamic_shared_memory() {
    let Some(ptx) = ptx("basic") else { return };
    let (rows, cols) = (70usize, 45usize);
    let gpu = Gpu::new(&ptx).unwrap();
    let x = values(rows * cols);
    let (a, b) = (gpu.upload(&x), gpu.allocate(4 * rows * cols));
    let parameters: [&[u8]; 4] =
        [&a.to_le_bytes(), &b.to_le_bytes(), &(rows as i32).to_le_bytes(), &(cols as i32).to_le_bytes()];
    let counters = launch(&gpu, "transpose", [2, 3, 1], [32, 32, 1], 4 * 33 * 32, &parameters).unwrap();
    let out = gpu.download::<f32>(b, rows * cols).unwrap();
    for i in 0..rows {
        for j in 0..cols {
            assert_eq!(out[j * rows + i], x[i * cols + j]);
        }
    }
    assert_eq!(counters.bank_conflicts, 0, "33 floats a row");
}

#[test]
fn device_library() {
    let Some(ptx) = ptx("basic") else { return };
    let n = 300;
    let gpu = Gpu::new(&ptx).unwrap();
    let x = values(n);
    let (a, b, c) = (gpu.upload(&x), gpu.allocate(4 * n), gpu.allocate(8 * n));
    let parameters: [&[u8]; 4] = [&a.to_le_bytes(), &b.to_le_bytes(), &c.to_le_bytes(), &(n as i32).to_le_bytes()];
    launch(&gpu, "functions", [3, 1, 1], [128, 1, 1], 0, &parameters).unwrap();
    let (y, z) = (gpu.download::<f32>(b, n).unwrap(), gpu.download::<f64>(c, n).unwrap());
    for i in 0..n {
        let v = f64::from(x[i]);
        let scaled = f64::from(x[i] * 1e6);
        let expected = v.exp() * (i % 4 + 1) as f64 + scaled.sin() + (v.abs() + 1.0).ln();
        assert!((f64::from(y[i]) - expected).abs() <= 1e-6 * expected.abs().max(4.0), "{i}: {} {expected}", y[i]);
        let expected = v.sin() / (1.0 + v.exp());
        assert!((z[i] - expected).abs() <= 1e-15, "{i}: {} {expected}", z[i]);
    }
}

#[test]
fn votes_and_lane_masks() {
    let Some(ptx) = ptx("basic") else { return };
    let n = 500;
    let gpu = Gpu::new(&ptx).unwrap();
    let x: Vec<i32> = (0..n).map(|i| (i * 31 % 17) - 8).collect();
    let (a, b, count) = (gpu.upload(&x), gpu.allocate(4 * n as usize), gpu.upload(&[0i32]));
    let parameters: [&[u8]; 4] = [&a.to_le_bytes(), &b.to_le_bytes(), &count.to_le_bytes(), &n.to_le_bytes()];
    launch(&gpu, "compact", [4, 1, 1], [128, 1, 1], 0, &parameters).unwrap();
    let mut expected: Vec<i32> = x.into_iter().filter(|&v| v > 0).collect();
    let found = gpu.download::<i32>(count, 1).unwrap()[0] as usize;
    let mut actual = gpu.download::<i32>(b, found).unwrap();
    expected.sort_unstable();
    actual.sort_unstable();
    assert_eq!(actual, expected);
}

#[test]
fn parameters_by_address() {
    let Some(ptx) = ptx("basic") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let out = gpu.allocate(4 * 64);
    let coefficients: Vec<u8> = (1..=8).flat_map(|i| (i as f32).to_le_bytes()).chain(5i32.to_le_bytes()).collect();
    launch(&gpu, "by_address", [2, 1, 1], [32, 1, 1], 0, &[&out.to_le_bytes(), &coefficients]).unwrap();
    let expected: Vec<f32> = (0..64).map(|i| (1 + i % 5) as f32 + 80.0).collect();
    assert_eq!(gpu.download::<f32>(out, 64).unwrap(), expected);
}

fn fault(result: Result<Counters, Error>) -> Fault {
    match result {
        Err(Error::Fault(fault)) => *fault,
        other => panic!("a fault expected, not {other:?}"),
    }
}

/// Runs a correct kernel and its faulty twin; gives the fault.
fn twins(ptx: &str, name: &str, block: u32, extra: &[&[u8]], floats: usize) -> Fault {
    let run = |name: &str, extra: &[&[u8]]| {
        let gpu = Gpu::new(ptx).unwrap();
        let y = gpu.allocate(4 * floats);
        let y = y.to_le_bytes();
        let mut parameters: Vec<&[u8]> = vec![&y];
        parameters.extend(extra);
        let count = gpu.module.kernel(name).unwrap().parameters.len();
        parameters.truncate(count);
        launch(&gpu, name, [1, 1, 1], [block, 1, 1], 0, &parameters)
    };
    let ok = run(&format!("{name}_ok"), extra);
    assert!(ok.is_ok(), "{name}_ok: {}", ok.unwrap_err());
    let fault = fault(run(name, extra));
    let text = fault.to_string();
    assert!(text.contains(&format!("kernel {name},")) && text.contains("faulty.cu:"), "{text}");
    println!("{text}");
    fault
}

#[test]
fn faults_are_reported_and_their_twins_are_not() {
    let Some(ptx) = ptx("faulty") else { return };
    let n = 100i32.to_le_bytes();
    let found = twins(&ptx, "bounds", 128, &[&n], 100);
    assert!(matches!(found.kind, FaultKind::OutOfBounds { size: 4, .. }) && found.thread == [100, 0, 0]);
    let found = twins(&ptx, "misaligned", 32, &[], 66);
    assert!(matches!(found.kind, FaultKind::Misaligned { size: 8, .. }));
    let found = twins(&ptx, "unwritten_shared", 32, &[], 32);
    assert!(matches!(found.kind, FaultKind::Uninitialised { space: "shared", .. }));
    let found = twins(&ptx, "race", 256, &[], 256);
    assert!(matches!(found.kind, FaultKind::SharedRace { .. } | FaultKind::Uninitialised { .. }));
    let found = twins(&ptx, "overwrite", 256, &[], 256);
    assert!(matches!(found.kind, FaultKind::SharedRace { .. }));
    let n = 40i32.to_le_bytes();
    let found = twins(&ptx, "barrier", 64, &[&n], 64);
    assert!(matches!(found.kind, FaultKind::Barrier(_)));
    let n = 16i32.to_le_bytes();
    let found = twins(&ptx, "lanes", 32, &[&n], 32);
    assert!(matches!(found.kind, FaultKind::Deadlock(_)));
}

#[test]
fn memory_mistakes_across_launches() {
    let Some(ptx) = ptx("faulty") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let (x, y) = (gpu.allocate(128), gpu.allocate(128));
    let run = |gpu: &Gpu| launch(gpu, "unwritten_ok", [1, 1, 1], [32, 1, 1], 0, &[&x.to_le_bytes(), &y.to_le_bytes()]);
    assert!(matches!(fault(run(&gpu)).kind, FaultKind::Uninitialised { space: "global", .. }));
    gpu.memory.write(x, &[0; 128]).unwrap();
    run(&gpu).unwrap();
    gpu.memory.free(x).unwrap();
    assert!(matches!(fault(run(&gpu)).kind, FaultKind::UseAfterFree { .. }));
    let seven = gpu.upload(&[7i32]);
    assert!(matches!(
        fault(launch(&gpu, "trap_ok", [1, 1, 1], [1, 1, 1], 0, &[&seven.to_le_bytes()])).kind,
        FaultKind::Trap
    ));
}

#[test]
fn launches_that_a_device_refuses() {
    let Some(ptx) = ptx("basic") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let x = gpu.upload(&[1f32; 8]);
    let p = x.to_le_bytes();
    let all: [&[u8]; 4] = [&p, &p, &[0; 4], &[0; 4]];
    let text = |result: Result<Counters, Error>| result.unwrap_err().to_string();
    let saxpy = |grid, block, shared, parameters: &[&[u8]]| launch(&gpu, "saxpy", grid, block, shared, parameters);
    assert!(text(saxpy([1, 1, 1], [1025, 1, 1], 0, &all)).contains("a block of [1025, 1, 1]"));
    assert!(text(saxpy([1, 1, 1], [32, 33, 1], 0, &all)).contains("1056 threads a block, at most 1024"));
    assert!(
        text(saxpy([1, u32::MAX, u32::MAX], [32, 1, 1], 0, &all))
            .contains("a grid of [1, 4294967295, 4294967295], at most")
    );
    assert!(text(saxpy([1, 1, 1], [1, 1, 65], 0, &all)).contains("a block of [1, 1, 65], at most [1024, 1024, 64]"));
    assert!(text(saxpy([1, 1, 1], [32, 1, 1], usize::MAX, &all)).contains("bytes of shared memory a block"));
    assert!(text(saxpy([0, 1, 1], [32, 1, 1], 0, &all)).contains("0 blocks"));
    assert!(text(saxpy([1, 1, 1], [32, 1, 1], 1 << 20, &all)).contains("bytes of shared memory a block"));
    assert!(text(saxpy([1, 1, 1], [32, 1, 1], 0, &all[..3])).contains("takes 4 parameters, 3 are given"));
    assert!(
        text(saxpy([1, 1, 1], [32, 1, 1], 0, &[&p, &p, &p, &p]))
            .contains("parameter 2 of saxpy has 4 bytes, 8 are given")
    );
    assert!(text(launch(&gpu, "none", [1, 1, 1], [1, 1, 1], 0, &[])).contains("no kernel none"));
}
