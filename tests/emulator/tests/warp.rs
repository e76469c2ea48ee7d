//! Matches, reductions of a warp, atomics of every type.
#![allow(missing_docs)]

mod common;

use common::ptx;
use half::{bf16, f16};
use ptx_emulator::{Gpu, LaunchConfig};

#[test]
fn matches() {
    let Some(ptx) = ptx("warp") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let x: Vec<i32> = (0..64).map(|i| if i < 32 { i * 5 % 7 } else { i / 48 * 100 }).collect();
    let from = gpu.upload(&x);
    let [any, all, agree] = [0; 3].map(|_| gpu.allocate(256));
    let p = [from, any, all, agree].map(u64::to_le_bytes);
    gpu.launch("matches", LaunchConfig::line(1, 64), &[&p[0], &p[1], &p[2], &p[3]]).unwrap();
    let (any, all, agree) = (
        gpu.download::<u32>(any, 64).unwrap(),
        gpu.download::<u32>(all, 64).unwrap(),
        gpu.download::<i32>(agree, 64).unwrap(),
    );
    for i in 0..64 {
        let warp = i / 32 * 32;
        let same = (0..32).filter(|j| x[warp + j] == x[i]).fold(0, |m, j| m | 1u32 << j);
        assert_eq!(any[i], same);
        // All of the first warp are below 100; the second has both.
        assert_eq!((all[i], agree[i]), if warp == 0 { (u32::MAX, 1) } else { (0, 0) });
    }
}

#[test]
fn reductions() {
    let Some(ptx) = ptx("warp") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let x: Vec<i32> = (0..32).map(|i: i32| (i * 7919 - 100_000) ^ 0x5a00_0000u32 as i32).collect();
    let (from, to) = (gpu.upload(&x), gpu.allocate(32));
    gpu.launch("reductions", LaunchConfig::line(1, 32), &[&from.to_le_bytes(), &to.to_le_bytes()]).unwrap();
    let u: Vec<u32> = x.iter().map(|&v| v as u32).collect();
    let fold = |f: fn(u32, u32) -> u32| u.iter().copied().reduce(f).unwrap() as i32;
    let expected = [
        fold(u32::wrapping_add),
        fold(|a, b| a & b),
        fold(|a, b| a | b),
        fold(|a, b| a ^ b),
        fold(u32::min),
        fold(u32::max),
        *x.iter().min().unwrap(),
        *x.iter().max().unwrap(),
    ];
    assert_eq!(gpu.download::<i32>(to, 8).unwrap(), expected);
}

#[test]
fn sums() {
    let Some(ptx) = ptx("warp") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let half = |v: f32| f16::from_f32(v);
    let brain = |v: f32| bf16::from_f32(v);
    let at = [
        gpu.upload(&[0.5f32]),
        gpu.upload(&[0.25f64]),
        gpu.upload(&[half(0.5), half(7.0)]),
        gpu.upload(&[half(1.0), half(2.0)]),
        gpu.upload(&[brain(1.0), brain(7.0)]),
        gpu.upload(&[brain(0.0), brain(0.0)]),
        gpu.upload(&[5u64]),
    ];
    let p = at.map(u64::to_le_bytes);
    gpu.launch("sums", LaunchConfig::line(2, 128), &[&p[0], &p[1], &p[2], &p[3], &p[4], &p[5], &p[6]]).unwrap();
    assert_eq!(gpu.download::<f32>(at[0], 1).unwrap(), [256.5]);
    assert_eq!(gpu.download::<f64>(at[1], 1).unwrap(), [256.25]);
    assert_eq!(gpu.download::<f16>(at[2], 2).unwrap(), [half(256.5), half(7.0)]);
    assert_eq!(gpu.download::<f16>(at[3], 2).unwrap(), [half(257.0), half(514.0)]);
    // 256 + 1 is not a bf16, and rounds to even.
    assert_eq!(gpu.download::<bf16>(at[4], 2).unwrap(), [brain(256.0), brain(7.0)]);
    assert_eq!(gpu.download::<bf16>(at[5], 2).unwrap(), [brain(256.0), brain(128.0)]);
    assert_eq!(gpu.download::<u64>(at[6], 1).unwrap(), [5 + (256 << 33)]);
}

#[test]
fn integers() {
    let Some(ptx) = ptx("warp") else { return };
    for seed in 0..4 {
        let gpu = Gpu { seed, ..Gpu::new(&ptx).unwrap() };
        let x = gpu.upload(&[0i32, 0]);
        let w = gpu.upload(&[u32::MAX, 0, u32::MAX, 0, 0, 0, 0, 0]);
        let s = gpu.upload(&[10u16, 77]);
        let p = [x, w, s].map(u64::to_le_bytes);
        gpu.launch("integers", LaunchConfig::line(3, 32), &[&p[0], &p[1], &p[2]]).unwrap();
        assert_eq!(gpu.download::<i32>(x, 2).unwrap(), [-95, 95]);
        // 96 increments and decrements in a cycle of 7; each bit flipped three times.
        let expected = [u32::MAX - 95, u32::MAX, 0, u32::MAX, u32::MAX, 96 % 7, 7 * 14 - 96, 9];
        assert_eq!(gpu.download::<u32>(w, 8).unwrap(), expected);
        assert_eq!(gpu.download::<u16>(s, 2).unwrap(), [106, 77]);
    }
}

#[test]
fn votes_of_a_block() {
    let Some(ptx) = ptx("warp") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let x: Vec<i32> = (0..100).map(|i| i * 31 % 40 - 20).collect();
    let (from, to) = (gpu.upload(&x), gpu.allocate(1200));
    gpu.launch("block_votes", LaunchConfig::line(1, 100), &[&from.to_le_bytes(), &to.to_le_bytes()]).unwrap();
    let positive = x.iter().filter(|&&v| v > 0).count() as i32;
    assert_eq!(gpu.download::<i32>(to, 300).unwrap(), [positive, 1, 0].repeat(100));
}

#[test]
fn producers_and_consumers() {
    let Some(ptx) = ptx("warp") else { return };
    for seed in 0..6 {
        let gpu = Gpu { seed, ..Gpu::new(&ptx).unwrap() };
        let y = gpu.allocate(4 * 64 * 5);
        let p = [&y.to_le_bytes()[..], &5i32.to_le_bytes()];
        gpu.launch("producers_ok", LaunchConfig::line(1, 128), &p).unwrap();
        let expected: Vec<i32> = (0..5).flat_map(|r| (0..64).map(move |t| 100 * r + 63 - t)).collect();
        assert_eq!(gpu.download::<i32>(y, 320).unwrap(), expected);
        // Without the way back the buffer is filled again while it is read.
        assert!(gpu.launch("producers_hasty", LaunchConfig::line(1, 128), &p).is_err());
    }
}

#[test]
fn wide_integers() {
    let Some(ptx) = ptx("warp") else { return };
    let gpu = Gpu::new(&ptx).unwrap();
    let words =
        |seed: u64| (0..64u64).map(move |i| (i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(seed as u32));
    let (mut a, b): (Vec<u64>, Vec<u64>) = (words(1).collect(), words(2).collect());
    (a[0], a[1]) = (u64::MAX, u64::MAX);
    let (da, db, dc) = (gpu.upload(&a), gpu.upload(&b), gpu.allocate(32 * 48));
    gpu.launch("wide", LaunchConfig::line(1, 32), &[&da.to_le_bytes(), &db.to_le_bytes(), &dc.to_le_bytes()]).unwrap();
    let c = gpu.download::<u64>(dc, 192).unwrap();
    let whole = |v: &[u64], i: usize| u128::from(v[2 * i]) | u128::from(v[2 * i + 1]) << 64;
    for i in 0..32 {
        let (x, y) = (whole(&a, i), whole(&b, i));
        assert_eq!(whole(&c, 3 * i), x.wrapping_add(y));
        assert_eq!(whole(&c, 3 * i + 1), x.wrapping_sub(y));
        assert_eq!(whole(&c, 3 * i + 2), x.wrapping_mul(y));
    }
}

#[test]
fn carries() {
    let Some(ptx) = ptx("warp") else { return };
    for [x, y, z, w] in
        [[u32::MAX, 1, 1, 2], [0, 0, 1, 0], [0x8000_0000, 7, 0xffff_fff0, 3], [5, 6, 7, 8], [u32::MAX; 4]]
    {
        let gpu = Gpu::new(&ptx).unwrap();
        let (a, c) = (gpu.upload(&[x, y, z, w]), gpu.allocate(32));
        gpu.launch("carries", LaunchConfig::line(1, 1), &[&a.to_le_bytes(), &c.to_le_bytes()]).unwrap();
        let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let (first, second) = (join(x, y), join(z, w));
        // x·z + y, and its carry and w added to the high half.
        let unsigned = (u64::from(x) * u64::from(z)).wrapping_add(join(y, w));
        let signed = (i64::from(x as i32) * i64::from(z as i32)) as u64;
        let signed = signed.wrapping_add(join(y, w));
        let expected: Vec<u32> = [first.wrapping_add(second), first.wrapping_sub(second), unsigned, signed]
            .into_iter()
            .flat_map(|v| [v as u32, (v >> 32) as u32])
            .collect();
        assert_eq!(gpu.download::<u32>(c, 8).unwrap(), expected);
    }
}

#[test]
fn parts_of_a_warp() {
    let Some(ptx) = ptx("warp") else { return };
    for seed in 0..4 {
        let gpu = Gpu { seed, ..Gpu::new(&ptx).unwrap() };
        let x: Vec<i32> = (0..64).map(|i| i * 7 % 23).collect();
        let (from, to) = (gpu.upload(&x), gpu.allocate(256));
        gpu.launch("quarters", LaunchConfig::line(1, 64), &[&from.to_le_bytes(), &to.to_le_bytes()]).unwrap();
        let sums = x.chunks(8).flat_map(|part| {
            let sum = part.iter().sum::<i32>();
            [sum + if sum > 50 { 8000 } else { 0 }; 8]
        });
        assert_eq!(gpu.download::<i32>(to, 64).unwrap(), sums.collect::<Vec<_>>());
    }
}
