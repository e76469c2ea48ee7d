//! The example `experiments`: how its corpora are cut, what glyphs count as the same, and its statistics against R's.
#![allow(dead_code, missing_docs)]

#[path = "../examples/experiments/corpus.rs"]
mod corpus;
#[path = "../examples/longtail/data.rs"]
mod data;
#[path = "../examples/experiments/glyphs.rs"]
mod glyphs;
#[path = "../examples/experiments/statistics.rs"]
mod statistics;
#[path = "../examples/longtail/strokes.rs"]
mod strokes;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use corpus::Part;
use glyphs::Family;
use statistics::{Difference, Mean, holm};

/// A part's images by class, as bits.
fn by_class(samples: &data::Samples) -> HashMap<u32, Vec<Vec<u32>>> {
    let mut of: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
    let size = samples.pixels.len() / samples.len();
    for (image, &label) in samples.pixels.chunks_exact(size).zip(&samples.labels) {
        of.entry(label).or_default().push(image.iter().map(|v| v.to_bits()).collect());
    }
    of
}

#[test]
fn every_symbol_and_every_drawing_is_in_one_part() {
    let corpus = corpus::detexify(None, 8).unwrap();
    assert_eq!(corpus.counts.classes(), 1072);
    assert_eq!(corpus.parts.iter().map(data::Samples::len).sum::<usize>(), 44_002);
    assert_eq!((corpus.counts.min(), corpus.counts.total()), (1, corpus.part(Part::Train).len() as u64));
    let [train, validation, test] = corpus.parts.each_ref().map(by_class);
    for class in 0..1072 {
        let of = |part: &HashMap<u32, Vec<Vec<u32>>>| part.get(&class).map_or(0, Vec::len);
        let all = of(&train) + of(&validation) + of(&test);
        assert_eq!((of(&validation), of(&test)), (all / 5, all / 5), "class {class} of {all} drawings");
    }
    // The same cut in every run.
    assert_eq!(corpus::detexify(None, 8).unwrap().parts[2], corpus.parts[2]);
}

#[test]
fn fewer_symbols_keep_the_tail() {
    let corpus = corpus::detexify(Some(30), 8).unwrap();
    assert_eq!(corpus.counts.classes(), 30);
    // By falling number of drawings: a fifth is rounded down, so that 49 leave 31 and 50 leave 30.
    let counts = corpus.counts.as_slice();
    assert!(counts.windows(2).all(|pair| pair[0] + 1 >= pair[1]) && counts[0] > 25 && counts[29] < 5, "{counts:?}");
}

#[test]
fn relatives_are_in_one_part_and_each_part_has_ideographs() {
    let names = ["pt-mono", "pt-sans", "ubuntu", "ubuntu-mono"].map(String::from).into_iter();
    let names: Vec<String> = names.chain((0..60).map(|i| format!("font{i:02}-sans"))).collect();
    let mut folders: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    folders.sort();
    let covered: Vec<HashSet<char>> = (0..folders.len())
        .map(|i| if i % 8 == 0 { HashSet::from(['日', 'a']) } else { HashSet::from(['a']) })
        .collect();
    let parts = glyphs::parts(&folders, &covered);
    let part = |name: &str| parts[folders.iter().position(|folder| folder == Path::new(name)).unwrap()];
    assert_eq!((part("pt-mono"), part("ubuntu")), (part("pt-sans"), part("ubuntu-mono")));
    for wanted in Part::ALL {
        let of = |ideographs: bool| {
            parts.iter().zip(&covered).filter(|(part, c)| **part == wanted && c.contains(&'日') == ideographs).count()
        };
        assert!(of(true) > 0 && of(false) > 5, "{wanted:?}: {} and {}", of(true), of(false));
    }
}

#[test]
fn glyphs_that_most_fonts_draw_alike_are_one_class() {
    let family = |glyphs: &[(char, u8)]| Family {
        part: Part::Train,
        glyphs: glyphs.iter().map(|&(c, ink)| (c, vec![ink; 4])).collect(),
    };
    let families = [
        family(&[('A', 1), ('B', 2), ('Α', 1), ('Β', 2)]),
        family(&[('A', 3), ('B', 4), ('Α', 3), ('Β', 5)]),
        family(&[('A', 6), ('B', 7), ('Α', 8), ('Β', 9)]),
        family(&[('A', 6)]),
    ];
    // Α as A in two fonts of three, Β as B in one of three.
    assert_eq!(glyphs::alike(&families), HashSet::from(['Α']));
}

#[test]
fn missing_fonts_are_an_error_that_says_what_to_do() {
    let folder = std::env::temp_dir().join(format!("candle-margin-loss-experiments-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let error = glyphs::glyphs(&folder.join("fonts"), &folder, None, 24).err().expect("there are no fonts").to_string();
    assert!(error.contains("sh examples/experiments/fonts.sh") && error.lines().count() == 1, "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Fonts that are there: the classes and samples that docs/experiments.md has.
#[test]
fn the_fonts_give_what_is_recorded() {
    let fonts = Path::new("target/fonts");
    if !fonts.join("node_modules").is_dir() {
        println!("skipped: no fonts in target/fonts, sh examples/experiments/fonts.sh fetches them");
        return;
    }
    let folder = std::env::temp_dir().join(format!("candle-margin-loss-glyphs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let corpus = glyphs::glyphs(fonts, &folder, None, 24).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(corpus.counts.classes(), 4396, "{}", corpus.title);
    assert_eq!(corpus.parts.each_ref().map(data::Samples::len), [125_003, 25_464, 50_391]);
}

/// Of 1, 2, 3, 4, 5: standard error √(2.5/5), t(0.975, 4) = 2.776445; t = 3/0.707107 = 4.242641, p = 0.013236 (R's t.test).
#[test]
fn an_interval_of_five() {
    let mean = Mean::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(mean.mean, 3.0);
    assert!((mean.half - 1.963243).abs() < 1e-5, "{mean:?}");
    assert!((mean.p - 0.013236).abs() < 1e-5, "{mean:?}");
}

/// R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
#[test]
fn holms_correction() {
    let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
    for (here, expected) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
        assert!((here - expected).abs() < 1e-12, "{corrected:?}");
    }
}

#[test]
fn no_difference() {
    let same = Difference::of((&[0.5, 0.6], &[0.1, 0.2]), (&[0.5, 0.6], &[0.1, 0.2]));
    assert_eq!((same.seeds.mean, same.p()), (0.0, 1.0));
}
