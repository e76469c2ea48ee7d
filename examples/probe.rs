//! Probe.
use candle_core::{Tensor, Device, DType};
use candle_margin_loss::MarginLoss;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let a: Vec<usize> = std::env::args().skip(1).take(3).map(|v| v.parse().unwrap()).collect();
    let reps: usize = std::env::args().nth(4).unwrap().parse()?;
    let dt = match std::env::args().nth(5).unwrap().as_str() { "f64" => DType::F64, "bf16" => DType::BF16, "f16" => DType::F16, _ => DType::F32 };
    let dev = Device::new_cuda(0)?;
    let x = Tensor::randn(0f32, 1., (a[0], a[2]), &Device::Cpu)?.to_dtype(dt)?.to_device(&dev)?;
    let w = Tensor::randn(0f32, 1., (a[1], a[2]), &Device::Cpu)?.to_dtype(dt)?.to_device(&dev)?;
    let y = Tensor::zeros(a[0], DType::U32, &dev)?;
    let loss = MarginLoss::cosine_ce(a[1], 30.0)?;
    loss.loss_and_grads(&x, &w, &y, None)?;
    let t = std::time::Instant::now();
    for _ in 0..reps { loss.loss_and_grads(&x, &w, &y, None)?; }
    println!("{:?} a step", t.elapsed() / reps as u32);
    Ok(())
}
