//! Modules and launches.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::block::{Block, Grid, Turn};
use crate::count::Counters;
use crate::decode;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::memory::Memory;
use crate::step::World;
use crate::syntax::{self, Initial, Source, Space};

/// Most bytes of local memory a thread, on every device.
const MOST_LOCAL: usize = 512 << 10;

/// What a device can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most blocks of a grid, x y z
    pub grid: [u32; 3],
    /// Most threads of a block, x y z
    pub block: [u32; 3],
    /// Most threads a block
    pub threads: u32,
    /// Most bytes of shared memory a block, static and dynamic
    pub shared: usize,
    /// Multiprocessors
    pub multiprocessors: u32,
    /// Bytes of shared memory of a multiprocessor; each block of it takes [`Limits::RESERVED`] besides its own
    pub shared_each: usize,
    /// Threads that a multiprocessor holds
    pub threads_each: u32,
    /// Blocks that a multiprocessor holds
    pub blocks_each: u32,
    /// Instructions of a block's warps after which it is taken to run for ever
    pub instructions: u64,
}

impl Limits {
    /// Bytes of shared memory that the system takes for a block
    pub const RESERVED: usize = 1 << 10;
}

impl Default for Limits {
    /// An H100's.
    fn default() -> Self {
        Self {
            grid: [i32::MAX as u32, 65_535, 65_535],
            block: [1024, 1024, 64],
            threads: 1024,
            shared: 227 << 10,
            multiprocessors: 132,
            shared_each: 228 << 10,
            threads_each: 2048,
            blocks_each: 32,
            instructions: 1 << 33,
        }
    }
}

impl Kernel {
    /// Bytes of static shared memory.
    pub fn static_shared(&self) -> usize {
        self.shared
    }

    /// Bytes of local memory a thread.
    pub fn local_memory(&self) -> usize {
        self.local
    }

    /// Blocks that a multiprocessor holds at once, as far as threads and shared memory go. Registers are `ptxas`'s affair and do not count.
    pub fn occupancy(&self, threads: u32, dynamic_shared: usize, limits: &Limits) -> u32 {
        let shared = self.shared.saturating_add(dynamic_shared);
        if threads == 0 || threads > limits.threads || shared > limits.shared {
            return 0;
        }
        let by_shared = limits.shared_each / (shared + Limits::RESERVED);
        (limits.threads_each / threads.next_multiple_of(32)).min(limits.blocks_each).min(by_shared as u32)
    }

    /// Blocks that the device holds at once.
    fn resident(&self, threads: u32, dynamic_shared: usize, limits: &Limits) -> u64 {
        u64::from(self.occupancy(threads, dynamic_shared, limits)) * u64::from(limits.multiprocessors)
    }

    /// The parameters' bytes, the blocks and the threads a block of a launch that a device does not refuse.
    ///
    /// # Errors
    /// Why it refuses.
    pub fn check(&self, config: &LaunchConfig, parameters: &[&[u8]], limits: &Limits) -> Result<(Vec<u8>, u64, u64)> {
        for (what, sizes, most) in [("grid", config.grid, limits.grid), ("block", config.block, limits.block)] {
            if sizes.iter().zip(&most).any(|(size, most)| size > most) {
                return Err(Error::Launch(format!("a {what} of {sizes:?}, at most {most:?}")));
            }
        }
        let threads: u64 = config.block.iter().map(|&n| u64::from(n)).product();
        let blocks: u64 = config.grid.iter().map(|&n| u64::from(n)).product();
        let most = self.most_threads.unwrap_or(u64::MAX).min(u64::from(limits.threads));
        if threads == 0 || blocks == 0 {
            return Err(Error::Launch(format!("{blocks} blocks of {threads} threads")));
        }
        if threads > most {
            return Err(Error::Launch(format!("{threads} threads a block, at most {most} for {}", self.name)));
        }
        let shared = self.shared.saturating_add(config.dynamic_shared);
        if shared > limits.shared {
            return Err(Error::Launch(format!("{shared} bytes of shared memory a block, at most {}", limits.shared)));
        }
        if self.local > MOST_LOCAL {
            return Err(Error::Launch(format!("{} bytes of local memory a thread, at most {MOST_LOCAL}", self.local)));
        }
        if parameters.len() != self.parameters.len() {
            let (given, wanted) = (parameters.len(), self.parameters.len());
            return Err(Error::Launch(format!("{} takes {wanted} parameters, {given} are given", self.name)));
        }
        let end = self.parameters.last().map_or(0, |(offset, size)| offset + size);
        let mut bytes = vec![0; end];
        for (i, (value, &(offset, size))) in parameters.iter().zip(&self.parameters).enumerate() {
            if value.len() != size {
                return Err(Error::Launch(format!(
                    "parameter {i} of {} has {size} bytes, {} are given",
                    self.name,
                    value.len()
                )));
            }
            bytes[offset..offset + size].copy_from_slice(value);
        }
        let resident = self.resident(threads as u32, config.dynamic_shared, limits);
        if config.cooperative && blocks > resident {
            return Err(Error::CooperativeTooLarge(format!("{blocks} blocks, {resident} of {} at once", self.name)));
        }
        Ok((bytes, blocks, threads))
    }
}

/// A module whose variables lie in device memory.
#[derive(Debug)]
pub struct Module {
    source: Source,
    variables: HashMap<String, (Space, u64)>,
}

/// The sizes of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks, x y z
    pub grid: [u32; 3],
    /// Threads a block, x y z
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory
    pub dynamic_shared: usize,
    /// Decides the order in which warps and blocks run
    pub seed: u64,
    /// All blocks are on the device at once, and may wait for each other
    pub cooperative: bool,
}

impl Default for LaunchConfig {
    /// One thread.
    fn default() -> Self {
        Self { grid: [1; 3], block: [1; 3], dynamic_shared: 0, seed: 1, cooperative: false }
    }
}

impl Module {
    /// Parses a module and puts its variables into memory.
    ///
    /// # Errors
    /// Text that is not PTX; out of memory; an initialiser that names nothing.
    pub fn load(text: &str, memory: &Memory) -> Result<Self> {
        let source = syntax::parse(text)?;
        let mut variables = HashMap::new();
        let placed = |space| matches!(space, Space::Global | Space::Const);
        for variable in source.variables.iter().filter(|v| placed(v.space)) {
            let address = memory.allocate_labelled(variable.size.max(1), Some(variable.name.clone()))?;
            variables.insert(variable.name.clone(), (variable.space, address));
        }
        for variable in source.variables.iter().filter(|v| placed(v.space)) {
            let mut bytes = Vec::with_capacity(variable.size);
            for initial in &variable.initial {
                match initial {
                    Initial::Bytes(part) => bytes.extend(part),
                    Initial::Address(name, offset) => match variables.get(name) {
                        Some((_, address)) => bytes.extend(address.wrapping_add(*offset as u64).to_le_bytes()),
                        None => {
                            return Err(Error::NotFound(format!(
                                "{} is initialised with {name}, which is not there",
                                variable.name
                            )));
                        }
                    },
                }
            }
            // What the initialiser leaves out is zero, and so is a variable without one.
            bytes.resize(variable.size.max(1), 0);
            memory.write(variables[&variable.name].1, &bytes)?;
        }
        Ok(Self { source, variables })
    }

    /// Frees the module's variables.
    ///
    /// # Errors
    /// It has been unloaded before.
    pub fn unload(&self, memory: &Memory) -> Result<()> {
        self.variables.values().try_for_each(|(_, address)| memory.free(*address))
    }

    /// Decodes a kernel.
    ///
    /// # Errors
    /// No kernel of that name, or one that cannot be decoded.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        decode::decode(&self.source, name, &self.variables)
    }

    /// The names of the module's kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.source.functions.iter().filter(|f| f.entry).map(|f| f.name.as_str())
    }

    /// The address of a variable of the module.
    pub fn variable(&self, name: &str) -> Option<u64> {
        self.variables.get(name).map(|(_, address)| *address)
    }

    /// Runs a kernel. `parameters` are its arguments' bytes, in order.
    ///
    /// Blocks run side by side on the host's cores; of several faults that of the lowest block is reported.
    ///
    /// # Errors
    /// A launch that the device refuses, or the fault of the kernel.
    pub fn launch(
        &self,
        kernel: &Kernel,
        config: &LaunchConfig,
        parameters: &[&[u8]],
        memory: &Memory,
        limits: &Limits,
    ) -> Result<Counters> {
        let (bytes, blocks, threads) = kernel.check(config, parameters, limits)?;
        let resident = kernel.resident(threads as u32, config.dynamic_shared, limits);
        let workspace = if config.cooperative {
            let address = memory.allocate_labelled(64, Some("the grid's barrier".into()))?;
            memory.write(address, &[0; 64])?;
            address
        } else {
            0
        };
        let (launch, base, _running) = memory.begin();
        let grid = Grid {
            kernel,
            grid: config.grid,
            block: config.block,
            dynamic_shared: config.dynamic_shared,
            parameters: &bytes,
            files: &self.source.files,
            seed: config.seed,
            multiprocessors: limits.multiprocessors,
            instructions: limits.instructions,
            launch,
            base,
            workspace,
        };
        let order = Shuffled::new(blocks as u32, config.seed);
        let results = if config.cooperative {
            in_turn(&grid, &order, blocks as usize, resident as usize, memory)
        } else if kernel.sequential {
            in_turn(&grid, &order, AT_FIRST, resident as usize, memory)
        } else {
            side_by_side(&grid, &order, memory)
        };
        if workspace != 0 {
            memory.free(workspace)?;
        }
        let (mut counters, touched) = results?;
        (counters.distinct_read, counters.distinct_written) = memory.sectors(&touched, base);
        Ok(counters)
    }
}

/// Blocks that are alive at first where they run in turn and the launch is not cooperative: a few, since each takes memory of the host.
const AT_FIRST: usize = 8;

/// Turns without a block's end after which as many again come alive, if the device holds more.
const LONG: u32 = 1 << 14;

/// Times that blocks, all of them waiting for memory to change, look again though nothing has changed it.
const PATIENCE: u32 = 1000;

/// A permutation of the blocks: an affine map modulo a power of two, stepped until it is in range.
struct Shuffled {
    blocks: u32,
    mask: u64,
    factor: u64,
    shift: u64,
}

impl Shuffled {
    fn new(blocks: u32, seed: u64) -> Self {
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mask = u64::from(blocks).next_power_of_two() - 1;
        // Odd factors of the form 4 i + 1 and odd shifts make a cycle of the whole range.
        Self { blocks, mask, factor: (mixed >> 20 & !3) | 1, shift: mixed >> 7 | 1 }
    }

    /// The blocks in their order.
    fn iter(&self) -> impl Iterator<Item = u32> {
        let mut at = self.shift & self.mask;
        (0..=self.mask).filter_map(move |_| {
            let now = at;
            at = at.wrapping_mul(self.factor).wrapping_add(self.shift) & self.mask;
            (now < u64::from(self.blocks)).then_some(now as u32)
        })
    }
}

type Ran = Result<(Counters, Vec<u64>)>;

fn together(mut all: Counters, mut touched: Vec<u64>, block: Block) -> (Counters, Vec<u64>) {
    let (counters, bases) = block.results();
    all.add(&counters);
    touched.extend(bases);
    touched.sort_unstable();
    touched.dedup();
    (all, touched)
}

/// Blocks that know nothing of each other, on the host's cores. Of several faults that of the lowest block is reported.
fn side_by_side(grid: &Grid, order: &Shuffled, memory: &Memory) -> Ran {
    let flat: Vec<u32> = order.iter().collect();
    let failed = std::sync::atomic::AtomicBool::new(false);
    let run = |&flat: &u32| -> std::result::Result<Option<Block>, (u32, Error)> {
        use std::sync::atomic::Ordering::Relaxed;
        if failed.load(Relaxed) {
            return Ok(None);
        }
        let mut block = Block::new(grid, flat, memory);
        let mut world = World::default();
        loop {
            match block.turn(&mut world) {
                Ok(Turn::Ran) => {}
                Ok(Turn::Done) => return Ok(Some(block)),
                Ok(Turn::Idle) => {
                    failed.store(true, Relaxed);
                    return Err((flat, block.stuck()));
                }
                Err(error) => {
                    failed.store(true, Relaxed);
                    return Err((flat, error));
                }
            }
        }
    };
    type Sum = std::result::Result<(Counters, Vec<u64>), (u32, Error)>;
    let nothing = || -> Sum { Ok((Counters::default(), Vec::new())) };
    let merge = |sum: Sum, one: Sum| match (sum, one) {
        (Ok((mut a, mut x)), Ok((b, y))) => {
            a.add(&b);
            x.extend(y);
            x.sort_unstable();
            x.dedup();
            Ok((a, x))
        }
        (Err(a), Err(b)) => Err(if a.0 <= b.0 { a } else { b }),
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    let fold = |sum: Sum, flat: &u32| match run(flat) {
        Ok(None) => sum,
        Ok(Some(block)) => sum.map(|(counters, touched)| together(counters, touched, block)),
        Err(error) => merge(sum, Err(error)),
    };
    flat.par_iter().fold(nothing, fold).reduce(nothing, merge).map_err(|(_, error)| error)
}

/// Blocks that may speak to each other take turns in a seeded order on one thread. More than there are at first come alive, up to what the
/// device holds, when those that are wait for memory to change, or go on without an end: they may wait for others.
fn in_turn(grid: &Grid, order: &Shuffled, at_first: usize, resident: usize, memory: &Memory) -> Ran {
    let mut next = order.iter();
    let mut world = World::default();
    let mut alive: Vec<Block> = next.by_ref().take(at_first).map(|flat| Block::new(grid, flat, memory)).collect();
    // The blocks among the first `awake` have something to run, or have not been asked since memory changed.
    let (mut awake, mut version) = (alive.len(), world.version);
    let mut woken = (0, 0);
    let mut turns = 0;
    let (mut counters, mut touched) = (Counters::default(), Vec::new());
    let mut random = grid.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    while !alive.is_empty() {
        if world.version != version {
            (awake, version) = (alive.len(), world.version);
        }
        if awake == 0 || turns > LONG {
            turns = 0;
            let more = alive.len().min(resident.saturating_sub(alive.len()));
            for flat in next.by_ref().take(more) {
                alive.insert(awake, Block::new(grid, flat, memory));
                awake += 1;
            }
        }
        if awake == 0 {
            // A plain store may have changed what they look at, or they only look a number of times: all look again.
            let times = if woken.0 == version { woken.1 + 1 } else { 1 };
            if times > PATIENCE {
                return Err(alive[0].stuck());
            }
            world.version += 1;
            woken = (world.version, times);
            continue;
        }
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        let chosen = (random >> 33) as usize % awake;
        // A few turns at a time: blocks are many, and what they run should stay near.
        for _ in 0..(random >> 29 & 7) + 1 {
            turns += 1;
            match alive[chosen].turn(&mut world)? {
                Turn::Ran => {}
                Turn::Idle => {
                    awake -= 1;
                    alive.swap(chosen, awake);
                    break;
                }
                Turn::Done => {
                    turns = 0;
                    awake -= 1;
                    alive.swap(chosen, awake);
                    let done = alive.swap_remove(awake);
                    (counters, touched) = together(counters, touched, done);
                    if let Some(flat) = next.next() {
                        alive.push(Block::new(grid, flat, memory));
                        let last = alive.len() - 1;
                        alive.swap(awake, last);
                        awake += 1;
                    }
                    break;
                }
            }
        }
    }
    Ok((counters, touched))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_once() {
        for blocks in [1, 2, 3, 5, 8, 100, 1023] {
            for seed in 0..5 {
                let mut all: Vec<u32> = Shuffled::new(blocks, seed).iter().collect();
                all.sort_unstable();
                assert_eq!(all, (0..blocks).collect::<Vec<_>>());
            }
        }
    }
}
