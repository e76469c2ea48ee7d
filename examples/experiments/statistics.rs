//! Differences between losses with intervals, over seeds and over classes, and how many of them chance would give.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// A mean with half the width of its 95 % confidence interval, and the two-sided p of a mean of 0 (Student's t).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    pub mean: f64,
    pub half: f64,
    pub p: f64,
}

impl Mean {
    /// Of at least two values.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let error = (variance / n).sqrt();
        let student = StudentsT::new(0.0, 1.0, n - 1.0).expect("at least two values");
        let p = if error > 0.0 { 2.0 * student.cdf(-(mean / error).abs()) } else { f64::from(mean == 0.0) };
        Self { mean, half: student.inverse_cdf(0.975) * error, p }
    }
}

/// How one loss differs from another in accuracy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Paired by seed: what another start or order would change
    pub seeds: Mean,
    /// Paired by class, each class's accuracy a mean of the seeds: what other classes and samples would change
    pub classes: Mean,
}

impl Difference {
    /// (seeds) of accuracies over all, (classes) of mean accuracies, of one and of the other.
    pub fn of(here: (&[f64], &[f64]), there: (&[f64], &[f64])) -> Self {
        let less = |a: &[f64], b: &[f64]| Mean::of(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
        Self { seeds: less(here.0, there.0), classes: less(here.1, there.1) }
    }

    /// The larger of the two: a difference must be beyond both kinds of chance.
    pub fn p(&self) -> f64 {
        self.seeds.p.max(self.classes.p)
    }
}

/// Holm's correction: p values such that the chance of any false finding among all is what a single one says.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut corrected = vec![0.0; p.len()];
    let mut least: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        least = least.max(((p.len() - rank) as f64 * p[i]).min(1.0));
        corrected[i] = least;
    }
    corrected
}
