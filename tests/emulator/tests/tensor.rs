//! Matrix instructions against products worked out from the definition, and a product of matrices whose every safeguard is needed.
#![allow(missing_docs)]

mod common;

use common::ptx;
use half::{bf16, f16};
use ptx_emulator::{Counters, Error, Gpu, LaunchConfig, Plain};

/// Numbers with few bits, so that products and sums are exact in f32 and every order of them gives the same.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 37 + seed * 101 + i * i * 7) % 31) as f32 - 15.0) / 4.0).collect()
}

/// C + A·B, row by row.
fn product(a: &[f32], b: &[f32], c: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let at = |i: usize| (0..k).fold(c[i], |sum, p| sum + a[i / n * k + p] * b[p * n + i % n]);
    (0..m * n).map(at).collect()
}

/// Rows of a product: 16, or 8 in f64 and where the name says so.
fn rows(kernel: &str) -> usize {
    if kernel == "mma_f64" || kernel.ends_with("8_rows") { 8 } else { 16 }
}

fn run<T: Plain, S: Plain>(ptx: &str, kernel: &str, a: &[T], b: &[T], c: &[S]) -> (Vec<S>, Counters) {
    let gpu = Gpu::new(ptx).unwrap();
    let (a, b, c, d) = (gpu.upload(a), gpu.upload(b), gpu.upload(c), gpu.allocate(size_of_val(c)));
    let p = [a, b, c, d].map(u64::to_le_bytes);
    let counters = gpu.launch(kernel, LaunchConfig::line(1, 32), &[&p[0], &p[1], &p[2], &p[3]]).unwrap();
    (gpu.download(d, rows(kernel) * 8).unwrap(), counters)
}

#[test]
fn fragments_of_f16_and_bf16() {
    let Some(ptx) = ptx("tensor") else { return };
    let (a, b, c) = (numbers(256, 1), numbers(128, 2), numbers(128, 3));
    let expected = product(&a, &b, &c, (16, 8, 16));
    let halves = |v: &[f32]| v.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>();
    let brains = |v: &[f32]| v.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
    let (d, counters) = run(&ptx, "mma_f16", &halves(&a), &halves(&b), &c);
    assert_eq!(d, expected);
    assert_eq!((counters.mma, counters.mma_flop), (1, 2 * 16 * 8 * 16));
    assert_eq!(run(&ptx, "mma_bf16", &brains(&a), &brains(&b), &c).0, expected);
    let (d, _) = run(&ptx, "mma_f16_narrow", &halves(&a), &halves(&b), &halves(&c));
    assert_eq!(d, halves(&expected));
    let (a, b) = (&a[..128], &b[..64]);
    assert_eq!(run(&ptx, "mma_f16_k8", &halves(a), &halves(b), &c).0, product(a, b, &c, (16, 8, 8)));
}

/// Sums are not rounded to f16 on the way, where they are asked for in f16 at the end only.
#[test]
fn f16_sums_are_rounded_once() {
    let Some(ptx) = ptx("tensor") else { return };
    let one = |v: f32| f16::from_f32(v);
    // 2048 + 16 times 0.5: each step would be rounded away in f16.
    let (d, _) = run(&ptx, "mma_f16_narrow", &[one(0.5); 256], &[one(1.0); 128], &[one(2048.0); 128]);
    assert_eq!(d, vec![one(2056.0); 128]);
}

#[test]
fn fragments_of_tf32() {
    let Some(ptx) = ptx("tensor") else { return };
    let (a, b, c) = (numbers(128, 4), numbers(64, 5), numbers(128, 6));
    let expected = product(&a, &b, &c, (16, 8, 8));
    assert_eq!(run(&ptx, "mma_tf32", &a, &b, &c).0, expected);
    // The low 13 bits of an operand do not count.
    let dirty = |v: &[f32]| v.iter().map(|v| f32::from_bits(v.to_bits() | 0x1abc)).collect::<Vec<_>>();
    assert_eq!(run(&ptx, "mma_tf32", &dirty(&a), &dirty(&b), &c).0, expected);
}

#[test]
fn fragments_of_f64() {
    let Some(ptx) = ptx("tensor") else { return };
    let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
    let (a, b, c) = (numbers(32, 7), numbers(32, 8), numbers(64, 9));
    let expected = wide(product(&a, &b, &c, (8, 8, 4)));
    assert_eq!(run(&ptx, "mma_f64", &wide(a), &wide(b), &wide(c)).0, expected);
}

/// Sums of products of bytes are exact, and wrap or saturate in s32.
#[test]
fn fragments_of_bytes() {
    let Some(ptx) = ptx("tensor") else { return };
    let bytes =
        |count: usize, seed: usize| (0..count).map(|i| (i * 73 + seed * 29 + i * i * 5) as u8).collect::<Vec<u8>>();
    let (a, b) = (bytes(512, 1), bytes(256, 2));
    let c: Vec<i32> = (0..128).map(|i| [7, i32::MAX, i32::MIN, -5][i % 4]).collect();
    let expected = |left: fn(u8) -> i64, sum: fn(i64) -> i32| -> Vec<i32> {
        let at = |i: usize| {
            let product = |p: usize| left(a[i / 8 * 32 + p]) * i64::from(b[p * 8 + i % 8] as i8);
            sum((0..32).fold(i64::from(c[i]), |sum, p| sum + product(p)))
        };
        (0..128).map(at).collect()
    };
    let signed: fn(u8) -> i64 = |v| i64::from(v as i8);
    let (d, counters) = run(&ptx, "mma_s8", &a, &b, &c);
    assert_eq!(d, expected(signed, |sum| sum as i32));
    assert_eq!(counters.mma_flop, 2 * 16 * 8 * 32);
    assert_eq!(run(&ptx, "mma_u8_s8", &a, &b, &c).0, expected(i64::from, |sum| sum as i32));
    let saturated = |sum: i64| sum.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
    assert_eq!(run(&ptx, "mma_s8_saturated", &a, &b, &c).0, expected(signed, saturated));
}

#[test]
fn fragments_of_nibbles() {
    let Some(ptx) = ptx("tensor") else { return };
    let nibbles =
        |count: usize, seed: usize| (0..count).map(|i| ((i * 7 + seed + i * i * 3) % 16) as u8).collect::<Vec<u8>>();
    let (a, b) = (nibbles(1024, 1), nibbles(512, 2));
    let c: Vec<i32> = (0..128).map(|i| i * 1000 - 5).collect();
    let signed: fn(u8) -> i32 = |v| i32::from(((v << 4) as i8) >> 4);
    let expected = |left: fn(u8) -> i32| -> Vec<i32> {
        let at = |i: usize| (0..64).fold(c[i], |sum, p| sum + left(a[i / 8 * 64 + p]) * signed(b[p * 8 + i % 8]));
        (0..128).map(at).collect()
    };
    let (d, counters) = run(&ptx, "mma_s4", &a, &b, &c);
    assert_eq!(d, expected(signed));
    assert_eq!(counters.mma_flop, 2 * 16 * 8 * 64);
    assert_eq!(run(&ptx, "mma_u4_s4", &a, &b, &c).0, expected(i32::from));
    let (a, b) = (&a[..128], &b[..128]);
    let at = |i: usize| (0..16).fold(c[i], |sum, p| sum + i32::from(a[i / 8 * 16 + p]) * i32::from(b[p * 8 + i % 8]));
    let (d, _) = run(&ptx, "mma_s8_of_8_rows", a, b, &c);
    assert_eq!(d[..64], (0..64).map(at).collect::<Vec<_>>());
}

/// Two of each four elements of a row of A, and what of B they meet; an infinity that none meets has no part in it.
#[test]
fn fragments_of_a_sparse_matrix() {
    let Some(ptx) = ptx("tensor") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let (a, mut b, c) = (numbers(256, 1), numbers(256, 2), numbers(128, 3));
    b[8 * 31] = f32::INFINITY;
    // The first of two is before the second. None is the last of a row.
    let pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)];
    let pair = |i: usize| pairs[if i % 8 == 7 { i / 8 % 3 } else { i * 5 % 6 }];
    let which: Vec<i32> = (0..128).flat_map(|i| [pair(i).0, pair(i).1]).collect();
    let at = |i: usize| {
        let column = |q: usize| 4 * (q / 2) + which[i / 8 * 16 + q] as usize;
        (0..16).fold(c[i], |sum, q| sum + a[i / 8 * 16 + q] * b[column(q) * 8 + i % 8])
    };
    let halves = |v: &[f32]| v.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>();
    let all = [gpu.upload(&halves(&a)), gpu.upload(&halves(&b)), gpu.upload(&c), gpu.allocate(512), gpu.upload(&which)];
    let p = all.map(u64::to_le_bytes);
    gpu.launch("mma_sparse", LaunchConfig::line(1, 32), &[&p[0], &p[1], &p[2], &p[3], &p[4]]).unwrap();
    assert_eq!(gpu.download::<f32>(all[3], 128).unwrap(), (0..128).map(at).collect::<Vec<_>>());
}

/// The ISA's table of `ldmatrix`: lane l gets row l / 4, columns 2 (l % 4) and the next; transposed, rows and columns change places.
#[test]
fn matrices_from_shared_memory() {
    let Some(ptx) = ptx("tensor") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let x: Vec<u16> = (0..256).map(|i| i * 3 + 1).collect();
    let (from, to) = (gpu.upload(&x), gpu.allocate(4 * 256));
    let counters =
        gpu.launch("ldmatrix", LaunchConfig::line(1, 32), &[&from.to_le_bytes(), &to.to_le_bytes()]).unwrap();
    assert_eq!(counters.matrix_conflicts, 0, "rows one after the other");
    let y = gpu.download::<u32>(to, 256).unwrap();
    let element = |matrix: usize, row: usize, column: usize| u32::from(x[64 * matrix + 8 * row + column]);
    for matrix in 0..4 {
        for lane in 0..32 {
            let (i, j) = (lane / 4, 2 * (lane % 4));
            assert_eq!(y[32 * matrix + lane], element(matrix, i, j) | element(matrix, i, j + 1) << 16);
            assert_eq!(y[32 * (matrix + 4) + lane], element(matrix, j, i) | element(matrix, j + 1, i) << 16);
        }
    }
}

const SIZE: (usize, usize, usize) = (64, 96, 80);

fn gemm(ptx: &str, seed: u64) -> Result<(Vec<f32>, Counters), Error> {
    let mut gpu = Gpu::new(ptx)?;
    gpu.seed = seed;
    let (m, n, k) = SIZE;
    let brains = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b) = (gpu.upload(&brains(numbers(m * k, 10))), gpu.upload(&brains(numbers(k * n, 11))));
    let c = gpu.allocate(4 * m * n);
    let p = [a, b, c].map(u64::to_le_bytes);
    let s = [m as i32, n as i32, k as i32].map(i32::to_le_bytes);
    let config =
        LaunchConfig { grid: [n as u32 / 32, m as u32 / 32, 1], block: [128, 1, 1], ..LaunchConfig::default() };
    let counters = gpu.launch("gemm", config, &[&p[0], &p[1], &p[2], &s[0], &s[1], &s[2]])?;
    Ok((gpu.download(c, m * n)?, counters))
}

fn expected() -> Vec<f32> {
    let (m, n, k) = SIZE;
    product(&numbers(m * k, 10), &numbers(k * n, 11), &vec![0.0; m * n], SIZE)
}

#[test]
fn a_product_in_any_order() {
    let Some(ptx) = ptx("tensor") else { return };
    for seed in 0..8 {
        let (c, counters) = gemm(&ptx, seed).unwrap();
        assert_eq!(c, expected(), "seed {seed}");
        let (m, n, k) = SIZE;
        assert_eq!(counters.mma_flop, 2 * (m * n * k) as u64);
        assert_eq!(counters.matrix_conflicts, 0, "rows are padded");
        assert_eq!(counters.distinct_read, 2 * (m * k + k * n) as u64 / 32);
        assert_eq!(counters.distinct_written, 4 * (m * n) as u64 / 32);
    }
}

/// Results and counts are those of the seed, however many threads of the host there are.
#[test]
fn a_product_on_any_number_of_cores() {
    let Some(ptx) = ptx("tensor") else { return };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| gemm(&ptx, 3)).unwrap()
    };
    let one = on(1);
    assert_eq!(on(2), one);
    assert_eq!(on(5), one);
}

/// Each safeguard of the product, taken away or changed, is reported or changes the result.
#[test]
fn mutants_of_the_product() {
    let Some(ptx) = ptx("tensor") else { return };
    let start = ptx.find(".entry gemm(").unwrap();
    let (before, body) = ptx.split_at(start);
    // What to look for, what to put there, and how often it must occur at least.
    let changes = [
        ("bar.sync \t0;", "", 2),
        ("cp.async.wait_group 1;", "", 1),
        ("cp.async.wait_group 0;", "", 1),
        ("cp.async.wait_group 1;", "cp.async.wait_group 2;", 1),
        ("cp.async.commit_group;", "", 2),
        (".x4.trans.", ".x4.", 1),
        ("ldmatrix.sync.aligned.m8n8.x4.shared", "ldmatrix.sync.aligned.m8n8.x4.trans.shared", 1),
        ("f32.bf16.bf16.f32", "f32.f16.f16.f32", 2),
    ];
    let (mut mutants, mut missed) = (0, Vec::new());
    let mut check = |what: String, text: String| {
        mutants += 1;
        let outcome =
            (0..4).map(|seed| gemm(&text, seed)).find(|result| !matches!(result, Ok((c, _)) if *c == expected()));
        match outcome {
            None => missed.push(what),
            Some(Err(error)) => println!("{what}: {error}"),
            Some(Ok(_)) => println!("{what}: another result"),
        }
    };
    for (from, to, least) in changes {
        let places: Vec<usize> = body.match_indices(from).map(|(at, _)| at).collect();
        assert!(places.len() >= least, "{from:?} occurs {} times", places.len());
        for at in places {
            let text = format!("{before}{}{to}{}", &body[..at], &body[at + from.len()..]);
            check(format!("{from:?} → {to:?} at {at}"), text);
        }
    }
    // Fragments that change places: the second and third registers of A.
    for (at, _) in body.match_indices("mma.sync") {
        let line = &body[at..at + body[at..].find(';').unwrap()];
        let mut parts: Vec<&str> = line.split(['{', '}']).collect();
        let registers: Vec<&str> = parts[3].split(',').collect();
        let swapped = [registers[0], registers[2], registers[1], registers[3]].join(",");
        parts[3] = &swapped;
        let line_now = format!(
            "{}{{{}}}{}{{{}}}{}{{{}}}{}{{{}}}{}",
            parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], parts[7], parts[8]
        );
        let text = format!("{before}{}{line_now}{}", &body[..at], &body[at + line.len()..]);
        check(format!("swapped fragments at {at}"), text);
    }
    assert!(missed.is_empty(), "not noticed: {missed:#?}");
    assert!(mutants >= 13, "{mutants} mutants");
}
