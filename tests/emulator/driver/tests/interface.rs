//! The C interface: what it gives, and what it answers to bad input. One process, one device: nothing here is a fault of a kernel.
#![allow(missing_docs)]

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ptx_emulator_driver::blas::{cublasCreate_v2, cublasDestroy_v2, cublasGemmEx, cublasSgemmStridedBatched};
use ptx_emulator_driver::cuda::*;
use ptx_emulator_driver::last_message;
use ptx_emulator_driver::random::*;

/// One test captures streams that the legacy stream, which the others use, would wait for: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// y[i] = a·x[i], and a kernel that wants shared memory.
const PTX: &str = r"
.version 8.0
.target sm_80
.address_size 64
.global .align 4 .u32 counter = 7;
.extern .shared .align 16 .b8 buffer[];
.visible .entry scale(.param .u64 x, .param .u64 y, .param .f32 a, .param .u32 n)
{
    .reg .pred %p<2>; .reg .f32 %f<4>; .reg .b32 %r<6>; .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.f32 %f1, [a];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra END;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%rd5], %f3;
END:
    ret;
}
.visible .entry shared(.param .u64 y)
{
    .reg .b32 %r<4>; .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [y];
    mov.u32 %r1, 5;
    st.shared.u32 [buffer], %r1;
    ld.shared.u32 %r2, [buffer];
    st.global.u32 [%rd1], %r2;
    ret;
}
";

fn load(text: &str) -> Result<u64, u32> {
    let text = CString::new(text).unwrap();
    let mut module = 0;
    // SAFETY: a string that ends with NUL, and room for the result
    match unsafe { cuModuleLoadData(&mut module, text.as_ptr().cast()) } {
        0 => Ok(module),
        code => Err(code),
    }
}

fn function(module: u64, name: &str) -> Result<u64, u32> {
    let name = CString::new(name).unwrap();
    let mut function = 0;
    // SAFETY: as above
    match unsafe { cuModuleGetFunction(&mut function, module, name.as_ptr()) } {
        0 => Ok(function),
        code => Err(code),
    }
}

fn allocate(bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: room for the result
    assert_eq!(unsafe { cuMemAllocAsync(&mut address, bytes, 0) }, 0);
    address
}

fn upload<T: Copy>(values: &[T]) -> u64 {
    let address = allocate(size_of_val(values));
    // SAFETY: the slice's own bytes
    assert_eq!(unsafe { cuMemcpyHtoD_v2(address, values.as_ptr().cast(), size_of_val(values)) }, 0);
    address
}

fn download<T: Copy + Default>(address: u64, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    // SAFETY: the vector's own bytes
    assert_eq!(unsafe { cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, size_of_val(&values[..])) }, 0);
    values
}

/// A launch on a line, with pointers to its arguments.
fn launch(function: u64, blocks: u32, threads: u32, shared: u32, stream: u64, arguments: &mut [*mut c_void]) -> u32 {
    // SAFETY: as many pointers as the kernels here have parameters
    unsafe { cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, stream, arguments.as_mut_ptr(), null_mut()) }
}

fn pointer<T>(value: &mut T) -> *mut c_void {
    (value as *mut T).cast()
}

#[test]
fn a_kernel_runs() {
    let _alone = alone();
    let module = load(PTX).unwrap();
    let scale = function(module, "scale").unwrap();
    assert_eq!(function(module, "scale"), Ok(scale), "decoded once");
    let x: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let (mut from, mut to, mut a, mut n) = (upload(&x), allocate(400), 2.5f32, 100u32);
    let mut arguments = [pointer(&mut from), pointer(&mut to), pointer(&mut a), pointer(&mut n)];
    assert_eq!(launch(scale, 4, 32, 0, 0, &mut arguments), 0);
    assert_eq!(download::<f32>(to, 100), x.iter().map(|v| 2.5 * v).collect::<Vec<_>>());
    let (mut address, mut size) = (0, 0);
    let name = CString::new("counter").unwrap();
    // SAFETY: a string that ends with NUL, and room for the results
    assert_eq!(unsafe { cuModuleGetGlobal_v2(&mut address, &mut size, module, name.as_ptr()) }, 0);
    assert_eq!((download::<u32>(address, 1)[0], size), (7, 4));
    // SAFETY: a module that is loaded
    assert_eq!(unsafe { cuModuleUnload(module) }, 0);
    assert_eq!(launch(scale, 4, 32, 0, 0, &mut arguments), 400, "its functions are gone");
}

#[test]
fn modules_that_are_none() {
    let _alone = alone();
    assert_eq!(load("this is not PTX"), Err(218));
    assert!(last_message().contains("PTX line 1"), "{}", last_message());
    assert_eq!(load(&PTX.replace("ret;", "ret")), Err(218));
    let module = load(PTX).unwrap();
    assert_eq!(function(module, "missing"), Err(500));
    assert_eq!(function(12345, "scale"), Err(400));
    // SAFETY: null pointers are what is tested
    unsafe {
        assert_eq!(cuModuleLoadData(&mut 0, null()), 1);
        assert_eq!(cuModuleGetFunction(&mut 0, module, null()), 1);
        assert_eq!(cuModuleGetFunction(null_mut(), module, c"scale".as_ptr()), 1);
        assert_eq!(cuModuleLoad(&mut 0, c"no/such/file.ptx".as_ptr()), 301);
        assert_eq!(cuModuleUnload(99), 400);
    }
    // What is not known is an error of the launch that reaches it, by name.
    let odd = load(&PTX.replace("mul.f32", "frobnicate.f32")).unwrap();
    assert!(function(odd, "scale").is_ok());
}

#[test]
fn launches_that_are_refused() {
    let _alone = alone();
    let module = load(PTX).unwrap();
    let scale = function(module, "scale").unwrap();
    let (mut p, mut a, mut n) = (0u64, 1f32, 0u32);
    let mut p2 = p;
    let mut arguments = [pointer(&mut p), pointer(&mut p2), pointer(&mut a), pointer(&mut n)];
    assert_eq!(launch(scale, 1, 32, 0, 0, &mut arguments), 0, "nothing to do is fine");
    assert_eq!(launch(scale, 1, 1025, 0, 0, &mut arguments), 1);
    assert!(last_message().contains("1025"), "{}", last_message());
    assert_eq!(launch(scale, 0, 32, 0, 0, &mut arguments), 1);
    assert_eq!(launch(scale, 1, 32, 1 << 20, 0, &mut arguments), 1);
    assert_eq!(launch(77, 1, 32, 0, 0, &mut arguments), 400);
    let mut holes = [pointer(&mut p), null_mut(), pointer(&mut a), pointer(&mut n)];
    assert_eq!(launch(scale, 1, 32, 0, 0, &mut holes), 1);
    // SAFETY: null pointers are what is tested
    unsafe {
        assert_eq!(cuLaunchKernel(scale, 1, 1, 1, 32, 1, 1, 0, 0, null_mut(), null_mut()), 1);
        assert_eq!(cuLaunchKernelEx(null(), scale, arguments.as_mut_ptr(), null_mut()), 1);
        let mut extra = [null_mut::<c_void>()];
        assert_eq!(cuLaunchKernel(scale, 1, 1, 1, 32, 1, 1, 0, 0, arguments.as_mut_ptr(), extra.as_mut_ptr()), 801);
        // 132 multiprocessors of 2048 threads hold 264 blocks of 1024.
        let cooperative = cuLaunchCooperativeKernel(scale, 265, 1, 1, 1024, 1, 1, 0, 0, arguments.as_mut_ptr());
        assert_eq!(cooperative, 720);
    }
}

#[test]
fn more_shared_memory_is_asked_for_first() {
    let _alone = alone();
    let module = load(PTX).unwrap();
    let shared = function(module, "shared").unwrap();
    let mut to = allocate(4);
    let mut arguments = [pointer(&mut to)];
    assert_eq!(launch(shared, 1, 1, 48 << 10, 0, &mut arguments), 0);
    assert_eq!(launch(shared, 1, 1, (48 << 10) + 16, 0, &mut arguments), 1);
    assert!(last_message().contains("cuFuncSetAttribute"), "{}", last_message());
    let mut value = 0;
    // SAFETY: a function that is loaded, and room for the result
    unsafe {
        assert_eq!(cuFuncSetAttribute(shared, 8, 228 << 10), 1, "more than there is");
        assert_eq!(cuFuncSetAttribute(shared, 8, 200 << 10), 0);
        assert_eq!(cuFuncGetAttribute(&mut value, 8, shared), 0);
        assert_eq!(value, 200 << 10);
        assert_eq!(launch(shared, 1, 1, 200 << 10, 0, &mut arguments), 0);
        assert_eq!(download::<u32>(to, 1), [5]);
        assert_eq!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut value, shared, 128, 100 << 10), 0);
        assert_eq!(value, 2);
        assert_eq!(cuFuncSetAttribute(1, 8, 0), 400);
        assert_eq!(cuFuncGetAttribute(&mut value, 77, shared), 1);
    }
}

#[test]
fn memory_that_is_not_there() {
    let _alone = alone();
    let address = upload(&[1u8, 2, 3, 4]);
    let mut byte = 0u8;
    // SAFETY: addresses of the device are numbers; those of the host are here
    unsafe {
        assert_eq!(cuMemcpyDtoH_v2(pointer(&mut byte), address + 4, 1), 1);
        assert!(last_message().contains("out of bounds"), "{}", last_message());
        assert_eq!(cuMemcpyDtoH_v2(null_mut(), address, 1), 1);
        assert_eq!(cuMemcpyHtoD_v2(address, null(), 1), 1);
        assert_eq!(cuMemcpyDtoD_v2(address + 2, address, 4), 1);
        assert_eq!(cuMemsetD8_v2(address, 9, 2), 0);
        assert_eq!(download::<u8>(address, 4), [9, 9, 3, 4]);
        assert_eq!(cuMemFree_v2(address), 0);
        assert_eq!(cuMemFree_v2(address), 1, "twice");
        assert_eq!(cuMemcpyDtoH_v2(pointer(&mut byte), address, 1), 1);
        assert_eq!(cuMemFree_v2(0), 0);
        assert_eq!(cuMemAlloc_v2(&mut 0, 1 << 50), 2);
        assert_eq!(cuMemAlloc_v2(&mut 0, 0), 1);
        let fresh = allocate(8);
        assert_eq!(
            cuMemcpyDtoH_v2(pointer(&mut byte), fresh, 1),
            0,
            "nobody has written it, which is an error only if asked for"
        );
    }
}

#[test]
fn what_the_device_is() {
    let _alone = alone();
    let mut value = 0;
    // SAFETY: room for the results
    unsafe {
        assert_eq!(cuDeviceGetAttribute(&mut value, 75, 0), 0);
        assert_eq!(value, 9);
        assert_eq!(cuDeviceGetAttribute(&mut value, 75, 1), 101);
        assert_eq!(cuDeviceGetAttribute(&mut value, 100_000, 0), 1);
        assert_eq!(cuDeviceGet(&mut value, 1), 101);
        let mut name = [1i8; 6];
        assert_eq!(cuDeviceGetName(name.as_mut_ptr().cast(), 6, 0), 0);
        assert_eq!(&name, &[b'e', b'm', b'u', b'l', b'a', 0].map(|b| b as i8));
        let mut text = null();
        assert_eq!(cuGetErrorName(720, &mut text), 0);
        assert_eq!(std::ffi::CStr::from_ptr(text), c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE");
        assert_eq!(cuGetErrorName(123_456, &mut text), 1);
    }
}

#[test]
fn graphs() {
    let _alone = alone();
    let module = load(PTX).unwrap();
    let scale = function(module, "scale").unwrap();
    let (mut from, mut to, mut a, mut n) = (upload(&[1f32, 2.0]), upload(&[0f32; 2]), 3f32, 2u32);
    let mut arguments = [pointer(&mut from), pointer(&mut to), pointer(&mut a), pointer(&mut n)];
    let (mut stream, mut graph, mut executable, mut status, mut value) = (0, 0, 0, 0, 0f32);
    // SAFETY: room for the results
    unsafe {
        assert_eq!(cuStreamCreate(&mut stream, 0), 0);
        assert_eq!(cuStreamBeginCapture_v2(stream, 0), 0);
        assert_eq!(cuStreamIsCapturing(stream, &mut status), 0);
        assert_eq!(status, 1);
        assert_eq!(launch(scale, 1, 2, 0, stream, &mut arguments), 0);
        assert_eq!(cuStreamSynchronize(stream), 900, "nobody waits for a stream that is captured");
        assert_eq!(cuMemcpyDtoHAsync_v2(pointer(&mut value), to, 4, stream), 900);
        assert_eq!(cuStreamEndCapture(stream, &mut graph), 901, "and who does breaks the capture");
        assert_eq!(cuStreamBeginCapture_v2(stream, 0), 0);
        assert_eq!(launch(scale, 1, 2, 0, stream, &mut arguments), 0);
        assert_eq!(cuStreamEndCapture(stream, &mut graph), 0);
        assert_eq!(download::<f32>(to, 2), [0.0, 0.0], "captured, not run");
        a = 5.0;
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), 0);
        assert_eq!(cuGraphLaunch(executable, stream), 0);
        assert_eq!(download::<f32>(to, 2), [3.0, 6.0], "with the arguments it was captured with");
        assert_eq!(a, 5.0);
        assert_eq!(cuGraphExecDestroy(executable), 0);
        assert_eq!(cuGraphLaunch(executable, stream), 400);
        assert_eq!(cuStreamDestroy_v2(stream), 0);
        assert_eq!(cuStreamDestroy_v2(stream), 400);
    }
}

/// `CU_STREAM_PER_THREAD` is another stream in every thread: what one captures is not taken from another.
#[test]
fn a_threads_stream_is_its_own() {
    let _alone = alone();
    let capturing = || {
        let mut status = -1;
        // SAFETY: room for the result
        assert_eq!(unsafe { cuStreamIsCapturing(2, &mut status) }, 0);
        status
    };
    let mut graph = 0;
    // SAFETY: room for the result
    unsafe {
        assert_eq!(cuStreamBeginCapture_v2(2, 0), 0);
        let elsewhere = std::thread::spawn(capturing).join().unwrap();
        assert_eq!((capturing(), elsewhere), (1, 0));
        assert_eq!(cuStreamEndCapture(2, &mut graph), 0);
        assert_eq!(cuGraphDestroy(graph), 0);
    }
}

/// A launch whose allocations are still there from the launch before fails, unless it was told to free them.
#[test]
fn graphs_that_allocate() {
    let _alone = alone();
    for (flags, again) in [(0, 1), (1, 0)] {
        let (mut stream, mut graph, mut executable, mut kept, mut freed, mut value) = (0, 0, 0, 0, 0, 0f32);
        // SAFETY: room for the results
        unsafe {
            assert_eq!(cuStreamCreate(&mut stream, 0), 0);
            assert_eq!(cuStreamBeginCapture_v2(stream, 0), 0);
            assert_eq!(cuMemAllocAsync(&mut kept, 8, stream), 0);
            assert_eq!(cuMemAllocAsync(&mut freed, 8, stream), 0);
            assert_eq!(cuMemsetD8Async(freed, 0, 8, stream), 0);
            assert_eq!(cuMemcpyDtoDAsync_v2(kept, freed, 8, stream), 0);
            assert_eq!(cuMemFreeAsync(freed, stream), 0);
            assert_eq!(cuStreamEndCapture(stream, &mut graph), 0);
            assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, flags), 0);
            assert_eq!(cuGraphLaunch(executable, stream), 0);
            assert_eq!(cuMemcpyDtoH_v2(pointer(&mut value), kept, 4), 0);
            assert_eq!(value, 0.0);
            assert_eq!(cuGraphLaunch(executable, stream), again);
            assert_eq!(cuMemFreeAsync(kept, stream), 0);
            assert_eq!(cuGraphLaunch(executable, stream), 0);
            assert_eq!(cuMemFreeAsync(kept, stream), 0);
            assert_eq!(cuMemFreeAsync(freed, stream), 1, "the graph freed it");
        }
    }
}

/// C = α·op(A)·op(B) + β·C with leading dimensions beyond the matrices, against the definition.
#[test]
fn products_of_matrices() {
    let _alone = alone();
    let mut handle = 0;
    // SAFETY: room for the result
    assert_eq!(unsafe { cublasCreate_v2(&mut handle) }, 0);
    let (m, n, k) = (3usize, 4, 5);
    for (ta, tb) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let (rows_a, columns_a) = if ta == 0 { (m, k) } else { (k, m) };
        let (rows_b, columns_b) = if tb == 0 { (k, n) } else { (n, k) };
        let (lda, ldb, ldc) = (rows_a + 2, rows_b + 1, m + 3);
        let values =
            |count: usize, seed: usize| (0..count).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect::<Vec<_>>();
        let (a, b, c) = (values(2 * lda * columns_a, 1), values(2 * ldb * columns_b, 2), values(2 * ldc * n, 3));
        let (da, db, dc) = (upload(&a), upload(&b), upload(&c));
        let (alpha, beta) = (0.5f32, -2f32);
        let [sa, sb, sc] = [lda * columns_a, ldb * columns_b, ldc * n].map(|s| s as i64);
        // SAFETY: factors on the host, matrices on the device
        let status = unsafe {
            cublasSgemmStridedBatched(
                handle, ta, tb, m as i32, n as i32, k as i32, &alpha, da, lda as i32, sa, db, ldb as i32, sb, &beta,
                dc, ldc as i32, sc, 2,
            )
        };
        assert_eq!(status, 0);
        let out = download::<f32>(dc, c.len());
        for batch in 0..2 {
            let at = |v: &[f32], stride: usize, ld: usize, t: i32, i: usize, j: usize| {
                v[batch * stride + if t == 0 { i + j * ld } else { j + i * ld }]
            };
            for i in 0..m {
                for j in 0..n {
                    let sum: f32 = (0..k)
                        .map(|p| at(&a, lda * columns_a, lda, ta, i, p) * at(&b, ldb * columns_b, ldb, tb, p, j))
                        .sum();
                    let expected = 0.5 * sum - 2.0 * at(&c, ldc * n, ldc, 0, i, j);
                    assert_eq!(at(&out, ldc * n, ldc, 0, i, j), expected, "{ta} {tb} {i} {j}");
                }
            }
        }
    }
    // SAFETY: as above; a leading dimension below the rows, and a type that is not there
    unsafe {
        let one = 1f32;
        let p = (&one as *const f32).cast();
        let call = |ty, ld| cublasGemmEx(handle, 0, 0, 4, 4, 4, p, 0, ty, ld, 0, ty, 4, p, 0, ty, 4, 68, 0);
        assert_eq!(call(0, 3), 7);
        assert_eq!(call(8, 4), 15);
        assert_eq!(cublasDestroy_v2(handle), 0);
    }
}

#[test]
fn random_numbers() {
    let _alone = alone();
    let mut generator = 0;
    let at = allocate(8000);
    // SAFETY: room for the result
    unsafe {
        assert_eq!(curandCreateGenerator(&mut generator, 100), 0);
        assert_eq!(curandSetPseudoRandomGeneratorSeed(generator, 5), 0);
        assert_eq!(curandGenerateUniform(generator, at, 1000), 0);
        let first = download::<f32>(at, 1000);
        assert!(first.iter().all(|v| *v > 0.0 && *v <= 1.0));
        assert_eq!(curandSetPseudoRandomGeneratorSeed(generator, 5), 0);
        assert_eq!(curandGenerateUniform(generator, at, 1000), 0);
        assert_eq!(download::<f32>(at, 1000), first, "the seed decides");
        assert_eq!(curandGenerateNormalDouble(generator, at, 1000, 3.0, 0.5), 0);
        let normal = download::<f64>(at, 1000);
        let mean = normal.iter().sum::<f64>() / 1000.0;
        assert!((mean - 3.0).abs() < 0.1, "{mean}");
        assert_eq!(curandGenerateNormal(generator, at, 3, 0.0, 1.0), 104, "an odd number");
        assert_eq!(curandDestroyGenerator(generator), 0);
        assert_eq!(curandGenerateUniform(generator, at, 10), 101);
    }
}
