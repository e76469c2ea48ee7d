//! The instruction set that the sweeps are compiled for, chosen where the program runs.

use std::sync::OnceLock;

use pulp::{Arch, Simd, WithSimd};

/// The best set of this machine, or what the environment variable `MARGIN_LOSS_SIMD` says: `scalar`, `v3` or `v4`, for tests. `gemm` chooses for itself; bf16's products
/// by AVX512-BF16 are had with `v4` alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instructions(Arch);

impl Instructions {
    pub fn new() -> Self {
        static CHOSEN: OnceLock<Arch> = OnceLock::new();
        Self(*CHOSEN.get_or_init(|| match std::env::var("MARGIN_LOSS_SIMD") {
            Ok(tier) => named(&tier).unwrap_or_else(|| panic!("MARGIN_LOSS_SIMD={tier} is not to be had here")),
            Err(_) => Arch::new(),
        }))
    }

    /// Whether they are AVX-512.
    pub fn are_wide(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.0, Arch::V4(_));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// `work`, compiled for them: what is inlined into it.
    #[inline(always)]
    pub fn dispatch<R>(self, work: impl FnMut() -> R) -> R {
        self.0.dispatch(Work(work))
    }
}

fn named(tier: &str) -> Option<Arch> {
    match tier {
        "scalar" => Some(Arch::Scalar),
        #[cfg(target_arch = "x86_64")]
        "v3" => pulp::x86::V3::try_new().map(Arch::V3),
        #[cfg(target_arch = "x86_64")]
        "v4" => pulp::x86::V4::try_new().map(Arch::V4),
        _ => None,
    }
}

/// Called as `FnMut`, which is the closure's body. `FnOnce::call_once` of a closure that only borrows is a function around the body, which the
/// compiler may leave out of line, and out of the instruction set with it: loops of ten times the time, and calls of `fma`.
struct Work<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Work<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}
