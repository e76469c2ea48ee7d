//! cuRAND: uniform and normal numbers from the generators of `rand`; not cuRAND's own sequences, but the same seed gives the same numbers.
#![allow(clippy::missing_safety_doc)] // They have the contracts of the functions whose names they have.

use std::collections::HashMap;
use std::ffi::{c_int, c_ulonglong};
use std::sync::{LazyLock, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use crate::capture;
use crate::device::{Device, Failure, INVALID_HANDLE, INVALID_VALUE, Outcome, call, entries, lock, put, release};

static GENERATORS: LazyLock<Mutex<HashMap<u64, StdRng>>> = LazyLock::new(Mutex::default);

/// A `curandStatus_t`.
fn random(name: &str, body: impl FnOnce(&'static Device) -> Outcome<()>) -> u32 {
    match call(name, body) {
        0 => 0,
        INVALID_HANDLE => 101,
        INVALID_VALUE => 104,
        _ => 201,
    }
}

fn unknown() -> Failure {
    Failure::new(INVALID_HANDLE, "no such generator")
}

fn fill<const SIZE: usize>(
    device: &Device,
    generator: u64,
    at: u64,
    count: usize,
    mut next: impl FnMut(&mut StdRng) -> [u8; SIZE],
) -> Outcome<()> {
    let mut generators = lock(&GENERATORS);
    let rng = generators.get_mut(&generator).ok_or_else(unknown)?;
    let bytes: Vec<u8> = (0..count).flat_map(|_| next(rng)).collect();
    capture::put_of(device, generator, "curand", Box::new(move |device| Ok(device.memory.write(at, &bytes)?)))
}

/// Normal numbers come in pairs.
fn even(count: usize) -> Outcome<()> {
    if count.is_multiple_of(2) {
        Ok(())
    } else {
        Err(Failure::new(INVALID_VALUE, format!("{count} normal numbers: an odd number")))
    }
}

/// A normal number with a mean and a standard deviation.
fn normal<T>(rng: &mut StdRng, mean: T, deviation: T) -> T
where
    StandardNormal: Distribution<T>,
    T: std::ops::Add<Output = T> + std::ops::Mul<Output = T>,
{
    mean + deviation * StandardNormal.sample(rng)
}

// Uniform numbers are on (0, 1].
entries! { random:
    fn curandCreateGenerator(generator: *mut u64, _kind: c_int) |device| {
        let handle = device.handle();
        lock(&GENERATORS).insert(handle, StdRng::seed_from_u64(0));
        put(generator, handle)
    }
    fn curandSetPseudoRandomGeneratorSeed(generator: u64, seed: c_ulonglong) |_device| {
        *lock(&GENERATORS).get_mut(&generator).ok_or_else(unknown)? = StdRng::seed_from_u64(seed);
        Ok(())
    }
    fn curandSetStream(generator: u64, stream: u64) |device| { device.set_stream(generator, stream) }
    fn curandGenerateUniform(generator: u64, at: u64, count: usize) |device| {
        fill(device, generator, at, count, |rng| (1.0 - rng.random::<f32>()).to_le_bytes())
    }
    fn curandGenerateUniformDouble(generator: u64, at: u64, count: usize) |device| {
        fill(device, generator, at, count, |rng| (1.0 - rng.random::<f64>()).to_le_bytes())
    }
    fn curandGenerateNormal(generator: u64, at: u64, count: usize, mean: f32, deviation: f32) |device| {
        even(count)?;
        fill(device, generator, at, count, |rng| normal(rng, mean, deviation).to_le_bytes())
    }
    fn curandGenerateNormalDouble(generator: u64, at: u64, count: usize, mean: f64, deviation: f64) |device| {
        even(count)?;
        fill(device, generator, at, count, |rng| normal(rng, mean, deviation).to_le_bytes())
    }
}

entries! { release:
    fn curandDestroyGenerator(generator: u64) |_device| { lock(&GENERATORS).remove(&generator).map(|_| ()).ok_or_else(unknown) }
}
