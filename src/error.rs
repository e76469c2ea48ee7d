//! What can be wrong with a loss's options or with the tensors it is given.

/// An option that cannot be used, or an input that does not fit.
///
/// It converts into [`candle_core::Error`], so `?` works in a function that returns Candle's result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option's value is out of its range, or options that mean nothing together.
    #[error("margin loss: {0}")]
    Option(String),
    /// Class counts that cannot describe a training set.
    #[error("class counts: {0}")]
    Counts(String),
    /// Tensors whose rank, shape, dtype or device does not fit the loss or each other.
    #[error("margin loss: {0}")]
    Input(String),
    /// Predictions, labels or features that a metric cannot be computed of.
    #[error("metrics: {0}")]
    Metrics(String),
    /// An option or a tensor that a companion loss cannot use.
    #[error("companion loss: {0}")]
    Companion(String),
    /// Shards, or ranks, that do not fit each other, or a rank that has failed.
    #[error("sharded loss: {0}")]
    Sharded(String),
    /// A label that is neither a class nor the ignore index.
    #[error("margin loss: label {label} of row {row} is not in 0..{classes}{}", ignore_note(.ignore_index))]
    Label {
        /// Row of the batch, counted from 0.
        row: usize,
        /// The label found there.
        label: i64,
        /// Number of classes C.
        classes: usize,
        /// The ignore index in force, if any.
        ignore_index: Option<i64>,
    },
    /// An error of Candle's own.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

fn ignore_note(ignore_index: &Option<i64>) -> String {
    match ignore_index {
        Some(index) => format!(" and is not the ignore index {index}"),
        None => String::new(),
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
