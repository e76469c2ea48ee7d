//! A long-tailed training set and a balanced test set, and how one is cut from samples by class.

use std::path::{Path, PathBuf};

use candle_margin_loss::{ClassCounts, Group};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// What can be wrong with a dataset's files or with what is asked of them.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder that is not there, and what to do about it.
    #[error("{path} is missing: {hint}", path = path.display())]
    Missing { path: PathBuf, hint: String },
    /// A file that is not what its format says.
    #[error("{path}: {what}", path = path.display())]
    Corrupt { path: PathBuf, what: String },
    /// A file that cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Settings that the data cannot serve.
    #[error("{0}")]
    Settings(String),
}

impl DataError {
    pub fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_path_buf(), what: short(&what.into()) }
    }
}

/// On one line, and the middle left out of what quotes a long one of a file.
fn short(what: &str) -> String {
    const MOST: usize = 240;
    let letters: Vec<char> = what.split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    if letters.len() <= MOST {
        return letters.into_iter().collect();
    }
    let (start, end) = (&letters[..MOST / 2], &letters[letters.len() - MOST / 2..]);
    start.iter().chain(&['…']).chain(end).collect()
}

/// Images with their labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    /// (N, channels · height · width), row-major, from 0 to 1; none of images that stay in files
    pub pixels: Vec<f32>,
    /// (N)
    pub labels: Vec<u32>,
}

impl Samples {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The samples at `indices`, in that order.
    pub fn select(&self, indices: &[usize]) -> Self {
        let size = self.pixels.len() / self.len().max(1);
        let pixels = indices.iter().flat_map(|&i| &self.pixels[i * size..(i + 1) * size]).copied().collect();
        Self { pixels, labels: indices.iter().map(|&i| self.labels[i]).collect() }
    }
}

/// Channels, height and width of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

impl Shape {
    pub fn pixels(self) -> usize {
        self.channels * self.height * self.width
    }
}

/// What a run trains and tests on.
pub struct Dataset {
    /// What the table's header says of it.
    pub title: String,
    pub shape: Shape,
    /// (C)
    pub class_names: Vec<String>,
    /// Renderings of the training set, all with the same labels: an epoch uses one of them. At least one.
    pub train: Vec<Samples>,
    pub test: Samples,
    pub counts: ClassCounts,
    pub groups: Grouping,
}

/// The group of every class, and the rule in words.
pub struct Grouping {
    pub of_class: Vec<Group>,
    pub rule: &'static str,
}

impl Grouping {
    /// The paper's: more than 100 training samples, 20 to 100, fewer than 20.
    pub fn by_thresholds(counts: &ClassCounts) -> Self {
        Self { of_class: counts.groups(), rule: "by training samples, Many > 100, Medium 20-100, Few < 20" }
    }

    /// Thirds of the classes by training samples: for a set too small for the paper's thresholds. The lower class number is the larger at a tie.
    pub fn thirds(counts: &ClassCounts) -> Self {
        let n = counts.as_slice();
        let mut by_size: Vec<usize> = (0..n.len()).collect();
        by_size.sort_by_key(|&class| std::cmp::Reverse(n[class]));
        let mut of_class = vec![Group::Few; n.len()];
        for (rank, class) in by_size.into_iter().enumerate() {
            of_class[class] = Group::ALL[rank * 3 / n.len()];
        }
        Self { of_class, rule: "thirds of the classes by training samples (too few for the paper's thresholds)" }
    }
}

/// Positions of each class's samples, (C).
pub fn by_class(labels: &[u32], classes: usize) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(position, &label)| members[label as usize].push(position));
    members
}

/// The paper's long tail (class j keeps n_max · IF^(−j/(C−1)) samples, drawn at random): the positions kept, by class, and their counts.
///
/// n_max is the size of the smallest class, so that every class has what it should keep.
pub fn long_tail(
    members: &[Vec<usize>],
    imbalance_factor: f64,
    rng: &mut StdRng,
) -> Result<(Vec<usize>, ClassCounts), DataError> {
    let n_max = members.iter().map(Vec::len).min().unwrap_or(0) as u64;
    let settings = |error: candle_margin_loss::Error| {
        DataError::Settings(format!(
            "an imbalance factor of {imbalance_factor} cannot be cut from {} classes of {n_max} samples: {error}",
            members.len()
        ))
    };
    let counts = ClassCounts::exponential(n_max, members.len(), imbalance_factor).map_err(settings)?;
    let mut kept = Vec::new();
    for (members, &n) in members.iter().zip(counts.as_slice()) {
        let mut members = members.clone();
        members.shuffle(rng);
        kept.extend_from_slice(&members[..n as usize]);
    }
    Ok((kept, counts))
}

/// The bytes of a file, or what to do if it is not there.
pub fn read(path: &Path, hint: impl FnOnce() -> String) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DataError::Missing { path: path.to_path_buf(), hint: hint() },
        _ => DataError::Io { path: path.to_path_buf(), source },
    })
}
