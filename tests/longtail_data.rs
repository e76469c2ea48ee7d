//! The data code of the example `longtail`: readers on small synthetic files, whole and broken; the long tail; the drawing of strokes.
#![allow(dead_code)]

#[path = "../examples/longtail/data.rs"]
mod data;
#[path = "../examples/longtail/images.rs"]
mod images;
#[path = "../examples/longtail/strokes.rs"]
mod strokes;

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_margin_loss::{ClassCounts, Group};
use data::{Grouping, by_class, long_tail};
use flate2::Compression;
use flate2::write::GzEncoder;
use images::Cifar;
use rand::SeedableRng;
use rand::rngs::StdRng;
use strokes::{Drawing, Options, Point, Symbol, rasterise};

/// A folder of the test's own under cargo's.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("longtail_data").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn idx_bytes(size: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, size.len() as u8];
    size.iter().for_each(|length| bytes.extend(length.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn has<T>(result: Result<T, data::DataError>, parts: &[&str]) {
    let error = result.err().expect("an error").to_string();
    parts.iter().for_each(|part| assert!(error.contains(part), "{error:?} lacks {part:?}"));
}

#[test]
fn idx_files_whole_and_broken() {
    let folder = folder("idx");
    let path = folder.join("images.gz");
    let good = idx_bytes(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
    std::fs::write(&path, gzip(&good)).unwrap();
    assert_eq!(images::idx(&path, 3).unwrap(), (vec![2, 1, 3], vec![1, 2, 3, 4, 5, 6]));

    has(images::idx(&path, 1), &["images.gz", "IDX magic [0, 0, 8, 1]"]);
    std::fs::write(&path, gzip(&good[..good.len() - 1])).unwrap();
    has(images::idx(&path, 3), &["[2, 1, 3]", "holds 5 bytes"]);
    std::fs::write(&path, gzip(&good[..7])).unwrap();
    has(images::idx(&path, 3), &["7 bytes, an IDX header has 16"]);
    std::fs::write(&path, &gzip(&good)[..20]).unwrap();
    has(images::idx(&path, 3), &["not a whole gzip file"]);
    std::fs::write(&path, b"plain text").unwrap();
    has(images::idx(&path, 3), &["not a whole gzip file"]);
    // A size whose product overflows.
    std::fs::write(&path, gzip(&idx_bytes(&[u32::MAX, u32::MAX, u32::MAX], &[]))).unwrap();
    has(images::idx(&path, 3), &["its header says"]);
    has(
        images::idx(&folder.join("none.gz"), 3),
        &["none.gz is missing", "apt-get install dataset-fashion-mnist", "--data"],
    );
}

#[test]
fn fashion_mnist_from_a_folder() {
    let folder = folder("fashion");
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(folder.join(name), gzip(&bytes)).unwrap();
    let (train, test) = (40u8, 10u8);
    let labels = |n: u8| (0..n).map(|i| i % 10).collect::<Vec<_>>();
    let pixels = |n: u8| (0..n).flat_map(|i| vec![i; 784]).collect::<Vec<_>>();
    write("train-images-idx3-ubyte.gz", idx_bytes(&[u32::from(train), 28, 28], &pixels(train)));
    write("train-labels-idx1-ubyte.gz", idx_bytes(&[u32::from(train)], &labels(train)));
    write("t10k-images-idx3-ubyte.gz", idx_bytes(&[u32::from(test), 28, 28], &pixels(test)));
    write("t10k-labels-idx1-ubyte.gz", idx_bytes(&[u32::from(test)], &labels(test)));
    let set = images::fashion_mnist(&folder, 4.0, 0).unwrap();
    assert_eq!(set.counts.as_slice(), ClassCounts::exponential(4, 10, 4.0).unwrap().as_slice());
    assert_eq!((set.test.len(), set.train.len(), set.train[0].len() as u64), (10, 1, set.counts.total()));
    // Pixels follow their labels: image i is i everywhere and has label i mod 10.
    for (label, image) in set.train[0].labels.iter().zip(set.train[0].pixels.chunks(784)) {
        assert_eq!(((image[0] * 255.0).round() as u32) % 10, *label);
    }
    has(images::fashion_mnist(&folder, 5.0, 0), &["imbalance factor of 5", "class 8 has no sample"]);

    write("t10k-labels-idx1-ubyte.gz", idx_bytes(&[9], &labels(9)));
    has(images::fashion_mnist(&folder, 4.0, 0), &["t10k-labels", "9 labels for 10 images"]);
    write("t10k-labels-idx1-ubyte.gz", idx_bytes(&[10], &[10; 10]));
    has(images::fashion_mnist(&folder, 4.0, 0), &["label 10 of sample 0 is not in 0..10"]);
    write("t10k-images-idx3-ubyte.gz", idx_bytes(&[10, 4, 4], &[0; 160]));
    has(images::fashion_mnist(&folder, 4.0, 0), &["images of 4x4, 28x28 are expected"]);
}

#[test]
fn cifar_from_a_folder() {
    let folder = folder("cifar");
    has(images::cifar(Cifar::Ten, &folder, 1.0, 0), &["data_batch_1.bin is missing", "CIFAR-10", "--data"]);
    let record = |labels: &[u8], pixel: u8| [labels, &[pixel; 3072]].concat();
    let batch: Vec<u8> = (0..10).flat_map(|label| record(&[label], label)).collect();
    for number in 1..=5 {
        std::fs::write(folder.join(format!("data_batch_{number}.bin")), &batch).unwrap();
    }
    std::fs::write(folder.join("test_batch.bin"), &batch).unwrap();
    let set = images::cifar(Cifar::Ten, &folder, 5.0, 0).unwrap();
    assert_eq!((set.shape.pixels(), set.counts.max(), set.counts.min(), set.test.len()), (3072, 5, 1, 10));
    assert_eq!(set.test.pixels[9 * 3072], 9.0 / 255.0);

    // CIFAR-100 has a coarse label before the fine one.
    let fine: Vec<u8> = (0..100).flat_map(|label| record(&[19, label], label)).collect();
    std::fs::write(folder.join("train.bin"), &fine).unwrap();
    std::fs::write(folder.join("test.bin"), &fine).unwrap();
    let set = images::cifar(Cifar::Hundred, &folder, 1.0, 0).unwrap();
    assert_eq!(set.test.labels, (0..100).collect::<Vec<u32>>());

    std::fs::write(folder.join("test_batch.bin"), &batch[..batch.len() - 7]).unwrap();
    has(images::cifar(Cifar::Ten, &folder, 5.0, 0), &["test_batch.bin", "30723 bytes", "truncated?"]);
    std::fs::write(folder.join("test_batch.bin"), b"").unwrap();
    has(images::cifar(Cifar::Ten, &folder, 5.0, 0), &["0 bytes"]);
    // CIFAR-100's file where CIFAR-10's should be: right length or not, never taken silently.
    std::fs::write(folder.join("test_batch.bin"), record(&[77], 0)).unwrap();
    has(images::cifar(Cifar::Ten, &folder, 5.0, 0), &["label 77 of sample 0 is not in 0..10"]);
}

#[test]
fn the_long_tail_is_exponential_and_seeded() {
    let labels: Vec<u32> = (0..300).map(|i| i % 3).collect();
    let members = by_class(&labels, 3);
    let cut = |seed| long_tail(&members, 100.0, &mut StdRng::seed_from_u64(seed)).unwrap();
    let (kept, counts) = cut(1);
    assert_eq!(counts.as_slice(), [100, 10, 1]);
    for (class, &n) in counts.as_slice().iter().enumerate() {
        assert_eq!(kept.iter().filter(|&&position| labels[position] == class as u32).count() as u64, n);
    }
    let distinct: std::collections::BTreeSet<_> = kept.iter().collect();
    assert_eq!(distinct.len(), kept.len());
    assert_eq!(kept, cut(1).0);
    assert_ne!(kept, cut(2).0);
    has(long_tail(&members, 1000.0, &mut StdRng::seed_from_u64(1)), &["imbalance factor of 1000", "no sample"]);
}

#[test]
fn thirds_of_the_classes() {
    let counts = ClassCounts::new(vec![5, 40, 7, 7, 30, 2]).unwrap();
    let expected = [Group::Few, Group::Many, Group::Medium, Group::Medium, Group::Many, Group::Few];
    assert_eq!(Grouping::thirds(&counts).of_class, expected);
    let hundred = Grouping::thirds(&ClassCounts::exponential(40, 100, 20.0).unwrap()).of_class;
    let sizes = Group::ALL.map(|group| hundred.iter().filter(|&&of| of == group).count());
    assert_eq!(sizes, [34, 33, 33]);
}

fn stroke(points: &[(f32, f32)]) -> Vec<Point> {
    points.iter().map(|&(x, y)| Point { x, y }).collect()
}

#[test]
fn a_stroke_is_drawn_where_it_is() {
    let line = Drawing { strokes: vec![stroke(&[(0.0, 0.5), (1.0, 0.5)])] };
    let image = rasterise(&line, 20);
    let ink = |row: usize| image[row * 20..(row + 1) * 20].iter().sum::<f32>();
    // y = 10 is the edge between rows 9 and 10: both half a pixel away and covered up to 0.7, so 0.7 of each; rows 8 and 11 not at all.
    assert!((image[9 * 20 + 10] - 0.7).abs() < 1e-5 && (image[10 * 20 + 10] - 0.7).abs() < 1e-5, "{}", image[190]);
    assert_eq!((ink(8), ink(11)), (0.0, 0.0));
    assert!((ink(9) - ink(10)).abs() < 1e-4);
    // From x = 1.5 to 18.5, with round ends that just reach the outermost columns.
    assert!(image[9 * 20] > 0.0 && image[9 * 20] < 0.1 && image[9 * 20 + 1] > 0.5, "{:?}", &image[180..183]);
    assert!((0..20).all(|column| (image[180 + column] - image[199 - column]).abs() < 1e-4));
    // A transposed drawing gives the transposed image.
    let upright = rasterise(&Drawing { strokes: vec![stroke(&[(0.5, 0.0), (0.5, 1.0)])] }, 20);
    assert!((0..400).all(|i| (upright[(i % 20) * 20 + i / 20] - image[i]).abs() < 1e-6));
}

#[test]
fn odd_strokes_do_no_harm() {
    let blank = |strokes: Vec<Vec<Point>>| rasterise(&Drawing { strokes }, 20).iter().sum::<f32>() == 0.0;
    assert!(blank(vec![]) && blank(vec![vec![]]));
    assert!(!blank(vec![stroke(&[(0.5, 0.5)])]), "a dot is ink");
    assert!(blank(vec![stroke(&[(-9.0, 4.0), (-8.0, 5.0)])]), "outside the image");
    let image = rasterise(&Drawing { strokes: vec![stroke(&[(f32::NAN, 0.5), (1e30, 0.2), (0.5, -1e30)])] }, 20);
    assert!(image.iter().all(|ink| (0.0..=1.0).contains(ink)));
}

#[test]
fn snapshots_whole_and_broken() {
    let folder = folder("snapshot");
    let path = folder.join("snapshot.json");
    // "amssymb-OT1-_mathfrak{H}" and a key that is no base64.
    let text = r#"{"YW1zc3ltYi1PVDEtX21hdGhmcmFre0h9": [{"strokes": [[{"x": 0.25, "y": 1}]]}], "?": []}"#;
    std::fs::write(&path, text).unwrap();
    let symbols = strokes::read_snapshot(&path).unwrap();
    assert_eq!(
        symbols.iter().map(|symbol| symbol.name.as_str()).collect::<Vec<_>>(),
        ["?", "amssymb-OT1-_mathfrak{H}"]
    );
    assert_eq!(symbols[1].drawings, [Drawing { strokes: vec![stroke(&[(0.25, 1.0)])] }]);
    std::fs::write(&path, &text[..text.len() - 20]).unwrap();
    has(strokes::read_snapshot(&path), &["snapshot.json", "not a snapshot"]);
    has(strokes::read_snapshot(&folder.join("none.json")), &["none.json is missing", "--data"]);
}

#[test]
fn symbols_become_a_long_tailed_dataset() {
    let symbols = |sizes: &[usize]| -> Vec<Symbol> {
        let drawing = |class: usize, i: usize| Drawing {
            strokes: vec![stroke(&[(0.1 * class as f32, 0.0), (0.5, 0.01 * i as f32)])],
        };
        let symbol = |(class, &n): (usize, &usize)| Symbol {
            name: format!("symbol {class}"),
            drawings: (0..n).map(|i| drawing(class, i)).collect(),
        };
        sizes.iter().enumerate().map(symbol).collect()
    };
    let options = Options {
        natural: false,
        skip: 0,
        classes: 4,
        test_per_class: 2,
        imbalance_factor: 4.0,
        side: 8,
        renderings: 3,
        seed: 5,
    };
    let sizes = [3, 10, 12, 11, 10, 2];
    let set = strokes::dataset(symbols(&sizes), &options).unwrap();
    assert_eq!(set.counts.as_slice(), ClassCounts::exponential(8, 4, 4.0).unwrap().as_slice());
    assert_eq!((set.train.len(), set.test.len(), set.shape.pixels()), (3, 8, 64));
    assert!(by_class(&set.test.labels, 4).iter().all(|members| members.len() == 2), "the test set is balanced");
    assert!(set.train.iter().all(|version| version.labels == set.train[0].labels));
    assert_ne!(set.train[0].pixels, set.train[1].pixels);
    // No drawing is in both sets.
    let test: Vec<&[f32]> = set.test.pixels.chunks(64).collect();
    assert!(set.train[0].pixels.chunks(64).all(|image| !test.contains(&image)));
    let again = strokes::dataset(symbols(&sizes), &options).unwrap();
    assert_eq!((again.train, again.test), (set.train, set.test), "the seed decides");

    let natural = strokes::dataset(symbols(&sizes), &Options { natural: true, classes: 5, ..options }).unwrap();
    assert_eq!(natural.counts.as_slice(), [10, 9, 8, 8, 1]);
    has(strokes::dataset(symbols(&sizes), &Options { classes: 6, ..options }), &["6 classes are asked for, 5 symbols"]);
}

#[test]
fn cargo_brings_the_real_snapshot() {
    let symbols = strokes::read_snapshot(&strokes::find_snapshot().unwrap()).unwrap();
    let drawings: usize = symbols.iter().map(|symbol| symbol.drawings.len()).sum();
    assert_eq!((symbols.len(), drawings), (1072, 44_002));
}
