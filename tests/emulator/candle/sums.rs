//! Reductions and products.

use candle_core::{DType, Tensor};

use crate::both::{ALL, FLOATS, against, both, numbers, views};

#[test]
fn reductions() {
    for dtype in ALL {
        for (rows, columns) in [(1, 1), (3, 700), (65, 33), (200, 2), (1, 3000)] {
            for view in 0..4 {
                for dim in 0..2 {
                    let what = |name: &str| format!("{name} over {dim} of view {view}");
                    let x = |device: &_| views(rows, columns, 7, dtype, device).map(|mut all| all.swap_remove(view));
                    // Candle's CPU adds half types up in the type itself, which stops at some size: here f64 does. u8 overflows.
                    if matches!(dtype, DType::F16 | DType::BF16) {
                        let wide = |device: &_| x(device)?.to_dtype(DType::F64)?.sum(dim)?.to_dtype(dtype);
                        against(&what("sum"), 40.0, wide, |device| x(device)?.sum(dim));
                    } else if dtype != DType::U8 {
                        both(&what("sum"), 16.0, |device| x(device)?.sum(dim));
                    }
                    both(&what("max"), 0.0, |device| x(device)?.max(dim));
                    both(&what("min"), 0.0, |device| x(device)?.min(dim));
                }
            }
        }
    }
}

/// Of equal values which is found is not defined: here they are all different.
#[test]
fn places_of_extremes() {
    for dtype in [DType::F32, DType::F64, DType::U32, DType::I64] {
        for (rows, columns) in [(1usize, 1usize), (5, 77), (33, 64), (2, 2000)] {
            for dim in 0..2 {
                for transposed in [false, true] {
                    let x = |device: &_| {
                        let count: usize = rows * columns;
                        let values: Vec<f64> =
                            (0..count).map(|i| ((i * 7919 + 13) % count.next_power_of_two()) as f64).collect();
                        // A permutation of what is there: odd multiples modulo a power of two do not repeat.
                        let x = Tensor::from_vec(values, count, device)?.to_dtype(dtype)?;
                        if transposed { x.reshape((columns, rows))?.t() } else { x.reshape((rows, columns)) }
                    };
                    both("argmax", 0.0, |device| x(device)?.argmax(dim));
                    both("argmin", 0.0, |device| x(device)?.argmin(dim));
                }
            }
        }
    }
}

#[test]
fn sums_of_everything() {
    for dtype in FLOATS {
        both("sum of all", 64.0, |device| numbers(2000, 3, dtype)?.to_device(device)?.sum_all());
        both("mean of all", 64.0, |device| numbers(2000, 3, dtype)?.to_device(device)?.mean_all());
        both("largest of all", 0.0, |device| numbers(2000, 3, dtype)?.to_device(device)?.max_all());
        both("two dimensions", 64.0, |device| {
            numbers(6 * 10 * 14, 3, dtype)?.to_device(device)?.reshape((6, 10, 14))?.sum((0, 2))
        });
    }
}

#[test]
fn products() {
    for dtype in FLOATS {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (33, 17, 64), (64, 100, 80)] {
            for (left, right) in [(false, false), (true, false), (false, true), (true, true)] {
                both(&format!("({m}, {n}, {k}), {left}, {right}"), 8.0 + k as f64, |device| {
                    let matrix = |rows, columns, transposed, seed| {
                        let x = (numbers(rows * columns, seed, dtype)?.to_device(device)? * 0.25)?;
                        if transposed { x.reshape((columns, rows))?.t() } else { x.reshape((rows, columns)) }
                    };
                    matrix(m, k, left, 1)?.matmul(&matrix(k, n, right, 2)?)
                });
            }
        }
        both("a batch", 64.0, |device| {
            let a = (numbers(4 * 6 * 10, 1, dtype)?.to_device(device)? * 0.25)?.reshape((2, 2, 6, 10))?;
            let b = (numbers(4 * 10 * 5, 2, dtype)?.to_device(device)? * 0.25)?.reshape((2, 2, 5, 10))?;
            a.matmul(&b.transpose(2, 3)?)
        });
    }
}
