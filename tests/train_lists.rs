//! The example `train` on photographs that list files name: lists and files whole and broken, the windows that are cut out of them, and runs.
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
#[path = "../examples/train/photos.rs"]
mod photos;
#[path = "../examples/train/resnet.rs"]
mod resnet;
#[path = "../examples/train/run.rs"]
mod run;
#[path = "../examples/train/sgd.rs"]
mod sgd;

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_margin_loss::Group;
use data::Dataset;
use image::imageops::{self, FilterType};
use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use indicatif::ProgressBar;
use methods::Network;
use methods::{Gate, Method, Numbers};
use photos::{DEVIATION, IMAGENET_LT, INATURALIST_2018, MEAN, Photos, Window};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use run::{Config, Images, Run};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train_lists").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The same list for training and for the test.
fn write_lists(folder: &Path, text: &str) {
    for name in [IMAGENET_LT.train, IMAGENET_LT.test] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

fn read(folder: &Path, side: usize) -> std::result::Result<(Dataset, Photos), data::DataError> {
    Photos::read(IMAGENET_LT, folder, folder, side)
}

/// Photographs of one class, each a training and a test image.
fn one_class(folder: &Path, side: usize, files: &[&str]) -> (Dataset, Photos) {
    write_lists(folder, &files.iter().map(|file| format!("{file} 0\n")).collect::<String>());
    read(folder, side).unwrap()
}

fn has<T, E: ToString>(result: std::result::Result<T, E>, parts: &[&str]) {
    let error = result.err().expect("an error").to_string();
    parts.iter().for_each(|part| assert!(error.contains(part), "{error:?} lacks {part:?}"));
}

/// A different colour everywhere.
fn ramp(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(7 * x % 256) as u8, (5 * y % 256) as u8, (3 * (x + y) % 256) as u8]))
}

/// (3, H, W) of what `image` has as (H, W, 3).
fn planar(picture: &RgbImage) -> Vec<u8> {
    (0..3).flat_map(|c| picture.as_raw().iter().skip(c).step_by(3).copied()).collect()
}

#[test]
fn lists_whole() {
    let folder = folder("whole");
    // A path with a space, a tab, DOS line ends.
    write_lists(&folder, "a/x y.jpg 2\nb.jpg\t0\r\nc.jpg 1\nd.jpg 0");
    let (dataset, _) = read(&folder, 32).unwrap();
    assert_eq!(dataset.train[0].labels, [2, 0, 1, 0]);
    assert_eq!((dataset.counts.as_slice(), dataset.class_names.len()), (&[2u64, 1, 1][..], 3));
    assert_eq!((dataset.shape.channels, dataset.shape.height, dataset.shape.width), (3, 32, 32));
    assert_eq!(dataset.title, "imagenet-lt: 3 classes, 4 training images (2 to 1 a class), 4 test images, 32 x 32");
    assert!(dataset.groups.of_class.iter().all(|&group| group == Group::Few));
    // The images in a folder of their own; a class more in training than in the test; the other set's names.
    let images = folder.join("images");
    std::fs::create_dir(&images).unwrap();
    std::fs::write(folder.join(INATURALIST_2018.train), "a.jpg 0\nb.jpg 1\n").unwrap();
    std::fs::write(folder.join(INATURALIST_2018.test), "c.jpg 0\n").unwrap();
    let (dataset, _) = Photos::read(INATURALIST_2018, &images, &folder, 16).unwrap();
    assert_eq!((dataset.counts.classes(), dataset.train[0].len(), dataset.test.labels), (2, 2, vec![0]));
}

#[test]
fn lists_broken() {
    let folder = folder("broken");
    let missing = "ImageNet_LT_train.txt is missing: the list files of imagenet-lt are ImageNet_LT_train.txt and";
    has(read(&folder, 8), &[missing, "--lists"]);
    std::fs::write(folder.join(IMAGENET_LT.train), "a.jpg 0\n").unwrap();
    has(read(&folder, 8), &["ImageNet_LT_test.txt is missing"]);
    for (text, parts) in [
        ("", &["ImageNet_LT_train.txt: it has no lines"][..]),
        ("a.jpg 0\nb.jpg\n", &["line 2", "b.jpg", "not a file name and a label"]),
        ("a.jpg 0\n\nb.jpg 0\n", &["line 2", "not a file name and a label"]),
        (" 0\n", &["line 1", "not a file name and a label"]),
        ("a.jpg 0\nb.jpg 1\nc.jpg -1\n", &["line 3", "c.jpg -1", "not a whole number from 0"]),
        ("a.jpg cat\n", &["line 1", "a.jpg cat", "not a whole number from 0"]),
        ("a.jpg 0.5\n", &["line 1", "not a whole number from 0"]),
        ("a.jpg 4294967296\n", &["line 1", "not a whole number from 0"]),
        ("a.jpg 0\nb.jpg 2\nc.jpg 0\n", &["class 1 has no training sample", "the largest label is 2"]),
        ("a.jpg 1\n", &["class 0 has no training sample"]),
        // No memory for four thousand million classes is asked for.
        ("a.jpg 0\nb.jpg 4294967295\n", &["class 1 has no training sample", "4294967295"]),
    ] {
        write_lists(&folder, text);
        has(read(&folder, 8), parts);
    }
    // A line however long is one that can be read.
    write_lists(&folder, &format!("a.jpg 0\n{} x\n", "b".repeat(100_000)));
    has(read(&folder, 8), &["line 2", "bbb…bbb", "not a whole number from 0"]);
    assert!(read(&folder, 8).err().unwrap().to_string().chars().count() < 600);
    std::fs::write(folder.join(IMAGENET_LT.train), b"a.jpg 0\n\xff\xd8 1\n").unwrap();
    has(read(&folder, 8), &["ImageNet_LT_train.txt: not a text file"]);
    // A class that only the test has.
    std::fs::write(folder.join(IMAGENET_LT.train), "a.jpg 0\n").unwrap();
    std::fs::write(folder.join(IMAGENET_LT.test), "a.jpg 0\nb.jpg 1\n").unwrap();
    has(read(&folder, 8), &["ImageNet_LT_train.txt: class 1 has no training sample"]);
    write_lists(&folder, "a.jpg 0\n");
    has(Photos::read(IMAGENET_LT, &folder.join("nowhere"), &folder, 8), &["nowhere is missing", "--data"]);
    has(Photos::read(IMAGENET_LT, &folder.join(IMAGENET_LT.train), &folder, 8), &["--data"]);
}

#[test]
fn files_broken() {
    let folder = folder("files");
    ramp(64, 48).save(folder.join("whole.jpg")).unwrap();
    ramp(64, 48).save(folder.join("whole.png")).unwrap();
    let (jpeg, png) =
        (std::fs::read(folder.join("whole.jpg")).unwrap(), std::fs::read(folder.join("whole.png")).unwrap());
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("cut.jpg", &jpeg[..jpeg.len() / 2]);
    write("without-end.jpg", &jpeg[..jpeg.len() - 2]);
    write("header.jpg", &jpeg[..20]);
    // A thumbnail has an end of its own, which is not that of the picture.
    let thumbnail = [&[0xff, 0xe1, 0, 8][..], &[0xff, 0xd9, 0xff, 0xd9, 0xff, 0xd9]].concat();
    write("thumbnail.jpg", &[&jpeg[..2], &thumbnail, &jpeg[2..]].concat());
    write("cut-thumbnail.jpg", &[&jpeg[..2], &thumbnail, &jpeg[2..jpeg.len() - 2]].concat());
    write("more-after.jpg", &[&jpeg[..], b"\xff\xda and more"].concat());
    write("cut.png", &png[..png.len() / 2]);
    write("text.png", b"this is no picture");
    write("empty.jpg", b"");
    write("png.jpg", &png);
    std::fs::create_dir(folder.join("folder.jpg")).unwrap();
    let files = [
        ("whole.jpg", None),
        ("whole.png", None),
        ("thumbnail.jpg", None),
        ("more-after.jpg", None),
        ("png.jpg", None),
        ("none.jpg", Some("none.jpg is missing")),
        ("cut.jpg", Some("truncated")),
        ("without-end.jpg", Some("truncated")),
        ("header.jpg", Some("truncated")),
        ("cut-thumbnail.jpg", Some("truncated")),
        ("cut.png", Some("cut.png")),
        ("text.png", Some("neither JPEG nor PNG")),
        ("empty.jpg", Some("neither JPEG nor PNG")),
        ("folder.jpg", Some("folder.jpg")),
    ];
    let (dataset, photos) = one_class(&folder, 8, &files.map(|(name, _)| name));
    for (row, (name, expected)) in files.into_iter().enumerate() {
        let line = format!("line {} of ", row + 1);
        let results = [photos.training_image(row, &mut StdRng::seed_from_u64(0)), photos.test_image(row)];
        for (result, list) in results.into_iter().zip([IMAGENET_LT.train, IMAGENET_LT.test]) {
            match expected {
                None => assert_eq!(result.unwrap().len(), 3 * 8 * 8, "{name}"),
                Some(what) => has(result, &[what, name, &line, list]),
            }
        }
    }
    // Out of a batch comes the error of its first row, and out of an epoch that of its first batch.
    let images = Images::files(&dataset, photos);
    for _ in 0..10 {
        let batch = |rows: &[usize]| images.training_batch(&config(Network::Conv), dataset.shape, 0, 0, 0, rows);
        has(batch(&[0, 7, 5, 6, 1]), &["without-end.jpg"]);
        has(batch(&[3, 13, 7, 5, 6, 1]), &["folder.jpg"]);
    }
    has(images.test_batch(dataset.shape, &[4, 2, 11, 5]), &["text.png"]);
}

/// A file that cannot be decoded ends a run with its error, in training and in the test, each time at the same batch.
#[test]
fn a_broken_file_ends_the_run() -> Result<()> {
    let folder = three_classes("ends");
    let train = |folder: &Path| -> Result<(String, usize)> {
        let (dataset, photos) = read(folder, 16)?;
        let images = Images::files(&dataset, photos);
        let mut run = Run::new(config(Network::Conv), &dataset, &images, &Device::Cpu, None)?;
        let error = run.train(&ProgressBar::hidden(), &|| false, |_| Ok(())).expect_err("an error").to_string();
        Ok((error, run.progress.batch))
    };
    std::fs::remove_file(folder.join("2/1.png"))?;
    let first = train(&folder)?;
    assert!(first.0.contains("1.png is missing: named by line "), "{first:?}");
    assert_eq!(train(&folder)?, first);
    // Left out of training, it is still one of the test.
    let list = std::fs::read_to_string(folder.join(IMAGENET_LT.train))?;
    let lines = list.lines().filter(|line| !line.starts_with("2/1.png"));
    std::fs::write(folder.join(IMAGENET_LT.train), lines.map(|line| format!("{line}\n")).collect::<String>())?;
    let (error, batch) = train(&folder)?;
    assert!(error.contains("1.png is missing") && error.contains(IMAGENET_LT.test) && batch == 3, "{error} {batch}");
    Ok(())
}

/// One colour stays that colour, through windows, files of either kind and normalisation; grey becomes three equal channels, opacity is left out.
#[test]
fn colours() -> Result<()> {
    let folder = folder("colours");
    let colour = [200u8, 100, 30];
    RgbImage::from_pixel(37, 53, Rgb(colour)).save(folder.join("rgb.png"))?;
    RgbImage::from_pixel(37, 53, Rgb(colour)).save(folder.join("rgb.jpg"))?;
    GrayImage::from_pixel(20, 9, Luma([77])).save(folder.join("grey.png"))?;
    GrayImage::from_pixel(20, 9, Luma([77])).save(folder.join("grey.jpg"))?;
    RgbaImage::from_pixel(16, 16, Rgba([200, 100, 30, 10])).save(folder.join("rgba.png"))?;
    image::ImageBuffer::from_pixel(5, 400, Rgb(colour.map(|v| u16::from(v) * 257))).save(folder.join("16-bit.png"))?;
    RgbImage::from_pixel(1, 1, Rgb(colour)).save(folder.join("one.png"))?;
    let files = [
        ("rgb.png", colour, 0),
        ("rgb.jpg", colour, 3),
        ("grey.png", [77; 3], 0),
        ("grey.jpg", [77; 3], 2),
        ("rgba.png", colour, 0),
        ("16-bit.png", colour, 0),
        ("one.png", colour, 0),
    ];
    let (dataset, photos) = one_class(&folder, 12, &files.map(|(name, ..)| name));
    let images = Images::files(&dataset, photos);
    for (row, (name, colour, off)) in files.into_iter().enumerate() {
        let training = images.training_batch(&config(Network::Conv), dataset.shape, 0, 3, 0, &[row])?;
        for pixels in [training, images.test_batch(dataset.shape, &[row])?] {
            assert_eq!(pixels.len(), 3 * 12 * 12);
            for (c, plane) in pixels.chunks(144).enumerate() {
                let expected = (f32::from(colour[c]) / 255.0 - MEAN[c]) / DEVIATION[c];
                let bound = off as f32 / 255.0 / DEVIATION[c] + 1e-6;
                assert!(plane.iter().all(|v| (v - expected).abs() <= bound), "{name} {c}: {plane:?} {expected}");
            }
        }
    }
    Ok(())
}

#[test]
fn windows_at_random() {
    let draw = |width, height, seed| Window::random(width, height, &mut StdRng::seed_from_u64(seed));
    for (width, height) in [(500, 375), (375, 500), (224, 224), (30, 300), (1000, 10), (3, 2), (1, 1), (1, 50)] {
        let mut drawn = HashSet::new();
        for seed in 0..400 {
            let window = draw(width, height, seed);
            let Window { x, y, width: w, height: h } = window;
            assert!(w >= 1 && h >= 1 && x + w <= width && y + h <= height, "{window:?} of {width} x {height}");
            assert_eq!(window, draw(width, height, seed));
            if width > 200 && height > 200 {
                let (area, aspect) = (f64::from(w * h) / f64::from(width * height), f64::from(w) / f64::from(h));
                assert!((0.079..=1.0).contains(&area), "{window:?}");
                assert!((0.74..1.35).contains(&aspect), "{window:?}");
            }
            drawn.insert((x, y, w, h));
        }
        if width > 200 && height > 200 {
            assert!(drawn.len() > 390, "{} windows of {width} x {height}", drawn.len());
        }
    }
    // Nothing of the aspect fits ten times out of ten: the middle.
    let middle = (0..400).filter(|&seed| draw(1000, 10, seed) == Window { x: 493, y: 0, width: 13, height: 10 });
    assert!(middle.count() > 300);
    let middle = (0..400).filter(|&seed| draw(10, 1000, seed) == Window { x: 0, y: 493, width: 10, height: 13 });
    assert!(middle.count() > 300);
}

/// Against the crate `image`: crop, then its triangle filter; flips and seeds as they were drawn.
#[test]
fn training_images_are_windows() -> Result<()> {
    let folder = folder("training");
    let mut rng = StdRng::seed_from_u64(1);
    let noise = RgbImage::from_fn(90, 70, |_, _| Rgb(rng.random()));
    noise.save(folder.join("large.png"))?;
    imageops::thumbnail(&noise, 9, 7).save(folder.join("small.png"))?;
    let side = 16;
    let (dataset, photos) = one_class(&folder, side, &["large.png", "small.png"]);
    for row in [0, 1] {
        let picture = image::open(folder.join(["large.png", "small.png"][row]))?.into_rgb8();
        for seed in 0..50 {
            let found = photos.training_image(row, &mut StdRng::seed_from_u64(seed))?;
            let rng = &mut StdRng::seed_from_u64(seed);
            let Window { x, y, width, height } = Window::random(picture.width(), picture.height(), rng);
            let cut = imageops::crop_imm(&picture, x, y, width, height).to_image();
            let expected = planar(&imageops::resize(&cut, side as u32, side as u32, FilterType::Triangle));
            let far = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(far <= Some(1), "row {row}, seed {seed}: {far:?}");
        }
    }
    // An epoch, a row and a seed have a picture of their own, whatever the other rows and however many threads.
    let images = Images::files(&dataset, photos);
    let config = Config { flip: true, ..config(Network::Conv) };
    let batch = |epoch, rows: &[usize]| images.training_batch(&config, dataset.shape, 0, epoch, 0, rows);
    let rows: Vec<usize> = (0..40).map(|i| i % 2).collect();
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let (one, four) = (pool(1)?.install(|| batch(0, &rows))?, pool(4)?.install(|| batch(0, &rows))?);
    assert_eq!(one, four);
    assert_eq!(one[..dataset.shape.pixels()], batch(0, &[0])?);
    assert_ne!(batch(1, &rows)?, one);
    let other = Config { seed: 4, ..config.clone() };
    assert_ne!(images.training_batch(&other, dataset.shape, 0, 0, 0, &rows)?, one);
    Ok(())
}

/// The shorter side becomes 256/224 of the side, and the middle is taken.
#[test]
fn test_images_are_the_middle() -> Result<()> {
    let folder = folder("test");
    let side = 28; // of 32
    ramp(32, 32).save(folder.join("square.png"))?;
    ramp(41, 32).save(folder.join("wide.png"))?;
    ramp(32, 36).save(folder.join("high.png"))?;
    ramp(100, 64).save(folder.join("large.png"))?;
    ramp(9, 11).save(folder.join("small.png"))?;
    ramp(2, 5000).save(folder.join("long.png"))?;
    let files = ["square.png", "wide.png", "high.png", "large.png", "small.png", "long.png"];
    let (_, photos) = one_class(&folder, side, &files);
    // As they are: a window without a weight but 1. 6.5 is rounded to the even 6, as Python does.
    for (row, (x, y)) in [(2, 2), (6, 2), (2, 4)].into_iter().enumerate() {
        let picture = image::open(folder.join(files[row]))?.into_rgb8();
        let expected = planar(&imageops::crop_imm(&picture, x, y, 28, 28).to_image());
        assert_eq!(photos.test_image(row)?, expected, "{}", files[row]);
    }
    for (row, (width, height), (x, y)) in
        [(3, (50, 32), (11, 2)), (4, (32, 39), (2, 6)), (5, (32, 80_000), (2, 39_986))]
    {
        let picture = image::open(folder.join(files[row]))?.into_rgb8();
        let resized = imageops::resize(&picture, width, height, FilterType::Triangle);
        let expected = planar(&imageops::crop_imm(&resized, x, y, 28, 28).to_image());
        let far = photos.test_image(row)?.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(far <= Some(1), "{}: {far:?}", files[row]);
    }
    Ok(())
}

/// 20, 10 and 5 pictures, each of its class's colour, in noise.
fn three_classes(name: &str) -> PathBuf {
    let folder = folder(name);
    let mut rng = StdRng::seed_from_u64(11);
    let mut list = String::new();
    for (class, n) in [20, 10, 5].into_iter().enumerate() {
        std::fs::create_dir(folder.join(class.to_string())).unwrap();
        for i in 0..n {
            let mut value = |c| rng.random_range(0..100) + if c == class { 150 } else { 0 };
            let picture = RgbImage::from_fn(24 + i, 40 - i, |_, _| Rgb([value(0), value(1), value(2)]));
            let file = format!("{class}/{i}.{}", if i % 2 == 0 { "jpg" } else { "png" });
            picture.save(folder.join(&file)).unwrap();
            list += &format!("{file} {class}\n");
        }
    }
    write_lists(&folder, &list);
    folder
}

fn config(network: Network) -> Config {
    Config {
        dataset: "three classes".into(),
        imbalance_factor: 4.0,
        data_seed: 0,
        method: Method::DbmBs,
        seed: 3,
        network,
        epochs: 2,
        batch_size: 12,
        lr: 0.02,
        momentum: 0.9,
        weight_decay: 2e-4,
        warmup_epochs: 1,
        padding: 0,
        flip: true,
        auto_augment: false,
        cutout: 0,
        numbers: Numbers {
            scale: 16.0,
            k: 0.1,
            tau: 1.0,
            gate: Gate::HardPositives,
            ldam_margin: 0.5,
            beta: 0.9999,
            drw_epoch: 1,
            companion: None,
        },
    }
}

#[test]
fn two_epochs_learn() -> Result<()> {
    let folder = three_classes("learns");
    let (dataset, photos) = read(&folder, 16)?;
    let images = Images::files(&dataset, photos);
    for network in [Network::Conv, Network::Resnet32] {
        let mut run = Run::new(config(network), &dataset, &images, &Device::Cpu, None)?;
        assert!(run.train(&ProgressBar::hidden(), &|| false, |_| Ok(()))?);
        let history = &run.progress.history;
        assert!(history[1].train_loss < 0.9 * history[0].train_loss, "{network:?}: {history:?}");
    }
    Ok(())
}

/// A run that is stopped in the middle of an epoch, and taken up from its checkpoint, ends with the bits of one that was not.
#[test]
fn a_resumed_run_is_the_run() -> Result<()> {
    let folder = three_classes("resumed");
    let (dataset, photos) = read(&folder, 16)?;
    let images = Images::files(&dataset, photos);
    let config = Config { auto_augment: true, cutout: 4, ..config(Network::Resnet32) };
    let path = folder.join("checkpoint.safetensors");
    let bits = |run: &Run| -> Result<BTreeMap<String, Vec<u32>>> {
        run.save(&path)?;
        let (tensors, _) = checkpoint::load::<serde_json::Value>(&path, &Device::Cpu)?;
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        tensors.iter().map(|(name, t)| Ok((name.clone(), values(t)?.into_iter().map(f32::to_bits).collect()))).collect()
    };
    let new = || Run::new(config.clone(), &dataset, &images, &Device::Cpu, None);
    let mut whole = new()?;
    assert!(whole.train(&ProgressBar::hidden(), &|| false, |_| Ok(()))?);
    let expected = bits(&whole)?;
    let mut part = new()?;
    let asked = Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) == 4;
    assert!(!part.train(&ProgressBar::hidden(), &stop, |_| Ok(()))?);
    assert_eq!((part.progress.history.len(), part.progress.batch), (1, 1), "in the middle of an epoch");
    part.save(&path)?;
    let mut resumed = Run::resume(&path, config.clone(), &dataset, &images, &Device::Cpu)?;
    assert!(resumed.train(&ProgressBar::hidden(), &|| false, |_| Ok(()))?);
    assert_eq!(resumed.progress, whole.progress);
    assert_eq!(bits(&resumed)?, expected);
    Ok(())
}
