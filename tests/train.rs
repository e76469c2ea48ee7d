//! The parts of the example `train`: augmentations on small pictures, the network, the optimizer, checkpoints whole and broken, and runs that are
//! stopped and taken up again.
#![allow(dead_code)]

#[path = "../examples/train/augment.rs"]
mod augment;
#[path = "../examples/train/checkpoint.rs"]
mod checkpoint;
#[path = "../examples/train/companion.rs"]
mod companion;
#[path = "../examples/longtail/data.rs"]
mod data;
#[path = "../examples/train/methods.rs"]
mod methods;
#[path = "../examples/train/model.rs"]
mod model;
#[path = "../examples/train/paper.rs"]
mod paper;
#[path = "../examples/train/photos.rs"]
mod photos;
#[path = "../examples/train/resnet.rs"]
mod resnet;
#[path = "../examples/train/results.rs"]
mod results;
#[path = "../examples/train/run.rs"]
mod run;
#[path = "../examples/train/sgd.rs"]
mod sgd;
#[path = "../examples/longtail/strokes.rs"]
mod strokes;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use augment::{Operation, Recipe, cutout, flip, shifted};
use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::companions::{Bcl, Gml, Ncl};
use candle_margin_loss::{ClassCounts, InstanceGate, Margin, MarginLoss, Prior};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use clap::ValueEnum;
use data::{Dataset, Grouping, Samples, Shape};
use indicatif::ProgressBar;
use methods::{Companion, CompanionNumbers, Gate, Method, Network, Numbers};
use model::{Design, Model, Teacher};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use run::{Config, Images, Run};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SMALL: Shape = Shape { channels: 1, height: 3, width: 4 };
const PICTURE: [u8; 12] = [
    10, 20, 30, 40, //
    50, 60, 70, 80, //
    90, 100, 110, 120,
];

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn crops_flips_and_holes() {
    let mut picture = PICTURE.to_vec();
    flip(&mut picture, SMALL);
    assert_eq!(picture, [40, 30, 20, 10, 80, 70, 60, 50, 120, 110, 100, 90]);
    // One row down and one column to the left of the window's own place.
    assert_eq!(shifted(&PICTURE, SMALL, 1, -1, 0), [0, 50, 60, 70, 0, 90, 100, 110, 0, 0, 0, 0]);
    let mut picture = PICTURE.to_vec();
    cutout(&mut picture, SMALL, 2, 0, 3); // as far as it is in the image
    assert_eq!(picture, [10, 20, 0, 0, 50, 60, 70, 80, 90, 100, 110, 120]);
    let mut picture = PICTURE.to_vec();
    cutout(&mut picture, SMALL, 2, 2, 1);
    assert_eq!(picture, [10, 20, 30, 40, 0, 0, 70, 80, 0, 0, 110, 120]);
    // Every channel alike.
    let colour = Shape { channels: 3, ..SMALL };
    let mut picture = PICTURE.repeat(3);
    cutout(&mut picture, colour, 2, 1, 1);
    assert!(picture.chunks(12).all(|plane| plane == [0, 0, 30, 40, 0, 0, 70, 80, 90, 100, 110, 120]));
}

#[test]
fn operations_of_auto_augment() {
    use Operation::*;
    let of = |operation: Operation, magnitude, other_way| operation.apply(&PICTURE, SMALL, magnitude, other_way);
    assert_eq!(of(Invert, 7, false)[..3], [245, 235, 225]);
    // Above the threshold 256·(1 − 6/9) = 85.3 they are inverted.
    assert_eq!(of(Solarize, 6, false), [10, 20, 30, 40, 50, 60, 70, 80, 165, 155, 145, 135]);
    assert_eq!(of(Posterize, 9, false)[..4], [0, 16, 16, 32], "four bits are left");
    assert_eq!(of(AutoContrast, 0, false)[..4], [0, 23, 46, 69]);
    assert_eq!(AutoContrast.apply(&[7; 12], SMALL, 0, false), [7; 12], "one level has no contrast");
    // Magnitude 0 of what has one leaves the image.
    for operation in [ShearY, TranslateX, TranslateY, Rotate, Brightness, Contrast, Color, Sharpness] {
        assert_eq!(of(operation, 0, false), PICTURE, "{operation:?}");
        assert_eq!(of(operation, 0, true), PICTURE, "{operation:?}");
    }
    // 4·150/331 of nine ninths is one whole pixel, the rest grey.
    assert_eq!(of(TranslateX, 9, false), [20, 30, 40, 128, 60, 70, 80, 128, 100, 110, 120, 128]);
    assert_eq!(of(TranslateX, 9, true)[..4], [128, 10, 20, 30]);
    assert_eq!(of(TranslateY, 9, false)[8..], [128; 4]);
    // y + 0.3·x: columns 2 and 3 take the next row.
    assert_eq!(of(ShearY, 9, false), [10, 20, 70, 80, 50, 60, 110, 120, 90, 100, 128, 128]);
    assert_eq!(of(Brightness, 9, true)[..3], [1, 2, 3], "a tenth is left");
    assert_eq!(of(Brightness, 9, false)[..2], [19, 38]);
    assert_eq!(of(Color, 9, true), PICTURE, "grey has no colour");
    // The mean is 65: a tenth of the distance is left.
    assert_eq!(of(Contrast, 9, true)[..2], [59, 60]);
    // A linear ramp is its own mean: no sharper for it.
    assert_eq!(of(Sharpness, 9, false), PICTURE);
    let mut spot = [10u8; 12];
    spot[5] = 140;
    assert_eq!(Sharpness.apply(&spot, SMALL, 9, false)[5], 212, "140 + 0.9·(140 − 60), 60 = (8·10 + 5·140)/13");
    // A turn of a square keeps its middle; the other way is its mirror image.
    let square = Shape { channels: 1, height: 5, width: 5 };
    let picture: Vec<u8> = (0..25).map(|i| 5 * i).collect();
    let turned = Rotate.apply(&picture, square, 8, false);
    assert_eq!(turned[12], picture[12]);
    let mirrored = |picture: &[u8]| {
        let mut out = picture.to_vec();
        flip(&mut out, square);
        out
    };
    assert_eq!(mirrored(&Rotate.apply(&mirrored(&picture), square, 8, true)), turned);
    assert_ne!(turned, picture);
    // Equalised: 256 levels, each once, stay; two levels of half a picture each go to the ends.
    let all = Shape { channels: 1, height: 16, width: 16 };
    let levels: Vec<u8> = (0..=255).collect();
    assert_eq!(Equalize.apply(&levels, all, 0, false), levels);
    let large = Shape { channels: 1, height: 32, width: 32 };
    let halves: Vec<u8> = (0..1024).map(|i| if i < 512 { 100 } else { 110 }).collect();
    let equalised = Equalize.apply(&halves, large, 0, false);
    assert_eq!((equalised[0], equalised[1023]), (0, 255));
    // Colours lose what their grey has not: luma of (200, 100, 50) is 124.
    let colour = Shape { channels: 3, height: 1, width: 1 };
    assert_eq!(Color.apply(&[200, 100, 50], colour, 9, true), [131, 121, 116]);
}

/// The recipe draws the same from the same seed, keeps the size, and does nothing where nothing is asked for.
#[test]
fn recipes_draw() {
    let shape = Shape { channels: 3, height: 32, width: 32 };
    let picture: Vec<u8> = (0..shape.pixels()).map(|i| (i * 7 % 256) as u8).collect();
    let all = Recipe { padding: 4, flip: true, auto_augment: true, cutout: 16 };
    let draw = |recipe: Recipe, seed| {
        let mut image = picture.clone();
        recipe.apply(&mut image, shape, &mut StdRng::seed_from_u64(seed));
        image
    };
    assert_eq!(draw(Recipe { padding: 0, flip: false, auto_augment: false, cutout: 0 }, 1), picture);
    assert_eq!(draw(all, 5), draw(all, 5));
    let drawn: std::collections::HashSet<Vec<u8>> = (0..50).map(|seed| draw(all, seed)).collect();
    assert!(drawn.len() > 45 && drawn.iter().all(|image| image.len() == picture.len()));
    let flips = (0..200)
        .filter(|&seed| draw(Recipe { flip: true, padding: 0, auto_augment: false, cutout: 0 }, seed) != picture);
    assert!((70..130).contains(&flips.count()));
}

#[test]
fn resnet_32_is_what_it_is_called() -> Result<()> {
    let x = Tensor::arange(0f32, 32., &Device::Cpu)?.reshape((1, 2, 4, 4))?;
    let short = resnet::shortcut(&x, 2, 1)?;
    assert_eq!(short.dims(), [1, 4, 2, 2]);
    let zeros = [0.0; 4];
    let values = short.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!([&values[..4], &values[12..]], [&zeros, &zeros]);
    assert_eq!(values[4..12], [0.0, 2.0, 8.0, 10.0, 16.0, 18.0, 24.0, 26.0], "every other pixel");

    let variables = VarMap::new();
    let network = resnet::ResNet::new(5, 3, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let all = variables.data().lock().unwrap();
    let convolutions = all.keys().filter(|name| name.ends_with("conv.weight")).count();
    assert_eq!(convolutions + 1, 32, "with the head");
    let trained: usize =
        all.iter().filter(|(name, _)| !name.contains("running")).map(|(_, variable)| variable.elem_count()).sum();
    assert_eq!(trained + 64 * 10 + 10, 464_154, "parameters of the original for ten classes");
    drop(all);
    let deeper = VarMap::new();
    resnet::ResNet::new(9, 3, VarBuilder::from_varmap(&deeper, DType::F32, &Device::Cpu))?;
    let all = deeper.data().lock().unwrap();
    let trained = all.iter().filter(|(name, _)| !name.contains("running"));
    let trained: usize = trained.map(|(_, variable)| variable.elem_count()).sum();
    assert_eq!(trained + 64 * 10 + 10, 853_018, "ResNet-56's");
    drop(all);
    let images = Tensor::randn(0f32, 1., (4, 3, 32, 32), &Device::Cpu)?;
    let before = network.norms()[0].1.running_mean().to_vec1::<f32>()?;
    assert_eq!(network.forward_t(&images, true)?.dims(), [4, resnet::FEATURES]);
    assert_ne!(network.norms()[0].1.running_mean().to_vec1::<f32>()?, before, "training moves the means");
    let (once, again) = (network.forward_t(&images, false)?, network.forward_t(&images, false)?);
    assert_eq!(once.to_vec2::<f32>()?, again.to_vec2::<f32>()?);
    Ok(())
}

/// The network of patches is two convolutions and a linear layer.
#[test]
fn patches_are_convolutions() -> Result<()> {
    let (shape, counts, device) =
        (Shape { channels: 2, height: 8, width: 12 }, &ClassCounts::new([3u64, 2, 1])?, &Device::Cpu);
    let objective = || Method::Bs.objective(counts, &config(Method::Bs, Network::Patches).numbers);
    let network = Network::Patches;
    let design = Design { network, shape, counts, objective: objective()?, companion: None, device };
    let model = Model::new(&design, 1, None)?;
    let all = model.tensors()?;
    let mut rng = StdRng::seed_from_u64(2);
    let pixels: Vec<f32> = (0..4 * shape.pixels()).map(|_| rng.random_range(-1.0..1.0)).collect();
    let images = Tensor::from_vec(pixels, (4, 2, 8, 12), device)?;
    let weight = |name: &str| &all[&format!("backbone.{name}.weight")];
    let bias = |name: &str| all[&format!("backbone.{name}.bias")].reshape((1, (), 1, 1));
    let first = weight("first").reshape((32, 2, 4, 4))?;
    let maps = images.conv2d(&first, 0, 4, 1, 1)?.broadcast_add(&bias("first")?)?.relu()?;
    let second = weight("second").reshape((32, 3, 3, 32))?.permute((0, 3, 1, 2))?.contiguous()?;
    let maps = maps.conv2d(&second, 1, 1, 1, 1)?.broadcast_add(&bias("second")?)?.relu()?;
    let flat = maps.permute((0, 2, 3, 1))?.flatten_from(1)?;
    let expected = flat.matmul(&weight("features").t()?)?.broadcast_add(&all["backbone.features.bias"])?;
    let difference = (model.features(&images, true)? - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference < 1e-5 && expected.abs()?.max_all()?.to_scalar::<f32>()? > 0.1, "{difference}");
    let odd = Design { shape: Shape { width: 10, ..shape }, objective: objective()?, ..design };
    assert!(Model::new(&odd, 1, None).err().is_some_and(|error| error.to_string().contains("8 x 10")));
    Ok(())
}

/// Against the formula, step by step.
#[test]
fn sgd_is_pytorchs() -> Result<()> {
    let p = Var::new(&[1f64, -2.0], &Device::Cpu)?;
    let mut sgd = sgd::Sgd::new(BTreeMap::from([("p".to_string(), p.clone())]), 0.9, 0.01);
    let (mut expected, mut velocity) = ([1f64, -2.0], None::<[f64; 2]>);
    for step in 0..4 {
        sgd.lr = 0.1 / f64::from(step + 1);
        // L = Σ p³/3, ∂L/∂p = p²
        let loss = (p.as_tensor().powf(3.0)?.sum_all()? / 3.0)?;
        sgd.step(&loss.backward()?)?;
        let change = expected.map(|p| p * p + 0.01 * p);
        let v = velocity.map_or(change, |v| std::array::from_fn(|i| 0.9 * v[i] + change[i]));
        velocity = Some(v);
        expected = std::array::from_fn(|i| expected[i] - sgd.lr * v[i]);
        let found = p.to_vec1::<f64>()?;
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
    }
    // A temperature is no weight, and does not decay.
    let t = Var::new(&[3f64], &Device::Cpu)?;
    let mut sgd = sgd::Sgd::new(BTreeMap::from([("log_temperature".to_string(), t.clone())]), 0.9, 0.5);
    sgd.lr = 0.1;
    sgd.step(&t.as_tensor().sum_all()?.backward()?)?;
    assert_eq!(t.to_vec1::<f64>()?, [2.9], "the gradient of 1 alone");
    Ok(())
}

/// What the numbers of a companion say is what its loss is made with: each unlike its default.
#[test]
fn numbers_reach_the_companions() -> Result<()> {
    let counts = ClassCounts::new([24u64, 12, 6, 3])?;
    let made = |method: Method| -> Result<String> {
        let mut numbers = config(method, Network::Conv).numbers;
        numbers.companion = numbers.companion.map(|companion| CompanionNumbers {
            classification_weight: 0.7,
            contrastive_weight: 0.4,
            temperature: 0.3,
            distillation_weight: 0.2,
            hard_weight: 0.9,
            hard_classes: Some(3),
            margined_distillation: true,
            ..companion
        });
        Ok(match method.objective(&counts, &numbers)? {
            methods::Objective::Bcl(loss) => format!("{loss:?}"),
            methods::Objective::Gml(loss) => format!("{loss:?}"),
            methods::Objective::Ncl(loss) => format!("{loss:?}"),
            _ => "no companion".into(),
        })
    };
    let base = || MarginLoss::builder(4).counts(&counts).scale(16.0).prior(Prior::BalancedSoftmax { tau: 1.0 });
    let dbm = || base().margin(Margin::Dbm { k: 0.1, tau: 1.0 }).instance_gate(InstanceGate::HardPositives);
    let bcl = |loss| Bcl::builder(loss).temperature(0.3).weights(0.7, 0.4).build();
    let gml = |loss| Gml::builder(loss).temperature(0.3).weights(0.7, 0.4, 0.2).build();
    let ncl = |loss| {
        let ncl = Ncl::builder(loss).hard_weight(0.9).hard_classes(3).distillation_weights(0.2, 0.2);
        ncl.margined_distillation(true).build()
    };
    assert_eq!(made(Method::Bcl)?, format!("{:?}", bcl(base().build()?)?));
    assert_eq!(made(Method::DbmBcl)?, format!("{:?}", bcl(dbm().build()?)?));
    assert_eq!(made(Method::Gml)?, format!("{:?}", gml(base().build()?)?));
    assert_eq!(made(Method::DbmGml)?, format!("{:?}", gml(dbm().build()?)?));
    assert_eq!(made(Method::Ncl)?, format!("{:?}", ncl(base().build()?)?));
    assert_eq!(made(Method::DbmNcl)?, format!("{:?}", ncl(dbm().build()?)?));
    Ok(())
}

/// Three classes of 8 × 8 images, of which each has a bright corner of its own, in noise.
fn dataset() -> Dataset {
    let shape = Shape { channels: 3, height: 8, width: 8 };
    let mut rng = StdRng::seed_from_u64(7);
    let mut samples = |counts: [usize; 3]| {
        let mut all = Samples::default();
        for (class, n) in counts.into_iter().enumerate() {
            for _ in 0..n {
                let corner = |y: usize, x: usize| (y < 4) == (class != 2) && (x < 4) == (class == 0);
                all.pixels.extend((0..shape.pixels()).map(|i| {
                    let bright = if corner(i % 64 / 8, i % 8) { 0.5 } else { 0.0 };
                    0.4 * rng.random::<f32>() + bright
                }));
                all.labels.push(class as u32);
            }
        }
        all
    };
    let counts = ClassCounts::new([24u64, 12, 6]).unwrap();
    Dataset {
        title: "corners".into(),
        shape,
        class_names: ["a", "b", "c"].map(String::from).into(),
        train: vec![samples([24, 12, 6])],
        test: samples([5, 5, 5]),
        groups: Grouping::thirds(&counts),
        counts,
    }
}

fn config(method: Method, network: Network) -> Config {
    let companion = CompanionNumbers::new(method, 3).map(|numbers| CompanionNumbers {
        embedding: 16,
        keys: 40,
        teacher_network: Network::Conv,
        experts: 2,
        ..numbers
    });
    Config {
        dataset: "corners".into(),
        imbalance_factor: 4.0,
        data_seed: 0,
        method,
        seed: 3,
        network,
        epochs: 3,
        batch_size: 16,
        lr: 0.02,
        momentum: 0.9,
        weight_decay: 2e-4,
        warmup_epochs: 1,
        padding: 1,
        flip: false,
        auto_augment: true,
        cutout: 2,
        numbers: Numbers {
            scale: 16.0,
            k: 0.1,
            tau: 1.0,
            gate: Gate::HardPositives,
            ldam_margin: 0.5,
            beta: 0.9999,
            drw_epoch: 2,
            companion,
        },
    }
}

/// For GML: what a run of cross-entropy on a cosine head has learnt in three epochs.
fn teacher(method: Method, dataset: &Dataset, images: &Images, device: &Device) -> Result<Option<Teacher>> {
    if method.companion() != Some(Companion::Gml) {
        return Ok(None);
    }
    let config = config(Method::CosineCe, Network::Conv);
    let mut run = Run::new(config, dataset, images, device, None)?;
    assert!(run.train(&ProgressBar::hidden(), &|| false, |_| Ok(()))?);
    Ok(Some(run.teacher()?))
}

#[test]
fn learning_rates_of_the_recipe() {
    let config = Config { lr: 0.1, epochs: 200, warmup_epochs: 5, ..config(Method::Ce, Network::Conv) };
    let rates = [0, 4, 5, 102, 199].map(|epoch| config.learning_rate(epoch));
    for (found, expected) in rates.into_iter().zip([0.02, 0.1, 0.1, 0.0504, 6.5e-6]) {
        assert!((found - expected).abs() < 1e-4, "{rates:?}");
    }
}

/// Each method's loss falls, and what it learns is what is there.
#[test]
fn every_method_learns() -> Result<()> {
    let dataset = dataset();
    let images = Images::new(&dataset);
    for &method in Method::value_variants() {
        let plain = Config { padding: 0, auto_augment: false, cutout: 0, epochs: 8, ..config(method, Network::Conv) };
        let numbers = Numbers { drw_epoch: 7, ..plain.numbers };
        let teacher = teacher(method, &dataset, &images, &Device::Cpu)?;
        let mut run = Run::new(Config { numbers, ..plain }, &dataset, &images, &Device::Cpu, teacher.as_ref())?;
        assert!(run.train(&ProgressBar::hidden(), &|| false, |_| Ok(()))?);
        let history = &run.progress.history;
        assert!(history[6].train_loss < 0.7 * history[0].train_loss, "{method:?}: {history:?}");
        assert!(history[7].test_accuracy[0] >= Some(0.8), "{method:?}: {history:?}");
    }
    Ok(())
}

/// A run that is stopped in the middle of an epoch, and taken up from its checkpoint, ends with the bits of one that was not.
#[test]
fn a_resumed_run_is_the_run() -> Result<()> {
    let dataset = dataset();
    let images = Images::new(&dataset);
    let never = || false;
    for (method, network) in [
        (Method::CeDrw, Network::Resnet32),
        (Method::DbmBs, Network::Conv),
        (Method::DbmBcl, Network::Conv),
        (Method::DbmGml, Network::Conv),
        (Method::DbmNcl, Network::Resnet32),
    ] {
        let config = config(method, network);
        let path = folder(&format!("resumed-{method:?}")).join("checkpoint.safetensors");
        let teacher = teacher(method, &dataset, &images, &Device::Cpu)?;
        let mut whole = Run::new(config.clone(), &dataset, &images, &Device::Cpu, teacher.as_ref())?;
        assert!(whole.train(&ProgressBar::hidden(), &never, |_| Ok(()))?);
        whole.save(&path)?;
        let expected = checkpoint::load::<serde_json::Value>(&path, &Device::Cpu)?;

        let mut part = Run::new(config.clone(), &dataset, &images, &Device::Cpu, teacher.as_ref())?;
        // Stopped before the fifth batch of three an epoch.
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() == 5
        };
        assert!(!part.train(&ProgressBar::hidden(), &stop, |_| Ok(()))?);
        assert_eq!((part.progress.history.len(), part.progress.batch), (1, 1), "in the middle of an epoch");
        part.save(&path)?;
        let mut resumed = Run::resume(&path, config.clone(), &dataset, &images, &Device::Cpu)?;
        assert_eq!(resumed.progress, part.progress);
        assert!(resumed.train(&ProgressBar::hidden(), &never, |_| Ok(()))?);
        resumed.save(&path)?;
        let found = checkpoint::load::<serde_json::Value>(&path, &Device::Cpu)?;
        assert_eq!(found.1, expected.1, "{method:?}");
        let kept = expected.0.keys().any(|name| name.ends_with("running_var"));
        assert_eq!(kept, network == Network::Resnet32, "means are kept, too");
        assert_eq!(bits(&found.0)?, bits(&expected.0)?, "{method:?}");
        for (kept, of) in [("teacher.", Companion::Gml), ("queue.", Companion::Gml), ("expert1.", Companion::Ncl)] {
            let there = expected.0.keys().any(|name| name.starts_with(kept));
            assert_eq!(there, method.companion() == Some(of), "{method:?}: {kept}");
        }
    }
    Ok(())
}

/// A checkpoint that lacks a companion's parts, or has them for other numbers, is an error that names them; so is a run of GML that nobody teaches.
#[test]
fn companions_that_are_not_there() -> Result<()> {
    let dataset = dataset();
    let images = Images::new(&dataset);
    let config = config(Method::Gml, Network::Conv);
    let untaught = Run::new(config.clone(), &dataset, &images, &Device::Cpu, None);
    assert!(untaught.err().is_some_and(|error| error.to_string().contains("GML needs a teacher")));
    let teacher = teacher(Method::Gml, &dataset, &images, &Device::Cpu)?;
    let run = Run::new(config.clone(), &dataset, &images, &Device::Cpu, teacher.as_ref())?;
    let path = folder("companions").join("checkpoint.safetensors");
    run.save(&path)?;
    let (tensors, record) = checkpoint::load::<serde_json::Value>(&path, &Device::Cpu)?;
    for (lost, said) in
        [("queue.ids", "40 keys: ids"), ("teacher.head.weight", "head.weight"), ("keys.out.bias", "keys.out.bias")]
    {
        let mut less = tensors.clone();
        less.remove(lost).expect("it was kept");
        checkpoint::save(&path, less, &record)?;
        let error = Run::resume(&path, config.clone(), &dataset, &images, &Device::Cpu).err().expect("an error");
        assert!(error.to_string().contains(said), "{lost}: {error}");
    }
    let companion = config.numbers.companion.map(|numbers| CompanionNumbers { keys: 5, ..numbers });
    let few = Config { numbers: Numbers { companion, ..config.numbers }, ..config };
    let error = Run::new(few, &dataset, &images, &Device::Cpu, teacher.as_ref()).err().expect("an error");
    assert!(error.to_string().contains("5 keys are too few for 3 classes"), "{error}");
    Ok(())
}

/// Every class has its least, the rest goes by samples; the oldest of a class goes first.
#[test]
fn queues_of_keys() -> Result<()> {
    let counts = ClassCounts::new([24u64, 12, 6])?;
    let row = |value: f32| Tensor::full(value, (1, resnet::FEATURES), &Device::Cpu);
    let mut queue = companion::Queue::new(&counts, 13, 2, &Device::Cpu)?;
    let labels = |queue: &companion::Queue| -> Result<Vec<i64>> { Ok(queue.marks()?[0].to_vec1()?) };
    assert_eq!(labels(&queue)?, [-1; 13], "empty");
    // 2 + 4, 2 + 2 and 2 + 1 slots.
    let many: Vec<Tensor> = (0..21).map(|i| row(i as f32)).collect::<candle_core::Result<_>>()?;
    let ids: Vec<usize> = (0..21).collect();
    let classes: Vec<u32> = ids.iter().map(|&i| i as u32 / 7).collect();
    queue.push(&Tensor::cat(&many, 0)?, &classes, &ids)?;
    assert_eq!(labels(&queue)?, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]);
    let first = |queue: &companion::Queue| -> Result<Vec<f32>> {
        Ok(queue.features.narrow(1, 0, 1)?.flatten_all()?.to_vec1()?)
    };
    let expected = [6, 1, 2, 3, 4, 5, 11, 12, 13, 10, 20, 18, 19];
    assert_eq!(first(&queue)?, expected.map(|v| v as f32), "seven into six slots, four and three");
    assert_eq!(queue.marks()?[1].to_vec1::<i64>()?, expected);
    queue.push(&row(50.0)?, &[2], &[50])?;
    assert_eq!(first(&queue)?[10..], [20.0, 50.0, 19.0], "18 was the oldest of its class");
    let mut other = companion::Queue::new(&counts, 13, 2, &Device::Cpu)?;
    other.restore(&queue.tensors()?)?;
    for queue in [&mut queue, &mut other] {
        queue.push(&row(51.0)?, &[0], &[51])?;
    }
    assert_eq!(bits(&queue.tensors()?)?, bits(&other.tensors()?)?);
    for next in [[6i64, 0, 0], [0, -1, 0]] {
        let mut broken = queue.tensors()?;
        broken.insert("next".into(), Tensor::new(&next, &Device::Cpu)?);
        assert!(other.restore(&broken).is_err(), "a slot that the class has not");
    }
    Ok(())
}

/// A sample's views are drawn by themselves, and the first is that of a method with one.
#[test]
fn views_differ() -> Result<()> {
    let dataset = dataset();
    let images = Images::new(&dataset);
    let config = config(Method::DbmBcl, Network::Conv);
    let rows = [3, 20, 40];
    let view = |config: &Config, view| images.training_batch(config, dataset.shape, 0, 1, view, &rows);
    let views = (0..3).map(|i| view(&config, i)).collect::<Result<Vec<_>>>()?;
    assert!(views[0] != views[1] && views[1] != views[2] && views[0] != views[2]);
    assert_eq!(view(&Config { method: Method::Ce, ..config }, 0)?, views[0]);
    Ok(())
}

/// The paper's figures stand beside one's own where data set, imbalance factor and method are its.
#[test]
fn the_papers_figures() {
    use paper::{Set, accuracy};
    assert!(Method::ALL.iter().all(|&m| accuracy(Set::Cifar10, 50.0, m).is_some_and(|row| row[1].is_none())));
    assert_eq!(accuracy(Set::Cifar100, 100.0, Method::DbmBs), Some([51.30, 67.29, 50.80, 33.23].map(Some)));
    assert_eq!(accuracy(Set::Cifar100, 10.0, Method::Ce), Some([Some(61.98), None, None, None]));
    assert_eq!(accuracy(Set::Cifar100, 100.0, Method::CosineCe), Some([Some(44.29), None, None, None]));
    assert_eq!(accuracy(Set::Cifar100, 20.0, Method::Ce), None, "an imbalance factor that the paper has not");
    assert_eq!(accuracy(Set::Inaturalist2018, 500.0, Method::DbmGml), Some([Some(72.0), None, None, None]));
    let dataset = dataset();
    let last = |accuracy| run::Epoch {
        train_loss: 1.0,
        train_accuracy: 0.5,
        hard_positive_rate: 0.5,
        test_accuracy: accuracy,
    };
    let run = |method, seed, all| {
        let config = Config { imbalance_factor: 100.0, seed, ..config(method, Network::Conv) };
        (config, run::Progress { history: vec![last([Some(all), None, Some(0.25), Some(0.5)])], ..Default::default() })
    };
    let runs = [run(Method::DbmBs, 0, 0.5), run(Method::DbmBs, 1, 0.52), run(Method::Bs, 0, 0.4)];
    let table = results::table(&runs, &dataset, Some(Set::Cifar100));
    let row = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(row("DBM-BS"), ["DBM-BS", "51.0", "–", "25.0", "50.0", "│", "51.30", "67.29", "50.80", "33.23"]);
    assert_eq!(row("BS"), ["BS", "40.0", "–", "25.0", "50.0", "│", "49.35", "65.77", "50.14", "29.27"]);
    assert!(!results::table(&runs, &dataset, None).contains("(paper)"));
}

/// A few steps of every method on a batch of real drawings lower its loss: on the CPU, or with `MARGIN_LOSS_DEVICE=cuda` on the first CUDA device.
#[test]
fn a_few_steps_of_every_method() -> Result<()> {
    let device = match std::env::var("MARGIN_LOSS_DEVICE").as_deref() {
        Ok("cuda") => Device::new_cuda(0)?,
        _ => Device::Cpu,
    };
    let options = strokes::Options {
        natural: false,
        skip: 0,
        classes: 8,
        test_per_class: 2,
        imbalance_factor: 4.0,
        side: 12,
        renderings: 1,
        seed: 1,
    };
    let dataset = strokes::dataset(strokes::read_snapshot(&strokes::find_snapshot()?)?, &options)?;
    let (images, shape) = (Images::new(&dataset), dataset.shape);
    let labels = &dataset.train[0].labels;
    let ids: Vec<usize> = (0..labels.len()).step_by(labels.len() / 24).take(24).collect();
    let taught = Config { auto_augment: false, ..config(Method::CosineCe, Network::Patches) };
    let teacher = Run::new(taught, &dataset, &images, &device, None)?.teacher()?;
    for &method in Method::value_variants() {
        let mut config = Config { auto_augment: false, ..config(method, Network::Patches) };
        if let Some(numbers) = &mut config.numbers.companion {
            numbers.teacher_network = Network::Patches;
        }
        let views = (0..method.views()).map(|view| {
            let pixels = images.training_batch(&config, shape, 0, 0, view, &ids)?;
            Ok(Tensor::from_vec(pixels, (ids.len(), shape.channels, shape.height, shape.width), &device)?)
        });
        let batch = companion::Batch {
            views: views.collect::<Result<_>>()?,
            labels: ids.iter().map(|&row| labels[row]).collect(),
            ids: ids.clone(),
        };
        let design = Design {
            network: config.network,
            shape,
            counts: &dataset.counts,
            objective: method.objective(&dataset.counts, &config.numbers)?,
            companion: config.numbers.companion,
            device: &device,
        };
        let mut model = Model::new(&design, 1, Some(&teacher))?;
        let mut sgd = sgd::Sgd::new(model.trained(), 0.9, 2e-4);
        sgd.lr = 0.01;
        let mut losses = Vec::new();
        for step in 0..5 {
            // Before and after re-weighting begins, each by itself.
            let epoch = if step < 3 { 0 } else { 2 };
            model.start(epoch)?;
            let step = model.step(&batch, epoch)?;
            sgd.step(&step.loss.backward()?)?;
            losses.push(f64::from(step.loss.to_scalar::<f32>()?));
            assert!((0.0..=1.0).contains(&step.accuracy) && (0.0..=1.0).contains(&step.hard_positive_rate));
        }
        let trained = model.trained().len();
        assert_eq!(sgd.velocities().len(), trained, "{method:?}: every variable has had a gradient");
        assert!(losses[2] < losses[0] && losses[4] < losses[3], "{method:?} on {:?}: {losses:?}", device.location());
    }
    Ok(())
}

fn bits(tensors: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Vec<u64>>> {
    let of = |tensor: &Tensor| -> Result<Vec<u64>> {
        let tensor = tensor.flatten_all()?;
        Ok(match tensor.dtype() {
            DType::I64 => tensor.to_vec1::<i64>()?.into_iter().map(|v| v as u64).collect(),
            _ => tensor.to_vec1::<f32>()?.into_iter().map(|v| v.to_bits().into()).collect(),
        })
    };
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), of(tensor)?))).collect()
}

/// A checkpoint that cannot be written leaves the one that was there; one that is broken, or of another run, is an error that says so.
#[test]
fn checkpoints_that_fail() -> Result<()> {
    let dataset = dataset();
    let images = Images::new(&dataset);
    let config = config(Method::DbmBs, Network::Conv);
    let folder = folder("failing");
    let path = folder.join("checkpoint.safetensors");
    let run = Run::new(config.clone(), &dataset, &images, &Device::Cpu, None)?;
    run.save(&path)?;
    let good = std::fs::read(&path)?;
    let resume = |path: &Path, config: &Config| match Run::resume(path, config.clone(), &dataset, &images, &Device::Cpu)
    {
        Ok(_) => "taken up".to_string(),
        Err(error) => error.to_string(),
    };
    assert_eq!(resume(&path, &config), "taken up");

    // Where the new one cannot be written, the last good one stays.
    let beside = folder.join("checkpoint.partial");
    std::fs::create_dir(&beside)?;
    let error = run.save(&path).unwrap_err().to_string();
    assert!(error.contains("the checkpoint that was there is as it was"), "{error}");
    assert_eq!(std::fs::read(&path)?, good);
    std::fs::remove_dir(&beside)?;
    let other = Config { lr: 0.5, ..config.clone() };
    let error = resume(&path, &other);
    assert!(error.contains("is of another run") && error.contains("0.5"), "{error}");
    for (what, bytes) in [("truncated", &good[..good.len() / 2]), ("empty", &[]), ("text", b"not a checkpoint")] {
        let broken = folder.join(what);
        std::fs::write(&broken, bytes)?;
        assert!(
            resume(&broken, &config).contains("is no checkpoint of this program"),
            "{what}: {}",
            resume(&broken, &config)
        );
    }
    let tensors = HashMap::from([("a".to_string(), Tensor::zeros(3, DType::F32, &Device::Cpu)?)]);
    candle_core::safetensors::save(&tensors, folder.join("other"))?;
    assert!(resume(&folder.join("other"), &config).contains("it has no record.json"));
    assert!(resume(&folder.join("nowhere"), &config).contains("nowhere"));
    Ok(())
}

/// A disk that fills up in the middle of a checkpoint: this test runs itself in a shell whose files may have no more than 32 KiB.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() -> Result<()> {
    const FOLDER: &str = "MARGIN_LOSS_FULL_DISK";
    let dataset = dataset();
    let images = Images::new(&dataset);
    let mut run = Run::new(config(Method::DbmBs, Network::Conv), &dataset, &images, &Device::Cpu, None)?;
    if let Some(folder) = std::env::var_os(FOLDER) {
        run.progress.batch = 1; // another state than the one that was kept
        let error = run.save(&Path::new(&folder).join("checkpoint.safetensors")).unwrap_err().to_string();
        assert!(error.contains("File too large") && error.contains("as it was"), "{error}");
        return Ok(());
    }
    let folder = folder("full");
    let path = folder.join("checkpoint.safetensors");
    run.save(&path)?;
    let good = std::fs::read(&path)?;
    assert!(good.len() > 64 << 10, "more than the limit");
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$0" --exact a_full_disk --nocapture"#;
    let shell = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe()?)
        .env(FOLDER, &folder)
        .output()?;
    let said = String::from_utf8_lossy(&shell.stdout) + String::from_utf8_lossy(&shell.stderr);
    assert!(shell.status.success() && said.contains("1 passed"), "{said}");
    assert_eq!(std::fs::read(&path)?, good);
    assert_eq!(std::fs::read_dir(&folder)?.count(), 1, "nothing is left beside it");
    Ok(())
}
