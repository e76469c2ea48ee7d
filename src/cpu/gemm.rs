//! The engine of every type: products by `gemm` in the type of accumulation, of X̂, and of W as it is where it is of that type.

use std::ops::Range;

use super::call::Call;
use super::engine::{Engine, LaneTile, WeightSink};
use super::gradient::RowConstants;
use super::load::{Block, Tile};
use super::norm::{Norm, sigma};
use super::numeric::{Element, Real};
use super::plan::Operands;
use super::product::{Matrix, product};
use super::statistics::exact_cosine;
use super::vector;
use crate::problem::TargetRow;

pub(super) struct Gemm;

/// Copies of a tile's W and dW (classes, D), where their types need them.
#[derive(Default)]
pub(super) struct Scratch<T> {
    tile: Vec<T>,
    weight: Vec<T>,
}

impl<X, W> Engine<X, W> for Gemm
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    type Scratch = Scratch<X::Acc>;

    fn operands() -> Operands {
        if W::as_acc(&[]).is_some() { Operands::Own } else { Operands::Widened }
    }

    fn load<'b>(call: &Call<X, W>, rows: &'b [TargetRow], memory: &'b mut [X::Acc], _: bool) -> Block<'b, X::Acc> {
        call.load_unit(rows, memory)
    }

    #[inline(always)]
    fn products(
        call: &Call<X, W>,
        block: &Block<X::Acc>,
        classes: Range<usize>,
        norms: &mut [Option<Norm>],
        scratch: &mut Self::Scratch,
        out: &mut [X::Acc],
        targets: Option<&mut Vec<(u32, f64)>>,
    ) {
        let (d, rows) = (call.d, block.rows.len());
        let tile = call.tile(classes.clone(), norms, &mut scratch.tile);
        product(out, false, tile.rows, Matrix::of_rows(block.unit_t, d, rows, rows));
        if let Some(targets) = targets
            && !X::Acc::IS_F64
        {
            for &(class, row) in block.targets_in(&classes) {
                let (j, i) = (class as usize - classes.start, row as usize);
                let norm = norms[j].expect("set with the tile");
                // x̂ has been divided by its length; one that is shorter than 1e-12, by that.
                let logit = call.logit(class as usize);
                let cosine = exact_cosine(
                    (&block.unit[i * d..][..d], block.norms[i].projects, 1.0),
                    (tile.row(j, d), norm.projects, norm.inverse),
                    logit.limit.f64(),
                );
                targets.push((row, cosine + call.offset(class as usize)));
            }
        }
    }

    #[inline(always)]
    fn contract<E: Element<Acc = X::Acc>>(
        call: &Call<X, W>,
        block: &Block<X::Acc>,
        tile: &mut LaneTile<X::Acc, E>,
        constants: &mut RowConstants<X::Acc>,
        scratch: &mut Self::Scratch,
    ) {
        let LaneTile { classes, cosines, norms, row_dots, sum, accumulate, sink } = tile;
        let rows = block.rows.len();
        let class_dots = call.gradient(cosines, row_dots, block, classes.clone(), norms, constants);
        let tile = call.tile(classes.clone(), norms, &mut scratch.tile);
        if let Some(sum) = sum {
            let g = Matrix::of_rows(cosines, norms.len(), rows, rows).transposed(); // (R, classes)
            product(sum, *accumulate, g, tile.rows);
        }
        let unit = Matrix::of_rows(block.unit, rows, call.d, call.d); // (R, D)
        write_weight(sink.take(), cosines, &tile, norms, unit, &class_dots, &mut scratch.weight);
    }

    #[inline(always)]
    fn feature_row<'r>(
        call: &Call<X, W>,
        block: &'r Block<X::Acc>,
        i: usize,
        _: &'r mut Vec<X::Acc>,
    ) -> (&'r [X::Acc], X::Acc, X::Acc) {
        (&block.unit[i * call.d..][..call.d], X::Acc::ONE, X::Acc::of(block.norms[i].inverse))
    }
}

/// dW of a tile: h·X̂ − (Σ_i g·c)·ŵ, over ‖w‖. `gradients` (classes, R) holds h = σ·g.
#[inline(always)]
fn write_weight<E: Element>(
    sink: WeightSink<E>,
    gradients: &mut [E::Acc],
    tile: &Tile<E::Acc>,
    norms: &[Option<Norm>],
    unit: Matrix<E::Acc>,
    class_dots: &[E::Acc],
    scratch: &mut Vec<E::Acc>,
) {
    let d = unit.cols();
    let rows = gradients.len() / norms.len();
    for (row, norm) in gradients.chunks_exact_mut(rows).zip(norms.iter().flatten()) {
        if norm.long {
            vector::scale(row, E::Acc::of(norm.inverse)); // σ was 1
        }
    }
    let lhs = Matrix::of_rows(gradients, norms.len(), rows, rows);
    match sink {
        WeightSink::None => {}
        WeightSink::Sum(dw, accumulate) => {
            product(dw, accumulate, lhs, unit);
            project(dw, tile, norms, class_dots, d);
        }
        WeightSink::Write(dw) => match E::as_acc_mut(dw) {
            Some(dw) => {
                product(dw, false, lhs, unit);
                project(dw, tile, norms, class_dots, d);
            }
            None => {
                scratch.resize(norms.len() * d, E::Acc::ZERO);
                product(scratch, false, lhs, unit);
                project(scratch, tile, norms, class_dots, d);
                E::narrow_slice(scratch, dw);
            }
        },
    }
}

/// The derivative of W's normalisation: `dw` (classes, D) −= (Σ_i g·c)·ŵ / ‖w‖.
#[inline(always)]
fn project<T: Real>(dw: &mut [T], tile: &Tile<T>, norms: &[Option<Norm>], class_dots: &[T], d: usize) {
    for (j, dw) in dw.chunks_exact_mut(d).enumerate() {
        if let Some(norm) = norms[j]
            && norm.projects
        {
            let factor = class_dots[j] * T::of(norm.inverse) * sigma(norm);
            vector::subtract_scaled(dw, tile.row(j, d), factor);
        }
    }
}
