//! The driver's interface. Handles are numbers in pointers' clothing; what they stand for is looked up, so that a wrong one is an error.
#![allow(clippy::missing_safety_doc)] // They have the contracts of the functions whose names they have.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use ptx_emulator::{LaunchConfig, Memory};

use crate::capture;
use crate::device::{
    CAPTURE_IMPLICIT, CAPTURE_INVALIDATED, CAPTURE_ISOLATION, CAPTURE_MERGE, CAPTURE_UNJOINED, CAPTURE_UNMATCHED,
    CAPTURE_UNSUPPORTED, CAPTURED_EVENT, Device, Failure, INVALID_CONTEXT, INVALID_DEVICE, INVALID_VALUE,
    LAUNCH_FAILED, NO_BINARY, NO_PEERS, NOT_FOUND, NOT_PERMITTED, NOT_READY, NOT_SUPPORTED, Outcome, SHARED_DEFAULT,
    UNKNOWN, call, call_back, context, current, devices, entries, lock, put, release, set_current,
};
use crate::streams;

/// A device by its number.
fn device_at(ordinal: c_int) -> Outcome<&'static Device> {
    let found = usize::try_from(ordinal).ok().and_then(|ordinal| devices().get(ordinal));
    found.ok_or_else(|| Failure::new(INVALID_DEVICE, format!("device {ordinal}; there are {}", devices().len())))
}

fn uuid(ordinal: c_int) -> Outcome<[u8; 16]> {
    let mut uuid = *b"emulated device!";
    uuid[15] += device_at(ordinal)?.ordinal as u8;
    Ok(uuid)
}

/// The device whose memory an address is in.
fn device_of(address: u64) -> Outcome<&'static Device> {
    devices()
        .get(Memory::number_of(address))
        .ok_or_else(|| Failure::new(INVALID_VALUE, format!("{address:#x} is no device's")))
}

/// Copies between devices, by way of the host.
fn copy_between(to: u64, from: u64, count: usize) -> Outcome<()> {
    let (target, source) = (device_of(to)?, device_of(from)?);
    if target.ordinal == source.ordinal {
        return Ok(target.memory.copy(to, from, count)?);
    }
    let mut bytes = vec![0; count];
    source.memory.read(from, &mut bytes)?;
    Ok(target.memory.write(to, &bytes)?)
}

/// A function of the host's that a stream comes to.
#[derive(Clone, Copy)]
struct HostFunction {
    function: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
}

// SAFETY: the caller of the driver lends both to whichever thread comes to them
unsafe impl Send for HostFunction {}
// SAFETY: as above
unsafe impl Sync for HostFunction {}

impl HostFunction {
    fn call(self) {
        // SAFETY: by the contract of cuLaunchHostFunc it can be called with its data when the stream comes to it
        call_back(|| unsafe { (self.function)(self.data) });
    }
}

/// The bytes that a caller's pointer points to.
///
/// # Safety
/// `bytes` bytes can be read there, unless it is null.
unsafe fn bytes<'a>(from: *const c_void, count: usize) -> Outcome<&'a [u8]> {
    if count == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(Failure::new(INVALID_VALUE, "a null pointer to copy from"));
    }
    // SAFETY: the caller vouches for `count` bytes
    Ok(unsafe { std::slice::from_raw_parts(from.cast(), count) })
}

unsafe fn name<'a>(text: *const c_char) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(Failure::new(INVALID_VALUE, "a null pointer for a name"));
    }
    // SAFETY: a string that ends with NUL, by the driver's contract
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|error| Failure::new(INVALID_VALUE, format!("text that is not UTF-8: {error}")))
}

/// What `cuDeviceGetAttribute` gives: an H100's.
fn attribute(device: &Device, which: c_int) -> Option<i32> {
    if let Some(&(_, value)) = device.claims.iter().find(|&&(claimed, _)| claimed == which) {
        return Some(value);
    }
    let limits = &device.limits;
    Some(match which {
        1 => limits.threads as i32,
        2..=4 => limits.block[which as usize - 2] as i32,
        5..=7 => limits.grid[which as usize - 5] as i32,
        8 => SHARED_DEFAULT as i32,
        9 => 64 << 10,       // constant memory
        10 => 32,            // a warp
        11 => i32::MAX,      // pitch
        12 | 82 => 64 << 10, // registers a block, a multiprocessor
        13 => 1_980_000,     // clock, kHz
        15 | 18 | 35 => 0,   // overlap, integrated, ECC
        16 => limits.multiprocessors as i32,
        17 | 20 => 0,      // timeout, compute mode
        31 | 40 | 41 => 1, // concurrent kernels, copy engines, unified addresses
        33 | 34 | 50 => 0, // where it sits
        36 => 2_619_000,   // memory clock, kHz
        37 => 5120,        // bus, bits
        38 => 50 << 20,    // L2
        39 => limits.threads_each as i32,
        75 => device.capability.0,
        76 => device.capability.1,
        78 => 1, // stream priorities
        81 => limits.shared_each as i32,
        83 => 0, // managed memory
        84 | 87 | 88 | 89 => 0,
        95 => 1, // cooperative launch
        97 => limits.shared as i32,
        106 => limits.blocks_each as i32,
        111 => ptx_emulator::Limits::RESERVED as i32,
        115 => 1, // memory pools
        _ => return None,
    })
}

/// A launch as it is asked for.
struct Asked {
    function: u64,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: u64,
    cooperative: bool,
}

unsafe fn launch(device: &Device, asked: Asked, parameters: *mut *mut c_void, extra: *mut *mut c_void) -> Outcome<()> {
    let function = device.function(asked.function)?;
    if !extra.is_null() {
        return Err(Failure::new(NOT_SUPPORTED, "arguments through `extra`"));
    }
    let wanted = &function.kernel.parameters;
    if parameters.is_null() && !wanted.is_empty() {
        return Err(Failure::new(INVALID_VALUE, format!("{} takes parameters, none are given", function.kernel.name)));
    }
    let mut values = Vec::with_capacity(wanted.len());
    for (i, &(_, size)) in wanted.iter().enumerate() {
        // SAFETY: as many pointers as the kernel has parameters, each to as many bytes as that one has
        let at = unsafe { *parameters.add(i) };
        // SAFETY: as above
        values.push(unsafe { bytes(at, size)? }.to_vec());
    }
    let config = LaunchConfig {
        grid: asked.grid,
        block: asked.block,
        dynamic_shared: asked.shared as usize,
        seed: 1,
        cooperative: asked.cooperative,
    };
    device.check_launch(&function, &config, &values)?;
    let run = move |device: &Device| device.launch(&function, config, &values);
    capture::put(device, asked.stream, "cuLaunchKernel", Box::new(run))
}

/// What `cuLaunchKernelEx` takes.
#[repr(C)]
pub struct CUlaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: u64,
    attributes: *const CUlaunchAttribute,
    count: c_uint,
}

impl CUlaunchConfig {
    pub(crate) fn new(
        grid: [c_uint; 3],
        block: [c_uint; 3],
        shared: c_uint,
        stream: u64,
        attributes: *const CUlaunchAttribute,
        count: c_uint,
    ) -> Self {
        Self { grid, block, shared, stream, attributes, count }
    }
}

/// An attribute of a launch.
#[repr(C)]
pub struct CUlaunchAttribute {
    id: c_uint,
    pad: [u8; 4],
    value: [u32; 16],
}

/// A new stream; flag 1 says that the legacy stream does not wait for it.
fn new_stream(device: &Device, flags: c_uint) -> u64 {
    let stream = device.handle();
    if flags & 1 != 0 {
        streams::set_apart(stream);
    }
    stream
}

/// Blocks of a function that a multiprocessor holds.
fn occupancy(device: &Device, function: u64, threads: c_int, shared: usize) -> Outcome<c_int> {
    Ok(device.function(function)?.kernel.occupancy(threads.max(0) as u32, shared, &device.limits) as c_int)
}

fn to_host(device: &Device, to: *mut c_void, from: u64, count: usize, stream: Option<u64>) -> Outcome<()> {
    if count > 0 && to.is_null() {
        return Err(Failure::new(INVALID_VALUE, "a null pointer to copy to"));
    }
    if count == 0 {
        return Ok(());
    }
    let to = to as usize;
    let copy = move |device: &Device| {
        // SAFETY: the caller's memory of `count` bytes, not null, which is there until the copy is done
        let bytes = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, count) };
        read(device, from, bytes)
    };
    if capture::is_pinned(to, count)
        && let Some(stream) = stream
    {
        return capture::put(device, stream, "cuMemcpyDtoHAsync", Box::new(copy));
    }
    capture::wait(device, stream.unwrap_or(0), "a copy to the host")?;
    copy(device)
}

/// What is on the device; whether it has to have been written is a matter of the environment.
fn read(device: &Device, from: u64, bytes: &mut [u8]) -> Outcome<()> {
    if device.unwritten_is_error {
        return Ok(device.memory.read(from, bytes)?);
    }
    device.memory.read_as_it_is(from, bytes)?;
    Ok(())
}

entries! { call:
    fn cuInit(_flags: c_uint) |_device| { Ok(()) }
    fn cuDriverGetVersion(version: *mut c_int) |_device| { put(version, 13_000) }
    fn cuDeviceGet(device_out: *mut c_int, ordinal: c_int) |_device| { put(device_out, device_at(ordinal)?.ordinal as c_int) }
    fn cuDeviceGetCount(count: *mut c_int) |_device| { put(count, devices().len() as c_int) }
    fn cuDeviceCanAccessPeer(can: *mut c_int, one: c_int, other: c_int) |_device| { device_at(one)?; device_at(other)?; put(can, 0) }
    fn cuCtxEnablePeerAccess(_context: u64, _flags: c_uint) |_device| { Err(Failure::new(NO_PEERS, "a device that cannot reach another's memory")) }
    fn cuDeviceGetName(to: *mut c_char, length: c_int, ordinal: c_int) |_device| {
        device_at(ordinal)?;
        let text = b"emulated H100\0";
        let count = (length.max(0) as usize).min(text.len());
        for (i, &byte) in text[..count].iter().enumerate() {
            put(to.add(i), if i + 1 == count { 0 } else { byte as c_char })?;
        }
        Ok(())
    }
    fn cuDeviceGetUuid(to: *mut [u8; 16], ordinal: c_int) |_device| { put(to, uuid(ordinal)?) }
    fn cuDeviceGetUuid_v2(to: *mut [u8; 16], ordinal: c_int) |_device| { put(to, uuid(ordinal)?) }
    fn cuDeviceTotalMem_v2(total: *mut usize, ordinal: c_int) |_device| { put(total, device_at(ordinal)?.memory.capacity()) }
    fn cuDeviceGetAttribute(value: *mut c_int, which: c_int, ordinal: c_int) |_device| {
        let found = attribute(device_at(ordinal)?, which);
        put(value, found.ok_or_else(|| Failure::new(INVALID_VALUE, format!("device attribute {which} is not known")))?)
    }
    fn cuDevicePrimaryCtxRetain(to: *mut u64, ordinal: c_int) |_device| { put(to, context(device_at(ordinal)?.ordinal)) }
    fn cuCtxGetCurrent(to: *mut u64) |_device| { put(to, current().map_or(0, |device| context(device.ordinal))) }
    fn cuCtxGetDevice(to: *mut c_int) |_device| {
        let device = current().ok_or_else(|| Failure::new(INVALID_CONTEXT, "no context is this thread's"))?;
        put(to, device.ordinal as c_int)
    }
    fn cuCtxSynchronize() |device| { capture::wait_for_device(device) }

    fn cuStreamCreate(stream: *mut u64, flags: c_uint) |device| { put(stream, new_stream(device, flags)) }
    fn cuStreamCreateWithPriority(stream: *mut u64, flags: c_uint, _priority: c_int) |device| { put(stream, new_stream(device, flags)) }
    fn cuStreamSynchronize(stream: u64) |device| { capture::wait(device, stream, "a wait") }
    fn cuStreamQuery(stream: u64) |_device| { capture::query(stream) }
    fn cuLaunchHostFunc(stream: u64, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) |device| {
        let function = function.ok_or_else(|| Failure::new(INVALID_VALUE, "a null pointer for a function"))?;
        let host = HostFunction { function, data };
        capture::put(device, stream, "cuLaunchHostFunc", Box::new(move |_| { host.call(); Ok(()) }))
    }
    fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) |device| { capture::wait_event(device, stream, event) }
    fn cuEventCreate(event: *mut u64, _flags: c_uint) |device| { put(event, device.handle()) }
    fn cuEventRecord(event: u64, stream: u64) |device| { capture::record_event(device, event, stream) }
    fn cuEventRecordWithFlags(event: u64, stream: u64, _flags: c_uint) |device| { capture::record_event(device, event, stream) }
    fn cuEventSynchronize(event: u64) |device| { capture::wait_for_event(device, event) }
    fn cuEventQuery(event: u64) |device| { capture::query_event(device, event) }
    fn cuEventElapsedTime(milliseconds: *mut f32, start: u64, end: u64) |_device| { put(milliseconds, capture::elapsed(start, end)?) }
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: u64, end: u64) |_device| { put(milliseconds, capture::elapsed(start, end)?) }
    fn cuStreamIsCapturing(stream: u64, status: *mut c_int) |_device| { put(status, c_int::from(capture::is_capturing(stream))) }
    fn cuStreamBeginCapture_v2(stream: u64, _mode: c_int) |device| { capture::begin(device, stream) }
    fn cuStreamEndCapture(stream: u64, graph: *mut u64) |device| { let made = capture::end(device, stream)?; put(graph, made) }
    fn cuGraphInstantiateWithFlags(executable: *mut u64, graph: u64, flags: u64) |device| { put(executable, capture::instantiate(device, graph, flags)?) }
    fn cuGraphUpload(executable: u64, _stream: u64) |_device| { capture::check(executable) }
    fn cuGraphLaunch(executable: u64, stream: u64) |device| { capture::launch(device, executable, stream) }

    fn cuMemAlloc_v2(address: *mut u64, size: usize) |device| {
        if size == 0 {
            return Err(Failure::new(INVALID_VALUE, "an allocation of 0 bytes"));
        }
        put(address, device.memory.allocate(size)?)
    }
    fn cuMemAllocAsync(address: *mut u64, size: usize, stream: u64) |device| { put(address, capture::allocate(device, stream, size)?) }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |device| {
        let capacity = device.memory.capacity();
        put(free, capacity - device.memory.usage().0)?;
        put(total, capacity)
    }
    fn cuMemHostAlloc(address: *mut *mut u8, size: usize, _flags: c_uint) |_device| { put(address, capture::pinned(size)?) }
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, count: usize) |device| {
        capture::wait(device, 0, "a copy")?;
        Ok(device.memory.write(to, bytes(from, count)?)?)
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, count: usize, stream: u64) |device| {
        if count > 0 && capture::is_pinned(from as usize, count) {
            let from = from as usize;
            let copy = move |device: &Device| Ok(device.memory.write(to, bytes(from as *const c_void, count)?)?);
            return capture::put(device, stream, "cuMemcpyHtoDAsync", Box::new(copy));
        }
        let data = bytes(from, count)?.to_vec();
        capture::put(device, stream, "cuMemcpyHtoDAsync", Box::new(move |device| Ok(device.memory.write(to, &data)?)))
    }
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, count: usize) |device| { to_host(device, to, from, count, None) }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, count: usize, stream: u64) |device| { to_host(device, to, from, count, Some(stream)) }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, count: usize) |device| {
        capture::wait(device, 0, "a copy")?;
        Ok(device.memory.copy(to, from, count)?)
    }
    fn cuMemcpyPeer(to: u64, _to_context: u64, from: u64, _from_context: u64, count: usize) |device| {
        capture::wait(device, 0, "a copy")?;
        copy_between(to, from, count)
    }
    fn cuMemcpyPeerAsync(to: u64, _to_context: u64, from: u64, _from_context: u64, count: usize, stream: u64) |device| {
        capture::put(device, stream, "cuMemcpyPeerAsync", Box::new(move |_| copy_between(to, from, count)))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, count: usize, stream: u64) |device| {
        capture::put(device, stream, "cuMemcpyDtoDAsync", Box::new(move |device| Ok(device.memory.copy(to, from, count)?)))
    }
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) |device| {
        capture::wait(device, 0, "a memset")?;
        Ok(device.memory.fill(to, value, count)?)
    }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) |device| {
        capture::put(device, stream, "cuMemsetD8Async", Box::new(move |device| Ok(device.memory.fill(to, value, count)?)))
    }

    fn cuModuleLoadData(module: *mut u64, image: *const c_void) |device| {
        if !image.is_null() && CStr::from_ptr(image.cast()).to_bytes().starts_with(b"\x7fELF") {
            return Err(Failure::new(NO_BINARY, "machine code; the emulated device takes PTX"));
        }
        put(module, device.load(name(image.cast())?)?)
    }
    fn cuModuleLoad(module: *mut u64, path: *const c_char) |device| {
        let path = name(path)?;
        let text = std::fs::read_to_string(path).map_err(|error| Failure::new(301, format!("{path}: {error}")))?;
        put(module, device.load(&text)?)
    }
    fn cuModuleGetFunction(function: *mut u64, module: u64, text: *const c_char) |device| {
        put(function, device.function_of(module, name(text)?)?)
    }
    fn cuModuleGetGlobal_v2(address: *mut u64, size: *mut usize, module: u64, text: *const c_char) |device| {
        let text = name(text)?;
        let found = device.module(module)?.module.variable(text);
        let found = found.ok_or_else(|| Failure::new(NOT_FOUND, format!("no variable {text} in the module")))?;
        if !address.is_null() {
            put(address, found)?;
        }
        if !size.is_null() {
            put(size, device.memory.range(found).map_or(0, |(_, size)| size))?;
        }
        Ok(())
    }
    fn cuFuncGetAttribute(value: *mut c_int, which: c_int, function: u64) |device| {
        let function = device.function(function)?;
        let kernel = &function.kernel;
        put(value, match which {
            0 => kernel.most_threads.unwrap_or(u64::MAX).min(u64::from(device.limits.threads)) as c_int,
            1 => kernel.static_shared() as c_int,
            2 => 0,
            3 => kernel.local_memory() as c_int,
            // Registers are ptxas's affair: as many as the kernel may have.
            4 => 255,
            5 | 6 => 10 * device.capability.0 + device.capability.1,
            7 => 0,
            8 => *lock(&function.dynamic_shared) as c_int,
            9 => -1,
            _ => return Err(Failure::new(INVALID_VALUE, format!("function attribute {which} is not known"))),
        })
    }
    fn cuFuncSetAttribute(function: u64, which: c_int, value: c_int) |device| {
        let function = device.function(function)?;
        match which {
            8 => {
                let most = device.limits.shared.saturating_sub(function.kernel.static_shared());
                if value < 0 || value as usize > most {
                    let reason = format!("{value} bytes of dynamic shared memory, at most {most} for {}", function.kernel.name);
                    return Err(Failure::new(INVALID_VALUE, reason));
                }
                *lock(&function.dynamic_shared) = value as usize;
                Ok(())
            }
            9 => Ok(()),
            _ => Err(Failure::new(INVALID_VALUE, format!("function attribute {which} cannot be set"))),
        }
    }
    fn cuFuncSetCacheConfig(function: u64, _config: c_int) |device| { device.function(function).map(|_| ()) }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(count: *mut c_int, function: u64, threads: c_int, shared: usize) |device| {
        put(count, occupancy(device, function, threads, shared)?)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count: *mut c_int, function: u64, threads: c_int, shared: usize, _flags: c_uint) |device| {
        put(count, occupancy(device, function, threads, shared)?)
    }
    fn cuLaunchKernel(function: u64, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: u64,
                      parameters: *mut *mut c_void, extra: *mut *mut c_void) |device| {
        let asked = Asked { function, grid: [gx, gy, gz], block: [bx, by, bz], shared, stream, cooperative: false };
        launch(device, asked, parameters, extra)
    }
    fn cuLaunchCooperativeKernel(function: u64, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
                                 stream: u64, parameters: *mut *mut c_void) |device| {
        let asked = Asked { function, grid: [gx, gy, gz], block: [bx, by, bz], shared, stream, cooperative: true };
        launch(device, asked, parameters, std::ptr::null_mut())
    }
    fn cuLaunchKernelEx(config: *const CUlaunchConfig, function: u64, parameters: *mut *mut c_void, extra: *mut *mut c_void) |device| {
        let Some(config) = config.as_ref() else {
            return Err(Failure::new(INVALID_VALUE, "a null pointer for a launch"));
        };
        let attributes = if config.count == 0 { &[] } else { std::slice::from_raw_parts(config.attributes, config.count as usize) };
        let mut cooperative = false;
        for attribute in attributes {
            match (attribute.id, &attribute.value[..3]) {
                (0, _) | (4, [0 | 1, 0 | 1, 0 | 1]) => {}
                (2, [value, ..]) => cooperative = *value != 0,
                (id, _) => return Err(Failure::new(NOT_SUPPORTED, format!("launch attribute {id}"))),
            }
        }
        let asked = Asked { function, grid: config.grid, block: config.block, shared: config.shared, stream: config.stream, cooperative };
        launch(device, asked, parameters, extra)
    }
}

entries! { release:
    fn cuStreamDestroy_v2(stream: u64) |device| { device.close(stream) }
    fn cuEventDestroy_v2(event: u64) |device| { device.close(event) }
    fn cuGraphDestroy(graph: u64) |_device| { capture::destroy(graph) }
    fn cuGraphExecDestroy(executable: u64) |_device| { capture::destroy(executable) }
    fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) |_device| { device_at(ordinal).map(|_| ()) }
    fn cuModuleUnload(module: u64) |device| { let _ = streams::wait_for_all(device); device.unload(module) }
    fn cuCtxSetCurrent(context: u64) |_device| { set_current(context) }
    fn cuMemFree_v2(address: u64) |device| {
        let _ = streams::wait_for_all(device);
        if address == 0 { Ok(()) } else { Ok(device_of(address)?.memory.free(address)?) }
    }
    fn cuMemFreeAsync(address: u64, stream: u64) |_device| { if address == 0 { Ok(()) } else { capture::free(stream, address) } }
    fn cuMemFreeHost(address: *mut u8) |device| { capture::unpin(device, address) }
}

/// The name and the meaning of an error.
fn meaning(code: u32) -> Option<(&'static CStr, &'static CStr)> {
    Some(match code {
        0 => (c"CUDA_SUCCESS", c"no error"),
        1 => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        2 => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        101 => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        NO_BINARY => (c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"no kernel image is available for execution on the device"),
        NO_PEERS => (c"CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", c"peer access is not supported between these two devices"),
        NOT_PERMITTED => (c"CUDA_ERROR_NOT_PERMITTED", c"operation not permitted"),
        218 => (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
        301 => (c"CUDA_ERROR_FILE_NOT_FOUND", c"file not found"),
        400 => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        500 => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        700 => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
        702 => (c"CUDA_ERROR_LAUNCH_TIMEOUT", c"the launch timed out and was terminated"),
        715 => (c"CUDA_ERROR_ILLEGAL_INSTRUCTION", c"an illegal instruction was encountered"),
        716 => (c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address"),
        LAUNCH_FAILED => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure; the emulated driver has said why"),
        720 => (c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", c"too many blocks in cooperative launch"),
        NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        CAPTURE_UNSUPPORTED => {
            (c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"operation not permitted when stream is capturing")
        }
        NOT_READY => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        CAPTURE_INVALIDATED => {
            (c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", c"operation failed due to a previous error during capture")
        }
        CAPTURE_MERGE => {
            (c"CUDA_ERROR_STREAM_CAPTURE_MERGE", c"operation would result in a merge of separate capture sequences")
        }
        CAPTURE_UNMATCHED => {
            (c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", c"capture was not ended in the same stream as it began")
        }
        CAPTURE_UNJOINED => (c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", c"capturing stream has unjoined work"),
        CAPTURE_IMPLICIT => (
            c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
            c"operation would make the legacy stream depend on a capturing blocking stream",
        ),
        CAPTURE_ISOLATION => {
            (c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", c"dependency created on uncaptured work in another stream")
        }
        CAPTURED_EVENT => {
            (c"CUDA_ERROR_CAPTURED_EVENT", c"operation not permitted on an event last recorded in a capturing stream")
        }
        UNKNOWN => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
        _ => return None,
    })
}

/// The name of an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: u32, text: *mut *const c_char) -> u32 {
    let (found, result) = meaning(code).map_or((std::ptr::null(), INVALID_VALUE), |(name, _)| (name.as_ptr(), 0));
    // SAFETY: the caller's pointer for a result
    unsafe { put(text, found) }.map_or_else(|failure| failure.code, |()| result)
}

/// What an error means; of a kernel's fault, the whole report.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: u32, text: *mut *const c_char) -> u32 {
    let known = crate::device::device().fault_text(code).or(meaning(code).map(|(_, text)| text));
    let (found, result) = known.map_or((std::ptr::null(), INVALID_VALUE), |text| (text.as_ptr(), 0));
    // SAFETY: the caller's pointer for a result
    unsafe { put(text, found) }.map_or_else(|failure| failure.code, |()| result)
}
