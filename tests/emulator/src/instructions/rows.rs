//! Each instruction on its own: what the PTX ISA says it gives, worked out by hand or by the definition. No nvcc is needed.

use half::{bf16, f16};

use super::FAMILIES;
use crate::{Gpu, LaunchConfig};

/// The instruction on registers a, b, c of 16, 32 and 64 bits with a result d, the three operands, and the result.
pub(super) type Row = (&'static str, u64, u64, u64, u64);

/// A module with a kernel for each row.
pub(super) fn module(rows: &[Row]) -> String {
    let mut text = String::from(".version 8.0\n.target sm_90\n.address_size 64\n");
    for (i, (instruction, ..)) in rows.iter().enumerate() {
        text += &format!(
            ".visible .entry k{i}(.param .u64 in, .param .u64 out) {{
                .reg .b16 a16, b16, c16, d16, e16; .reg .b32 a32, b32, c32, d32, e32, f32; .reg .b64 a64, b64, c64, d64, i, o;
                .reg .pred p, q, r;
                ld.param.u64 i, [in]; ld.param.u64 o, [out];
                ld.global.u64 a64, [i]; ld.global.u64 b64, [i+8]; ld.global.u64 c64, [i+16];
                cvt.u32.u64 a32, a64; cvt.u32.u64 b32, b64; cvt.u32.u64 c32, c64;
                cvt.u16.u64 a16, a64; cvt.u16.u64 b16, b64; cvt.u16.u64 c16, c64;
                mov.b16 d16, 0; mov.b32 d32, 0; mov.b64 d64, 0;
                {instruction};
                st.global.u64 [o], d64; st.global.u32 [o+8], d32; st.global.u16 [o+16], d16;
                ret;
            }}\n"
        );
    }
    text
}

/// The bits of an f32, of an f64, of halves.
pub(super) fn f(v: f32) -> u64 {
    u64::from(v.to_bits())
}
pub(super) fn d(v: f64) -> u64 {
    v.to_bits()
}
pub(super) fn h(v: f64) -> u64 {
    u64::from(f16::from_f64(v).to_bits())
}
pub(super) fn b(v: f64) -> u64 {
    u64::from(bf16::from_f64(v).to_bits())
}
/// A signed 32-bit and 16-bit number.
pub(super) fn s(v: i32) -> u64 {
    u64::from(v as u32)
}
pub(super) fn t(v: i16) -> u64 {
    u64::from(v as u16)
}
/// Two halves.
pub(super) fn two(low: u64, high: u64) -> u64 {
    high << 16 | low
}
pub(super) const INF: f32 = f32::INFINITY;
pub(super) const NAN: f32 = f32::NAN;

#[test]
fn every_row() {
    let rows: Vec<Row> = FAMILIES.iter().flat_map(|family| (family.rows)()).collect();
    let gpu = Gpu::new(&module(&rows)).unwrap();
    let mut wrong = Vec::new();
    for (i, &(instruction, a, b, c, expected)) in rows.iter().enumerate() {
        let (from, to) = (gpu.upload(&[a, b, c]), gpu.allocate(24));
        let ran = gpu.launch(&format!("k{i}"), LaunchConfig::default(), &[&from.to_le_bytes(), &to.to_le_bytes()]);
        if let Err(error) = ran {
            wrong.push(error.to_string());
            continue;
        }
        let found = match instruction {
            text if text.contains("d64") => gpu.download::<u64>(to, 1).unwrap()[0],
            text if text.contains("d32") => u64::from(gpu.download::<u32>(to + 8, 1).unwrap()[0]),
            _ => u64::from(gpu.download::<u16>(to + 16, 1).unwrap()[0]),
        };
        if found != expected {
            wrong.push(format!("{instruction} of {a:#x}, {b:#x}, {c:#x} gave {found:#x}, not {expected:#x}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
