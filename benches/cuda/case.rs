//! What is timed: a problem on the device, the ways to make a step of it, and times by CUDA events.

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::{ClassCounts, InstanceGate, Margin, MarginLoss, Prior, reference};
use cudarc::driver::sys::{CUdevice_attribute, CUevent_flags};

use crate::common::{distance, size};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// (N, C, D)
pub type Size = (usize, usize, usize);

pub const SIZES: [Size; 5] =
    [(64, 100, 64), (128, 1000, 512), (256, 1000, 2048), (256, 8142, 2048), (1024, 10000, 512)];

/// A way to make a step, or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Step,
    Tape,
    Streaming,
    Forward,
    Composed,
    ComposedForward,
    Products,
}

impl Way {
    pub const ALL: [Way; 7] =
        [Way::Step, Way::Tape, Way::Streaming, Way::Composed, Way::Products, Way::Forward, Way::ComposedForward];

    pub const fn name(self) -> &'static str {
        match self {
            Way::Step => "loss_and_grads_into",
            Way::Tape => "forward + backward",
            Way::Streaming => "loss_and_grads_into, streaming",
            Way::Composed => "composed, forward + backward",
            Way::Products => "three products (cuBLAS)",
            Way::Forward => "forward",
            Way::ComposedForward => "composed, forward",
        }
    }

    /// How many of the three products are in it.
    pub fn products(self) -> usize {
        if matches!(self, Way::Forward | Way::ComposedForward) { 1 } else { 3 }
    }
}

pub struct Case {
    pub dtype: DType,
    pub size: Size,
    loss: MarginLoss,
    streaming: MarginLoss,
    pub x: Var,
    pub w: Var,
    pub y: Tensor,
    g: Tensor,
    pub dx: Tensor,
    pub dw: Tensor,
}

impl Case {
    pub fn new((n, c, d): Size, dtype: DType, gpu: &Device) -> Result<Self> {
        let counts: Vec<u64> = (0..c).map(|j| (1 + 500 * (c - j) / c) as u64).collect();
        let loss = |streaming| {
            MarginLoss::builder(c)
                .counts(&ClassCounts::new(&counts[..])?)
                .margin(Margin::Dbm { k: 0.2, tau: 1.0 })
                .instance_gate(InstanceGate::HardPositives)
                .prior(Prior::BalancedSoftmax { tau: 1.0 })
                .check_labels(false)
                .streaming(streaming)
                .build()
        };
        let new = |rows, columns| Tensor::randn(0f32, 1., (rows, columns), gpu)?.to_dtype(dtype);
        let (x, w, g) = (Var::from_tensor(&new(n, d)?)?, Var::from_tensor(&new(c, d)?)?, new(n, c)?);
        let y = Tensor::from_vec((0..n).map(|i| (i * 7919 % c) as u32).collect::<Vec<_>>(), n, gpu)?;
        let (dx, dw) = (x.zeros_like()?, w.zeros_like()?);
        Ok(Self { dtype, size: (n, c, d), loss: loss(false)?, streaming: loss(true)?, x, w, y, g, dx, dw })
    }

    pub fn name(&self) -> String {
        let (n, c, d) = self.size;
        format!("{n}x{c}x{d}")
    }

    pub fn compulsory_bytes(&self) -> f64 {
        let (n, c, d) = self.size;
        (2 * (n + c) * d * self.dtype.size_in_bytes()) as f64
    }

    pub fn flop(&self, way: Way) -> f64 {
        let (n, c, d) = self.size;
        (2 * way.products() * n * c * d) as f64
    }

    /// Puts one step on the device's stream; the gradients, for the ways that give some.
    pub fn run(&self, way: Way) -> candle_core::Result<Option<(Tensor, Tensor, Tensor)>> {
        let Self { x, w, y, dx, dw, .. } = self;
        let (fixed_x, fixed_w) = (x.as_detached_tensor(), w.as_detached_tensor());
        let on_tape = |loss: Tensor| {
            let gradients = loss.backward()?;
            let of = |v: &Var| gradients.get(v).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"));
            Ok(Some((loss, of(x)?, of(w)?)))
        };
        match way {
            Way::Step | Way::Streaming => {
                let loss = if way == Way::Step { &self.loss } else { &self.streaming };
                let out = loss.loss_and_grads_into(&fixed_x, &fixed_w, y, None, dx, dw)?;
                Ok(Some((out.loss, dx.clone(), dw.clone())))
            }
            Way::Tape => on_tape(self.loss.forward(x, w, y)?),
            Way::Composed => on_tape(reference::forward(&self.loss, x, w, y, None)?.loss),
            Way::Forward => self.loss.forward(&fixed_x, &fixed_w, y).map(|_| None),
            Way::ComposedForward => reference::forward(&self.loss, &fixed_x, &fixed_w, y, None).map(|_| None),
            Way::Products => {
                fixed_x.matmul(&fixed_w.t()?)?;
                self.g.matmul(&fixed_w)?;
                self.g.t()?.matmul(&fixed_x)?;
                Ok(None)
            }
        }
    }

    /// Every way against the CPU path on the same inputs; the composed loss, whose halves round at every op, is only printed.
    pub fn check(&self) -> Result<()> {
        let cpu = Device::Cpu;
        let flat = |t: &Tensor| t.to_device(&cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let (x, w, y) = (self.x.to_device(&cpu)?, self.w.to_device(&cpu)?, self.y.to_device(&cpu)?);
        let (out, dx, dw) = self.loss.loss_and_grads(&x, &w, &y, None)?;
        let expected = [flat(&out.loss)?, flat(&dx)?, flat(&dw)?];
        for way in Way::ALL {
            let Some((loss, dx, dw)) = self.run(way)? else { continue };
            for ((part, found), expected) in [("loss", loss), ("dX", dx), ("dW", dw)].iter().zip(&expected) {
                // Infinite where one of them is no number.
                let error = distance(&flat(found)?, expected) / size(expected);
                let tolerance = match (self.dtype, *part) {
                    (DType::F32, _) | (_, "loss") => 1e-4,
                    (DType::F16, _) => 4e-3,
                    _ => 3e-2,
                };
                if way == Way::Composed {
                    println!("{} {} {}: {part} is off by {error:.1e}", self.name(), self.dtype.as_str(), way.name());
                } else if error.is_nan() || error > tolerance {
                    return Err(format!(
                        "{} {:?}, {}: {part} is off by {error:e}",
                        self.name(),
                        self.dtype,
                        way.name()
                    )
                    .into());
                }
            }
        }
        Ok(())
    }

    /// Milliseconds a call, over `count` calls, by the device's own events.
    pub fn time(&self, way: Way, count: u64) -> Result<f64> {
        milliseconds(self.x.device(), count, || self.run(way).map(drop))
    }
}

pub fn milliseconds(gpu: &Device, count: u64, mut work: impl FnMut() -> candle_core::Result<()>) -> Result<f64> {
    let stream = gpu.as_cuda_device()?.cuda_stream();
    let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    stream.synchronize()?;
    let start = event()?;
    for _ in 0..count {
        work()?;
    }
    let end = event()?;
    end.synchronize()?;
    Ok(f64::from(start.elapsed_ms(&end)?) / count as f64)
}

/// GB/s of the device's memory by its clock and bus, both edges counted.
pub fn peak_bandwidth(gpu: &Device) -> Result<f64> {
    let stream = gpu.as_cuda_device()?.cuda_stream();
    let of = |which| stream.context().attribute(which).map(f64::from);
    let khz = of(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let bits = of(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    Ok(2.0 * khz * 1e3 * bits / 8.0 / 1e9)
}

/// TFLOP/s of cuBLAS on a square product of `size`, of random numbers: of zeros and ones it is faster.
pub fn peak_products(gpu: &Device, dtype: DType, size: usize) -> Result<f64> {
    let a = Tensor::randn(0f32, 1., (size, size), gpu)?.to_dtype(dtype)?;
    a.matmul(&a)?;
    let ms = milliseconds(gpu, 5, || a.matmul(&a).map(drop))?;
    Ok(2.0 * (size as f64).powi(3) / ms / 1e9)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
