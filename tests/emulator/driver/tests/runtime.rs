//! A program of nvcc's with the emulated library in place of the runtime.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the library that cargo has built for these tests.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().to_path_buf()
}

/// What the program prints, if it is compiled with some more arguments; none, with the reason printed, where nothing can compile it.
fn program(name: &str, arguments: &[&str]) -> Option<String> {
    let missing = match ptx_emulator::nvcc::find() {
        Err(reason) => Some(reason),
        Ok(_) if Command::new("c++").arg("--version").output().is_err() => Some("no c++".into()),
        Ok(_) => None,
    };
    if let Some(reason) = missing {
        println!("SKIPPED program.cu: {reason}");
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/program.cu");
    let target = std::env::temp_dir().join(format!("ptx-emulator-{}-{name}", std::process::id()));
    let mut command = Command::new(ptx_emulator::nvcc::find().unwrap());
    command.args(["-std=c++17", "-cudart", "none", "-gencode", "arch=compute_80,code=compute_80"]).args(arguments);
    command.arg("-o").arg(&target).arg(source).arg("-L").arg(library()).arg("-lptx_emulator_driver");
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let ran = Command::new(&target).env("LD_LIBRARY_PATH", library()).output().unwrap();
    std::fs::remove_file(&target).unwrap();
    Some(String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr))
}

#[test]
fn a_program() {
    let Some(text) = program("plain", &["-no-compress"]) else { return };
    for line in [
        "without asking for shared memory: invalid argument",
        "3 blocks, device 0, 9.x",
        "16384 reversed",
        "reverse: no error",
        "0 wrong",
        "launch: no error",
        "outside: 4 bytes of global memory out of bounds",
        "in kernel _Z7outsidePf, block (0, 0, 0), thread (0, 0, 0)",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn a_program_whose_kernels_are_compressed() {
    let Some(text) = program("compressed", &["--compress-mode=size"]) else { return };
    assert!(text.contains("compile with -no-compress"), "{text}");
}
