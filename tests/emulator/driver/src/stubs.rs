//! What cudarc declares of these libraries and this driver does not have: each says so, once, and returns its library's "not supported".
//! `build.rs` writes them from `symbols.txt`, which `symbols.sh` writes from cudarc's sources.

/// Says that a function is not here; gives its status.
fn unsupported(name: &str, code: u32) -> u32 {
    crate::device::unsupported(name);
    code
}

include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
