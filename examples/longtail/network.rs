//! The networks: a small perceptron or a small convolutional network, and a linear or cosine head.

use candle_core::{DType, Device, Result, Tensor};
use candle_margin_loss::{CosineClassifier, LossSchedule};
use candle_nn::{Conv2d, Conv2dConfig, Linear, Module, VarBuilder, VarMap};
use rand::Rng;
use rand::rngs::StdRng;
use rand_distr::StandardNormal;

use crate::data::Shape;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// pixels → hidden, ReLU → features
    Mlp,
    /// two 3×3 convolutions of 32 and 64 channels, each with ReLU and 2×2 max pooling, → hidden, ReLU → features
    Conv,
}

pub enum Backbone {
    Mlp { hidden: Linear, features: Linear },
    Conv { shape: Shape, first: Conv2d, second: Conv2d, hidden: Linear, features: Linear },
}

impl Backbone {
    pub fn new(network: Network, shape: Shape, hidden: usize, features: usize, vb: VarBuilder) -> Result<Self> {
        let last = |inputs: usize| -> Result<(Linear, Linear)> {
            Ok((
                candle_nn::linear(inputs, hidden, vb.pp("hidden"))?,
                candle_nn::linear(hidden, features, vb.pp("features"))?,
            ))
        };
        Ok(match network {
            Network::Mlp => {
                let (hidden, features) = last(shape.pixels())?;
                Self::Mlp { hidden, features }
            }
            Network::Conv => {
                let same = Conv2dConfig { padding: 1, ..Default::default() };
                let first = candle_nn::conv2d(shape.channels, 32, 3, same, vb.pp("conv1"))?;
                let second = candle_nn::conv2d(32, 64, 3, same, vb.pp("conv2"))?;
                let (hidden, features) = last(64 * (shape.height / 4) * (shape.width / 4))?;
                Self::Conv { shape, first, second, hidden, features }
            }
        })
    }
}

impl Module for Backbone {
    /// Features (N, D) of images (N, channels · height · width).
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mlp { hidden, features } => features.forward(&hidden.forward(images)?.relu()?),
            Self::Conv { shape, first, second, hidden, features } => {
                let images = images.reshape(((), shape.channels, shape.height, shape.width))?;
                let maps = first.forward(&images)?.relu()?.max_pool2d(2)?;
                let maps = second.forward(&maps)?.relu()?.max_pool2d(2)?;
                features.forward(&hidden.forward(&maps.flatten_from(1)?)?.relu()?)
            }
        }
    }
}

pub enum Head {
    /// W x + b with candle_nn's cross-entropy.
    Linear(Linear),
    /// s·cos with a margin loss.
    Cosine(CosineClassifier),
}

/// What a batch gave.
pub struct Step {
    pub loss: Tensor,
    pub accuracy: f64,
    pub hard_positive_rate: f64,
}

impl Head {
    pub fn new(features: usize, classes: usize, schedule: Option<&LossSchedule>, vb: VarBuilder) -> Result<Self> {
        Ok(match schedule {
            None => Self::Linear(candle_nn::linear(features, classes, vb)?),
            Some(schedule) => Self::Cosine(CosineClassifier::new(features, schedule.at(0).clone(), vb)?),
        })
    }

    /// Loss, accuracy and hard-positive rate of features (N, D) and labels (N): for the cosine head all from one pass.
    pub fn step(&self, features: &Tensor, labels: &Tensor) -> Result<Step> {
        match self {
            Self::Linear(head) => {
                let logits = head.forward(features)?;
                let loss = candle_nn::loss::cross_entropy(&logits, labels)?;
                let right =
                    logits.detach().argmax(1)?.eq(labels)?.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?;
                Ok(Step { loss, accuracy: right, hard_positive_rate: 1.0 - right })
            }
            Self::Cosine(head) => {
                let output = head.output(features, labels, None)?;
                Ok(Step {
                    accuracy: output.accuracy()?,
                    hard_positive_rate: output.hard_positive_rate()?,
                    loss: output.loss,
                })
            }
        }
    }

    /// Logits (N, C) for evaluation.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear(head) => head.forward(features),
            Self::Cosine(head) => head.forward(features),
        }
    }

    /// The class centres (C, D).
    pub fn centres(&self) -> &Tensor {
        match self {
            Self::Linear(head) => head.weight(),
            Self::Cosine(head) => head.weight(),
        }
    }
}

/// Draws every variable anew (weights normal with variance 2/fan-in, the head's 1/fan-in, biases 0), in the order of their names:
/// Candle's own initialisation on the CPU cannot be seeded.
pub fn initialise(variables: &VarMap, rng: &mut StdRng) -> Result<()> {
    let data = variables.data().lock().expect("no thread panicked with the lock");
    let mut names: Vec<&String> = data.keys().collect();
    names.sort();
    for name in names {
        let variable = &data[name];
        let fan_in: usize = variable.dims()[1..].iter().product();
        let gain = if name.starts_with("head") { 1.0 } else { 2.0 };
        let deviation = if name.ends_with("bias") { 0.0 } else { (gain / fan_in as f64).sqrt() as f32 };
        let values =
            (0..variable.elem_count()).map(|_| deviation * rng.sample::<f32, _>(StandardNormal)).collect::<Vec<_>>();
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu)?.to_device(variable.device())?)?;
    }
    Ok(())
}
