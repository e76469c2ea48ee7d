//! The kernels as the library has them, a module an entry: machine code for the architectures that it was built for, and PTX for all others.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use crate::error::{Error, Result};

/// An entry's module, deflated.
struct Compiled {
    entry: &'static str,
    ptx: &'static [u8],
    /// By compute capability, 80 for 8.0, in rising order
    cubins: &'static [(u32, &'static [u8])],
}

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The one for a device: of its own capability, or of a lesser one with the same major number.
fn cubin_for(cubins: &[(u32, &'static [u8])], capability: u32) -> Option<&'static [u8]> {
    let of_family = cubins.iter().filter(|(target, _)| target / 10 == capability / 10 && *target <= capability);
    of_family.max_by_key(|(target, _)| *target).map(|(_, cubin)| *cubin)
}

/// An entry on a device. Machine code that the driver does not take, being older than it, is no error: there is PTX, too.
pub(super) fn load(context: &Arc<CudaContext>, capability: u32, entry: &str) -> Result<CudaFunction> {
    let compiled = COMPILED.iter().find(|compiled| compiled.entry == entry);
    let compiled = compiled.ok_or_else(|| Error::Input(format!("there is no kernel {entry} in this build")))?;
    let cubin = cubin_for(compiled.cubins, capability).and_then(|cubin| load_cubin(context, cubin).ok());
    let module = match cubin {
        Some(module) => module,
        None => {
            let text = String::from_utf8(inflate(compiled.ptx)).expect("PTX is text");
            context.load_module(Ptx::from_src(text)).w()?
        }
    };
    Ok(module.load_function(entry).w()?)
}

fn load_cubin(context: &Arc<CudaContext>, cubin: &[u8]) -> std::result::Result<Arc<CudaModule>, DriverError> {
    context.load_module(Ptx::from_binary(inflate(cubin)))
}

fn inflate(bytes: &[u8]) -> Vec<u8> {
    miniz_oxide::inflate::decompress_to_vec(bytes).expect("what the build has deflated")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_takes_its_own_familys_machine_code() {
        const CUBINS: &[(u32, &[u8])] = &[(80, b"80"), (86, b"86"), (90, b"90")];
        for (capability, expected) in
            [(80, Some(b"80")), (86, Some(b"86")), (87, Some(b"86")), (89, Some(b"86")), (90, Some(b"90")), (100, None)]
        {
            assert_eq!(cubin_for(CUBINS, capability), expected.map(|cubin| &cubin[..]), "{capability}");
        }
        assert_eq!(cubin_for(&CUBINS[1..], 80), None);
    }

    /// Each module is one entry, and PTX of the least capability that the kernels run on.
    #[test]
    fn every_module_is_an_entry() {
        for Compiled { entry, ptx, cubins } in COMPILED {
            let text = String::from_utf8(inflate(ptx)).unwrap();
            assert!(text.starts_with(".version") && text.contains("\n.target sm_80\n"), "{entry}");
            assert_eq!(text.matches(".entry ").count(), 1, "{entry}");
            assert!(text.contains(&format!(".visible .entry {entry}(")), "{entry}");
            // A name that a line number has is there.
            for (at, _) in text.match_indices("function_name ") {
                let label = text[at + 14..].split(',').next().unwrap();
                assert!(text.contains(&format!("\n{label}:\n")), "{entry}: {label}");
            }
            assert!(!entry.ends_with("_f64") || cubins.is_empty(), "{entry}");
            for (_, cubin) in *cubins {
                assert!(inflate(cubin).starts_with(b"\x7fELF"), "{entry}");
            }
        }
        let bytes = |of: fn(&Compiled) -> usize| COMPILED.iter().map(of).sum::<usize>();
        let (ptx, cubins) =
            (bytes(|of| of.ptx.len()), bytes(|of| of.cubins.iter().map(|(_, cubin)| cubin.len()).sum()));
        println!("{} modules: {ptx} bytes of PTX, {cubins} of machine code", COMPILED.len());
        assert!(ptx + cubins < 20_000_000, "{ptx} bytes of PTX, {cubins} of machine code");
    }
}
