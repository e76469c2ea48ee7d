//! The metrics against values made by hand, by SciPy and by scikit-learn.
//!
//! The numbers of the last two come from `pip install numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1` and
//!
//! ```python
//! import numpy as np
//! from scipy.spatial.distance import cosine
//! from sklearn.discriminant_analysis import LinearDiscriminantAnalysis as LDA
//!
//! def data(n, d, classes):  # `samples` below
//!     state, x, y = 1, np.empty((classes * n, d)), np.repeat(np.arange(classes), n)
//!     for r in range(classes * n):
//!         for c in range(d):
//!             state = (state * 1103515245 + 12345) % 2**31
//!             x[r, c] = state / 2**31 + (0.3 * y[r] if c == y[r] % d else 0)
//!     return x, y
//!
//! def separability(x, y, classes, scatter, gamma):
//!     s = []
//!     for i in range(classes):
//!         js = []
//!         for j in set(range(classes)) - {i}:
//!             chosen = (y == i) | (y == j) if scatter == "pair" else y >= 0
//!             lda = LDA(solver="lsqr", shrinkage=gamma).fit(x[chosen], y[chosen])
//!             mean = dict(zip(lda.classes_, lda.means_))
//!             w = np.linalg.solve(lda.covariance_, mean[i] - mean[j])
//!             a, b = x[y == i] @ w, x[y == j] @ w
//!             js.append((a.mean() - b.mean()) ** 2 / (a.var() + b.var()))
//!         s.append(np.mean(js))
//!     return s
//!
//! x, y = data(8, 3, 4)
//! print(separability(x, y, 4, "pair", None), separability(x, y, 4, "pair", 0.1))
//! print(separability(*data(3, 12, 4), 4, "pair", 0.3))
//! print(separability(*data(3, 6, 4), 4, "pooled", None), separability(*data(3, 6, 4), 4, "pooled", 0.2))
//! means = [x[y == k].mean(0) for k in range(4)]
//! print([np.arccos(1 - cosine(x[r], means[y[r]])) for r in (0, 9, 18, 31)])
//! ```

use approx::assert_relative_eq;
use candle_core::{DType, Device, Tensor};
use candle_margin_loss::metrics::{
    Quartiles, Scatter, angle, angular_distances, class_accuracy, fisher_separability, group_accuracy, group_means,
    quartiles,
};
use candle_margin_loss::{ClassCounts, Group};

/// X (classes·n, D) and y of the module's Python.
fn samples(n: usize, d: usize, classes: usize) -> (Tensor, Vec<u32>) {
    let mut state = 1u64;
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for row in 0..classes * n {
        let class = row / n;
        y.push(class as u32);
        for column in 0..d {
            state = (state * 1_103_515_245 + 12_345) % (1 << 31);
            let shift = if column == class % d { 0.3 * class as f64 } else { 0.0 };
            x.push(state as f64 / (1u64 << 31) as f64 + shift);
        }
    }
    (Tensor::from_vec(x, (classes * n, d), &Device::Cpu).unwrap(), y)
}

fn assert_all_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert_relative_eq!(actual, expected, max_relative = 1e-9);
    }
}

#[test]
fn accuracy_by_group_by_hand() {
    let counts = ClassCounts::new(vec![500, 101, 100, 20, 19, 1]).unwrap();
    let groups = counts.groups();
    assert_eq!(groups, [Group::Many, Group::Many, Group::Medium, Group::Medium, Group::Few, Group::Few]);
    // Class:      0 0 0 0  1 1  2 2  4 4  (class 3 and 5 have no test sample)
    let labels = [0, 0, 0, 0, 1, 1, 2, 2, 4, 4];
    let predicted = [0, 0, 0, 5, 1, 0, 2, 2, 3, 3];
    let by_class = class_accuracy(&predicted, &labels, 6).unwrap();
    assert_eq!(by_class, [Some(0.75), Some(0.5), Some(1.0), None, Some(0.0), None]);
    let accuracy = group_accuracy(&predicted, &labels, &groups).unwrap();
    // All by samples: 6 of 10. Many by classes: (3/4 + 1/2) / 2, which by samples would be 4/6.
    assert_relative_eq!(accuracy.all, 0.6);
    assert_relative_eq!(accuracy.many.unwrap(), 0.625);
    assert_eq!((accuracy.medium, accuracy.few), (Some(1.0), Some(0.0)));
    let no_medium = group_accuracy(&[0], &[0], &[Group::Many]).unwrap();
    assert_eq!((no_medium.get(Group::Many), no_medium.get(Group::Medium)), (Some(1.0), None));
}

#[test]
fn group_means_by_hand() {
    let means = group_means(&[1.0, 2.0, 6.0], &[Group::Many, Group::Few, Group::Few]).unwrap();
    assert_eq!((means.all, means.many, means.medium, means.few), (3.0, Some(1.0), None, Some(4.0)));
}

#[test]
fn quartiles_are_numpy_s() {
    // np.quantile([3, 1, 4, 1, 5, 9, 2, 6], [.25, .5, .75])
    let expected = Quartiles { q1: 1.75, median: 3.5, q3: 5.25 };
    assert_eq!(quartiles(&[3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]), Some(expected));
    assert_eq!(quartiles(&[7.0]), Some(Quartiles { q1: 7.0, median: 7.0, q3: 7.0 }));
    assert_eq!(quartiles(&[f64::INFINITY; 2]).unwrap().median, f64::INFINITY);
    assert_eq!(quartiles(&[]), None);
    assert_eq!(quartiles(&[1.0, f64::NAN]), None);
}

#[test]
fn angles_are_scipy_s() {
    let (x, y) = samples(8, 3, 4);
    let centres = x.reshape((4, 8, 3)).unwrap().mean(1).unwrap();
    let angles = angular_distances(&x, &centres, &y).unwrap();
    let picked = [angles[0], angles[9], angles[18], angles[31]];
    assert_all_close(&picked, &[0.4403507488213053, 0.3215172198016956, 0.24114420745213785, 0.23917545018632613]);
    // Lengths do not matter.
    let scaled = angular_distances(&(x * 7.0).unwrap(), &(centres * 0.1).unwrap(), &y).unwrap();
    assert_all_close(&scaled, &angles);
}

#[test]
fn angles_keep_their_digits_at_both_ends() {
    use std::f64::consts::{FRAC_PI_2, PI};
    let x = Tensor::new(&[[3.0, 0.0], [1.0, 1e-9], [-2.0, 0.0], [-1.0, 1e-9], [0.0, 0.0], [0.0, 5.0]], &Device::Cpu)
        .unwrap();
    let centre = Tensor::new(&[[0.5, 0.0]], &Device::Cpu).unwrap();
    let angles = angular_distances(&x, &centre, &[0; 6]).unwrap();
    assert_eq!((angles[0], angles[2]), (0.0, PI));
    assert_relative_eq!(angles[1], 1e-9, max_relative = 1e-9);
    assert_relative_eq!(PI - angles[3], 1e-9, max_relative = 1e-6);
    assert_relative_eq!(angles[4], FRAC_PI_2, max_relative = 1e-15);
    assert_relative_eq!(angles[5], FRAC_PI_2, max_relative = 1e-15);
    // What rounding carried beyond ±1.
    assert_eq!((angle(1.0 + 1e-7), angle(-1.0 - 1e-7)), (0.0, PI));
    assert!(angle(f64::NAN).is_nan());
    assert_relative_eq!(angle(0.5), PI / 3.0, max_relative = 1e-15);
}

#[test]
fn separability_by_hand() {
    // Σ_0 = diag(1, 4), Σ_1 = diag(1, 0), m_1 − m_0 = (4, 2), so J = 4²/2 + 2²/4 = 9.
    let x = [[1.0, 2.0], [-1.0, 2.0], [1.0, -2.0], [-1.0, -2.0], [5.0, 2.0], [3.0, 2.0]];
    let x = Tensor::new(&x, &Device::Cpu).unwrap();
    let y = [0, 0, 0, 0, 1, 1];
    assert_all_close(&fisher_separability(&x, &y, 2, Scatter::Pair, 0.0).unwrap(), &[9.0, 9.0]);
    // γ = 1 projects on m_1 − m_0 itself: J = 20² / (4²·2 + 2²·4) = 400/48.
    assert_all_close(&fisher_separability(&x, &y, 2, Scatter::Pair, 1.0).unwrap(), &[25.0 / 3.0; 2]);
    // Pooled: Σ = diag(1, 8/3), w = (4, 3/4), J = (16 + 3/2)² / (16·2 + 9/16·4).
    assert_all_close(&fisher_separability(&x, &y, 2, Scatter::Pooled, 0.0).unwrap(), &[306.25 / 34.25; 2]);
    let same_mean = Tensor::new(&[[1.0], [-1.0], [2.0], [-2.0]], &Device::Cpu).unwrap();
    assert_eq!(fisher_separability(&same_mean, &[0, 0, 1, 1], 2, Scatter::Pair, 0.0).unwrap(), [0.0; 2]);
}

#[test]
fn separability_is_scikit_learn_s() {
    let (x, y) = samples(8, 3, 4);
    let pair = fisher_separability(&x, &y, 4, Scatter::Pair, 0.0).unwrap();
    assert_all_close(&pair, &[3.236755154138184, 3.768793105904185, 4.285904493905124, 5.445851684479838]);
    let shrunk = fisher_separability(&x, &y, 4, Scatter::Pair, 0.1).unwrap();
    assert_all_close(&shrunk, &[3.233593299418534, 3.763744350908444, 4.283842279985978, 5.4398988279464575]);
    // More dimensions than samples: singular but for the shrinkage, and J tells of nothing.
    let (x, y) = samples(3, 12, 4);
    let few = fisher_separability(&x, &y, 4, Scatter::Pair, 0.3).unwrap();
    assert_all_close(&few, &[1443.2638566047228, 329.72283826339134, 1181.644091832227, 2293.1472846598485]);
    let error = fisher_separability(&x, &y, 4, Scatter::Pair, 0.0).unwrap_err().to_string();
    assert!(error.contains("classes 0 and 1") && error.contains("singular"), "{error}");
    let (x, y) = samples(3, 6, 4);
    let pooled = fisher_separability(&x, &y, 4, Scatter::Pooled, 0.0).unwrap();
    assert_all_close(&pooled, &[17.503507032713006, 30.584461174937193, 20.05505189304812, 11.714102572554047]);
    let pooled = fisher_separability(&x, &y, 4, Scatter::Pooled, 0.2).unwrap();
    assert_all_close(&pooled, &[19.87830012151414, 42.220011476932825, 28.0072279373818, 10.076989017779455]);
    // Moving and scaling the features changes nothing; the order of the samples does not either, nor does f32 but for rounding.
    let moved = fisher_separability(&((&x * 3.0).unwrap() - 5.0).unwrap(), &y, 4, Scatter::Pooled, 0.2).unwrap();
    assert_all_close(&moved, &pooled);
    let half = fisher_separability(&x.to_dtype(DType::F32).unwrap(), &y, 4, Scatter::Pooled, 0.2).unwrap();
    assert_relative_eq!(half[0], pooled[0], max_relative = 1e-5);
}

#[test]
fn errors_say_what_and_where() {
    let x = Tensor::new(&[[1.0, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
    let text = |error: candle_margin_loss::Error| error.to_string();
    let has = |actual: String, expected: &str| assert!(actual.contains(expected), "{actual}");
    has(text(class_accuracy(&[0], &[0, 1], 2).unwrap_err()), "1 predictions for 2 labels");
    has(text(class_accuracy(&[0, 0], &[0, 2], 2).unwrap_err()), "label 2 of row 1 is not in 0..2");
    has(text(group_accuracy(&[], &[], &[Group::Many]).unwrap_err()), "no sample");
    has(text(group_means(&[1.0], &[]).unwrap_err()), "1 values for 0 groups");
    has(text(group_means(&[], &[]).unwrap_err()), "no class");
    has(text(angular_distances(&x, &x, &[0, 2]).unwrap_err()), "label 2 of row 1 is not in 0..2");
    has(text(angular_distances(&x, &x, &[0]).unwrap_err()), "2 features for 1 labels");
    has(text(angular_distances(&x, &x.t().unwrap().narrow(1, 0, 1).unwrap(), &[0, 0]).unwrap_err()), "of dimension 1");
    has(text(angular_distances(&x.flatten_all().unwrap(), &x, &[0]).unwrap_err()), "features must be of rank 2");
    has(text(angular_distances(&x.to_dtype(DType::U32).unwrap(), &x, &[0, 0]).unwrap_err()), "must be floats");
    let fisher = |x: &Tensor, y: &[u32], classes, gamma| {
        text(fisher_separability(x, y, classes, Scatter::Pair, gamma).unwrap_err())
    };
    has(fisher(&x, &[0, 0], 1, 0.0), "at least two classes");
    has(fisher(&x, &[0, 0], 2, 0.0), "class 1 has no sample");
    has(fisher(&x, &[0, 1], 2, 1.5), "in 0..=1, it is 1.5");
    has(fisher(&x, &[0, 1], 2, f64::NAN), "in 0..=1");
    has(fisher(&x, &[0, 1], 2, 0.5), "classes 0 and 1");
    let infinite = Tensor::new(&[[1.0], [f64::INFINITY]], &Device::Cpu).unwrap();
    has(fisher(&infinite, &[0, 1], 2, 0.5), "row 1 are not finite");
    // No variance where the means differ, whatever the shrinkage.
    let flat = Tensor::new(&[[0.0, 1.0], [0.0, -1.0], [1.0, 1.0], [1.0, -1.0]], &Device::Cpu).unwrap();
    has(fisher(&flat, &[0, 0, 1, 1], 2, 0.5), "do not vary");
}
