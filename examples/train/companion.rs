//! What BCL, GML and NCL need beside a backbone and a head: batches of several views, projections, a queue of features.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_margin_loss::ClassCounts;
use candle_nn::{Init, Linear, Module, VarBuilder};

use crate::resnet::FEATURES;

/// (N, 64) → (N, E): a hidden layer as wide as the features, normalised over the rows, ReLU, and a linear one. It is used in training alone, so that there
/// are no running means to keep.
pub struct Projection {
    hidden: Linear,
    /// (64)
    scale: Tensor,
    shift: Tensor,
    out: Linear,
}

impl Projection {
    pub fn new(dim: usize, vb: VarBuilder) -> Result<Self> {
        let norm = vb.pp("norm");
        Ok(Self {
            hidden: candle_nn::linear(FEATURES, FEATURES, vb.pp("hidden"))?,
            scale: norm.get_with_hints(FEATURES, "weight", Init::Const(1.0))?,
            shift: norm.get_with_hints(FEATURES, "bias", Init::Const(0.0))?,
            out: candle_nn::linear(FEATURES, dim, vb.pp("out"))?,
        })
    }
}

impl Module for Projection {
    fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let x = self.hidden.forward(features)?;
        let x = x.broadcast_sub(&x.mean_keepdim(0)?)?;
        let variance = x.sqr()?.mean_keepdim(0)?;
        let x = x.broadcast_div(&(variance + 1e-5)?.sqrt()?)?;
        let x = x.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?;
        self.out.forward(&x.relu()?)
    }
}

/// A queue of features for every class. The teacher is frozen, so that old features are as good as new ones; their projection is not kept.
pub struct Queue {
    /// (M, D)
    pub features: Tensor,
    /// The sample that a slot's features are of, and its class; −1 where the slot is empty. (M)
    ids: Vec<i64>,
    labels: Vec<i64>,
    /// Where each class's slots begin, and where the last ends. (C + 1)
    starts: Vec<usize>,
    /// The slot that a class fills next, from its first. (C)
    next: Vec<usize>,
}

impl Queue {
    /// `all` slots: `least` for every class, and the rest by the classes' training samples.
    pub fn new(counts: &ClassCounts, all: usize, least: usize, device: &Device) -> Result<Self> {
        let classes = counts.classes();
        if least == 0 || all < least * classes {
            candle_core::bail!(
                "{all} keys are too few for {classes} classes with at least {least} each, which is to be 1 or more"
            )
        }
        let rest = (all - least * classes) as u128;
        let (mut starts, mut before) = (vec![0], 0u128);
        for (class, &count) in counts.as_slice().iter().enumerate() {
            before += u128::from(count);
            starts.push((class + 1) * least + (rest * before / u128::from(counts.total())) as usize);
        }
        let features = Tensor::zeros((all, FEATURES), DType::F32, device)?;
        Ok(Self { features, ids: vec![-1; all], labels: vec![-1; all], starts, next: vec![0; classes] })
    }

    /// Puts in the features (N, D) of samples, each in place of its class's oldest; where a batch has more of a class than there are slots, the first of
    /// them are left out.
    pub fn push(&mut self, features: &Tensor, labels: &[u32], ids: &[usize]) -> Result<()> {
        let all = self.ids.len();
        let mut from: Vec<u32> = (0..all as u32).collect();
        for (row, (&label, &id)) in labels.iter().zip(ids).enumerate() {
            let class = label as usize;
            let (start, size) = (self.starts[class], self.starts[class + 1] - self.starts[class]);
            let slot = start + self.next[class];
            self.next[class] = (self.next[class] + 1) % size;
            from[slot] = (all + row) as u32;
            (self.ids[slot], self.labels[slot]) = (id as i64, i64::from(label));
        }
        let from = Tensor::new(from, self.features.device())?;
        self.features = Tensor::cat(&[&self.features, &features.detach()], 0)?.index_select(&from, 0)?;
        Ok(())
    }

    /// Labels and ids of the slots, (M) each.
    pub fn marks(&self) -> Result<[Tensor; 2]> {
        let device = self.features.device();
        Ok([Tensor::new(self.labels.as_slice(), device)?, Tensor::new(self.ids.as_slice(), device)?])
    }

    /// All that there is to keep, by name.
    pub fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        let [labels, ids] = self.marks()?;
        let next: Vec<i64> = self.next.iter().map(|&next| next as i64).collect();
        let next = Tensor::new(next, self.features.device())?;
        let all = [("features", self.features.clone()), ("labels", labels), ("ids", ids), ("next", next)];
        Ok(all.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect())
    }

    /// From the tensors that `tensors` gave.
    pub fn restore(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let named = |name: &str, shape: &[usize]| match tensors.get(name) {
            Some(tensor) if tensor.dims() == shape => Ok(tensor.clone()),
            _ => candle_core::bail!("the checkpoint has no queue of {} keys: {name}", self.ids.len()),
        };
        let integers = |name: &str, len: usize| named(name, &[len])?.to_vec1::<i64>();
        let (all, classes) = (self.ids.len(), self.next.len());
        let (features, labels, ids) =
            (named("features", &[all, FEATURES])?, integers("labels", all)?, integers("ids", all)?);
        let next: Vec<usize> = integers("next", classes)?.into_iter().map(|next| next as usize).collect();
        if next.iter().zip(self.starts.windows(2)).any(|(&next, class)| next >= class[1] - class[0]) {
            candle_core::bail!("the checkpoint's queue fills slots that its classes have not")
        }
        *self = Self { features, ids, labels, starts: std::mem::take(&mut self.starts), next };
        Ok(())
    }
}

/// A batch of samples.
pub struct Batch {
    /// (N, channels, H, W) each
    pub views: Vec<Tensor>,
    /// (N)
    pub labels: Vec<u32>,
    /// The samples' rows in the training set, (N)
    pub ids: Vec<usize>,
}

impl Batch {
    pub fn labels(&self) -> Result<Tensor> {
        Tensor::new(self.labels.as_slice(), self.views[0].device())
    }

    /// Views `which`, one after the other: (|which|·N, channels, H, W).
    pub fn cat(&self, which: &[usize]) -> Result<Tensor> {
        let views: Vec<&Tensor> = which.iter().map(|&view| &self.views[view]).collect();
        Tensor::cat(&views, 0)
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }
}

/// Shares of rows: accuracy and hard positives.
pub fn rates(outputs: &[candle_margin_loss::LossOutput]) -> candle_margin_loss::Result<(f64, f64)> {
    let experts = outputs.len() as f64;
    let (mut accuracy, mut hard) = (0.0, 0.0);
    for output in outputs {
        accuracy += output.accuracy()? / experts;
        hard += output.hard_positive_rate()? / experts;
    }
    Ok((accuracy, hard))
}

/// Mean of the experts' logits.
pub fn mean(logits: &[Tensor]) -> Result<Tensor> {
    Tensor::stack(logits, 0)?.mean(0)
}
