//! A device that refuses cooperative launches, as one that others use, too. In a process of its own.
#![allow(missing_docs)]

use std::ptr::null_mut;

use ptx_emulator_driver::cuda::*;

#[test]
fn cooperative_launches_are_refused() {
    // SAFETY: the only thread that is here, before the device is made
    unsafe { std::env::set_var("PTX_EMULATOR_COOPERATIVE", "refuse") };
    let text = c".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n";
    let (mut module, mut function) = (0, 0);
    // SAFETY: strings that end with NUL, room for the results, no arguments
    unsafe {
        assert_eq!(cuModuleLoadData(&mut module, text.as_ptr().cast()), 0);
        assert_eq!(cuModuleGetFunction(&mut function, module, c"nothing".as_ptr()), 0);
        assert_eq!(cuLaunchCooperativeKernel(function, 1, 1, 1, 32, 1, 1, 0, 0, null_mut()), 720);
        assert_eq!(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, 0, null_mut(), null_mut()), 0);
        assert_eq!(cuCtxSynchronize(), 0);
    }
}
