//! Augmentations of the recipe, on one image of bytes (channels, height, width): crop out of a padded image, flip, AutoAugment's policy for CIFAR,
//! Cutout. Each is a function of the image and of its numbers; `Recipe::apply` draws these.

use rand::Rng;

use crate::data::Shape;

/// What is done to a training image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Zeros around the image before a crop of its own size; 0 for none
    pub padding: usize,
    pub flip: bool,
    pub auto_augment: bool,
    /// The side of Cutout's square; 0 for none
    pub cutout: usize,
}

impl Recipe {
    pub fn apply(&self, image: &mut Vec<u8>, shape: Shape, rng: &mut impl Rng) {
        if self.padding > 0 {
            let mut offset = || rng.random_range(0..=2 * self.padding) as isize - self.padding as isize;
            let (dy, dx) = (offset(), offset());
            *image = shifted(image, shape, dy, dx, 0);
        }
        if self.flip && rng.random_bool(0.5) {
            flip(image, shape);
        }
        if self.auto_augment {
            auto_augment(image, shape, rng);
        }
        if self.cutout > 0 {
            let (y, x) = (rng.random_range(0..shape.height), rng.random_range(0..shape.width));
            cutout(image, shape, self.cutout, y, x);
        }
    }
}

/// The window at (dy, dx) of the image with `fill` around it.
pub fn shifted(image: &[u8], shape: Shape, dy: isize, dx: isize, fill: u8) -> Vec<u8> {
    sampled(shape, |c, y, x| at(image, shape, c, y as isize + dy, x as isize + dx).unwrap_or(fill))
}

/// Left to right.
pub fn flip(image: &mut [u8], shape: Shape) {
    image.chunks_exact_mut(shape.width).for_each(<[u8]>::reverse);
}

/// Zeros in a square of `side` pixels around (y, x), as far as it is in the image (DeVries and Taylor 2017).
pub fn cutout(image: &mut [u8], shape: Shape, side: usize, y: usize, x: usize) {
    let range = |centre: usize, all: usize| {
        let start = centre as isize - side as isize / 2;
        start.max(0) as usize..((start + side as isize).max(0) as usize).min(all)
    };
    for plane in image.chunks_exact_mut(shape.height * shape.width) {
        for row in range(y, shape.height) {
            plane[row * shape.width..][range(x, shape.width)].fill(0);
        }
    }
}

/// What AutoAugment makes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    AutoContrast,
    Invert,
    Equalize,
    Solarize,
    Posterize,
    Contrast,
    Color,
    Brightness,
    Sharpness,
}

use Operation::*;

/// Operation, probability in tenths, and magnitude in 0..=9: the 25 pairs that Cubuk et al. (2019, Table 7) found on CIFAR-10.
const POLICY: [[(Operation, u8, u8); 2]; 25] = [
    [(Invert, 1, 7), (Contrast, 2, 6)],
    [(Rotate, 7, 2), (TranslateX, 3, 9)],
    [(Sharpness, 8, 1), (Sharpness, 9, 3)],
    [(ShearY, 5, 8), (TranslateY, 7, 9)],
    [(AutoContrast, 5, 8), (Equalize, 9, 2)],
    [(ShearY, 2, 7), (Posterize, 3, 7)],
    [(Color, 4, 3), (Brightness, 6, 7)],
    [(Sharpness, 3, 9), (Brightness, 7, 9)],
    [(Equalize, 6, 5), (Equalize, 5, 1)],
    [(Contrast, 6, 7), (Sharpness, 6, 5)],
    [(Color, 7, 7), (TranslateX, 5, 8)],
    [(Equalize, 3, 7), (AutoContrast, 4, 8)],
    [(TranslateY, 4, 3), (Sharpness, 2, 6)],
    [(Brightness, 9, 6), (Color, 2, 8)],
    [(Solarize, 5, 2), (Invert, 0, 3)],
    [(Equalize, 2, 0), (AutoContrast, 6, 0)],
    [(Equalize, 2, 8), (Equalize, 6, 4)],
    [(Color, 9, 9), (Equalize, 6, 6)],
    [(AutoContrast, 8, 4), (Solarize, 2, 8)],
    [(Brightness, 1, 3), (Color, 7, 0)],
    [(Solarize, 4, 5), (AutoContrast, 9, 3)],
    [(TranslateY, 9, 9), (TranslateY, 7, 9)],
    [(AutoContrast, 9, 2), (Solarize, 8, 3)],
    [(Equalize, 8, 8), (Invert, 1, 3)],
    [(TranslateY, 7, 9), (AutoContrast, 9, 1)],
];

fn auto_augment(image: &mut Vec<u8>, shape: Shape, rng: &mut impl Rng) {
    for (operation, probability, magnitude) in POLICY[rng.random_range(0..POLICY.len())] {
        if rng.random_bool(f64::from(probability) / 10.0) {
            *image = operation.apply(image, shape, magnitude, rng.random_bool(0.5));
        }
    }
}

/// What is around a moved image: the mean of ImageNet's, as the policy's authors fill it.
const GREY: u8 = 128;

impl Operation {
    /// `magnitude` in 0..=9; `other_way` for what has a direction.
    pub fn apply(self, image: &[u8], shape: Shape, magnitude: u8, other_way: bool) -> Vec<u8> {
        let part = f64::from(magnitude) / 9.0;
        let sign = if other_way { -1.0 } else { 1.0 };
        // 1 is the image as it is, 0 what it is blended with.
        let factor = (1.0 + 0.9 * part * sign) as f32;
        let affine = |matrix: [f64; 6]| affine(image, shape, matrix);
        let shift = (shape.width as f64 * 150.0 / 331.0 * part * sign).trunc();
        match self {
            ShearY => affine([1.0, 0.0, 0.0, 0.3 * part * sign, 1.0, 0.0]),
            TranslateX => affine([1.0, 0.0, shift, 0.0, 1.0, 0.0]),
            TranslateY => affine([1.0, 0.0, 0.0, 0.0, 1.0, shift]),
            Rotate => {
                let (sin, cos) = (30.0 * part * sign).to_radians().sin_cos();
                let (cy, cx) = ((shape.height as f64 - 1.0) / 2.0, (shape.width as f64 - 1.0) / 2.0);
                affine([cos, sin, cx - cos * cx - sin * cy, -sin, cos, cy + sin * cx - cos * cy])
            }
            Invert => image.iter().map(|&v| 255 - v).collect(),
            Solarize => {
                let threshold = 256.0 * (1.0 - part);
                image.iter().map(|&v| if f64::from(v) < threshold { v } else { 255 - v }).collect()
            }
            Posterize => {
                let bits = 8 - (4.0 * part).round() as u32;
                image.iter().map(|&v| v & (0xffu16 << (8 - bits)) as u8).collect()
            }
            AutoContrast => by_plane(image, shape, |plane| {
                let (low, high) = (*plane.iter().min().unwrap_or(&0), *plane.iter().max().unwrap_or(&0));
                if low == high {
                    return std::array::from_fn(|v| v as u8);
                }
                let scale = 255.0 / f64::from(high - low);
                std::array::from_fn(|v| ((v as f64 - f64::from(low)) * scale).clamp(0.0, 255.0) as u8)
            }),
            Equalize => by_plane(image, shape, equalised),
            Brightness => blend(image, &vec![0; image.len()], factor),
            Contrast => {
                let grey = greys(image, shape);
                let mean = grey.iter().map(|&v| u64::from(v)).sum::<u64>() as f64 / grey.len() as f64;
                blend(image, &vec![(mean + 0.5) as u8; image.len()], factor)
            }
            Color => {
                let grey = greys(image, shape);
                blend(image, &grey.repeat(shape.channels), factor)
            }
            Sharpness => blend(image, &smoothed(image, shape), factor),
        }
    }
}

fn at(image: &[u8], shape: Shape, c: usize, y: isize, x: isize) -> Option<u8> {
    let inside = (0..shape.height as isize).contains(&y) && (0..shape.width as isize).contains(&x);
    inside.then(|| image[(c * shape.height + y as usize) * shape.width + x as usize])
}

fn sampled(shape: Shape, value: impl Fn(usize, usize, usize) -> u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(shape.pixels());
    for c in 0..shape.channels {
        for y in 0..shape.height {
            out.extend((0..shape.width).map(|x| value(c, y, x)));
        }
    }
    out
}

/// The nearest pixel to (a·x + b·y + c, d·x + e·y + f), grey outside.
fn affine(image: &[u8], shape: Shape, [a, b, c, d, e, f]: [f64; 6]) -> Vec<u8> {
    sampled(shape, |channel, y, x| {
        let (x, y) = (x as f64, y as f64);
        let (from_x, from_y) = ((a * x + b * y + c).round() as isize, (d * x + e * y + f).round() as isize);
        at(image, shape, channel, from_y, from_x).unwrap_or(GREY)
    })
}

fn by_plane(image: &[u8], shape: Shape, table: impl Fn(&[u8]) -> [u8; 256]) -> Vec<u8> {
    let planes = image.chunks_exact(shape.height * shape.width);
    planes
        .flat_map(|plane| {
            let table = table(plane);
            plane.iter().map(move |&v| table[usize::from(v)])
        })
        .collect()
}

/// The table that makes a plane's histogram flat, as PIL's `ImageOps.equalize` has it.
fn equalised(plane: &[u8]) -> [u8; 256] {
    let mut histogram = [0usize; 256];
    plane.iter().for_each(|&v| histogram[usize::from(v)] += 1);
    let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
    let step = (plane.len() - last) / 255;
    let mut sum = step / 2;
    std::array::from_fn(|v| {
        if step == 0 {
            return v as u8;
        }
        let value = (sum / step).min(255) as u8;
        sum += histogram[v];
        value
    })
}

/// ITU-R 601-2 luma of three channels; of one, itself.
fn greys(image: &[u8], shape: Shape) -> Vec<u8> {
    let plane = shape.height * shape.width;
    if shape.channels != 3 {
        return image[..plane].to_vec();
    }
    let of = |c: usize, i: usize| u32::from(image[c * plane + i]);
    (0..plane).map(|i| ((of(0, i) * 19595 + of(1, i) * 38470 + of(2, i) * 7471 + 0x8000) >> 16) as u8).collect()
}

/// A 3 × 3 mean with a weight of 5 in the middle; the edge as it is.
fn smoothed(image: &[u8], shape: Shape) -> Vec<u8> {
    sampled(shape, |c, y, x| {
        let (y, x) = (y as isize, x as isize);
        let own = at(image, shape, c, y, x).unwrap_or(0);
        let mut sum = 4 * u32::from(own);
        for dy in -1..=1 {
            for dx in -1..=1 {
                match at(image, shape, c, y + dy, x + dx) {
                    Some(v) => sum += u32::from(v),
                    None => return own,
                }
            }
        }
        ((f64::from(sum) / 13.0) + 0.5) as u8
    })
}

/// other + factor·(image − other), cut to whole numbers in f32, as PIL does.
fn blend(image: &[u8], other: &[u8], factor: f32) -> Vec<u8> {
    let mix = |(&a, &b): (&u8, &u8)| (f32::from(b) + factor * (f32::from(a) - f32::from(b))).clamp(0.0, 255.0) as u8;
    image.iter().zip(other).map(mix).collect()
}
