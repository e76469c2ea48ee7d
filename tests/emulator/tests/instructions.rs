//! Each instruction on its own: what the PTX ISA says it gives, worked out by hand or by the definition. No nvcc is needed.
//!
//! A row is the instruction on registers a, b, c of 16, 32 and 64 bits with a result d, the three operands, and the result.
#![allow(missing_docs)]

use half::{bf16, f16};
use ptx_emulator::{Error, FaultKind, Gpu, LaunchConfig};

type Row = (&'static str, u64, u64, u64, u64);

/// A module with a kernel for each row.
fn module(rows: &[Row]) -> String {
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

fn check(rows: &[Row]) {
    let gpu = Gpu::new(&module(rows)).unwrap();
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

/// The bits of an f32, of an f64, of halves.
fn f(v: f32) -> u64 {
    u64::from(v.to_bits())
}
fn d(v: f64) -> u64 {
    v.to_bits()
}
fn h(v: f64) -> u64 {
    u64::from(f16::from_f64(v).to_bits())
}
fn b(v: f64) -> u64 {
    u64::from(bf16::from_f64(v).to_bits())
}
/// A signed 32-bit and 16-bit number.
fn s(v: i32) -> u64 {
    u64::from(v as u32)
}
fn t(v: i16) -> u64 {
    u64::from(v as u16)
}
const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

#[test]
fn integers() {
    check(&[
        ("add.s32 d32, a32, b32", s(i32::MAX), 1, 0, s(i32::MIN)),
        ("add.sat.s32 d32, a32, b32", s(i32::MAX), 1, 0, s(i32::MAX)),
        ("add.u16 d16, a16, b16", 0xffff, 2, 0, 1),
        ("add.u64 d64, a64, b64", u64::MAX, 2, 0, 1),
        ("sub.s32 d32, a32, b32", 3, 5, 0, s(-2)),
        ("sub.sat.s32 d32, a32, b32", s(i32::MIN), 1, 0, s(i32::MIN)),
        ("sub.s64 d64, a64, b64", 0, 1, 0, u64::MAX),
        ("mul.lo.u32 d32, a32, b32", 0x1_0001, 0x1_0001, 0, 0x2_0001),
        ("mul.hi.u32 d32, a32, b32", 0xffff_ffff, 0xffff_ffff, 0, 0xffff_fffe),
        ("mul.hi.s32 d32, a32, b32", s(-1), s(5), 0, s(-1)),
        ("mul.wide.s32 d64, a32, b32", s(-3), s(7), 0, -21i64 as u64),
        ("mul.wide.u32 d64, a32, b32", s(-1), 2, 0, 0x1_ffff_fffe),
        ("mul.wide.s16 d32, a16, b16", t(-3), t(300), 0, s(-900)),
        ("mul.wide.u16 d32, a16, b16", 0xffff, 0xffff, 0, 0xfffe_0001),
        ("mul.hi.u64 d64, a64, b64", 1 << 63, 6, 0, 3),
        ("mul.hi.s64 d64, a64, b64", -1i64 as u64, 6, 0, u64::MAX),
        ("mul.lo.s16 d16, a16, b16", 300, 300, 0, 90_000 & 0xffff),
        ("mad.lo.s32 d32, a32, b32, c32", 7, s(-3), 1, s(-20)),
        ("mad.hi.u32 d32, a32, b32, c32", 1 << 31, 4, 5, 7),
        ("mad.hi.s32 d32, a32, b32, c32", s(i32::MIN), 4, 5, 3),
        ("mad.wide.u32 d64, a32, b32, c64", s(-1), s(-1), 1, 0xffff_fffe_0000_0002),
        ("mad.wide.s32 d64, a32, b32, c64", s(-1), s(5), 3, -2i64 as u64),
        ("mad.lo.s64 d64, a64, b64, c64", 1 << 40, 1 << 30, 9, 9),
        ("sad.u32 d32, a32, b32, c32", 3, 10, 100, 107),
        ("sad.s32 d32, a32, b32, c32", s(-3), 10, 100, 113),
        ("div.s32 d32, a32, b32", s(-7), 2, 0, s(-3)),
        ("div.u32 d32, a32, b32", 7, 2, 0, 3),
        ("div.s64 d64, a64, b64", -7i64 as u64, 2, 0, -3i64 as u64),
        ("rem.s32 d32, a32, b32", s(-7), 3, 0, s(-1)),
        ("rem.u64 d64, a64, b64", 7, 4, 0, 3),
        ("abs.s32 d32, a32", s(-9), 0, 0, 9),
        ("abs.s64 d64, a64", -9i64 as u64, 0, 0, 9),
        ("neg.s32 d32, a32", 9, 0, 0, s(-9)),
        ("neg.s16 d16, a16", 9, 0, 0, t(-9)),
        ("min.s32 d32, a32, b32", s(-1), 1, 0, s(-1)),
        ("min.u32 d32, a32, b32", s(-1), 1, 0, 1),
        ("max.s64 d64, a64, b64", -1i64 as u64, 1, 0, 1),
        ("max.u16 d16, a16, b16", 0xffff, 1, 0, 0xffff),
        ("max.s16 d16, a16, b16", 0xffff, 1, 0, 1),
    ]);
}

#[test]
fn bits() {
    check(&[
        ("and.b32 d32, a32, b32", 0xff00, 0x0ff0, 0, 0x0f00),
        ("or.b64 d64, a64, b64", 1 << 63, 1, 0, 1 << 63 | 1),
        ("xor.b16 d16, a16, b16", 0xffff, 0x00ff, 0, 0xff00),
        ("not.b32 d32, a32", 0xf0f0_f0f0, 0, 0, 0x0f0f_0f0f),
        ("not.b16 d16, a16", 0xf0f0, 0, 0, 0x0f0f),
        ("cnot.b32 d32, a32", 0, 0, 0, 1),
        ("shl.b32 d32, a32, b32", 1, 31, 0, 1 << 31),
        ("shl.b32 d32, a32, b32", 1, 32, 0, 0),
        ("shl.b64 d64, a64, b32", 1, 63, 0, 1 << 63),
        ("shl.b16 d16, a16, b32", 0x8001, 1, 0, 2),
        ("shr.u32 d32, a32, b32", s(-1), 31, 0, 1),
        ("shr.s32 d32, a32, b32", s(i32::MIN), 40, 0, s(-1)),
        ("shr.u64 d64, a64, b32", u64::MAX, 64, 0, 0),
        ("shr.s64 d64, a64, b32", 1 << 63, 63, 0, u64::MAX),
        ("shr.s16 d16, a16, b32", 0x8000, 15, 0, 0xffff),
        ("shf.l.wrap.b32 d32, a32, b32, c32", 0x8000_0001, 0xff, 4, 0xff8),
        ("shf.r.wrap.b32 d32, a32, b32, c32", 0x8000_0001, 0xff, 36, 0xf800_0000),
        ("shf.l.clamp.b32 d32, a32, b32, c32", 0x8000_0001, 0xff, 40, 0x8000_0001),
        ("shf.r.clamp.b32 d32, a32, b32, c32", 1, 0xff, 40, 0xff),
        ("popc.b32 d32, a32", 0xf0f0_0001, 0, 0, 9),
        ("popc.b64 d32, a64", u64::MAX, 0, 0, 64),
        ("clz.b32 d32, a32", 1, 0, 0, 31),
        ("clz.b32 d32, a32", 0, 0, 0, 32),
        ("clz.b64 d32, a64", 1 << 40, 0, 0, 23),
        ("brev.b32 d32, a32", 1, 0, 0, 1 << 31),
        ("brev.b64 d64, a64", 3, 0, 0, 3 << 62),
        ("bfind.u32 d32, a32", 0x80, 0, 0, 7),
        ("bfind.u32 d32, a32", 0, 0, 0, s(-1)),
        ("bfind.s32 d32, a32", s(-1), 0, 0, s(-1)),
        ("bfind.s32 d32, a32", s(-5), 0, 0, 2),
        ("bfind.shiftamt.u32 d32, a32", 0x80, 0, 0, 24),
        ("bfind.u64 d32, a64", 1 << 40, 0, 0, 40),
        ("bfe.u32 d32, a32, b32, c32", 0x0000_0f00, 8, 4, 0xf),
        ("bfe.s32 d32, a32, b32, c32", 0x0000_0f00, 8, 4, s(-1)),
        ("bfe.s32 d32, a32, b32, c32", 0x8000_0000, 28, 8, s(-8)),
        ("bfe.u64 d64, a64, b32, c32", u64::MAX, 60, 8, 0xf),
        ("bfi.b32 d32, a32, b32, 8, 4", 0xfff, 0, 0, 0xf00),
        ("bfi.b64 d64, a64, b64, 32, 32", 5, 7, 0, 5 << 32 | 7),
        ("prmt.b32 d32, a32, b32, c32", 0x3322_1100, 0x7766_5544, 0x7531, 0x7755_3311),
        ("prmt.b32 d32, a32, b32, c32", 0x80, 0x7f00, 0xd888, 0x00ff_ffff),
        ("prmt.b32.f4e d32, a32, b32, c32", 0x3322_1100, 0x7766_5544, 1, 0x4433_2211),
        ("prmt.b32.b4e d32, a32, b32, c32", 0x3322_1100, 0x7766_5544, 1, 0x6677_0011),
        ("prmt.b32.rc8 d32, a32, b32, c32", 0x3322_1100, 0, 2, 0x2222_2222),
        ("prmt.b32.ecl d32, a32, b32, c32", 0x3322_1100, 0, 1, 0x3322_1111),
        ("prmt.b32.ecr d32, a32, b32, c32", 0x3322_1100, 0, 2, 0x2222_1100),
        ("prmt.b32.rc16 d32, a32, b32, c32", 0x3322_1100, 0, 1, 0x3322_3322),
        // Bit i of the table is the result where a, b and c have the bits of i, a's the highest.
        ("lop3.b32 d32, a32, b32, c32, 0x80", 0xf0, 0xcc, 0xaa, 0x80),
        ("lop3.b32 d32, a32, b32, c32, 0x96", 0xf0, 0xcc, 0xaa, 0x96),
        ("lop3.b32 d32, a32, b32, c32, 0xca", 0xf0, 0xcc, 0xaa, 0xca),
        ("mov.b64 d64, {a32, b32}", 1, 2, 0, 2 << 32 | 1),
        ("mov.b32 d32, {a16, b16}", 0x1234, 0x5678, 0, 0x5678_1234),
        ("mov.b64 {d32, e32}, a64", 5 << 32 | 9, 0, 0, 9),
        ("mov.b64 {e32, d32}, a64", 5 << 32 | 9, 0, 0, 5),
        ("mov.b32 {e16, d16}, a32", 0x5678_1234, 0, 0, 0x5678),
    ]);
}

#[test]
fn single_precision() {
    let (tiny, sub) = (2f32.powi(-60), f32::from_bits(1));
    check(&[
        ("add.f32 d32, a32, b32", f(1.0), f(2f32.powi(-24)), 0, f(1.0)),
        ("add.rp.f32 d32, a32, b32", f(1.0), f(tiny), 0, f(1.0f32.next_up())),
        ("add.rm.f32 d32, a32, b32", f(1.0), f(-tiny), 0, f(1.0f32.next_down())),
        ("add.rz.f32 d32, a32, b32", f(-1.0), f(tiny), 0, f((-1.0f32).next_up())),
        ("add.rm.f32 d32, a32, b32", f(1.0), f(-1.0), 0, f(-0.0)),
        ("add.rn.f32 d32, a32, b32", f(1.0), f(-1.0), 0, f(0.0)),
        ("add.rz.f32 d32, a32, b32", f(f32::MAX), f(f32::MAX), 0, f(f32::MAX)),
        ("add.f32 d32, a32, b32", f(f32::MAX), f(f32::MAX), 0, f(INF)),
        ("add.ftz.f32 d32, a32, b32", f(sub), f(sub), 0, f(0.0)),
        ("add.f32 d32, a32, b32", f(sub), f(sub), 0, 2),
        ("add.sat.f32 d32, a32, b32", f(1.5), f(1.0), 0, f(1.0)),
        ("add.sat.f32 d32, a32, b32", f(NAN), f(1.0), 0, f(0.0)),
        ("sub.f32 d32, a32, b32", f(1.0), f(3.0), 0, f(-2.0)),
        ("mul.f32 d32, a32, b32", f(3.0), f(-0.5), 0, f(-1.5)),
        ("mul.rz.f32 d32, a32, b32", f(1.0f32.next_up()), f(1.0f32.next_up()), 0, f(1.0f32.next_up().next_up())),
        (
            "mul.rp.f32 d32, a32, b32",
            f(1.0f32.next_up()),
            f(1.0f32.next_up()),
            0,
            f(1.0f32.next_up().next_up().next_up()),
        ),
        ("mul.ftz.f32 d32, a32, b32", f(2f32.powi(-100)), f(2f32.powi(-40)), 0, f(0.0)),
        ("mul.rm.f32 d32, a32, b32", f(0.0), f(-1.0), 0, f(-0.0)),
        (
            "fma.rn.f32 d32, a32, b32, c32",
            f(1.0f32.next_up()),
            f(1.0f32.next_up()),
            f(-1.0),
            f(2f32.powi(-22) + 2f32.powi(-46)),
        ),
        ("fma.rz.f32 d32, a32, b32, c32", f(1.0), f(1.0), f(-tiny), f(1.0f32.next_down())),
        ("fma.rp.f32 d32, a32, b32, c32", f(1.0), f(1.0), f(tiny), f(1.0f32.next_up())),
        ("fma.rn.f32 d32, a32, b32, c32", f(INF), f(0.0), f(1.0), 0x7fff_ffff),
        ("div.rn.f32 d32, a32, b32", f(1.0), f(3.0), 0, f(1.0 / 3.0)),
        ("div.full.f32 d32, a32, b32", f(6.0), f(3.0), 0, f(2.0)),
        ("div.rn.f32 d32, a32, b32", f(1.0), f(-0.0), 0, f(-INF)),
        ("rcp.rn.f32 d32, a32", f(4.0), 0, 0, f(0.25)),
        ("rcp.approx.ftz.f32 d32, a32", f(sub), 0, 0, f(INF)),
        ("sqrt.rn.f32 d32, a32", f(2.0), 0, 0, f(2f32.sqrt())),
        ("sqrt.rn.f32 d32, a32", f(-0.0), 0, 0, f(-0.0)),
        ("rsqrt.approx.f32 d32, a32", f(0.25), 0, 0, f(2.0)),
        ("rsqrt.approx.f32 d32, a32", f(0.0), 0, 0, f(INF)),
        ("ex2.approx.f32 d32, a32", f(-3.0), 0, 0, f(0.125)),
        ("ex2.approx.f32 d32, a32", f(-INF), 0, 0, f(0.0)),
        ("lg2.approx.f32 d32, a32", f(8.0), 0, 0, f(3.0)),
        ("lg2.approx.f32 d32, a32", f(0.0), 0, 0, f(-INF)),
        ("sin.approx.f32 d32, a32", f(0.0), 0, 0, f(0.0)),
        ("cos.approx.f32 d32, a32", f(0.0), 0, 0, f(1.0)),
        ("tanh.approx.f32 d32, a32", f(INF), 0, 0, f(1.0)),
        ("min.f32 d32, a32, b32", f(NAN), f(2.0), 0, f(2.0)),
        ("min.f32 d32, a32, b32", f(0.0), f(-0.0), 0, f(-0.0)),
        ("max.f32 d32, a32, b32", f(-0.0), f(0.0), 0, f(0.0)),
        ("max.NaN.f32 d32, a32, b32", f(NAN), f(2.0), 0, 0x7fff_ffff),
        ("min.NaN.f32 d32, a32, b32", f(1.0), f(2.0), 0, f(1.0)),
        ("abs.f32 d32, a32", f(-2.5), 0, 0, f(2.5)),
        ("neg.f32 d32, a32", f(0.0), 0, 0, f(-0.0)),
        ("copysign.f32 d32, a32, b32", f(-1.0), f(5.0), 0, f(-5.0)),
    ]);
}

/// The largest relative (for sine, cosine and tanh absolute) errors that the ISA names, at most 2⁻²⁰ where it names none.
#[test]
fn approximations() {
    type Function = (&'static str, f64, fn(f64) -> f64);
    let functions: [Function; 8] = [
        ("ex2.approx.f32 d32, a32", 2f64.powi(-22), f64::exp2),
        ("lg2.approx.f32 d32, a32", 2f64.powi(-20), f64::log2),
        ("rcp.approx.f32 d32, a32", 2f64.powi(-23), f64::recip),
        ("sqrt.approx.f32 d32, a32", 2f64.powi(-23), f64::sqrt),
        ("rsqrt.approx.f32 d32, a32", 2f64.powi(-22), |v| 1.0 / v.sqrt()),
        ("sin.approx.f32 d32, a32", 2f64.powi(-20), f64::sin),
        ("cos.approx.f32 d32, a32", 2f64.powi(-20), f64::cos),
        ("tanh.approx.f32 d32, a32", 2f64.powi(-10), f64::tanh),
    ];
    let gpu = Gpu::new(&module(&functions.map(|(instruction, ..)| (instruction, 0, 0, 0, 0)))).unwrap();
    for (k, (instruction, error, exact)) in functions.into_iter().enumerate() {
        for i in 1..60u32 {
            let x = (i as f32 * 0.37).sin().abs() * 3.0 + 0.001 * i as f32;
            let (from, to) = (gpu.upload(&[f(x), 0, 0]), gpu.allocate(24));
            let parameters = [&from.to_le_bytes()[..], &to.to_le_bytes()];
            gpu.launch(&format!("k{k}"), LaunchConfig::default(), &parameters).unwrap();
            let (found, exact) = (f64::from(gpu.download::<f32>(to + 8, 1).unwrap()[0]), exact(f64::from(x)));
            assert!(
                (found - exact).abs() <= error * exact.abs().max(1.0),
                "{instruction} of {x}: {found}, not {exact}"
            );
        }
    }
}

#[test]
fn double_precision() {
    let tiny = 2f64.powi(-100);
    check(&[
        ("add.f64 d64, a64, b64", d(1.0), d(tiny), 0, d(1.0)),
        ("add.rp.f64 d64, a64, b64", d(1.0), d(tiny), 0, d(1.0f64.next_up())),
        ("add.rm.f64 d64, a64, b64", d(1.0), d(-tiny), 0, d(1.0f64.next_down())),
        ("add.rz.f64 d64, a64, b64", d(-1.0), d(tiny), 0, d((-1.0f64).next_up())),
        ("sub.rn.f64 d64, a64, b64", d(1.0), d(3.0), 0, d(-2.0)),
        ("mul.rz.f64 d64, a64, b64", d(1.0f64.next_up()), d(1.0f64.next_up()), 0, d(1.0f64.next_up().next_up())),
        (
            "mul.rp.f64 d64, a64, b64",
            d(1.0f64.next_up()),
            d(1.0f64.next_up()),
            0,
            d(1.0f64.next_up().next_up().next_up()),
        ),
        (
            "fma.rn.f64 d64, a64, b64, c64",
            d(1.0f64.next_up()),
            d(1.0f64.next_up()),
            d(-1.0),
            d(2f64.powi(-51) + 2f64.powi(-104)),
        ),
        ("fma.rm.f64 d64, a64, b64, c64", d(1.0), d(1.0), d(-tiny), d(1.0f64.next_down())),
        ("div.rn.f64 d64, a64, b64", d(1.0), d(3.0), 0, d(1.0 / 3.0)),
        ("rcp.rn.f64 d64, a64", d(3.0), 0, 0, d(1.0 / 3.0)),
        ("sqrt.rn.f64 d64, a64", d(2.0), 0, 0, d(2f64.sqrt())),
        ("min.f64 d64, a64, b64", d(f64::NAN), d(2.0), 0, d(2.0)),
        ("max.f64 d64, a64, b64", d(-0.0), d(0.0), 0, d(0.0)),
        ("abs.f64 d64, a64", d(-2.5), 0, 0, d(2.5)),
        ("neg.f64 d64, a64", d(0.0), 0, 0, d(-0.0)),
        ("copysign.f64 d64, a64, b64", d(-1.0), d(5.0), 0, d(-5.0)),
    ]);
}

#[test]
fn halves() {
    let two = |low: u64, high: u64| high << 16 | low;
    check(&[
        ("add.f16 d16, a16, b16", h(2048.0), h(1.0), 0, h(2048.0)),
        ("add.f16 d16, a16, b16", h(2048.0), h(3.0), 0, h(2052.0)),
        ("add.rn.f16 d16, a16, b16", h(65504.0), h(16.0), 0, h(f64::INFINITY)),
        ("add.f16x2 d32, a32, b32", two(h(1.0), h(2.0)), two(h(0.5), h(-1.0)), 0, two(h(1.5), h(1.0))),
        ("add.sat.f16 d16, a16, b16", h(0.75), h(0.5), 0, h(1.0)),
        ("sub.f16 d16, a16, b16", h(1.0), h(3.0), 0, h(-2.0)),
        ("mul.f16x2 d32, a32, b32", two(h(3.0), h(-2.0)), two(h(0.5), h(4.0)), 0, two(h(1.5), h(-8.0))),
        ("fma.rn.f16 d16, a16, b16, c16", h(256.0), h(256.0), h(-65504.0), h(32.0)),
        ("fma.rn.relu.f16 d16, a16, b16, c16", h(1.0), h(1.0), h(-3.0), 0),
        (
            "fma.rn.f16x2 d32, a32, b32, c32",
            two(h(2.0), h(3.0)),
            two(h(2.0), h(3.0)),
            two(h(1.0), h(1.0)),
            two(h(5.0), h(10.0)),
        ),
        ("fma.rn.bf16 d16, a16, b16, c16", b(256.0), b(2.0), b(1.0), b(512.0)),
        (
            "fma.rn.bf16x2 d32, a32, b32, c32",
            two(b(2.0), b(3.0)),
            two(b(2.0), b(3.0)),
            two(b(1.0), b(1.0)),
            two(b(5.0), b(10.0)),
        ),
        ("add.bf16 d16, a16, b16", b(256.0), b(1.0), 0, b(256.0)),
        ("mul.bf16 d16, a16, b16", b(3.0), b(0.5), 0, b(1.5)),
        ("sub.bf16x2 d32, a32, b32", two(b(3.0), b(1.0)), two(b(1.0), b(3.0)), 0, two(b(2.0), b(-2.0))),
        ("min.f16 d16, a16, b16", 0x7e00, h(2.0), 0, h(2.0)),
        ("max.NaN.f16 d16, a16, b16", 0x7e00, h(2.0), 0, 0x7fff),
        ("max.bf16 d16, a16, b16", b(-0.0), b(0.0), 0, b(0.0)),
        ("neg.f16 d16, a16", h(1.0), 0, 0, h(-1.0)),
        ("abs.bf16x2 d32, a32", two(b(-1.0), b(-2.0)), 0, 0, two(b(1.0), b(2.0))),
        ("neg.f16x2 d32, a32", two(h(1.0), h(-2.0)), 0, 0, two(h(-1.0), h(2.0))),
        ("ex2.approx.f16 d16, a16", h(3.0), 0, 0, h(8.0)),
        ("tanh.approx.bf16 d16, a16", b(0.0), 0, 0, b(0.0)),
    ]);
}

#[test]
fn conversions() {
    check(&[
        ("cvt.rni.s32.f32 d32, a32", f(2.5), 0, 0, 2),
        ("cvt.rni.s32.f32 d32, a32", f(-3.5), 0, 0, s(-4)),
        ("cvt.rzi.s32.f32 d32, a32", f(-3.9), 0, 0, s(-3)),
        ("cvt.rmi.s32.f32 d32, a32", f(-3.1), 0, 0, s(-4)),
        ("cvt.rpi.s32.f32 d32, a32", f(3.1), 0, 0, 4),
        ("cvt.rzi.s32.f32 d32, a32", f(3e9), 0, 0, s(i32::MAX)),
        ("cvt.rzi.s32.f32 d32, a32", f(NAN), 0, 0, 0),
        ("cvt.rzi.u32.f32 d32, a32", f(-1.0), 0, 0, 0),
        ("cvt.rzi.u8.f32 d16, a32", f(300.0), 0, 0, 255),
        ("cvt.rzi.s64.f64 d64, a64", d(-1e10), 0, 0, -10_000_000_000i64 as u64),
        ("cvt.rn.f32.s32 d32, a32", s(-5), 0, 0, f(-5.0)),
        ("cvt.rn.f32.u32 d32, a32", 0xffff_ff7f, 0, 0, f(4_294_967_040.0)),
        ("cvt.rz.f32.u32 d32, a32", s(-1), 0, 0, f(4_294_967_040.0)),
        ("cvt.rn.f32.u64 d32, a64", (1 << 24) + 1, 0, 0, f(16_777_216.0)),
        ("cvt.rp.f32.u64 d32, a64", (1 << 24) + 1, 0, 0, f(16_777_218.0)),
        ("cvt.rn.f64.s32 d64, a32", s(-5), 0, 0, d(-5.0)),
        ("cvt.rn.f64.u64 d64, a64", (1 << 53) + 1, 0, 0, d(2f64.powi(53))),
        ("cvt.f64.f32 d64, a32", f(0.1), 0, 0, d(f64::from(0.1f32))),
        ("cvt.rn.f32.f64 d32, a64", d(0.1), 0, 0, f(0.1)),
        ("cvt.rz.f32.f64 d32, a64", d(1.0 + 2f64.powi(-24) * 1.9), 0, 0, f(1.0)),
        ("cvt.rp.f32.f64 d32, a64", d(1.0 + 2f64.powi(-40)), 0, 0, f(1.0f32.next_up())),
        ("cvt.rn.f16.f32 d16, a32", f(1.0 + 2f32.powi(-11)), 0, 0, h(1.0)),
        ("cvt.rn.f16.f32 d16, a32", f(65520.0), 0, 0, h(f64::INFINITY)),
        ("cvt.rn.f16.f32 d16, a32", f(2f32.powi(-24)), 0, 0, 1),
        ("cvt.rn.bf16.f32 d16, a32", f(1.0 + 2f32.powi(-8)), 0, 0, b(1.0)),
        ("cvt.rn.bf16.f32 d16, a32", f(1.0 + 3.0 * 2f32.powi(-8)), 0, 0, b(1.0 + 2f64.powi(-6))),
        ("cvt.f32.f16 d32, a16", 1, 0, 0, f(2f32.powi(-24))),
        ("cvt.f32.bf16 d32, a16", b(-1.5), 0, 0, f(-1.5)),
        ("cvt.rn.f16.f64 d16, a64", d(1.0 + 2f64.powi(-11) + 2f64.powi(-40)), 0, 0, h(1.0 + 2f64.powi(-10))),
        ("cvt.rn.f16x2.f32 d32, a32, b32", f(1.0), f(2.0), 0, h(1.0) << 16 | h(2.0)),
        ("cvt.rn.bf16x2.f32 d32, a32, b32", f(1.0), f(-2.0), 0, b(1.0) << 16 | b(-2.0)),
        ("cvt.rn.relu.bf16x2.f32 d32, a32, b32", f(1.0), f(-2.0), 0, b(1.0) << 16),
        ("cvt.rna.tf32.f32 d32, a32", f(1.0 + 2f32.powi(-11)), 0, 0, f(1.0 + 2f32.powi(-10))),
        ("cvt.s64.s32 d64, a32", s(-1), 0, 0, u64::MAX),
        ("cvt.u64.u32 d64, a32", s(-1), 0, 0, 0xffff_ffff),
        ("cvt.s32.s8 d32, a32", 0x80, 0, 0, s(-128)),
        ("cvt.u32.u8 d32, a32", 0x1ff, 0, 0, 0xff),
        ("cvt.s32.s16 d32, a16", 0x8000, 0, 0, s(-32768)),
        ("cvt.sat.s8.s32 d32, a32", 1000, 0, 0, 127),
        ("cvt.sat.u8.s32 d32, a32", s(-5), 0, 0, 0),
        ("cvt.u16.u32 d16, a32", 0x12345, 0, 0, 0x2345),
        ("cvt.rni.f32.f32 d32, a32", f(2.5), 0, 0, f(2.0)),
        ("cvt.rmi.f64.f64 d64, a64", d(-0.5), 0, 0, d(-1.0)),
        ("cvt.sat.f32.f32 d32, a32", f(7.0), 0, 0, f(1.0)),
    ]);
}

#[test]
fn comparisons_and_choices() {
    check(&[
        ("setp.lt.s32 p, a32, b32; selp.b32 d32, 1, 0, p", s(-1), 1, 0, 1),
        ("setp.lt.u32 p, a32, b32; selp.b32 d32, 1, 0, p", s(-1), 1, 0, 0),
        ("setp.lo.u64 p, a64, b64; selp.b32 d32, 1, 0, p", 1, 2, 0, 1),
        ("setp.eq.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(0.0), f(-0.0), 0, 1),
        ("setp.lt.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(NAN), f(1.0), 0, 0),
        ("setp.ltu.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(NAN), f(1.0), 0, 1),
        ("setp.ne.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(NAN), f(NAN), 0, 0),
        ("setp.neu.f32 p, a32, b32; selp.b32 d32, 1, 0, p", f(NAN), f(NAN), 0, 1),
        ("setp.nan.f64 p, a64, b64; selp.b32 d32, 1, 0, p", d(f64::NAN), d(1.0), 0, 1),
        ("setp.num.f64 p, a64, b64; selp.b32 d32, 1, 0, p", d(2.0), d(1.0), 0, 1),
        ("setp.gt.f16 p, a16, b16; selp.b32 d32, 1, 0, p", h(2.0), h(1.0), 0, 1),
        ("setp.ge.bf16 p, a16, b16; selp.b32 d32, 1, 0, p", b(2.0), b(2.0), 0, 1),
        ("setp.gt.ftz.f32 p, a32, b32; selp.b32 d32, 1, 0, p", 1, f(0.0), 0, 0),
        ("setp.eq.s16 p, a16, b16; selp.b32 d32, 1, 0, p", 0xffff, 0x1_ffff, 0, 1),
        // The second predicate is the comparison's opposite; a third operand joins both.
        ("setp.lt.s32 p|q, a32, b32; selp.b32 d32, 1, 0, q", 5, 1, 0, 1),
        ("setp.eq.s32 r, a32, 5; setp.lt.and.s32 p|q, a32, b32, r; selp.b32 d32, 1, 0, p", 5, 9, 0, 1),
        ("setp.eq.s32 r, a32, 6; setp.lt.or.s32 p, a32, b32, r; selp.b32 d32, 1, 0, p", 5, 1, 0, 0),
        ("setp.eq.s32 r, a32, 5; setp.lt.xor.s32 p, a32, b32, !r; selp.b32 d32, 1, 0, p", 5, 9, 0, 1),
        ("setp.eq.s32 p, a32, 5; setp.eq.s32 q, b32, 5; and.pred r, p, q; selp.b32 d32, 1, 0, r", 5, 5, 0, 1),
        ("setp.eq.s32 p, a32, 5; not.pred q, p; selp.b32 d32, 1, 0, q", 5, 0, 0, 0),
        ("setp.eq.s32 p, a32, 5; setp.eq.s32 q, b32, 5; xor.pred r, p, q; selp.b64 d64, 1, 0, r", 5, 4, 0, 1),
        ("set.gt.u32.f32 d32, a32, b32", f(2.0), f(1.0), 0, s(-1)),
        ("set.gt.f32.f32 d32, a32, b32", f(2.0), f(1.0), 0, f(1.0)),
        ("set.eq.f16.f16 d16, a16, b16", h(2.0), h(2.0), 0, h(1.0)),
        ("set.lt.f16.f16 d16, a16, b16", h(2.0), h(2.0), 0, 0),
        ("set.ge.bf16.bf16 d16, a16, b16", b(2.0), b(2.0), 0, b(1.0)),
        ("set.gt.f16x2.f16x2 d32, a32, b32", h(2.0) << 16 | h(1.0), h(1.0) << 16 | h(1.0), 0, h(1.0) << 16),
        ("set.lt.bf16x2.bf16x2 d32, a32, b32", b(2.0) << 16 | b(1.0), b(3.0) << 16 | b(1.5), 0, b(1.0) << 16 | b(1.0)),
        ("slct.u32.s32 d32, a32, b32, c32", 7, 8, s(-1), 8),
        ("slct.u32.f32 d32, a32, b32, c32", 7, 8, f(-0.0), 7),
        ("setp.eq.s32 p, a32, 5; @p mov.u32 d32, 9", 5, 0, 0, 9),
        ("setp.eq.s32 p, a32, 5; @!p mov.u32 d32, 9", 5, 0, 0, 0),
        ("testp.infinite.f32 p, a32; selp.b32 d32, 1, 0, p", f(-INF), 0, 0, 1),
        ("testp.notanumber.f64 p, a64; selp.b32 d32, 1, 0, p", d(1.0), 0, 0, 0),
        ("testp.subnormal.f32 p, a32; selp.b32 d32, 1, 0, p", 1, 0, 0, 1),
    ]);
}

#[test]
fn carries() {
    check(&[
        ("add.cc.u32 e32, a32, b32; addc.u32 d32, 0, 0", s(-1), 1, 0, 1),
        ("add.cc.u32 e32, a32, b32; addc.cc.u32 e32, a32, 0; addc.u32 d32, 5, 0", s(-1), 1, 0, 6),
        ("sub.cc.u32 e32, a32, b32; subc.u32 d32, 5, 0", 1, 2, 0, 4),
        ("add.cc.u64 i, a64, b64; addc.u64 d64, c64, 0", u64::MAX, 1, 4, 5),
        ("mad.lo.cc.u32 e32, a32, b32, c32; madc.hi.u32 d32, a32, b32, 0", s(-1), s(-1), s(-1), s(-1)),
    ]);
}

/// Loads of each type extend by its sign; vectors are in order.
#[test]
fn memory() {
    check(&[
        ("ld.global.u8 d32, [i]", 0x80, 0, 0, 0x80),
        ("ld.global.s8 d32, [i]", 0x80, 0, 0, s(-128)),
        ("ld.global.s16 d32, [i]", 0x8000, 0, 0, s(-32768)),
        ("ld.global.s32 d64, [i]", s(-5), 0, 0, -5i64 as u64),
        ("ld.global.u32 d64, [i]", s(-5), 0, 0, s(-5)),
        ("ld.global.b16 d16, [i+2]", 0x1234_5678, 0, 0, 0x1234),
        ("ld.global.v2.u32 {e32, d32}, [i]", 7 << 32 | 3, 0, 0, 7),
        ("ld.global.v4.u32 {e32, f32, d32, e32}, [i]", 0, 9, 0, 9),
        ("ld.global.v2.u64 {c64, d64}, [i]", 1, 2, 0, 2),
        ("ld.global.nc.L1::no_allocate.u32 d32, [i]", 77, 0, 0, 77),
        ("ld.u32 d32, [i]", 77, 0, 0, 77),
        ("st.global.v2.u16 [i], {a16, b16}; ld.global.u32 d32, [i]", 0x1111, 0x2222, 0, 0x2222_1111),
        ("st.global.u8 [i+1], b16; ld.global.u16 d16, [i]", 0x1234, 0xab, 0, 0xab34),
        ("atom.global.add.u32 e32, [i], b32; ld.global.u32 d32, [i]", 5, 6, 0, 11),
        ("atom.global.add.u32 d32, [i], b32", 5, 6, 0, 5),
        ("atom.global.max.s64 c64, [i], b64; ld.global.u64 d64, [i]", -1i64 as u64, 6, 0, 6),
        ("atom.global.cas.b64 c64, [i], a64, b64; ld.global.u64 d64, [i]", 5, 6, 0, 6),
        ("atom.global.exch.b32 d32, [i], b32", 5, 6, 0, 5),
        ("red.global.add.f32 [i], b32; ld.global.u32 d32, [i]", f(1.5), f(2.0), 0, f(3.5)),
        ("atom.global.inc.u32 d32, [i], b32; ld.global.u32 d32, [i]", 5, 5, 0, 0),
        ("atom.global.dec.u32 d32, [i], b32; ld.global.u32 d32, [i]", 0, 5, 0, 5),
        ("isspacep.global p, i; selp.b32 d32, 1, 0, p", 0, 0, 0, 1),
        ("isspacep.shared p, i; selp.b32 d32, 1, 0, p", 0, 0, 0, 0),
    ]);
}

/// `shfl.sync` for all lanes: the ISA's definition, by which the clamp and the segments come out of one operand.
#[test]
fn shuffles() {
    let text = |mode: &str| {
        format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u32 b, .param .u32 c) {{
                .reg .b32 %r<9>; .reg .b64 %o<4>; .reg .pred %p;
                ld.param.u64 %o1, [out]; ld.param.u32 %r1, [b]; ld.param.u32 %r2, [c];
                mov.u32 %r3, %laneid; add.u32 %r4, %r3, 100;
                shfl.sync.{mode}.b32 %r5|%p, %r4, %r1, %r2, -1;
                selp.u32 %r6, 1, 0, %p; shl.b32 %r6, %r6, 16; or.b32 %r5, %r5, %r6;
                mul.wide.u32 %o2, %r3, 4; add.u64 %o3, %o1, %o2; st.global.u32 [%o3], %r5; ret;
            }}"
        )
    };
    for mode in ["up", "down", "bfly", "idx"] {
        for width in [32u32, 16, 8, 2] {
            for offset in [0u32, 1, 3, 9, 31] {
                let gpu = Gpu::new(&text(mode)).unwrap();
                let out = gpu.allocate(128);
                // CUDA's own operand: segments of `width` lanes, clamped to the segment's end, or to its start for `up`.
                let c = (32 - width) << 8 | if mode == "up" { 0 } else { 31 };
                let parameters = [&out.to_le_bytes()[..], &offset.to_le_bytes(), &c.to_le_bytes()];
                gpu.launch("k", LaunchConfig::line(1, 32), &parameters).unwrap();
                for (lane, found) in gpu.download::<u32>(out, 32).unwrap().into_iter().enumerate() {
                    let (lane, first) = (lane as i64, lane as i64 / i64::from(width) * i64::from(width));
                    let (offset, last) = (i64::from(offset), first + i64::from(width) - 1);
                    let from = match mode {
                        "up" => lane - offset,
                        "down" => lane + offset,
                        "bfly" => lane ^ offset,
                        _ => first + offset % i64::from(width),
                    };
                    let valid = if mode == "up" { from >= first } else { from <= last };
                    let expected = if valid { 100 + from } else { 100 + lane } | i64::from(valid) << 16;
                    assert_eq!(i64::from(found), expected, "{mode} by {offset} of {width}, lane {lane}");
                }
            }
        }
    }
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
        let gpu = Gpu::new(&module(&[(odd, 0, 0, 0, 0)])).unwrap();
        let (from, to) = (gpu.upload(&[0u64; 3]), gpu.allocate(24));
        match gpu.launch("k0", LaunchConfig::default(), &[&from.to_le_bytes(), &to.to_le_bytes()]) {
            Err(Error::Fault(fault)) => {
                assert_eq!(fault.kind, FaultKind::Unsupported);
                let text = fault.to_string();
                assert!(text.contains(odd.split(' ').next().unwrap()) && text.contains("PTX line 12"), "{text}");
            }
            other => panic!("{odd}: {other:?}"),
        }
    }
    let whole = module(&[("add.s32 d32, a32, b32", 0, 0, 0, 0), ("bfi.b32 d32, a32, b32, 8, 4", 0, 0, 0, 0)]);
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
            let _ = gpu.launch("k1", LaunchConfig::default(), &[&from.to_le_bytes(), &to.to_le_bytes()]);
        }
    }
}
