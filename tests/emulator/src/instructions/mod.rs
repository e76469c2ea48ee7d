//! What instructions are, family by family. A family's file has its decoding, its meaning and the table of its tests.

use std::sync::Arc;

use crate::line::Line;
use crate::step::Execute;

#[macro_use]
mod lanewise;
mod async_copy;
mod atomics;
mod barrier;
mod bits;
mod compare;
pub(crate) mod control;
mod convert;
mod exchange;
mod float;
mod half;
mod integer;
mod load_store;
mod matrix;
mod moves;
mod numbers;
#[cfg(test)]
mod rows;

/// What a line decodes to; none if it is another family's, or not known.
type Decoded = Option<Arc<dyn Execute>>;

/// A decoded instruction.
fn code(instruction: impl Execute + 'static) -> Decoded {
    Some(Arc::new(instruction))
}

struct Family {
    decode: fn(&Line) -> Decoded,
    #[cfg(test)]
    rows: fn() -> Vec<rows::Row>,
}

macro_rules! families {
    ($($family:ident),*) => {
        const FAMILIES: &[Family] = &[$(Family {
            decode: $family::decode,
            #[cfg(test)]
            rows: $family::rows,
        }),*];
    };
}
families!(
    moves, integer, float, load_store, compare, bits, convert, half, control, barrier, exchange, atomics, async_copy,
    matrix
);

/// Decodes an instruction: none that is not known.
pub(crate) fn decode(line: &Line) -> Decoded {
    FAMILIES.iter().find_map(|family| (family.decode)(line))
}
