//! With the feature `cuda`: kernels → PTX, `kernels/params.h` → Rust, and the margin's formulas for the host, for a test. Nothing else.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The sources alone: tests write the tables that lie beside them.
    for entry in std::fs::read_dir("kernels").expect("the crate has its kernels").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|kind| kind != "md") {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    #[cfg(feature = "cuda")]
    cuda::build();
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    const KERNELS: [&str; 4] = ["stream_forward", "stream_backward", "fused_step", "scale"];

    /// The least that the kernels run on: bf16 arithmetic, `cp.async`, `mma` of bf16 and tf32.
    const LEAST_CAPABILITY: u32 = 80;

    pub fn build() {
        for variable in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "NVCC"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        for kernel in KERNELS {
            ptx(kernel, &out);
        }
        let bindings = bindgen::Builder::default()
            .header("kernels/params.h")
            .allowlist_item("(MarginLoss|MARGIN_LOSS).*")
            .merge_extern_blocks(true)
            .generate_comments(false)
            .derive_default(true)
            .generate()
            .unwrap_or_else(|error| {
                panic!("kernels/params.h could not be read by bindgen (is libclang installed?): {error}")
            });
        bindings.write_to_file(out.join("params.rs")).expect("OUT_DIR can be written");
        cc::Build::new().cpp(true).std("c++17").file("kernels/host.cpp").compile("candle_margin_loss_host");
    }

    /// nvcc, as `cc` finds and drives it; where CUDA_HOME or its like is set, that installation's.
    fn nvcc() -> Command {
        let in_home = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"]
            .iter()
            .filter_map(std::env::var_os)
            .map(|home| Path::new(&home).join("bin/nvcc"))
            .find(|nvcc| nvcc.is_file());
        let mut build = cc::Build::new();
        build.cuda(true).no_default_flags(true).warnings(false);
        if std::env::var_os("NVCC").is_none()
            && let Some(nvcc) = in_home
        {
            build.compiler(nvcc);
        }
        build.get_compiler().to_command()
    }

    fn ptx(kernel: &str, out: &Path) {
        let capability = match std::env::var("CUDA_COMPUTE_CAP") {
            Err(_) => LEAST_CAPABILITY,
            Ok(text) => {
                let number = text.replace('.', "").parse::<u32>();
                let number = number
                    .unwrap_or_else(|_| panic!("CUDA_COMPUTE_CAP is to be a number such as 80 or 9.0, it is {text}"));
                assert!(
                    number >= LEAST_CAPABILITY,
                    "CUDA_COMPUTE_CAP is {text}, the kernels need compute capability 8.0"
                );
                number
            }
        };
        let file = out.join(kernel).with_extension("ptx");
        let mut command = nvcc();
        command.args(["-std=c++17", "-lineinfo", "--ptx", "-Werror", "all-warnings"]);
        command.arg(format!("-arch=compute_{capability}")).arg("-o").arg(&file).arg(format!("kernels/{kernel}.cu"));
        let status = command.status().unwrap_or_else(|error| panic!("nvcc could not be run ({command:?}): {error}"));
        assert!(status.success(), "nvcc failed on kernels/{kernel}.cu: {command:?}");
    }
}
