//! From a problem's tensors to its call: their element types, and the engine that multiplies them.

use candle_core::Storage;

use super::call::Call;
use super::engine::Engine;
use super::numeric::Element;
use super::view::Rows;
use crate::error::{Error, Result};
use crate::problem::{Problem, Targets};

/// `typed` of a problem's element types and their engine.
macro_rules! by_types {
    ($problem:expr, $typed:ident($($argument:expr),*)) => {{
        use candle_core::DType::{BF16, F16, F32, F64};
        use half::{bf16, f16};
        use $crate::cpu::gemm::Gemm;
        use $crate::cpu::pairs::Pairs;
        match ($problem.features.dtype(), $problem.weight.dtype()) {
            (F64, F64) => $typed::<f64, f64, Gemm>($($argument),*),
            (F32, F32) => $typed::<f32, f32, Gemm>($($argument),*),
            (F16, F16) => $typed::<f16, f16, Gemm>($($argument),*),
            (F16, F32) => $typed::<f16, f32, Gemm>($($argument),*),
            (BF16, BF16) if Pairs::available() && $problem.params().is_plain() => $typed::<bf16, bf16, Pairs>($($argument),*),
            (BF16, BF16) => $typed::<bf16, bf16, Gemm>($($argument),*),
            (BF16, F32) => $typed::<bf16, f32, Gemm>($($argument),*),
            (x, w) => Err(Error::Input(format!("features X are {} and weight W is {}", x.as_str(), w.as_str()))),
        }
    }};
}
pub(super) use by_types;

/// Lends `work` the call of a problem.
pub(super) fn with_call<X, W, P, R>(
    problem: &Problem,
    targets: &Targets,
    work: impl FnOnce(&Call<X, W>) -> Result<R>,
) -> Result<R>
where
    X: Element,
    W: Element<Acc = X::Acc>,
    P: Engine<X, W>,
{
    let (x_storage, x_layout) = problem.features.storage_and_layout();
    let (w_storage, w_layout) = problem.weight.storage_and_layout();
    let (Storage::Cpu(x), Storage::Cpu(w)) = (&*x_storage, &*w_storage) else {
        return Err(Error::Input("the CPU path was given a tensor of another device".into()));
    };
    let x = Rows::new(X::cpu_storage_as_slice(x)?, x_layout);
    let w = Rows::new(W::cpu_storage_as_slice(w)?, w_layout).of_index(problem.index);
    // Rows by an index are copied, a tile at a time.
    let operands = if problem.index.is_some() { P::operands().copied() } else { P::operands() };
    work(&Call::new(problem, targets, x, w, operands))
}
