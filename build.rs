//! With the feature `cuda`: kernels → PTX and machine code, a module an entry; `kernels/params.h` → Rust; and the margin's formulas for the host, for
//! a test. Nothing else.

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
    use std::collections::HashSet;
    use std::fmt::Write;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Mutex;

    const KERNELS: [&str; 4] = ["stream_forward", "stream_backward", "fused_step", "scale"];

    /// Set, the PTX has line numbers, which are a third of it: the emulated device names lines by them.
    const LINES: &str = "MARGIN_LOSS_LINEINFO";

    /// The least that the kernels run on: bf16 arithmetic, `cp.async`, `mma` of bf16 and tf32. PTX is of it, and so for all that came after.
    const LEAST_CAPABILITY: u32 = 80;
    /// What `MARGIN_LOSS_CUDA_TARGETS=all` builds machine code for.
    const ALL: [u32; 6] = [80, 86, 89, 90, 100, 120];

    pub fn build() {
        for variable in
            ["CUDA_COMPUTE_CAP", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "NVCC", "MARGIN_LOSS_CUDA_TARGETS", LINES]
        {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let targets = targets();
        let mut modules = Vec::new();
        for kernel in KERNELS {
            let file = out.join(kernel).with_extension("ptx");
            run(nvcc()
                .args(["-std=c++17", "-lineinfo", "--ptx", "-Werror", "all-warnings"])
                .arg(format!("-arch=compute_{LEAST_CAPABILITY}"))
                .arg("-o")
                .arg(&file)
                .arg(format!("kernels/{kernel}.cu")));
            let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            modules.extend(split(&text));
        }
        compile(&modules, &targets, &out);
        table(&modules, &targets, &out);

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

    fn run(command: &mut Command) {
        let status = command.status().unwrap_or_else(|error| panic!("nvcc could not be run ({command:?}): {error}"));
        assert!(status.success(), "nvcc failed: {command:?}");
    }

    /// The compute capabilities that machine code is built for: MARGIN_LOSS_CUDA_TARGETS (`all`, `none`, `80,90`), else the one that Candle builds its
    /// kernels for: CUDA_COMPUTE_CAP, or the first device's.
    fn targets() -> Vec<u32> {
        let number = |variable: &str, text: &str| {
            let number = text.trim().replace('.', "").parse::<u32>();
            let number =
                number.unwrap_or_else(|_| panic!("{variable} is to be of numbers such as 80 or 9.0, it has {text}"));
            assert!(number >= LEAST_CAPABILITY, "{variable} has {text}, the kernels need compute capability 8.0");
            number
        };
        match std::env::var("MARGIN_LOSS_CUDA_TARGETS") {
            Ok(text) if text == "all" => return ALL.to_vec(),
            Ok(text) if text == "none" => return Vec::new(),
            Ok(text) if !text.is_empty() => {
                let mut targets: Vec<u32> =
                    text.split(',').map(|part| number("MARGIN_LOSS_CUDA_TARGETS", part)).collect();
                targets.sort_unstable();
                targets.dedup();
                return targets;
            }
            _ => {}
        }
        if let Ok(text) = std::env::var("CUDA_COMPUTE_CAP") {
            return vec![number("CUDA_COMPUTE_CAP", &text)];
        }
        let found = Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output().ok();
        let text = found.map(|found| String::from_utf8_lossy(&found.stdout).into_owned()).unwrap_or_default();
        let first = text.lines().next().and_then(|line| line.trim().replace('.', "").parse::<u32>().ok());
        first.filter(|&first| first >= LEAST_CAPABILITY).into_iter().collect()
    }

    /// The PTX of one entry.
    struct Module {
        entry: String,
        text: String,
    }

    /// A module for each entry of a file, so that what is loaded or translated for a call is what the call needs: the entry, what stands outside of all
    /// entries, and of the names for line numbers those that the entry has.
    fn split(text: &str) -> Vec<Module> {
        const ENTRY: &str = ".visible .entry ";
        let (mut shared, mut entries, mut strings) =
            (String::new(), Vec::<Module>::new(), Vec::<(&str, String)>::new());
        let (mut files, mut inside, mut in_strings) = (String::new(), false, false);
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix(ENTRY) {
                let entry = rest.trim_end_matches(['(', ')', ' ']).to_string();
                entries.push(Module { entry, text: String::new() });
                inside = true;
            }
            let trimmed = line.trim_start();
            if inside {
                let module = entries.last_mut().expect("an entry has begun");
                module.text.push_str(line);
                module.text.push('\n');
                inside = line != "}";
            } else if trimmed.starts_with(".section") {
                assert!(trimmed.ends_with(".debug_str"), "a section that is not known: {line}");
                in_strings = true;
            } else if in_strings && trimmed.starts_with("$L__info_string") {
                strings.push((trimmed.trim_end_matches(':'), String::new()));
            } else if in_strings && trimmed.starts_with(".b8") {
                let (_, bytes) = strings.last_mut().expect("a string has a label");
                bytes.push_str(line);
                bytes.push('\n');
            } else if trimmed.starts_with(".file") {
                files.push_str(line);
                files.push('\n');
            } else if !in_strings && !trimmed.starts_with("//") && !trimmed.is_empty() {
                shared.push_str(line);
                shared.push('\n');
            }
        }
        assert!(!entries.is_empty() && !inside, "PTX is read as nvcc writes it");
        for module in &mut entries {
            let words = module.text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$'));
            let used: HashSet<&str> = words.filter(|word| word.starts_with("$L__info_string")).collect();
            let mut names = String::new();
            for (label, bytes) in strings.iter().filter(|(label, _)| used.contains(label)) {
                let _ = write!(names, "{label}:\n{bytes}");
            }
            let names = if names.is_empty() { names } else { format!("\t.section\t.debug_str\n\t{{\n{names}\n\t}}\n") };
            module.text = format!("{shared}{}{files}{names}", module.text);
        }
        entries
    }

    /// The targets that an entry has machine code for. What is in f64 is for checks of gradients: PTX alone.
    fn targets_of<'a>(module: &Module, targets: &'a [u32]) -> &'a [u32] {
        if module.entry.ends_with("_f64") { &[] } else { targets }
    }

    /// Writes each module as the library includes it: `ENTRY.ptx` and, for each target, `ENTRY.sm_80.cubin`, deflated.
    fn compile(modules: &[Module], targets: &[u32], out: &Path) {
        let folder = out.join("modules");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("OUT_DIR can be written");
        let left = Mutex::new(modules.iter());
        let with_lines = std::env::var_os(LINES).is_some();
        // As many at once as cargo gives build scripts.
        let jobs = std::env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let next = left.lock().expect("no job has failed").next();
                        let Some(module) = next else { break };
                        let write =
                            |file: &Path, text: &str| std::fs::write(file, text).expect("OUT_DIR can be written");
                        let plain = folder.join(format!("{}.plain.ptx", module.entry));
                        let plain_text = without_lines(&module.text);
                        write(&plain, &plain_text);
                        for target in targets_of(module, targets) {
                            let cubin = folder.join(format!("{}.sm_{target}.cubin", module.entry));
                            let arch = format!("-arch=sm_{target}");
                            run(nvcc().arg("--cubin").arg(arch).arg("-o").arg(&cubin).arg(&plain));
                            deflate(&cubin);
                        }
                        let _ = std::fs::remove_file(plain);
                        let ptx = folder.join(format!("{}.ptx", module.entry));
                        write(&ptx, if with_lines { &module.text } else { &plain_text });
                        deflate(&ptx);
                    }
                });
            }
        });
    }

    /// Line numbers would be two thirds of the machine code's files.
    fn without_lines(text: &str) -> String {
        let code = text.split("\t.section").next().unwrap_or(text);
        let kept = code.lines().filter(|line| !line.trim_start().starts_with(".loc") && !line.starts_with("\t.file"));
        kept.flat_map(|line| [line, "\n"]).collect()
    }

    /// In place.
    fn deflate(file: &Path) {
        let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        std::fs::write(file, miniz_oxide::deflate::compress_to_vec(&bytes, 6)).expect("OUT_DIR can be written");
    }

    /// Writes the table of what there is.
    fn table(modules: &[Module], targets: &[u32], out: &Path) {
        let mut text = String::from("const COMPILED: &[Compiled] = &[\n");
        for module in modules {
            let entry = &module.entry;
            let _ = write!(
                text,
                "    Compiled {{ entry: \"{entry}\", ptx: include_bytes!(\"modules/{entry}.ptx\"), cubins: &["
            );
            for target in targets_of(module, targets) {
                let _ = write!(text, "({target}, include_bytes!(\"modules/{entry}.sm_{target}.cubin\")), ");
            }
            text.push_str("] },\n");
        }
        text.push_str("];\n");
        std::fs::write(out.join("modules.rs"), text).expect("OUT_DIR can be written");
    }
}
