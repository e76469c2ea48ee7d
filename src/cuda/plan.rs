//! How a problem is cut into launches: pure functions of its sizes, types, the device's limits and the budget.

use std::ops::Range;

use super::params;

pub(super) const TILE: usize = params::MARGIN_LOSS_TILE as usize;
pub(super) const THREADS: u32 = params::MARGIN_LOSS_THREADS;
/// Of the wide kinds.
pub(super) const WIDE_TILE: usize = params::MARGIN_LOSS_WIDE_TILE as usize;
/// k that a sum is split by: `split_of` in contract.cuh.
const STEP: usize = params::MARGIN_LOSS_STEP as usize;
/// A split of a sum has at least this many steps of a tile of 64, or of a wide one: with fewer, its first loads and its partial sums are most of
/// its time. By arithmetic, not measured: a step of a wide tile takes half a microsecond; its parts, 64 KB each, are written, announced and read in
/// three, and are 128 KB a part of traffic that an unsplit sum does not have.
const LEAST_STEPS: usize = 4;
const LEAST_WIDE_STEPS: usize = 16;
/// Blocks that one multiprocessor is to have: two hide each other's barriers.
const BLOCKS_A_MULTIPROCESSOR: usize = 2;

/// What of a device a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub multiprocessors: usize,
    /// Bytes of shared memory: of a block that asks for it, and of a multiprocessor
    pub shared_a_block: usize,
    pub shared_a_multiprocessor: usize,
    /// Whether all blocks of a grid can be launched together
    pub cooperative: bool,
}

impl Limits {
    /// Whether so many blocks of `shared` bytes of dynamic shared memory are on one multiprocessor at once.
    fn fit(&self, blocks: usize, shared: usize) -> bool {
        // A device takes 1 KB of its own for each block.
        let all = shared + params::MARGIN_LOSS_STEP_STATIC as usize;
        all <= self.shared_a_block && blocks * (all + 1024) <= self.shared_a_multiprocessor
    }
}

/// A problem's sizes in rows, classes, dimensions and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub n: usize,
    pub c: usize,
    pub d: usize,
    /// Bytes of an element of X, of W, of g, and of what is added up: 4, or 8 for f64.
    pub x: usize,
    pub w: usize,
    pub g: usize,
    pub sum: usize,
    /// Rows and classes of a tile of cosines; rows or classes, and dimensions, of a tile of a gradient.
    pub tile: usize,
    pub contract_tile: usize,
}

impl Sizes {
    fn row_tiles(&self) -> usize {
        self.n.div_ceil(self.tile)
    }

    fn class_tiles(&self) -> usize {
        self.c.div_ceil(self.tile)
    }

    /// Products of cubes of `side`.
    fn cubes(&self, side: usize) -> usize {
        self.n.div_ceil(side) * self.c.div_ceil(side) * self.d.div_ceil(side)
    }

    /// So few products that one block is to make them all.
    fn are_one_blocks(&self, kind: &KindSizes) -> bool {
        self.cubes(TILE) <= kind.alone
    }

    /// Whether tiles of 128 are to be taken: their products are half as many bytes and a third as many instructions, but they must be enough for
    /// the device to have work everywhere. By arithmetic, not measured: with one cube of 128 for every fourth multiprocessor the bytes that are
    /// saved outweigh the multiprocessors that wait. A tile of which more than half would be padding is none.
    pub fn are_wide(&self, limits: &Limits, kind: &KindSizes) -> bool {
        self.n > TILE
            && self.c > TILE
            && 4 * self.cubes(WIDE_TILE) >= limits.multiprocessors
            && !self.are_one_blocks(kind)
            && limits.fit(1, params::MARGIN_LOSS_STEP_SHARED_WIDE as usize)
    }

    /// Rounded up to whole tiles.
    fn pad(&self, count: usize) -> usize {
        count.next_multiple_of(self.tile)
    }

    /// The largest multiple of the tile that `room` bytes hold at `each` bytes; 0 if not one.
    fn tiles_in(&self, room: usize, each: usize) -> usize {
        room / each.max(1) / self.tile * self.tile
    }
}

/// What a kind of kernel takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KindSizes {
    /// Dynamic shared memory of a block with cosines, and gradients after them: beside the cosines that fused_step keeps, the g that
    /// stream_backward does; and of one with a contraction alone
    pub shared: usize,
    pub contract_shared: usize,
    /// One row's statistics and state, one class's norm
    pub statistics: usize,
    pub row_state: usize,
    pub norm: usize,
    /// Products of three tiles that one block makes sooner than many do with three barriers of the grid between, or with a launch and split
    /// sums between. By arithmetic, not measured: a barrier takes about 1.5 µs, a launch more; 64³ fused multiply-adds take one multiprocessor
    /// of 1.7 GHz 1.2 µs, on tensor cores, loads and all, 0.3 µs.
    pub alone: usize,
}

/// stream_forward: a block for every row tile and split of the class tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forward {
    pub row_tiles: usize,
    pub splits: usize,
}

impl Forward {
    pub fn new(sizes: &Sizes, limits: &Limits, kind: &KindSizes) -> Self {
        let row_tiles = sizes.row_tiles();
        let wanted = BLOCKS_A_MULTIPROCESSOR * limits.multiprocessors / row_tiles.max(1);
        let wanted = if sizes.are_one_blocks(kind) { 1 } else { wanted };
        Self { row_tiles, splits: wanted.clamp(1, sizes.class_tiles()) }
    }

    /// Bytes of the splits' statistics; one split has none in memory.
    pub fn partials(&self, sizes: &Sizes, kind: &KindSizes) -> usize {
        if self.splits > 1 { self.splits * sizes.n * kind.statistics } else { 0 }
    }

    /// Counters of blocks that have come; one block needs none.
    pub fn arrivals(&self) -> usize {
        if self.row_tiles * self.splits > 1 { 1 + self.row_tiles } else { 0 }
    }
}

/// A block that makes a whole backward pass, what it keeps for it in its shared memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alone {
    /// The only chunk, no sum of it split
    pub chunk: Chunk,
    /// Where its workspace begins
    pub workspace: usize,
    /// Bytes of dynamic shared memory
    pub shared: usize,
}

impl Alone {
    /// stream_backward. None where the problem is not one block's, or g does not fit.
    pub fn new(sizes: &Sizes, limits: &Limits, kind: &KindSizes, dx: bool, dw: bool) -> Option<Self> {
        Self::behind(0, sizes, limits, kind, dx, dw)
    }

    /// With `kept` bytes of cosines before the workspace.
    fn behind(kept: usize, sizes: &Sizes, limits: &Limits, kind: &KindSizes, dx: bool, dw: bool) -> Option<Self> {
        if !sizes.are_one_blocks(kind) {
            return None;
        }
        // The block's own memory is all the budget there is.
        let plan = Backward::new(sizes, &Limits { multiprocessors: 1, ..*limits }, usize::MAX, dx, dw);
        let [mut chunk] = <[Chunk; 1]>::try_from(plan.chunks).ok()?;
        // Rows of g whole tiles apart would lie in the same banks: 16 bytes more.
        chunk.stride += 16 / sizes.g;
        chunk.memory.g = sizes.n * chunk.stride * sizes.g;
        chunk.memory.class_dots = if dw { sizes.row_tiles() * chunk.stride * sizes.sum } else { 0 };
        let workspace = align(kind.shared + kept);
        let shared = workspace + chunk.memory.bytes();
        (chunk.arrivals == 0 && limits.fit(1, shared)).then_some(Self { chunk, workspace, shared })
    }
}

/// fused_step: a cooperative grid whose shared memory holds all cosines, and the one chunk that is its backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fused {
    pub blocks: usize,
    /// Of which so many are on one multiprocessor
    pub blocks_a_multiprocessor: usize,
    /// Bytes of dynamic shared memory a block
    pub shared: usize,
    pub chunk: Chunk,
    /// Where the chunk's workspace, the rows' statistics, and the rows' states and the classes' norms begin: in global memory, the latter two
    /// elsewhere; or in the shared memory of the only block.
    pub workspace: usize,
    pub partials: usize,
    pub states: Option<(usize, usize)>,
    /// Bytes of global memory
    pub bytes: usize,
}

impl Fused {
    /// None where the cosines, or g, do not fit.
    pub fn new(sizes: &Sizes, limits: &Limits, kind: &KindSizes, budget: usize, dx: bool, dw: bool) -> Option<Self> {
        if !limits.cooperative {
            return None;
        }
        let class_tiles = sizes.class_tiles();
        let tiles = sizes.row_tiles() * class_tiles;
        // A block's last cosines stay where its operands were.
        let kept = |tiles: usize| tiles.saturating_sub(1) * sizes.tile * sizes.tile * sizes.sum;
        // One block has all rows' statistics at once.
        if let Some(Alone { chunk, workspace, shared }) = Alone::behind(kept(tiles), sizes, limits, kind, dx, dw) {
            let partials = shared;
            let rows = partials + align(sizes.n * kind.statistics);
            let class_norms = rows + align(sizes.n * kind.row_state);
            let shared = class_norms + align(sizes.c * kind.norm);
            if limits.fit(1, shared) {
                return Some(Self {
                    blocks: 1,
                    blocks_a_multiprocessor: 1,
                    shared,
                    chunk,
                    workspace,
                    partials,
                    states: Some((rows, class_norms)),
                    bytes: 0,
                });
            }
        }
        // Of a row tile, no more parts than it has class tiles.
        let partials = align(class_tiles * sizes.n * kind.statistics);
        let plan = Backward::beside(partials, sizes, limits, budget, dx, dw);
        let [chunk] = &plan.chunks[..] else { return None };
        let contractions = chunk.contract_blocks(sizes);
        // As many blocks a multiprocessor as there is room for: they hide each other's waiting.
        (1..=params::MARGIN_LOSS_STEP_BLOCKS as usize).rev().find_map(|blocks_a_multiprocessor| {
            let blocks = (blocks_a_multiprocessor * limits.multiprocessors).min(tiles.max(contractions));
            let shared = kind.shared + kept(tiles.div_ceil(blocks));
            let bytes = plan.bytes() + partials;
            (limits.fit(blocks_a_multiprocessor, shared) && bytes <= budget).then(|| Self {
                blocks,
                blocks_a_multiprocessor,
                shared,
                chunk: chunk.clone(),
                workspace: 0,
                partials: plan.bytes(),
                states: None,
                bytes,
            })
        })
    }
}

/// One pair of launches: g of these rows and classes, and what it adds to the gradients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub rows: Range<usize>,
    pub classes: Range<usize>,
    pub dx: bool,
    pub dw: bool,
    pub dx_splits: usize,
    pub dw_splits: usize,
    /// From a row of g to the next, in elements
    pub stride: usize,
    pub memory: Memory,
    /// Tiles that are split
    pub arrivals: usize,
}

impl Chunk {
    /// Blocks of stream_gradient: tiles of cosines.
    pub fn gradient_blocks(&self, sizes: &Sizes) -> usize {
        self.rows.len().div_ceil(sizes.tile) * self.classes.len().div_ceil(sizes.tile)
    }

    /// Blocks of stream_contract: tiles of dX and of dW, by their splits.
    pub fn contract_blocks(&self, sizes: &Sizes) -> usize {
        let tiles = |count: usize| count.div_ceil(sizes.contract_tile);
        let dx_blocks = if self.dx { tiles(self.rows.len()) * self.dx_splits } else { 0 };
        let dw_blocks = if self.dw { tiles(self.classes.len()) * self.dw_splits } else { 0 };
        tiles(sizes.d) * (dx_blocks + dw_blocks)
    }
}

/// Parts of the workspace, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Sums of dX and of dW over several chunks
    pub dx_sums: usize,
    pub dw_sums: usize,
    /// Of all row tiles, whatever rows a chunk has
    pub class_dots: usize,
    pub g: usize,
    pub partial_sums: usize,
}

impl Memory {
    /// All of it, each part rounded up as [`align`] does.
    pub fn bytes(&self) -> usize {
        [self.g, self.class_dots, self.partial_sums, self.dx_sums, self.dw_sums].into_iter().map(align).sum()
    }
}

/// The backward pass: chunks in the order they are to be launched in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Backward {
    pub chunks: Vec<Chunk>,
}

impl Backward {
    /// All of g at once where it fits; else chunks of classes with all rows, if dX can be summed over them; else chunks of classes for dW,
    /// and chunks of rows for dX: two more products, but each gradient is whole after one chunk, or a few.
    pub fn new(sizes: &Sizes, limits: &Limits, budget: usize, dx: bool, dw: bool) -> Self {
        Self::beside(0, sizes, limits, budget, dx, dw)
    }

    /// With `beside` bytes of the workspace that are others'.
    fn beside(beside: usize, sizes: &Sizes, limits: &Limits, budget: usize, dx: bool, dw: bool) -> Self {
        let &Sizes { n, c, d, g, sum, .. } = sizes;
        let mut plan = Self::default();
        if n == 0 || !(dx || dw) {
            return plan;
        }
        let room = budget - budget / 4; // a quarter is for split sums, and for what is beside
        let dots = sum * sizes.row_tiles(); // of one class
        let whole = sizes.pad(c) * (g * n + if dw { dots } else { 0 }) <= room;
        // dX of a half type is rounded once: chunks of classes need its sums beside it.
        let dx_sums = if dx && sizes.x < sum { sum * n * d } else { 0 };
        let classes = sizes.tiles_in(room.saturating_sub(dx_sums), g * n + dots);
        if whole {
            plan.add(beside, sizes, limits, budget, 0..n, 0..c, dx, dw);
        } else if classes > 0 && (!dx || dx_sums <= room / 2) {
            for classes in chunks(c, classes) {
                plan.add(beside, sizes, limits, budget, 0..n, classes, dx, dw);
            }
        } else {
            if dw {
                let dw_sums = if sizes.w < sum { sum * d } else { 0 };
                let classes = match sizes.tiles_in(room, g * n + dots) {
                    0 => sizes.tiles_in(room, g * 8 * sizes.tile + dots + dw_sums).max(sizes.tile),
                    all_rows => all_rows,
                };
                let rest = room.saturating_sub(classes * (dots + dw_sums));
                let rows = if classes * (g * n + dots) <= room {
                    n
                } else {
                    sizes.tiles_in(rest, g * classes).max(sizes.tile)
                };
                for classes in chunks(c, classes) {
                    for rows in chunks(n, rows) {
                        plan.add(beside, sizes, limits, budget, rows, classes.clone(), false, true);
                    }
                }
            }
            if dx {
                let dx_sums = if sizes.x < sum { sum * d } else { 0 };
                let rows = match sizes.tiles_in(room, g * sizes.pad(c)) {
                    0 => sizes.tiles_in(room, g * 8 * sizes.tile + dx_sums).max(sizes.tile),
                    all_classes => all_classes,
                };
                let rest = room.saturating_sub(rows * dx_sums);
                let classes =
                    if rows * g * sizes.pad(c) <= room { c } else { sizes.tiles_in(rest, g * rows).max(sizes.tile) };
                for rows in chunks(n, rows) {
                    for classes in chunks(c, classes) {
                        plan.add(beside, sizes, limits, budget, rows.clone(), classes, true, false);
                    }
                }
            }
        }
        plan
    }

    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        beside: usize,
        sizes: &Sizes,
        limits: &Limits,
        budget: usize,
        rows: Range<usize>,
        classes: Range<usize>,
        dx: bool,
        dw: bool,
    ) {
        let &Sizes { n, c, d, x, w, g, sum, contract_tile, .. } = sizes;
        let d_tiles = d.div_ceil(contract_tile);
        let dw_tiles = if dw { classes.len().div_ceil(contract_tile) * d_tiles } else { 0 };
        let dx_tiles = if dx { rows.len().div_ceil(contract_tile) * d_tiles } else { 0 };
        let (dw_steps, dx_steps) = (rows.len().div_ceil(STEP), classes.len().div_ceil(STEP));
        let blocks = BLOCKS_A_MULTIPROCESSOR * limits.multiprocessors;
        let least = if contract_tile == WIDE_TILE { LEAST_WIDE_STEPS } else { LEAST_STEPS };
        let steps = ((dw_tiles * dw_steps + dx_tiles * dx_steps) / blocks).max(least);
        let sums = contract_tile * contract_tile * sum;
        let stride = sizes.pad(classes.len());
        let mut memory = Memory {
            g: rows.len() * stride * g,
            class_dots: if dw { sizes.row_tiles() * stride * sum } else { 0 },
            partial_sums: 0,
            dx_sums: if dx && x < sum && classes.len() < c { rows.len() * d * sum } else { 0 },
            dw_sums: if dw && w < sum && rows.len() < n { classes.len() * d * sum } else { 0 },
        };
        // Split sums have what is left, a quarter or more. dX's come first: they are longer.
        let mut room = budget.saturating_sub(beside + memory.bytes());
        let mut splits = |tiles: usize, own: usize| {
            let count = (own / steps).min(room / (sums * tiles).max(1)).max(1);
            room -= if count > 1 { tiles * count * sums } else { 0 };
            count
        };
        let dx_splits = splits(dx_tiles, dx_steps);
        let dw_splits = splits(dw_tiles, dw_steps);
        // Tiles that are not split have no partial sums and no counter.
        let split = |tiles: usize, splits: usize| if splits > 1 { (tiles * splits * sums, tiles) } else { (0, 0) };
        let (dw_split, dx_split) = (split(dw_tiles, dw_splits), split(dx_tiles, dx_splits));
        memory.partial_sums = dw_split.0 + dx_split.0;
        let arrivals = dw_split.1 + dx_split.1;
        self.chunks.push(Chunk { rows, classes, dx, dw, dx_splits, dw_splits, stride, memory, arrivals });
    }

    /// What the chunk that takes most takes of the workspace.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.memory.bytes()).max().unwrap_or(0)
    }
}

/// Rounded up so that what follows is aligned for every access.
pub(super) fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(256)
}

fn chunks(all: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..all).step_by(size).map(move |start| start..all.min(start + size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Limits = Limits {
        multiprocessors: 132,
        shared_a_block: 227 << 10,
        shared_a_multiprocessor: 228 << 10,
        cooperative: true,
    };
    /// The least device: Jetson's and GeForce's of capability 8.6 have less shared memory.
    const SMALL: Limits =
        Limits { multiprocessors: 16, shared_a_block: 99 << 10, shared_a_multiprocessor: 100 << 10, cooperative: true };
    const TENSOR: KindSizes = KindSizes {
        shared: params::MARGIN_LOSS_STEP_SHARED_TENSOR as usize,
        contract_shared: params::MARGIN_LOSS_CONTRACT_SHARED_TENSOR as usize,
        statistics: 32,
        row_state: 40,
        norm: 8,
        alone: 6,
    };
    const FMA: KindSizes = KindSizes { shared: params::MARGIN_LOSS_STEP_SHARED_F32 as usize, alone: 2, ..TENSOR };
    const MIB: usize = 1 << 20;

    fn sizes(n: usize, c: usize, d: usize, x: usize, w: usize) -> Sizes {
        let sum = if x == 8 { 8 } else { 4 };
        Sizes { n, c, d, x, w, g: if x == w { x } else { sum }, sum, tile: TILE, contract_tile: TILE }
    }

    /// Every element of either gradient gets every one of its terms once, in order, and the memory stays in the budget.
    #[test]
    fn chunks_cover_a_problem_within_the_budget() {
        for (n, c, d) in [
            (1, 1, 1),
            (64, 64, 64),
            (65, 63, 64),
            (64, 100, 64),
            (256, 1000, 2048),
            (256, 8142, 2048),
            (4096, 10_000, 512),
            (100, 1_000_000, 64),
            (1_000_000, 100, 64),
            (60_000, 60_000, 128),
            (70_000, 3, 2),
        ] {
            for (x, w) in [(8, 8), (4, 4), (2, 2), (2, 4)] {
                for budget in [MIB, 16 * MIB, 256 * MIB] {
                    for (dx, dw) in [(true, true), (true, false), (false, true)] {
                        let sizes = sizes(n, c, d, x, w);
                        let plan = Backward::new(&sizes, &H100, budget, dx, dw);
                        check(&sizes, &plan, dx, dw);
                        // A tile of class dots costs O(N); chunks of one tile are taken in any case.
                        let least = sizes.sum * TILE * (TILE + sizes.row_tiles() + d);
                        assert!(plan.bytes() <= budget + least, "{sizes:?} {budget}: {} bytes", plan.bytes());
                    }
                }
            }
        }
    }

    fn check(sizes: &Sizes, plan: &Backward, dx: bool, dw: bool) {
        // dX: for each range of rows, classes from 0 to C; dW: the same the other way around.
        let mut rows_done = std::collections::BTreeMap::<(usize, usize), usize>::new();
        let mut classes_done = std::collections::BTreeMap::<(usize, usize), usize>::new();
        let (mut dx_sums, mut dw_sums) = (std::collections::BTreeMap::new(), std::collections::BTreeMap::new());
        for chunk in &plan.chunks {
            assert!(
                chunk.rows.start % TILE == 0
                    && chunk.classes.start % TILE == 0
                    && chunk.dx_splits > 0
                    && chunk.dw_splits > 0
            );
            if chunk.dx {
                let done = rows_done.entry((chunk.rows.start, chunk.rows.end)).or_default();
                assert_eq!(*done, chunk.classes.start, "{sizes:?}");
                *done = chunk.classes.end;
                let sums = *dx_sums.entry(chunk.rows.start).or_insert(chunk.memory.dx_sums);
                assert_eq!(sums, chunk.memory.dx_sums, "what chunks add to stays where it is");
            }
            if chunk.dw {
                let done = classes_done.entry((chunk.classes.start, chunk.classes.end)).or_default();
                assert_eq!(*done, chunk.rows.start, "{sizes:?}");
                *done = chunk.rows.end;
                let (memory, first) = (&chunk.memory, *dw_sums.entry(chunk.classes.start).or_insert(chunk.memory));
                assert_eq!((memory.dw_sums, memory.class_dots), (first.dw_sums, first.class_dots), "as above");
            }
        }
        for (done, wanted, all, other) in [(rows_done, dx, sizes.n, sizes.c), (classes_done, dw, sizes.c, sizes.n)] {
            let mut next = 0;
            for ((start, end), sum) in done {
                assert_eq!((start, sum), (next, other), "{sizes:?}");
                next = end;
            }
            assert_eq!(next, if wanted { all } else { 0 }, "{sizes:?}");
        }
    }

    #[test]
    fn a_step_of_usual_size_is_one_chunk() {
        for (n, c, d) in [(64, 100, 64), (256, 1000, 2048), (256, 8142, 2048)] {
            let plan = Backward::new(&sizes(n, c, d, 4, 4), &H100, 16 * MIB, true, true);
            assert_eq!(plan.chunks.len(), 1);
        }
    }

    #[test]
    fn the_cosines_of_a_usual_step_fit_on_chip() {
        for (n, c, d) in [(1, 1, 1), (64, 100, 64), (256, 1000, 2048), (256, 8142, 2048), (512, 4000, 512)] {
            for limits in [H100, SMALL] {
                let sizes = sizes(n, c, d, 2, 2);
                let Some(plan) = Fused::new(&sizes, &limits, &TENSOR, 16 * MIB, true, true) else {
                    assert!(limits == SMALL && c >= 1000, "{sizes:?} fits an H100");
                    continue;
                };
                let tiles = n.div_ceil(TILE) * c.div_ceil(TILE);
                let tile = 4 * TILE * TILE;
                assert!(plan.blocks <= plan.blocks_a_multiprocessor * limits.multiprocessors);
                assert!((1 + (plan.shared - TENSOR.shared) / tile) * plan.blocks >= tiles, "{sizes:?} {plan:?}");
                assert!(plan.shared + 2048 <= limits.shared_a_block);
                assert!(plan.blocks_a_multiprocessor * (plan.shared + 3072) <= limits.shared_a_multiprocessor);
                assert_eq!(plan.states.is_some(), tiles <= 2, "{sizes:?} is one block's");
                assert_eq!(plan.bytes == 0, tiles <= 2, "{sizes:?} needs no memory");
            }
        }
        let large = sizes(4096, 8142, 512, 2, 2);
        assert_eq!(Fused::new(&large, &H100, &TENSOR, 1 << 30, true, true), None, "too many cosines");
        let usual = sizes(256, 8142, 2048, 2, 2);
        assert_eq!(Fused::new(&usual, &H100, &TENSOR, 2 * MIB, true, true), None, "no room for g");
        // A block alone whose shared memory would not hold what it keeps is as many blocks as any other.
        let tiny = Limits { shared_a_block: 64 << 10, ..SMALL };
        let plan = Fused::new(&sizes(64, 100, 64, 2, 2), &tiny, &TENSOR, 16 * MIB, true, true).unwrap();
        assert!(plan.blocks > 1 && plan.states.is_none(), "{plan:?}");
    }

    /// What the only block keeps lies side by side.
    #[test]
    fn a_block_alone_keeps_all_it_needs() {
        for (n, c, d) in [(1, 1, 1), (64, 100, 64), (130, 64, 64), (3, 64, 384)] {
            let sizes = sizes(n, c, d, 2, 2);
            let plan = Fused::new(&sizes, &H100, &TENSOR, 16 * MIB, true, true).unwrap();
            let (rows, class_norms) = plan.states.unwrap();
            let tiles = n.div_ceil(TILE) * c.div_ceil(TILE);
            assert!(plan.workspace >= TENSOR.shared + (tiles - 1) * 4 * TILE * TILE);
            assert_eq!(plan.partials - plan.workspace, plan.chunk.memory.bytes());
            assert!(rows - plan.partials >= n * TENSOR.statistics && class_norms - rows >= n * TENSOR.row_state);
            assert!(plan.shared - class_norms >= c * TENSOR.norm);
        }
    }

    #[test]
    fn long_sums_over_few_tiles_are_split() {
        let plan = Backward::new(&sizes(64, 30_000, 64, 4, 4), &H100, 16 * MIB, true, true);
        let [chunk] = &plan.chunks[..] else { panic!("{plan:?}") };
        assert!(chunk.dx_splits >= 16 && chunk.dw_splits == 1, "{chunk:?}");
        assert!(chunk.memory.partial_sums <= 4 * MIB);
    }

    /// dX's sums over 8142 classes, in 32 tiles, are every multiprocessor's: their parts have what g and the statistics leave of the workspace.
    #[test]
    fn split_sums_take_what_is_left() {
        let wide = KindSizes { shared: params::MARGIN_LOSS_STEP_SHARED_WIDE as usize, ..TENSOR };
        let sizes = Sizes { tile: WIDE_TILE, contract_tile: WIDE_TILE, ..sizes(256, 8142, 2048, 2, 2) };
        for (budget, splits) in [(6 * MIB, 1), (12 * MIB, 3), (16 * MIB, 4), (256 * MIB, 4)] {
            let plan = Fused::new(&sizes, &H100, &wide, budget, true, true).unwrap();
            assert_eq!((plan.chunk.dx_splits, plan.chunk.dw_splits), (splits, 1), "{budget}");
            assert!(plan.bytes <= budget && plan.partials + 64 * 256 * 32 <= plan.bytes, "{plan:?}");
        }
    }

    /// stream_backward takes what has few enough tiles along all three sides, dX or dW or both, and nothing else.
    #[test]
    fn one_block_makes_the_backward_of_a_few_tiles() {
        let both = [(true, true), (true, false), (false, true)];
        let tiles = |n: usize, c: usize, d: usize| n.div_ceil(TILE) * c.div_ceil(TILE) * d.div_ceil(TILE);
        for (kind, g) in [(&TENSOR, 2), (&TENSOR, 4), (&FMA, 4)] {
            for n in [1, 63, 64, 65, 128, 129, 384, 385] {
                for c in [1, 64, 65, 128, 129, 192, 193, 384, 385] {
                    for d in [1, 64, 65, 128, 129, 385] {
                        let sizes = Sizes { g, ..sizes(n, c, d, 2, 2) };
                        for (dx, dw) in both {
                            let plan = Alone::new(&sizes, &H100, kind, dx, dw);
                            assert_eq!(plan.is_some(), tiles(n, c, d) <= kind.alone, "{sizes:?}");
                            let Some(Alone { chunk, workspace, shared }) = plan else { continue };
                            assert_eq!((chunk.rows, chunk.classes, chunk.dx, chunk.dw), (0..n, 0..c, dx, dw));
                            assert_eq!((chunk.dx_splits, chunk.dw_splits, chunk.arrivals), (1, 1, 0));
                            // g, and dots where dW is wanted, beside the tiles; nothing that outlives the launch.
                            let stride = sizes.pad(c) + 16 / g;
                            let dots = if dw { n.div_ceil(TILE) * stride * 4 } else { 0 };
                            let of_g = n * stride * g;
                            assert_eq!(chunk.stride, stride);
                            assert_eq!((chunk.memory.g, chunk.memory.class_dots), (of_g, dots));
                            assert_eq!(shared, workspace + align(of_g) + align(dots));
                            assert!(workspace >= kind.shared && shared + 2048 <= H100.shared_a_block);
                        }
                        assert_eq!(Alone::new(&sizes, &H100, kind, false, false), None);
                    }
                }
            }
        }
        // A device without cooperative launches does it all the same; one whose block has no room for g does not.
        let alone = |sizes, limits| Alone::new(&sizes, &limits, &TENSOR, true, true);
        let usual = sizes(64, 100, 64, 2, 2); // 36 KB of tiles, 16 KB of g
        assert!(alone(usual, Limits { cooperative: false, ..SMALL }).is_some());
        let least = alone(usual, SMALL).unwrap().shared + params::MARGIN_LOSS_STEP_STATIC as usize;
        for (shared_a_block, fits) in [(least, true), (least - 1, false)] {
            assert_eq!(alone(usual, Limits { shared_a_block, ..SMALL }).is_some(), fits);
            let shared_a_multiprocessor = shared_a_block + 1024;
            assert_eq!(alone(usual, Limits { shared_a_multiprocessor, ..SMALL }).is_some(), fits);
        }
        let large = Sizes { g: 4, ..sizes(64, 384, 64, 2, 2) }; // 96 KB of g in f32
        assert!(alone(large, H100).is_some() && alone(large, SMALL).is_none());
    }

    #[test]
    fn the_forward_fills_the_device_and_no_more() {
        let forward = |n, c| Forward::new(&sizes(n, c, 64, 4, 4), &H100, &FMA);
        // What one block can do leaves no partial statistics, and what one block does, no counter.
        assert_eq!(forward(64, 128), Forward { row_tiles: 1, splits: 1 });
        assert_eq!(forward(64, 129), Forward { row_tiles: 1, splits: 3 });
        assert_eq!(forward(128, 64), Forward { row_tiles: 2, splits: 1 });
        let needs = |n, c| {
            let plan = forward(n, c);
            (plan.partials(&sizes(n, c, 64, 4, 4), &FMA), plan.arrivals())
        };
        assert_eq!(needs(64, 128), (0, 0));
        assert_eq!(needs(64, 129), (3 * 64 * 32, 2));
        assert_eq!(needs(128, 64), (0, 3));
        assert_eq!(forward(256, 8142), Forward { row_tiles: 4, splits: 66 });
        assert_eq!(forward(100_000, 8142), Forward { row_tiles: 1563, splits: 1 });
    }
}
