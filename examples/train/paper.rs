//! The accuracies that the paper gives (Son et al., AAAI 2025, arXiv 2412.15477), to stand beside one's own.

use crate::methods::Method;

/// A data set of the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    Cifar10,
    Cifar100,
    ImagenetLt,
    Inaturalist2018,
}

/// Test accuracy in %: all, many, medium, few; what the paper does not give is not there.
pub type Accuracy = [Option<f64>; 4];

/// A row of Table 2, ResNet-32: CIFAR-10-LT at imbalance factors 100, 50 and 10, CIFAR-100-LT at the same, and at 100 its Many, Medium and Few.
const TABLE_2: [(Method, [f64; 9]); 14] = [
    (Method::Ce, [78.48, 82.73, 89.91, 44.60, 48.75, 61.98, 73.03, 45.37, 10.53]),
    (Method::Ldam, [79.92, 83.84, 90.54, 45.25, 50.16, 62.86, 75.31, 44.00, 11.63]),
    (Method::DbmCe, [80.84, 84.12, 90.95, 46.53, 51.13, 63.18, 73.89, 46.17, 15.03]),
    (Method::CeDrw, [82.24, 85.05, 90.94, 48.28, 53.89, 64.25, 65.89, 50.74, 24.87]),
    (Method::LdamDrw, [82.60, 85.36, 91.22, 48.99, 54.27, 64.58, 66.09, 50.83, 26.90]),
    (Method::DbmDrw, [82.82, 85.83, 91.55, 49.41, 54.69, 64.75, 63.23, 52.66, 29.50]),
    (Method::Bs, [83.57, 86.45, 91.26, 49.35, 54.79, 63.93, 65.77, 50.14, 29.27]),
    (Method::DbmBs, [84.60, 87.06, 91.42, 51.30, 55.84, 65.22, 67.29, 50.80, 33.23]),
    (Method::Bcl, [82.95, 86.76, 91.57, 50.23, 55.35, 64.98, 67.14, 51.31, 29.23]),
    (Method::DbmBcl, [84.60, 87.16, 91.69, 51.66, 55.98, 65.25, 67.91, 51.91, 32.40]),
    (Method::Gml, [85.19, 88.07, 92.11, 53.12, 58.17, 66.93, 71.60, 54.57, 28.20]),
    (Method::DbmGml, [85.30, 88.35, 92.59, 53.70, 58.41, 67.15, 72.34, 54.89, 30.57]),
    (Method::Ncl, [87.37, 89.89, 93.15, 56.68, 61.65, 69.46, 73.94, 56.97, 36.20]),
    (Method::DbmNcl, [87.53, 89.90, 93.19, 57.48, 62.01, 69.75, 71.49, 59.06, 39.30]),
];

/// The plain cosine heads of Table 5: CIFAR-100-LT at 100.
const TABLE_5: [(Method, f64); 2] = [(Method::CosineCe, 44.29), (Method::CosineBs, 49.84)];

/// All classes of Table 3 (ImageNet-LT) and Table 4 (iNaturalist 2018), ResNet-50.
const TABLES_3_AND_4: [(Method, Option<f64>, f64); 4] = [
    (Method::Bcl, Some(56.0), 71.0),
    (Method::DbmBcl, Some(56.3), 71.9),
    (Method::Gml, None, 71.2),
    (Method::DbmGml, Some(57.4), 72.0),
];

/// What the paper gives for a method at an imbalance factor; lists have their own.
pub fn accuracy(set: Set, imbalance_factor: f64, method: Method) -> Option<Accuracy> {
    let at = || [100.0, 50.0, 10.0].iter().position(|&factor| factor == imbalance_factor);
    let row = || TABLE_2.iter().find(|(of, _)| *of == method).map(|(_, row)| row);
    let all = |all: f64| [Some(all), None, None, None];
    match set {
        Set::Cifar10 => Some(all(row()?[at()?])),
        Set::Cifar100 => match (row(), at()?) {
            (Some(row), 0) => Some([Some(row[3]), Some(row[6]), Some(row[7]), Some(row[8])]),
            (Some(row), at) => Some(all(row[3 + at])),
            (None, 0) => TABLE_5.iter().find(|(of, _)| *of == method).map(|(_, value)| all(*value)),
            (None, _) => None,
        },
        Set::ImagenetLt | Set::Inaturalist2018 => {
            let &(_, imagenet, inaturalist) = TABLES_3_AND_4.iter().find(|(of, _, _)| *of == method)?;
            if set == Set::ImagenetLt { imagenet.map(all) } else { Some(all(inaturalist)) }
        }
    }
}

/// How the paper's figures differ from a run of this program.
pub fn note(set: Set) -> &'static str {
    match set {
        Set::Cifar10 | Set::Cifar100 => {
            "Paper: its Tables 2 and 5, ResNet-32; the authors' code reports the best epoch, the rows here the last. Its NCL has a momentum contrast besides."
        }
        Set::ImagenetLt => "Paper: its Table 3, ResNet-50, 90 epochs.",
        Set::Inaturalist2018 => "Paper: its Table 4, ResNet-50, 100 epochs.",
    }
}
