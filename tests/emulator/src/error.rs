//! Why a module does not load or a launch does not run.

/// An error, with the place it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text that is not PTX.
    #[error("PTX line {line}: {message}")]
    Syntax {
        /// The line of the text, from 1
        line: u32,
        /// What is wrong with it
        message: String,
    },
    /// An instruction or operand that the interpreter does not know.
    #[error("PTX line {line}: unsupported: {text}")]
    Unsupported {
        /// The line of the text, from 1
        line: u32,
        /// The instruction
        text: String,
    },
    /// A name that is not defined.
    #[error("{}", short(.0))]
    NotFound(String),
    /// A launch that the device refuses.
    #[error("invalid launch: {0}")]
    Launch(String),
    /// A cooperative launch of more blocks than the device holds at once.
    #[error("cooperative launch: {0}")]
    CooperativeTooLarge(String),
    /// No memory left.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A fault of the running kernel.
    #[error("{0}")]
    Fault(Box<Fault>),
    /// A use of device memory by the host that is out of bounds or of freed memory.
    #[error("host access: {0}")]
    Host(String),
}

/// On one line, and the middle left out of what quotes a long word of the text.
fn short(message: &str) -> String {
    const MOST: usize = 200;
    let letters: Vec<char> = message.split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    if letters.len() <= MOST {
        return letters.into_iter().collect();
    }
    let (start, end) = (&letters[..MOST / 2], &letters[letters.len() - MOST / 2..]);
    start.iter().chain(&['…']).chain(end).collect()
}

impl Error {
    /// The `CUresult` that a driver returns for it.
    pub fn code(&self) -> u32 {
        match self {
            Error::Launch(_) | Error::Host(_) => 1, // CUDA_ERROR_INVALID_VALUE
            Error::OutOfMemory(_) => 2,             // CUDA_ERROR_OUT_OF_MEMORY
            Error::Syntax { .. } => 218,            // CUDA_ERROR_INVALID_PTX
            Error::NotFound(_) => 500,              // CUDA_ERROR_NOT_FOUND
            Error::CooperativeTooLarge(_) => 720,   // CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
            Error::Unsupported { .. } => 801,       // CUDA_ERROR_NOT_SUPPORTED
            Error::Fault(fault) => match fault.kind {
                FaultKind::OutOfBounds { .. } | FaultKind::UseAfterFree { .. } => 700, // CUDA_ERROR_ILLEGAL_ADDRESS
                FaultKind::Deadlock(_) => 702,                                         // CUDA_ERROR_LAUNCH_TIMEOUT
                FaultKind::Unsupported => 715,                                         // CUDA_ERROR_ILLEGAL_INSTRUCTION
                FaultKind::Misaligned { .. } => 716,                                   // CUDA_ERROR_MISALIGNED_ADDRESS
                _ => 719,                                                              // CUDA_ERROR_LAUNCH_FAILED
            },
        }
    }

    pub(crate) fn syntax(line: u32, message: impl Into<String>) -> Self {
        Error::Syntax { line, message: short(&message.into()) }
    }
}

/// A fault, and where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kernel
    pub kernel: String,
    /// The block's index, x y z
    pub block: [u32; 3],
    /// The thread's index in its block, x y z
    pub thread: [u32; 3],
    /// The instruction, as the PTX has it
    pub instruction: String,
    /// Its line in the PTX text
    pub ptx_line: u32,
    /// The file and line of the source, where `-lineinfo` gave it
    pub source: Option<(String, u32)>,
    /// What went wrong
    pub kind: FaultKind,
    /// Of a read that gave nothing: what its value has reached, and where
    pub reaches: Option<String>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside of every allocation, or of a space's size.
    OutOfBounds {
        /// The space
        space: &'static str,
        /// The address
        address: u64,
        /// The access's bytes
        size: usize,
        /// The allocation it is near to, if any
        near: Option<String>,
    },
    /// An address that is not a multiple of the access's size.
    Misaligned {
        /// The address
        address: u64,
        /// The access's bytes
        size: usize,
    },
    /// An access to memory that was freed.
    UseAfterFree {
        /// The address
        address: u64,
    },
    /// A read of memory that nobody has written.
    Uninitialised {
        /// The space
        space: &'static str,
        /// The address
        address: u64,
    },
    /// Two threads of a block touch the same shared bytes between barriers, one of them writing.
    SharedRace {
        /// The address in shared memory
        address: u64,
        /// The other thread's rank in its block
        other: u32,
        /// The other's access was an atomic
        atomic: bool,
    },
    /// Two warps touch the same word of global memory in a launch, one of them writing, and nothing orders them.
    GlobalRace {
        /// The address of the word
        address: u64,
        /// The other's block, x fastest
        block: u32,
        /// The other's warp in its block
        warp: u32,
        /// The other's access was an atomic
        atomic: bool,
    },
    /// An access to shared memory that a `cp.async` is still to write.
    InFlight {
        /// The address in shared memory
        address: u64,
    },
    /// A value of a lane that takes no part in the shuffle.
    Shuffle,
    /// A barrier that some threads of the block can no longer reach.
    Barrier(String),
    /// No thread can go on.
    Deadlock(String),
    /// `trap`, or a failed assertion.
    Trap,
    /// An instruction that the interpreter does not know was reached.
    Unsupported,
}

impl std::fmt::Display for FaultKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FaultKind::OutOfBounds { space, address, size, near } => {
                write!(f, "{size} bytes of {space} memory out of bounds at {address:#x}")?;
                match near {
                    Some(near) => write!(f, " ({near})"),
                    None => Ok(()),
                }
            }
            FaultKind::Misaligned { address, size } => {
                write!(f, "misaligned access of {size} bytes at {address:#x}")
            }
            FaultKind::UseAfterFree { address } => {
                write!(f, "access to freed memory at {address:#x}")
            }
            FaultKind::Uninitialised { space, address } => {
                write!(f, "read of {space} memory never written, at {address:#x}")
            }
            FaultKind::SharedRace { address, other, atomic } => {
                let by = if *atomic { "an atomic of " } else { "" };
                write!(f, "race in shared memory at {address:#x} with {by}thread {other} of the block")
            }
            FaultKind::GlobalRace { address, block, warp, atomic } => {
                let by = if *atomic { "an atomic of " } else { "" };
                write!(f, "race in global memory at {address:#x} with {by}warp {warp} of block {block}")
            }
            FaultKind::InFlight { address } => {
                write!(f, "access to shared memory at {address:#x}, which a cp.async that nobody has waited for writes")
            }
            FaultKind::Shuffle => write!(f, "a shuffle from a lane that takes no part in it, or has exited"),
            FaultKind::Barrier(message) => write!(f, "barrier: {message}"),
            FaultKind::Deadlock(message) => write!(f, "deadlock: {message}"),
            FaultKind::Trap => write!(f, "trap"),
            FaultKind::Unsupported => {
                write!(f, "an instruction that the interpreter does not know")
            }
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [bx, by, bz] = self.block;
        let [tx, ty, tz] = self.thread;
        write!(f, "{} in kernel {}, block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz})", self.kind, self.kernel)?;
        if let Some((file, line)) = &self.source {
            write!(f, ", {file}:{line}")?;
        }
        write!(f, ", PTX line {}: {}", self.ptx_line, self.instruction)?;
        match &self.reaches {
            Some(what) => write!(f, "; its value reaches {what}"),
            None => Ok(()),
        }
    }
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
