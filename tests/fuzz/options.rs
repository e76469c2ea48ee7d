//! Any combination of option values: refused in one sentence, or a loss whose values and gradients are finite.

use candle_core::{DType, Device, Tensor};
use candle_margin_loss::{
    AngleRange, ClassCounts, ClassWeights, InstanceGate, Margin, MarginLoss, Path, Prior, Reduction, RowLoss,
    TargetGradient,
};

use crate::driver::{self, Random};

const VALUES: [f64; 30] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    0.1,
    0.3,
    2.0,
    3.0,
    16.0,
    32.0,
    0.9999,
    0.999_999_999_999,
    1e-300,
    5e-324,
    1e-38,
    1e-10,
    1e3,
    1e6,
    1e9,
    1.1e9,
    1e18,
    1e38,
    1e300,
    f64::MAX,
    f64::MIN,
    std::f64::consts::PI,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
];

fn value(random: &mut Random) -> f64 {
    match random.below(3) {
        0 => *random.pick(&VALUES),
        1 => random.unit(),
        _ => (random.unit() - 0.3) * 10f64.powi(random.below(5) as i32),
    }
}

/// One a class, now and then one too few or too many.
fn table(classes: usize, random: &mut Random) -> Vec<f64> {
    let length = if random.below(20) == 0 { random.below(9) } else { classes };
    let wild = random.below(2) == 0;
    (0..length).map(|_| if wild { value(random) } else { random.unit() }).collect()
}

fn margin(classes: usize, random: &mut Random) -> Margin {
    let mut next = || value(random);
    let (a, b, c) = (next(), next(), next());
    match random.below(8) {
        0 => Margin::None,
        1 => Margin::SphereFace { m: a },
        2 => Margin::CosFace { m: a },
        3 => Margin::ArcFace { m: a },
        4 => Margin::Ldam { max_m: a },
        5 => Margin::Dbm { k: a, tau: b },
        6 => Margin::Combined { m1: a, m2: b, m3: c },
        _ => Margin::PerClass { m1: 1.0 + a.abs(), angular: table(classes, random), cosine: table(classes, random) },
    }
}

fn attempt(random: &mut Random, refused: &mut u64) {
    let classes = if random.below(50) == 0 { 0 } else { 1 + random.below(7) };
    let mut builder = MarginLoss::builder(classes);
    let mut log = format!("{classes} classes");
    macro_rules! maybe {
        ($option:ident, $value:expr) => {
            if random.below(2) == 0 {
                let value = $value;
                log += &format!(", {} {value:?}", stringify!($option));
                builder = builder.$option(value);
            }
        };
    }
    if random.below(4) > 0 {
        let length = if random.below(20) == 0 { 1 + random.below(9) } else { classes };
        let n: Vec<u64> = (0..length).map(|_| *random.pick(&[0, 1, 2, 7, 100, 1280, 1 << 40, u64::MAX / 8])).collect();
        log += &format!(", counts {n:?}");
        match ClassCounts::new(n) {
            Ok(counts) => builder = builder.counts(&counts),
            Err(error) => return driver::clear(&error.to_string()),
        }
    }
    maybe!(scale, value(random));
    maybe!(margin, margin(classes, random));
    maybe!(instance_gate, *random.pick(&[InstanceGate::Off, InstanceGate::Positives, InstanceGate::HardPositives]));
    if random.below(4) == 0 {
        maybe!(instance_strength, value(random));
        maybe!(
            angle_range,
            *random.pick(&[
                AngleRange::Wrap,
                AngleRange::Monotone,
                AngleRange::Linear,
                AngleRange::Easy,
                AngleRange::Clamp
            ])
        );
        maybe!(
            target_gradient,
            *random.pick(&[TargetGradient::Exact, TargetGradient::DetachDifficulty, TargetGradient::StraightThrough])
        );
    }
    maybe!(
        prior,
        match random.below(3) {
            0 => Prior::None,
            1 => Prior::BalancedSoftmax { tau: value(random) },
            _ => Prior::LogPrior(table(classes, random)),
        }
    );
    maybe!(
        class_weights,
        match random.below(4) {
            0 => ClassWeights::None,
            1 => ClassWeights::ClassBalanced { beta: value(random) },
            2 => ClassWeights::ClassBalancedNormalized { beta: value(random) },
            _ => ClassWeights::PerClass(table(classes, random)),
        }
    );
    maybe!(reduction, *random.pick(&[Reduction::None, Reduction::Sum, Reduction::Mean, Reduction::WeightedMean]));
    maybe!(ignore_index, *random.pick(&[-100, 0, 1, i64::MIN, i64::MAX]));
    if random.below(3) == 0 {
        maybe!(label_smoothing, value(random));
    }
    if random.below(3) == 0 {
        maybe!(
            row_loss,
            match random.below(4) {
                0 => RowLoss::CrossEntropy,
                1 => RowLoss::Focal { gamma: value(random) },
                2 => RowLoss::Poly1 { epsilon: value(random) },
                _ => RowLoss::Generalized { q: value(random) },
            }
        );
    }
    maybe!(path, *random.pick(&[Path::Auto, Path::Fused, Path::Composed]));
    maybe!(recompute_gradients, random.below(2) == 0);
    maybe!(workspace_bytes, *random.pick(&[0, 1, 1 << 20, 1 << 24]));
    let loss = match builder.build() {
        Ok(loss) => loss,
        Err(error) => {
            *refused += 1;
            return driver::clear(&error.to_string());
        }
    };
    let (n, d, device) = (random.below(6), 1 + random.below(5), Device::Cpu);
    let dtype = *random.pick(&[DType::F32, DType::F64]);
    let mut normal = |len: usize| -> Vec<f64> { (0..len).map(|_| 4.0 * (random.unit() - 0.5)).collect() };
    let (x, mut w) = (normal(n * d), normal(classes * d));
    if n > 0 && random.below(3) == 0 {
        w[..d].copy_from_slice(&x[..d]); // at a pole
        if random.below(2) == 0 {
            w[..d].iter_mut().for_each(|w| *w = -*w);
        }
    }
    let y: Vec<i64> = (0..n).map(|_| random.below(classes) as i64).collect();
    let weights: Vec<f64> = (0..n).map(|_| *random.pick(&[0.0, 1.0, 0.5, 1e9])).collect();
    let tensors = || -> candle_core::Result<_> {
        let x = Tensor::from_vec(x.clone(), (n, d), &device)?.to_dtype(dtype)?;
        let w = Tensor::from_vec(w.clone(), (classes, d), &device)?.to_dtype(dtype)?;
        Ok((x, w, Tensor::from_vec(y.clone(), n, &device)?, Tensor::from_vec(weights.clone(), n, &device)?))
    };
    let (x, w, y, weights) = tensors().unwrap();
    let weights = (random.below(2) == 0).then_some(&weights);
    let result = match loss.loss_and_grads(&x, &w, &y, weights) {
        Ok((out, dx, dw)) => vec![("loss", out.loss), ("per sample", out.per_sample), ("dX", dx), ("dW", dw)],
        Err(error) => return driver::clear(&error.to_string()),
    };
    for (part, tensor) in result {
        let values = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        assert!(values.iter().all(|v| v.is_finite()), "{log}; {n} x {d} {dtype:?}, labels {y}: {part} {values:?}");
    }
}

#[test]
fn any_options() {
    let mut refused = 0;
    driver::until_the_time_is_over("options", |random| attempt(random, &mut refused));
    println!("options: {refused} refused");
}
