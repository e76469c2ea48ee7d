//! Modules and launches.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::exec::{Block, Counters, Grid};
use crate::memory::Memory;
use crate::program::{self, Kernel};
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
        }
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
    pub fn load(text: &str, memory: &mut Memory) -> Result<Self> {
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

    /// Decodes a kernel.
    ///
    /// # Errors
    /// No kernel of that name, or one that cannot be decoded.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        program::decode(&self.source, name, &self.variables)
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
        for (what, sizes, most) in [("grid", config.grid, limits.grid), ("block", config.block, limits.block)] {
            if sizes.iter().zip(&most).any(|(size, most)| size > most) {
                return Err(Error::Launch(format!("a {what} of {sizes:?}, at most {most:?}")));
            }
        }
        let threads: u64 = config.block.iter().map(|&n| u64::from(n)).product();
        let blocks: u64 = config.grid.iter().map(|&n| u64::from(n)).product();
        let most = kernel.most_threads.unwrap_or(u64::MAX).min(u64::from(limits.threads));
        if threads == 0 || blocks == 0 {
            return Err(Error::Launch(format!("{blocks} blocks of {threads} threads")));
        }
        if threads > most {
            return Err(Error::Launch(format!("{threads} threads a block, at most {most} for {}", kernel.name)));
        }
        let shared = kernel.shared.saturating_add(config.dynamic_shared);
        if shared > limits.shared {
            return Err(Error::Launch(format!("{shared} bytes of shared memory a block, at most {}", limits.shared)));
        }
        if kernel.local > MOST_LOCAL {
            return Err(Error::Launch(format!(
                "{} bytes of local memory a thread, at most {MOST_LOCAL}",
                kernel.local
            )));
        }
        if parameters.len() != kernel.parameters.len() {
            let (given, wanted) = (parameters.len(), kernel.parameters.len());
            return Err(Error::Launch(format!("{} takes {wanted} parameters, {given} are given", kernel.name)));
        }
        let end = kernel.parameters.last().map_or(0, |(offset, size)| offset + size);
        let mut bytes = vec![0; end];
        for (i, (value, &(offset, size))) in parameters.iter().zip(&kernel.parameters).enumerate() {
            if value.len() != size {
                return Err(Error::Launch(format!(
                    "parameter {i} of {} has {size} bytes, {} are given",
                    kernel.name,
                    value.len()
                )));
            }
            bytes[offset..offset + size].copy_from_slice(value);
        }
        let grid = Grid {
            kernel,
            grid: config.grid,
            block: config.block,
            dynamic_shared: config.dynamic_shared,
            parameters: &bytes,
            files: &self.source.files,
            seed: config.seed,
            multiprocessors: limits.multiprocessors,
        };
        let [gx, gy, _] = config.grid.map(u64::from);
        let results: Vec<Result<Counters>> = (0..blocks)
            .into_par_iter()
            .map(|b| {
                let index = [b % gx, b / gx % gy, b / (gx * gy)].map(|v| v as u32);
                let mut block = Block::new(&grid, index, memory);
                block.run()?;
                Ok(block.counters)
            })
            .collect();
        let mut counters = Counters::default();
        for result in results {
            counters.add(&result?);
        }
        Ok(counters)
    }
}
