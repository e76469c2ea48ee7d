//! cuBLAS: matrix products, with sums in f32 (f64 for f64). Matrices are stored by columns.
#![allow(clippy::missing_safety_doc)] // They have the contracts of the functions whose names they have.

use std::ffi::{c_int, c_longlong, c_void};
use std::sync::Arc;

use gemm::Parallelism;
use half::{bf16, f16};

use crate::capture;
use crate::device::{Device, Failure, INVALID_VALUE, NOT_SUPPORTED, Outcome, call, entries, put, release};

/// `cudaDataType`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    F32,
    F64,
    F16,
    Bf16,
}

impl Type {
    fn new(code: c_int) -> Outcome<Self> {
        Ok(match code {
            0 => Type::F32,
            1 => Type::F64,
            2 => Type::F16,
            14 => Type::Bf16,
            _ => return Err(Failure::new(NOT_SUPPORTED, format!("matrices of cudaDataType {code}"))),
        })
    }

    fn size(self) -> usize {
        match self {
            Type::F16 | Type::Bf16 => 2,
            Type::F32 => 4,
            Type::F64 => 8,
        }
    }

    fn get(self, bytes: &[u8]) -> f64 {
        let low = bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        match self {
            Type::F16 => f16::from_bits(low as u16).to_f64(),
            Type::Bf16 => bf16::from_bits(low as u16).to_f64(),
            Type::F32 => f64::from(f32::from_bits(low as u32)),
            Type::F64 => f64::from_bits(low),
        }
    }

    fn put(self, value: f64, bytes: &mut Vec<u8>) {
        match self {
            Type::F16 => bytes.extend(f16::from_f32(value as f32).to_le_bytes()),
            Type::Bf16 => bytes.extend(bf16::from_f32(value as f32).to_le_bytes()),
            Type::F32 => bytes.extend((value as f32).to_le_bytes()),
            Type::F64 => bytes.extend(value.to_le_bytes()),
        }
    }
}

/// A matrix in memory.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    at: u64,
    ty: Type,
    rows: usize,
    columns: usize,
    leading: usize,
}

impl Matrix {
    /// Its elements, by columns.
    fn read(self, device: &Device) -> Outcome<Vec<f64>> {
        let size = self.ty.size();
        let mut bytes = vec![0; self.rows * size];
        let mut values = Vec::with_capacity(self.rows * self.columns);
        for column in 0..self.columns {
            device.memory.read(self.at + (column * self.leading * size) as u64, &mut bytes)?;
            values.extend(bytes.chunks(size).map(|bytes| self.ty.get(bytes)));
        }
        Ok(values)
    }

    fn write(self, device: &Device, values: &[f64]) -> Outcome<()> {
        let mut bytes = Vec::with_capacity(self.rows * self.ty.size());
        for column in 0..self.columns {
            bytes.clear();
            values[column * self.rows..][..self.rows].iter().for_each(|&value| self.ty.put(value, &mut bytes));
            device.memory.write(self.at + (column * self.leading * self.ty.size()) as u64, &bytes)?;
        }
        Ok(())
    }
}

/// C = α·op(A)·op(B) + β·C.
struct Product {
    transposed: [bool; 2],
    size: [c_int; 3],
    alpha: f64,
    beta: f64,
    at: [u64; 3],
    types: [Type; 3],
    leading: [c_int; 3],
    strides: [c_longlong; 3],
    count: c_int,
    wide: bool,
}

impl Product {
    /// Refuses sizes that cannot be.
    fn check(self) -> Outcome<Self> {
        if self.size.iter().chain(&self.leading).any(|&n| n < 0) || self.count < 0 {
            return Err(Failure::new(INVALID_VALUE, "a negative size of a product"));
        }
        let ([m, n, k], [ta, tb]) = (self.size, self.transposed);
        let rows = [("A", if ta { k } else { m }), ("B", if tb { n } else { k }), ("C", m)];
        for ((what, rows), leading) in rows.into_iter().zip(self.leading) {
            if leading < rows.max(1) {
                let reason = format!("{what} has {rows} rows, and a leading dimension of {leading}");
                return Err(Failure::new(INVALID_VALUE, reason));
            }
        }
        Ok(self)
    }

    fn run(&self, device: &Device) -> Outcome<()> {
        let [m, n, k] = self.size.map(|n| n as usize);
        for batch in 0..i64::from(self.count) {
            let matrix = |i: usize, rows: usize, columns: usize| Matrix {
                at: self.at[i].wrapping_add((batch * self.strides[i]) as u64 * self.types[i].size() as u64),
                ty: self.types[i],
                rows,
                columns,
                leading: self.leading[i] as usize,
            };
            let [ta, tb] = self.transposed;
            let a = if ta { matrix(0, k, m) } else { matrix(0, m, k) };
            let b = if tb { matrix(1, n, k) } else { matrix(1, k, n) };
            let c = matrix(2, m, n);
            let old = if self.beta == 0.0 { vec![0.0; m * n] } else { c.read(device)? };
            let (left, right) = (a.read(device)?, b.read(device)?);
            let strides =
                |transposed: bool, rows: usize| if transposed { (rows as isize, 1) } else { (1, rows as isize) };
            let ((ars, acs), (brs, bcs)) = (strides(ta, a.rows), strides(tb, b.rows));
            let sum: Vec<f64> = if self.wide {
                multiply(&left, (ars, acs), &right, (brs, bcs), (m, n, k))
            } else {
                let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
                let sum = multiply(&narrow(&left), (ars, acs), &narrow(&right), (brs, bcs), (m, n, k));
                sum.into_iter().map(f64::from).collect()
            };
            let out: Vec<f64> = sum
                .iter()
                .zip(&old)
                .map(|(s, o)| self.alpha * s + if self.beta == 0.0 { 0.0 } else { self.beta * o })
                .collect();
            c.write(device, &out)?;
        }
        // What a product has to read and write: how cuBLAS makes it is not known here.
        let bytes = |i: usize, elements: usize| (elements * self.count as usize * self.types[i].size()) as u64;
        let [a, b, c] = [bytes(0, m * k), bytes(1, k * n), bytes(2, m * n)];
        device.record(&serde_json::json!({
            "product": [m, n, k], "count": self.count,
            "read": a + b + if self.beta == 0.0 { 0 } else { c }, "written": c,
        }));
        Ok(())
    }
}

fn multiply<T: One>(
    a: &[T],
    (ars, acs): (isize, isize),
    b: &[T],
    (brs, bcs): (isize, isize),
    (m, n, k): (usize, usize, usize),
) -> Vec<T> {
    let mut c = vec![T::default(); m * n];
    // SAFETY: a has m·k elements, b k·n and c m·n, at strides that cover each of them once
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            m as isize,
            1,
            false,
            a.as_ptr(),
            acs,
            ars,
            b.as_ptr(),
            bcs,
            brs,
            T::default(),
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    c
}

/// A type with a one.
trait One: Copy + Default + 'static {
    const ONE: Self;
}
impl One for f32 {
    const ONE: f32 = 1.0;
}
impl One for f64 {
    const ONE: f64 = 1.0;
}

/// Whether an operation transposes. Conjugation is nothing here.
fn transposes(operation: c_int) -> Outcome<bool> {
    match operation {
        0 => Ok(false),
        1 | 2 => Ok(true),
        _ => Err(Failure::new(INVALID_VALUE, format!("operation {operation} on a matrix"))),
    }
}

/// A `cublasStatus_t`.
fn blas(name: &str, body: impl FnOnce(&'static Device) -> Outcome<()>) -> u32 {
    match call(name, body) {
        0 => 0,
        INVALID_VALUE => 7,
        NOT_SUPPORTED => 15,
        _ => 13,
    }
}

/// The factor at a pointer of the host.
unsafe fn factor(at: *const c_void, ty: Type) -> Outcome<f64> {
    if at.is_null() {
        return Err(Failure::new(INVALID_VALUE, "a null pointer for a factor"));
    }
    // SAFETY: a number of this type, by cuBLAS's contract
    Ok(ty.get(unsafe { std::slice::from_raw_parts(at.cast(), ty.size()) }))
}

/// `computeType`: the type of the factors, and whether sums are f64.
fn compute(code: c_int) -> Outcome<(Type, bool)> {
    Ok(match code {
        64 | 65 => (Type::F16, false),
        68 | 69 | 74 | 75 | 77 => (Type::F32, false),
        70 | 71 => (Type::F64, true),
        _ => return Err(Failure::new(NOT_SUPPORTED, format!("cublasComputeType_t {code}"))),
    })
}

/// C = α·op(A)·op(B) + β·C of matrices as a caller has them: `factors` and what sums are made in come from `compute`.
///
/// # Safety
/// `factors` point to numbers of the type that goes with the sums.
unsafe fn product(
    device: &Device,
    handle: u64,
    operations: [c_int; 2],
    size: [c_int; 3],
    factors: [*const c_void; 2],
    matrices: [(u64, c_int, c_int, c_longlong); 3],
    (count, compute_type): (c_int, c_int),
) -> Outcome<()> {
    let (ty, wide) = compute(compute_type)?;
    let [a, b, c] = matrices;
    Product {
        transposed: [transposes(operations[0])?, transposes(operations[1])?],
        size,
        // SAFETY: the caller's factors, of the type that goes with the sums
        alpha: unsafe { factor(factors[0], ty)? },
        // SAFETY: as above
        beta: unsafe { factor(factors[1], ty)? },
        at: [a.0, b.0, c.0],
        types: [Type::new(a.1)?, Type::new(b.1)?, Type::new(c.1)?],
        leading: [a.2, b.2, c.2],
        strides: [a.3, b.3, c.3],
        count,
        wide,
    }
    .check()
    .map(Arc::new)
    .and_then(|product| capture::put_of(device, handle, "cublas", Box::new(move |device| product.run(device))))
}

// Factors are on the host.
entries! { blas:
    fn cublasCreate_v2(handle: *mut u64) |device| { put(handle, device.handle()) }
    fn cublasSetStream_v2(handle: u64, stream: u64) |device| { device.set_stream(handle, stream) }
    fn cublasSetPointerMode_v2(_handle: u64, mode: c_int) |_device| {
        if mode == 0 { Ok(()) } else { Err(Failure::new(NOT_SUPPORTED, "factors on the device")) }
    }
    fn cublasGetPointerMode_v2(_handle: u64, mode: *mut c_int) |_device| { put(mode, 0) }
    fn cublasGemmStridedBatchedEx(handle: u64, ta: c_int, tb: c_int, m: c_int, n: c_int, k: c_int,
                                  alpha: *const c_void, a: u64, at: c_int, lda: c_int, sa: c_longlong, b: u64, bt: c_int, ldb: c_int, sb: c_longlong,
                                  beta: *const c_void, c: u64, ct: c_int, ldc: c_int, sc: c_longlong,
                                  count: c_int, compute_type: c_int, _algorithm: c_int) |device| {
        let matrices = [(a, at, lda, sa), (b, bt, ldb, sb), (c, ct, ldc, sc)];
        product(device, handle, [ta, tb], [m, n, k], [alpha, beta], matrices, (count, compute_type))
    }
    fn cublasGemmEx(handle: u64, ta: c_int, tb: c_int, m: c_int, n: c_int, k: c_int,
                    alpha: *const c_void, a: u64, at: c_int, lda: c_int, b: u64, bt: c_int, ldb: c_int,
                    beta: *const c_void, c: u64, ct: c_int, ldc: c_int, compute_type: c_int, _algorithm: c_int) |device| {
        let matrices = [(a, at, lda, 0), (b, bt, ldb, 0), (c, ct, ldc, 0)];
        product(device, handle, [ta, tb], [m, n, k], [alpha, beta], matrices, (1, compute_type))
    }
}

entries! { release:
    fn cublasDestroy_v2(handle: u64) |device| { device.close(handle) }
}

macro_rules! typed {
    ($batched:ident, $single:ident, $t:ty, $code:literal, $compute:literal) => {
        entries! { blas:
            fn $batched(handle: u64, ta: c_int, tb: c_int, m: c_int, n: c_int, k: c_int,
                        alpha: *const $t, a: u64, lda: c_int, sa: c_longlong, b: u64, ldb: c_int, sb: c_longlong,
                        beta: *const $t, c: u64, ldc: c_int, sc: c_longlong, count: c_int) |device| {
                let matrices = [(a, $code, lda, sa), (b, $code, ldb, sb), (c, $code, ldc, sc)];
                product(device, handle, [ta, tb], [m, n, k], [alpha.cast(), beta.cast()], matrices, (count, $compute))
            }
            fn $single(handle: u64, ta: c_int, tb: c_int, m: c_int, n: c_int, k: c_int,
                       alpha: *const $t, a: u64, lda: c_int, b: u64, ldb: c_int, beta: *const $t, c: u64, ldc: c_int) |device| {
                let matrices = [(a, $code, lda, 0), (b, $code, ldb, 0), (c, $code, ldc, 0)];
                product(device, handle, [ta, tb], [m, n, k], [alpha.cast(), beta.cast()], matrices, (1, $compute))
            }
        }
    };
}
typed!(cublasSgemmStridedBatched, cublasSgemm_v2, f32, 0, 68);
typed!(cublasDgemmStridedBatched, cublasDgemm_v2, f64, 1, 70);
