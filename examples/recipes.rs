//! Recipes, each a small function that runs: an existing loop, gradient accumulation, f16 with loss scaling, frozen centres, saving and taking up
//! again, a schedule by epoch, mixup, a linear head without its logits.
//!
//!     cargo run --release --example recipes

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_margin_loss::{ClassCounts, LossSchedule, MarginLoss, linear_cross_entropy, margin_cross_entropy};
use candle_nn::{AdamW, Linear, Module, Optimizer, ParamsAdamW, SGD, VarBuilder, VarMap};

const CLASSES: usize = 5;
const INPUTS: usize = 12;
const FEATURES: usize = 16;

/// A batch around class centres: inputs (N, 12), labels (N).
fn batch(n: usize, seed: usize) -> Result<(Tensor, Tensor)> {
    let labels: Vec<u32> = (0..n).map(|i| ((i * 7 + seed) % CLASSES) as u32).collect();
    let value = |i: usize, k: usize| {
        let noise = ((i * 131 + k * 17 + seed * 7919) % 101) as f32 / 101.0 - 0.5;
        noise + if k % CLASSES == labels[i] as usize { 1.0 } else { 0.0 }
    };
    let inputs: Vec<f32> = (0..n * INPUTS).map(|at| value(at / INPUTS, at % INPUTS)).collect();
    Ok((Tensor::from_vec(inputs, (n, INPUTS), &Device::Cpu)?, Tensor::from_vec(labels, n, &Device::Cpu)?))
}

/// A backbone and a bias-free head, as a plain classifier has them; new ones begin with the same numbers in every run.
fn model(vars: &VarMap) -> Result<(Linear, Linear)> {
    let is_new = vars.all_vars().is_empty();
    let vb = VarBuilder::from_varmap(vars, DType::F32, &Device::Cpu);
    let backbone = candle_nn::linear(INPUTS, FEATURES, vb.pp("backbone"))?;
    let head = candle_nn::linear_no_bias(FEATURES, CLASSES, vb.pp("head"))?;
    if is_new {
        for (name, var) in vars.data().lock().expect("no thread has panicked").iter() {
            let value = |i: usize| ((i * 7919 + name.len() * 104_729 + i * i * 31) % 1009) as f32 / 1009.0 - 0.5;
            let values: Vec<f32> = (0..var.elem_count()).map(value).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
        }
    }
    Ok((backbone, head))
}

/// A loop that had `candle_nn::loss::cross_entropy`: one line changes.
fn existing_loop() -> Result<(f32, f32)> {
    let vars = VarMap::new();
    let (backbone, head) = model(&vars)?;
    let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 0.02, ..Default::default() })?;
    let margin = MarginLoss::arc_face(CLASSES, 16.0, 0.2)?;
    let mut losses = Vec::new();
    for step in 0..60 {
        let (inputs, labels) = batch(32, step)?;
        let features = backbone.forward(&inputs)?.relu()?;
        // let loss = candle_nn::loss::cross_entropy(&head.forward(&features)?, &labels)?;
        let loss = margin_cross_entropy(&features, head.weight(), &labels, &margin)?;
        optimizer.backward_step(&loss)?;
        losses.push(loss.to_scalar::<f32>()?);
    }
    Ok((losses[0], losses[losses.len() - 1]))
}

/// A linear head with a bias and plain cross-entropy, without its (N, C) logits.
fn linear_head() -> Result<(f32, f32)> {
    let vars = VarMap::new();
    let (backbone, head) = model(&vars)?;
    let bias = Var::zeros(CLASSES, DType::F32, &Device::Cpu)?;
    let head = Linear::new(head.weight().clone(), Some(bias.as_tensor().clone()));
    let mut trained = vars.all_vars();
    trained.push(bias);
    let mut optimizer = AdamW::new(trained, ParamsAdamW { lr: 0.02, ..Default::default() })?;
    let mut losses = Vec::new();
    for step in 0..60 {
        let (inputs, labels) = batch(32, step)?;
        let features = backbone.forward(&inputs)?.relu()?;
        // let loss = candle_nn::loss::cross_entropy(&head.forward(&features)?, &labels)?;
        let loss = linear_cross_entropy(&features, head.weight(), head.bias(), &labels)?;
        optimizer.backward_step(&loss)?;
        losses.push(loss.to_scalar::<f32>()?);
    }
    Ok((losses[0], losses[losses.len() - 1]))
}

/// A batch in parts, each worked off before the next: the gradients are those of the whole, and no more is held than their sum so far and the part's.
fn gradient_accumulation() -> Result<f32> {
    let vars = VarMap::new();
    let (backbone, head) = model(&vars)?;
    let margin = MarginLoss::cosine_ce(CLASSES, 16.0)?;
    let (inputs, labels) = batch(32, 1)?;
    let parts = 4;
    let mut grads = GradStore::default();
    for part in 0..parts {
        let features = backbone.forward(&inputs.narrow(0, part * 8, 8)?)?;
        let labels = labels.narrow(0, part * 8, 8)?;
        let upstream = 1.0 / parts as f64;
        grads.extend(margin.backward_scaled(&features, head.weight(), &labels, None, upstream)?.1)?;
    }
    let (_, whole) = margin.backward(&backbone.forward(&inputs)?, head.weight(), &labels, None)?;
    let mut largest = 0f32;
    for var in vars.all_vars() {
        let (Some(a), Some(b)) = (grads.get(&var), whole.get(&var)) else { candle_core::bail!("no gradient") };
        largest = largest.max((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?);
    }
    SGD::new(vars.all_vars(), 0.1)?.step(&grads)?;
    Ok(largest)
}

/// f16 features and centres beside f32 masters. The scale reaches the gradients before they are rounded, and is taken off in f32.
fn loss_scaling() -> Result<(f32, f32)> {
    let (scale, rate) = (1024.0, 0.2);
    let margin = MarginLoss::cosine_ce(CLASSES, 16.0)?;
    let vars = VarMap::new();
    let (backbone, head) = model(&vars)?;
    let mut losses = Vec::new();
    for step in 0..40 {
        let (inputs, labels) = batch(32, step)?;
        let features = backbone.forward(&inputs)?.to_dtype(DType::F16)?;
        let centres = Var::from_tensor(&head.weight().to_dtype(DType::F16)?)?;
        let (output, grads) = margin.backward_scaled(&features, &centres, &labels, None, scale)?;
        let dw = grads.get(&centres).map(|g| g.to_dtype(DType::F32)).transpose()?;
        let of = |var: &Var| Ok::<_, candle_core::Error>(grads.get(var).cloned());
        for var in vars.all_vars() {
            let gradient = if var.dims() == head.weight().dims() { dw.clone() } else { of(&var)? };
            if let Some(gradient) = gradient {
                var.set(&(var.as_tensor() - (gradient * (rate / scale))?)?)?;
            }
        }
        losses.push(output.loss.to_scalar::<f32>()?);
    }
    Ok((losses[0], losses[losses.len() - 1]))
}

/// Centres that are not trained: a detached W costs no gradient.
fn frozen_centres() -> Result<bool> {
    let vars = VarMap::new();
    let (backbone, head) = model(&vars)?;
    let margin = MarginLoss::cosine_ce(CLASSES, 16.0)?;
    let (inputs, labels) = batch(16, 3)?;
    let (_, grads) = margin.backward(&backbone.forward(&inputs)?, &head.weight().detach(), &labels, None)?;
    Ok(grads.get(head.weight()).is_none() && grads.get(backbone.weight()).is_some())
}

/// The loss has no state: a checkpoint is the model's variables, the epoch says which loss a schedule gives.
fn save_and_resume() -> Result<(f32, f32)> {
    let counts = ClassCounts::new(vec![50, 20, 10, 5, 2])?;
    let schedule = LossSchedule::dbm_drw(&counts, 0.1, 2, 0.9999)?;
    let epoch = |vars: &VarMap, epoch: usize| -> Result<f32> {
        let (backbone, head) = model(vars)?;
        let mut optimizer = SGD::new(vars.all_vars(), 0.1)?;
        let (inputs, labels) = batch(32, epoch)?;
        let features = backbone.forward(&inputs)?;
        let (output, grads) = schedule.at(epoch).backward(&features, head.weight(), &labels, None)?;
        optimizer.step(&grads)?;
        output.loss.to_scalar::<f32>()
    };
    let vars = VarMap::new();
    (0..2).try_for_each(|e| epoch(&vars, e).map(drop))?;
    let file = std::env::temp_dir().join(format!("recipes-{}.safetensors", std::process::id()));
    vars.save(&file)?;
    let straight = epoch(&vars, 2)?;
    let mut again = VarMap::new();
    model(&again)?; // the variables that are to be loaded
    again.load(&file)?;
    std::fs::remove_file(&file)?;
    Ok((straight, epoch(&again, 2)?))
}

/// Mixup: one pass a label set over the mixed inputs. Both losses leave their gradients to one backward.
fn mixup() -> Result<f32> {
    let vars = VarMap::new();
    let (backbone, head) = model(&vars)?;
    let margin = MarginLoss::builder(CLASSES).scale(16.0).recompute_gradients(true).build()?;
    let ((a, y_a), (b, y_b)) = (batch(16, 1)?, batch(16, 2)?);
    let share = 0.7;
    let features = backbone.forward(&((a * share)? + (b * (1.0 - share))?)?)?;
    let (first, second) =
        (margin.forward(&features, head.weight(), &y_a)?, margin.forward(&features, head.weight(), &y_b)?);
    let loss = ((first * share)? + (second * (1.0 - share))?)?;
    let mut optimizer = SGD::new(vars.all_vars(), 0.1)?;
    optimizer.backward_step(&loss)?;
    loss.to_scalar::<f32>()
}

fn main() -> Result<()> {
    let (first, last) = existing_loop()?;
    println!("existing loop: loss {first:.3}, after 60 steps {last:.3}");
    assert!(last < 0.5 * first);
    let (first, last) = linear_head()?;
    println!("linear head: loss {first:.3}, after 60 steps {last:.3}");
    assert!(last < 0.5 * first);
    let difference = gradient_accumulation()?;
    println!("gradient accumulation: four parts differ from the whole by {difference:e}");
    assert!(difference < 1e-5);
    let (first, last) = loss_scaling()?;
    println!("f16 with a loss scale of 1024: loss {first:.3}, after 40 steps {last:.3}");
    assert!(last < 0.7 * first);
    assert!(frozen_centres()?);
    println!("frozen centres: no gradient of W");
    let (straight, resumed) = save_and_resume()?;
    println!("saved and taken up again: loss {resumed}, without a break {straight}");
    assert_eq!(straight, resumed);
    let loss = mixup()?;
    println!("mixup: loss {loss:.3}");
    assert!(loss.is_finite());
    Ok(())
}
