//! How a small network is trained, and a corpus as the example `train` has it.

use crate::corpus::{Corpus, Part};
use crate::data::{Dataset, Grouping};
use crate::losses::BETA;
use crate::methods::{Gate, Method, Network, Numbers};
use crate::run::Config;

/// A corpus as the example `train` has it.
pub fn dataset(corpus: &Corpus, test: Part) -> Dataset {
    Dataset {
        title: corpus.title.clone(),
        shape: corpus.shape,
        class_names: Vec::new(),
        train: vec![corpus.part(Part::Train).clone()],
        test: corpus.part(test).clone(),
        counts: corpus.counts.clone(),
        groups: Grouping::thirds(&corpus.counts),
    }
}

/// A small network's recipe.
pub fn config(corpus: &Corpus, method: Method, epochs: usize) -> Config {
    Config {
        dataset: corpus.title.clone(),
        imbalance_factor: corpus.counts.imbalance_factor(),
        data_seed: 0,
        method,
        seed: 0,
        network: Network::Patches,
        epochs,
        batch_size: 64,
        lr: 0.03,
        momentum: 0.9,
        weight_decay: 2e-4,
        warmup_epochs: 1,
        padding: 2,
        flip: false,
        auto_augment: false,
        cutout: 0,
        numbers: Numbers {
            scale: 16.0,
            k: 0.1,
            tau: 1.0,
            gate: Gate::Off,
            ldam_margin: 0.5,
            beta: BETA,
            drw_epoch: epochs,
            companion: None,
        },
    }
}
