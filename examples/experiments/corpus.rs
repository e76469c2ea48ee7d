//! Images by class in three parts, cut once: what is learnt from, what choices are made on, and what is looked at once, at the end.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_margin_loss::ClassCounts;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::data::{DataError, Samples, Shape};
use crate::strokes::{self, Symbol};

/// The seed of what is drawn when parts are cut: one for all.
const SEED: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Train,
    Validation,
    Test,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];
}

/// Every class has training samples. Only classes with enough of them have validation and test samples.
pub struct Corpus {
    pub title: String,
    pub attribution: &'static str,
    pub shape: Shape,
    /// Grey images of training, validation and test
    pub parts: [Samples; 3],
    /// Training samples, (C)
    pub counts: ClassCounts,
}

impl Corpus {
    /// From (class, part, image) in any order.
    pub fn new(
        name: &str,
        attribution: &'static str,
        side: usize,
        images: impl IntoIterator<Item = (u32, Part, Vec<f32>)>,
    ) -> Result<Self, DataError> {
        let mut parts: [Samples; 3] = Default::default();
        for (class, part, image) in images {
            let samples = &mut parts[part as usize];
            samples.pixels.extend(image);
            samples.labels.push(class);
        }
        let classes = parts[0].labels.iter().max().map_or(0, |&most| most as usize + 1);
        let settings = |error: candle_margin_loss::Error| DataError::Settings(format!("{name}: {error}"));
        let counts = ClassCounts::from_labels(parts[0].labels.iter().copied(), classes).map_err(settings)?;
        if parts.iter().any(|samples| samples.labels.is_empty()) {
            return Err(DataError::Settings(format!("{name}: each of the three parts needs a sample")));
        }
        let tested = |samples: &Samples| {
            let mut classes = samples.labels.clone();
            classes.sort_unstable();
            classes.dedup();
            classes.len()
        };
        let title = format!(
            "{name}: {classes} classes, {} training samples ({} to {} a class), {} for validation of {} classes, {} for the test of {}",
            parts[0].len(),
            counts.max(),
            counts.min(),
            parts[1].len(),
            tested(&parts[1]),
            parts[2].len(),
            tested(&parts[2])
        );
        Ok(Self { title, attribution, shape: Shape { channels: 1, height: side, width: side }, parts, counts })
    }

    pub fn part(&self, part: Part) -> &Samples {
        &self.parts[part as usize]
    }
}

/// All symbols of the crate `detexify` at their natural counts. Of n drawings a fifth, rounded down, is for validation and another for the test: none where
/// there are fewer than five. Every k-th symbol by falling size where fewer than all are asked for.
pub fn detexify(classes: Option<usize>, side: usize) -> Result<Corpus, DataError> {
    let mut symbols = strokes::read_snapshot(&strokes::find_snapshot()?)?;
    symbols.retain(|symbol| !symbol.drawings.is_empty());
    symbols.sort_by_key(|symbol| std::cmp::Reverse(symbol.drawings.len()));
    let all = symbols.len();
    let kept = classes.unwrap_or(all).clamp(1, all);
    let symbols: Vec<Symbol> = symbols
        .into_iter()
        .enumerate()
        .filter(|(i, _)| (i + 1) * kept / all > i * kept / all)
        .map(|(_, s)| s)
        .collect();
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut images = Vec::new();
    for (class, symbol) in symbols.iter().enumerate() {
        let mut order: Vec<usize> = (0..symbol.drawings.len()).collect();
        order.shuffle(&mut rng);
        let held_out = order.len() / 5;
        for (rank, drawing) in order.into_iter().enumerate() {
            let part = match rank / held_out.max(1) {
                _ if held_out == 0 => Part::Train,
                0 => Part::Test,
                1 => Part::Validation,
                _ => Part::Train,
            };
            images.push((class as u32, part, strokes::rasterise(&symbol.drawings[drawing], side)));
        }
    }
    Corpus::new("detexify", strokes::ATTRIBUTION, side, images)
}

/// Keeps what took long to make: `make` is called where `path` does not have it.
pub fn cached<E: From<candle_core::Error>>(
    path: &Path,
    make: impl FnOnce() -> Result<HashMap<String, Tensor>, E>,
) -> Result<HashMap<String, Tensor>, E> {
    if path.is_file() {
        return Ok(candle_core::safetensors::load(path, &Device::Cpu)?);
    }
    let tensors = make()?;
    // Another name until it is whole.
    let unfinished = path.with_extension("unfinished");
    candle_core::safetensors::save(&tensors, &unfinished)?;
    std::fs::rename(&unfinished, path).map_err(candle_core::Error::from)?;
    Ok(tensors)
}
