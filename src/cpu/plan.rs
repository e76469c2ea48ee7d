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
/// Most lanes, and most parts of the rows: what can run at the same time.
const MOST_LANES: usize = 32;
/// Fewest rows of a part; and it has no fewer than there are classes, so that its X is no less than its dW.
const FEWEST_PART_ROWS: usize = 256;
/// Classes that make another lane worth its partial dX.
const LANE_CLASSES: usize = 256;
/// Multiply-adds below which a problem is not worth waking threads for.
const SEQUENTIAL_WORK: usize = 1 << 20;
/// What a class's norm takes, in elements of f32.
const NORM_ELEMENTS: usize = 6;
/// What a row of a block takes beside its vectors and cosines, in elements of f32.
const ROW_ELEMENTS: usize = 32;
/// What `gemm` packs its operands into, beside the workspace, is left this share of the budget.
const PACKING_SHARE: usize = 6;

/// Blocks of rows against ranges of classes; a range's classes dealt to lanes, a lane's worked off in tiles.
///
/// Lanes may run at the same time. Each sums dX apart, and the sums are added in the lanes' order. Where the classes make few lanes and there are
/// many rows, parts of the rows run at the same time instead, each with a block's memory and a dW of its own.
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
    /// Rows of a part
    pub part: usize,
    /// Parts of the rows; where there are several, a range is all classes and one lane.
    pub parts: usize,
}

impl Plan {
    /// For N (at least 1) rows that count, C classes, D dimensions, elements of `element` bytes and a workspace of `budget` bytes;
    /// `copies`: a tile of W and of dW needs a copy in the accumulation type.
    pub fn new(n: usize, c: usize, d: usize, element: usize, budget: usize, copies: bool) -> Self {
        let elements = (budget - budget / PACKING_SHARE) / element;
        let mut rows = n.min(MOST_ROWS).min((BLOCK_ELEMENTS / d).max(FEWEST_ROWS));
        // X̂, X̂ᵀ and at least one lane's dX, in half of the budget.
        rows = rows.min((elements / 2 / (3 * d)).max(1));
        let tile_elements = if copies { TILE_ELEMENTS / 2 } else { TILE_ELEMENTS }.min(elements / 16);
        let tile = (tile_elements / d).clamp(16.min(MOST_TILE_CLASSES), MOST_TILE_CLASSES).min(c);

        let per_lane = rows * d + if copies { 2 * tile * d } else { 0 };
        // A row's cosines and the tiles' statistics (5 values a row and tile).
        let per_row = |classes: usize| classes.saturating_add(5 * classes.div_ceil(tile));
        let spare = elements.saturating_sub(2 * rows * d);
        let wanted = if rows.saturating_mul(c).saturating_mul(d) < SEQUENTIAL_WORK {
            1
        } else {
            (c / LANE_CLASSES).clamp((c / 16).clamp(1, 4), MOST_LANES)
        };
        let whole = rows.saturating_mul(per_row(c));
        if let Some(plan) = Self::of_parts(n, c, d, elements, tile, wanted) {
            return plan;
        }
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
        Self { rows, range, lane, tile, lanes: range.div_ceil(lane), part: n, parts: 1 }
    }

    /// Parts of the rows, where there are blocks enough, the classes make fewer lanes (`lanes`), and the workspace of `elements` has room.
    fn of_parts(n: usize, c: usize, d: usize, elements: usize, tile: usize, lanes: usize) -> Option<Self> {
        if n <= MOST_ROWS || lanes == MOST_LANES || n.saturating_mul(c).saturating_mul(d) < SEQUENTIAL_WORK {
            return None;
        }
        // A part's dW, its classes' norms, a tile's copies and what its rows have of vectors and statistics.
        let fixed = c.saturating_mul(d + NORM_ELEMENTS).saturating_add(2 * tile * d);
        let per_row = c.saturating_add(5 * c.div_ceil(tile)).saturating_add(3 * d + ROW_ELEMENTS);
        let least = FEWEST_ROWS.saturating_mul(per_row).saturating_add(fixed);
        let parts = (n / FEWEST_PART_ROWS.max(c)).min(elements / least).min(MOST_LANES);
        if parts < 2 * lanes {
            return None;
        }
        let part = n.div_ceil(parts);
        let fitting = ((elements / parts - fixed) / per_row).min(MOST_ROWS).min((BLOCK_ELEMENTS / d).max(FEWEST_ROWS));
        let rows = part.div_ceil(part.div_ceil(fitting));
        let tile = c.div_ceil(c.div_ceil(tile));
        Some(Self { rows, range: c, lane: c, tile, lanes: 1, part, parts: n.div_ceil(part) })
    }

    /// Elements of the workspace that a part needs, its dW where there are several parts.
    pub fn elements(&self, c: usize, d: usize) -> usize {
        let weight = if self.parts > 1 { c * d } else { 0 };
        self.rows * self.range + (2 + self.lanes) * self.rows * d + weight
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
                        for copies in [false, true] {
                            let plan = Plan::new(n, c, d, element, budget, copies);
                            let label = format!("{n} {c} {d} {element} {budget} {copies}: {plan:?}");
                            assert!((1..=n).contains(&plan.rows), "{label}");
                            assert!((1..=c).contains(&plan.range), "{label}");
                            assert!(plan.lanes * plan.lane >= plan.range, "{label}");
                            assert!((plan.lanes - 1) * plan.lane < plan.range, "an idle lane: {label}");
                            assert!((1..=plan.lane).contains(&plan.tile), "{label}");
                            let copied = if copies { 2 * plan.lanes * plan.tile * d } else { 0 };
                            let used = plan.parts * (plan.elements(c, d) + copied);
                            assert!(plan.parts * plan.part >= n && (plan.parts - 1) * plan.part < n, "{label}");
                            assert!(plan.parts == 1 || (plan.range, plan.lanes) == (c, 1), "{label}");
                            assert!(plan.rows <= plan.part, "{label}");
                            // What one row and one tile need is taken in any case.
                            let least = 4 * d + 3 * 16 * d + 64;
                            assert!(used * element <= budget.max(least * element), "{used} elements: {label}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn many_rows_and_few_classes_are_parts() {
        let plan = |n, c, d, budget| Plan::new(n, c, d, 4, budget, false);
        for (n, c, d) in [(500_000, 2, 16), (500_000, 2, 128), (100_000, 1, 64), (100_000, 1000, 128)] {
            assert_eq!(plan(n, c, d, 64 * MIB).parts, 32, "{n} {c} {d}");
        }
        assert_eq!(plan(8000, 1000, 256, 64 * MIB).parts, 8, "a part has as many rows as there are classes");
        let of_blocks = plan(1500, 20, 150, MIB);
        assert!(of_blocks.parts > 1 && of_blocks.rows < of_blocks.part, "{of_blocks:?}");
        for (n, c, d) in [(1024, 2, 128), (5000, 8200, 64), (1025, 2, 1)] {
            assert_eq!(plan(n, c, d, 64 * MIB).parts, 1, "{n} {c} {d}");
        }
        assert_eq!(plan(2000, 1500, 512, MIB).parts, 1, "a part's dW does not fit");
    }

    #[test]
    fn benchmark_sizes_are_one_block() {
        for (n, c, d) in [(64, 100, 64), (128, 1000, 512), (256, 1000, 2048), (256, 8142, 2048), (1024, 10000, 512)] {
            for copies in [false, true] {
                let plan = Plan::new(n, c, d, 4, 64 * MIB, copies);
                assert_eq!((plan.rows, plan.range, plan.parts), (n, c, 1), "{plan:?}");
                assert_eq!(plan.lanes == 1, c == 100, "{plan:?}");
            }
        }
    }
}
