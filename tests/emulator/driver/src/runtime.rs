//! The runtime's interface (libcudart), as far as programs of nvcc's ask for it that are linked with `-cudart none`: their kernels are registered when
//! they start, from PTX that `-no-compress` leaves readable, and all else goes through the driver's interface, as the real one's does.
#![allow(clippy::missing_safety_doc)] // They have the contracts of the functions whose names they have.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::{LazyLock, Mutex};

use crate::cuda::{self, CUlaunchAttribute, CUlaunchConfig};
use crate::device::{INVALID_VALUE, NOT_SUPPORTED, SUCCESS, context, current, device, lock, set_current};

const INVALID_FUNCTION: u32 = 98;
const INVALID_SYMBOL: u32 = 13;
const UNRECOGNISED: u32 = 999;

/// What a program has registered.
#[derive(Default)]
struct Registered {
    /// The PTX of each of its binaries
    binaries: Vec<Result<CString, &'static str>>,
    /// By the host's address: of which binary, by which name
    kernels: HashMap<usize, (usize, CString)>,
    variables: HashMap<usize, (usize, CString)>,
    /// By device and binary
    modules: HashMap<(usize, usize), u64>,
}

static REGISTERED: LazyLock<Mutex<Registered>> = LazyLock::new(Mutex::default);

/// Blocks of a grid, threads of a block.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Dim3 {
    x: c_uint,
    y: c_uint,
    z: c_uint,
}

/// What stands between `<<<` and `>>>`.
type Configuration = (Dim3, Dim3, usize, u64);

thread_local! {
    static LAST: Cell<u32> = const { Cell::new(SUCCESS) };
    static PUSHED: RefCell<Vec<Configuration>> = const { RefCell::new(Vec::new()) };
}

/// Keeps a failure's code for `cudaGetLastError`.
fn remember(code: u32) -> u32 {
    if code != SUCCESS {
        LAST.set(code);
    }
    code
}

/// A failure of the runtime's own.
fn fail(code: u32, why: &str) -> u32 {
    eprintln!("emulated runtime: {why} (error {code})");
    code
}

/// The PTX of a binary that nvcc has put into a program: a header (magic, version, its size, size of what follows), and entries (kind, version, its
/// header's size, size of what follows; flags 40 bytes from its start), of which kind 1 is PTX.
///
/// # Safety
/// `wrapper` is what nvcc gives to `__cudaRegisterFatBinary`.
unsafe fn text(wrapper: *const u8) -> Result<CString, &'static str> {
    /// Compressed, in one way or another
    const COMPRESSED: u64 = 0xa000;
    // SAFETY: what nvcc writes is as long as it says itself
    let read = |at: *const u8| unsafe { at.cast::<u64>().read_unaligned() };
    // SAFETY: magic and version, then a pointer
    let binary = read(unsafe { wrapper.add(8) }) as *const u8;
    let (magic, length) = (read(binary) as u32, read(binary.wrapping_add(8)) as usize);
    if magic != 0xba55_ed50 {
        return Err("a binary whose format is not known");
    }
    let mut at = (read(binary) >> 48) as usize;
    let end = at + length;
    while at < end {
        let entry = binary.wrapping_add(at);
        let (kind, header) = (read(entry) as u16, (read(entry) >> 32) as usize);
        let size = read(entry.wrapping_add(8)) as usize;
        if kind == 1 {
            if read(entry.wrapping_add(40)) & COMPRESSED != 0 {
                return Err("PTX that is compressed: compile with -no-compress");
            }
            // SAFETY: as above
            let bytes = unsafe { std::slice::from_raw_parts(entry.wrapping_add(header), size) };
            let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(size);
            return CString::new(&bytes[..length]).map_err(|_| "PTX with a NUL in it");
        }
        at += header + size;
    }
    Err("a binary without PTX: compile with -gencode arch=compute_80,code=compute_80")
}

/// The module of a binary on this thread's device, loaded when it is asked for first.
fn module(registered: &mut Registered, binary: usize) -> Result<u64, u32> {
    let key = (device().ordinal, binary);
    if let Some(&module) = registered.modules.get(&key) {
        return Ok(module);
    }
    let text = registered.binaries[binary].as_ref().map_err(|why| fail(NOT_SUPPORTED, why))?;
    let mut module = 0;
    // SAFETY: a string that ends with NUL, and a place for the result
    match unsafe { cuda::cuModuleLoadData(&mut module, text.as_ptr().cast()) } {
        SUCCESS => {
            registered.modules.insert(key, module);
            Ok(module)
        }
        code => Err(code),
    }
}

/// The driver's function of a kernel that the host knows by its address.
fn function(host: *const c_void) -> Result<u64, u32> {
    let mut registered = lock(&REGISTERED);
    let Some((binary, name)) = registered.kernels.get(&(host as usize)).cloned() else {
        return Err(fail(INVALID_FUNCTION, "a kernel that nobody has registered"));
    };
    let module = module(&mut registered, binary)?;
    let mut function = 0;
    // SAFETY: as above
    match unsafe { cuda::cuModuleGetFunction(&mut function, module, name.as_ptr()) } {
        SUCCESS => Ok(function),
        code => Err(code),
    }
}

/// Of what copies to where: the host's memory or the device's.
unsafe fn copy(to: *mut c_void, from: *const c_void, count: usize, kind: c_int, stream: Option<u64>) -> u32 {
    // SAFETY: the caller's pointers are what `kind` says
    unsafe {
        match (kind, stream) {
            (1, None) => cuda::cuMemcpyHtoD_v2(to as u64, from, count),
            (2, None) => cuda::cuMemcpyDtoH_v2(to, from as u64, count),
            (3, None) => cuda::cuMemcpyDtoD_v2(to as u64, from as u64, count),
            (1, Some(stream)) => cuda::cuMemcpyHtoDAsync_v2(to as u64, from, count, stream),
            (2, Some(stream)) => cuda::cuMemcpyDtoHAsync_v2(to, from as u64, count, stream),
            (3, Some(stream)) => cuda::cuMemcpyDtoDAsync_v2(to as u64, from as u64, count, stream),
            _ => fail(NOT_SUPPORTED, "a copy that says neither to nor from the device"),
        }
    }
}

/// Defines functions that return a `cudaError_t`, which are the `CUresult`s of the same numbers. A thread begins on the first device.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $t:ty),*) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $t),*) -> u32 {
            if current().is_none() {
                let _ = set_current(context(0));
            }
            // SAFETY: each body touches what its caller's pointers point to by the contract of the function of this name
            #[allow(unused_unsafe)]
            remember(unsafe { $body })
        }
    )*};
}

functions! {
    fn cudaMalloc(address: *mut u64, size: usize) { cuda::cuMemAlloc_v2(address, size) }
    fn cudaMallocAsync(address: *mut u64, size: usize, stream: u64) { cuda::cuMemAllocAsync(address, size, stream) }
    fn cudaFree(address: u64) { cuda::cuMemFree_v2(address) }
    fn cudaFreeAsync(address: u64, stream: u64) { cuda::cuMemFreeAsync(address, stream) }
    fn cudaMemcpy(to: *mut c_void, from: *const c_void, count: usize, kind: c_int) { copy(to, from, count, kind, None) }
    fn cudaMemcpyAsync(to: *mut c_void, from: *const c_void, count: usize, kind: c_int, stream: u64) { copy(to, from, count, kind, Some(stream)) }
    fn cudaMemset(to: u64, value: c_int, count: usize) { cuda::cuMemsetD8_v2(to, value as u8, count) }
    fn cudaMemsetAsync(to: u64, value: c_int, count: usize, stream: u64) { cuda::cuMemsetD8Async(to, value as u8, count, stream) }
    fn cudaDeviceSynchronize() { cuda::cuCtxSynchronize() }
    fn cudaStreamCreate(stream: *mut u64) { cuda::cuStreamCreate(stream, 0) }
    fn cudaStreamCreateWithFlags(stream: *mut u64, flags: c_uint) { cuda::cuStreamCreate(stream, flags) }
    fn cudaStreamSynchronize(stream: u64) { cuda::cuStreamSynchronize(stream) }
    fn cudaStreamDestroy(stream: u64) { cuda::cuStreamDestroy_v2(stream) }
    fn cudaGetDeviceCount(count: *mut c_int) { cuda::cuDeviceGetCount(count) }
    fn cudaGetDevice(ordinal: *mut c_int) { cuda::cuCtxGetDevice(ordinal) }
    fn cudaSetDevice(ordinal: c_int) {
        let mut context = 0;
        match cuda::cuDevicePrimaryCtxRetain(&mut context, ordinal) { SUCCESS => cuda::cuCtxSetCurrent(context), code => code }
    }
    fn cudaDeviceGetAttribute(value: *mut c_int, which: c_int, ordinal: c_int) { cuda::cuDeviceGetAttribute(value, which, ordinal) }
    fn cudaFuncSetAttribute(host: *const c_void, which: c_int, value: c_int) {
        match function(host) { Ok(function) => cuda::cuFuncSetAttribute(function, which, value), Err(code) => code }
    }
    fn cudaOccupancyMaxActiveBlocksPerMultiprocessor(count: *mut c_int, host: *const c_void, threads: c_int, shared: usize) {
        match function(host) {
            Ok(function) => cuda::cuOccupancyMaxActiveBlocksPerMultiprocessor(count, function, threads, shared),
            Err(code) => code,
        }
    }
    fn cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count: *mut c_int, host: *const c_void, threads: c_int, shared: usize, _flags: c_uint) {
        match function(host) {
            Ok(function) => cuda::cuOccupancyMaxActiveBlocksPerMultiprocessor(count, function, threads, shared),
            Err(code) => code,
        }
    }
    fn cudaGetSymbolAddress(address: *mut u64, symbol: *const c_void) {
        let mut registered = lock(&REGISTERED);
        match registered.variables.get(&(symbol as usize)).cloned() {
            Some((binary, name)) => match module(&mut registered, binary) {
                Ok(module) => cuda::cuModuleGetGlobal_v2(address, std::ptr::null_mut(), module, name.as_ptr()),
                Err(code) => code,
            },
            None => fail(INVALID_SYMBOL, "a variable that nobody has registered"),
        }
    }
    fn cudaLaunchKernel(host: *const c_void, grid: Dim3, block: Dim3, arguments: *mut *mut c_void, shared: usize, stream: u64) {
        match function(host) {
            Ok(function) => cuda::cuLaunchKernel(
                function, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared as c_uint, stream, arguments, std::ptr::null_mut(),
            ),
            Err(code) => code,
        }
    }
    fn cudaLaunchCooperativeKernel(host: *const c_void, grid: Dim3, block: Dim3, arguments: *mut *mut c_void, shared: usize, stream: u64) {
        match function(host) {
            Ok(function) => cuda::cuLaunchCooperativeKernel(
                function, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared as c_uint, stream, arguments,
            ),
            Err(code) => code,
        }
    }
    fn cudaLaunchKernelExC(config: *const RuntimeConfig, host: *const c_void, arguments: *mut *mut c_void) {
        let Some(config) = config.as_ref() else { return remember(fail(INVALID_VALUE, "a null pointer for a launch")) };
        let config = CUlaunchConfig::new(
            [config.grid.x, config.grid.y, config.grid.z], [config.block.x, config.block.y, config.block.z], config.shared as c_uint,
            config.stream, config.attributes, config.count,
        );
        match function(host) {
            Ok(function) => cuda::cuLaunchKernelEx(&config, function, arguments, std::ptr::null_mut()),
            Err(code) => code,
        }
    }
    fn __cudaLaunchKernel(kernel: *const c_void, grid: Dim3, block: Dim3, arguments: *mut *mut c_void, shared: usize, stream: u64) {
        cudaLaunchKernel(kernel, grid, block, arguments, shared, stream)
    }
    // A kernel's handle is the address that the host knows it by.
    fn __cudaGetKernel(kernel: *mut *const c_void, host: *const c_void) { kernel.write(host); SUCCESS }
    fn __cudaPopCallConfiguration(grid: *mut Dim3, block: *mut Dim3, shared: *mut usize, stream: *mut u64) {
        match PUSHED.with_borrow_mut(Vec::pop) {
            Some(pushed) => {
                grid.write(pushed.0);
                block.write(pushed.1);
                shared.write(pushed.2);
                stream.write(pushed.3);
                SUCCESS
            }
            None => fail(UNRECOGNISED, "a launch without a configuration"),
        }
    }
    fn __cudaPushCallConfiguration(grid: Dim3, block: Dim3, shared: usize, stream: u64) {
        PUSHED.with_borrow_mut(|pushed| pushed.push((grid, block, shared, stream)));
        SUCCESS
    }
}

/// What `cudaLaunchKernelExC` takes.
#[repr(C)]
pub struct RuntimeConfig {
    grid: Dim3,
    block: Dim3,
    shared: usize,
    stream: u64,
    attributes: *const CUlaunchAttribute,
    count: c_uint,
}

/// The last failure of this thread, which is forgotten.
#[unsafe(no_mangle)]
pub extern "C" fn cudaGetLastError() -> u32 {
    LAST.replace(SUCCESS)
}

/// The last failure of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn cudaPeekAtLastError() -> u32 {
    LAST.get()
}

/// What an error means.
#[unsafe(no_mangle)]
pub extern "C" fn cudaGetErrorString(code: u32) -> *const c_char {
    let mut text = c"unrecognized error code".as_ptr();
    let mut found = std::ptr::null();
    // SAFETY: a place for the result
    if unsafe { cuda::cuGetErrorString(code, &mut found) } == SUCCESS {
        text = found;
    }
    text
}

/// A program's binary: the handle of what follows, one more than its number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterFatBinary(wrapper: *const u8) -> usize {
    let mut registered = lock(&REGISTERED);
    // SAFETY: nvcc's own call
    registered.binaries.push(unsafe { text(wrapper) });
    registered.binaries.len()
}

/// A kernel of a binary.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterFunction(
    binary: usize,
    host: *const c_void,
    _device: *const c_char,
    name: *const c_char,
) {
    // SAFETY: nvcc's own call, with a string that ends with NUL
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    lock(&REGISTERED).kernels.insert(host as usize, (binary - 1, name));
}

/// A variable of a binary.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterVar(
    binary: usize,
    host: *const c_void,
    _address: *const c_char,
    name: *const c_char,
) {
    // SAFETY: nvcc's own call, with a string that ends with NUL
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    lock(&REGISTERED).variables.insert(host as usize, (binary - 1, name));
}

/// All of a binary is registered.
#[unsafe(no_mangle)]
pub extern "C" fn __cudaRegisterFatBinaryEnd(_binary: usize) {}

/// The program ends.
#[unsafe(no_mangle)]
pub extern "C" fn __cudaUnregisterFatBinary(_binary: usize) {}

/// There are no managed variables to set up.
#[unsafe(no_mangle)]
pub extern "C" fn __cudaInitModule(_binary: usize) -> c_char {
    1
}
