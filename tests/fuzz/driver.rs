//! Inputs by mutation: valid ones, changed a few times at random, given to a reader until the time is over.
//!
//! libFuzzer needs a nightly compiler, so nothing here is guided by coverage; what makes the inputs reach far is that they start valid and that
//! mutations know words and numbers. `MARGIN_LOSS_FUZZ_SECONDS` is the time of a target, 5 by default, and `MARGIN_LOSS_FUZZ_SEED` the first seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A small generator of random numbers (splitmix64), so that the driver needs no crate.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..n; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// In 0..1
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What text is made to say.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "255",
    "256",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "1e999",
    "NaN",
    "0x7fffffff",
    "-0.0",
];

/// Changes `input` in one place.
fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let (start, end) = {
        let (a, b) = (random.below(input.len() + 1), random.below(input.len() + 1));
        // Ranges are short more often than not.
        let end = if random.below(3) > 0 { (a + random.below(9)).min(input.len()) } else { b };
        (a.min(end), a.max(end))
    };
    match random.below(11) {
        0 if !input.is_empty() => {
            let at = random.below(input.len());
            input[at] ^= 1 << random.below(8);
        }
        1 if !input.is_empty() => {
            let at = random.below(input.len());
            input[at] = *random.pick(&[0, 1, 0x7f, 0x80, 0xff, b'\n', b' ', b'-', b'{', b';']);
        }
        2 => drop(input.drain(start..end)),
        3 => input.truncate(start),
        4 => {
            let copy = input[start..end].to_vec();
            let at = random.below(input.len() + 1);
            input.splice(at..at, copy);
        }
        5 => {
            let other = random.pick(seeds);
            let (a, b) = (random.below(other.len() + 1), random.below(other.len() + 1));
            input.splice(start..end, other[a.min(b)..a.max(b)].iter().copied());
        }
        6 | 7 if !words.is_empty() => {
            let word = random.pick(words).bytes().collect::<Vec<_>>();
            input.splice(start..start, word);
        }
        8 => {
            // A number of the text by another one.
            let digits: Vec<usize> = (0..input.len()).filter(|&i| input[i].is_ascii_digit()).collect();
            if let Some(&at) = digits.get(random.below(digits.len())) {
                let length = input[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                input.splice(at..at + length, random.pick(&NUMBERS).bytes());
            }
        }
        9 => {
            // A number of the file, in either order of bytes.
            let value = *random.pick(&[0u32, 1, 2, 0xff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x0100_0000]);
            let bytes = if random.below(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
            for (byte, value) in input.iter_mut().skip(start).zip(bytes) {
                *byte = value;
            }
        }
        _ => {
            // A word, or what is there, many times over: what a recursive reader goes down into.
            let word = match words.is_empty() || random.below(2) == 0 {
                true => input[start..end.min(start + 8)].to_vec(),
                false => random.pick(words).bytes().collect(),
            };
            let times = *random.pick(&[2, 50, 20_000]);
            input.splice(start..start, word.repeat(times));
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Where an input is while it is tried: there it stays when the reader panics, or takes the process with it.
pub fn place(target: &str, extension: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(target);
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("input.{extension}"))
}

/// Calls `attempt` with a generator of a new seed each time until the time is over; a panic names the seed.
pub fn until_the_time_is_over(target: &str, mut attempt: impl FnMut(&mut Random)) {
    let (first, seconds) = (setting("MARGIN_LOSS_FUZZ_SEED", 0), setting("MARGIN_LOSS_FUZZ_SECONDS", 5));
    let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
    let mut seed = first;
    while start.elapsed() < limit {
        let begun = Instant::now();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| attempt(&mut Random::new(seed)))) {
            eprintln!("{target}: MARGIN_LOSS_FUZZ_SEED={seed} is the seed");
            std::panic::resume_unwind(panic);
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{target}: seed {seed} took {:?}", begun.elapsed());
        seed += 1;
    }
    println!("{target}: {} inputs", seed - first);
}

/// Mutations of `seeds`, each written to `path` and read by `reader`, which gives an error's text or none: it is to be one clear sentence.
pub fn files(target: &str, path: &Path, seeds: &[Vec<u8>], words: &[&str], reader: impl Fn(&[u8]) -> Option<String>) {
    for seed in seeds {
        std::fs::write(path, seed).unwrap();
        assert_eq!(reader(seed), None, "{target}: a seed is not valid");
    }
    let mut refused = 0u64;
    until_the_time_is_over(target, |random| {
        let mut input = random.pick(seeds).clone();
        for _ in 0..1 + random.below(6) {
            mutate(&mut input, seeds, words, random);
            input.truncate(1 << 20);
        }
        std::fs::write(path, &input).unwrap();
        if let Some(text) = reader(&input) {
            refused += 1;
            clear(&text);
        }
    });
    println!("{target}: {refused} refused");
}

/// One sentence, not too long to read; the backtrace that Candle may put below it left out.
pub fn clear(text: &str) {
    let text = text.split("\n   0: ").next().unwrap_or_default();
    assert!(
        !text.trim().is_empty() && !text.contains('\n') && text.chars().count() < 500,
        "not one clear sentence: {text:.2000}"
    );
}
