//! Layers, forward and backward, and steps of training.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops;

use crate::both::{FLOATS, both, close, gpu, numbers, views};

#[test]
fn normalisations() {
    for dtype in FLOATS {
        for (rows, columns) in [(3, 5), (10, 100), (2, 1500)] {
            both("softmax", 16.0, |device| ops::softmax_last_dim(&views(rows, columns, 1, dtype, device)?[0]));
            both("softmax of ops", 16.0, |device| ops::softmax(&views(rows, columns, 1, dtype, device)?[1], 0));
            both("log_softmax", 16.0, |device| {
                ops::log_softmax(&views(rows, columns, 1, dtype, device)?[1], D::Minus1)
            });
            both("sigmoid", 8.0, |device| ops::sigmoid(&views(rows, columns, 1, dtype, device)?[2]));
            // Candle's CPU has these for three types.
            if dtype == DType::F64 {
                continue;
            }
            let line = |seed| move |device: &Device| numbers(columns, seed, dtype)?.to_device(device);
            both("rms_norm", 16.0, |device| {
                ops::rms_norm(&views(rows, columns, 1, dtype, device)?[0], &line(2)(device)?, 1e-5)
            });
            both("layer_norm", 32.0, |device| {
                ops::layer_norm(&views(rows, columns, 1, dtype, device)?[0], &line(2)(device)?, &line(3)(device)?, 1e-5)
            });
        }
    }
}

#[test]
fn convolutions() {
    for dtype in [DType::F32, DType::F64] {
        let image = |device: &Device| numbers(2 * 3 * 12 * 10, 1, dtype)?.to_device(device)?.reshape((2, 3, 12, 10));
        both("conv2d", 64.0, |device| {
            let kernel = (numbers(4 * 3 * 3 * 3, 2, dtype)?.to_device(device)? * 0.25)?.reshape((4, 3, 3, 3))?;
            image(device)?.conv2d(&kernel, 1, 2, 1, 1)
        });
        both("max_pool2d", 0.0, |device| image(device)?.max_pool2d(2));
        both("avg_pool2d", 8.0, |device| image(device)?.avg_pool2d(2));
        both("upsample", 0.0, |device| image(device)?.upsample_nearest2d(24, 20));
    }
}

/// Two layers and a cross-entropy: the loss, and the parameters' gradients.
fn network(device: &Device, dtype: DType, parameters: &[Var]) -> Result<Tensor> {
    let x = numbers(24 * 20, 1, dtype)?.to_device(device)?.reshape((24, 20))?;
    let targets: Vec<u32> = (0..24).map(|i| i * 5 % 7).collect();
    let targets = Tensor::from_vec(targets, 24, device)?;
    let [first, bias, second] = parameters else { unreachable!() };
    let hidden = x.matmul(&first.t()?)?.broadcast_add(bias)?.gelu()?;
    let normal = hidden.broadcast_div(&hidden.sqr()?.sum_keepdim(1)?.sqrt()?.affine(1., 0.01)?)?;
    candle_nn::loss::cross_entropy(&(normal.matmul(&second.t()?)? * 4.0)?, &targets)
}

fn parameters(device: &Device, dtype: DType) -> Result<Vec<Var>> {
    [(16 * 20, vec![16, 20]), (16, vec![16]), (7 * 16, vec![7, 16])]
        .into_iter()
        .enumerate()
        .map(|(i, (count, shape))| {
            let value = (numbers(count, i + 10, dtype)?.to_device(device)? * 0.1)?;
            Var::from_tensor(&value.reshape(shape)?)
        })
        .collect()
}

#[test]
fn a_network_forward_and_backward() {
    for (dtype, units) in [(DType::F32, 64.0), (DType::F64, 64.0)] {
        let run = |device: &Device| -> Result<Vec<Tensor>> {
            let parameters = parameters(device, dtype)?;
            let loss = network(device, dtype, &parameters)?;
            let gradients = loss.backward()?;
            let mut all = vec![loss];
            all.extend(parameters.iter().map(|p| gradients.get(p).expect("a gradient").clone()));
            Ok(all)
        };
        for (a, b) in run(&Device::Cpu).unwrap().iter().zip(&run(&gpu()).unwrap()) {
            close(a, b, units, "a network");
        }
    }
}

#[test]
fn steps_of_training() {
    use candle_nn::Optimizer;
    let run = |device: &Device| -> Result<(Vec<f64>, Vec<Var>)> {
        let parameters = parameters(device, DType::F64)?;
        let mut optimiser = candle_nn::AdamW::new_lr(parameters.clone(), 0.02)?;
        let mut losses = Vec::new();
        for _ in 0..8 {
            let loss = network(device, DType::F64, &parameters)?;
            optimiser.backward_step(&loss)?;
            losses.push(loss.to_scalar::<f64>()?);
        }
        Ok((losses, parameters))
    };
    let ((a, on_cpu), (b, on_gpu)) = (run(&Device::Cpu).unwrap(), run(&gpu()).unwrap());
    assert!(a[7] < 0.9 * a[0], "{a:?}");
    a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-9, "{a} {b}"));
    on_cpu.iter().zip(&on_gpu).for_each(|(a, b)| close(a, b, 1e6, "parameters after training"));
}
