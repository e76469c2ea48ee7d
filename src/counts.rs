//! Class counts of a training set, and what the losses derive from them.

use crate::error::{Error, Result};

/// Training samples per class: n_j of the paper.
///
/// A class may be without a sample: it is left out of n_min and of the largest LDAM margin, has no margin from its count, the log prior −∞ (see
/// [`Prior::BalancedSoftmax`](crate::Prior::BalancedSoftmax)) and the class-balanced weight of a class with one sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassCounts {
    n: Vec<u64>,
}

/// The paper's groups of classes by training samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// More than 100 training samples.
    Many,
    /// 20 to 100 training samples.
    Medium,
    /// Fewer than 20 training samples.
    Few,
}

impl Group {
    /// All groups, largest classes first.
    pub const ALL: [Group; 3] = [Group::Many, Group::Medium, Group::Few];

    /// The group of a class with `count` training samples.
    pub fn of(count: u64) -> Self {
        match count {
            0..20 => Group::Few,
            20..=100 => Group::Medium,
            _ => Group::Many,
        }
    }

    /// "Many", "Medium" or "Few".
    pub fn name(self) -> &'static str {
        match self {
            Group::Many => "Many",
            Group::Medium => "Medium",
            Group::Few => "Few",
        }
    }
}

impl ClassCounts {
    /// Counts given per class.
    ///
    /// # Errors
    /// No class at all, no sample at all, or more samples than 2⁶⁴ − 1.
    pub fn new(counts: impl Into<Vec<u64>>) -> Result<Self> {
        let n: Vec<u64> = counts.into();
        if n.is_empty() {
            return Err(Error::Counts("at least one class is needed".into()));
        }
        match n.iter().try_fold(0u64, |sum, &count| sum.checked_add(count)) {
            None => Err(Error::Counts("the counts' sum is more than 2⁶⁴ − 1".into())),
            Some(0) => Err(Error::Counts("no class has a sample".into())),
            Some(_) => Ok(Self { n }),
        }
    }

    /// Counts the labels of a training set of `classes` classes.
    ///
    /// # Errors
    /// A label that is not in `0..classes` (named with its position), or no label at all.
    pub fn from_labels(labels: impl IntoIterator<Item = u32>, classes: usize) -> Result<Self> {
        let mut n = vec![0u64; classes];
        for (position, label) in labels.into_iter().enumerate() {
            match n.get_mut(label as usize) {
                Some(count) => *count += 1,
                None => {
                    return Err(Error::Counts(format!("label {label} at position {position} is not in 0..{classes}")));
                }
            }
        }
        Self::new(n)
    }

    /// The exponential long-tail profile: n_j = ⌊n_max · IF^(−j/(C−1))⌋.
    ///
    /// # Errors
    /// `imbalance_factor` below 1 or not finite, no class, or a class left without a sample.
    pub fn exponential(n_max: u64, classes: usize, imbalance_factor: f64) -> Result<Self> {
        if !(imbalance_factor.is_finite() && imbalance_factor >= 1.0) {
            return Err(Error::Counts(format!(
                "the imbalance factor must be finite and at least 1, it is {imbalance_factor}"
            )));
        }
        let steps = classes.saturating_sub(1).max(1) as f64;
        let n: Vec<u64> = (0..classes)
            .map(|j| {
                let samples = n_max as f64 * imbalance_factor.powf(-(j as f64) / steps);
                // A count that is whole but for rounding (100 · 100⁻¹ = 0.999…) is that whole count.
                (samples * (1.0 + 1e-12) + 1e-9).floor() as u64
            })
            .collect();
        if let Some(class) = n.iter().position(|&count| count == 0) {
            return Err(Error::Counts(format!("class {class} has no sample")));
        }
        Self::new(n)
    }

    /// Number of classes C.
    pub fn classes(&self) -> usize {
        self.n.len()
    }

    /// n_j, one a class.
    pub fn as_slice(&self) -> &[u64] {
        &self.n
    }

    /// Σ n.
    pub fn total(&self) -> u64 {
        self.n.iter().sum()
    }

    /// n_min: of the classes that have a sample.
    pub fn min(&self) -> u64 {
        self.n.iter().copied().filter(|&n| n > 0).min().unwrap_or(1)
    }

    /// n_max.
    pub fn max(&self) -> u64 {
        self.n.iter().copied().max().unwrap_or(1)
    }

    /// n_max / n_min.
    pub fn imbalance_factor(&self) -> f64 {
        self.max() as f64 / self.min() as f64
    }

    /// The class frequency relative to the rarest class, ρ_j = n_j / n_min: 1 or more, and 0 for a class without a sample.
    pub fn rho(&self) -> Vec<f64> {
        let n_min = self.min() as f64;
        self.n.iter().map(|&n| n as f64 / n_min).collect()
    }

    /// (n_j / n_max)^γ: the scales of class-dependent temperatures. A class without a sample has that of one with one sample.
    pub(crate) fn frequency_scales(&self, gamma: f64) -> Vec<f64> {
        let largest = self.max() as f64;
        self.n.iter().map(|&n| (n.max(1) as f64 / largest).powf(gamma)).collect()
    }

    /// ln p_j with p_j = n_j / Σ n: what balanced softmax adds to the logits (eq. 4). −∞ for a class without a sample.
    pub fn log_priors(&self) -> Vec<f64> {
        let total = self.total() as f64;
        self.n.iter().map(|&n| (n as f64 / total).ln()).collect()
    }

    /// The class-balanced weight (1 − β) / (1 − β^n_j) (eq. 3), 0 ≤ β < 1. A class without a sample has that of one with one sample, 1.
    ///
    /// # Errors
    /// β outside 0 ≤ β < 1.
    pub fn class_balanced_weights(&self, beta: f64) -> Result<Vec<f64>> {
        if !(0.0..1.0).contains(&beta) {
            return Err(Error::Option(format!("the class-balanced β must be in 0 ≤ β < 1, it is {beta}")));
        }
        // 1 − β^n = −expm1(n · ln β) keeps its digits where β^n is close to 1.
        let weight = |n: u64| (1.0 - beta) / -(n as f64 * beta.ln()).exp_m1();
        Ok(self.n.iter().map(|&n| weight(n.max(1))).collect())
    }

    /// The class-balanced weights rescaled to sum to C, as the authors' code does.
    ///
    /// # Errors
    /// β outside 0 ≤ β < 1.
    pub fn class_balanced_weights_normalized(&self, beta: f64) -> Result<Vec<f64>> {
        let mut weights = self.class_balanced_weights(beta)?;
        let scale = weights.len() as f64 / weights.iter().sum::<f64>();
        weights.iter_mut().for_each(|weight| *weight *= scale);
        Ok(weights)
    }

    /// LDAM's margins B_j = max_m · n_j^−¼ / max_k n_k^−¼ (Table 1); 0 for a class without a sample.
    pub(crate) fn ldam_margins(&self, max_m: f64) -> Vec<f64> {
        self.power_of_rho(max_m, -0.25)
    }

    /// The class margin m_C = K · ρ_j^−τ (eq. 6); 0 for a class without a sample.
    pub(crate) fn dbm_margins(&self, k: f64, tau: f64) -> Vec<f64> {
        self.power_of_rho(k, -tau)
    }

    fn power_of_rho(&self, factor: f64, exponent: f64) -> Vec<f64> {
        self.rho().iter().map(|&rho| if rho > 0.0 { factor * rho.powf(exponent) } else { 0.0 }).collect()
    }

    /// The group of each class.
    pub fn groups(&self) -> Vec<Group> {
        self.n.iter().map(|&n| Group::of(n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_priors_are_of_probabilities() {
        let counts = ClassCounts::new(vec![30, 0, 9, 1]).unwrap();
        let sum: f64 = counts.log_priors().into_iter().map(f64::exp).sum();
        assert!((sum - 1.0).abs() < 1e-15, "{sum}");
    }

    #[test]
    fn exponential_profile_of_cifar100_lt() {
        let counts = ClassCounts::exponential(500, 100, 100.0).unwrap();
        assert_eq!(counts.as_slice()[0], 500);
        assert_eq!(counts.as_slice()[99], 5);
        // The size of CIFAR-100-LT at imbalance factor 100, as its users know it.
        assert_eq!(counts.total(), 10847);
        assert_eq!(ClassCounts::exponential(5000, 10, 100.0).unwrap().total(), 12406);
    }

    #[test]
    fn exponential_profile_reaches_one_sample() {
        for n_max in [7u64, 49, 100, 1000] {
            let counts = ClassCounts::exponential(n_max, 17, n_max as f64).unwrap();
            assert_eq!(counts.min(), 1, "n_max {n_max}");
        }
    }

    #[test]
    fn class_balanced_weight_keeps_its_digits() {
        let counts = ClassCounts::new(vec![1, 2, 1000]).unwrap();
        let beta = 1.0 - 1e-12;
        let weights = counts.class_balanced_weights(beta).unwrap();
        assert_eq!(weights[0], 1.0);
        // β → 1: the weight tends to 1 / n.
        assert!((weights[2] - 1e-3).abs() < 1e-12);
        // β = 0 weighs every class alike.
        assert_eq!(counts.class_balanced_weights(0.0).unwrap(), vec![1.0; 3]);
    }

    #[test]
    fn a_class_without_a_sample_changes_nothing_of_the_others() {
        let (with, without) = (ClassCounts::new(vec![40, 0, 4]).unwrap(), ClassCounts::new(vec![40, 4]).unwrap());
        let others = |values: Vec<f64>| vec![values[0], values[2]];
        assert_eq!((with.min(), with.imbalance_factor()), (4, 10.0));
        assert_eq!(with.rho(), [10.0, 0.0, 1.0]);
        assert_eq!(others(with.dbm_margins(0.3, 1.0)), without.dbm_margins(0.3, 1.0));
        assert_eq!(others(with.ldam_margins(0.5)), without.ldam_margins(0.5));
        assert_eq!(others(with.log_priors()), without.log_priors());
        assert_eq!((with.dbm_margins(0.3, 1.0)[1], with.ldam_margins(0.5)[1]), (0.0, 0.0));
        assert_eq!(with.log_priors()[1], f64::NEG_INFINITY);
        for beta in [0.0, 0.9999] {
            assert_eq!(with.class_balanced_weights(beta).unwrap()[1], 1.0);
        }
        assert_eq!(with.groups()[1], Group::Few);
    }

    #[test]
    fn errors_name_the_class() {
        let text = |result: Result<ClassCounts>| result.unwrap_err().to_string();
        assert_eq!(text(ClassCounts::new(vec![0, 0])), "class counts: no class has a sample");
        assert_eq!(text(ClassCounts::new(vec![u64::MAX, 1])), "class counts: the counts' sum is more than 2⁶⁴ − 1");
        let profile = ClassCounts::exponential(5, 3, 10.0);
        assert_eq!(text(profile), "class counts: class 2 has no sample");
        assert_eq!(text(ClassCounts::new(Vec::new())), "class counts: at least one class is needed");
        assert_eq!(text(ClassCounts::from_labels([0, 5], 2)), "class counts: label 5 at position 1 is not in 0..2");
        assert!(text(ClassCounts::exponential(10, 3, f64::NAN)).contains("imbalance factor"));
        assert!(text(ClassCounts::exponential(10, 3, 0.5)).contains("imbalance factor"));
        let beta = ClassCounts::new(vec![1]).unwrap().class_balanced_weights(1.0);
        assert!(beta.unwrap_err().to_string().contains("0 ≤ β < 1, it is 1"));
    }
}
