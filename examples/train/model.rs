//! Backbones and heads, and what a companion has beside them, with all that a checkpoint must hold of them.

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_margin_loss::companions::{Bcl, Gml, GmlBatch, Ncl};
use candle_margin_loss::{ClassCounts, CosineClassifier, LossSchedule};
use candle_nn::{Init, Linear, Module, ModuleT, VarBuilder, VarMap};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

use crate::companion::{self, Batch, Projection, Queue};
use crate::data::Shape;
use crate::methods::{CompanionNumbers, Network, Objective};
use crate::resnet::{self, ResNet};
use crate::sgd::NOT_DECAYED;

enum Backbone {
    ResNet(ResNet),
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

/// A companion, and what it has beside a backbone and a head.
pub enum Companion {
    Bcl {
        loss: Bcl,
        /// Of features
        embed: Projection,
        /// Of the head's rows
        centres: Projection,
    },
    Gml(Box<GmlParts>),
    Ncl(Ncl),
}

pub struct GmlParts {
    pub loss: Gml,
    pub queries: Projection,
    /// Of the teacher's features
    pub keys: Projection,
    /// ln t, (1)
    pub log_temperature: Tensor,
    /// Not trained
    pub teacher: Model,
    pub queue: Queue,
}

impl GmlParts {
    pub fn new(
        loss: Gml,
        numbers: &CompanionNumbers,
        counts: &ClassCounts,
        teacher: Model,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let start = Init::Const(numbers.temperature.ln());
        Ok(Self {
            loss,
            queries: Projection::new(numbers.embedding, vb.pp("queries"))?,
            keys: Projection::new(numbers.embedding, vb.pp("keys"))?,
            log_temperature: vb.get_with_hints(1, "log_temperature", start)?,
            teacher,
            queue: Queue::new(counts, numbers.keys, numbers.least_keys, vb.device())?,
        })
    }

    /// What the teacher gives: logits (N, C) of the view that is classified, and features (N, D) of the third, which join the queue.
    pub fn look_up(&mut self, batch: &Batch) -> Result<Tensor> {
        let n = batch.len();
        let features = self.teacher.features(&batch.cat(&[0, 2])?, false)?.detach();
        self.queue.push(&features.narrow(0, n, n)?, &batch.labels, &batch.ids)?;
        self.teacher.logits(&features.narrow(0, 0, n)?)
    }
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

/// A backbone and its head.
struct Expert {
    /// What the names of its variables begin with
    prefix: String,
    backbone: Backbone,
    head: Head,
}

pub struct Model {
    variables: VarMap,
    /// One, or NCL's
    experts: Vec<Expert>,
    companion: Option<Companion>,
}

/// What a batch gave.
pub struct Step {
    pub loss: Tensor,
    /// Of the raw logits; the experts' mean
    pub accuracy: f64,
    pub hard_positive_rate: f64,
}

/// What a model is made for.
pub struct Design<'a> {
    pub network: Network,
    pub shape: Shape,
    pub counts: &'a ClassCounts,
    pub objective: Objective,
    /// Of a companion's objective
    pub companion: Option<CompanionNumbers>,
    pub device: &'a Device,
}

/// What GML learns from: a network and the tensors of a model of it on a cosine head.
#[derive(Clone)]
pub struct Teacher {
    pub network: Network,
    pub tensors: HashMap<String, Tensor>,
}

/// What the names of a checkpoint's tensors begin with that are no variables of the model.
const TEACHER: &str = "teacher.";
const QUEUE: &str = "queue.";

impl Model {
    /// Weights from `seed`: normal with variance 2 / fan-in (He et al. 2015), biases 0, norms 1 and 0.
    pub fn new(design: &Design, seed: u64, teacher: Option<&Teacher>) -> Result<Self> {
        Self::filled(design, teacher, |variables| initialise(variables, &mut StdRng::seed_from_u64(seed)))
    }

    /// From the tensors that `tensors` gave.
    pub fn restored(design: &Design, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let part = |prefix: &str| -> HashMap<String, Tensor> {
            let named = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
            named.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
        };
        let network = design.companion.map(|numbers| numbers.teacher_network);
        let teacher = network.map(|network| Teacher { network, tensors: part(TEACHER) });
        let mut model = Self::filled(design, teacher.as_ref(), |variables| {
            for (name, variable) in variables.data().lock().expect("no thread panicked with the lock").iter() {
                let Some(tensor) = tensors.get(name) else { candle_core::bail!("the checkpoint has no {name}") };
                variable.set(tensor)?;
            }
            Ok(())
        })?;
        if let Some(Companion::Gml(parts)) = &mut model.companion {
            parts.queue.restore(&part(QUEUE))?;
        }
        Ok(model)
    }

    /// A norm copies its running means out of the map when it is made: so all is made once for its variables, and again when `fill` has set them.
    fn filled(design: &Design, teacher: Option<&Teacher>, fill: impl FnOnce(&VarMap) -> Result<()>) -> Result<Self> {
        let variables = VarMap::new();
        build(&variables, design, teacher)?;
        fill(&variables)?;
        let (experts, companion) = build(&variables, design, teacher)?;
        Ok(Self { variables, experts, companion })
    }

    /// What is trained, by name.
    pub fn trained(&self) -> BTreeMap<String, Var> {
        let all = self.variables.data().lock().expect("no thread panicked with the lock");
        let trained = all.iter().filter(|(name, _)| !name.contains("running_"));
        trained.map(|(name, variable)| (name.clone(), variable.clone())).collect()
    }

    /// All that there is to keep, by name: a teacher and a queue, too.
    pub fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        let mut all: HashMap<String, Tensor> =
            self.trained().into_iter().map(|(name, variable)| (name, variable.as_detached_tensor())).collect();
        for Expert { prefix, backbone, .. } in &self.experts {
            if let Backbone::ResNet(network) = backbone {
                for (name, norm) in network.norms() {
                    all.insert(format!("{prefix}backbone.{name}.running_mean"), norm.running_mean().detach());
                    all.insert(format!("{prefix}backbone.{name}.running_var"), norm.running_var().detach());
                }
            }
        }
        if let Some(Companion::Gml(parts)) = &self.companion {
            let named = |prefix: &str, tensors: HashMap<String, Tensor>| -> Vec<(String, Tensor)> {
                tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
            };
            all.extend(named(TEACHER, parts.teacher.tensors()?));
            all.extend(named(QUEUE, parts.queue.tensors()?));
        }
        Ok(all)
    }

    /// Features (N, D) of images (N, channels, H, W); of several experts the first one's.
    pub fn features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.experts[0].backbone.features(images, train)
    }

    /// Logits (N, C) of the first expert's features, for evaluation: no margin, no prior.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        self.experts[0].head.logits(features)
    }

    /// Classes (N) that images are taken for, by the mean of the experts' logits.
    pub fn predict(&self, images: &Tensor) -> Result<Tensor> {
        let logits = self.experts.iter().map(|e| e.head.logits(&e.backbone.features(images, false)?));
        companion::mean(&logits.collect::<Result<Vec<_>>>()?)?.argmax(D::Minus1)
    }

    /// The loss of an epoch.
    pub fn start(&mut self, epoch: usize) -> Result<()> {
        for expert in &mut self.experts {
            if let Head::Cosine { classifier, schedule } = &mut expert.head {
                classifier.set_loss(schedule.at(epoch).clone())?;
            }
        }
        Ok(())
    }

    /// GML's queue moves on with every step.
    pub fn step(&mut self, batch: &Batch, epoch: usize) -> Result<Step> {
        let (n, labels, expert) = (batch.labels.len(), batch.labels()?, &self.experts[0]);
        let of = |features: &Tensor, from: usize, count: usize| features.narrow(0, from * n, count * n)?.contiguous();
        let (loss, outputs) = match &mut self.companion {
            None => return self.loss(&self.features(&batch.views[0], true)?, &labels, epoch),
            Some(Companion::Bcl { loss, embed, centres }) => {
                let features = expert.backbone.features(&batch.cat(&[0, 1, 2])?, true)?;
                let weight = expert.head.cosine()?.weight();
                let (x, views) = (of(&features, 0, 1)?, of(&features, 1, 2)?);
                let output = loss.output(&x, weight, &embed.forward(&views)?, &centres.forward(weight)?, &labels)?;
                (output.loss, vec![output.classification])
            }
            Some(Companion::Gml(parts)) => {
                let teacher = parts.look_up(batch)?;
                let features = expert.backbone.features(&batch.cat(&[0, 1])?, true)?;
                let weight = expert.head.cosine()?.weight();
                let (x, queries) = (of(&features, 0, 1)?, parts.queries.forward(&of(&features, 1, 1)?)?);
                let keys = parts.keys.forward(&parts.queue.features)?;
                let [key_labels, key_ids] = parts.queue.marks()?;
                let ids: Vec<i64> = batch.ids.iter().map(|&id| id as i64).collect();
                let ids = Tensor::new(ids, labels.device())?;
                let of_batch = GmlBatch::new(&x, weight, &labels, &queries, &keys, &key_labels)
                    .learned_temperature(&parts.log_temperature, &ids, &key_ids)
                    .teacher(&teacher);
                let output = parts.loss.output(&of_batch)?;
                (output.loss, vec![output.classification])
            }
            Some(Companion::Ncl(loss)) => {
                let features = self.experts.iter().map(|e| e.backbone.features(&batch.views[0], true));
                let features = features.collect::<Result<Vec<_>>>()?;
                let weights = self.experts.iter().map(|e| Ok(e.head.cosine()?.weight()));
                let experts = features.iter().zip(weights.collect::<Result<Vec<_>>>()?).collect::<Vec<_>>();
                let output = loss.output(&experts, &labels)?;
                (output.loss, output.individual)
            }
        };
        let (accuracy, hard_positive_rate) = companion::rates(&outputs)?;
        Ok(Step { loss, accuracy, hard_positive_rate })
    }

    /// The classification of the first expert's features (N, D), without a companion's terms.
    pub fn loss(&self, features: &Tensor, labels: &Tensor, epoch: usize) -> Result<Step> {
        self.experts[0].head.loss(features, labels, epoch)
    }
}

impl Backbone {
    fn features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::ResNet(network) => network.forward_t(images, train),
            Self::Conv { first, second, hidden, features } => {
                let maps = first.forward(images)?.relu()?.max_pool2d(2)?;
                let maps = second.forward(&maps)?.relu()?.max_pool2d(2)?;
                features.forward(&hidden.forward(&maps.flatten_from(1)?)?.relu()?)
            }
            Self::Patches { first, second, features } => {
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
}

impl Head {
    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear { layer, .. } => layer.forward(features),
            Self::Cosine { classifier, .. } => classifier.forward(features),
        }
    }

    fn cosine(&self) -> Result<&CosineClassifier> {
        match self {
            Self::Cosine { classifier, .. } => Ok(classifier),
            Self::Linear { .. } => candle_core::bail!("a companion's head is a cosine classifier"),
        }
    }

    fn loss(&self, features: &Tensor, labels: &Tensor, epoch: usize) -> Result<Step> {
        match self {
            Self::Linear { layer, prior, weights } => {
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
            Self::Cosine { classifier, .. } => {
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

fn build(variables: &VarMap, design: &Design, teacher: Option<&Teacher>) -> Result<(Vec<Expert>, Option<Companion>)> {
    let vb = VarBuilder::from_varmap(variables, DType::F32, design.device);
    let needed = || match design.companion {
        Some(numbers) => Ok(numbers),
        None => candle_core::bail!("a companion's objective needs its numbers"),
    };
    let experts = match &design.objective {
        Objective::Ncl(_) => {
            let prefixes = (0..needed()?.experts).map(|i| format!("expert{i}."));
            prefixes.map(|prefix| expert(&vb, prefix, design)).collect::<Result<Vec<_>>>()?
        }
        _ => vec![expert(&vb, String::new(), design)?],
    };
    let companion = match &design.objective {
        Objective::Linear { .. } | Objective::Cosine(_) => None,
        Objective::Bcl(loss) => Some(Companion::Bcl {
            loss: loss.clone(),
            embed: Projection::new(needed()?.embedding, vb.pp("embed"))?,
            centres: Projection::new(needed()?.embedding, vb.pp("centres"))?,
        }),
        Objective::Gml(loss) => {
            let Some(teacher) = teacher else { candle_core::bail!("GML needs a teacher") };
            let schedule = LossSchedule::constant(loss.margin_loss().clone());
            let of_teacher =
                Design { network: teacher.network, objective: Objective::Cosine(schedule), companion: None, ..*design };
            let model = Model::restored(&of_teacher, &teacher.tensors)?;
            let parts = GmlParts::new(loss.clone(), &needed()?, design.counts, model, &vb)?;
            Some(Companion::Gml(Box::new(parts)))
        }
        Objective::Ncl(loss) => Some(Companion::Ncl(loss.clone())),
    };
    Ok((experts, companion))
}

fn expert(vb: &VarBuilder, prefix: String, design: &Design) -> Result<Expert> {
    let vb = match prefix.strip_suffix('.') {
        Some(name) => vb.pp(name),
        None => vb.clone(),
    };
    let (backbone, head) = (backbone(vb.pp("backbone"), design)?, head(vb.pp("head"), design)?);
    Ok(Expert { prefix, backbone, head })
}

fn backbone(vb: VarBuilder, design: &Design) -> Result<Backbone> {
    let &Design { network, shape, .. } = design;
    Ok(match network {
        Network::Resnet32 => Backbone::ResNet(ResNet::new(5, shape.channels, vb)?),
        Network::Resnet56 => Backbone::ResNet(ResNet::new(9, shape.channels, vb)?),
        Network::Conv => {
            let same = candle_nn::Conv2dConfig { padding: 1, ..Default::default() };
            Backbone::Conv {
                first: candle_nn::conv2d(shape.channels, 32, 3, same, vb.pp("conv1"))?,
                second: candle_nn::conv2d(32, 64, 3, same, vb.pp("conv2"))?,
                hidden: candle_nn::linear(64 * (shape.height / 4) * (shape.width / 4), 256, vb.pp("hidden"))?,
                features: candle_nn::linear(256, resnet::FEATURES, vb.pp("features"))?,
            }
        }
        Network::Patches => {
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
    })
}

fn head(vb: VarBuilder, design: &Design) -> Result<Head> {
    let tensor = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        Tensor::new(values, design.device)
    };
    let schedule = match &design.objective {
        Objective::Linear { prior, weights } => {
            return Ok(Head::Linear {
                layer: candle_nn::linear(resnet::FEATURES, design.counts.classes(), vb)?,
                prior: prior.as_deref().map(tensor).transpose()?,
                weights: weights.as_ref().map(|(from, weights)| tensor(weights).map(|t| (*from, t))).transpose()?,
            });
        }
        Objective::Cosine(schedule) => schedule.clone(),
        Objective::Bcl(loss) => LossSchedule::constant(loss.margin_loss().clone()),
        Objective::Gml(loss) => LossSchedule::constant(loss.margin_loss().clone()),
        Objective::Ncl(loss) => LossSchedule::constant(loss.margin_loss().clone()),
    };
    let classifier = Box::new(CosineClassifier::new(resnet::FEATURES, schedule.at(0).clone(), vb)?);
    Ok(Head::Cosine { classifier, schedule })
}

/// In the order of their names: Candle's own initialisation on the CPU cannot be seeded. Norms and temperatures are left as they are.
fn initialise(variables: &VarMap, rng: &mut StdRng) -> Result<()> {
    let data = variables.data().lock().expect("no thread panicked with the lock");
    let drawn = |name: &&String| !name.contains("norm.") && !name.ends_with(NOT_DECAYED);
    let mut names: Vec<&String> = data.keys().filter(drawn).collect();
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
