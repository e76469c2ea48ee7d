//! How a problem is cut into pieces that fit the caches and the workspace: a pure function of the sizes, never of the threads.

use std::ops::Range;

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
/// Classes that make another lane worth its partial dX; of pairs, whose tiles are small anyway, half as many.
const LANE_CLASSES: usize = 256;
/// Multiply-adds below which a problem is not worth waking threads for.
const SEQUENTIAL_WORK: usize = 1 << 20;
/// What a class's norm takes, in elements of f32.
const NORM_ELEMENTS: usize = 6;
/// What a row of a block takes beside its vectors and cosines, in elements of f32.
const ROW_ELEMENTS: usize = 32;
/// What `gemm` packs its operands into, beside the workspace, is left this share of the budget; pairs are packed within the workspace, and leave less.
const PACKING_SHARE: usize = 6;
const PAIRS_SHARE: usize = 16;

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
    /// Where W's rows cannot be read as they are.
    pub fn copied(self) -> Self {
        if self == Self::Own { Self::Widened } else { self }
    }

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

    /// Of a part with one lane: what its rows do not change, and what a row takes.
    fn fixed(self, classes: usize, d: usize) -> usize {
        let padding = if self == Self::Pairs { 16 * (d + 1) } else { 0 };
        self.tile(0, classes, d) + padding
    }

    fn per_row(self, classes: usize, d: usize) -> usize {
        match self {
            Self::Own | Self::Widened => 3 * d,
            Self::Pairs => 3 * d + classes.div_ceil(2) + 24,
        }
    }

    /// Classes that make another lane worth its partial dX.
    fn lane_classes(self) -> usize {
        if self == Self::Pairs { LANE_CLASSES / 2 } else { LANE_CLASSES }
    }

    /// The share of the budget that is left to what the workspace does not count.
    fn share(self) -> usize {
        if self == Self::Pairs { PAIRS_SHARE } else { PACKING_SHARE }
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
    /// For N (at least 1) rows that count, C classes, D dimensions, elements of `element` bytes and a workspace of `budget` bytes.
    pub fn new(n: usize, c: usize, d: usize, element: usize, budget: usize, operands: Operands) -> Self {
        let elements = (budget - budget / operands.share()) / element;
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
        // A power of two: 3 lanes on two threads take the time of 4.
        let whole_powers = |lanes: usize| 1 << lanes.ilog2();
        let wanted = if rows.saturating_mul(c).saturating_mul(d) < SEQUENTIAL_WORK {
            1
        } else {
            c.div_ceil(operands.lane_classes()).clamp((c / 16).clamp(1, 4), MOST_LANES)
        };
        let wanted = whole_powers(wanted);
        let whole = rows.saturating_mul(per_row(c));
        if let Some(plan) = Self::of_parts(n, c, d, elements, tile, wanted, operands) {
            return plan;
        }
        let (lanes, range);
        if whole.saturating_add(wanted.min(2) * per_lane) <= spare {
            // All classes at once, with as many lanes as the rest affords.
            lanes = whole_powers(wanted.min((spare - whole) / per_lane));
            range = c;
        } else {
            lanes = whole_powers(wanted.min((elements / 4 / per_lane).max(1)));
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
    fn of_parts(
        n: usize,
        c: usize,
        d: usize,
        elements: usize,
        tile: usize,
        lanes: usize,
        operands: Operands,
    ) -> Option<Self> {
        if n <= MOST_ROWS || lanes == MOST_LANES || n.saturating_mul(c).saturating_mul(d) < SEQUENTIAL_WORK {
            return None;
        }
        // A part's dW, its classes' norms, a tile's copies and what its rows have of vectors and statistics.
        let fixed = c.saturating_mul(d + NORM_ELEMENTS).saturating_add(operands.fixed(tile, d));
        let per_row = c.saturating_add(5 * c.div_ceil(tile)).saturating_add(operands.per_row(tile, d) + ROW_ELEMENTS);
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

    /// Elements of the workspace that a part needs: cosines, right operands, the lanes' dX, and its dW where there are several parts.
    pub fn elements(&self, operands: Operands, c: usize, d: usize) -> usize {
        let weight = if self.parts > 1 { c * d } else { 0 };
        self.rows * self.range + operands.block(self.rows, d) + self.lanes * self.rows * d + weight
    }
}

/// 0..c in ranges of `size`.
pub(super) fn ranges(c: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..c).step_by(size).map(move |start| start..(start + size).min(c))
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
                            let used = plan.parts * (plan.elements(operands, c, d) + copied);
                            assert!(plan.parts * plan.part >= n && (plan.parts - 1) * plan.part < n, "{label}");
                            assert!(plan.parts == 1 || (plan.range, plan.lanes) == (c, 1), "{label}");
                            assert!(plan.rows <= plan.part, "{label}");
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
    fn many_rows_and_few_classes_are_parts() {
        let plan = |n, c, d, budget| Plan::new(n, c, d, 4, budget, Operands::Own);
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
            for operands in [Operands::Own, Operands::Widened, Operands::Pairs] {
                let plan = Plan::new(n, c, d, 4, 64 * MIB, operands);
                assert_eq!((plan.rows, plan.range, plan.parts), (n, c, 1), "{plan:?}");
                assert_eq!(plan.lanes == 1, c == 100, "{plan:?}");
            }
        }
    }

    /// Multiply-adds of a step's products on `threads` threads, the longest thread's: pieces that may run side by side go to whoever is free, and
    /// all wait for the last one at the end of each.
    fn longest(n: usize, c: usize, d: usize, operands: Operands, threads: usize) -> f64 {
        let plan = Plan::new(n, c, d, 4, 64 * MIB, operands);
        let chunks = |whole: usize, size: usize| {
            let start_of = (0..whole).step_by(size);
            start_of.map(move |start| (whole - start).min(size)).collect::<Vec<_>>()
        };
        let dealt = |pieces: Vec<f64>| {
            let mut busy = vec![0.0; threads];
            for piece in pieces {
                let first = busy.iter_mut().min_by(|a: &&mut f64, b| a.total_cmp(b)).expect("a thread");
                *first += piece;
            }
            busy.into_iter().fold(0.0, f64::max)
        };
        // dW of a half type over several blocks of rows takes a sweep of its own, with the cosines made again.
        let again = n > plan.rows && plan.parts == 1 && operands != Operands::Own;
        if plan.parts > 1 {
            return dealt(chunks(n, plan.part).into_iter().map(|rows| 3.0 * (rows * c * d) as f64).collect());
        }
        let mut sum = 0.0;
        for rows in chunks(n, plan.rows) {
            for range in chunks(c, plan.range) {
                let products = if again { 4.0 } else { 3.0 } + if plan.range < c { 1.0 } else { 0.0 };
                sum +=
                    dealt(chunks(range, plan.lane).into_iter().map(|of| products * (of * rows * d) as f64).collect());
            }
        }
        sum
    }

    /// benches/scaling.md is what this writes.
    #[test]
    fn scales_as_recorded() {
        let mut found = String::new();
        for (n, c, d) in [
            (64, 100, 64),
            (128, 1000, 512),
            (256, 1000, 2048),
            (256, 8142, 2048),
            (1024, 10_000, 512),
            (100_000, 2, 128),
            (100_000, 100, 128),
            (100_000, 1000, 128),
        ] {
            for (name, operands) in [("f32", Operands::Own), ("bf16", Operands::Pairs)] {
                let plan = Plan::new(n, c, d, 4, 64 * MIB, operands);
                let one = longest(n, c, d, operands, 1);
                let times = [2, 8, 32, 64].map(|threads| format!("{:.1}", one / longest(n, c, d, operands, threads)));
                let blocks = plan.part.div_ceil(plan.rows);
                let of_plan = format!("{} | {blocks} | {}", plan.parts, plan.lanes);
                found += &format!("| {n}, {c}, {d} | {name} | {of_plan} | {} |\n", times.join(" | "));
            }
        }
        let recorded = include_str!("../../benches/scaling.md");
        assert!(recorded.ends_with(&format!("|--:|\n{found}")), "benches/scaling.md is to end with\n{found}");
    }
}
