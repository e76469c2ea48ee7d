//! A backbone and a head, with all that a checkpoint must hold of them.

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_margin_loss::{CosineClassifier, LossSchedule};
use candle_nn::{Linear, Module, ModuleT, VarBuilder, VarMap};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::data::Shape;
use crate::methods::Objective;
use crate::resnet::{self, ResNet32};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The paper's, for 32 × 32 images
    Resnet32,
    /// Two 3 × 3 convolutions of 32 and 64 channels, each with ReLU and 2 × 2 max pooling, and a hidden layer of 256
    Conv,
    /// A 4 × 4 convolution of stride 4 and a 3 × 3 one, 32 channels each, with ReLU: cheap enough to train a hundred of on two cores
    Patches,
}

enum Backbone {
    ResNet(ResNet32),
    Conv {
        first: candle_nn::Conv2d,
        second: candle_nn::Conv2d,
        hidden: Linear,
        features: Linear,
    },
    /// Convolutions as products of the pixels under the kernel
    Patches {
        first: Linear,
        second: Linear,
        features: Linear,
    },
}

enum Head {
    /// W x + b; what is added to the logits (C); weights (C) from an epoch on
    Linear {
        layer: Linear,
        prior: Option<Tensor>,
        weights: Option<(usize, Tensor)>,
    },
    Cosine {
        classifier: Box<CosineClassifier>,
        schedule: LossSchedule,
    },
}

pub struct Model {
    variables: VarMap,
    backbone: Backbone,
    head: Head,
}

/// What a batch gave.
pub struct Step {
    pub loss: Tensor,
    /// Of the raw logits
    pub accuracy: f64,
    pub hard_positive_rate: f64,
}

/// What a model is made for.
pub struct Design<'a> {
    pub network: Network,
    pub shape: Shape,
    pub classes: usize,
    pub objective: Objective,
    pub device: &'a Device,
}

impl Model {
    /// Weights from `seed`: normal with variance 2 / fan-in (He et al. 2015), biases 0, norms 1 and 0.
    pub fn new(design: &Design, seed: u64) -> Result<Self> {
        Self::filled(design, |variables| initialise(variables, &mut StdRng::seed_from_u64(seed)))
    }

    /// From the tensors that `tensors` gave.
    pub fn restored(design: &Design, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        Self::filled(design, |variables| {
            for (name, variable) in variables.data().lock().expect("no thread panicked with the lock").iter() {
                let Some(tensor) = tensors.get(name) else { candle_core::bail!("the checkpoint has no {name}") };
                variable.set(tensor)?;
            }
            Ok(())
        })
    }

    /// A norm copies its running means out of the map when it is made: so all is made once for its variables, and again when `fill` has set them.
    fn filled(design: &Design, fill: impl FnOnce(&VarMap) -> Result<()>) -> Result<Self> {
        let variables = VarMap::new();
        build(&variables, design)?;
        fill(&variables)?;
        let (backbone, head) = build(&variables, design)?;
        Ok(Self { variables, backbone, head })
    }

    /// What is trained, by name.
    pub fn trained(&self) -> BTreeMap<String, Var> {
        let all = self.variables.data().lock().expect("no thread panicked with the lock");
        let trained = all.iter().filter(|(name, _)| !name.contains("running_"));
        trained.map(|(name, variable)| (name.clone(), variable.clone())).collect()
    }

    /// All that there is to keep, by name.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        let mut all: HashMap<String, Tensor> =
            self.trained().into_iter().map(|(name, variable)| (name, variable.as_detached_tensor())).collect();
        if let Backbone::ResNet(network) = &self.backbone {
            for (name, norm) in network.norms() {
                all.insert(format!("backbone.{name}.running_mean"), norm.running_mean().detach());
                all.insert(format!("backbone.{name}.running_var"), norm.running_var().detach());
            }
        }
        all
    }

    /// Features (N, D) of images (N, channels, H, W).
    pub fn features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        match &self.backbone {
            Backbone::ResNet(network) => network.forward_t(images, train),
            Backbone::Conv { first, second, hidden, features } => {
                let maps = first.forward(images)?.relu()?.max_pool2d(2)?;
                let maps = second.forward(&maps)?.relu()?.max_pool2d(2)?;
                features.forward(&hidden.forward(&maps.flatten_from(1)?)?.relu()?)
            }
            Backbone::Patches { first, second, features } => {
                let (n, channels, height, width) = images.dims4()?;
                let (h, w) = (height / PATCH, width / PATCH);
                let patches = images.reshape(&[n, channels, h, PATCH, w, PATCH][..])?.permute([0, 2, 4, 1, 3, 5])?;
                let patches = patches.contiguous()?.reshape((n * h * w, channels * PATCH * PATCH))?;
                let maps = first.forward(&patches)?.relu()?.reshape((n, h, w, PATCH_CHANNELS))?;
                let maps = maps.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?;
                let under =
                    (0..9).map(|i| maps.narrow(1, i / 3, h)?.narrow(2, i % 3, w)).collect::<Result<Vec<_>>>()?;
                let under = Tensor::cat(&under, 3)?.reshape((n * h * w, 9 * PATCH_CHANNELS))?;
                features.forward(&second.forward(&under)?.relu()?.reshape((n, h * w * PATCH_CHANNELS))?)
            }
        }
    }

    /// Logits (N, C) for evaluation: no margin, no prior.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        match &self.head {
            Head::Linear { layer, .. } => layer.forward(features),
            Head::Cosine { classifier, .. } => classifier.forward(features),
        }
    }

    /// The loss of an epoch.
    pub fn start(&mut self, epoch: usize) -> Result<()> {
        if let Head::Cosine { classifier, schedule } = &mut self.head {
            classifier.set_loss(schedule.at(epoch).clone())?;
        }
        Ok(())
    }

    pub fn step(&self, images: &Tensor, labels: &Tensor, epoch: usize) -> Result<Step> {
        self.loss(&self.features(images, true)?, labels, epoch)
    }

    /// Of features (N, D).
    pub fn loss(&self, features: &Tensor, labels: &Tensor, epoch: usize) -> Result<Step> {
        match &self.head {
            Head::Linear { layer, prior, weights } => {
                let logits = layer.forward(features)?;
                let right = logits.detach().argmax(D::Minus1)?.eq(labels)?.to_dtype(DType::F64)?;
                let accuracy = right.mean_all()?.to_scalar::<f64>()?;
                let adjusted = match prior {
                    Some(prior) => logits.broadcast_add(prior)?,
                    None => logits,
                };
                let losses = candle_nn::ops::log_softmax(&adjusted, D::Minus1)?;
                let losses = losses.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?.neg()?;
                let loss = match weights {
                    Some((from, weights)) if epoch >= *from => {
                        let weights = weights.index_select(labels, 0)?;
                        ((losses * &weights)?.sum_all()? / weights.sum_all()?)?
                    }
                    _ => losses.mean_all()?,
                };
                Ok(Step { loss, accuracy, hard_positive_rate: 1.0 - accuracy })
            }
            Head::Cosine { classifier, .. } => {
                let output = classifier.output(features, labels, None)?;
                let (accuracy, hard_positive_rate) = (output.accuracy()?, output.hard_positive_rate()?);
                Ok(Step { loss: output.loss, accuracy, hard_positive_rate })
            }
        }
    }
}

/// Side of a patch, and channels of its features.
const PATCH: usize = 4;
const PATCH_CHANNELS: usize = 32;

fn build(variables: &VarMap, design: &Design) -> Result<(Backbone, Head)> {
    let &Design { network, shape, classes, ref objective, device } = design;
    let vb = VarBuilder::from_varmap(variables, DType::F32, device);
    let backbone = match network {
        Network::Resnet32 => Backbone::ResNet(ResNet32::new(shape.channels, vb.pp("backbone"))?),
        Network::Conv => {
            let vb = vb.pp("backbone");
            let same = candle_nn::Conv2dConfig { padding: 1, ..Default::default() };
            Backbone::Conv {
                first: candle_nn::conv2d(shape.channels, 32, 3, same, vb.pp("conv1"))?,
                second: candle_nn::conv2d(32, 64, 3, same, vb.pp("conv2"))?,
                hidden: candle_nn::linear(64 * (shape.height / 4) * (shape.width / 4), 256, vb.pp("hidden"))?,
                features: candle_nn::linear(256, resnet::FEATURES, vb.pp("features"))?,
            }
        }
        Network::Patches => {
            let vb = vb.pp("backbone");
            let (channels, positions) = (PATCH_CHANNELS, (shape.height / PATCH) * (shape.width / PATCH));
            if shape.height % PATCH != 0 || shape.width % PATCH != 0 {
                candle_core::bail!(
                    "images of {} x {} are no whole number of patches of {PATCH}",
                    shape.height,
                    shape.width
                )
            }
            Backbone::Patches {
                first: candle_nn::linear(shape.channels * PATCH * PATCH, channels, vb.pp("first"))?,
                second: candle_nn::linear(9 * channels, channels, vb.pp("second"))?,
                features: candle_nn::linear(positions * channels, resnet::FEATURES, vb.pp("features"))?,
            }
        }
    };
    let vb = vb.pp("head");
    let tensor = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        Tensor::new(values, device)
    };
    let head = match objective {
        Objective::Linear { prior, weights } => Head::Linear {
            layer: candle_nn::linear(resnet::FEATURES, classes, vb)?,
            prior: prior.as_deref().map(tensor).transpose()?,
            weights: weights.as_ref().map(|(from, weights)| tensor(weights).map(|t| (*from, t))).transpose()?,
        },
        Objective::Cosine(schedule) => Head::Cosine {
            classifier: Box::new(CosineClassifier::new(resnet::FEATURES, schedule.at(0).clone(), vb)?),
            schedule: schedule.clone(),
        },
    };
    Ok((backbone, head))
}

/// In the order of their names: Candle's own initialisation on the CPU cannot be seeded. Norms are left as they are.
fn initialise(variables: &VarMap, rng: &mut StdRng) -> Result<()> {
    let data = variables.data().lock().expect("no thread panicked with the lock");
    let mut names: Vec<&String> = data.keys().filter(|name| !name.contains("norm.")).collect();
    names.sort();
    for name in names {
        let variable = &data[name];
        let fan_in: usize = variable.dims()[1..].iter().product();
        let deviation = if name.ends_with("bias") { 0.0 } else { (2.0 / fan_in as f64).sqrt() as f32 };
        let values =
            (0..variable.elem_count()).map(|_| deviation * rng.sample::<f32, _>(StandardNormal)).collect::<Vec<_>>();
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu)?.to_device(variable.device())?)?;
    }
    Ok(())
}
