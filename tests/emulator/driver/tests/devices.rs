//! Two devices: a context, streams, memory and modules of each, which the other cannot use. In a process of its own.
#![allow(missing_docs)]

use std::ptr::null_mut;

use ptx_emulator_driver::cuda::*;
use ptx_emulator_driver::last_message;

const TEXT: &std::ffi::CStr =
    c".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry store(.param .u64 to) {\n\
    .reg .b64 %rd<3>;\nld.param.u64 %rd1, [to];\ncvta.to.global.u64 %rd2, %rd1;\nst.global.u32 [%rd2], 7;\nret; }\n";

#[test]
fn each_device_has_its_own() {
    // SAFETY: the only thread that is here, before the devices are made
    unsafe { std::env::set_var("PTX_EMULATOR_DEVICES", "2") };
    let (mut count, mut contexts, mut current) = (0, [0; 2], 99);
    let (mut streams, mut memory, mut functions, mut events) = ([0; 2], [0; 2], [0; 2], [0; 2]);
    let mut value = 0u32;
    // SAFETY: strings that end with NUL, room for the results, arguments of the kernel's sizes
    unsafe {
        assert_eq!(cuDeviceGetCount(&mut count), 0);
        assert_eq!(count, 2);
        assert_eq!(cuDeviceGet(&mut count, 2), 101);
        // No context is the thread's before it sets one.
        assert_eq!(cuCtxGetCurrent(&mut current), 0);
        assert_eq!((current, cuMemAlloc_v2(&mut memory[0], 8)), (0, 201));
        assert_eq!(cuCtxSetCurrent(5), 201);
        for device in 0..2 {
            let mut module = 0;
            assert_eq!(cuDevicePrimaryCtxRetain(&mut contexts[device], device as i32), 0);
            assert_eq!(cuCtxSetCurrent(contexts[device]), 0);
            assert_eq!(cuCtxGetDevice(&mut count), 0);
            assert_eq!(count, device as i32);
            assert_eq!(cuStreamCreate(&mut streams[device], 1), 0);
            assert_eq!(cuEventCreate(&mut events[device], 0), 0);
            assert_eq!(cuMemAlloc_v2(&mut memory[device], 4), 0);
            assert_eq!(cuModuleLoadData(&mut module, TEXT.as_ptr().cast()), 0);
            assert_eq!(cuModuleGetFunction(&mut functions[device], module, c"store".as_ptr()), 0);
        }
        assert!(contexts[0] != contexts[1] && memory[0] != memory[1]);

        // The second's context is this thread's.
        let launch = |function, stream, to: &u64| {
            let mut arguments = [(to as *const u64).cast_mut().cast()];
            cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments.as_mut_ptr(), null_mut())
        };
        assert_eq!(launch(functions[1], streams[1], &memory[1]), 0);
        assert_eq!(launch(functions[0], streams[1], &memory[1]), 400, "another device's kernel");
        assert_eq!(launch(functions[1], streams[0], &memory[1]), 400, "another device's stream");
        assert!(last_message().contains("device 0"), "{}", last_message());
        assert_eq!(cuEventRecord(events[0], streams[1]), 400, "another device's event");

        // To wait for another device's event is what orders two devices.
        assert_eq!(cuEventRecord(events[1], streams[1]), 0);
        assert_eq!(cuCtxSetCurrent(contexts[0]), 0);
        assert_eq!(cuStreamWaitEvent(streams[0], events[1], 0), 0);
        assert_eq!(cuMemcpyPeerAsync(memory[0], contexts[0], memory[1], contexts[1], 4, streams[0]), 0);
        assert_eq!(cuStreamSynchronize(streams[0]), 0);
        assert_eq!(cuMemcpyDtoH_v2((&raw mut value).cast(), memory[0], 4), 0);
        assert_eq!(value, 7);

        // What waits on one device is not what the other waits for.
        let (mut waited, mut trials) = (0, 0);
        while waited == 0 && trials < 100 {
            assert_eq!(cuCtxSetCurrent(contexts[0]), 0);
            for _ in 0..8 {
                assert_eq!(cuMemsetD8Async(memory[0], trials, 4, streams[0]), 0);
            }
            assert_eq!(cuCtxSetCurrent(contexts[1]), 0);
            assert_eq!(cuCtxSynchronize(), 0);
            waited += u32::from(cuStreamQuery(streams[0]) == 600);
            trials += 1;
        }
        assert!(waited > 0);
        assert_eq!(cuCtxSetCurrent(contexts[0]), 0);
        assert_eq!(cuCtxSynchronize(), 0);
        assert_eq!(cuStreamQuery(streams[0]), 0);

        // Another device's memory is not there for a kernel: a fault of the device that ran it, and of no other.
        let mut can = 9;
        assert_eq!(cuDeviceCanAccessPeer(&mut can, 0, 1), 0);
        assert_eq!((can, cuCtxEnablePeerAccess(contexts[1], 0)), (0, 217));
        assert_eq!(launch(functions[0], streams[0], &memory[1]), 0);
        assert_eq!(cuStreamSynchronize(streams[0]), 700);
        assert_eq!(cuCtxSetCurrent(contexts[1]), 0);
        assert_eq!(cuMemcpyDtoH_v2((&raw mut value).cast(), memory[1], 4), 0);
    }
}
