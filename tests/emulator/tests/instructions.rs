//! Text that is not PTX, or not known. The instructions themselves are tested in `src/instructions/`, where their tables of rows are.
#![allow(missing_docs)]

use ptx_emulator::{Error, FaultKind, Gpu, LaunchConfig};

/// A kernel of one instruction.
fn module(instruction: &str) -> String {
    format!(
        ".version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 in, .param .u64 out) {{
    .reg .b32 a32, b32, c32, d32; .reg .b64 i, o;
    ld.param.u64 i, [in]; ld.param.u64 o, [out];
    ld.global.u32 a32, [i]; ld.global.u32 b32, [i+8]; ld.global.u32 c32, [i+16];
    mov.b32 d32, 0;
    {instruction};
    st.global.u32 [o], d32;
    ret;
}}
"
    )
}

/// What is not known is an error that names it; what is not PTX is one that names the line; nothing panics.
#[test]
fn what_is_not_known() {
    for odd in [
        "frobnicate.u32 d32, a32",
        "add.frob.u32 d32, a32, b32",
        "mul.u32 d32, a32, b32",
        "prmt.b32.xyz d32, a32, b32, c32",
    ] {
        let gpu = Gpu::new(&module(odd)).unwrap();
        let (from, to) = (gpu.upload(&[0u64; 3]), gpu.allocate(24));
        match gpu.launch("k", LaunchConfig::default(), &[&from.to_le_bytes(), &to.to_le_bytes()]) {
            Err(Error::Fault(fault)) => {
                assert_eq!(fault.kind, FaultKind::Unsupported);
                let text = fault.to_string();
                assert!(text.contains(odd.split(' ').next().unwrap()) && text.contains("PTX line 9"), "{text}");
            }
            other => panic!("{odd}: {other:?}"),
        }
    }
    let whole = module("add.s32 d32, a32, b32; bfi.b32 d32, a32, b32, 8, 4");
    let mut state = 7u64;
    for _ in 0..20_000 {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let mut text = whole.clone().into_bytes();
        let at = (state >> 33) as usize % text.len();
        match state >> 60 & 3 {
            0 => text.truncate(at),
            1 => text[at] = (state >> 40) as u8 & 0x7f,
            2 => drop(text.drain(at..(at + 9).min(whole.len()))),
            _ => text.insert(at, b"{}[];,.@%0xf"[(state >> 50) as usize % 12]),
        }
        let Ok(text) = String::from_utf8(text) else { continue };
        if let Ok(gpu) = Gpu::new(&text) {
            let (from, to) = (gpu.upload(&[0u64; 3]), gpu.allocate(24));
            let limits = ptx_emulator::Limits { instructions: 1 << 12, ..gpu.limits };
            let gpu = Gpu { limits, ..gpu };
            let _ = gpu.launch("k", LaunchConfig::default(), &[&from.to_le_bytes(), &to.to_le_bytes()]);
        }
    }
}
