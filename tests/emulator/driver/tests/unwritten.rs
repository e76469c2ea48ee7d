//! Copies of what nobody has written, where that is to be an error. In a process of its own.
#![allow(missing_docs)]

use ptx_emulator_driver::cuda::*;
use ptx_emulator_driver::last_message;

#[test]
fn copies_of_what_nobody_has_written() {
    // SAFETY: the only thread that is here, before the device is made
    unsafe { std::env::set_var("PTX_EMULATOR_UNWRITTEN", "error") };
    let (mut half, mut other, mut bytes) = (0, 0, [0u8; 8]);
    let to = bytes.as_mut_ptr().cast();
    // SAFETY: room for the results
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut half, 8), 0);
        assert_eq!(cuMemAlloc_v2(&mut other, 8), 0);
        assert_eq!(cuMemsetD8_v2(half, 9, 4), 0);
        assert_eq!(cuMemcpyDtoH_v2(to, half, 4), 0);
        assert_eq!(bytes, [9, 9, 9, 9, 0, 0, 0, 0]);
        assert_eq!(cuMemcpyDtoH_v2(to, half, 8), 1);
        assert!(last_message().contains("never written"), "{}", last_message());
        // A copy of such bytes on the device is no error, and does not make them written.
        assert_eq!(cuMemcpyDtoD_v2(other, half, 8), 0);
        assert_eq!(cuMemcpyDtoH_v2(to, other, 4), 0);
        assert_eq!(cuMemcpyDtoH_v2(to, other, 8), 1);
    }
}
