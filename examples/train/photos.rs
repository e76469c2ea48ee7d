//! Photographs in files, named with their labels by a list file: ImageNet-LT and iNaturalist 2018. A photograph is decoded when a batch wants it, cropped
//! at random for training (Szegedy et al. 2015) and in the middle for the test, as torchvision does.

use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_margin_loss::ClassCounts;
use image::{ImageFormat, ImageReader, RgbImage};
use rand::Rng;

use crate::data::{DataError, Dataset, Grouping, Samples, Shape, read};

/// Mean and deviation of ImageNet's red, green and blue.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// A data set's name and those of its list files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    pub set: &'static str,
    pub train: &'static str,
    pub test: &'static str,
}

pub const IMAGENET_LT: Names =
    Names { set: "imagenet-lt", train: "ImageNet_LT_train.txt", test: "ImageNet_LT_test.txt" };
pub const INATURALIST_2018: Names =
    Names { set: "inaturalist2018", train: "iNaturalist18_train.txt", test: "iNaturalist18_val.txt" };

/// The files of a data set, and the side of the squares that are made of them.
#[derive(Debug)]
pub struct Photos {
    folder: PathBuf,
    side: usize,
    train: List,
    test: List,
}

/// A list file, and the file names in it: row n is its line n + 1.
#[derive(Debug)]
struct List {
    path: PathBuf,
    files: Vec<String>,
}

impl Photos {
    /// Reads the two list files in `lists`; the images stay in `folder`. The samples of the dataset have labels and no pixels.
    pub fn read(names: Names, folder: &Path, lists: &Path, side: usize) -> Result<(Dataset, Self), DataError> {
        let (train, train_labels) = List::read(&lists.join(names.train), names)?;
        let (test, test_labels) = List::read(&lists.join(names.test), names)?;
        if !folder.is_dir() {
            let hint = format!("it is to be the folder of {}'s images, named with --data", names.set);
            return Err(DataError::Missing { path: folder.to_path_buf(), hint });
        }
        // Before anything is as long as the classes are many: the largest label may be any.
        let largest = train_labels.iter().chain(&test_labels).max().copied().unwrap_or(0);
        let mut seen = train_labels.clone();
        seen.sort_unstable();
        seen.dedup();
        let gap = (0..).zip(&seen).find(|(class, seen)| class != *seen).map(|(class, _)| class);
        let unseen = gap.unwrap_or(seen.len() as u32);
        if unseen <= largest {
            let what = format!("class {unseen} has no training sample, and the largest label is {largest}");
            return Err(DataError::corrupt(&train.path, what));
        }
        let mut counts = vec![0u64; seen.len()];
        train_labels.iter().for_each(|&label| counts[label as usize] += 1);
        let counts = ClassCounts::new(counts).map_err(|error| DataError::Settings(error.to_string()))?;
        let title = format!(
            "{}: {} classes, {} training images ({} to {} a class), {} test images, {side} x {side}",
            names.set,
            counts.classes(),
            train.files.len(),
            counts.max(),
            counts.min(),
            test.files.len()
        );
        let dataset = Dataset {
            title,
            shape: Shape { channels: 3, height: side, width: side },
            class_names: (0..counts.classes()).map(|class| format!("class {class}")).collect(),
            train: vec![Samples { pixels: Vec::new(), labels: train_labels }],
            test: Samples { pixels: Vec::new(), labels: test_labels },
            groups: Grouping::by_thresholds(&counts),
            counts,
        };
        Ok((dataset, Self { folder: folder.to_path_buf(), side, train, test }))
    }

    /// (3, side, side) of a window at random of a training image.
    pub fn training_image(&self, row: usize, rng: &mut impl Rng) -> Result<Vec<u8>, DataError> {
        let picture = self.train.picture(&self.folder, row)?;
        let Window { x, y, width, height } = Window::random(picture.width(), picture.height(), rng);
        let all = 0..self.side;
        Ok(resampled(&picture, &taps(x, width, self.side, all.clone()), &taps(y, height, self.side, all)))
    }

    /// (3, side, side): the middle of a test image, once its shorter side is 256/224 of `side`.
    pub fn test_image(&self, row: usize) -> Result<Vec<u8>, DataError> {
        let picture = self.test.picture(&self.folder, row)?;
        let (width, height) = picture.dimensions();
        let short = self.side * 256 / 224;
        let axis = |length: u32| {
            let size = (short as u64 * u64::from(length) / u64::from(width.min(height))) as usize;
            let start = ((size - self.side) as f64 / 2.0).round_ties_even() as usize;
            taps(0, length, size, start..start + self.side)
        };
        Ok(resampled(&picture, &axis(width), &axis(height)))
    }
}

impl List {
    /// Lines `path label`; and the labels.
    fn read(path: &Path, names: Names) -> Result<(Self, Vec<u32>), DataError> {
        let Names { set, train, test } = names;
        let bytes =
            read(path, || format!("the list files of {set} are {train} and {test}: name their folder with --lists"))?;
        let corrupt = |what: String| DataError::corrupt(path, what);
        let text = String::from_utf8(bytes).map_err(|error| corrupt(format!("not a text file: {error}")))?;
        let (mut files, mut labels) = (Vec::new(), Vec::new());
        for (n, line) in text.lines().enumerate() {
            let failed = |what: &str| corrupt(format!("line {}, {line:?}, {what}", n + 1));
            let (file, label) = line.trim_end().rsplit_once(char::is_whitespace).unwrap_or(("", ""));
            if file.trim().is_empty() {
                return Err(failed("is not a file name and a label"));
            }
            labels.push(label.parse().map_err(|_| failed("has a label that is not a whole number from 0"))?);
            files.push(file.trim().to_string());
        }
        if files.is_empty() {
            return Err(corrupt("it has no lines".into()));
        }
        Ok((Self { path: path.to_path_buf(), files }, labels))
    }

    /// Grey becomes colour, and opacity is left out.
    fn picture(&self, folder: &Path, row: usize) -> Result<RgbImage, DataError> {
        let path = folder.join(&self.files[row]);
        let named = format!("named by line {} of {}", row + 1, self.path.display());
        let corrupt = |what: &str| DataError::corrupt(&path, format!("{what}; {named}"));
        let bytes = read(&path, || named.clone()).map_err(|error| match error {
            DataError::Io { source, .. } => corrupt(&source.to_string()),
            other => other,
        })?;
        // By its first bytes: ImageNet has a PNG file with the name of a JPEG one.
        let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format();
        let reader = reader.map_err(|error| corrupt(&error.to_string()))?;
        match reader.format() {
            None => return Err(corrupt("neither JPEG nor PNG")),
            Some(ImageFormat::Jpeg) if !is_whole(&bytes) => return Err(corrupt("the JPEG file is truncated")),
            Some(_) => {}
        }
        Ok(reader.decode().map_err(|error| corrupt(&error.to_string()))?.into_rgb8())
    }
}

/// Whether a JPEG file goes on to its end-of-image marker: the decoder takes one that does not, and makes up the rest.
fn is_whole(jpeg: &[u8]) -> bool {
    // 0 and 0xd0 to 0xd7 are within a scan, 0xff is filling.
    let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff);
    let mut rest = jpeg;
    while let Some(at) = rest.windows(2).position(is_marker) {
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match (marker, rest.first_chunk()) {
            (0xd9, _) => return true,
            (0x01 | 0xd8, _) => {} // no segment
            (_, Some(&length)) => rest = rest.get(usize::from(u16::from_be_bytes(length))..).unwrap_or_default(),
            (_, None) => return false,
        }
    }
    false
}

/// A part of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl Window {
    /// 8 % to all of the area, 3/4 to 4/3 as wide as high; after ten that were not inside, the middle.
    pub fn random(width: u32, height: u32, rng: &mut impl Rng) -> Self {
        const ASPECT: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
        for _ in 0..10 {
            let area = f64::from(width) * f64::from(height) * rng.random_range(0.08..=1.0);
            let aspect: f64 = rng.random_range(ASPECT[0].ln()..=ASPECT[1].ln()).exp();
            let (w, h) = ((area * aspect).sqrt().round() as u32, (area / aspect).sqrt().round() as u32);
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let (y, x) = (rng.random_range(0..=height - h), rng.random_range(0..=width - w));
                return Self { x, y, width: w, height: h };
            }
        }
        let rounded = |length: u32, by: f64| (f64::from(length) * by).round() as u32;
        let (w, h) = (width.min(rounded(height, ASPECT[1])), height.min(rounded(width, 1.0 / ASPECT[0])));
        Self { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
    }
}

/// A first source pixel and the weights of those from there on.
type Taps = (usize, Vec<f32>);

/// For the pixels `wanted` of `length` source pixels from `start` that become `size`: a triangle as wide as two of the larger pixels, as PIL has it.
fn taps(start: u32, length: u32, size: usize, wanted: Range<usize>) -> Vec<Taps> {
    let (start, length) = (start as usize, length as usize);
    let scale = length as f64 / size as f64;
    let reach = scale.max(1.0);
    let of_pixel = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(length);
        let weight = |j: usize| (1.0 - ((j as f64 + 0.5 - centre) / reach).abs()).max(0.0);
        let sum: f64 = (first..end).map(weight).sum();
        (start + first, (first..end).map(|j| (weight(j) / sum) as f32).collect())
    };
    wanted.map(of_pixel).collect()
}

/// (3, y, x): across, then down.
fn resampled(picture: &RgbImage, x: &[Taps], y: &[Taps]) -> Vec<u8> {
    let top = y.first().map_or(0, |(first, _)| *first);
    let bottom = y.last().map_or(0, |(first, weights)| first + weights.len());
    let mut rows = Vec::with_capacity((bottom - top) * 3 * x.len()); // (bottom − top, 3, x)
    for line in picture.as_raw().chunks_exact(3 * picture.width() as usize).take(bottom).skip(top) {
        for c in 0..3 {
            rows.extend(x.iter().map(|(first, weights)| {
                let pixels = line[3 * first + c..].iter().step_by(3);
                weights.iter().zip(pixels).map(|(weight, &v)| weight * f32::from(v)).sum::<f32>()
            }));
        }
    }
    let mut out = Vec::with_capacity(3 * y.len() * x.len());
    let mut sums = vec![0f32; x.len()];
    for c in 0..3 {
        for (first, weights) in y {
            sums.fill(0.0);
            for (row, weight) in (first - top..).zip(weights) {
                let row = &rows[(3 * row + c) * x.len()..][..x.len()];
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += weight * v);
            }
            out.extend(sums.iter().map(|v| (v + 0.5) as u8));
        }
    }
    out
}
