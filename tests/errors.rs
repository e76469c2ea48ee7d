//! Every bad input of the specification, and the text of its error.
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Tensor};
use candle_margin_loss::{
    AngleRange, ClassCounts, ClassWeights, CosineClassifier, InstanceGate, LossSchedule, Margin, MarginLoss,
    MarginLossBuilder, Prior, RowLoss, TargetGradient,
};
use common::device;

fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    // Candle's CUDA backend fills no empty tensor.
    if shape.contains(&0) { Tensor::zeros(shape, dtype, &device()) } else { Tensor::ones(shape, dtype, &device()) }
        .unwrap()
}

/// The error of a call on a loss over 3 classes, without its backtrace.
fn call(x: &Tensor, w: &Tensor, y: &Tensor, weights: Option<&Tensor>) -> String {
    let loss = MarginLoss::cosine_ce(3, 30.0).unwrap();
    let error = loss.output(x, w, y, weights).unwrap_err();
    let same = loss.loss_and_grads(x, w, y, weights).unwrap_err();
    let text = |error: candle_core::Error| error.to_string().lines().next().unwrap().to_string();
    let (error, same) = (text(error), text(same));
    assert_eq!(error, same, "on and off the tape");
    error
}

#[test]
fn tensors_that_do_not_fit() {
    use DType::{BF16, F16, F32, F64, I64, U32};
    let (x, w, y) = (zeros(&[2, 4], F32), zeros(&[3, 4], F32), zeros(&[2], U32));
    let cases = [
        (
            call(&zeros(&[2, 4, 1], F32), &w, &y, None),
            "margin loss: features X must be of shape (N, D), the shape is [2, 4, 1]",
        ),
        (call(&x, &zeros(&[3], F32), &y, None), "margin loss: weight W must be of shape (C, D), the shape is [3]"),
        (call(&x, &zeros(&[3, 5], F32), &y, None), "margin loss: features X [2, 4] and weight W [3, 5] differ in D"),
        (
            call(&zeros(&[2, 0], F32), &zeros(&[3, 0], F32), &y, None),
            "margin loss: features X have no dimension, their shape is [2, 0]",
        ),
        (call(&x, &zeros(&[4, 4], F32), &y, None), "margin loss: weight W has 4 rows, the loss is over 3 classes"),
        (call(&x, &zeros(&[0, 4], F32), &y, None), "margin loss: weight W has 0 rows, the loss is over 3 classes"),
        (call(&x, &w, &zeros(&[3], U32), None), "margin loss: labels y must be of shape (N) = (2), the shape is [3]"),
        (
            call(&x, &w, &zeros(&[2, 1], U32), None),
            "margin loss: labels y must be of shape (N) = (2), the shape is [2, 1]",
        ),
        (call(&x, &w, &zeros(&[2], F32), None), "margin loss: labels y must be u8, u32 or i64, they are f32"),
        (call(&zeros(&[2, 4], I64), &w, &y, None), "margin loss: features X must be f16, bf16, f32 or f64, not i64"),
        (call(&x, &zeros(&[3, 4], U32), &y, None), "margin loss: weight W must be f16, bf16, f32 or f64, not u32"),
        (
            call(&x, &zeros(&[3, 4], F64), &y, None),
            "margin loss: features X are f32 and weight W is f64: they must agree, or W be f32 beside f16 or bf16 features",
        ),
        (
            call(&zeros(&[2, 4], F16), &zeros(&[3, 4], BF16), &y, None),
            "margin loss: features X are f16 and weight W is bf16: they must agree, or W be f32 beside f16 or bf16 features",
        ),
        (
            call(&x, &w, &y, Some(&zeros(&[3], F32))),
            "margin loss: sample weights must be of shape (N) = (2), the shape is [3]",
        ),
        (
            call(&x, &w, &y, Some(&zeros(&[2], U32))),
            "margin loss: sample weights must be f16, bf16, f32 or f64, not u32",
        ),
        (
            call(&x, &w, &y, Some(&Tensor::new(&[1f32, f32::NAN], &device()).unwrap())),
            "margin loss: the sample weight of row 1 must be 0 or in 1e-15..=1e9, it is NaN",
        ),
        (
            call(&x, &w, &y, Some(&Tensor::new(&[-1f32, 1.0], &device()).unwrap())),
            "margin loss: the sample weight of row 0 must be 0 or in 1e-15..=1e9, it is -1",
        ),
        (
            call(&x, &w, &y, Some(&Tensor::new(&[1f32, 1e10], &device()).unwrap())),
            "margin loss: the sample weight of row 1 must be 0 or in 1e-15..=1e9, it is 10000000000",
        ),
        (
            call(&x, &w, &Tensor::new(&[0u8, 255], &device()).unwrap(), None),
            "margin loss: label 255 of row 1 is not in 0..3",
        ),
        (
            call(&x, &w, &Tensor::new(&[0u32, 3], &device()).unwrap(), None),
            "margin loss: label 3 of row 1 is not in 0..3",
        ),
        (
            call(&x, &w, &Tensor::new(&[-1i64, 2], &device()).unwrap(), None),
            "margin loss: label -1 of row 0 is not in 0..3",
        ),
        (
            call(&x, &w, &Tensor::new(&[0i64, i64::MAX], &device()).unwrap(), None),
            "margin loss: label 9223372036854775807 of row 1 is not in 0..3",
        ),
    ];
    for (actual, expected) in cases {
        assert_eq!(actual, expected);
    }
}

#[test]
fn the_ignore_index_is_named_beside_a_bad_label() {
    let loss = MarginLoss::builder(3).ignore_index(-100).build().unwrap();
    let labels = Tensor::new(&[-100i64, -1], &device()).unwrap();
    let error = loss.forward(&zeros(&[2, 4], DType::F32), &zeros(&[3, 4], DType::F32), &labels).unwrap_err();
    assert!(
        error.to_string().starts_with("margin loss: label -1 of row 1 is not in 0..3 and is not the ignore index -100")
    );
}

#[test]
fn labels_of_a_class_that_is_out() {
    let prior = Prior::LogPrior(vec![0.0, -1e300, 0.5]);
    let loss = MarginLoss::builder(3).prior(prior).build().unwrap();
    let labels = Tensor::new(&[0u32, 1], &device()).unwrap();
    let error = loss.forward(&zeros(&[2, 4], DType::F32), &zeros(&[3, 4], DType::F32), &labels).unwrap_err();
    let expected = "margin loss: label 1 of row 1 is a class that the prior takes out: its log prior is −∞";
    assert_eq!(error.to_string().lines().next().unwrap(), expected);
}

#[test]
fn logits_of_tensors_that_do_not_fit() {
    let loss = MarginLoss::cosine_ce(3, 30.0).unwrap();
    let call = |x: &Tensor, w: &Tensor| loss.logits(x, w).unwrap_err().to_string().lines().next().unwrap().to_string();
    let x = zeros(&[2, 4], DType::F32);
    assert_eq!(call(&x, &zeros(&[4, 4], DType::F32)), "margin loss: weight W has 4 rows, the loss is over 3 classes");
    assert_eq!(
        call(&x, &zeros(&[3, 4], DType::F64)),
        "margin loss: features X are f32 and weight W is f64: they must agree, or W be f32 beside f16 or bf16 features"
    );
}

#[test]
fn a_weight_that_changes_between_forward_and_backward() {
    if common::on_cuda() {
        println!("SKIPPED: on a CUDA device the change goes unseen, as the documentation says");
        return;
    }
    for recompute in [false, true] {
        let builder = MarginLoss::builder(3).recompute_gradients(recompute);
        let reduction =
            if recompute { candle_margin_loss::Reduction::Mean } else { candle_margin_loss::Reduction::None };
        let loss = builder.reduction(reduction).build().unwrap();
        let x = Tensor::randn(0f32, 1.0, (2, 4), &device()).unwrap();
        let w = candle_core::Var::randn(0f32, 1.0, (3, 4), &device()).unwrap();
        let value = loss.forward(&x, &w, &zeros(&[2], DType::U32)).unwrap().sum_all().unwrap();
        assert!(value.backward().is_ok());
        w.set(&Tensor::randn(0f32, 1.0, (3, 4), &device()).unwrap()).unwrap();
        let error = value.backward().unwrap_err().to_string();
        assert!(error.contains("X or W changed between forward and backward"), "{error}");
    }
}

#[test]
fn gradient_tensors_that_do_not_fit() {
    let loss = MarginLoss::cosine_ce(3, 30.0).unwrap();
    let (x, w) = (zeros(&[2, 4], DType::F32), zeros(&[3, 4], DType::F32));
    let y = zeros(&[2], DType::U32);
    let call = |dx: &Tensor, dw: &Tensor| {
        let error = loss.loss_and_grads_into(&x, &w, &y, None, dx, dw).unwrap_err();
        error.to_string().lines().next().unwrap().to_string()
    };
    let (dx, dw) = (zeros(&[2, 4], DType::F32), zeros(&[3, 4], DType::F32));
    assert_eq!(call(&zeros(&[2, 5], DType::F32), &dw), "margin loss: dX must be f32 [2, 4], it is f32 [2, 5]");
    assert_eq!(call(&dx, &zeros(&[3, 4], DType::F64)), "margin loss: dW must be f32 [3, 4], it is f64 [3, 4]");
    assert_eq!(call(&dx, &zeros(&[4, 3], DType::F32).t().unwrap()), "margin loss: dW must be contiguous");
    assert_eq!(call(&x, &dw), "margin loss: dX shares its storage with the features X");
    assert_eq!(call(&dx, &w), "margin loss: dW shares its storage with the weight W");
    let both = zeros(&[5, 4], DType::F32);
    let (first, second) = (both.narrow(0, 0, 2).unwrap(), both.narrow(0, 1, 3).unwrap());
    assert_eq!(call(&first, &second), "margin loss: dX overlaps dW");
}

#[test]
fn options_out_of_range_or_senseless() {
    let counts = ClassCounts::new(vec![9, 3, 1]).unwrap();
    let new = || MarginLoss::builder(3).counts(&counts);
    let dbm = |k, tau| new().margin(Margin::Dbm { k, tau });
    let per_class = |angular: &[f64], cosine: &[f64]| {
        new().margin(Margin::PerClass { m1: 1.0, angular: angular.to_vec(), cosine: cosine.to_vec() })
    };
    let cases: Vec<(MarginLossBuilder, &str)> = vec![
        (MarginLoss::builder(0), "margin loss: at least one class is needed, C is 0"),
        (MarginLoss::builder(4).counts(&counts), "class counts: 3 counts for 4 classes"),
        (new().scale(0.0), "margin loss: the scale s must be in 0 < s ≤ 1e9, it is 0"),
        (new().scale(f64::NAN), "margin loss: the scale s must be in 0 < s ≤ 1e9, it is NaN"),
        (
            new().scale(1e39),
            "margin loss: the scale s must be in 0 < s ≤ 1e9, it is 1000000000000000000000000000000000000000",
        ),
        (new().scale(f64::INFINITY), "margin loss: the scale s must be in 0 < s ≤ 1e9, it is inf"),
        (dbm(-0.1, 1.0), "margin loss: DBM: the margin scale K must be in 0..=3.141592653589793, it is -0.1"),
        (dbm(f64::NAN, 1.0), "margin loss: DBM: the margin scale K must be in 0..=3.141592653589793, it is NaN"),
        (dbm(0.1, -1.0), "margin loss: DBM: the frequency exponent τ must be finite and at least 0, it is -1"),
        (
            dbm(0.1, f64::INFINITY),
            "margin loss: DBM: the frequency exponent τ must be finite and at least 0, it is inf",
        ),
        (
            new().margin(Margin::ArcFace { m: 4.0 }),
            "margin loss: ArcFace: the angular margin must be in 0..=3.141592653589793, it is 4",
        ),
        (
            new().margin(Margin::CosFace { m: 2.5 }),
            "margin loss: CosFace: the cosine margin must be in 0..=2, it is 2.5",
        ),
        (new().margin(Margin::Ldam { max_m: -1.0 }), "margin loss: LDAM: the cosine margin must be in 0..=2, it is -1"),
        (
            new().margin(Margin::SphereFace { m: 0.5 }),
            "margin loss: SphereFace: the angle's factor must be in 1..=1000, it is 0.5",
        ),
        (
            new().margin(Margin::Combined { m1: 1.0, m2: 0.1, m3: f64::NAN }),
            "margin loss: the combined margin: the cosine margin must be in 0..=2, it is NaN",
        ),
        (per_class(&[0.1, 0.2], &[0.0; 3]), "margin loss: the per-class angular margin: 2 values for 3 classes"),
        (
            per_class(&[0.1, 0.2, 9.0], &[0.0; 3]),
            "margin loss: the per-class angular margin of class 2 must be in -3.141592653589793..=3.141592653589793, it is 9",
        ),
        (
            per_class(&[0.1; 3], &[0.0, f64::NAN, 0.0]),
            "margin loss: the per-class cosine margin of class 1 must be in -2..=2, it is NaN",
        ),
        (
            dbm(0.1, 1.0).instance_gate(InstanceGate::Positives).instance_strength(-1.0),
            "margin loss: the instance strength λ must be in 0..=1000000, it is -1",
        ),
        (
            new().prior(Prior::BalancedSoftmax { tau: f64::NAN }),
            "margin loss: the prior's exponent τ must be in 0..=1000000, it is NaN",
        ),
        (new().prior(Prior::LogPrior(vec![0.0; 2])), "margin loss: the log prior: 2 values for 3 classes"),
        (
            dbm(0.1, 1.0).instance_gate(InstanceGate::Positives).instance_strength(1e7),
            "margin loss: the instance strength λ must be in 0..=1000000, it is 10000000",
        ),
        (
            new().prior(Prior::LogPrior(vec![0.0, f64::INFINITY, 0.0])),
            "margin loss: the log prior of class 1 must be finite or −∞, it is inf",
        ),
        (
            new().prior(Prior::LogPrior(vec![f64::NEG_INFINITY; 3])),
            "margin loss: the log prior of every class is −∞, one at least must be finite",
        ),
        (
            new().prior(Prior::LogPrior(vec![0.0, f64::NEG_INFINITY, 0.0])).label_smoothing(0.1),
            "margin loss: label smoothing gives every class a share of the target, and the prior takes class 1 out",
        ),
        (
            new().class_weights(ClassWeights::ClassBalanced { beta: 1.0 }),
            "margin loss: the class-balanced β must be in 0 ≤ β < 1, it is 1",
        ),
        (
            new().class_weights(ClassWeights::ClassBalancedNormalized { beta: f64::NAN }),
            "margin loss: the class-balanced β must be in 0 ≤ β < 1, it is NaN",
        ),
        (
            new().class_weights(ClassWeights::PerClass(vec![1.0, -1.0, 1.0])),
            "margin loss: the class weight of class 1 must be 0 or in 1e-15..=1e9, it is -1",
        ),
        // A weighted mean divides by it: infinity.
        (
            new().class_weights(ClassWeights::PerClass(vec![1.0, 1e-20, 1.0])),
            "margin loss: the class weight of class 1 must be 0 or in 1e-15..=1e9, it is 0.00000000000000000001",
        ),
        (new().label_smoothing(1.0), "margin loss: the label smoothing α must be in 0 ≤ α < 1, it is 1"),
        (new().label_smoothing(f64::NAN), "margin loss: the label smoothing α must be in 0 ≤ α < 1, it is NaN"),
        (
            new().row_loss(RowLoss::Generalized { q: 0.0 }),
            "margin loss: generalised cross-entropy: q must be in 0.000001..=1, it is 0",
        ),
        // 1 − p^q has no digits there: NaN.
        (
            new().row_loss(RowLoss::Generalized { q: 1e-20 }),
            "margin loss: generalised cross-entropy: q must be in 0.000001..=1, it is 0.00000000000000000001",
        ),
        (
            new().row_loss(RowLoss::Focal { gamma: 2.0 }).label_smoothing(0.1),
            "margin loss: label smoothing goes with the cross-entropy alone, and another row loss is set",
        ),
        (new().row_loss(RowLoss::Focal { gamma: -1.0 }), "margin loss: the focal loss: γ must be in 0..=100, it is -1"),
        (new().row_loss(RowLoss::Poly1 { epsilon: -2.0 }), "margin loss: Poly-1: ε must be in -1..=1000000, it is -2"),
        (
            new().margin(Margin::SphereFace { m: 2.0 }).angle_range(AngleRange::Linear),
            "margin loss: the linear angle range is of an angle that is not multiplied, and m1 is 2",
        ),
        // Without the counts they need.
        (MarginLoss::builder(3).margin(Margin::Dbm { k: 0.1, tau: 1.0 }), "margin loss: DBM needs class counts"),
        (MarginLoss::builder(3).margin(Margin::Ldam { max_m: 0.5 }), "margin loss: LDAM needs class counts"),
        (
            MarginLoss::builder(3).prior(Prior::BalancedSoftmax { tau: 1.0 }),
            "margin loss: balanced softmax needs class counts",
        ),
        (
            MarginLoss::builder(3).class_weights(ClassWeights::ClassBalanced { beta: 0.9 }),
            "margin loss: class-balanced weighting needs class counts",
        ),
        // Together meaningless.
        (
            new().margin(Margin::CosFace { m: 0.3 }).instance_gate(InstanceGate::HardPositives),
            "margin loss: the instance gate scales an angular class margin, and CosFace has none",
        ),
        (
            per_class(&[0.0; 3], &[0.1; 3]).instance_gate(InstanceGate::Positives),
            "margin loss: the instance gate scales an angular class margin, and the per-class margin has none",
        ),
        (
            dbm(0.1, 1.0).instance_strength(2.0),
            "margin loss: an instance strength λ is set, but the instance gate is off",
        ),
        (
            dbm(0.1, 1.0).target_gradient(TargetGradient::DetachDifficulty),
            "margin loss: the difficulty can only be detached where an instance gate is on",
        ),
        (
            new().margin(Margin::Ldam { max_m: 0.5 }).angle_range(AngleRange::Monotone),
            "margin loss: an angle range is set, but LDAM does not change the angle",
        ),
    ];
    for (builder, expected) in cases {
        assert_eq!(builder.build().expect_err(expected).to_string(), expected);
    }
}

#[test]
fn presets_schedules_and_classifiers() {
    let counts = ClassCounts::new(vec![9, 3, 1]).unwrap();
    assert!(MarginLoss::dbm_bs(&counts, 4.0).unwrap_err().to_string().contains("the margin scale K"));
    assert!(MarginLoss::dbm_cb(&counts, 0.1, 2.0).unwrap_err().to_string().contains("class-balanced β"));
    let loss = || MarginLoss::cosine_ce(3, 30.0).unwrap();
    let text = |stages| LossSchedule::new(stages).unwrap_err().to_string();
    assert_eq!(text(vec![]), "margin loss: a schedule's first stage must start at epoch 0");
    assert_eq!(text(vec![(1, loss())]), "margin loss: a schedule's first stage must start at epoch 0");
    assert_eq!(
        text(vec![(0, loss()), (5, loss()), (5, loss())]),
        "margin loss: a schedule's stages must start at rising epochs, 5 comes after 5"
    );
    assert_eq!(
        text(vec![(0, loss()), (5, MarginLoss::cosine_ce(4, 30.0).unwrap())]),
        "margin loss: a schedule's losses must be over the same classes, there are 3 and 4"
    );
    let vars = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&vars, DType::F32, &device());
    let mut head = CosineClassifier::new(4, loss(), vb).unwrap();
    let error = head.set_loss(MarginLoss::cosine_ce(4, 30.0).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("cosine classifier: a loss over 4 classes for a head of 3"), "{error}");
}
