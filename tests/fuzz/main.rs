//! Readers of files, and the builder, on inputs that nobody meant: an error of one sentence or a result, never a panic, never NaN. See `driver.rs`.
#![allow(dead_code, missing_docs)]

#[path = "../../examples/train/checkpoint.rs"]
mod checkpoint;
#[path = "../../examples/longtail/data.rs"]
mod data;
mod driver;
#[path = "../../examples/longtail/images.rs"]
mod images;
mod options;
#[path = "../../examples/train/photos.rs"]
mod photos;
#[path = "../../examples/longtail/strokes.rs"]
mod strokes;

use std::collections::HashMap;
use std::io::Write;

use candle_core::{Device, Tensor};
use flate2::Compression;
use flate2::write::GzEncoder;
use image::{ImageFormat, RgbImage};
use photos::{IMAGENET_LT, Photos};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn list_files() {
    let path = driver::place("lists", "txt");
    let folder = path.parent().unwrap();
    std::fs::write(folder.join(IMAGENET_LT.test), "a.jpg 0\nb.jpg 1\n").unwrap();
    let seeds =
        ["a.jpg 0\nb c.jpg 1\nd/e.jpg 1\n", "a\t0\r\nb\t1\r\n", "x 1\ny 0\nz 2\n"].map(|text| text.as_bytes().to_vec());
    let path = folder.join(IMAGENET_LT.train);
    let words = ["\n", " ", "\t", "0\n", "a.jpg 2\n", "\u{feff}", "\u{2003}", "é"];
    driver::files("lists", &path, &seeds, &words, |_| {
        Photos::read(IMAGENET_LT, folder, folder, 8).err().map(|e| e.to_string())
    });
}

/// The bytes inside the gzip file, and the gzip file itself.
#[test]
fn idx_files() {
    let idx = |size: &[u32], values: &[u8]| {
        let mut bytes = vec![0, 0, 8, size.len() as u8];
        size.iter().for_each(|length| bytes.extend(length.to_be_bytes()));
        bytes.extend(values);
        bytes
    };
    let path = driver::place("idx", "gz");
    let packed = [gzip(&idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6])), gzip(&idx(&[1, 4, 4], &[7; 16]))];
    driver::files("idx, packed", &path, &packed, &[], |_| images::idx(&path, 3).err().map(|e| e.to_string()));
    let plain = [idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]), idx(&[0, 5, 5], &[])];
    let inner = path.with_file_name("plain");
    driver::files("idx", &inner, &plain, &["\0\0\0\x02", "\u{7f}"], |bytes| {
        std::fs::write(&path, gzip(bytes)).unwrap();
        images::idx(&path, 3).err().map(|e| e.to_string())
    });
}

#[test]
fn cifar_files() {
    let path = driver::place("cifar", "bin");
    let seeds = [vec![1u8; 3073], vec![2u8; 2 * 3073]];
    driver::files("cifar", &path, &seeds, &[], |bytes| {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        let read = images::cifar_records(&path, bytes, 1, 10, &mut pixels, &mut labels);
        assert!(read.is_err() || pixels.len() == labels.len() * 3072);
        read.err().map(|e| e.to_string())
    });
}

#[test]
fn photographs() {
    let path = driver::place("photos", "jpg");
    let folder = path.parent().unwrap();
    for list in [IMAGENET_LT.train, IMAGENET_LT.test] {
        std::fs::write(folder.join(list), "input.jpg 0\n").unwrap();
    }
    let (_, photos) = Photos::read(IMAGENET_LT, folder, folder, 8).unwrap();
    let picture = RgbImage::from_fn(11, 9, |x, y| image::Rgb([(x * 20) as u8, (y * 25) as u8, 128]));
    let seeds = [ImageFormat::Jpeg, ImageFormat::Png].map(|format| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    });
    driver::files("photographs", &path, &seeds, &["IEND", "IDAT", "\u{7f}"], |_| {
        let trained = photos.training_image(0, &mut StdRng::seed_from_u64(1)).err();
        let tested = photos.test_image(0).err();
        assert_eq!(trained.is_some(), tested.is_some());
        tested.map(|e| e.to_string())
    });
}

#[test]
fn snapshots() {
    let path = driver::place("snapshot", "json");
    let seeds =
        [r#"{"YQ==": [{"strokes": [[{"x": 0.5, "y": 0.25}, {"x": 1, "y": 0}]]}], "YmI=": [{"strokes": []}]}"#, "{}"];
    let words = ["[", "{", "{\"strokes\": [[]]}", "\"", "]", "}", ",", "null", "1e400"];
    driver::files("snapshot", &path, &seeds.map(|text| text.as_bytes().to_vec()), &words, |_| {
        match strokes::read_snapshot(&path) {
            Err(error) => Some(error.to_string()),
            Ok(symbols) => {
                symbols
                    .iter()
                    .flat_map(|symbol| &symbol.drawings)
                    .for_each(|drawing| drop(strokes::rasterise(drawing, 8)));
                None
            }
        }
    });
}

#[test]
fn checkpoints() {
    let path = driver::place("checkpoint", "safetensors");
    let mut tensors = HashMap::new();
    tensors.insert("w".to_string(), Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap());
    checkpoint::save(&path, tensors, &serde_json::json!({"epoch": 3, "lr": 0.1})).unwrap();
    let seeds = [std::fs::read(&path).unwrap()];
    let words = [
        "\"F32\"",
        "\"I64\"",
        "\"BF16\"",
        "[",
        "{",
        "\"data_offsets\":[0,4]",
        "\"shape\":[2,18446744073709551615]",
        "record.json",
    ];
    driver::files("checkpoint", &path, &seeds, &words, |_| {
        checkpoint::load::<serde_json::Value>(&path, &Device::Cpu).err().map(|e| e.to_string())
    });
}
