//! A device with one module on it: what a test of a kernel needs.

use half::{bf16, f16};

use crate::count::Counters;
use crate::error::Result;
use crate::launch::{LaunchConfig, Limits, Module};
use crate::memory::Memory;

/// A device with a module loaded.
#[derive(Debug)]
pub struct Gpu {
    /// Its memory
    pub memory: Memory,
    /// The module
    pub module: Module,
    /// What it can do
    pub limits: Limits,
    /// Decides the order of warps and blocks
    pub seed: u64,
}

impl Gpu {
    /// A device of 1 GiB and an H100's limits.
    ///
    /// # Errors
    /// Text that is not PTX.
    pub fn new(ptx: &str) -> Result<Self> {
        let memory = Memory::new(1 << 30);
        let module = Module::load(ptx, &memory)?;
        Ok(Self { memory, module, limits: Limits::default(), seed: 1 })
    }

    /// Allocates bytes that nobody has written.
    ///
    /// # Panics
    /// Out of memory.
    pub fn allocate(&self, bytes: usize) -> u64 {
        self.memory.allocate(bytes).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Allocates and fills memory.
    ///
    /// # Panics
    /// Out of memory.
    pub fn upload<T: Plain>(&self, values: &[T]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_bytes()).collect();
        let address = self.allocate(bytes.len());
        self.memory.write(address, &bytes).unwrap_or_else(|error| panic!("{error}"));
        address
    }

    /// Copies `count` values from memory.
    ///
    /// # Errors
    /// Memory that is not there, or that nobody has written.
    pub fn download<T: Plain>(&self, address: u64, count: usize) -> Result<Vec<T>> {
        let mut bytes = vec![0; count * size_of::<T>()];
        self.memory.read(address, &mut bytes)?;
        Ok(bytes.chunks(size_of::<T>()).map(T::from_bytes).collect())
    }

    /// Launches a kernel.
    ///
    /// # Errors
    /// As [`Module::launch`].
    pub fn launch(&self, name: &str, config: LaunchConfig, parameters: &[&[u8]]) -> Result<Counters> {
        let kernel = self.module.kernel(name)?;
        let config = LaunchConfig { seed: self.seed, ..config };
        self.module.launch(&kernel, &config, parameters, &self.memory, &self.limits)
    }
}

impl LaunchConfig {
    /// `blocks` of `threads` on a line.
    pub fn line(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], ..Self::default() }
    }
}

/// A number that memory holds, its low byte first.
pub trait Plain: Copy {
    /// Its bytes
    fn to_bytes(self) -> Vec<u8>;
    /// From its bytes
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($t:ty),*) => {$(
        impl Plain for $t {
            fn to_bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$t>()];
                own.copy_from_slice(bytes);
                <$t>::from_le_bytes(own)
            }
        }
    )*};
}
plain!(f32, f64, u8, u16, u32, u64, i32, i64, f16, bf16);
