//! What instructions are, family by family. A family's file has its decoding, its meaning and the table of its tests.

use std::sync::Arc;

use crate::line::Line;
use crate::poison::Pass;
use crate::step::{Done, Execute, Next, Step};

#[macro_use]
mod lanewise;
mod adder;
mod async_copy;
mod atomics;
mod barrier;
mod bits;
mod compare;
pub(crate) mod control;
mod convert;
mod eighth;
mod exchange;
mod float;
mod half;
mod integer;
mod load_store;
mod matrix;
mod moves;
mod numbers;
pub(crate) mod print;
#[cfg(test)]
mod rows;
mod sparse;

/// What a line decodes to; none if it is another family's, or not known.
type Decoded = Option<Arc<dyn Execute>>;

/// An instruction that is what a function does.
struct Act<F> {
    act: F,
    is_seen: bool,
    is_private: bool,
    pass: Pass,
}

impl<R: Outcome, F: Fn(&mut Step) -> R + Send + Sync> Execute for Act<F> {
    #[inline]
    fn execute(&self, step: &mut Step) -> Done {
        (self.act)(step).done()
    }

    fn is_seen(&self) -> bool {
        self.is_seen
    }

    fn is_private(&self) -> bool {
        self.is_private
    }

    fn pass(&self) -> Pass {
        self.pass
    }
}

/// What a function of an instruction may give: nothing, where its group always goes on.
trait Outcome {
    fn done(self) -> Done;
}

impl Outcome for () {
    fn done(self) -> Done {
        Ok(Next::On)
    }
}

impl Outcome for Done {
    fn done(self) -> Done {
        self
    }
}

/// An instruction that only its own lanes know of.
fn code<R: Outcome>(act: impl Fn(&mut Step) -> R + Send + Sync + 'static) -> Decoded {
    Some(Arc::new(Act { act, is_seen: false, is_private: true, pass: Pass::Lanes }))
}

/// An instruction that others may see, or that waits for them.
fn seen(act: impl Fn(&mut Step) -> Done + Send + Sync + 'static) -> Decoded {
    Some(Arc::new(Act { act, is_seen: true, is_private: false, pass: Pass::Checked }))
}

/// An instruction that sees to poison itself: which of its results have it.
fn with_poison<R: Outcome>(is_seen: bool, act: impl Fn(&mut Step) -> R + Send + Sync + 'static) -> Decoded {
    Some(Arc::new(Act { act, is_seen, is_private: false, pass: Pass::Own }))
}

/// The same of what its own lanes' registers make alone.
fn private_with_poison(act: impl Fn(&mut Step) + Send + Sync + 'static) -> Decoded {
    Some(Arc::new(Act { act, is_seen: false, is_private: true, pass: Pass::Own }))
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
    moves, integer, float, load_store, compare, bits, convert, eighth, half, control, barrier, exchange, atomics,
    async_copy, matrix, sparse
);

/// Decodes an instruction: none that is not known.
pub(crate) fn decode(line: &Line) -> Decoded {
    FAMILIES.iter().find_map(|family| {
        line.take_flow(); // what another family has asked for
        (family.decode)(line)
    })
}
