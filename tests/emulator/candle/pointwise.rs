//! What works element by element.

use candle_core::{DType, Device, Result, Tensor};

use crate::both::{ALL, FLOATS, both, numbers, views};

type Unary = fn(&Tensor) -> Result<Tensor>;

const UNARY: [(&str, f64, Unary); 22] = [
    ("neg", 0.0, |x| x.neg()),
    ("abs", 0.0, |x| x.abs()),
    ("recip", 1.0, |x| x.recip()),
    ("exp", 4.0, |x| x.exp()),
    ("log", 4.0, |x| x.abs()?.log()),
    ("log of negative numbers", 4.0, |x| x.log()),
    ("sin", 4.0, |x| x.sin()),
    ("cos", 4.0, |x| x.cos()),
    ("sin of large numbers", 8.0, |x| (x * 1000.)?.sin()),
    ("tanh", 4.0, |x| x.tanh()),
    ("sqr", 1.0, |x| x.sqr()),
    ("sqrt", 1.0, |x| x.sqrt()),
    ("gelu", 8.0, |x| x.gelu()),
    ("gelu by erf", 8.0, |x| x.gelu_erf()),
    ("erf", 8.0, |x| x.erf()),
    ("relu", 0.0, |x| x.relu()),
    ("silu", 8.0, |x| x.silu()),
    ("ceil", 0.0, |x| x.ceil()),
    ("floor", 0.0, |x| x.floor()),
    ("round", 0.0, |x| x.round()),
    ("sign", 0.0, |x| x.sign()),
    ("elu", 8.0, |x| x.elu(0.7)),
];

#[test]
fn unary() {
    for dtype in FLOATS {
        for (name, units, f) in UNARY {
            for view in 0..4 {
                both(&format!("{name}, view {view}"), units, |device| f(&views(7, 45, 3, dtype, device)?[view]));
            }
            both(&format!("{name} of many"), units, |device| f(&numbers(3000, 5, dtype)?.to_device(device)?));
        }
    }
}

/// Every number of the half types, infinities included. Of NaN, Candle's `relu` makes 0 on the CPU and NaN on the GPU.
#[test]
fn unary_of_all_halves() {
    for dtype in [DType::F16, DType::BF16] {
        for (name, units, f) in UNARY {
            both(&format!("{name} of all"), units.max(1.0), |device| {
                let all = (0..=u16::MAX).map(|bits| match dtype {
                    DType::F16 => half::f16::from_bits(bits).to_f32(),
                    _ => half::bf16::from_bits(bits).to_f32(),
                });
                let all = all.map(|v: f32| if v.is_nan() { 1.0 } else { v });
                f(&Tensor::from_iter(all, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
            });
        }
    }
}

#[test]
fn affine_and_powers() {
    for dtype in FLOATS {
        for view in 0..4 {
            both("affine", 2.0, |device| views(9, 33, 1, dtype, device)?[view].affine(-1.5, 0.25));
            both("a square", 8.0, |device| views(9, 33, 1, dtype, device)?[view].powf(2.0));
            both("a power", 16.0, |device| views(9, 33, 1, dtype, device)?[view].abs()?.powf(1.3));
            both("clamp", 0.0, |device| views(9, 33, 1, dtype, device)?[view].clamp(-1.0, 2.5));
        }
    }
}

type Binary = fn(&Tensor, &Tensor) -> Result<Tensor>;

const BINARY: [(&str, f64, Binary); 12] = [
    ("+", 1.0, |a, b| a.add(b)),
    ("−", 1.0, |a, b| a.sub(b)),
    ("×", 1.0, |a, b| a.mul(b)),
    ("÷", 1.0, |a, b| a.div(b)),
    ("minimum", 0.0, |a, b| a.minimum(b)),
    ("maximum", 0.0, |a, b| a.maximum(b)),
    ("=", 0.0, |a, b| a.eq(b)),
    ("≠", 0.0, |a, b| a.ne(b)),
    ("<", 0.0, |a, b| a.lt(b)),
    ("≤", 0.0, |a, b| a.le(b)),
    (">", 0.0, |a, b| a.gt(b)),
    ("≥", 0.0, |a, b| a.ge(b)),
];

#[test]
fn binary() {
    for dtype in ALL {
        for (name, units, f) in BINARY {
            // Integers by zero, and below it, are nobody's to define.
            if !dtype.is_float() && ["÷", "−"].contains(&name) {
                continue;
            }
            for (one, other) in [(0, 0), (0, 1), (1, 2), (2, 3), (3, 0)] {
                both(&format!("{name}, views {one} and {other}"), units, |device| {
                    f(&views(11, 29, 1, dtype, device)?[one], &views(11, 29, 2, dtype, device)?[other])
                });
            }
        }
        both("a row to each", 1.0, |device| {
            let row = numbers(29, 4, dtype)?.to_device(device)?;
            views(11, 29, 1, dtype, device)?[0].broadcast_add(&row)
        });
    }
}

#[test]
fn casts() {
    // Pairs for which Candle 0.11.1 has no kernel.
    let (half, brain) = (DType::F16, DType::BF16);
    let missing = [(half, DType::I64), (DType::I64, half), (brain, DType::I64), (DType::I64, brain)];
    for from in ALL {
        for to in ALL {
            if missing.contains(&(from, to)) {
                let x = numbers(5, 1, from).unwrap().to_device(&crate::both::gpu()).unwrap();
                assert!(
                    x.to_dtype(to).unwrap_err().to_string().contains("named symbol not found"),
                    "{from:?} to {to:?}"
                );
                continue;
            }
            // A negative number has no unsigned one.
            let unsigned = matches!(to, DType::U8 | DType::U32);
            for view in 0..4 {
                both(&format!("{from:?} to {to:?}, view {view}"), 0.0, |device| {
                    let x = &views(13, 21, 2, from, device)?[view];
                    let signed = unsigned && from != DType::U8 && from != DType::U32;
                    let x = match (signed, from) {
                        (false, _) => x.clone(),
                        // Candle's CUDA kernels have no absolute value of integers.
                        (true, DType::I64) => x.maximum(&x.zeros_like()?)?,
                        (true, _) => x.abs()?,
                    };
                    x.to_dtype(to)
                });
            }
        }
    }
}

#[test]
fn choices() {
    for dtype in ALL {
        for condition in [DType::U8, DType::U32, DType::I64] {
            for (one, other) in [(0, 0), (1, 0), (2, 3)] {
                both("where", 0.0, |device| {
                    let c = views(6, 50, 9, DType::U8, device)?[other].to_dtype(condition)?;
                    let c = (c.to_dtype(DType::F32)? * 0.3)?.floor()?.to_dtype(condition)?;
                    c.where_cond(&views(6, 50, 1, dtype, device)?[one], &views(6, 50, 2, dtype, device)?[0])
                });
            }
        }
    }
}

#[test]
fn constants() {
    for dtype in ALL {
        both("zeros", 0.0, |device| Tensor::zeros((3, 41), dtype, device));
        both("ones", 0.0, |device| Tensor::ones((3, 41), dtype, device));
        both("a value", 0.0, |device| Tensor::full(3f64, (5, 5), device)?.to_dtype(dtype));
    }
    both("numbers in turn", 0.0, |device| Tensor::arange(0u32, 1000, device));
}

#[test]
fn random_numbers() {
    let gpu = crate::both::gpu();
    let of =
        |x: Tensor| -> Vec<f64> { x.to_dtype(DType::F64).unwrap().to_device(&Device::Cpu).unwrap().to_vec1().unwrap() };
    let moments = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64)
    };
    for dtype in [DType::F32, DType::F64] {
        let x = of(Tensor::rand(-1f64, 3f64, 20_000, &gpu).unwrap().to_dtype(dtype).unwrap());
        assert!(x.iter().all(|v| (-1.0..=3.0).contains(v)));
        let (mean, variance) = moments(&x);
        assert!((mean - 1.0).abs() < 0.05 && (variance - 16.0 / 12.0).abs() < 0.05, "{mean} {variance}");
        let x = of(Tensor::randn(2f64, 0.5f64, 20_001, &gpu).unwrap().to_dtype(dtype).unwrap());
        let (mean, variance) = moments(&x);
        assert!((mean - 2.0).abs() < 0.02 && (variance - 0.25).abs() < 0.02, "{mean} {variance}");
    }
}
