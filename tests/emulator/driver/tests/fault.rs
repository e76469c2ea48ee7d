//! A kernel's fault: the launch is told by what waits for it, and so does everything after it fail, but for giving things back. In a process of its own.
#![allow(missing_docs)]

use std::ffi::c_void;
use std::ptr::null_mut;

use ptx_emulator_driver::cuda::*;
use ptx_emulator_driver::last_message;

/// Writes one word past an allocation of `n`.
const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry beyond(.param .u64 x)
{
    .reg .b32 %r<3>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [x];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r1;
    ret;
}
\0";

#[test]
fn faults_stay_and_are_counted() {
    let counters = std::env::temp_dir().join(format!("ptx-emulator-counters-{}.json", std::process::id()));
    // SAFETY: the only thread that is here, before the device is made
    unsafe { std::env::set_var("PTX_EMULATOR_COUNTERS", &counters) };
    let (mut module, mut function, mut x) = (0, 0, 0u64);
    // SAFETY: room for the results, one argument for the one parameter
    unsafe {
        assert_eq!(cuModuleLoadData(&mut module, PTX.as_ptr().cast()), 0);
        assert_eq!(cuModuleGetFunction(&mut function, module, c"beyond".as_ptr()), 0);
        assert_eq!(cuMemAlloc_v2(&mut x, 128), 0);
        let mut arguments = [(&mut x as *mut u64).cast::<c_void>()];
        let mut launch =
            |threads| cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, 0, 0, arguments.as_mut_ptr(), null_mut());
        assert_eq!(launch(32), 0);
        assert_eq!(launch(33), 0, "it has not run yet");
        assert_eq!(cuCtxSynchronize(), 700);
        let message = last_message();
        assert!(
            message.contains("out of bounds") && message.contains("kernel beyond, block (0, 0, 0), thread (32, 0, 0)"),
            "{message}"
        );
        assert_eq!(launch(32), 700);
        assert_eq!(cuCtxSynchronize(), 700);
        assert_eq!(cuMemAlloc_v2(&mut 0, 4), 700);
        assert_eq!(last_message(), message, "the first report stays");
        assert_eq!(cuMemFree_v2(x), 0);
        assert_eq!(cuModuleUnload(module), 0);
    }
    let lines = std::fs::read_to_string(&counters).unwrap();
    let _ = std::fs::remove_file(&counters);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "the launch that ran");
    assert_eq!(lines[0]["kernel"], "beyond");
    assert_eq!(lines[0]["global_written"], 128);
    assert_eq!(lines[0]["distinct_written"], 4);
    assert_eq!(lines[0]["peak_memory"], 128);
    assert_eq!(lines[0]["block"], serde_json::json!([32, 1, 1]));
}
