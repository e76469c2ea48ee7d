//! What both devices are given, and how what they give is compared.

use candle_core::{DType, Device, Result, Tensor};

pub const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::BF16];
pub const ALL: [DType; 7] = [DType::F32, DType::F64, DType::F16, DType::BF16, DType::U32, DType::U8, DType::I64];

pub fn gpu() -> Device {
    Device::new_cuda(0).expect("the emulated GPU; run this by tests/emulator/run.sh")
}

/// Numbers between −4 and 4 in steps that every type can hold; in unsigned types, between 0 and 7.
pub fn numbers(count: usize, seed: usize, dtype: DType) -> Result<Tensor> {
    let step = |i: usize| ((i * 7919 + seed * 104_729 + i * i * 31) % 65) as f64;
    let values: Vec<f64> = (0..count)
        .map(|i| match dtype {
            DType::U32 | DType::U8 => (step(i) / 9.0).floor(),
            DType::I64 => step(i) - 32.0,
            _ => step(i) / 8.0 - 4.0,
        })
        .collect();
    Tensor::from_vec(values, count, &Device::Cpu)?.to_dtype(dtype)
}

/// Tensors with the same numbers: one after the other, transposed, a part of a larger one, with a stride of 0.
pub fn views(rows: usize, columns: usize, seed: usize, dtype: DType, device: &Device) -> Result<Vec<Tensor>> {
    let x = |count: usize| numbers(count, seed, dtype)?.to_device(device);
    Ok(vec![
        x(rows * columns)?.reshape((rows, columns))?,
        x(rows * columns)?.reshape((columns, rows))?.t()?,
        x((rows + 3) * (columns + 5))?.reshape((rows + 3, columns + 5))?.narrow(0, 2, rows)?.narrow(1, 1, columns)?,
        x(rows)?.reshape((rows, 1))?.broadcast_as((rows, columns))?,
    ])
}

/// Units in the last place of a type that results may differ by, relative to the larger of 1 and the value.
pub fn close(a: &Tensor, b: &Tensor, units: f64, what: &str) {
    assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "{what}");
    let epsilon = match a.dtype() {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => 0.0,
    };
    let list = |t: &Tensor| -> Vec<f64> {
        let flat = t.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
        flat.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    };
    for (i, (&x, &y)) in list(a).iter().zip(&list(b)).enumerate() {
        let near = x.is_finite() && (x - y).abs() <= units * epsilon * x.abs().max(1.0);
        let same = x == y || (x.is_nan() && y.is_nan()) || near;
        assert!(same, "{what}: element {i} is {x} on the CPU and {y} on the GPU ({:?}, {:?})", a.dtype(), a.shape());
    }
}

/// Runs a function on both devices and compares what it gives.
pub fn both(what: &str, units: f64, f: impl Fn(&Device) -> Result<Tensor>) {
    against(what, units, &f, &f);
}

/// Runs a function on the GPU and compares what it gives with another on the CPU.
pub fn against(what: &str, units: f64, cpu: impl Fn(&Device) -> Result<Tensor>, f: impl Fn(&Device) -> Result<Tensor>) {
    let on_cpu = cpu(&Device::Cpu).unwrap_or_else(|error| panic!("{what} on the CPU: {error}"));
    let on_gpu = f(&gpu()).unwrap_or_else(|error| panic!("{what} on the GPU: {error}"));
    close(&on_cpu, &on_gpu, units, what);
}
