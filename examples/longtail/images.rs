//! Fashion-MNIST's gzipped IDX files and CIFAR's binary files, as long-tailed datasets.

use std::io::Read;
use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::data::{DataError, Dataset, Grouping, Samples, Shape, by_class, long_tail, read};

/// Where Debian's package `dataset-fashion-mnist` puts its files.
pub const DEBIAN_FASHION_MNIST: &str = "/usr/share/datasets/fashion-mnist";

const FASHION_CLASSES: [&str; 10] =
    ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// Which of CIFAR's two sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cifar {
    Ten,
    Hundred,
}

/// Fashion-MNIST from the folder that holds its four gzipped IDX files.
pub fn fashion_mnist(folder: &Path, imbalance_factor: f64, seed: u64) -> Result<Dataset, DataError> {
    let part = |name: &str| -> Result<Samples, DataError> {
        let (size, pixels) = idx(&folder.join(format!("{name}-images-idx3-ubyte.gz")), 3)?;
        if size[1..] != [28, 28] {
            let path = folder.join(format!("{name}-images-idx3-ubyte.gz"));
            return Err(DataError::corrupt(&path, format!("images of {}x{}, 28x28 are expected", size[1], size[2])));
        }
        let path = folder.join(format!("{name}-labels-idx1-ubyte.gz"));
        let (labels_size, labels) = idx(&path, 1)?;
        if labels_size[0] != size[0] {
            return Err(DataError::corrupt(&path, format!("{} labels for {} images", labels_size[0], size[0])));
        }
        check_labels(&path, &labels, 10)?;
        Ok(samples(&pixels, &labels))
    };
    let shape = Shape { channels: 1, height: 28, width: 28 };
    let names = FASHION_CLASSES.iter().map(|name| name.to_string()).collect();
    cut("fashion-mnist", part("train")?, part("t10k")?, shape, names, imbalance_factor, seed)
}

/// CIFAR-10 or CIFAR-100 from the folder that holds the files of its binary version.
pub fn cifar(which: Cifar, folder: &Path, imbalance_factor: f64, seed: u64) -> Result<Dataset, DataError> {
    let (name, classes, label_bytes) = match which {
        Cifar::Ten => ("cifar10", 10, 1),
        // The coarse label comes first, the fine one second.
        Cifar::Hundred => ("cifar100", 100, 2),
    };
    let train_files: Vec<String> = match which {
        Cifar::Ten => (1..=5).map(|batch| format!("data_batch_{batch}.bin")).collect(),
        Cifar::Hundred => vec!["train.bin".into()],
    };
    let test_file = if which == Cifar::Ten { "test_batch.bin" } else { "test.bin" };
    let part = |files: &[String]| -> Result<Samples, DataError> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for file in files {
            let path = folder.join(file);
            let bytes = read(&path, || {
                let set = if which == Cifar::Ten { "CIFAR-10" } else { "CIFAR-100" };
                format!(
                    "unpack the binary version of {set} (cs.toronto.edu/~kriz/cifar.html) and name its folder with --data"
                )
            })?;
            cifar_records(&path, &bytes, label_bytes, classes, &mut pixels, &mut labels)?;
        }
        Ok(samples(&pixels, &labels))
    };
    let names = (0..classes).map(|class| format!("class {class}")).collect();
    let shape = Shape { channels: 3, height: 32, width: 32 };
    cut(name, part(&train_files)?, part(&[test_file.into()])?, shape, names, imbalance_factor, seed)
}

/// Appends the pixels (N, 3·32·32) and labels (N) of one binary CIFAR file.
pub fn cifar_records(
    path: &Path,
    bytes: &[u8],
    label_bytes: usize,
    classes: usize,
    pixels: &mut Vec<u8>,
    labels: &mut Vec<u8>,
) -> Result<(), DataError> {
    let record = label_bytes + 3 * 32 * 32;
    if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
        let what = format!("{} bytes are not a whole number of records of {record} bytes: truncated?", bytes.len());
        return Err(DataError::corrupt(path, what));
    }
    let first = labels.len();
    for record in bytes.chunks_exact(record) {
        labels.push(record[label_bytes - 1]);
        pixels.extend_from_slice(&record[label_bytes..]);
    }
    check_labels(path, &labels[first..], classes)
}

/// Size and bytes of a gzipped IDX file of unsigned bytes in `rank` dimensions.
pub fn idx(path: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let packed = read(path, || {
        format!(
            "install Fashion-MNIST (Debian: apt-get install dataset-fashion-mnist, which puts it in {DEBIAN_FASHION_MNIST}) \
             or name the folder of its four .gz files with --data"
        )
    })?;
    let corrupt = |what: String| DataError::corrupt(path, what);
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice())
        .read_to_end(&mut bytes)
        .map_err(|error| corrupt(format!("not a whole gzip file: {error}")))?;
    let header = 4 + 4 * rank;
    if bytes.len() < header {
        return Err(corrupt(format!("{} bytes, an IDX header has {header}", bytes.len())));
    }
    let expected = [0, 0, 8, rank as u8];
    if bytes[..4] != expected {
        return Err(corrupt(format!("starts with {:?}, not with the IDX magic {expected:?}", &bytes[..4])));
    }
    let size: Vec<usize> = bytes[4..header]
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")) as usize)
        .collect();
    let whole = size.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
    if whole != Some(bytes.len() - header) {
        return Err(corrupt(format!("its header says {size:?}, it holds {} bytes", bytes.len() - header)));
    }
    bytes.drain(..header);
    Ok((size, bytes))
}

fn check_labels(path: &Path, labels: &[u8], classes: usize) -> Result<(), DataError> {
    match labels.iter().position(|&label| usize::from(label) >= classes) {
        Some(row) => {
            Err(DataError::corrupt(path, format!("label {} of sample {row} is not in 0..{classes}", labels[row])))
        }
        None => Ok(()),
    }
}

fn samples(pixels: &[u8], labels: &[u8]) -> Samples {
    Samples {
        pixels: pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect(),
        labels: labels.iter().map(|&label| u32::from(label)).collect(),
    }
}

fn cut(
    name: &str,
    train: Samples,
    test: Samples,
    shape: Shape,
    class_names: Vec<String>,
    imbalance_factor: f64,
    seed: u64,
) -> Result<Dataset, DataError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (kept, counts) = long_tail(&by_class(&train.labels, class_names.len()), imbalance_factor, &mut rng)?;
    let title = format!(
        "{name}: {} classes, {} training images ({} to {} a class), {} test images",
        class_names.len(),
        kept.len(),
        counts.max(),
        counts.min(),
        test.len()
    );
    let groups = Grouping::by_thresholds(&counts);
    Ok(Dataset { title, shape, class_names, train: vec![train.select(&kept)], test, counts, groups })
}
