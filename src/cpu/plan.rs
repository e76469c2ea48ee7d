//! How a problem is cut into pieces that fit the caches and the workspace: a pure function of the sizes, never of the threads.

/// Most rows worked on at once: their share of a sweep over W is small by then.
const MOST_ROWS: usize = 1024;
/// Elements of X̂ worked on at once, so that they stay in the second-level cache beside a tile of W.
const BLOCK_ELEMENTS: usize = 1 << 20;
/// Fewest rows worked on at once if memory is what limits them: below it, classes are cut instead.
const FEWEST_ROWS: usize = 64;
/// Elements of a tile of W: 2 MB in f32.
const TILE_ELEMENTS: usize = 1 << 19;
/// Most classes in a tile.
const MOST_TILE_CLASSES: usize = 512;
/// Most lanes: what can run at the same time.
const MOST_LANES: usize = 32;
/// Classes that make another lane worth its partial dX.
const LANE_CLASSES: usize = 256;
/// Multiply-adds below which a problem is not worth waking threads for.
const SEQUENTIAL_WORK: usize = 1 << 20;
/// What `gemm` packs its operands into, beside the workspace, is left this share of the budget.
const PACKING_SHARE: usize = 6;

/// What products take beside the cosines, in elements of the accumulation type: the right operands of a block's R rows, and of a lane of tiles of T
/// classes its sum of dX and copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operands {
    /// X̂ and X̂ᵀ; W and dW as they are.
    Own,
    /// X̂ and X̂ᵀ; a tile of W and of dW in the accumulation type.
    Widened,
    /// Pairs of bf16, two an element, padded to whole vectors: X along its rows, along its columns and copied; a tile of W packed and copied, its g in
    /// pairs of classes, and dW in f32.
    Pairs,
}

impl Operands {
    /// Of a block.
    pub fn block(self, rows: usize, d: usize) -> usize {
        match self {
            Self::Own | Self::Widened => 2 * rows * d,
            Self::Pairs => pair_elements(rows, d) + pair_elements(d, rows),
        }
    }

    /// What a block allocates for itself.
    fn block_copies(self, rows: usize, d: usize) -> usize {
        if self == Self::Pairs { (rows * d).div_ceil(2) } else { 0 }
    }

    /// Of a lane, beside its sum of dX (R, D).
    fn tile(self, rows: usize, classes: usize, d: usize) -> usize {
        match self {
            Self::Own => 0,
            Self::Widened => 2 * classes * d,
            Self::Pairs => {
                classes * d + (classes * d).div_ceil(2) + pair_elements(d, classes) + classes.div_ceil(2) * rows + d
            }
        }
    }

    /// Most classes of a tile, and most of its elements.
    fn largest_tile(self) -> (usize, usize) {
        match self {
            Self::Own => (MOST_TILE_CLASSES, TILE_ELEMENTS),
            Self::Widened => (MOST_TILE_CLASSES, TILE_ELEMENTS / 2),
            Self::Pairs => (MOST_TILE_CLASSES / 4, TILE_ELEMENTS / 2),
        }
    }
}

/// A right operand of pairs, (k, columns).
fn pair_elements(columns: usize, k: usize) -> usize {
    columns.next_multiple_of(16) * k.div_ceil(2)
}

/// Blocks of rows against ranges of classes; a range's classes dealt to lanes, a lane's worked off in tiles.
///
/// Lanes may run at the same time. Each sums dX apart, and the sums are added in the lanes' order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows of a block
    pub rows: usize,
    /// Classes of a range; all of them, unless even few rows of cosines do not fit the workspace.
    pub range: usize,
    /// Classes of a lane
    pub lane: usize,
    /// Classes of a tile
    pub tile: usize,
    /// Lanes of a whole range
    pub lanes: usize,
}

impl Plan {
    /// For N (at least 1) rows that count, C classes, D dimensions, elements of `element` bytes and a workspace of `budget` bytes.
    pub fn new(n: usize, c: usize, d: usize, element: usize, budget: usize, operands: Operands) -> Self {
        let elements = (budget - budget / PACKING_SHARE) / element;
        let mut rows = n.min(MOST_ROWS).min((BLOCK_ELEMENTS / d).max(FEWEST_ROWS));
        // The right operands and at least one lane's dX, in half of the budget.
        rows = rows.min((elements / 2 / (3 * d)).max(1));
        let (most_classes, most_elements) = operands.largest_tile();
        let tile = (most_elements.min(elements / 16) / d).clamp(16, most_classes).min(c);

        let per_lane = rows * d + operands.tile(rows, tile, d);
        // A row's cosines and the tiles' statistics (5 values a row and tile).
        let per_row = |classes: usize| classes.saturating_add(5 * classes.div_ceil(tile));
        let of_block = operands.block(rows, d) + operands.block_copies(rows, d);
        let spare = elements.saturating_sub(of_block);
        let wanted = if rows.saturating_mul(c).saturating_mul(d) < SEQUENTIAL_WORK {
            1
        } else {
            (c / LANE_CLASSES).clamp((c / 16).clamp(1, 4), MOST_LANES)
        };
        let whole = rows.saturating_mul(per_row(c));
        let (lanes, range);
        if whole.saturating_add(wanted.min(2) * per_lane) <= spare {
            // All classes at once, with as many lanes as the rest affords.
            lanes = wanted.min((spare - whole) / per_lane);
            range = c;
        } else {
            lanes = wanted.min((elements / 4 / per_lane).max(1));
            let left = spare.saturating_sub(lanes * per_lane).max(tile);
            let fitting = left / per_row(c);
            rows = rows.min(fitting.max(FEWEST_ROWS));
            range = if fitting >= rows { c } else { (left / rows * tile / (tile + 5)).clamp(1, c) };
        }
        let lane = range.div_ceil(lanes);
        let tile = lane.div_ceil(lane.div_ceil(tile));
        Self { rows, range, lane, tile, lanes: range.div_ceil(lane) }
    }

    /// Elements of the workspace: cosines, right operands and the lanes' dX.
    pub fn elements(&self, operands: Operands, d: usize) -> usize {
        self.rows * self.range + operands.block(self.rows, d) + self.lanes * self.rows * d
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn covers_and_fits() {
        let sizes = [1usize, 2, 15, 16, 17, 63, 64, 65, 100, 1000, 8142, 100_000, 3_000_000];
        for n in sizes {
            for c in sizes {
                for d in [1usize, 3, 64, 512, 2048, 16384] {
                    for (element, budget) in [(4, 64 * MIB), (8, 64 * MIB), (4, MIB), (4, 256 * MIB)] {
                        for operands in [Operands::Own, Operands::Widened, Operands::Pairs] {
                            let plan = Plan::new(n, c, d, element, budget, operands);
                            let label = format!("{n} {c} {d} {element} {budget} {operands:?}: {plan:?}");
                            assert!((1..=n).contains(&plan.rows), "{label}");
                            assert!((1..=c).contains(&plan.range), "{label}");
                            assert!(plan.lanes * plan.lane >= plan.range, "{label}");
                            assert!((plan.lanes - 1) * plan.lane < plan.range, "an idle lane: {label}");
                            assert!((1..=plan.lane).contains(&plan.tile), "{label}");
                            let copied = plan.lanes * operands.tile(plan.rows, plan.tile, d);
                            let copied = copied + operands.block_copies(plan.rows, d);
                            let used = plan.elements(operands, d) + copied;
                            // What one row and one tile need is taken in any case.
                            let least = 4 * d + 3 * 16 * d + 64 + 16 * d;
                            assert!(used * element <= budget.max(least * element), "{used} elements: {label}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn benchmark_sizes_are_one_block() {
        for (n, c, d) in [(64, 100, 64), (128, 1000, 512), (256, 1000, 2048), (256, 8142, 2048), (1024, 10000, 512)] {
            for operands in [Operands::Own, Operands::Widened, Operands::Pairs] {
                let plan = Plan::new(n, c, d, 4, 64 * MIB, operands);
                assert_eq!((plan.rows, plan.range), (n, c), "{plan:?}");
                assert_eq!(plan.lanes == 1, c == 100, "{plan:?}");
            }
        }
    }
}
