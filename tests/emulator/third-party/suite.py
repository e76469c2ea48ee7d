#!/usr/bin/env python3
"""Runs kernels that nobody here wrote on the emulated GPU, beside exact results, in several orders each: CUTLASS's products (headers from PyPI), Triton's
(PyPI, compiled to PTX for compute capability 8.0), candle-flash-attn's forward (crates.io).

    sh tests/emulator/run.sh python3 tests/emulator/third-party/suite.py [--tenth] [--seeds N] [PART OF A NAME]

All of it, without arguments, writes table.md beside this file. What cannot be downloaded is skipped by name; what fails is the exit status.
"""

import argparse
import concurrent.futures
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
WORK = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "third-party"
PACKAGES = {"cutlass": ["nvidia-cutlass==4.2.0.0"], "triton": ["triton==3.9.0", "numpy==2.4.1"]}
FLASH = "candle-flash-attn", "0.11.1"
GROUPS = {"cutlass": range(18), "flash": range(5)}
TENTH = {"cutlass": [0, 15], "flash": [1]}
# Grids that divide their work by the device's multiprocessors run on a device of three, too.
BY_DEVICE = "stream-K"


def install(name):
    """The folder that pip installs a package into."""
    folder = WORK / f"python-{name}"
    wanted = "\n".join(PACKAGES[name])
    done = folder / ".installed"
    if not done.exists() or done.read_text() != wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action", "ignore", "--no-deps", "--upgrade"]
        subprocess.run([*command, "--target", folder, *PACKAGES[name]], check=True)
        done.write_text(wanted)
    return folder


def flash_sources():
    """The folder of candle-flash-attn's kernels, as cargo brings them."""
    name, version = FLASH
    folder = WORK / "flash-sources"
    (folder / "src").mkdir(parents=True, exist_ok=True)
    (folder / "src/lib.rs").touch()
    manifest = folder / "Cargo.toml"
    text = f'[package]\nname = "flash-sources"\nversion = "0.0.0"\nedition = "2024"\n[dependencies]\n{name} = "={version}"\n[workspace]\n'
    if not manifest.exists() or manifest.read_text() != text:
        manifest.write_text(text)
    out = subprocess.run(["cargo", "metadata", "--quiet", "--format-version", "1", "--manifest-path", manifest], check=True, stdout=subprocess.PIPE).stdout
    package = next(package for package in json.loads(out)["packages"] if package["name"] == name)
    return pathlib.Path(package["manifest_path"]).parent / "kernels"


def build(suite, group, includes, tenth):
    """A program of some of a suite's cases, linked with the emulated libraries; compiled again when its sources are newer."""
    source, program = HERE / f"{suite}.cu", WORK / "bin" / f"{suite}-{group}{'-tenth' if tenth else ''}"
    program.parent.mkdir(parents=True, exist_ok=True)
    if program.exists() and program.stat().st_mtime > max(path.stat().st_mtime for path in (source, HERE / "host.h")):
        return program
    home = pathlib.Path(os.environ["CUDA_HOME"])
    command = [pathlib.Path((home / "real").read_text().strip()) / "bin/nvcc", "-std=c++17", "-O1", "-w", "-cudart", "none", "-no-compress", "--expt-relaxed-constexpr"]
    command += ["-gencode", "arch=compute_80,code=compute_80", f"-DGROUP={group}", *(["-DTENTH"] if tenth else [])]
    command += [f"-I{include}" for include in includes] + ["-o", program, source, f"-L{home / 'lib'}", "-lcudart"]
    subprocess.run(command, check=True)
    return program


def run_program(program, number, seed, name):
    """What a case says, or nothing where it is right."""
    environment = os.environ | {"PTX_EMULATOR_SEED": str(seed)}
    for more in [{}, {"PTX_EMULATOR_MULTIPROCESSORS": "3"}][: 2 if BY_DEVICE in name else 1]:
        try:
            done = subprocess.run([program, str(number), str(seed)], env=environment | more, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            return "still running after 900 s"
        if done.returncode:
            return (done.stdout + done.stderr).strip().splitlines()[-1][:600] or f"exit status {done.returncode}"
    return ""


def run_triton(case, seed):
    """The same of a case of Triton's, in a process of its own, which has a device of its own."""
    import numpy as np

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.environ["PTX_EMULATOR_SEED"] = str(seed)
            device = importlib.import_module("device").Device(case.launch)
            for integers in (True, False):
                case.check(device, np.random.default_rng(seed), integers)
        except BaseException:
            said = traceback.format_exc().strip().splitlines()[-1]
        os.write(write, said.encode()[:600])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return said or (f"exit status {status}" if status else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenth", action="store_true", help="a tenth of it, two orders")
    parser.add_argument("--seeds", type=int, help="orders of each case, 5 if not said")
    parser.add_argument("name", nargs="?", default="", help="cases with this in their names")
    chosen = parser.parse_args()
    seeds = range(1, (chosen.seeds or (2 if chosen.tenth else 5)) + 1)
    if "CUDA_HOME" not in os.environ or not (pathlib.Path(os.environ["CUDA_HOME"]) / "real").exists():
        sys.exit("suite.py: run it by tests/emulator/run.sh")
    started, results, skipped = time.monotonic(), [], []

    def note(suite, name, said):
        results.append((suite, name, said))
        print(f"{suite}: {name}: {said or 'passes'}", flush=True)

    includes = {}
    try:
        includes["cutlass"] = [install("cutlass") / "cutlass_library/source" / part for part in ("include", "tools/util/include")]
        includes["flash"] = [flash_sources(), *includes["cutlass"]]
    except (subprocess.CalledProcessError, OSError) as error:
        skipped.append(("third-party kernels of " + ("candle-flash-attn" if includes else "CUTLASS and candle-flash-attn"), error))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = {}
        for suite in includes:
            for group in (TENTH if chosen.tenth else GROUPS)[suite]:
                programs[pool.submit(build, suite, group, includes[suite], chosen.tenth)] = suite, group
        runs = []
        for program, (suite, group) in programs.items():
            try:
                path = program.result()
            except subprocess.CalledProcessError as error:
                note(suite, f"group {group}", f"does not compile: exit status {error.returncode}")
                continue
            names = subprocess.run([path, "list"], check=True, capture_output=True, text=True).stdout.splitlines()
            for number, name in enumerate(names):
                if chosen.name in name:
                    runs.append((suite, name, [pool.submit(run_program, path, number, seed, name) for seed in seeds]))
        for suite, name, futures in runs:
            note(suite, name, next((f"seed {seed}: {future.result()}" for seed, future in zip(seeds, futures) if future.result()), ""))

    try:
        sys.path[:0] = [str(install("triton")), str(HERE)]
        os.environ |= {"TRITON_CACHE_DIR": str(WORK / "triton-cache"), "TRITON_DEFAULT_FP_FUSION": "1"}
        triton = importlib.import_module("triton_cases")
    except (subprocess.CalledProcessError, OSError, ImportError) as error:
        skipped.append(("third-party kernels of Triton", error))
    else:
        for number, case in enumerate(triton.CASES):
            if chosen.name not in case.name or (chosen.tenth and number % 6):
                continue
            try:
                case.compile()
            except Exception as error:  # whatever Triton's compiler says
                note("triton", case.name, f"does not compile: {str(error).strip().splitlines()[-1]}")
                continue
            note("triton", case.name, next((f"seed {seed}: {said}" for seed in seeds if (said := run_triton(case, seed))), ""))

    failed = [result for result in results if result[2]]
    for name, error in skipped:
        tool = "pip" if isinstance(error, subprocess.CalledProcessError) and "pip" in error.cmd else "cargo"
        print(f"SKIPPED: {name}: {f'{tool} could not bring them' if isinstance(error, subprocess.CalledProcessError) else error}")
    print(f"{len(results) - len(failed)} of {len(results)} pass, {len(seeds)} orders each, {time.monotonic() - started:.0f} s")
    if not (chosen.tenth or chosen.name or chosen.seeds or skipped):
        versions = f"{PACKAGES['cutlass'][0]}, {PACKAGES['triton'][0]}, {'=='.join(FLASH)}"
        lines = ["# Third-party kernels on the emulated GPU", "", f"Written by `suite.py`: {versions}; {len(seeds)} orders each, on integers and on fractions.", ""]
        lines += [f"{len(results) - len(failed)} of {len(results)} pass.", "", "| | kernel | |", "|---|---|---|"]
        lines += [f"| {suite} | {name} | {said.replace('|', '/') or 'passes'} |" for suite, name, said in results]
        (HERE / "table.md").write_text("\n".join(lines) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
