//! Handwritten LaTeX symbols: the pen strokes that the crate `detexify` carries, drawn as small grey images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_margin_loss::ClassCounts;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use crate::data::{DataError, Dataset, Grouping, Samples, Shape, long_tail, read};

/// To be shown wherever the data is used.
pub const ATTRIBUTION: &str = "Data: handwritten symbols of Detexify by Daniel Kirsch and its contributors (github.com/kirel/detexify-data), \
     Open Database License (ODbL) 1.0, as carried by the crate detexify.";

/// A point of a pen stroke, in a unit box; y grows downwards.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Point {
    pub x: f32,
    pub y: f32,
}

/// One drawing of a symbol: strokes, each a list of points.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Drawing {
    pub strokes: Vec<Vec<Point>>,
}

/// A class: a symbol's name, such as `amssymb-OT1-_mathfrak{H}`, and its drawings.
pub struct Symbol {
    pub name: String,
    pub drawings: Vec<Drawing>,
}

/// How the drawings become a dataset.
pub struct Options {
    /// The classes' own long tail instead of an exponential one.
    pub natural: bool,
    /// Symbols to leave out, those with most drawings first: what is chosen on other symbols than a test's is no choice on the test.
    pub skip: usize,
    pub classes: usize,
    pub test_per_class: usize,
    pub imbalance_factor: f64,
    /// Height and width of the images.
    pub side: usize,
    /// Renderings of each training drawing: the first as drawn, the others turned, scaled and shifted a little.
    pub renderings: usize,
    pub seed: u64,
}

/// The file `snapshot.json` of the crate `detexify`, which cargo brought as a dev-dependency of this crate.
pub fn find_snapshot() -> Result<PathBuf, DataError> {
    from_cargo_metadata().or_else(from_cargo_home).ok_or_else(|| DataError::Missing {
        path: PathBuf::from("snapshot.json of the crate detexify"),
        hint: "run the example with `cargo run`, so that cargo can say where it keeps the crate, or name the file's folder with --data".into(),
    })
}

fn from_cargo_metadata() -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        manifest_path: PathBuf,
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--manifest-path"])
        .arg(manifest)
        .output()
        .ok()?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).ok()?;
    let detexify = metadata.packages.into_iter().find(|package| package.name == "detexify")?;
    Some(detexify.manifest_path.with_file_name("snapshot.json")).filter(|path| path.is_file())
}

fn from_cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = std::fs::read_dir(home.join("registry").join("src")).ok()?;
    let crates =
        registries.flatten().filter_map(|registry| std::fs::read_dir(registry.path()).ok()).flatten().flatten();
    let is_detexify =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("detexify-"));
    crates
        .map(|entry| entry.path())
        .filter(is_detexify)
        .map(|path| path.join("snapshot.json"))
        .find(|path| path.is_file())
}

/// Reads a snapshot: symbols by rising name.
pub fn read_snapshot(path: &Path) -> Result<Vec<Symbol>, DataError> {
    let text = read(path, || "--data must name the folder that holds snapshot.json".into())?;
    let by_key: BTreeMap<String, Vec<Drawing>> =
        serde_json::from_slice(&text).map_err(|error| DataError::corrupt(path, format!("not a snapshot: {error}")))?;
    let mut symbols: Vec<Symbol> = by_key
        .into_iter()
        .map(|(key, drawings)| Symbol { name: decode_base64(&key).unwrap_or(key), drawings })
        .collect();
    symbols.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(symbols)
}

fn decode_base64(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for character in text.bytes().filter(|&character| character != b'=') {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The symbols with most drawings (the first by name at a tie), each with `test_per_class` drawings held out, as a long-tailed dataset.
///
/// Which symbols are the frequent ones is drawn by the seed where the tail is exponential; the natural tail is what the data has.
pub fn dataset(mut symbols: Vec<Symbol>, options: &Options) -> Result<Dataset, DataError> {
    let Options { natural, classes, test_per_class, side, renderings, .. } = *options;
    if classes < 3 || test_per_class < 1 || renderings < 1 || side < 4 {
        return Err(DataError::Settings(
            "at least 3 classes, 1 test drawing a class, 1 rendering and images of 4 pixels are needed".into(),
        ));
    }
    let mut rng = StdRng::seed_from_u64(options.seed);
    symbols.retain(|symbol| symbol.drawings.len() > test_per_class);
    symbols.sort_by_key(|symbol| std::cmp::Reverse(symbol.drawings.len()));
    symbols.drain(..options.skip.min(symbols.len()));
    if natural {
        // Every k-th symbol from the largest to the smallest, so that a few classes too have the data's own tail.
        let all = symbols.len();
        let classes = classes.min(all);
        let picked: Vec<usize> = (0..classes).map(|j| j * (all - 1) / (classes - 1)).collect();
        let mut position = 0;
        symbols.retain(|_| {
            position += 1;
            picked.binary_search(&(position - 1)).is_ok()
        });
    } else {
        if symbols.len() < classes {
            return Err(DataError::Settings(format!(
                "{classes} classes are asked for, {} symbols have more than {test_per_class} drawings",
                symbols.len()
            )));
        }
        symbols.truncate(classes);
        symbols.shuffle(&mut rng);
    }
    let (mut train, mut test) = (Vec::new(), Vec::new());
    let mut train_of_class = Vec::new();
    for (class, symbol) in symbols.iter().enumerate() {
        let mut drawings: Vec<&Drawing> = symbol.drawings.iter().collect();
        drawings.shuffle(&mut rng);
        let (held_out, rest) = drawings.split_at(test_per_class);
        test.extend(held_out.iter().map(|&drawing| (drawing, class as u32)));
        train_of_class.push((train.len()..train.len() + rest.len()).collect::<Vec<_>>());
        train.extend(rest.iter().map(|&drawing| (drawing, class as u32)));
    }
    let (kept, counts) = if natural {
        let counts = ClassCounts::new(train_of_class.iter().map(|members| members.len() as u64).collect::<Vec<_>>());
        ((0..train.len()).collect(), counts.map_err(|error| DataError::Settings(error.to_string()))?)
    } else {
        long_tail(&train_of_class, options.imbalance_factor, &mut rng)?
    };
    let as_drawn = |drawing: &Drawing, _: &mut StdRng| rasterise(drawing, side);
    let jittered = |drawing: &Drawing, rng: &mut StdRng| rasterise(&jitter(drawing, rng), side);
    let kept: Vec<(&Drawing, u32)> = kept.into_iter().map(|position| train[position]).collect();
    let mut versions = vec![render(&kept, as_drawn, &mut rng)];
    versions.extend((1..renderings).map(|_| render(&kept, jittered, &mut rng)));
    let title = format!(
        "{}: {} handwritten symbols, {} training drawings ({} to {} a class), {} test drawings ({test_per_class} a class)",
        if natural { "detexify-natural" } else { "detexify" },
        symbols.len(),
        kept.len(),
        counts.max(),
        counts.min(),
        test.len()
    );
    Ok(Dataset {
        title,
        shape: Shape { channels: 1, height: side, width: side },
        class_names: symbols.iter().map(|symbol| symbol.name.clone()).collect(),
        train: versions,
        test: render(&test, as_drawn, &mut rng),
        groups: Grouping::thirds(&counts),
        counts,
    })
}

fn render(
    drawings: &[(&Drawing, u32)],
    mut draw: impl FnMut(&Drawing, &mut StdRng) -> Vec<f32>,
    rng: &mut StdRng,
) -> Samples {
    Samples {
        pixels: drawings.iter().flat_map(|(drawing, _)| draw(drawing, rng)).collect(),
        labels: drawings.iter().map(|(_, label)| *label).collect(),
    }
}

/// The drawing turned by up to 10°, scaled by up to 12 % in each direction and shifted by up to 4 % of its box, at random.
fn jitter(drawing: &Drawing, rng: &mut StdRng) -> Drawing {
    let (sin, cos) = rng.random_range(-10f32..10.0).to_radians().sin_cos();
    let scale = Point { x: rng.random_range(0.88..1.12), y: rng.random_range(0.88..1.12) };
    let shift = Point { x: rng.random_range(-0.04..0.04), y: rng.random_range(-0.04..0.04) };
    let moved = |point: &Point| {
        let (x, y) = ((point.x - 0.5) * scale.x, (point.y - 0.5) * scale.y);
        Point { x: 0.5 + cos * x - sin * y + shift.x, y: 0.5 + sin * x + cos * y + shift.y }
    };
    Drawing { strokes: drawing.strokes.iter().map(|stroke| stroke.iter().map(moved).collect()).collect() }
}

/// The drawing in a (side, side) image, row-major, from 0 (paper) to 1 (ink): the unit box with a margin of 1.5 pixels, lines of 1.4 pixels.
///
/// A pixel's ink is how far the line covers it, taken from the distance of the pixel's centre to the nearest segment.
pub fn rasterise(drawing: &Drawing, side: usize) -> Vec<f32> {
    const MARGIN: f32 = 1.5;
    const HALF_WIDTH: f32 = 0.7;
    let span = side as f32 - 2.0 * MARGIN;
    let place = |point: &Point| (MARGIN + point.x * span, MARGIN + point.y * span);
    let mut image = vec![0f32; side * side];
    let mut segment = |(ax, ay): (f32, f32), (bx, by): (f32, f32)| {
        let reach = HALF_WIDTH + 1.0;
        let (dx, dy) = (bx - ax, by - ay);
        let squared = dx * dx + dy * dy;
        // Saturating casts keep points outside the box, and NaN, off the image.
        let pixels =
            |a: f32, b: f32| (a.min(b) - reach).max(0.0) as usize..((a.max(b) + reach).max(0.0) as usize + 1).min(side);
        for row in pixels(ay, by) {
            for column in pixels(ax, bx) {
                let (px, py) = (column as f32 + 0.5 - ax, row as f32 + 0.5 - ay);
                let along = if squared > 0.0 { ((px * dx + py * dy) / squared).clamp(0.0, 1.0) } else { 0.0 };
                let distance = (px - along * dx).hypot(py - along * dy);
                let ink = (HALF_WIDTH + 0.5 - distance).clamp(0.0, 1.0);
                let pixel = &mut image[row * side + column];
                *pixel = pixel.max(ink);
            }
        }
    };
    for stroke in &drawing.strokes {
        match stroke.as_slice() {
            [dot] => segment(place(dot), place(dot)),
            points => points.windows(2).for_each(|pair| segment(place(&pair[0]), place(&pair[1]))),
        }
    }
    image
}
