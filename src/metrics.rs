//! What the paper measures of a trained classifier: accuracy by group of classes, angular distances to the class centres (Fig. 4)
//! and Fisher separability (eqs. 12 and 13, Table 6).
//!
//! ```
//! use candle_margin_loss::{ClassCounts, metrics};
//! # fn main() -> candle_margin_loss::Result<()> {
//! let counts = ClassCounts::new(vec![500, 50, 5])?; // Many, Medium, Few
//! let accuracy = metrics::group_accuracy(&[0, 0, 1, 0, 2, 2], &[0, 0, 1, 1, 2, 2], &counts.groups())?;
//! assert_eq!(accuracy.medium, Some(0.5));
//! # Ok(()) }
//! ```

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::counts::Group;
use crate::error::{Error, Result};

/// One value for all classes and one for each group; `None` for a group without a class that was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByGroup {
    /// Of everything.
    pub all: f64,
    /// Of [`Group::Many`].
    pub many: Option<f64>,
    /// Of [`Group::Medium`].
    pub medium: Option<f64>,
    /// Of [`Group::Few`].
    pub few: Option<f64>,
}

impl ByGroup {
    /// The value of `group`.
    pub fn get(&self, group: Group) -> Option<f64> {
        match group {
            Group::Many => self.many,
            Group::Medium => self.medium,
            Group::Few => self.few,
        }
    }

    /// `all`, and of each group the mean of `values` over its classes; a class whose value is `None` is left out.
    fn of_classes(all: f64, values: &[Option<f64>], groups: &[Group]) -> Self {
        let mean = |wanted: Group| {
            let of_group = || values.iter().zip(groups).filter(|(_, group)| **group == wanted).filter_map(|(v, _)| *v);
            let classes = of_group().count();
            (classes > 0).then(|| of_group().sum::<f64>() / classes as f64)
        };
        Self { all, many: mean(Group::Many), medium: mean(Group::Medium), few: mean(Group::Few) }
    }
}

/// The share of test samples of each class that are predicted right, (C); `None` for a class without a test sample.
///
/// `predicted` and `labels` are (N).
///
/// # Errors
/// Lengths that differ, or a label that is not in `0..classes`.
pub fn class_accuracy(predicted: &[u32], labels: &[u32], classes: usize) -> Result<Vec<Option<f64>>> {
    same_length("class accuracy", "predictions", predicted.len(), labels.len())?;
    let mut right_and_all = vec![(0u64, 0u64); classes];
    for (row, (&predicted, &label)) in predicted.iter().zip(labels).enumerate() {
        let (right, all) = &mut right_and_all[class_of(row, label, classes)?];
        *right += u64::from(predicted == label);
        *all += 1;
    }
    Ok(right_and_all.into_iter().map(|(right, all)| (all > 0).then(|| right as f64 / all as f64)).collect())
}

/// Top-1 accuracy of all test samples and of each group of classes.
///
/// `predicted` and `labels` are (N); `groups` is (C), such as [`ClassCounts::groups`](crate::ClassCounts::groups) of the training
/// counts (the paper's thresholds: more than 100, 20 to 100, fewer than 20).
///
/// `all` is the share of test samples that are predicted right. A group's value is the mean of its classes' accuracies, each class
/// counting the same: on a balanced test set, which the benchmarks have, that too is the share of the group's samples predicted right.
///
/// # Errors
/// No sample, lengths that differ, or a label that is not in `0..C`.
pub fn group_accuracy(predicted: &[u32], labels: &[u32], groups: &[Group]) -> Result<ByGroup> {
    let by_class = class_accuracy(predicted, labels, groups.len())?;
    if labels.is_empty() {
        return Err(Error::Metrics("group accuracy: there is no sample".into()));
    }
    let right = predicted.iter().zip(labels).filter(|(predicted, label)| predicted == label).count();
    Ok(ByGroup::of_classes(right as f64 / labels.len() as f64, &by_class, groups))
}

/// The mean of a value per class, such as [`fisher_separability`], over all classes and over each group's.
///
/// # Errors
/// No class, or lengths that differ.
pub fn group_means(values: &[f64], groups: &[Group]) -> Result<ByGroup> {
    same_length("group means", "values", values.len(), groups.len())?;
    if values.is_empty() {
        return Err(Error::Metrics("group means: there is no class".into()));
    }
    let all = values.iter().sum::<f64>() / values.len() as f64;
    Ok(ByGroup::of_classes(all, &values.iter().copied().map(Some).collect::<Vec<_>>(), groups))
}

/// θ = arccos c in radians of a cosine that rounding may have carried beyond ±1; NaN stays NaN.
///
/// For a cosine that was rounded to f32, θ is uncertain by about 3e-4 near 0 and π: [`angular_distances`] is not.
pub fn angle(cosine: f64) -> f64 {
    cosine.clamp(-1.0, 1.0).acos()
}

/// θ_iy = arccos(x̂_i · ŵ_y), the angular distance in radians of each sample to its class centre (eq. 2, Fig. 4), (N).
///
/// - `features` X: (N, D), `centres` W: (C, D), any float dtype.
/// - `labels` y: (N), each in `0..C`.
///
/// Computed in f64 as 2·atan2(‖x̂ − ŵ‖, ‖x̂ + ŵ‖), which is the same angle and keeps its digits at 0 and π, where arccos loses half of them.
/// A row of zeros (norm below 1e-12) is at π/2 from everything, as its cosine is 0.
///
/// # Errors
/// Ranks or shapes that do not fit, a dtype that is not a float, or a label that is not in `0..C`.
pub fn angular_distances(features: &Tensor, centres: &Tensor, labels: &[u32]) -> Result<Vec<f64>> {
    const WHAT: &str = "angular distances";
    let (x, dim) = rows(WHAT, "features", features)?;
    let (w, centre_dim) = rows(WHAT, "centres", centres)?;
    if dim != centre_dim {
        return Err(Error::Metrics(format!("{WHAT}: features of dimension {dim}, centres of dimension {centre_dim}")));
    }
    same_length(WHAT, "features", x.len() / dim, labels.len())?;
    let unit = |row: &[f64]| -> Vec<f64> {
        let norm = dot(row, row).sqrt().max(1e-12);
        row.iter().map(|value| value / norm).collect()
    };
    let centres: Vec<Vec<f64>> = w.chunks_exact(dim).map(unit).collect();
    let distance = |(row, x): (usize, &[f64])| {
        let (x, w) = (unit(x), &centres[class_of(row, labels[row], centres.len())?]);
        let apart = x.iter().zip(w).map(|(x, w)| (x - w).powi(2)).sum::<f64>().sqrt();
        let along = x.iter().zip(w).map(|(x, w)| (x + w).powi(2)).sum::<f64>().sqrt();
        Ok(2.0 * apart.atan2(along))
    };
    x.chunks_exact(dim).enumerate().map(distance).collect()
}

/// First quartile, median and third quartile: the dashed lines of Fig. 4.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quartiles {
    /// The value that a quarter of the sample lies below.
    pub q1: f64,
    /// The value that half of the sample lies below.
    pub median: f64,
    /// The value that three quarters of the sample lie below.
    pub q3: f64,
}

/// The quartiles of `values`, in any order; `None` if there is no value, or a NaN among them.
///
/// The quantile at p is read at position p·(n − 1) of the n sorted values, counted from 0, interpolated linearly: Hyndman and Fan's type 7,
/// the default of NumPy's `quantile` and of R.
pub fn quartiles(values: &[f64]) -> Option<Quartiles> {
    if values.is_empty() || values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quantile = |p: f64| {
        let position = p * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
        if below == above { below } else { below + (above - below) * position.fract() }
    };
    Some(Quartiles { q1: quantile(0.25), median: quantile(0.5), q3: quantile(0.75) })
}

/// Whose covariance finds the projection of [`fisher_separability`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scatter {
    /// That of the two classes alone, Σ = Σ_i + Σ_j: the paper's, W_ij maximises J. Wants n_i + n_j well above D.
    Pair,
    /// That of all classes, Σ = Σ_k (n_k / N)·Σ_k: the projection of an LDA over all classes. For few samples a class.
    Pooled,
}

/// Fisher separability S_i of each class (eqs. 12 and 13), (C).
///
/// For every pair of classes, with m_k the mean and Σ_k the population covariance (divided by n_k) of class k's features:
///
/// - the projection of Fisher's linear discriminant, W_ij = Σ̃⁻¹ (m_i − m_j), where Σ̃ = (1 − γ)·Σ + γ·(tr Σ / D)·I and `scatter` says what Σ is;
/// - J(W_ij) = (μ_i − μ_j)² / (σ_i² + σ_j²), where μ_k and σ_k² are mean and population variance of class k's projected features (eq. 12);
/// - S_i = 1/(C − 1) · Σ_{j≠i} J(W_ij) (eq. 13).
///
/// [`Scatter::Pair`] with γ = 0 is the paper's, and then J = (m_i − m_j)ᵀ (Σ_i + Σ_j)⁻¹ (m_i − m_j). With n_i + n_j − 2 < D samples that Σ is
/// singular, and with few more the projection finds directions in which these samples merely happen not to vary: J is then large and says
/// nothing. [`Scatter::Pooled`] does not fit the projection to the pair's own few samples. `shrinkage` is γ, 0 ≤ γ ≤ 1; it too changes
/// the projection only, J is always that of the projected samples. Values of different settings do not compare.
///
/// - `features` X: (N, D), any float dtype, taken as they are: normalise the rows first to measure on the sphere.
/// - `labels` y: (N), each in `0..classes`.
///
/// Runs on rayon's threads and does not depend on their number; takes C·D² numbers of memory.
///
/// # Errors
/// Ranks or lengths that do not fit; fewer than two classes; a label that is not in `0..classes`; a class without a sample (named); γ out
/// of range; a value that is not finite; Σ̃ singular, or a pair of classes (named) whose projected features do not vary.
pub fn fisher_separability(
    features: &Tensor,
    labels: &[u32],
    classes: usize,
    scatter: Scatter,
    shrinkage: f64,
) -> Result<Vec<f64>> {
    const WHAT: &str = "Fisher separability";
    let (x, dim) = rows(WHAT, "features", features)?;
    same_length(WHAT, "features", x.len() / dim, labels.len())?;
    if classes < 2 {
        return Err(Error::Metrics(format!("{WHAT}: needs at least two classes, there are {classes}")));
    }
    if !(0.0..=1.0).contains(&shrinkage) {
        return Err(Error::Option(format!("{WHAT}: the shrinkage γ must be in 0..=1, it is {shrinkage}")));
    }
    if let Some(position) = x.iter().position(|value| !value.is_finite()) {
        return Err(Error::Metrics(format!("{WHAT}: the features of row {} are not finite", position / dim)));
    }
    let mut members: Vec<Vec<&[f64]>> = vec![Vec::new(); classes];
    for (row, x) in x.chunks_exact(dim).enumerate() {
        members[class_of(row, labels[row], classes)?].push(x);
    }
    if let Some(class) = members.iter().position(Vec::is_empty) {
        return Err(Error::Metrics(format!("{WHAT}: class {class} has no sample")));
    }
    let moments: Vec<Moments> = members.par_iter().map(|samples| Moments::of(samples, dim)).collect();
    let singular = "the within-class covariance is singular; more samples or a larger shrinkage would help";
    let pooled = match scatter {
        Scatter::Pair => None,
        Scatter::Pooled => {
            let mut sum = vec![0.0; dim * dim];
            for (class, samples) in moments.iter().zip(&members) {
                add_scaled(&mut sum, samples.len() as f64 / labels.len() as f64, &class.covariance);
            }
            Some(factor(&sum, dim, shrinkage).ok_or_else(|| Error::Metrics(format!("{WHAT}: {singular}")))?)
        }
    };
    let pair = |i: usize, j: usize| {
        let of_pair = |why: &str| Error::Metrics(format!("{WHAT}: classes {i} and {j}: {why}"));
        let covariance: Vec<f64> =
            moments[i].covariance.iter().zip(&moments[j].covariance).map(|(i, j)| i + j).collect();
        let apart: Vec<f64> = moments[i].mean.iter().zip(&moments[j].mean).map(|(i, j)| i - j).collect();
        let own = match &pooled {
            Some(_) => None,
            None => Some(factor(&covariance, dim, shrinkage).ok_or_else(|| of_pair(singular))?),
        };
        let mut direction = apart.clone();
        cholesky_solve(pooled.as_ref().or(own.as_ref()).expect("one of the two is there"), &mut direction);
        fisher_criterion(&direction, &apart, &covariance).ok_or_else(|| of_pair("their projected features do not vary"))
    };
    // J of the pairs i < j, a row i at a time; summed below in one fixed order.
    let upper: Vec<Result<Vec<f64>>> =
        (0..classes).into_par_iter().map(|i| (i + 1..classes).map(|j| pair(i, j)).collect()).collect();
    // One after the other: of several pairs that fail the first is named, whichever thread came first.
    let upper = upper.into_iter().collect::<Result<Vec<_>>>()?;
    let criterion = |i: usize, j: usize| if i < j { upper[i][j - i - 1] } else { upper[j][i - j - 1] };
    let sum = |i: usize| (0..classes).filter(|&j| j != i).map(|j| criterion(i, j)).sum::<f64>();
    Ok((0..classes).map(|i| sum(i) / (classes - 1) as f64).collect())
}

/// Mean (D) and population covariance (D, D) of a class; of the covariance, rows hold their entries from the diagonal on.
struct Moments {
    mean: Vec<f64>,
    covariance: Vec<f64>,
}

impl Moments {
    fn of(samples: &[&[f64]], dim: usize) -> Self {
        let share = 1.0 / samples.len() as f64;
        let mut mean = vec![0.0; dim];
        samples.iter().for_each(|x| add_scaled(&mut mean, share, x));
        let mut covariance = vec![0.0; dim * dim];
        for x in samples {
            let centred: Vec<f64> = x.iter().zip(&mean).map(|(x, mean)| x - mean).collect();
            for (a, row) in covariance.chunks_exact_mut(dim).enumerate() {
                add_scaled(&mut row[a..], share * centred[a], &centred[a..]);
            }
        }
        Self { mean, covariance }
    }
}

/// J(W_ij) of eq. (12) for the projection `direction` (D), with m_i − m_j in `apart` (D) and Σ_i + Σ_j, its upper triangle, in `covariance` (D, D);
/// `None` where the projected features do not vary.
fn fisher_criterion(direction: &[f64], apart: &[f64], covariance: &[f64]) -> Option<f64> {
    let dim = apart.len();
    let distance = dot(direction, apart);
    if distance == 0.0 {
        return Some(0.0);
    }
    // wᵀ Σ w from the rows' upper parts: the diagonal once, the rest twice.
    let of_row = |a: usize| {
        let row = &covariance[a * dim + a..(a + 1) * dim];
        direction[a] * (2.0 * dot(row, &direction[a..]) - row[0] * direction[a])
    };
    let variance: f64 = (0..dim).map(of_row).sum();
    let nothing = f64::EPSILON * mean_of_diagonal(covariance, dim) * dot(direction, direction);
    (variance > nothing).then(|| distance.powi(2) / variance)
}

fn mean_of_diagonal(matrix: &[f64], dim: usize) -> f64 {
    (0..dim).map(|a| matrix[a * dim + a]).sum::<f64>() / dim as f64
}

/// U of Σ̃ = (1 − γ)·Σ + γ·(tr Σ / D)·I = UᵀU; `None` where Σ̃ is singular.
fn factor(covariance: &[f64], dim: usize, shrinkage: f64) -> Option<Vec<f64>> {
    let spread = mean_of_diagonal(covariance, dim);
    let mut shrunk: Vec<f64> = covariance.iter().map(|value| (1.0 - shrinkage) * value).collect();
    (0..dim).for_each(|a| shrunk[a * dim + a] += shrinkage * spread);
    cholesky(&mut shrunk, dim, spread).then_some(shrunk)
}

/// A = UᵀU in place, U in the upper triangle of the row-major (dim, dim) `a`; false where a pivot is nothing beside the mean diagonal entry `spread`.
fn cholesky(a: &mut [f64], dim: usize, spread: f64) -> bool {
    for k in 0..dim {
        let (done, rest) = a.split_at_mut((k + 1) * dim);
        let row = &mut done[k * dim + k..];
        if row[0] <= f64::EPSILON * dim as f64 * spread {
            return false;
        }
        let pivot = row[0].sqrt();
        row.iter_mut().for_each(|value| *value /= pivot);
        for (r, below) in rest.chunks_exact_mut(dim).enumerate() {
            add_scaled(&mut below[k + 1 + r..], -row[1 + r], &row[1 + r..]);
        }
    }
    true
}

/// x ← A⁻¹ x, where `u` is what [`cholesky`] made of A.
fn cholesky_solve(u: &[f64], x: &mut [f64]) {
    let dim = x.len();
    for k in 0..dim {
        let (head, tail) = x.split_at_mut(k + 1);
        head[k] /= u[k * dim + k];
        add_scaled(tail, -head[k], &u[k * dim + k + 1..(k + 1) * dim]);
    }
    for k in (0..dim).rev() {
        let (head, tail) = x.split_at_mut(k + 1);
        head[k] = (head[k] - dot(&u[k * dim + k + 1..(k + 1) * dim], tail)) / u[k * dim + k];
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// y ← y + scale·x
fn add_scaled(y: &mut [f64], scale: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += scale * x);
}

/// The rows of a (N, D) float tensor in f64, and D.
fn rows(what: &str, name: &str, tensor: &Tensor) -> Result<(Vec<f64>, usize)> {
    let [_, dim] = *tensor.dims() else {
        return Err(Error::Metrics(format!("{what}: {name} must be of rank 2, they are {:?}", tensor.shape())));
    };
    if dim == 0 {
        return Err(Error::Metrics(format!("{what}: {name} have dimension 0")));
    }
    if !tensor.dtype().is_float() {
        return Err(Error::Metrics(format!("{what}: {name} must be floats, they are {:?}", tensor.dtype())));
    }
    Ok((tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?, dim))
}

fn same_length(what: &str, name: &str, length: usize, expected: usize) -> Result<()> {
    let against = if what == "group means" { "groups" } else { "labels" };
    if length == expected {
        return Ok(());
    }
    Err(Error::Metrics(format!("{what}: {length} {name} for {expected} {against}")))
}

fn class_of(row: usize, label: u32, classes: usize) -> Result<usize> {
    let class = label as usize;
    if class < classes {
        return Ok(class);
    }
    Err(Error::Label { row, label: i64::from(label), classes, ignore_index: None })
}
