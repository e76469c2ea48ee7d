//! What ranks have to agree on, exchanged before any number is computed.

use candle_core::{DType, Device, Tensor};

use super::communicator::Communicator;
use crate::error::{Error, Result};
use crate::options::Params;

/// Something that all ranks are to have the same of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    name: &'static str,
    value: Value,
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Number(u64),
    Float(f64),
    Type(DType),
    Flag(bool),
    /// Too long to be told
    Hash(u64),
}

impl Item {
    pub fn number(name: &'static str, value: usize) -> Self {
        Self { name, value: Value::Number(value as u64) }
    }

    pub fn dtype(name: &'static str, value: DType) -> Self {
        Self { name, value: Value::Type(value) }
    }

    pub fn flag(name: &'static str, value: bool) -> Self {
        Self { name, value: Value::Flag(value) }
    }

    fn float(name: &'static str, value: f64) -> Self {
        Self { name, value: Value::Float(value) }
    }

    fn table(name: &'static str, values: &[f64]) -> Self {
        Self { name, value: Value::Hash(hash(values.iter().flat_map(|value| value.to_bits().to_le_bytes()))) }
    }

    pub fn of(name: &'static str, value: &impl std::fmt::Debug) -> Self {
        Self { name, value: Value::Hash(hash(format!("{value:?}").into_bytes())) }
    }

    fn word(self) -> u64 {
        match self.value {
            Value::Number(value) | Value::Hash(value) => value,
            Value::Float(value) => value.to_bits(),
            Value::Type(dtype) => DTYPES.iter().position(|&known| known == dtype).unwrap_or(DTYPES.len()) as u64,
            Value::Flag(flag) => u64::from(flag),
        }
    }

    /// That rank `rank` has `theirs` of it where rank 0 has `first`.
    fn disagreement(self, first: u64, rank: usize, theirs: u64) -> Error {
        let told = |word: u64| match self.value {
            Value::Number(_) => word.to_string(),
            Value::Float(_) => f64::from_bits(word).to_string(),
            Value::Type(_) => DTYPES.get(word as usize).map_or("another", |dtype| dtype.as_str()).to_string(),
            Value::Flag(_) => if word == 0 { "no" } else { "yes" }.to_string(),
            Value::Hash(_) => String::new(),
        };
        let name = self.name;
        Error::Sharded(match self.value {
            Value::Hash(_) => format!("ranks disagree on {name}: rank {rank}'s is not rank 0's"),
            _ => format!("ranks disagree on {name}: rank 0 has {}, rank {rank} has {}", told(first), told(theirs)),
        })
    }
}

const DTYPES: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];

/// FNV-1a.
fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A loss's options, as ranks compare them.
pub(super) fn options(params: &Params) -> Vec<Item> {
    vec![
        Item::number("the number of classes C", params.classes),
        Item::float("the scale s", params.scale),
        Item::of("the margin's factor, gate, strength, angle range or gradient", &params.rule),
        Item::flag("whether rows bring margins", params.row_margins),
        Item::of("the row loss", &params.row_loss),
        Item::table("the angular margins A", &params.angular),
        Item::table("the cosine margins B", &params.additive),
        Item::table("the prior", &params.log_prior),
        Item::table("the class weights", &params.weights),
        Item::of("the reduction", &params.reduction),
        Item::of("the ignore index", &params.ignore_index),
        Item::float("the label smoothing", params.label_smoothing),
        Item::flag("whether gradients are recomputed", params.recompute_gradients),
    ]
}

/// An error for other ranks: without what they put before it themselves, and without the backtrace that Candle's may have.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::Sharded(why) => why.clone(),
        other => other.to_string().lines().next().unwrap_or_default().to_string(),
    }
}

/// What a rank brings beside what it agrees on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Brought {
    /// Rows of its batch
    pub rows: usize,
    /// Whether its X wants a gradient
    pub wants_features: bool,
}

/// What all ranks bring.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    /// Rows by rank
    pub counts: Vec<usize>,
    /// Whether any X wants a gradient
    pub wants_features: bool,
}

/// Exchanges what the ranks are to agree on, or why this one cannot go on: then, and where they disagree, every rank has the same error.
pub(super) fn agree(
    communicator: &dyn Communicator,
    items: &[Item],
    brought: std::result::Result<Brought, &str>,
) -> Result<Agreed> {
    let (rank, size) = (communicator.rank(), communicator.size());
    let own = brought.unwrap_or(Brought { rows: 0, wants_features: false });
    let mut words = vec![u64::from(brought.is_err()), own.rows as u64, u64::from(own.wants_features)];
    let head = words.len();
    words.extend(items.iter().map(|item| item.word()));
    let width = words.len();
    let words = Tensor::from_vec(words.into_iter().map(u64::cast_signed).collect(), (1, width), &Device::Cpu)?;
    let all = communicator.all_gather(&words, &vec![1; size])?.to_vec2::<i64>()?;
    let all: Vec<Vec<u64>> = all.into_iter().map(|words| words.into_iter().map(i64::cast_unsigned).collect()).collect();
    if let Some(failed) = all.iter().position(|words| words[0] != 0) {
        // Of the ranks that cannot go on, the first one's reason.
        let text = if failed == rank { brought.err().unwrap_or_default().as_bytes() } else { &[] };
        let length = Tensor::from_vec(vec![text.len() as i64], (1, 1), &Device::Cpu)?;
        let lengths = communicator.all_gather(&length, &vec![1; size])?.flatten_all()?.to_vec1::<i64>()?;
        let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
        let text = communicator.all_gather(&Tensor::from_vec(text.to_vec(), text.len(), &Device::Cpu)?, &lengths)?;
        let text = text.to_vec1::<u8>()?;
        return Err(Error::Sharded(format!("rank {failed}: {}", String::from_utf8_lossy(&text))));
    }
    for (i, item) in items.iter().enumerate() {
        let first = all[0][head + i];
        if let Some(other) = all.iter().position(|words| words[head + i] != first) {
            return Err(item.disagreement(first, other, all[other][head + i]));
        }
    }
    Ok(Agreed {
        counts: all.iter().map(|words| words[1] as usize).collect(),
        wants_features: all.iter().any(|words| words[2] != 0),
    })
}
