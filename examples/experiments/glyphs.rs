//! Printed glyphs: a class is a code point, a sample the drawing that a font has of it. Fonts of the validation and of the test are of families that training
//! never sees, and how many fonts have a code point is the long tail.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use ab_glyph::{Font, FontVec, PxScale, point};
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::corpus::{Corpus, Part, cached};
use crate::data::DataError;

const ATTRIBUTION: &str = "Data: glyphs of 249 families of Google Fonts under the SIL Open Font License, the Apache License 2.0 and the Ubuntu Font Licence, \
     as carried by the npm packages @expo-google-fonts; examples/experiments/fonts has their names.";

/// Families, as `fonts.sh` brings them.
const FAMILIES: usize = 249;
/// Pixels of an em in an image of 24; its baseline lies a quarter above the image's lower edge.
const EM: f32 = 17.0 / 24.0;
/// CJK ideographs that are kept: of 6,800 that the fonts have, those that most have.
const IDEOGRAPHS: usize = 1500;
/// Of a hundred groups of families.
const VALIDATION: usize = 15;
const TEST: usize = 25;
/// Training families that a class has at least.
const LEAST: usize = 3;

/// (side, side) of ink, row-major
pub type Image = Vec<u8>;

/// A family's regular style: what it has of code points, drawn.
pub struct Family {
    pub part: Part,
    pub glyphs: Vec<(char, Image)>,
}

/// Letters, digits, punctuation and symbols that at least three families of training, one of validation and one of the test have; the first code point of
/// those that most fonts draw alike, such as A and Α.
pub fn glyphs(
    fonts: &Path,
    cache: &Path,
    classes: Option<usize>,
    side: usize,
) -> Result<Corpus, Box<dyn std::error::Error + Send + Sync>> {
    let make = || -> Result<HashMap<String, Tensor>, Box<dyn std::error::Error + Send + Sync>> {
        let samples = draw(fonts, side)?;
        let n = samples.len();
        let labels: Vec<u32> = samples.iter().map(|sample| sample.0).collect();
        let parts: Vec<u8> = samples.iter().map(|sample| sample.1 as u8).collect();
        let pixels: Vec<u8> = samples.into_iter().flat_map(|sample| sample.2).collect();
        Ok(HashMap::from([
            ("labels".to_string(), Tensor::from_vec(labels, n, &Device::Cpu)?),
            ("parts".to_string(), Tensor::from_vec(parts, n, &Device::Cpu)?),
            ("pixels".to_string(), Tensor::from_vec(pixels, (n, side * side), &Device::Cpu)?),
        ]))
    };
    let tensors = cached(&cache.join(format!("glyphs-{side}.safetensors")), make)?;
    let labels = tensors["labels"].to_vec1::<u32>()?;
    let parts = tensors["parts"].to_vec1::<u8>()?;
    let pixels = tensors["pixels"].flatten_all()?.to_vec1::<u8>()?;
    // Every k-th class, by code point, where fewer than all are asked for.
    let all = labels.iter().max().map_or(0, |&most| most as usize + 1);
    let kept = classes.unwrap_or(all).clamp(1, all);
    let class_of =
        |label: usize| ((label + 1) * kept / all > label * kept / all).then_some((label * kept / all) as u32);
    let images =
        labels.iter().zip(&parts).zip(pixels.chunks_exact(side * side)).filter_map(|((&label, &part), image)| {
            let image = image.iter().map(|&v| f32::from(v) / 255.0).collect();
            Some((class_of(label as usize)?, Part::ALL[usize::from(part)], image))
        });
    Ok(Corpus::new("glyphs", ATTRIBUTION, side, images)?)
}

/// (class, part, image), by code point and family.
fn draw(fonts: &Path, side: usize) -> Result<Vec<(u32, Part, Image)>, DataError> {
    let folders = families(fonts)?;
    let regular = folders.iter().map(|folder| regular(folder)).collect::<Result<Vec<_>, _>>()?;
    let fonts = regular.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let covered: Vec<HashSet<char>> = fonts.iter().map(|font| font.codepoint_ids().map(|(_, c)| c).collect()).collect();
    let parts = parts(&folders, &covered);
    let mut by_part: HashMap<char, [usize; 3]> = HashMap::new();
    for (covered, part) in covered.iter().zip(&parts) {
        for &c in covered.iter().filter(|c| c.is_alphanumeric() || is_symbol(**c)) {
            by_part.entry(c).or_default()[*part as usize] += 1;
        }
    }
    by_part.retain(|_, of| of[0] >= LEAST && of[1] > 0 && of[2] > 0);
    let mut ideographs: Vec<char> = by_part.keys().copied().filter(|&c| is_ideograph(c)).collect();
    ideographs.sort_by_key(|c| (std::cmp::Reverse(by_part[c].iter().sum::<usize>()), *c));
    let rare: HashSet<char> = ideographs.into_iter().skip(IDEOGRAPHS).collect();
    by_part.retain(|c, _| !rare.contains(c));
    let drawn: Vec<Family> = fonts
        .iter()
        .zip(&parts)
        .map(|(font, &part)| {
            let mut kept: Vec<char> =
                font.codepoint_ids().map(|(_, c)| c).filter(|c| by_part.contains_key(c)).collect();
            kept.sort_unstable();
            kept.dedup();
            let glyphs = kept.into_iter().filter_map(|c| Some((c, rasterise(font, c, side)?))).collect();
            Family { part, glyphs }
        })
        .collect();
    let same = alike(&drawn);
    // What is drawn may be less than what is covered.
    let mut count: HashMap<char, [usize; 3]> = HashMap::new();
    for family in &drawn {
        family.glyphs.iter().for_each(|(c, _)| count.entry(*c).or_default()[family.part as usize] += 1);
    }
    let mut classes: Vec<char> = count
        .iter()
        .filter(|(c, of)| !same.contains(c) && of[0] >= LEAST && of[1] > 0 && of[2] > 0)
        .map(|(c, _)| *c)
        .collect();
    classes.sort_unstable();
    let class: HashMap<char, u32> = classes.iter().enumerate().map(|(j, &c)| (c, j as u32)).collect();
    let mut samples = Vec::new();
    for Family { part, glyphs } in drawn {
        samples.extend(glyphs.into_iter().filter_map(|(c, image)| Some((*class.get(&c)?, part, image))));
    }
    samples.sort_by_key(|sample| sample.0);
    Ok(samples)
}

/// Folders of the families, by name.
fn families(fonts: &Path) -> Result<Vec<PathBuf>, DataError> {
    let folder = fonts.join("node_modules/@expo-google-fonts");
    let hint = "sh examples/experiments/fonts.sh fetches the fonts into target/fonts; --fonts names another folder";
    let entries =
        std::fs::read_dir(&folder).map_err(|_| DataError::Missing { path: folder.clone(), hint: hint.to_string() })?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    if folders.len() != FAMILIES {
        let what = format!("has {} families, not {FAMILIES}: {hint}", folders.len());
        return Err(DataError::Corrupt { path: folder, what });
    }
    Ok(folders)
}

/// A family's file of the regular style; the first by name, no italic, where it has none.
fn regular(folder: &Path) -> Result<PathBuf, DataError> {
    let mut files = Vec::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(path) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&path) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            match path.extension() {
                _ if path.is_dir() => left.push(path),
                Some(extension) if extension == "ttf" => files.push(path),
                _ => {}
            }
        }
    }
    let name = |path: &PathBuf| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    files.sort_by_key(|path| (name(path).contains("Italic"), !name(path).contains("400Regular"), name(path)));
    files.into_iter().next().ok_or_else(|| DataError::corrupt(folder, "has no .ttf file"))
}

fn read(path: &Path) -> Result<FontVec, DataError> {
    let bytes = std::fs::read(path).map_err(|source| DataError::Io { path: path.to_path_buf(), source })?;
    FontVec::try_from_vec(bytes).map_err(|error| DataError::corrupt(path, error.to_string()))
}

/// Families whose names begin with the same word are relatives (PT Sans and PT Mono) and go to the same part. Those that have ideographs are dealt out
/// apart from the others, so that each part has some.
pub fn parts(folders: &[PathBuf], covered: &[HashSet<char>]) -> Vec<Part> {
    let word = |path: &PathBuf| {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        name.split('-').next().unwrap_or_default().to_string()
    };
    let mut by_word: Vec<(String, Vec<usize>)> = Vec::new();
    for (at, path) in folders.iter().enumerate() {
        match by_word.last_mut() {
            Some((last, members)) if *last == word(path) => members.push(at),
            _ => by_word.push((word(path), vec![at])),
        }
    }
    let mut parts = vec![Part::Train; folders.len()];
    let mut rng = StdRng::seed_from_u64(0x676c_7970);
    let has_ideographs = |members: &[usize]| members.iter().any(|&at| covered[at].contains(&'日'));
    for ideographs in [true, false] {
        let mut groups: Vec<&Vec<usize>> = by_word
            .iter()
            .map(|(_, members)| members)
            .filter(|members| has_ideographs(members) == ideographs)
            .collect();
        groups.shuffle(&mut rng);
        let of = |percent: usize| (groups.len() * percent).div_ceil(100);
        for (rank, members) in groups.iter().enumerate() {
            let part = match rank {
                _ if rank < of(VALIDATION) => Part::Validation,
                _ if rank < of(VALIDATION) + of(TEST) => Part::Test,
                _ => Part::Train,
            };
            members.iter().for_each(|&at| parts[at] = part);
        }
    }
    parts
}

fn is_ideograph(c: char) -> bool {
    ('\u{3400}'..='\u{9fff}').contains(&c)
}

/// Punctuation, currencies, arrows, mathematics, technical and geometric signs.
fn is_symbol(c: char) -> bool {
    c.is_ascii_punctuation()
        || ('\u{a1}'..='\u{bf}').contains(&c)
        || ('\u{2010}'..='\u{27bf}').contains(&c)
        || ('\u{3001}'..='\u{30ff}').contains(&c)
}

/// (side, side) of ink from 0 to 255, centred from left to right; None where nothing is drawn.
fn rasterise(font: &FontVec, c: char, side: usize) -> Option<Image> {
    let em = EM * side as f32;
    let scale = PxScale::from(em * font.height_unscaled() / font.units_per_em()?);
    let at = |x: f32| font.glyph_id(c).with_scale_and_position(scale, point(x, 0.75 * side as f32));
    let bounds = font.outline_glyph(at(0.0))?.px_bounds();
    let outline = font.outline_glyph(at(((side as f32 - bounds.width()) / 2.0 - bounds.min.x).round()))?;
    let (left, top) = (outline.px_bounds().min.x as i64, outline.px_bounds().min.y as i64);
    let mut image = vec![0u8; side * side];
    outline.draw(|x, y, ink| {
        let (x, y) = (left + i64::from(x), top + i64::from(y));
        if (0..side as i64).contains(&x) && (0..side as i64).contains(&y) {
            image[y as usize * side + x as usize] = (255.0 * ink).round().clamp(0.0, 255.0) as u8;
        }
    });
    image.iter().any(|&v| v > 0).then_some(image)
}

/// Code points that most fonts, of those that have both, draw exactly as they draw a lower one.
pub fn alike(families: &[Family]) -> HashSet<char> {
    let mut equal: HashMap<(char, char), usize> = HashMap::new();
    let mut has: HashMap<char, HashSet<usize>> = HashMap::new();
    for (at, family) in families.iter().enumerate() {
        let mut by_image: HashMap<&Image, Vec<char>> = HashMap::new();
        for (c, image) in &family.glyphs {
            by_image.entry(image).or_default().push(*c);
            has.entry(*c).or_default().insert(at);
        }
        for twins in by_image.values() {
            for (i, &low) in twins.iter().enumerate() {
                twins[i + 1..].iter().for_each(|&high| *equal.entry((low, high)).or_default() += 1);
            }
        }
    }
    let most = |(low, high): &(char, char), n: usize| 2 * n >= has[low].intersection(&has[high]).count();
    equal.iter().filter(|(pair, n)| most(pair, **n)).map(|(pair, _)| pair.1).collect()
}
