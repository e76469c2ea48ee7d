//! The devices: their memory, their modules, what they can do, and what went wrong.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString, c_char};
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use ptx_emulator::{Error, Kernel, LaunchConfig, Limits, Memory, Module};

/// `CUresult` values that are not an [`Error`]'s.
pub(crate) const SUCCESS: u32 = 0;
pub(crate) const INVALID_VALUE: u32 = 1;
pub(crate) const INVALID_DEVICE: u32 = 101;
pub(crate) const INVALID_CONTEXT: u32 = 201;
pub(crate) const NO_BINARY: u32 = 209;
pub(crate) const NO_PEERS: u32 = 217;
pub(crate) const INVALID_HANDLE: u32 = 400;
pub(crate) const NOT_FOUND: u32 = 500;
pub(crate) const LAUNCH_FAILED: u32 = 719;
pub(crate) const NOT_PERMITTED: u32 = 800;
pub(crate) const NOT_SUPPORTED: u32 = 801;
pub(crate) const NOT_READY: u32 = 600;
pub(crate) const CAPTURE_UNSUPPORTED: u32 = 900;
pub(crate) const CAPTURE_INVALIDATED: u32 = 901;
pub(crate) const CAPTURE_MERGE: u32 = 902;
pub(crate) const CAPTURE_UNMATCHED: u32 = 903;
pub(crate) const CAPTURE_UNJOINED: u32 = 904;
pub(crate) const CAPTURE_ISOLATION: u32 = 905;
pub(crate) const CAPTURE_IMPLICIT: u32 = 906;
pub(crate) const CAPTURED_EVENT: u32 = 907;
pub(crate) const UNKNOWN: u32 = 999;

/// Dynamic and static shared memory that a kernel has without asking for more.
pub(crate) const SHARED_DEFAULT: usize = 48 << 10;

/// What gives memory back in a stream's order.
pub(crate) const FREE: &str = "cuMemFreeAsync";

/// A failed call: its `CUresult`, and why.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub code: u32,
    pub reason: String,
}

impl Failure {
    pub fn new(code: u32, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// A module and the kernels that have been asked for.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub module: Module,
    kernels: Mutex<HashMap<String, Arc<Function>>>,
}

/// A kernel, and the dynamic shared memory that it may have.
#[derive(Debug)]
pub(crate) struct Function {
    pub kernel: Kernel,
    pub owner: u64,
    pub dynamic_shared: Mutex<usize>,
}

/// A device, and its primary context.
pub(crate) struct Device {
    pub ordinal: usize,
    pub memory: Memory,
    pub limits: Limits,
    pub capability: (i32, i32),
    /// Attributes by their numbers, whatever the device is: for tests of what is done about them
    pub claims: Vec<(i32, i32)>,
    modules: Mutex<HashMap<u64, Arc<Loaded>>>,
    functions: Mutex<HashMap<u64, Arc<Function>>>,
    /// The streams of handles of libraries
    pub streams: Mutex<HashMap<u64, u64>>,
    /// Does what still waits in the streams; set by the first that is put there
    pub finish: OnceLock<fn(&Device) -> Outcome<()>>,
    launches: AtomicU64,
    pub seed: u64,
    /// Whether cooperative launches are refused, as by a device that others use, too
    pub refuses_cooperative: bool,
    /// Whether it is an error to copy to the host what nobody has written
    pub unwritten_is_error: bool,
    /// The first fault of a kernel: every later call fails with it
    fault: Mutex<Option<Failure>>,
    /// Its report, as a string of C
    report: OnceLock<CString>,
}

/// The number that the next handle has: no two devices have the same.
static NEXT: AtomicU64 = AtomicU64::new(0x100);
/// Streams, events and graphs that were made, each with its device
static HANDLES: LazyLock<Mutex<HashMap<u64, usize>>> = LazyLock::new(Mutex::default);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => {
            eprintln!("emulated driver: {name}={text} is not a number, and is ignored");
            None
        }
    }
}

/// The module to load instead of `text`: the file of `PTX_EMULATOR_REPLACE`'s folder that has its first kernel, or whose first kernel it has. For tests of
/// tests.
fn replacement(text: &str) -> Option<String> {
    let folder = std::env::var_os("PTX_EMULATOR_REPLACE")?;
    let entries =
        std::fs::read_dir(&folder).map_err(|error| eprintln!("emulated driver: {}: {error}", folder.display())).ok()?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "ptx")).find_map(|path| {
        let other = std::fs::read_to_string(path).ok()?;
        let is_in = |one: &str, all: &str| {
            let name = one.split_once(".entry ").and_then(|(_, first)| first.split('(').next());
            name.is_some_and(|name| all.contains(&format!(".entry {name}(")))
        };
        (is_in(text, &other) || is_in(&other, text)).then_some(other)
    })
}

/// `75=7,76=5` as pairs of numbers.
fn claims(text: &str) -> Vec<(i32, i32)> {
    let claim = |part: &str| {
        let (which, value) = part.split_once('=')?;
        Some((which.trim().parse().ok()?, value.trim().parse().ok()?))
    };
    let parts = text.split(',').filter(|part| !part.trim().is_empty());
    parts
        .filter_map(|part| {
            let found = claim(part);
            if found.is_none() {
                eprintln!("emulated driver: {part} in PTX_EMULATOR_ATTRIBUTES is not NUMBER=VALUE, and is ignored");
            }
            found
        })
        .collect()
}

/// What a stream is to do.
pub(crate) type Work = Box<dyn FnOnce(&Device) -> Outcome<()> + Send>;

static COUNTERS: LazyLock<Option<Mutex<std::fs::File>>> = LazyLock::new(|| {
    let path = std::env::var_os("PTX_EMULATOR_COUNTERS")?;
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.map_err(|error| eprintln!("emulated driver: {}: {error}", path.display())).ok().map(Mutex::new)
});

static DEVICES: LazyLock<Vec<Device>> = LazyLock::new(|| {
    // SAFETY: a function of the C library, and one of ours that lives as long as the process
    unsafe { atexit(end) };
    LazyLock::force(&COUNTERS);
    let count = number("PTX_EMULATOR_DEVICES").unwrap_or(1).clamp(1, 8) as usize;
    (0..count).map(new_device).collect()
});

fn new_device(ordinal: usize) -> Device {
    Device {
        ordinal,
        memory: Memory::numbered(ordinal, number("PTX_EMULATOR_MEMORY_MB").unwrap_or(4096) as usize * (1 << 20)),
        limits: Limits {
            multiprocessors: number("PTX_EMULATOR_MULTIPROCESSORS").unwrap_or(132).clamp(1, 1024) as u32,
            ..Limits::default()
        },
        capability: (9, 0),
        claims: claims(&std::env::var("PTX_EMULATOR_ATTRIBUTES").unwrap_or_default()),
        modules: Mutex::default(),
        functions: Mutex::default(),
        streams: Mutex::default(),
        launches: AtomicU64::new(0),
        seed: number("PTX_EMULATOR_SEED").unwrap_or(1),
        refuses_cooperative: std::env::var("PTX_EMULATOR_COOPERATIVE").is_ok_and(|how| how == "refuse"),
        unwritten_is_error: std::env::var("PTX_EMULATOR_UNWRITTEN").is_ok_and(|how| how == "error"),
        finish: OnceLock::new(),
        fault: Mutex::default(),
        report: OnceLock::new(),
    }
}

pub(crate) fn devices() -> &'static [Device] {
    &DEVICES
}

/// The device whose context is this thread's.
pub(crate) fn device() -> &'static Device {
    let current = CURRENT.try_with(Cell::get).unwrap_or_default();
    &DEVICES[current.unwrap_or(0)]
}

/// The device of this thread's context, if it has one. A single device is every thread's.
pub(crate) fn current() -> Option<&'static Device> {
    let current = CURRENT.try_with(Cell::get).unwrap_or_default();
    current.or((DEVICES.len() == 1).then_some(0)).map(|ordinal| &DEVICES[ordinal])
}

/// The only context of a device.
pub(crate) fn context(ordinal: usize) -> u64 {
    0xc0de_0000 + 16 * ordinal as u64
}

/// Makes a context this thread's; 0 is none.
pub(crate) fn set_current(wanted: u64) -> Outcome<()> {
    let found = (0..DEVICES.len()).find(|&ordinal| context(ordinal) == wanted);
    if found.is_none() && wanted != 0 {
        return Err(Failure::new(INVALID_CONTEXT, format!("{wanted:#x} is no context")));
    }
    let _ = CURRENT.try_with(|current| current.set(found));
    Ok(())
}

/// The device of a stream or an event.
pub(crate) fn owner(handle: u64) -> Option<usize> {
    lock(&HANDLES).get(&handle).copied()
}

unsafe extern "C" {
    fn atexit(f: extern "C" fn()) -> std::ffi::c_int;
}

/// When the process ends, what still waits is done, and what was allocated and not freed is said, where that is wanted.
extern "C" fn end() {
    let first = &DEVICES[0];
    let _ = catch_unwind(|| DEVICES.iter().find_map(|device| device.finish.get()).map(|finish| finish(first)));
    if std::env::var_os("PTX_EMULATOR_LEAKS").is_none() {
        return;
    }
    let leaks: Vec<_> = DEVICES.iter().flat_map(|device| device.memory.leaks()).collect();
    if !leaks.is_empty() {
        let bytes: usize = leaks.iter().map(|(_, size)| size).sum();
        eprintln!(
            "emulated driver: {} allocations of {bytes} bytes were not freed; the first is {:#x}",
            leaks.len(),
            leaks[0].0
        );
    }
}

thread_local! {
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
    /// The device whose context is this thread's
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Whether this thread is in a callback of the driver's, which may not call it
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
    static CALLS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Counts a call of an entry point by this thread.
pub(crate) fn count(name: &'static str) {
    // While a thread ends there may be nothing left to count in.
    let _ = CALLS.try_with(|calls| *calls.borrow_mut().entry(name).or_default() += 1);
}

/// How often this thread has called each entry point so far, `NAME COUNT` a line, as a string of C into `length` bytes at `to`; gives the bytes it takes. A test
/// that may run on a real driver looks for it by its name.
///
/// # Safety
/// `to` is null, or `length` bytes can be written there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulatedDriverCalls(to: *mut c_char, length: usize) -> usize {
    let text: String =
        CALLS.with_borrow(|calls| calls.iter().map(|(name, count)| format!("{name} {count}\n")).collect());
    if !to.is_null() && length > text.len() {
        // SAFETY: room for the text and the byte that ends it, by the caller's word
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len());
            to.add(text.len()).write(0);
        }
    }
    text.len() + 1
}

/// The reason of this thread's last call that failed.
pub fn last_message() -> String {
    MESSAGE.with_borrow(String::clone)
}

impl Device {
    /// A number that no other handle has.
    pub fn handle(&self) -> u64 {
        let handle = NEXT.fetch_add(16, Relaxed);
        lock(&HANDLES).insert(handle, self.ordinal);
        handle
    }

    /// Does a stream's work. The first fault is kept, and is what later calls fail with; after it memory is given back, and nothing else is done.
    pub fn do_work(&self, name: &str, work: Work) {
        if self.check().is_err() {
            if name == FREE {
                let _ = catch_unwind(AssertUnwindSafe(|| work(self)));
            }
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| work(self)));
        let outcome = outcome.unwrap_or_else(|_| Err(Failure::new(UNKNOWN, "a defect of the emulator")));
        if let Err(failure) = outcome {
            self.report(name, &failure);
            lock(&self.fault).get_or_insert(failure);
        }
    }

    /// The fault there was, if any.
    pub fn check(&self) -> Outcome<()> {
        lock(&self.fault).clone().map_or(Ok(()), Err)
    }

    pub fn check_handle(&self, handle: u64) -> Outcome<()> {
        if owner(handle).is_some() {
            Ok(())
        } else {
            Err(Failure::new(INVALID_HANDLE, format!("{handle:#x} is no stream or event")))
        }
    }

    /// Gives a library's handle its stream.
    pub fn set_stream(&self, handle: u64, stream: u64) -> Outcome<()> {
        lock(&self.streams).insert(handle, stream);
        Ok(())
    }

    pub fn close(&self, handle: u64) -> Outcome<()> {
        let known = lock(&HANDLES).remove(&handle);
        if known.is_some() {
            Ok(())
        } else {
            Err(Failure::new(INVALID_HANDLE, format!("{handle:#x} is no stream or event")))
        }
    }

    pub fn load(&self, text: &str) -> Outcome<u64> {
        let replaced = replacement(text);
        let module = Module::load(replaced.as_deref().unwrap_or(text), &self.memory)?;
        let handle = self.handle();
        lock(&self.modules).insert(handle, Arc::new(Loaded { module, kernels: Mutex::default() }));
        Ok(handle)
    }

    pub fn module(&self, handle: u64) -> Outcome<Arc<Loaded>> {
        let found = lock(&self.modules).get(&handle).cloned();
        found.ok_or_else(|| Failure::new(INVALID_HANDLE, format!("{handle:#x} is no module")))
    }

    pub fn unload(&self, handle: u64) -> Outcome<()> {
        let loaded = self.module(handle)?;
        lock(&self.modules).remove(&handle);
        lock(&self.functions).retain(|_, function| function.owner != handle);
        Ok(loaded.module.unload(&self.memory)?)
    }

    /// The handle of a kernel, decoded when it is asked for first.
    pub fn function_of(&self, module: u64, name: &str) -> Outcome<u64> {
        let loaded = self.module(module)?;
        let mut kernels = lock(&loaded.kernels);
        if let Some(function) = kernels.get(name) {
            return Ok(Arc::as_ptr(function) as u64);
        }
        let function = Arc::new(Function {
            kernel: loaded.module.kernel(name)?,
            owner: module,
            dynamic_shared: Mutex::new(SHARED_DEFAULT),
        });
        let handle = Arc::as_ptr(&function) as u64;
        lock(&self.functions).insert(handle, function.clone());
        kernels.insert(name.into(), function);
        Ok(handle)
    }

    pub fn function(&self, handle: u64) -> Outcome<Arc<Function>> {
        let found = lock(&self.functions).get(&handle).cloned();
        found.ok_or_else(|| Failure::new(INVALID_HANDLE, format!("{handle:#x} is no function")))
    }

    /// Refuses a launch that cannot be.
    pub fn check_launch(&self, function: &Function, config: &LaunchConfig, parameters: &[Vec<u8>]) -> Outcome<()> {
        let kernel = &function.kernel;
        if config.cooperative && self.refuses_cooperative {
            let reason = "cooperative launch: the device is in use (PTX_EMULATOR_COOPERATIVE=refuse)".to_string();
            return Err(Failure::from(Error::CooperativeTooLarge(reason)));
        }
        let dynamic = *lock(&function.dynamic_shared);
        if config.dynamic_shared + kernel.static_shared() > SHARED_DEFAULT && config.dynamic_shared > dynamic {
            return Err(Failure::new(
                INVALID_VALUE,
                format!(
                    "{} bytes of dynamic shared memory for {}, which has asked for no more than {dynamic} (cuFuncSetAttribute)",
                    config.dynamic_shared, kernel.name
                ),
            ));
        }
        let parameters: Vec<&[u8]> = parameters.iter().map(Vec::as_slice).collect();
        Ok(kernel.check(config, &parameters, &self.limits).map(|_| ())?)
    }

    /// Runs a kernel to its end.
    pub fn launch(&self, function: &Function, config: LaunchConfig, parameters: &[Vec<u8>]) -> Outcome<()> {
        let kernel = &function.kernel;
        let number = self.launches.fetch_add(1, Relaxed);
        let seed = (self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1);
        let config = LaunchConfig { seed, ..config };
        let loaded = self.module(function.owner)?;
        let parameters: Vec<&[u8]> = parameters.iter().map(Vec::as_slice).collect();
        let result = loaded.module.launch(kernel, &config, &parameters, &self.memory, &self.limits);
        print!("{}", self.memory.take_printed());
        if let Ok(counters) = &result {
            let (used, peak) = self.memory.usage();
            let mut line = serde_json::json!({
                "launch": number, "kernel": kernel.name, "grid": config.grid, "block": config.block,
                "static_shared": kernel.static_shared(), "dynamic_shared": config.dynamic_shared,
                "cooperative": config.cooperative, "memory": used, "peak_memory": peak,
            });
            if let (Some(line), Ok(serde_json::Value::Object(counters))) =
                (line.as_object_mut(), serde_json::to_value(counters))
            {
                line.extend(counters);
            }
            self.record(&line);
        }
        Ok(result.map(|_| ())?)
    }

    /// A line of `PTX_EMULATOR_COUNTERS`, where that is wanted.
    pub fn record(&self, line: &serde_json::Value) {
        if let Some(file) = &*COUNTERS
            && let Err(error) = writeln!(lock(file), "{line}")
        {
            eprintln!("emulated driver: PTX_EMULATOR_COUNTERS: {error}");
        }
    }

    /// The report of the fault that a code is of, if there was one.
    pub fn fault_text(&self, code: u32) -> Option<&CStr> {
        let fault = lock(&self.fault).clone().filter(|fault| fault.code == code)?;
        Some(self.report.get_or_init(|| CString::new(fault.reason.replace('\0', " ")).unwrap_or_default()))
    }

    fn report(&self, name: &str, failure: &Failure) {
        if failure.code == NOT_READY {
            return; // an answer, and no failure
        }
        eprintln!("emulated driver: {name}: {} (error {})", failure.reason, failure.code);
        MESSAGE.set(failure.reason.clone());
    }
}

/// Runs the body of an entry point: no panic leaves it, and after a fault it fails with that fault.
pub(crate) fn call(name: &str, body: impl FnOnce(&'static Device) -> Outcome<()>) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        if IN_CALLBACK.try_with(Cell::get).unwrap_or_default() {
            device().report(name, &Failure::new(NOT_PERMITTED, "a call of the driver's from one of its callbacks"));
            return NOT_PERMITTED;
        }
        let needs_context = !["cuInit", "cuDriver", "cuDevice", "cuCtx"].iter().any(|start| name.starts_with(start));
        if needs_context && current().is_none() {
            device().report(name, &Failure::new(INVALID_CONTEXT, "no context is this thread's"));
            return INVALID_CONTEXT;
        }
        let device = device();
        let fault = lock(&device.fault).clone();
        if let Some(fault) = fault {
            return fault.code;
        }
        match body(device) {
            Ok(()) => SUCCESS,
            Err(failure) => {
                device.report(name, &failure);
                failure.code
            }
        }
    }));
    outcome.unwrap_or_else(|_| {
        eprintln!("emulated driver: {name}: a defect of the emulator");
        UNKNOWN
    })
}

/// The same for what gives something back: it works after a fault, too, so that a program can end.
pub(crate) fn release(name: &str, body: impl FnOnce(&'static Device) -> Outcome<()>) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| match body(device()) {
        Ok(()) => SUCCESS,
        Err(failure) => {
            device().report(name, &failure);
            failure.code
        }
    }));
    outcome.unwrap_or(UNKNOWN)
}

/// Calls a function of the host's in a stream's place.
pub(crate) fn call_back(function: impl FnOnce()) {
    let _ = IN_CALLBACK.try_with(|inside| inside.set(true));
    function();
    let _ = IN_CALLBACK.try_with(|inside| inside.set(false));
}

/// Says, for each name once, that something is not here.
pub(crate) fn unsupported(name: &str) {
    static SAID: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    if lock(&SAID).insert(name.into()) {
        eprintln!("emulated driver: {name} is not supported");
    }
}

/// Defines entry points of a library: each returns its status, which `$by` makes of what the body comes to.
macro_rules! entries {
    ($by:ident: $(fn $name:ident($($arg:ident: $t:ty),*) |$device:ident| $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $t),*) -> u32 {
            $crate::device::count(stringify!($name));
            // SAFETY: each body touches what its caller's pointers point to by the contract of the function of this name
            #[allow(unused_unsafe)]
            $by(stringify!($name), |$device| unsafe { $body })
        }
    )*};
}
pub(crate) use entries;

/// Writes a result through a pointer of the caller.
///
/// # Safety
/// `to` is null, or may be written.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Outcome<()> {
    if to.is_null() {
        return Err(Failure::new(INVALID_VALUE, "a null pointer for a result"));
    }
    // SAFETY: the caller's pointer for a result, which is not null
    unsafe { to.write_unaligned(value) };
    Ok(())
}
