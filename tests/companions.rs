//! The companion losses: the goldens of `python-ref/make_companions.py`, central differences, what they are invariant to, edges, errors, and that
//! descent descends. Each method in its plain form (balanced softmax) and its DBM form.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use candle_margin_loss::companions::{Bcl, Gml, GmlBatch, Ncl};
use candle_margin_loss::{
    ClassCounts, ClassWeights, InstanceGate, Margin, MarginLoss, MarginLossBuilder, Prior, Reduction,
};
use common::{Result, device, distance, flat, on_cuda, size};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use serde::Deserialize;

// ---- one problem of any method ----------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Method {
    Bcl,
    Ncl,
    Gml,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    Bs,
    Dbm,
}

const KINDS: [(Method, Form); 6] = [
    (Method::Bcl, Form::Bs),
    (Method::Bcl, Form::Dbm),
    (Method::Ncl, Form::Bs),
    (Method::Ncl, Form::Dbm),
    (Method::Gml, Form::Bs),
    (Method::Gml, Form::Dbm),
];

/// Inputs by the names of the goldens: matrices that are differentiated, and what is not.
#[derive(Debug, Clone)]
struct Problem {
    method: Method,
    form: Form,
    counts: Vec<u64>,
    scale: f64,
    options: BTreeMap<String, f64>,
    y: Tensor,
    tensors: BTreeMap<&'static str, Tensor>,
    key_labels: Option<Tensor>,
    ids: Option<(Tensor, Tensor)>,
    teacher: Option<Tensor>,
}

#[derive(Debug, Clone)]
struct Outcome {
    loss: f64,
    terms: Vec<f64>,
    gradients: BTreeMap<&'static str, Vec<f64>>,
}

impl Problem {
    fn margin_loss(&self) -> Result<MarginLoss> {
        let counts = ClassCounts::new(self.counts.clone())?;
        let base: MarginLossBuilder = MarginLoss::builder(counts.classes())
            .counts(&counts)
            .scale(self.scale)
            .prior(Prior::BalancedSoftmax { tau: 1.0 })
            .streaming(common::streaming());
        Ok(match self.form {
            Form::Bs => base,
            Form::Dbm => base.margin(Margin::Dbm { k: 0.3, tau: 1.0 }).instance_gate(InstanceGate::HardPositives),
        }
        .build()?)
    }

    fn option(&self, name: &str, default: f64) -> f64 {
        self.options.get(name).copied().unwrap_or(default)
    }

    /// The loss, and its terms before their weights.
    fn forward(&self, tensors: &BTreeMap<&'static str, Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        let loss = self.margin_loss()?;
        let (x, w) = (&tensors["x"], &tensors["w"]);
        Ok(match self.method {
            Method::Bcl => {
                let bcl = Bcl::builder(loss)
                    .temperature(self.option("temperature", 0.1))
                    .weights(self.option("classification", 2.0), self.option("contrastive", 0.6))
                    .build()?;
                let output = bcl.output(x, w, &tensors["embeddings"], &tensors["centres"], &self.y)?;
                (output.loss, vec![output.classification.loss, output.contrastive])
            }
            Method::Ncl => {
                let mut builder = Ncl::builder(loss)
                    .hard_weight(self.option("hard", 1.0))
                    .distillation_weights(self.option("distillation", 0.6), self.option("hard_distillation", 0.6))
                    .margined_distillation(self.option("margined_distillation", 0.0) != 0.0);
                if let Some(&k) = self.options.get("hard_classes") {
                    builder = builder.hard_classes(k as usize);
                }
                let mut experts = vec![(x, w)];
                for (x, w) in [("x2", "w2"), ("x3", "w3")] {
                    if let (Some(x), Some(w)) = (tensors.get(x), tensors.get(w)) {
                        experts.push((x, w));
                    }
                }
                let output = builder.build()?.output(&experts, &self.y)?;
                let losses: Vec<Tensor> = output.individual.iter().map(|output| output.loss.clone()).collect();
                let individual = Tensor::stack(&losses, 0)?.sum_all()?;
                (output.loss, vec![individual, output.hard, output.distillation, output.hard_distillation])
            }
            Method::Gml => {
                let gml = Gml::builder(loss)
                    .temperature(self.option("temperature", 0.1))
                    .distillation_temperature(self.option("distillation_temperature", 4.0))
                    .weights(
                        self.option("classification", 1.0),
                        self.option("contrastive", 1.0),
                        self.option("distillation", 1.0),
                    )
                    .build()?;
                let key_labels = self.key_labels.as_ref().ok_or("key labels")?;
                let mut batch = GmlBatch::new(x, w, &self.y, &tensors["queries"], &tensors["keys"], key_labels);
                if let (Some(log_t), Some((queries, keys))) = (tensors.get("log_temperature"), &self.ids) {
                    batch = batch.learned_temperature(log_t, queries, keys);
                }
                if let Some(teacher) = &self.teacher {
                    batch = batch.teacher(teacher);
                }
                let output = gml.output(&batch)?;
                let mut terms = vec![output.classification.loss, output.contrastive];
                terms.extend(output.distillation);
                (output.loss, terms)
            }
        })
    }

    fn run(&self) -> Result<Outcome> {
        let vars = self.vars()?;
        let tensors = vars.iter().map(|(name, var)| (*name, var.as_tensor().clone())).collect();
        let (loss, terms) = self.forward(&tensors)?;
        assert_eq!(loss.dims(), &[] as &[usize], "a scalar");
        let grads = loss.backward()?;
        let mut gradients = BTreeMap::new();
        for (name, var) in &vars {
            let gradient = grads.get(var).ok_or_else(|| format!("no gradient for {name}"))?;
            assert_eq!((gradient.dtype(), gradient.dims()), (var.dtype(), var.dims()), "{name}");
            gradients.insert(*name, flat(gradient));
        }
        Ok(Outcome { loss: flat(&loss)[0], terms: terms.iter().map(|term| flat(term)[0]).collect(), gradients })
    }

    fn vars(&self) -> Result<BTreeMap<&'static str, Var>> {
        Ok(self
            .tensors
            .iter()
            .map(|(name, tensor)| Ok((*name, Var::from_tensor(tensor)?)))
            .collect::<candle_core::Result<_>>()?)
    }

    fn value(&self, tensors: &BTreeMap<&'static str, Tensor>) -> Result<f64> {
        Ok(flat(&self.forward(tensors)?.0)[0])
    }

    fn to(&self, dtype: DType) -> Result<Self> {
        let to = |tensor: &Tensor| tensor.to_dtype(dtype);
        let tensors =
            self.tensors.iter().map(|(name, tensor)| Ok((*name, to(tensor)?))).collect::<candle_core::Result<_>>()?;
        Ok(Self { tensors, teacher: self.teacher.as_ref().map(to).transpose()?, ..self.clone() })
    }

    /// A random problem; rows easy, hard and anywhere. `everything`: a teacher, and a temperature to be learnt.
    fn random(kind: (Method, Form), n: usize, c: usize, seed: u64, everything: bool) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let device = device();
        let y: Vec<u32> = (0..n).map(|_| rng.random_range(0..c as u32)).collect();
        let mut normal = |rows: usize, columns: usize| -> Result<Tensor> {
            let values: Vec<f64> = (0..rows * columns).map(|_| StandardNormal.sample(&mut rng)).collect();
            Ok(Tensor::from_vec(values, (rows, columns), &device)?)
        };
        let labels = Tensor::new(y.as_slice(), &device)?;
        let mut tensors = BTreeMap::new();
        let mut expert = |x: &'static str, w: &'static str, d: usize| -> Result<()> {
            let centres = normal(c, d)?;
            let near = centres.index_select(&labels, 0)?;
            tensors.insert(x, (near + (normal(n, d)? * 1.2)?)?);
            tensors.insert(w, centres);
            Ok(())
        };
        expert("x", "w", 5)?;
        if kind.0 == Method::Ncl {
            expert("x2", "w2", 4)?;
            expert("x3", "w3", 5)?;
        }
        let (mut key_labels, mut ids, mut teacher) = (None, None, None);
        match kind.0 {
            Method::Bcl => {
                tensors.insert("embeddings", normal(2 * n, 3)?);
                tensors.insert("centres", normal(c, 3)?);
            }
            Method::Ncl => {}
            Method::Gml => {
                let m = 2 * c + 1;
                tensors.insert("queries", normal(n, 3)?);
                tensors.insert("keys", normal(m, 3)?);
                let of_keys: Vec<i64> = (0..m).map(|k| if k == 2 * c { -1 } else { (k % c) as i64 }).collect();
                key_labels = Some(Tensor::new(of_keys.as_slice(), &device)?);
                if everything {
                    teacher = Some((normal(n, c)? * 10.0)?);
                    tensors.insert("log_temperature", Tensor::new(&[-1.7f64], &device)?);
                    let queries = Tensor::arange(0u32, n as u32, &device)?;
                    ids = Some((queries, Tensor::arange(0i64, m as i64, &device)?));
                }
            }
        }
        let counts = (0..c as u64).map(|j| 1 + 300 / (1 + 3 * j)).collect();
        let (method, form) = kind;
        let options = BTreeMap::new();
        Ok(Self { method, form, counts, scale: 8.0, options, y: labels, tensors, key_labels, ids, teacher })
    }

    /// No tie or jump of an argmax or of the hard classes within a difference's step, and no pole.
    fn smooth(&self) -> Result<bool> {
        for (x, w) in [("x", "w"), ("x2", "w2"), ("x3", "w3")] {
            if let (Some(x), Some(w)) = (self.tensors.get(x), self.tensors.get(w)) {
                let loss = MarginLoss::cosine_ce(w.dim(0)?, 1.0)?;
                for mut row in loss.logits(x, w)?.to_vec2::<f64>()? {
                    row.sort_by(|a, b| b.total_cmp(a));
                    if row.iter().any(|c| c.abs() > 0.98) || row.windows(2).any(|pair| pair[0] - pair[1] < 1e-3) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}

// ---- goldens ----------------------------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Goldens {
    made_by: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    method: Method,
    form: Form,
    counts: Vec<u64>,
    options: BTreeMap<String, f64>,
    y: Vec<i64>,
    x: Vec<Vec<f64>>,
    w: Vec<Vec<f64>>,
    x2: Option<Vec<Vec<f64>>>,
    w2: Option<Vec<Vec<f64>>>,
    x3: Option<Vec<Vec<f64>>>,
    w3: Option<Vec<Vec<f64>>>,
    embeddings: Option<Vec<Vec<f64>>>,
    centres: Option<Vec<Vec<f64>>>,
    queries: Option<Vec<Vec<f64>>>,
    keys: Option<Vec<Vec<f64>>>,
    key_labels: Option<Vec<i64>>,
    log_temperature: Option<Vec<f64>>,
    query_ids: Option<Vec<i64>>,
    key_ids: Option<Vec<i64>>,
    teacher: Option<Vec<Vec<f64>>>,
    expected: Expected,
}

#[derive(Deserialize)]
struct Expected {
    loss: f64,
    terms: Vec<f64>,
    gradients: BTreeMap<String, Vec<f64>>,
}

impl Case {
    fn problem(&self) -> Result<Problem> {
        let device = device();
        let matrix = |rows: &[Vec<f64>]| Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &device);
        let integers = |values: &[i64]| Tensor::from_slice(values, values.len(), &device);
        let mut tensors = BTreeMap::from([("x", matrix(&self.x)?), ("w", matrix(&self.w)?)]);
        for (name, rows) in [
            ("x2", &self.x2),
            ("w2", &self.w2),
            ("x3", &self.x3),
            ("w3", &self.w3),
            ("embeddings", &self.embeddings),
            ("centres", &self.centres),
            ("queries", &self.queries),
            ("keys", &self.keys),
        ] {
            if let Some(rows) = rows {
                tensors.insert(name, matrix(rows)?);
            }
        }
        if let Some(value) = &self.log_temperature {
            tensors.insert("log_temperature", Tensor::new(value.as_slice(), &device)?);
        }
        let ids = match (&self.query_ids, &self.key_ids) {
            (Some(queries), Some(keys)) => Some((integers(queries)?, integers(keys)?)),
            _ => None,
        };
        Ok(Problem {
            method: self.method,
            form: self.form,
            counts: self.counts.clone(),
            scale: 32.0,
            options: self.options.clone(),
            y: integers(&self.y)?,
            tensors,
            key_labels: self.key_labels.as_deref().map(integers).transpose()?,
            ids,
            teacher: self.teacher.as_deref().map(matrix).transpose()?,
        })
    }
}

fn goldens() -> Result<Vec<Case>> {
    let goldens: Goldens = serde_json::from_str(include_str!("golden/companions.json"))?;
    assert!(goldens.cases.len() >= 60, "{} cases by {}", goldens.cases.len(), goldens.made_by);
    Ok(goldens.cases)
}

/// The largest error of a part, relative to the part's largest value.
fn worst(actual: &Outcome, expected: &Expected, least: f64) -> (f64, String) {
    let relative = |a: &[f64], e: &[f64]| distance(a, e) / size(e).max(least);
    let mut worst = (relative(&[actual.loss], &[expected.loss]), "loss".to_string());
    let mut see = |error: f64, part: String| {
        if error > worst.0 {
            worst = (error, part);
        }
    };
    assert_eq!(actual.terms.len(), expected.terms.len());
    see(distance(&actual.terms, &expected.terms) / size(&expected.terms).max(least), "terms".into());
    assert_eq!(actual.gradients.len(), expected.gradients.len());
    for (name, gradient) in &actual.gradients {
        see(relative(gradient, &expected.gradients[*name]), name.to_string());
    }
    worst
}

#[test]
fn f64_gives_every_golden_case() -> Result<()> {
    for case in goldens()? {
        let outcome = case.problem()?.run().map_err(|error| format!("{}: {error}", case.name))?;
        let (error, part) = worst(&outcome, &case.expected, 1e-2);
        assert!(error <= 1e-12, "{}: {part} is off by {error:e}", case.name);
    }
    Ok(())
}

#[test]
fn f32_gives_every_golden_case_to_its_rounding() -> Result<()> {
    for case in goldens()? {
        let outcome = case.problem()?.to(DType::F32)?.run()?;
        // z = s·c or q·k/t of a few tens to a hundred, so an error of e^z of some ε·100; the worst seen is 2e-6.
        let (error, part) = worst(&outcome, &case.expected, 1e-1);
        assert!(error <= 2e-5, "{}: {part} is off by {error:e}", case.name);
    }
    Ok(())
}

/// bf16 and f16 against f64 of what they can hold: the second term is computed in f32, so only gradients are rounded. And beside f32 centres,
/// which are not rounded.
#[test]
fn half_types_are_widened() -> Result<()> {
    for kind in KINDS {
        for (dtype, epsilon) in [(DType::BF16, 8e-3), (DType::F16, 1e-3)] {
            let problem = Problem::random(kind, 6, 5, 3, true)?;
            let half = problem.to(dtype)?;
            let mut mixed = half.clone();
            for name in ["w", "w2", "w3", "keys", "centres", "log_temperature"] {
                if let Some(tensor) = problem.tensors.get(name) {
                    mixed.tensors.insert(name, tensor.to_dtype(DType::F32)?);
                }
            }
            for given in [half, mixed] {
                let (actual, expected) = (given.run()?, given.to(DType::F64)?.run()?);
                for (a, e) in actual.terms.iter().zip(&expected.terms) {
                    assert!((a - e).abs() <= 2e-5 * e.max(1.0), "{kind:?} {dtype:?} {a} {e}");
                }
                for (name, gradient) in &actual.gradients {
                    let truth = &expected.gradients[name];
                    let error = distance(gradient, truth) / size(truth);
                    assert!(error <= 2.0 * epsilon, "{kind:?} {dtype:?} {name}: {error:e}");
                }
            }
        }
    }
    Ok(())
}

// ---- gradients --------------------------------------------------------------------------------------------------------------------------

#[test]
fn gradients_are_central_differences() -> Result<()> {
    let sizes: &[(usize, usize)] = if on_cuda() { &[(3, 3)] } else { &[(4, 3), (5, 7), (3, 1), (2, 2)] };
    let margined = ((Method::Ncl, Form::Dbm), &[("margined_distillation", 1.0)][..]);
    for (kind, options) in KINDS.into_iter().map(|kind| (kind, &[][..])).chain([margined]) {
        for &(n, c) in sizes {
            let problem = |seed| -> Result<Problem> {
                let mut problem = Problem::random(kind, n, c, seed, false)?;
                problem.options.extend(options.iter().map(|&(name, value)| (name.to_string(), value)));
                Ok(problem)
            };
            let problem = (0..1000)
                .map(problem)
                .find(|problem| problem.as_ref().is_ok_and(|problem| problem.smooth().unwrap_or(false)))
                .ok_or("no smooth problem")??;
            // With a learned temperature the gradient is none of the loss's own: see `learned_temperature`.
            let teacher =
                (problem.method == Method::Gml).then(|| Tensor::randn(0f64, 5.0, (n, c), &device())).transpose()?;
            let problem = Problem { teacher, ..problem };
            let outcome = problem.run()?;
            for (name, gradient) in &outcome.gradients {
                let tensor = &problem.tensors[name];
                let values = flat(tensor);
                for i in 0..values.len() {
                    let h = 1e-4 * values[i].abs().max(0.1);
                    let at = |offset: f64| -> Result<f64> {
                        let mut moved = values.clone();
                        moved[i] += offset;
                        let mut tensors = problem.tensors.clone();
                        tensors.insert(name, Tensor::from_vec(moved, tensor.dims(), &device())?);
                        problem.value(&tensors)
                    };
                    let numeric = (8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * h);
                    let error = (numeric - gradient[i]).abs();
                    let bound = 1e-6 * size(gradient).max(1e-2);
                    assert!(error <= bound, "{kind:?} {n} {c} d{name}[{i}]: {numeric} {}", gradient[i]);
                }
            }
        }
    }
    Ok(())
}

/// The temperature's loss trains the temperature alone, the other one all but it.
#[test]
fn learned_temperature() -> Result<()> {
    let learned = Problem::random((Method::Gml, Form::Bs), 5, 4, 1, true)?;
    let mut fixed = learned.clone();
    fixed.ids = None;
    fixed.tensors.remove("log_temperature");
    fixed.options.insert("temperature".into(), (-1.7f64).exp());
    let (actual, expected) = (learned.run()?, fixed.run()?);
    for (name, gradient) in &expected.gradients {
        assert!(distance(&actual.gradients[name], gradient) <= 1e-12 * size(gradient).max(1.0), "{name}");
    }
    let own = actual.terms[1] - expected.terms[1]; // the temperature's loss
    let h = 1e-5;
    let at = |log_t: f64| -> Result<f64> {
        let mut moved = learned.clone();
        moved.tensors.insert("log_temperature", Tensor::new(&[log_t], &device())?);
        let mut without = fixed.clone();
        without.options.insert("temperature".into(), log_t.exp());
        Ok(moved.run()?.terms[1] - without.run()?.terms[1])
    };
    let numeric = (at(-1.7 + h)? - at(-1.7 - h)?) / (2.0 * h);
    assert!(own > 0.0 && (numeric - actual.gradients["log_temperature"][0]).abs() < 1e-7);
    // Ids that never meet: nothing is left out, and both losses are the same.
    let (queries, keys) = learned.ids.clone().ok_or("ids")?;
    let apart = Problem { ids: Some((queries, (keys + 1000.0)?)), ..learned.clone() }.run()?;
    assert!((apart.terms[1] - 2.0 * expected.terms[1]).abs() < 1e-12, "{} {}", apart.terms[1], expected.terms[1]);
    assert!((own - expected.terms[1]).abs() > 1e-3, "own keys are left out");
    Ok(())
}

/// A tracked teacher is not trained, and tracked keys are.
#[test]
fn the_teacher_gets_no_gradient() -> Result<()> {
    let problem = Problem::random((Method::Gml, Form::Dbm), 4, 3, 6, true)?;
    let teacher = Var::from_tensor(problem.teacher.as_ref().ok_or("a teacher")?)?;
    let taught = Problem { teacher: Some(teacher.as_tensor().clone()), ..problem.clone() };
    let keys = Var::from_tensor(&problem.tensors["keys"])?;
    let mut tensors = problem.tensors.clone();
    tensors.insert("keys", keys.as_tensor().clone());
    let grads = taught.forward(&tensors)?.0.backward()?;
    assert!(grads.get(&teacher).is_none() && size(&flat(grads.get(&keys).ok_or("keys")?)) > 1e-3);
    Ok(())
}

// ---- properties -------------------------------------------------------------------------------------------------------------------------

#[test]
fn the_order_of_a_batch_does_not_matter() -> Result<()> {
    for kind in KINDS {
        let (n, c) = (6, 5);
        let problem = Problem::random(kind, n, c, 5, true)?;
        let before = problem.run()?;
        let order: Vec<u32> = vec![3, 0, 5, 1, 4, 2];
        let pick = |tensor: &Tensor, order: &[u32]| -> Result<Tensor> {
            Ok(tensor.index_select(&Tensor::new(order, &device())?, 0)?)
        };
        let mut moved = problem.clone();
        moved.y = pick(&problem.y, &order)?;
        let views: Vec<u32> = order.iter().copied().chain(order.iter().map(|i| i + n as u32)).collect();
        for name in ["x", "x2", "x3", "queries"] {
            if let Some(tensor) = problem.tensors.get(name) {
                moved.tensors.insert(name, pick(tensor, &order)?);
            }
        }
        if let Some(tensor) = problem.tensors.get("embeddings") {
            moved.tensors.insert("embeddings", pick(tensor, &views)?);
        }
        if let Some((queries, keys)) = &problem.ids {
            moved.ids = Some((pick(queries, &order)?, keys.clone()));
        }
        moved.teacher = problem.teacher.as_ref().map(|teacher| pick(teacher, &order)).transpose()?;
        let after = moved.run()?;
        assert!((before.loss - after.loss).abs() <= 1e-12 * before.loss, "{kind:?}");
        let gradient = &before.gradients["w"];
        assert!(distance(gradient, &after.gradients["w"]) <= 1e-11 * size(gradient), "{kind:?}");
    }
    Ok(())
}

/// Every matrix is normalised: the loss is that of its directions, and gradients are orthogonal to the rows.
#[test]
fn norms_do_not_matter() -> Result<()> {
    for kind in KINDS {
        let problem = Problem::random(kind, 5, 4, 6, true)?;
        let before = problem.run()?;
        for (name, tensor) in &problem.tensors {
            if *name == "log_temperature" {
                continue;
            }
            let norms: Vec<f64> = (0..tensor.dim(0)?).map(|i| 10f64.powi(i as i32 % 7 - 3)).collect();
            let norms = Tensor::from_vec(norms, (tensor.dim(0)?, 1), &device())?;
            let mut scaled = problem.clone();
            scaled.tensors.insert(name, tensor.broadcast_mul(&norms)?);
            let after = scaled.run()?;
            assert!((before.loss - after.loss).abs() <= 1e-11 * before.loss, "{kind:?} {name}");
            let d = tensor.dim(1)?;
            let rows = flat(tensor);
            let gradient = &before.gradients[name];
            for (g, r) in gradient.chunks(d).zip(rows.chunks(d)) {
                let along: f64 = g.iter().zip(r).map(|(g, r)| g * r).sum();
                assert!(along.abs() <= 1e-11 * size(gradient).max(1.0) * size(r), "{kind:?} {name}: {along:e}");
            }
        }
    }
    Ok(())
}

/// Equal, opposite and zero vectors; a class alone; C = 1: finite everywhere, in f32 too.
#[test]
fn edges_are_finite() -> Result<()> {
    for kind in KINDS {
        for (n, c) in [(1, 1), (1, 2), (4, 1), (4, 2), (2, 9)] {
            let base = Problem::random(kind, n, c, 7, true)?;
            let equal = |value: f64| -> Result<Problem> {
                let mut problem = base.clone();
                for (name, tensor) in base.tensors.iter().filter(|(name, _)| **name != "log_temperature") {
                    problem.tensors.insert(name, Tensor::full(value, tensor.dims(), &device())?);
                }
                Ok(problem)
            };
            let mut opposite = equal(1.0)?;
            for name in ["x", "embeddings", "queries"] {
                if let Some(tensor) = opposite.tensors.get(name) {
                    let negative = tensor.neg()?;
                    opposite.tensors.insert(name, negative);
                }
            }
            let mut cold = base.clone();
            cold.options.insert("temperature".into(), 1e-3);
            if cold.tensors.contains_key("log_temperature") {
                cold.tensors.insert("log_temperature", Tensor::new(&[-7.0f64], &device())?);
            }
            for (what, problem) in [
                ("random", &base),
                ("equal", &equal(2.0)?),
                ("zero", &equal(0.0)?),
                ("opposite", &opposite),
                ("cold", &cold),
            ] {
                for dtype in [DType::F64, DType::F32] {
                    let outcome = problem.to(dtype)?.run()?;
                    let finite = |values: &[f64]| values.iter().all(|value| value.is_finite());
                    assert!(outcome.loss.is_finite() && finite(&outcome.terms), "{kind:?} {n} {c} {what} {dtype:?}");
                    for (name, gradient) in &outcome.gradients {
                        assert!(finite(gradient), "{kind:?} {n} {c} {what} {dtype:?} d{name}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn what_the_terms_are_where_it_is_known() -> Result<()> {
    let device = device();
    let counts = ClassCounts::new(vec![90, 30, 9, 3, 1])?;
    let y = Tensor::new(&[0u32, 4, 2], &device)?;
    // BCL of points that are all one: ln C, whatever the classes' sizes.
    let point = Tensor::ones((6, 3), DType::F64, &device)?;
    let centres = Tensor::ones((5, 3), DType::F64, &device)?;
    let value = flat(&Bcl::bs(&counts)?.contrastive(&point, &centres, &y)?)[0];
    assert!((value - 5f64.ln()).abs() < 1e-12, "{value}");

    // NCL: k = C is the full form again; equal experts and a single one distil nothing; the target leads its hard classes.
    for form in [Form::Bs, Form::Dbm] {
        let mut problem = Problem::random((Method::Ncl, form), 6, 5, 2, false)?;
        problem.options.insert("hard_classes".into(), 5.0);
        let outcome = problem.run()?;
        assert!((outcome.terms[0] - outcome.terms[1]).abs() < 1e-10, "{form:?}: {:?}", outcome.terms);
        assert!((outcome.terms[2] - outcome.terms[3]).abs() < 1e-12 && outcome.terms[2] > 1e-3, "{:?}", outcome.terms);
        // A margin in the distillation is another distillation, and nothing else; without a margin it is the same.
        problem.options.insert("margined_distillation".into(), 1.0);
        let margined = problem.run()?;
        assert_eq!(margined.terms[..2], outcome.terms[..2]);
        let moved = (margined.terms[2] - outcome.terms[2]).abs();
        assert!(if form == Form::Bs { moved < 1e-12 } else { moved > 1e-3 }, "{form:?}: {moved}");
        let (x, w) = (&problem.tensors["x"], &problem.tensors["w"]);
        let ncl = Ncl::builder(problem.margin_loss()?).hard_classes(2).build()?;
        for experts in [vec![(x, w)], vec![(x, w), (x, w)]] {
            let output = ncl.output(&experts, &problem.y)?;
            assert_eq!((flat(&output.distillation)[0], flat(&output.hard_distillation)[0]), (0.0, 0.0));
            let cosines = MarginLoss::cosine_ce(5, 1.0)?.logits(x, w)?.to_vec2::<f64>()?;
            let chosen = output.hard_classes.to_vec2::<u32>()?;
            for ((chosen, cosines), y) in chosen.iter().zip(&cosines).zip(problem.y.to_vec1::<u32>()?) {
                let rival =
                    (0..5u32).filter(|&j| j != y).max_by(|&a, &b| cosines[a as usize].total_cmp(&cosines[b as usize]));
                assert_eq!(chosen, &vec![y, rival.ok_or("a rival")?]);
            }
        }
    }
    assert_eq!(Ncl::bs(&ClassCounts::exponential(500, 100, 100.0)?)?.hard_classes(), 30);

    // GML with a key a class: a softmax over prototypes; a key that is there twice counts once.
    let (queries, keys) = (Tensor::randn(0f64, 1., (3, 4), &device)?, Tensor::randn(0f64, 1., (5, 4), &device)?);
    let (x, w) = (Tensor::randn(0f64, 1., (3, 2), &device)?, Tensor::randn(0f64, 1., (5, 2), &device)?);
    let gml = Gml::bs(&counts)?;
    let of = |keys: &Tensor, key_labels: &[i64]| -> Result<f64> {
        let key_labels = Tensor::new(key_labels, &device)?;
        Ok(flat(&gml.contrastive(&GmlBatch::new(&x, &w, &y, &queries, keys, &key_labels))?)[0])
    };
    let prototypes =
        MarginLoss::builder(5).counts(&counts).prior(Prior::BalancedSoftmax { tau: 1.0 }).scale(10.0).build()?;
    let expected = flat(&prototypes.forward(&queries, &keys, &y)?)[0];
    assert!((of(&keys, &[0, 1, 2, 3, 4])? - expected).abs() < 1e-12);
    let twice = Tensor::cat(&[&keys, &keys.narrow(0, 1, 2)?, &keys], 0)?;
    let labels = [0, 1, 2, 3, 4, 1, 2, -1, 5, 77, -3, i64::MAX];
    assert!((of(&twice, &labels)? - expected).abs() < 1e-12, "and empty slots are none");
    Ok(())
}

/// With every class hard, NCL's composed second loss is the op's own, for every family, gate, angle range and prior that NCL takes.
#[test]
fn ncl_knows_every_margin() -> Result<()> {
    let problem = Problem::random((Method::Ncl, Form::Bs), 12, 6, 8, false)?;
    let (x, w) = (&problem.tensors["x"], &problem.tensors["w"]);
    let mut taken = 0;
    for (name, builder) in common::builders(6) {
        let loss = builder.build()?;
        let takes_row_margins = loss.takes_row_margins();
        let Ok(ncl) = Ncl::builder(loss).hard_classes(6).build() else { continue };
        assert!(!takes_row_margins, "{name}: no call of NCL's brings them");
        let vars = [Var::from_tensor(x)?, Var::from_tensor(w)?];
        let output = ncl.output(&[(vars[0].as_tensor(), vars[1].as_tensor())], &problem.y)?;
        let (hard, all) = (flat(&output.hard)[0], flat(&output.individual[0].loss)[0]);
        assert!((hard - all).abs() <= 1e-9 * all.max(1.0), "{name}: {hard} {all}");
        let (hard, all) = (output.hard.backward()?, output.individual[0].loss.backward()?);
        for var in &vars {
            let (hard, all) = (hard.get(var).ok_or("a gradient")?, all.get(var).ok_or("a gradient")?);
            let error = distance(&flat(hard), &flat(all));
            assert!(error <= 1e-8 * size(&flat(all)).max(1e-3), "{name}: {error:e}");
        }
        taken += 1;
    }
    assert!(taken >= 18, "{taken}");
    Ok(())
}

/// NaN in one row of the features makes the loss NaN and no panic.
#[test]
fn nan_passes() -> Result<()> {
    for kind in KINDS {
        for name in ["x", "embeddings", "queries"] {
            let mut problem = Problem::random(kind, 4, 3, 9, true)?;
            if let Some(tensor) = problem.tensors.get(name) {
                let mut values = flat(tensor);
                values[1] = f64::NAN;
                let tensor = Tensor::from_vec(values, tensor.dims(), &device())?;
                problem.tensors.insert(name, tensor);
                assert!(problem.run()?.loss.is_nan(), "{kind:?} {name}");
            }
        }
    }
    Ok(())
}

/// A class whose centre is NaN is nobody's hard class, and Candle's sort, which wants an order, gets one.
#[test]
fn nan_is_mined_last() -> Result<()> {
    let problem = Problem::random((Method::Ncl, Form::Dbm), 5, 100, 9, false)?;
    let mut rows = problem.tensors["w"].to_vec2::<f64>()?;
    rows.iter_mut().step_by(3).for_each(|row| row[0] = f64::NAN);
    let w = Tensor::new(rows, &device())?;
    let output = Ncl::builder(problem.margin_loss()?).build()?.output(&[(&problem.tensors["x"], &w)], &problem.y)?;
    let labels = problem.y.to_vec1::<u32>()?;
    for (row, label) in output.hard_classes.to_vec2::<u32>()?.into_iter().zip(labels) {
        assert_eq!((row.len(), row[0]), (30, label));
        assert!(row[1..].iter().all(|class| class % 3 != 0 && *class != label), "{row:?}");
    }
    Ok(())
}

// ---- training ---------------------------------------------------------------------------------------------------------------------------

#[test]
fn descent_descends() -> Result<()> {
    let steps = if on_cuda() { 5 } else { 25 };
    for kind in KINDS {
        let problem = Problem::random(kind, 8, 4, 11, true)?.to(DType::F32)?;
        let vars = problem.vars()?;
        let (mut first, mut last) = (None, f64::NAN);
        for _ in 0..=steps {
            let tensors = vars.iter().map(|(name, var)| (*name, var.as_tensor().clone())).collect();
            let (loss, _) = problem.forward(&tensors)?;
            last = flat(&loss)[0];
            first.get_or_insert(last);
            let grads = loss.backward()?;
            for var in vars.values() {
                let gradient = grads.get(var).ok_or("a gradient")?;
                var.set(&(var.as_tensor() - (gradient * 0.05)?)?.detach())?;
            }
        }
        let first = first.ok_or("a loss")?;
        assert!(last < first * if on_cuda() { 0.98 } else { 0.8 }, "{kind:?}: {first} {last}");
    }
    Ok(())
}

// ---- presets and errors -----------------------------------------------------------------------------------------------------------------

/// `bs` and `dbm` are the builders' defaults with the losses that the names say.
#[test]
fn presets() -> Result<()> {
    let counts = ClassCounts::new(vec![90, 30, 9])?;
    for form in [Form::Bs, Form::Dbm] {
        let scaled = |method| -> Result<Problem> {
            let problem = Problem::random((method, form), 5, 3, 4, false)?;
            Ok(Problem { counts: counts.as_slice().to_vec(), scale: 32.0, ..problem })
        };
        let problem = scaled(Method::Bcl)?;
        let bcl = if form == Form::Bs { Bcl::bs(&counts)? } else { Bcl::dbm(&counts, 0.3)? };
        let t = &problem.tensors;
        let preset = bcl.forward(&t["x"], &t["w"], &t["embeddings"], &t["centres"], &problem.y)?;
        assert_eq!(flat(&preset)[0], problem.value(t)?);
        let problem = scaled(Method::Ncl)?;
        let ncl = if form == Form::Bs { Ncl::bs(&counts)? } else { Ncl::dbm(&counts, 0.3)? };
        let t = &problem.tensors;
        let preset = ncl.forward(&[(&t["x"], &t["w"]), (&t["x2"], &t["w2"]), (&t["x3"], &t["w3"])], &problem.y)?;
        assert_eq!(flat(&preset)[0], problem.value(t)?);
        let problem = scaled(Method::Gml)?;
        let gml = if form == Form::Bs { Gml::bs(&counts)? } else { Gml::dbm(&counts, 0.3)? };
        let t = &problem.tensors;
        let key_labels = problem.key_labels.as_ref().ok_or("key labels")?;
        let preset =
            gml.forward(&GmlBatch::new(&t["x"], &t["w"], &problem.y, &t["queries"], &t["keys"], key_labels))?;
        assert_eq!(flat(&preset)[0], problem.value(t)?);
    }
    Ok(())
}

fn first_line(error: impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

#[test]
fn options_that_cannot_be() -> Result<()> {
    let counts = ClassCounts::new(vec![9, 3, 1])?;
    let plain = || MarginLoss::builder(3).counts(&counts);
    let sum = plain().reduction(Reduction::Sum).build()?;
    let ignoring = plain().ignore_index(-1).build()?;
    let weighted = plain().class_weights(ClassWeights::ClassBalanced { beta: 0.9 }).build()?;
    let smoothed = plain().label_smoothing(0.1).build()?;
    let loss = plain().build()?;
    let no_weights = "companion loss: NCL: the classification loss must have no class weights and no label smoothing";
    let cases = [
        (
            Bcl::builder(sum.clone()).build().map(drop),
            "companion loss: BCL: the classification loss must reduce by Mean, not Sum",
        ),
        (
            Ncl::builder(ignoring.clone()).build().map(drop),
            "companion loss: NCL: the classification loss must ignore no row, it ignores label -1",
        ),
        (
            Gml::builder(sum).build().map(drop),
            "companion loss: GML: the classification loss must reduce by Mean, not Sum",
        ),
        (
            Bcl::builder(loss.clone()).temperature(0.0).build().map(drop),
            "companion loss: BCL: the temperature must be positive and finite, it is 0",
        ),
        (
            Bcl::builder(loss.clone()).weights(1.0, -0.5).build().map(drop),
            "companion loss: BCL: the weight of the contrastive term must be finite and not negative, it is -0.5",
        ),
        (
            Bcl::builder(loss.clone()).weights(f64::NAN, 0.5).build().map(drop),
            "companion loss: BCL: the weight of the classification term must be finite and not negative, it is NaN",
        ),
        (Ncl::builder(weighted).build().map(drop), no_weights),
        (Ncl::builder(smoothed).build().map(drop), no_weights),
        (
            Ncl::builder(loss.clone()).hard_classes(4).build().map(drop),
            "companion loss: NCL: k hard classes of 3 were asked for, k is 4",
        ),
        (
            Ncl::builder(loss.clone()).hard_classes(0).build().map(drop),
            "companion loss: NCL: k hard classes of 3 were asked for, k is 0",
        ),
        (
            Ncl::builder(loss.clone()).distillation_weights(0.6, f64::INFINITY).build().map(drop),
            "companion loss: NCL: the weight of the hard classes' distillation must be finite and not negative, it is inf",
        ),
        (
            Gml::builder(loss.clone()).distillation_temperature(-4.0).build().map(drop),
            "companion loss: GML: the distillation's temperature must be positive and finite, it is -4",
        ),
        (
            Gml::builder(loss).temperature(f64::INFINITY).build().map(drop),
            "companion loss: GML: the temperature must be positive and finite, it is inf",
        ),
    ];
    for (result, text) in cases {
        assert_eq!(first_line(result.err().ok_or(text)?), text);
    }
    Ok(())
}

#[test]
fn tensors_that_do_not_fit() -> Result<()> {
    use DType::{F32, F64, I64, U8, U32};
    let ones = |shape: &[usize], dtype| Tensor::ones(shape, dtype, &device()).unwrap();
    let none = |shape: &[usize]| Tensor::zeros(shape, F32, &device()).unwrap();
    let counts = ClassCounts::new(vec![9, 3, 1])?;
    let (bcl, ncl, gml) = (Bcl::bs(&counts)?, Ncl::bs(&counts)?, Gml::bs(&counts)?);
    let (x, w, y) = (ones(&[2, 4], F32), ones(&[3, 4], F32), ones(&[2], U32));
    let (z, c) = (ones(&[4, 5], F32), ones(&[3, 5], F32));
    let of_bcl = |z: &Tensor, c: &Tensor, y: &Tensor| first_line(bcl.contrastive(z, c, y).unwrap_err());
    let of_ncl = |experts: &[(&Tensor, &Tensor)], y: &Tensor| first_line(ncl.output(experts, y).unwrap_err());
    let (q, k, l) = (ones(&[2, 5], F32), ones(&[6, 5], F32), ones(&[6], U32));
    let of_gml =
        |q: &Tensor, k: &Tensor, l: &Tensor| first_line(gml.output(&GmlBatch::new(&x, &w, &y, q, k, l)).unwrap_err());
    let learned = |t: &Tensor, a: &Tensor, b: &Tensor| {
        let batch = GmlBatch::new(&x, &w, &y, &q, &k, &l).learned_temperature(t, a, b);
        first_line(gml.output(&batch).unwrap_err())
    };
    let taught = |t: &Tensor| {
        let batch = GmlBatch::new(&x, &w, &y, &q, &k, &l).teacher(t);
        first_line(gml.output(&batch).unwrap_err())
    };
    let mut cases = vec![
        (of_bcl(&ones(&[4], F32), &c, &y), "BCL: embeddings must be of shape (2N, E), the shape is [4]"),
        (of_bcl(&ones(&[3, 5], F32), &c, &y), "BCL: embeddings (2N, E) are of two views, 3 rows are not even"),
        (of_bcl(&none(&[0, 5]), &c, &none(&[0])), "BCL: embeddings (2N, E) must not be empty, the shape is [0, 5]"),
        (of_bcl(&z, &ones(&[3, 4], F32), &y), "BCL: embeddings [4, 5] and centres [3, 4] differ in E"),
        (of_bcl(&z, &ones(&[2, 5], F32), &y), "BCL: centres have 2 rows, the loss is over 3 classes"),
        (of_bcl(&z, &ones(&[3, 5], F64), &y), "BCL: embeddings are f32 and centres f64: f64 goes with f64 only"),
        (of_bcl(&ones(&[4, 5], U32), &c, &y), "BCL: embeddings must be f16, bf16, f32 or f64, not u32"),
        (of_bcl(&z, &c, &ones(&[4], U32)), "BCL: labels must be of shape (2), the shape is [4]"),
        (of_bcl(&z, &c, &ones(&[2], U8)), "BCL: labels must be u32 or i64, not u8"),
        (of_ncl(&[], &y), "NCL: at least one expert is needed"),
        (of_ncl(&[(&none(&[0, 4]), &w)], &none(&[0])), "NCL: features (N, D) must not be empty, the shape is [0, 4]"),
        (
            of_ncl(&[(&x, &w), (&ones(&[2, 4], F64), &ones(&[3, 4], F64))], &y),
            "NCL: the first expert's features are f32 and another expert's f64: f64 goes with f64 only",
        ),
        (of_gml(&q, &ones(&[6, 4], F32), &l), "GML: queries [2, 5] and keys [6, 4] differ in E"),
        (of_gml(&q, &none(&[0, 5]), &none(&[0])), "GML: keys (M, E) must not be empty, the shape is [0, 5]"),
        (of_gml(&q, &k, &ones(&[5], U32)), "GML: key labels must be of shape (6), the shape is [5]"),
        (of_gml(&ones(&[3, 5], F32), &k, &l), "GML: labels must be of shape (3), the shape is [2]"),
        (
            of_gml(&ones(&[2, 5], F64), &ones(&[6, 5], F64), &l),
            "GML: features are f32 and queries f64: f64 goes with f64 only",
        ),
        (learned(&ones(&[2], F32), &y, &l), "GML: the log temperature must be one value, its shape is [2]"),
        (learned(&ones(&[1], F32), &y, &y), "GML: key ids must be of shape (6), the shape is [2]"),
        (learned(&ones(&[1], F32), &ones(&[2], F32), &l), "GML: query ids must be u32 or i64, not f32"),
        (taught(&ones(&[2, 4], F32)), "GML: teacher logits must be of shape (N, C) = (2, 3), the shape is [2, 4]"),
        (taught(&ones(&[2, 3], F64)), "GML: features are f32 and teacher logits f64: f64 goes with f64 only"),
    ];
    let bad = Tensor::new(&[1i64, 3], &device())?;
    assert_eq!(bad.dtype(), I64);
    let label = "margin loss: label 3 of row 1 is not in 0..3";
    let full = |error: candle_core::Error| first_line(error);
    assert_eq!(full(bcl.output(&x, &w, &z, &c, &bad).unwrap_err()), label);
    assert_eq!(of_ncl(&[(&x, &w)], &bad), label);
    assert_eq!(full(gml.output(&GmlBatch::new(&x, &w, &bad, &q, &k, &l)).unwrap_err()), label);
    if on_cuda() {
        let many = Ncl::bs(&ClassCounts::new(vec![1; 8193])?)?;
        let error = many.output(&[(&ones(&[1, 2], F32), &ones(&[8193, 2], F32))], &y.narrow(0, 0, 1)?).unwrap_err();
        let expected = "NCL: hard classes are mined among at most 8192 on a CUDA device, there are 8193";
        cases.push((first_line(error), expected));
    } else {
        assert_eq!(of_bcl(&z, &c, &bad), label);
        let other = of_ncl(&[(&x, &w), (&ones(&[3, 4], F32), &w)], &y);
        cases.push((other, "margin loss: labels y must be of shape (N) = (3), the shape is [2]"));
    }
    for (actual, expected) in cases {
        let expected =
            if expected.starts_with("margin") { expected.into() } else { format!("companion loss: {expected}") };
        assert_eq!(actual, expected);
    }
    Ok(())
}
