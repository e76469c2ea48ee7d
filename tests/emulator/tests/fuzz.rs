//! Text that is almost PTX: an error of one sentence or a module, never a panic. See `tests/fuzz/driver.rs`.
#![allow(missing_docs, dead_code)]

mod common;
#[path = "../../fuzz/driver.rs"]
mod driver;

use ptx_emulator::{Memory, Module};

/// What every reader meets, where there is no nvcc to write more.
const SMALL: &str = r#"//
.version 9.0
.target sm_80
.address_size 64
.global .align 4 .b8 table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
.extern .shared .align 16 .b8 dynamic[];
.func (.param .b32 out) twice(.param .b32 in)
{
    .reg .b32 %r<3>;
    ld.param.u32 %r1, [in];
    shl.b32 %r2, %r1, 1;
    st.param.b32 [out], %r2;
    ret;
}
.visible .entry kernel(.param .u64 to, .param .u32 n)
{
    .reg .pred %p<3>;
    .reg .f32 %f<4>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<5>;
    .shared .align 4 .b8 own[128];
    .loc 1 3 5
    ld.param.u64 %rd1, [to];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %tid.x;
    setp.ge.u32 %p1, %r2, %r1;
    @%p1 bra $END;
    cvt.rn.f32.u32 %f1, %r2;
    fma.rn.f32 %f2, %f1, 0f3F800000, %f1;
    mov.b32 %r3, %f2;
    shfl.sync.bfly.b32 %r4|%p2, %r3, 1, 31, -1;
    bar.sync 0;
    { .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %r4; call.uni (r0), twice, (p0); ld.param.b32 %r5, [r0]; }
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r2, 4;
    add.s64 %rd4, %rd2, %rd3;
    st.global.u32 [%rd4+0], %r5;
$END:
    ret;
}
"#;

const WORDS: [&str; 26] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ";",
    ",",
    ".param .b32 x",
    ".reg .b32 %r<4294967295>;",
    "%r999999",
    "ret;",
    "bra $END;",
    "$END:",
    "@!%p1",
    ".v4",
    ".b64",
    "/*",
    "*/",
    "call twice, ();",
    "call (r0), kernel, (p0);",
    ".shared .align 4 .b8 big[18446744073709551615];",
    "0x",
    "0f3F80",
    "mma.sync",
    "<",
];

#[test]
fn ptx() {
    let path = driver::place("ptx", "ptx");
    let mut seeds = vec![SMALL.as_bytes().to_vec()];
    seeds.extend(["basic", "warp"].into_iter().filter_map(common::ptx).map(String::into_bytes));
    driver::files("ptx", &path, &seeds, &WORDS, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let memory = Memory::new(1 << 20);
        Module::load(&text, &memory).err().map(|error| error.to_string())
    });
}

/// A find: the name of a variable that is not there, of any length, stood in the error whole.
#[test]
fn a_long_name_is_not_quoted_whole() {
    let text = format!(".version 8.0\n.target sm_80\n.address_size 64\n.global .u64 x = {};\n", "y".repeat(5000));
    let error = Module::load(&text, &Memory::new(1 << 20)).err().map(|error| error.to_string()).unwrap();
    assert!(error.contains("is not there"), "{error}");
    driver::clear(&error);
}
