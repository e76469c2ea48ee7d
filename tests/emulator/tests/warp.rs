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
        let expected = [u32::MAX - 95, u32::MAX, 0, u32::MAX, u32::MAX, 96 % 7, (7 * 14 - 96) % 7, 9];
        assert_eq!(gpu.download::<u32>(w, 8).unwrap(), expected);
        assert_eq!(gpu.download::<u16>(s, 2).unwrap(), [106, 77]);
    }
}
